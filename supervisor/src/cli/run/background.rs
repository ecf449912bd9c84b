//! A run without a terminal: a process of its own session, whose messages go into a file of a
//! bounded size in its state directory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// The file's name.
pub(in crate::cli) const LOG: &str = "supervisor.log";
/// What came before it.
const OLD_LOG: &str = "supervisor.log.1";
/// Size from which a new file is begun: a worker that crashes again and again for a year must not
/// fill the disk.
const MAX_LOG: u64 = 1 << 20;

/// Leaves the session of the terminal that it was started from, whose end is then none of ours.
pub(super) fn leave_session() -> io::Result<()> {
    // We were spawned, so we lead no process group, which alone would forbid it.
    nix::unistd::setsid()?;
    Ok(())
}

/// The file that standard output and standard error of this process go into.
#[derive(Debug)]
pub(super) struct BackgroundLog {
    directory: PathBuf,
    file: File,
}

impl BackgroundLog {
    /// Goes on with the file in this directory; from here on nothing is said to who started us.
    pub(super) fn begin(directory: &Path) -> io::Result<Self> {
        let file = open(directory)?;
        redirect(&file)?;
        Ok(Self {
            directory: directory.to_owned(),
            file,
        })
    }

    /// Writes some lines. A disk that is full loses them and stops nobody.
    pub(super) fn write(&mut self, text: &str) {
        if let Err(error) = self.bound() {
            tracing::debug!(%error, "failed to begin a new supervisor.log");
        }
        if let Err(error) = self.file.write_all(text.as_bytes()) {
            tracing::debug!(%error, "failed to write to supervisor.log");
        }
    }

    /// Begins a new file when this one is long enough.
    fn bound(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() < MAX_LOG {
            return Ok(());
        }
        fs::rename(self.directory.join(LOG), self.directory.join(OLD_LOG))?;
        self.file = open(&self.directory)?;
        redirect(&self.file)
    }
}

fn open(directory: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(directory.join(LOG))
}

fn redirect(file: &File) -> io::Result<()> {
    rustix::stdio::dup2_stdout(file)?;
    rustix::stdio::dup2_stderr(file)?;
    Ok(())
}
