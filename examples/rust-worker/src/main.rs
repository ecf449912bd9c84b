//! A worker of an iii engine. It runs in a microVM, and reaches of the host nothing but the engine.

use std::process::ExitCode;

use iii_sdk::{Error, InitOptions, RegisterFunction, register_worker_from_env};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

/// sysexits' EX_CONFIG: nothing that a restart would change. See `restart` in
/// docs/workers-file.md.
const MISCONFIGURED: u8 = 78;

fn greet(data: Value) -> Result<Value, Error> {
    let Some(name) = data["name"].as_str() else {
        return Err(Error::Handler("whom? I was given no name".into()));
    };
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ok(json!({
        "message": format!("Hello, {name}!"),
        "worker": std::env::var("III_WORKER_NAME").ok(),
        "kernel": kernel.trim_end(),
    }))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // iii-super sets it: the engine's address, as this guest must write it.
    let Some(url) = std::env::var("III_URL").ok().filter(|url| !url.is_empty()) else {
        eprintln!("III_URL is not set: start me with --engine ws://localhost:49134");
        return ExitCode::from(MISCONFIGURED);
    };
    // The supervisor asks a worker to end with SIGTERM.
    let mut terminate = match signal(SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(error) => {
            eprintln!("failed to wait for SIGTERM: {error}");
            return ExitCode::FAILURE;
        }
    };
    let iii = register_worker_from_env(InitOptions::default());
    iii.register_function("rust-worker::greet", RegisterFunction::new(greet));
    println!("serving rust-worker::greet for {url}");
    terminate.recv().await;
    iii.shutdown_async().await;
    ExitCode::SUCCESS
}
