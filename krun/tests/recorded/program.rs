//! Builds the recording libkrun, and the launcher against it: once per test run, into directories of
//! their own, since the features differ.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What the stand-in's pkg-config file says; no released version.
pub(crate) const LIBRARY_VERSION: &str = "1.19.99";

struct Built {
    program: PathBuf,
    library: PathBuf,
}

/// The launcher, which finds the recording libkrun.
pub(crate) fn command() -> Command {
    let built = built();
    let mut command = Command::new(&built.program);
    command.env("LD_LIBRARY_PATH", &built.library);
    command
}

/// The directory of the recording libkrun.
pub(crate) fn library() -> &'static Path {
    &built().library
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> Built {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it lies in the target directory")
        .join("system-libkrun");
    let recording = target.join("recording");
    cargo(
        Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--manifest-path"])
            .arg(source.join("recording/Cargo.toml"))
            .arg("--target-dir")
            .arg(&recording),
    );
    let library = recording.join("debug");
    let package = format!(
        "Name: libkrun\nDescription: a recording stand-in\nVersion: {LIBRARY_VERSION}\n\
         Libs: -L{} -lkrun\nCflags: -I{}\n",
        library.display(),
        source.join("recording/include").display()
    );
    std::fs::write(library.join("libkrun.pc"), package).unwrap();
    cargo(
        Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked"])
            .args(["--package", "iii-krun", "--no-default-features"])
            .args(["--features", "system-libkrun", "--manifest-path"])
            .arg(source.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .env("PKG_CONFIG_PATH", &library),
    );
    Built {
        program: target.join("debug/iii-krun"),
        library,
    }
}

fn cargo(command: &mut Command) {
    // What cargo has set for this test is not meant for another build.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_FEATURE_") {
            command.env_remove(name.as_ref());
        }
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "the system-libkrun build needs pkg-config and libclang:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
