//! What is remembered of a host whose virtualisation turned out to be false: in a file of the user's
//! cache, per boot of a host, since a home may be shared by several and a host can change from one
//! boot to the next.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file, in the cache directory.
const FILE: &str = "acceleration.json";
/// Boots that are remembered, the newest first.
const KEPT: usize = 16;
/// A longer file was not written by us.
const MAX_BYTES: u64 = 256 * 1024;
/// A cause is cut at so many bytes; it is for people.
const MAX_CAUSE: usize = 1024;

/// A VM died under acceleration, and its successor in software did not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuted {
    /// The kernel's random name of the host's boot.
    pub boot_id: String,
    /// The VMM that was used.
    pub vmm: String,
    /// How the VM died.
    pub cause: String,
    /// When, in seconds since 1970.
    pub unix_seconds: u64,
}

/// The file.
#[derive(Clone, Debug)]
pub struct Verdicts(PathBuf);

impl Verdicts {
    /// In this directory.
    pub fn in_directory(cache: &Path) -> Self {
        Self(cache.join(FILE))
    }

    /// The file itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// What is known about this boot of this host. A file that cannot be read knows nothing: at worst a VM dies once more.
    pub fn recall(&self, boot_id: &str) -> Option<Refuted> {
        self.read().into_iter().find(|v| v.boot_id == boot_id)
    }

    fn read(&self) -> Vec<Refuted> {
        let read = || -> io::Result<Vec<Refuted>> {
            let mut bytes = Vec::new();
            let mut file = match File::open(&self.0) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                opened => opened?.take(MAX_BYTES),
            };
            file.read_to_end(&mut bytes)?;
            Ok(serde_json::from_slice(&bytes)?)
        };
        read().unwrap_or_else(|error| {
            let path = self.0.display();
            // What is wrong with the directory is told by whoever needs it.
            tracing::debug!(%path, %error, "failed to read what is known of this host's virtualisation");
            Vec::new()
        })
    }

    /// Remembers it. Of two supervisors that write at once one may be lost, which costs a VM's death
    /// at a later start.
    ///
    /// # Errors
    /// The file cannot be replaced.
    pub fn remember(&self, mut refuted: Refuted) -> io::Result<()> {
        if let Some((end, _)) = refuted
            .cause
            .char_indices()
            .find(|(at, _)| *at >= MAX_CAUSE)
        {
            refuted.cause.truncate(end);
        }
        let mut all = self.read();
        all.retain(|known| known.boot_id != refuted.boot_id);
        all.insert(0, refuted);
        all.truncate(KEPT);
        let directory = self.0.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(&serde_json::to_vec_pretty(&all)?)?;
        file.persist(&self.0)?;
        Ok(())
    }
}

/// The name of this host's boot.
pub fn host_boot_id() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuted(boot_id: &str, cause: &str) -> Refuted {
        Refuted {
            boot_id: boot_id.into(),
            vmm: "qemu".into(),
            cause: cause.into(),
            unix_seconds: 1,
        }
    }

    #[test]
    fn what_is_remembered_is_of_one_boot() {
        let directory = tempfile::tempdir().unwrap();
        let verdicts = Verdicts::in_directory(&directory.path().join("cache"));
        assert_eq!(verdicts.recall("a"), None);
        verdicts.remember(refuted("a", "dead")).unwrap();
        verdicts.remember(refuted("b", "dead")).unwrap();
        verdicts.remember(refuted("a", "dead again")).unwrap();
        assert_eq!(verdicts.recall("a"), Some(refuted("a", "dead again")));
        assert_eq!(verdicts.recall("b"), Some(refuted("b", "dead")));
        assert_eq!(verdicts.recall("c"), None);
    }

    #[test]
    fn the_file_stays_small_and_a_damaged_one_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let verdicts = Verdicts::in_directory(directory.path());
        fs::write(verdicts.path(), b"[{\"boot_id\":").unwrap();
        assert_eq!(verdicts.recall("a"), None);
        for n in 0..KEPT + 5 {
            let cause = "ä".repeat(MAX_CAUSE);
            verdicts.remember(refuted(&n.to_string(), &cause)).unwrap();
        }
        assert_eq!(verdicts.recall("0"), None);
        let newest = verdicts.recall(&(KEPT + 4).to_string()).unwrap();
        assert_eq!(newest.cause.len(), MAX_CAUSE);
        assert!(fs::metadata(verdicts.path()).unwrap().len() < MAX_BYTES);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn this_hosts_boot_has_a_name_that_stays() {
        let id = host_boot_id().expect("Linux has it");
        assert_eq!(host_boot_id(), Some(id));
    }
}
