//! The example works: real VMs, calls before and after a new one.

use embed::Engine;
use iii_supervisor::EventKind;

#[tokio::test(flavor = "multi_thread")]
async fn functions_answer_survive_a_new_vm_and_can_be_withdrawn() {
    let engine = Engine::start(iii_integration::binaries()).await.unwrap();
    let mut events = engine.events();
    let reverse = "def answer(text): return text[::-1]";
    engine.deploy("reverse", reverse).await.unwrap();
    assert_eq!(
        engine.call("reverse", "stressed").await.unwrap(),
        "desserts"
    );
    engine.renew("reverse").await.unwrap();
    assert_eq!(engine.call("reverse", "drawer").await.unwrap(), "reward");
    engine.withdraw("reverse").await.unwrap();
    // The name is free again.
    let count = "def answer(text): return len(text)";
    engine.deploy("reverse", count).await.unwrap();
    assert_eq!(engine.call("reverse", "four").await.unwrap(), "4");
    engine.stop().await;
    let mut vms = 0;
    while let Some(Ok(event)) = events.try_next() {
        vms += u32::from(matches!(event.kind, EventKind::VmStarted { .. }));
    }
    assert_eq!(vms, 3);
}
