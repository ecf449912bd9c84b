//! Builds vm-init for the guest, so that this crate can embed it.
//!
//! vm-init is another package of this workspace and is built by a cargo of its own:
//! * with an explicit `--target`, since `+crt-static` given without one would also reach build
//!   scripts and proc macros, which cannot be static;
//! * in a target directory of its own under OUT_DIR, since the outer cargo holds the lock of the
//!   usual one;
//! * without the outer build's flags and wrappers: `cargo clippy`'s driver, coverage flags or a
//!   linker choice meant for the host would each give another init than the one that was tested.
//!
//! `III_EMBED_INIT` names a vm-init that is already built, for a host without the guest's target.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    println!("cargo::rerun-if-env-changed=III_EMBED_INIT");
    println!("cargo::rerun-if-changed=build.rs");

    let init = match env::var_os("III_EMBED_INIT").filter(|value| !value.is_empty()) {
        Some(path) => {
            let path = fs::canonicalize(&path)
                .map_err(|error| format!("failed to open III_EMBED_INIT ({path:?}): {error}"))?;
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build_init()?,
    };
    println!("cargo::rustc-env=III_FIRMWARE_INIT={}", init.display());
    Ok(())
}

fn build_init() -> Result<PathBuf> {
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let workspace = manifest_dir
        .parent()
        .ok_or("failed to find the workspace: this crate lies at the root of the file system")?;
    let package = workspace.join("vm-init");
    if !package.join("Cargo.toml").is_file() {
        return Err(format!(
            "failed to find vm-init at {}: this crate is built inside its repository (a git or path \
             dependency is); elsewhere name a built vm-init with III_EMBED_INIT",
            package.display()
        )
        .into());
    }
    // Watched: what vm-init is made of. A path that does not exist would make every build dirty.
    for source in [
        "vm-init",
        "proto",
        "Cargo.toml",
        "Cargo.lock",
        "rust-toolchain.toml",
    ] {
        let path = workspace.join(source);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }

    let target = guest_target()?;
    let target_dir = PathBuf::from(env::var("OUT_DIR")?).join("vm-init");
    let mut command =
        Command::new(env::var_os("CARGO").ok_or("CARGO is not set: no cargo runs this")?);
    for (name, _) in env::vars_os() {
        if is_of_the_outer_build(&name.to_string_lossy()) {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(workspace)
        .args([
            "build",
            "--release",
            "--package",
            "vm-init",
            "--bin",
            "vm-init",
        ])
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(&target_dir)
        // Set rather than removed: this also outranks flags and wrappers of configuration files.
        // PID 1 has nobody to hide its addresses from: without relocations it is smaller.
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static",
        )
        // A panic of PID 1 ends the guest either way, and is repaired from outside.
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        // Small is fast here: the guest's kernel copies the file into memory at every boot.
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    if workspace.join("Cargo.lock").is_file() {
        command.arg("--locked");
    }
    let status = command
        .status()
        .map_err(|error| format!("failed to start cargo for vm-init: {error}"))?;
    if !status.success() {
        return Err(format!(
            "failed to build vm-init for {target}: {status}, see above; if the target is missing, \
             `rustup target add {target}`, or name a built vm-init with III_EMBED_INIT"
        )
        .into());
    }
    let built = target_dir.join(&target).join("release/vm-init");
    if !built.is_file() {
        return Err(format!(
            "failed to find vm-init at {}, where cargo puts it",
            built.display()
        )
        .into());
    }
    Ok(built)
}

/// The guest has the architecture of the host and is always Linux. With glibc where the host has
/// that: what a workload says passes through vm-init, and musl's memcpy takes 30 % of its speed
/// (under TCG; it would save 3 ms of a boot). Else with musl, which other hosts have.
fn guest_target() -> Result<String> {
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let is_glibc =
        env::var("CARGO_CFG_TARGET_OS")? == "linux" && env::var("CARGO_CFG_TARGET_ENV")? == "gnu";
    let libc = if is_glibc { "gnu" } else { "musl" };
    Ok(format!("{arch}-unknown-linux-{libc}"))
}

/// Variables that cargo or its user set for the outer build. What concerns the network, the
/// registry or the choice of a linker for the guest's target stays.
fn is_of_the_outer_build(name: &str) -> bool {
    const PREFIXES: [&str; 7] = [
        "CARGO_CFG_",
        "CARGO_FEATURE_",
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_PROFILE_",
        "CARGO_BUILD_",
        "DEP_",
    ];
    const NAMES: [&str; 19] = [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "CARGO_PRIMARY_PACKAGE",
        "CARGO_TARGET_DIR",
        "CARGO_UNSTABLE_BUILD_STD",
        "CLIPPY_ARGS",
        "DEBUG",
        "HOST",
        "LLVM_PROFILE_FILE",
        "NUM_JOBS",
        "OPT_LEVEL",
        "OUT_DIR",
        "PROFILE",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTDOCFLAGS",
        "RUSTFLAGS",
        "TARGET",
        "__CARGO_DEFAULT_LIB_METADATA",
    ];
    let flags_of_a_target = name.starts_with("CARGO_TARGET_") && name.ends_with("_RUSTFLAGS");
    flags_of_a_target
        || NAMES.contains(&name)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}
