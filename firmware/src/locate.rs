//! The sources of libkrunfw, in the one order in which both [`Firmware::locate`] and
//! [`FirmwareStatus::of`] look at them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::digest::Digest;
use crate::download::{self, DownloadError};
use crate::embedded::Embedded;
use crate::guest_init::{GuestInit, InitError};
use crate::install::InstallError;
use crate::kernel::{self, Kernel, KernelError, KernelFormat, PrepareError};
use crate::known::{self, KnownLibrary};
use crate::options::{FirmwareOptions, LIBKRUNFW_PATH, LIBKRUNFW_SHA256};
use crate::platform::{Platform, PlatformError};
use crate::progress::Progress;
use crate::verified::VerifiedFiles;

/// A file larger than this is no libkrunfw, and is not hashed.
const MAX_LIBRARY: u64 = 256 << 20;

/// Where a libkrunfw can come from. The order is the order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `III_LIBKRUNFW_PATH`.
    Override,
    /// Inside this executable ([`FirmwareOptions::embedded`]).
    Embedded,
    /// `~/.iii/lib`.
    Cache,
    /// A directory of the system's libraries.
    System,
    /// Fetched by this very call; later calls find it in the cache.
    Download,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Override => LIBKRUNFW_PATH,
            Self::Embedded => "embedded",
            Self::Cache => "cache",
            Self::System => "system",
            Self::Download => "download",
        })
    }
}

/// What was found at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "finding")]
pub enum Finding {
    /// Nothing there.
    Missing,
    /// A libkrunfw that is trusted.
    Accepted {
        /// Its digest.
        sha256: Digest,
        /// libkrunfw's version; `None` where only the user vouches for the digest.
        version: Option<&'static str>,
    },
    /// Something that is not used, and why.
    Refused {
        /// For a human.
        reason: String,
    },
}

/// One place that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Look {
    /// Which source it belongs to.
    pub source: Source,
    /// The file.
    pub path: PathBuf,
    /// What was there.
    #[serde(flatten)]
    pub finding: Finding,
}

impl std::fmt::Display for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}: ", self.source, self.path.display())?;
        match &self.finding {
            Finding::Missing => f.write_str("not there"),
            Finding::Accepted {
                sha256,
                version: Some(version),
            } => {
                write!(f, "libkrunfw {version}, sha256 {sha256}")
            }
            Finding::Accepted {
                sha256,
                version: None,
            } => {
                write!(f, "accepted by {LIBKRUNFW_SHA256}, sha256 {sha256}")
            }
            Finding::Refused { reason } => write!(f, "refused: {reason}"),
        }
    }
}

/// No firmware.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The host is not supported and no override is given.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The file that the user named is no good. No other source is tried in its place.
    #[error("failed to use the libkrunfw that {LIBKRUNFW_PATH} names: {look}")]
    Override {
        /// What was found.
        look: Look,
    },
    /// No source has one, and downloading is not allowed.
    #[error(
        "failed to find libkrunfw, which holds the guest's kernel:{}\ndownloading is switched off; \
         run `iii-super firmware fetch`, or name a file with {LIBKRUNFW_PATH}",
        listed(looked)
    )]
    Missing {
        /// Every place.
        looked: Vec<Look>,
    },
    /// No source has one, and downloading failed.
    #[error(
        "failed to find libkrunfw, which holds the guest's kernel:{}\n{error}\nfetch it on another \
         machine and name it with {LIBKRUNFW_PATH}, or try again with a network",
        listed(looked)
    )]
    Download {
        /// Every place.
        looked: Vec<Look>,
        /// Why the download failed.
        #[source]
        error: DownloadError,
    },
    /// The library is trusted and its kernel cannot be used.
    #[error("{error} ({})", library.display())]
    Kernel {
        /// The libkrunfw.
        library: PathBuf,
        /// What is wrong.
        #[source]
        error: KernelError,
    },
    /// vm-init is no good.
    #[error(transparent)]
    Init(#[from] InitError),
    /// A file could not be read or written.
    #[error(transparent)]
    Install(#[from] InstallError),
}

fn listed(looked: &[Look]) -> String {
    looked.iter().map(|look| format!("\n  {look}")).collect()
}

/// All that a VM boots from.
#[derive(Clone, Debug)]
pub struct Firmware {
    library: PathBuf,
    digest: Digest,
    version: Option<&'static str>,
    source: Source,
    kernel: Kernel,
    init: GuestInit,
}

impl Firmware {
    /// Finds or fetches libkrunfw and makes its kernel ready. Blocks; with a warm cache for well
    /// below a millisecond.
    pub fn locate(
        options: &FirmwareOptions,
        progress: &dyn Progress,
    ) -> Result<Self, FirmwareError> {
        // First what needs no network: nobody downloads for minutes to learn of a wrong path.
        let init = GuestInit::find(options)?;
        let found = find(options, progress)?;
        let kernel = kernel::prepare(
            &options.home.cache_dir(),
            &found.path,
            found.sha256,
            progress,
        )
        .map_err(|error| match error {
            PrepareError::Install(error) => error.into(),
            PrepareError::Kernel(error) => FirmwareError::Kernel {
                library: found.path.clone(),
                error,
            },
        })?;
        Ok(Self {
            library: found.path,
            digest: found.sha256,
            version: found.version,
            source: found.source,
            kernel,
            init,
        })
    }

    /// The kernel, in the form that [`Self::kernel_format`] says.
    pub fn kernel(&self) -> &Path {
        &self.kernel.path
    }

    /// How the kernel is to be booted.
    pub fn kernel_format(&self) -> KernelFormat {
        self.kernel.format
    }

    /// `uname -r` of the guest.
    pub fn kernel_release(&self) -> &str {
        &self.kernel.release
    }

    /// The libkrunfw itself, for libkrun to load.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// Its SHA-256.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its version; `None` where only the user vouches for it.
    pub fn version(&self) -> Option<&'static str> {
        self.version
    }

    /// Where it came from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// vm-init.
    pub fn init(&self) -> &GuestInit {
        &self.init
    }
}

