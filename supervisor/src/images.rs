//! Where this supervisor's images are, and how they get there.

use std::path::PathBuf;
use std::sync::Arc;

use iii_image::oci::Platform;
use iii_image::registry::{Credentials, RegistryOptions};
use iii_image::store::StoreError;
use iii_image::{ImageStore, Puller};
use iii_vmm::guest::GuestArch;

/// Images of a supervisor. The directory is made when the first image is asked for.
#[derive(Clone)]
pub(crate) struct Images {
    pub(crate) directory: PathBuf,
    pub(crate) registry: RegistryOptions,
    pub(crate) progress: Arc<dyn iii_firmware::Progress>,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Images {
    /// Credentials from where Docker keeps them.
    pub(crate) fn new(directory: PathBuf, progress: Arc<dyn iii_firmware::Progress>) -> Self {
        Self {
            directory,
            registry: RegistryOptions {
                credentials: Credentials::from_env(),
                ..RegistryOptions::default()
            },
            progress,
        }
    }

    /// For guests of this architecture, or of the host's.
    pub(crate) fn puller(&self, guest: Option<GuestArch>) -> Result<Puller, StoreError> {
        let platform = platform(guest);
        let store = ImageStore::of_platform(&self.directory, &platform)?;
        Ok(Puller {
            platform,
            ..Puller::new(store, self.registry.clone())
        })
    }

    pub(crate) fn progress(&self) -> Shown<'_> {
        Shown(&*self.progress)
    }
}

/// Of guests of this architecture, or of the host's.
pub(crate) fn platform(guest: Option<GuestArch>) -> Platform {
    guest.map_or_else(Platform::of_host, |arch| Platform::of(arch.name()))
}

/// One who is told about downloads is told about images too.
pub(crate) struct Shown<'a>(&'a dyn iii_firmware::Progress);

impl iii_image::Progress for Shown<'_> {
    fn phase(&self, text: &str) {
        self.0.phase(text);
    }

    fn bytes(&self, done: u64, total: Option<u64>) {
        self.0.bytes(done, total);
    }
}
