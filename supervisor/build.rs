//! Puts into the executable what a self-contained one holds: with the feature `embed-helpers` the
//! programs in the directory that `III_EMBED_HELPERS` names, with `embed-libkrunfw` the file that
//! `III_EMBED_LIBKRUNFW` names. `make single` builds one so.
//!
//! The helpers are programs of other packages, which no build script may wait for: so they are built
//! first, by another call of cargo. Without a feature nothing is read.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

#[cfg(any(feature = "embed-helpers", feature = "embed-libkrunfw"))]
#[path = "build/pack.rs"]
mod pack;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    #[cfg(feature = "embed-helpers")]
    let helpers = pack::helpers(&out)?;
    #[cfg(not(feature = "embed-helpers"))]
    let helpers = "&[]";

    #[cfg(feature = "embed-libkrunfw")]
    let library = format!("Some({})", pack::library(&out)?);
    #[cfg(not(feature = "embed-libkrunfw"))]
    let library = "None";

    let text = format!(
        "pub(crate) static HELPERS: &[Embedded] = {helpers};\n\
         pub(crate) static LIBRARY: Option<Embedded> = {library};\n"
    );
    fs::write(out.join("embedded.rs"), text)?;
    Ok(())
}