/// What is there, for `doctor` and `iii-super firmware`. Nothing is fetched.
#[derive(Clone, Debug, Serialize)]
pub struct FirmwareStatus {
    /// The pair that was looked up.
    pub host: String,
    /// Why the host is not supported, if it is not.
    pub unsupported: Option<String>,
    /// The cache.
    pub home: PathBuf,
    /// Every place, in order of precedence.
    pub looked: Vec<Look>,
    /// The place in `looked` that [`Firmware::locate`] would use; `None` if it would download.
    pub used: Option<usize>,
    /// Why [`Firmware::locate`] would fail without trying to download, if it would.
    pub error: Option<String>,
    /// `uname -r` of the kernel that is ready in the cache.
    pub kernel_release: Option<String>,
    /// That kernel.
    pub kernel: Option<PathBuf>,
    /// The vm-init that `III_INIT_PATH` names; `None` for the embedded one.
    pub init: Option<PathBuf>,
    /// Why it cannot be used, if it cannot.
    pub init_error: Option<String>,
}

impl FirmwareStatus {
    /// Looks at every source.
    pub fn of(options: &FirmwareOptions) -> Self {
        let platform = Platform::lookup(&options.os, &options.arch);
        let verified = VerifiedFiles::in_cache(&options.home.cache_dir());
        let mut looked = Vec::new();
        let mut error = None;
        for (source, path) in places(options) {
            if let (Source::Embedded, Some(embedded)) = (source, &options.embedded) {
                // Whatever lies there, `locate` lays this.
                looked.push(Look {
                    source,
                    path,
                    finding: judge(options, embedded.sha256),
                });
                continue;
            }
            match examine(options, source, path, &verified) {
                Ok(look) => looked.push(look),
                Err(fault) => error = error.or(Some(fault.to_string())),
            }
        }
        let used = looked
            .iter()
            .position(|look| matches!(look.finding, Finding::Accepted { .. }));
        if let (Some(_), None) = (&options.library, used) {
            let look = looked.first().cloned();
            error = error.or(look.map(|look| FirmwareError::Override { look }.to_string()));
        } else if let (Err(unsupported), None) = (&platform, used) {
            error = error.or(Some(unsupported.to_string()));
        }
        let kernel = used.and_then(|used| match looked.get(used)?.finding {
            Finding::Accepted { sha256, .. } => kernel::inspect(&options.home.cache_dir(), sha256),
            Finding::Missing | Finding::Refused { .. } => None,
        });
        Self {
            host: format!("{} {}", options.os, options.arch),
            unsupported: platform.err().map(|error| error.to_string()),
            home: options.home.path().to_owned(),
            looked,
            used,
            error,
            kernel_release: kernel.as_ref().map(|kernel| kernel.release.clone()),
            kernel: kernel.map(|kernel| kernel.path),
            init: options.init.clone(),
            init_error: GuestInit::find(options)
                .err()
                .map(|error| error.to_string()),
        }
    }
}

struct Found {
    source: Source,
    path: PathBuf,
    sha256: Digest,
    version: Option<&'static str>,
}

fn find(options: &FirmwareOptions, progress: &dyn Progress) -> Result<Found, FirmwareError> {
    let verified = VerifiedFiles::in_cache(&options.home.cache_dir());
    let mut looked = Vec::new();
    for (source, path) in places(options) {
        if let (Source::Embedded, Some(embedded)) = (source, &options.embedded) {
            lay(embedded, options, &path, &verified, progress)?;
        }
        let look = examine(options, source, path, &verified)?;
        match look.finding {
            Finding::Accepted { sha256, version } => {
                return Ok(Found {
                    source,
                    path: look.path,
                    sha256,
                    version,
                });
            }
            Finding::Missing | Finding::Refused { .. } if source == Source::Override => {
                return Err(FirmwareError::Override { look });
            }
            Finding::Refused { .. } => {
                tracing::warn!(%look, "a libkrunfw is not used");
                looked.push(look);
            }
            Finding::Missing => looked.push(look),
        }
    }
    Platform::lookup(&options.os, &options.arch)?;
    let known = pinned(options)?;
    if !options.download {
        return Err(FirmwareError::Missing { looked });
    }
    let path =
        download::fetch(&options.library_dir(), known, &verified, progress).map_err(|error| {
            match error {
                DownloadError::Install(error) => error.into(),
                error @ DownloadError::AllFailed { .. } => {
                    FirmwareError::Download { looked, error }
                }
            }
        })?;
    let sha256 = verified.digest_of(&path)?;
    Ok(Found {
        source: Source::Download,
        path,
        sha256,
        version: Some(known.version),
    })
}

