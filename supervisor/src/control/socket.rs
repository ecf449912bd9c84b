//! Where the socket is, and who may speak.
//!
//! A socket's address holds 107 bytes of path, and a home may be deeper than that. So the directory
//! is opened, and the socket is named by that descriptor, below `/proc/self/fd`.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc::{O_CLOEXEC, O_DIRECTORY, O_PATH};
use nix::unistd::Uid;
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// The socket's name in a state directory.
pub const SOCKET: &str = "control.sock";

/// Clients that may wait to be accepted.
const BACKLOG: u32 = 128;

/// Why there is no socket to be listened on.
#[derive(Debug, thiserror::Error)]
#[error("failed to open the control socket in {directory}: {source}; make the directory writable")]
pub struct SocketError {
    directory: PathBuf,
    source: io::Error,
}

/// A socket that is listened on. Its drop removes it.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    directory: File,
}

impl ControlSocket {
    /// Listens in `directory`, which the caller has locked: a socket that is there already is that
    /// of a supervisor that was killed.
    pub fn open(directory: &Path) -> Result<Self, SocketError> {
        Self::listen(directory).map_err(|source| SocketError {
            directory: directory.to_owned(),
            source,
        })
    }

    fn listen(path: &Path) -> io::Result<Self> {
        let directory = open_directory(path)?;
        let mode = directory.metadata()?.mode() & 0o777;
        // Whoever can enter could put a socket of their own in place of ours.
        if mode & 0o077 != 0 {
            std::fs::set_permissions(path, Permissions::from_mode(mode & 0o700))?;
        }
        let name = below(&directory);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = UnixSocket::new_stream()?;
        socket.bind(&name)?;
        std::fs::set_permissions(&name, Permissions::from_mode(0o600))?;
        // Nobody is heard before the mode is right.
        let listener = socket.listen(BACKLOG)?;
        Ok(Self {
            listener,
            directory,
        })
    }

    /// The next client.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(below(&self.directory)) {
            tracing::warn!(%error, "failed to remove the control socket");
        }
    }
}

/// Connects to the supervisor of a state directory.
pub async fn connect(directory: &Path) -> io::Result<UnixStream> {
    let directory = open_directory(directory)?;
    UnixStream::connect(below(&directory)).await
}

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(O_PATH | O_DIRECTORY | O_CLOEXEC)
        .open(path)
}

fn below(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(SOCKET)
}

/// Whether the process at the other end may speak: the supervisor's own user, and root.
pub fn is_allowed(stream: &UnixStream) -> io::Result<Result<(), Uid>> {
    let peer = Uid::from_raw(stream.peer_cred()?.uid());
    Ok(if peer == Uid::effective() || peer.is_root() {
        Ok(())
    } else {
        Err(peer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn speaks(directory: &Path) {
        let socket = ControlSocket::open(directory).unwrap();
        let (client, server) = tokio::join!(connect(directory), socket.accept());
        let (mut client, mut server) = (client.unwrap(), server.unwrap());
        assert_eq!(is_allowed(&server).unwrap(), Ok(()));
        server.write_all(b"x").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'x');
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&directory.join(SOCKET)), 0o600);
        assert_eq!(mode(directory), 0o700);
    }

    #[tokio::test]
    async fn a_path_of_any_length_is_good_and_the_drop_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        std::fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        speaks(home.path()).await;
        let deep = home.path().join("d".repeat(200)).join("e".repeat(200));
        std::fs::create_dir_all(&deep).unwrap();
        speaks(&deep).await;
        assert_eq!(std::fs::read_dir(&deep).unwrap().count(), 0);
        let error = connect(&deep).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn what_a_killed_supervisor_left_is_replaced() {
        let home = tempfile::tempdir().unwrap();
        let killed = ControlSocket::open(home.path()).unwrap();
        // A kill runs no drop; the listener is closed all the same.
        let copy = home.path().join("copy");
        std::fs::hard_link(home.path().join(SOCKET), &copy).unwrap();
        drop(killed);
        std::fs::rename(&copy, home.path().join(SOCKET)).unwrap();
        let error = connect(home.path()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        speaks(home.path()).await;
    }
}
