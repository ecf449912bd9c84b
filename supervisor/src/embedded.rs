//! What travels inside this executable, if it was built so (`build.rs`): the helpers, with the feature
//! `embed-helpers`, and libkrunfw, with `embed-libkrunfw`. vm-init always does.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

#[allow(unused_imports)] // Nothing embedded: no digest.
use iii_firmware::digest::Digest;
use iii_firmware::home::IiiHome;
use iii_firmware::options::OptionsError;
use iii_firmware::{Embedded, FirmwareOptions, Programs};
use iii_vmm::helpers::{EmbeddedHelpers, HelperPlaces};

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The embedded helpers, and the cache of the user that they are laid in.
#[derive(Debug)]
struct Helpers(Programs);

fn helper(name: &str) -> Option<&'static Embedded> {
    HELPERS.iter().find(|helper| helper.name == name)
}

impl EmbeddedHelpers for Helpers {
    fn place(&self, name: &str) -> Option<PathBuf> {
        Some(self.0.place(helper(name)?))
    }

    fn lay(&self, name: &str) -> Option<Result<PathBuf, Box<dyn Error + Send + Sync>>> {
        Some(self.0.lay(helper(name)?).map_err(Into::into))
    }
}

/// What is embedded, vm-init apart.
#[cfg(feature = "cli")]
pub(crate) fn all() -> impl Iterator<Item = &'static Embedded> {
    LIBRARY.iter().chain(HELPERS)
}

/// Where helpers are looked for: in this directory alone, if one is named; what is embedded comes
/// last, and is laid in the cache of this home.
pub(crate) fn places(directory: Option<PathBuf>, home: &IiiHome) -> HelperPlaces {
    let embedded = (!HELPERS.is_empty()).then(|| -> Arc<dyn EmbeddedHelpers> {
        Arc::new(Helpers(Programs::in_cache(&home.cache_dir())))
    });
    HelperPlaces {
        directory,
        embedded,
    }
}

/// What the environment says of firmware, with what is embedded.
pub(crate) fn firmware_options() -> Result<FirmwareOptions, OptionsError> {
    FirmwareOptions::from_env().map(with_library)
}

/// Those options with what is embedded, unless they bring their own.
pub(crate) fn with_library(mut options: FirmwareOptions) -> FirmwareOptions {
    options.embedded = options.embedded.or(LIBRARY);
    options
}
