//! The making of a disk: mke2fs on a sparse file, without privileges.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::DiskError;

/// Where e2fsprogs has its programs on systems whose users do not have it in PATH.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Chosen here, so that a disk is the same whatever the host's mke2fs.conf says, and a guest's
/// kernel of any age that we boot can mount it.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,\
    flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum";

/// Makes an empty disk of this size at `path`, in place of what is there. It appears whole or not
/// at all.
pub(super) fn make(path: &Path, size: u64) -> Result<(), DiskError> {
    let tool = tool("mke2fs").ok_or(DiskError::NoTool)?;
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    let failed = |cause: String| DiskError::Make {
        path: path.to_owned(),
        cause,
    };
    let made = empty(&new, size).map_err(|e| failed(e.to_string()));
    let result = made.and_then(|file| {
        format(&tool, &new).map_err(failed)?;
        file.sync_all()
            .and_then(|()| std::fs::rename(&new, path))
            .and_then(|()| sync_directory_of(path))
            .map_err(|e| failed(e.to_string()))
    });
    if result.is_err() {
        // What is left of it is overwritten by the next attempt.
        std::fs::remove_file(&new).unwrap_or(());
    }
    result
}

/// A sparse file; an earlier attempt's is emptied.
fn empty(path: &Path, size: u64) -> std::io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)?;
    file.set_len(size)?;
    Ok(file)
}

fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn format(tool: &Path, file: &Path) -> Result<(), String> {
    let output = Command::new(tool)
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256"])
        // A dependency's file is small; inodes that are not used take no space on the host.
        .args(["-i", "8192"])
        // Nothing is kept for a super-user: the quota is the workload's.
        .args(["-m", "0"])
        .args(["-O", FEATURES])
        // The file is new, so its journal is all zeros already.
        .args(["-E", "root_owner=0:0,lazy_journal_init=1"])
        .arg(file)
        // Without a file mke2fs takes what it was built with.
        .env("MKE2FS_CONFIG", "/nonexistent/mke2fs.conf")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("failed to start {}: {error}", tool.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    Err(match last {
        Some(line) => format!("mke2fs: {}", line.trim()),
        None => format!("mke2fs ended with {}", output.status),
    })
}

/// A program of e2fsprogs.
pub(super) fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = SYSTEM.iter().map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}