fn pinned(options: &FirmwareOptions) -> Result<&'static KnownLibrary, PlatformError> {
    known::by_host(&options.os, &options.arch).ok_or_else(|| PlatformError {
        os: options.os.clone(),
        arch: options.arch.clone(),
    })
}

/// Every place where a libkrunfw may lie, in order of precedence. An override is the only one.
fn places(options: &FirmwareOptions) -> Vec<(Source, PathBuf)> {
    if let Some(path) = &options.library {
        return vec![(Source::Override, path.clone())];
    }
    let Ok(known) = pinned(options) else {
        return Vec::new();
    };
    let lib_dir = options.library_dir();
    let mut places = Vec::new();
    // It is the host's.
    if options.embedded.is_some() && options.is_for_host() {
        places.push((Source::Embedded, lib_dir.join(known.file_name)));
    }
    let names = || std::iter::once(known.file_name).chain(known.link_name);
    places.extend(names().map(|name| (Source::Cache, lib_dir.join(name))));
    for dir in &options.system_dirs {
        places.extend(names().map(|name| (Source::System, dir.join(name))));
    }
    places
}

/// Looks at one place.
fn examine(
    options: &FirmwareOptions,
    source: Source,
    path: PathBuf,
    verified: &VerifiedFiles,
) -> Result<Look, InstallError> {
    let finding = match fs::metadata(&path) {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Finding::Missing
        }
        Err(error) => Finding::Refused {
            reason: error.to_string(),
        },
        Ok(metadata) if !metadata.is_file() => Finding::Refused {
            reason: "it is not a regular file".to_owned(),
        },
        Ok(metadata) if metadata.len() > MAX_LIBRARY => Finding::Refused {
            reason: format!("{} bytes are too many", metadata.len()),
        },
        // Readable or not is known here; a fault later is one of the cache.
        Ok(_) => match fs::File::open(&path) {
            Err(error) => Finding::Refused {
                reason: error.to_string(),
            },
            Ok(_) => judge(options, verified.digest_of(&path)?),
        },
    };
    Ok(Look {
        source,
        path,
        finding,
    })
}

/// Whether a digest is trusted on this host.
fn judge(options: &FirmwareOptions, sha256: Digest) -> Finding {
    let known = known::by_digest(&sha256.to_string());
    if options.trusted == Some(sha256) {
        return Finding::Accepted {
            sha256,
            version: known.map(|known| known.version),
        };
    }
    match known {
        Some(known) if known.os == options.os && known.arch == options.arch => Finding::Accepted {
            sha256,
            version: Some(known.version),
        },
        Some(known) => Finding::Refused {
            reason: format!(
                "it is libkrunfw {} for {} {}, and this host is {} {}",
                known.version, known.os, known.arch, options.os, options.arch
            ),
        },
        None => {
            let trusted = match pinned(options) {
                Ok(known) => format!("{} (version {})", known.sha256, known.version),
                Err(_) => "none for this host".to_owned(),
            };
            Finding::Refused {
                reason: format!(
                    "its SHA-256 is {sha256}, and trusted is {trusted}; it is damaged or another \
                     build: delete or replace it, or, if you trust this very file, set \
                     {LIBKRUNFW_SHA256}={sha256}"
                ),
            }
        }
    }
}

/// Makes sure that `path` holds the embedded library: libkrun loads a file.
fn lay(
    embedded: &Embedded,
    options: &FirmwareOptions,
    path: &Path,
    verified: &VerifiedFiles,
    progress: &dyn Progress,
) -> Result<(), FirmwareError> {
    let is_there = || -> Result<bool, InstallError> {
        Ok(path.exists() && verified.digest_of(path)? == embedded.sha256)
    };
    if is_there()? {
        return Ok(());
    }
    let lib_dir = options.library_dir();
    let _lock = crate::install::Lock::take(&lib_dir.join(".lock"), progress)?;
    if !is_there()? {
        progress.phase("unpacking the built-in libkrunfw");
        crate::install::write_atomically(path, 0o755, |file| {
            embedded
                .unpack(file)
                .map_err(|error| InstallError::new("unpack", path, error))
        })?;
    }
    download::link(path, pinned(options)?)?;
    Ok(())
}
