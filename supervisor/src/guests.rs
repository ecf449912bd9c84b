//! Guests of another architecture than the host's: what they boot from and what runs them. Found
//! when the first worker asks for one, since most supervisors never have any.

use std::sync::{Arc, Mutex, PoisonError};

use iii_firmware::options::OptionsError;
use iii_firmware::{Firmware, FirmwareError, FirmwareOptions, GuestInit, Progress, guest_init};
use iii_vmm::guest::GuestArch;
use iii_vmm::helpers::{self, HelperPlaces};
use iii_vmm::vmm::VmmError;
use iii_vmm::vmms::Candidate;

use crate::host_vmms;

/// Guests of one architecture, which is not the host's.
#[derive(Debug)]
pub(crate) struct ForeignGuests {
    pub(crate) arch: GuestArch,
    pub(crate) firmware: Firmware,
    /// QEMU, in software.
    pub(crate) vmm: Candidate,
}

/// Why guests of an architecture cannot be run.
#[derive(Debug, thiserror::Error)]
#[error("failed to prepare an {arch} guest: {source}")]
pub struct GuestError {
    /// The architecture.
    pub arch: GuestArch,
    /// What is missing.
    #[source]
    pub source: GuestFault,
}

/// What can be missing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestFault {
    /// The environment holds something unusable.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// No kernel or no vm-init.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// No QEMU for it.
    #[error(transparent)]
    Vmm(#[from] VmmError),
}

/// Guests of all architectures but the host's.
pub(crate) struct Guests {
    /// Of the host's.
    firmware: FirmwareOptions,
    places: HelperPlaces,
    progress: Arc<dyn Progress>,
    found: Mutex<Vec<Arc<ForeignGuests>>>,
}

impl std::fmt::Debug for Guests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guests")
            .field("firmware", &self.firmware)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Guests {
    pub(crate) fn new(
        firmware: FirmwareOptions,
        places: HelperPlaces,
        progress: Arc<dyn Progress>,
    ) -> Self {
        Self {
            firmware,
            places,
            progress,
            found: Mutex::default(),
        }
    }

    /// What guests of this architecture need, unless it is the host's. Fetched if it must be.
    pub(crate) fn foreign(
        &self,
        wanted: Option<GuestArch>,
    ) -> Result<Option<Arc<ForeignGuests>>, GuestError> {
        let host = GuestArch::of_host();
        let Some(arch) = wanted.filter(|_| wanted != host) else {
            return Ok(None);
        };
        // Held meanwhile: two workers are prepared one after the other, and fetch once.
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = found.iter().find(|guests| guests.arch == arch) {
            return Ok(Some(Arc::clone(known)));
        }
        let guests = self.look(arch);
        let guests = Arc::new(guests.map_err(|source| GuestError { arch, source })?);
        found.push(Arc::clone(&guests));
        Ok(Some(guests))
    }

    fn look(&self, arch: GuestArch) -> Result<ForeignGuests, GuestFault> {
        let (vmm, options) = installed(&self.firmware, &self.places, arch)?;
        Ok(ForeignGuests {
            arch,
            firmware: Firmware::locate(&options, &*self.progress)?,
            vmm,
        })
    }
}

/// What cannot be fetched must be there: QEMU and a vm-init. With how the rest is found. `host`:
/// the options of the host's own guests.
pub(crate) fn installed(
    host: &FirmwareOptions,
    places: &HelperPlaces,
    arch: GuestArch,
) -> Result<(Candidate, FirmwareOptions), GuestFault> {
    let vmm = host_vmms::of_foreign_guests(&host.home, arch)?;
    let mut options = host.for_guests(arch.name())?;
    if options.init.is_none() {
        let file = guest_init::file_name(arch.name());
        options.init = helpers::find_file(&file, places);
    }
    GuestInit::find(&options).map_err(FirmwareError::from)?;
    Ok((vmm, options))
}
