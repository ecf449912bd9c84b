//! Whose state a state directory holds. The directory's own name has only a digest of it.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use super::{DEVELOPED, WORKERS_FILE};

/// What exists for as long as the project does; an absolute path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The workers file of `iii-super run`.
    WorkersFile(PathBuf),
    /// The directory of `iii-super dev`, whose disks are caches alone.
    Developed(PathBuf),
}

impl Origin {
    /// Takes it down.
    pub(crate) fn write(&self, state: &Path) -> io::Result<()> {
        if Self::read(state).as_ref() == Some(self) {
            return Ok(());
        }
        let name = match self {
            Self::WorkersFile(_) => WORKERS_FILE,
            Self::Developed(_) => DEVELOPED,
        };
        std::fs::write(state.join(name), self.path().as_os_str().as_bytes())
    }

    /// What was taken down; `None`: nothing, by an older version.
    pub(crate) fn read(state: &Path) -> Option<Self> {
        let path = |name| {
            let bytes = std::fs::read(state.join(name)).ok()?;
            let path = PathBuf::from(OsString::from_vec(bytes));
            path.is_absolute().then_some(path)
        };
        path(WORKERS_FILE)
            .map(Self::WorkersFile)
            .or_else(|| path(DEVELOPED).map(Self::Developed))
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::WorkersFile(path) | Self::Developed(path) => path,
        }
    }
}
