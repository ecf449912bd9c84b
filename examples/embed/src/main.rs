//! Deploys a function, calls it, gives it a new VM, calls it again.
#![deny(unsafe_code)]
// What an example prints is its product.
#![allow(clippy::print_stdout)]

use embed::{Engine, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    // The helper programs lie beside this one.
    let program = std::env::current_exe()?;
    let helpers = program.parent().ok_or("this program lies nowhere")?;
    let engine = Engine::start(helpers.to_owned()).await?;
    let mut events = engine.events();
    println!("deploying `reverse` into a microVM");
    engine
        .deploy("reverse", "def answer(text): return text[::-1]")
        .await?;
    println!(
        "reverse(stressed) = {}",
        engine.call("reverse", "stressed").await?
    );
    println!("giving it a new VM");
    engine.renew("reverse").await?;
    println!(
        "reverse(drawer) = {}",
        engine.call("reverse", "drawer").await?
    );
    let outcomes = engine.stop().await;
    println!("stopped: {outcomes:?}");
    while let Some(Ok(event)) = events.try_next() {
        println!("  {:>7.3} s  {:?}", event.at.as_secs_f64(), event.kind);
    }
    Ok(())
}
