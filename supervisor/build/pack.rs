//! Checks files that are to be embedded, and compresses them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(feature = "embed-helpers")]
use memchr::memmem;
use sha2::{Digest as _, Sha256};

use super::Result;

#[cfg(feature = "embed-libkrunfw")]
#[allow(dead_code, unreachable_pub)]
#[path = "../../firmware/src/known.rs"]
mod known;

#[cfg(feature = "embed-helpers")]
#[allow(dead_code, unreachable_pub)]
#[path = "../../firmware/src/platform/table.rs"]
mod table;

/// How hard zstd tries, 1 to 22. What is built to be given away is packed once and fetched often.
const LEVEL: &str = "III_EMBED_LEVEL";
const DEFAULT_LEVEL: i32 = 19;

/// The helpers of the host that is built for, as the text of a slice.
#[cfg(feature = "embed-helpers")]
pub(crate) fn helpers(out: &Path) -> Result<String> {
    let (os, arch) = target()?;
    let host = table::row(&os, &arch)
        .ok_or_else(|| format!("failed to embed the helpers of {os} {arch}: it has none"))?;
    let directory = named(
        "III_EMBED_HELPERS",
        "the directory of the built helpers (`make single` does both)",
    )?;
    let version = env::var("CARGO_PKG_VERSION")?;
    let mut items = Vec::new();
    for name in host.helpers {
        let path = directory.join(name);
        let bytes = read(&path)?;
        let marker = format!("iii-helper:{name}:{version};");
        if memmem::find(&bytes, marker.as_bytes()).is_none() {
            return Err(format!(
                "failed to embed {}: it is no {name} of version {version}; build it anew \
                 (`make single`)",
                path.display()
            )
            .into());
        }
        items.push(pack(name, &bytes, out)?);
    }
    Ok(format!("&[{}]", items.join(", ")))
}

/// The libkrunfw of the host that is built for.
#[cfg(feature = "embed-libkrunfw")]
pub(crate) fn library(out: &Path) -> Result<String> {
    let path = named("III_EMBED_LIBKRUNFW", "the libkrunfw")?;
    let bytes = read(&path)?;
    let digest = hexadecimal(&Sha256::digest(&bytes));
    let (os, arch) = target()?;
    match known::by_digest(&digest).filter(|known| known.os == os && known.arch == arch) {
        Some(known) => pack(known.file_name, &bytes, out),
        None => Err(format!(
            "failed to embed {}: its SHA-256 {digest} is not that of a trusted libkrunfw for {os} \
             {arch}",
            path.display()
        )
        .into()),
    }
}

/// What the environment names at build time.
fn named(variable: &str, what: &str) -> Result<PathBuf> {
    println!("cargo::rerun-if-env-changed={variable}");
    let path = env::var_os(variable)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| format!("failed to embed anything: {variable} does not name {what}"))?;
    // A build script's working directory is not its caller's.
    if PathBuf::from(&path).is_relative() {
        return Err(format!("failed to use {variable} ({path:?}): name an absolute path").into());
    }
    fs::canonicalize(&path)
        .map_err(|error| format!("failed to open {variable} ({path:?}): {error}").into())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read(path).map_err(|error| format!("failed to read {}: {error}", path.display()).into())
}

fn target() -> Result<(String, String)> {
    Ok((
        env::var("CARGO_CFG_TARGET_OS")?,
        env::var("CARGO_CFG_TARGET_ARCH")?,
    ))
}

/// The text of an `Embedded` with these bytes.
fn pack(name: &str, bytes: &[u8], out: &Path) -> Result<String> {
    println!("cargo::rerun-if-env-changed={LEVEL}");
    let level = match env::var(LEVEL) {
        Ok(text) => text
            .parse()
            .map_err(|error| format!("failed to read {LEVEL} ({text}): {error}"))?,
        Err(_) => DEFAULT_LEVEL,
    };
    let packed = zstd::bulk::compress(bytes, level)?;
    let path = out.join(format!("{name}.zst"));
    fs::write(&path, packed)?;
    let (sha256, size) = (Sha256::digest(bytes), bytes.len());
    Ok(format!(
        "Embedded {{ name: {name:?}, sha256: Digest::from_bytes({:?}), size: {size}, \
         packed: include_bytes!({path:?}) }}",
        <[u8; 32]>::from(sha256)
    ))
}

#[cfg(feature = "embed-libkrunfw")]
fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
