//! The examples, with the real SDKs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use iii_integration::engine::{Engine, Happened};
use iii_integration::images::{Layer, done, layout};
use iii_integration::program::processes_with;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::assert_no_refusal;
use super::example::Example;

#[tokio::test(flavor = "multi_thread")]
async fn the_node_example_serves_an_engine_from_its_vm_whatever_ends() {
    let example = serves("node-worker", false).await;
    serves_on_an_image(&example).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_example_serves_an_engine_from_its_vm_whatever_ends() {
    serves("python-worker", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rust_example_serves_an_engine_from_its_vm_whatever_ends() {
    serves("rust-worker", true).await;
}

/// `dies`: its VM, too. Node takes its time to start without hardware virtualisation.
async fn serves(name: &'static str, dies: bool) -> Example {
    let mut engine = Engine::start();
    let function = format!("{name}::greet");
    let example = Example::copy(name);
    let mut run = example.start(&engine.url());
    let mut from = greets(&engine, 0, name).await;
    let error = engine.call(&function, json!({})).await.unwrap_err();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("whom?"), "{error}");

    // Its VM dies: the next one has the name at once.
    if dies {
        kill(vmm(name), Signal::SIGKILL).unwrap();
        from = greets(&engine, from, name).await;
    }

    // The engine dies: the worker comes back to the next one, in its VM.
    let before = processes_with(name);
    engine.restart();
    from = greets(&engine, from, name).await;
    assert_eq!(processes_with(name), before);
    assert_no_refusal(&engine);

    run.signal(Signal::SIGINT);
    let status = run.wait();
    assert_eq!(status.code(), Some(0), "{}", run.seen.join("\n"));
    let closed = |happened: &Happened| matches!(happened, Happened::Closed(_)).then_some(());
    engine.until(from, "the worker's end", closed).await;
    assert_eq!(processes_with(name), Vec::<String>::new());
    let garbage = |happened: &Happened| matches!(happened, Happened::Garbage { .. });
    assert!(!engine.history().iter().any(garbage), "{}", engine.story());
    example
}

/// What a host without Node is told to run, with an image that stands for the one of the registry.
/// The packages are there already.
async fn serves_on_an_image(example: &Example) {
    let engine = Engine::start();
    let directory = tempfile::tempdir().unwrap();
    let layout = node_image(directory.path());
    let layout = layout.to_str().unwrap();
    let mut import = example.run(&[
        "iii-super",
        "image",
        "import",
        "--name",
        "node:22-slim",
        layout,
    ]);
    let status = import.wait();
    assert!(status.success(), "{}", import.seen.join("\n"));
    let file = "examples/node-worker/image.workers.yaml";
    let mut run = example.run(&["iii-super", "run", "-f", file, "--engine", &engine.url()]);
    greets(&engine, 0, "node-worker").await;
    run.signal(Signal::SIGINT);
    let status = run.wait();
    assert_eq!(status.code(), Some(0), "{}", run.seen.join("\n"));
}

/// A root with the host's own Node, and as few other things as it can do with.
fn node_image(directory: &Path) -> PathBuf {
    let which =
        "import { realpathSync } from 'node:fs'; console.log(realpathSync(process.execPath))";
    let node = done(Command::new("node").args(["--input-type=module", "-e", which]));
    let node = node.trim();
    let libraries = done(Command::new("ldd").arg(node));
    let read = |path: &str| fs::read(path).unwrap();
    let mut layer = Layer::busybox()
        .directory("etc", 0o755, 0)
        .file(
            "etc/passwd",
            b"root:x:0:0::/root:/bin/sh\nnode:x:1000:1000::/tmp:/bin/sh\n",
            0o644,
            0,
        )
        .file("bin/node", &read(node), 0o755, 0);
    for path in libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        layer = layer.file(path.trim_start_matches('/'), &read(path), 0o755, 0);
    }
    layout(directory, vec![layer], &[("env", "PATH=/bin")])
}

/// The process of a worker's VM; its shim names the same program.
fn vmm(worker: &str) -> Pid {
    let found = processes_with(worker);
    let vmms = found.iter().filter_map(|process| {
        let mut words = process.split(' ');
        let pid = words.next()?.parse().ok()?;
        words.next()?.contains("qemu-system").then_some(pid)
    });
    let vmms: Vec<i32> = vmms.collect();
    assert_eq!(vmms.len(), 1, "{found:?}");
    Pid::from_raw(vmms[0])
}

/// It registers, behind position `from`, and answers from a guest; the position behind that.
async fn greets(engine: &Engine, from: usize, name: &str) -> usize {
    let function = &format!("{name}::greet");
    let behind = engine.registered(from, name).await.1;
    let behind = behind.max(engine.serves(from, function).await);
    let answer = engine
        .call(function, json!({"name": "engine"}))
        .await
        .unwrap();
    assert_eq!(answer["message"], "Hello, engine!");
    assert_eq!(answer["worker"], name);
    let kernel = answer["kernel"].as_str().unwrap();
    let own = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert!(
        kernel.starts_with("6.12.") && kernel != own.trim_end(),
        "{answer}"
    );
    behind
}
