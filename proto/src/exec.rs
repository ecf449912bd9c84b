//! Frames on the exec port: commands that run in the guest beside its workload, many sessions over
//! one port.
//!
//! A session is opened by the host under an id of its own. The guest answers `Refused`, and that is
//! all of it, or `Opened`, then any number of `Output`, `StdinCredit` and at most one `StdinClosed`,
//! and at last `Exited`, also where the host has closed the session before. After it nothing of the
//! session is left in the guest, and no frame carries its id any more.
//!
//! Bytes flow under a window per session and direction ([`window`]), so the port itself is always
//! read at both ends: a session that nobody reads stops its own command and nothing else.
//!
//! The guest's side is hostile input for the host.

pub mod window;

use std::fmt;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::guest::Names;
use crate::ids::GuestPid;
use crate::log::Stream;
use crate::restart::Exit;

/// Sessions that one guest has at once. Each may make both ends hold a window of bytes in each
/// direction: without this bound, a client that opens sessions and reads none of them, or a guest
/// that never ends one, would fill the memory of the supervisor and of PID 1.
pub const MAX_SESSIONS: usize = 64;

/// Most bytes in one frame. A frame of it is one write of less than 32 KiB, which is what the
/// virtio-serial driver takes at once. A larger one from a guest breaks the port: it is what a
/// guest would send to make the host hold more than it granted.
pub const MAX_CHUNK: usize = 32 * 1024 - 64;

/// One session within one boot of a guest. Ids are the host's and are not used again in that boot,
/// so that a late frame of a session is never taken for one of another.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
pub struct SessionId(pub u32);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// What a session runs. What is not said is as the workload has it.
#[derive(Clone, PartialEq, Eq, Encode, Decode)]
pub struct Command {
    /// Program and arguments; the program is looked up in the guest's PATH.
    pub command: Vec<String>,
    /// Variables beside, or in place of, the workload's.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute in the guest.
    pub cwd: Option<String>,
    /// `name`, `name:group`, `uid` or `uid:gid`, by the guest's own `/etc/passwd` and `/etc/group`.
    pub user: Option<String>,
    /// Run it on a terminal of this size; else its outputs are two pipes.
    pub terminal: Option<TerminalSize>,
    /// It reads what the client writes; else it reads the end of its input at once.
    pub stdin: bool,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            command,
            env,
            cwd,
            user,
            terminal,
            stdin,
        } = self;
        f.debug_struct("Command")
            .field("command", command)
            .field("env", &Names(env))
            .field("cwd", cwd)
            .field("user", user)
            .field("terminal", terminal)
            .field("stdin", stdin)
            .finish()
    }
}

/// From the supervisor to vm-init.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HostFrame {
    /// Begin a session.
    Open {
        /// Which; a new one.
        session: SessionId,
        /// What it runs.
        command: Command,
    },
    /// Input for the command.
    Stdin {
        /// Which session.
        session: SessionId,
        /// The bytes, 1 to [`MAX_CHUNK`], within the window.
        bytes: Vec<u8>,
    },
    /// No more input comes: its pipe is closed, or its terminal gets the end-of-file character.
    StdinEnd {
        /// Which session.
        session: SessionId,
    },
    /// The client has taken output; that much more may be sent.
    OutputCredit {
        /// Which session.
        session: SessionId,
        /// By the window's own measure ([`window::cost`]).
        credit: u32,
    },
    /// The client's terminal has another size.
    Resize {
        /// Which session.
        session: SessionId,
        /// The new size.
        size: TerminalSize,
    },
    /// A signal for the process group of the session's main process.
    Signal {
        /// Which session.
        session: SessionId,
        /// The number as Linux has it on the guest's architecture.
        signal: i32,
    },
    /// The client is gone: SIGHUP, a short grace, SIGKILL. `Exited` still comes, output does not.
    Close {
        /// Which session.
        session: SessionId,
    },
}

/// From vm-init to the supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum GuestFrame {
    /// The command runs, or there is none to run.
    Opened {
        /// Which session.
        session: SessionId,
        /// Its main process. `None` where no such program was found: a message on standard error
        /// and exit code 127 follow.
        pid: Option<GuestPid>,
    },
    /// The session cannot be had; nothing of it is left.
    Refused {
        /// Which session.
        session: SessionId,
        /// The cause, for the user.
        message: String,
    },
    /// What the command wrote.
    Output {
        /// Which session.
        session: SessionId,
        /// On which output; a terminal's is standard output.
        stream: Stream,
        /// The bytes, 1 to [`MAX_CHUNK`], within the window.
        bytes: Vec<u8>,
    },
    /// The command has taken input; that much more may be sent.
    StdinCredit {
        /// Which session.
        session: SessionId,
        /// By the window's own measure ([`window::cost`]).
        credit: u32,
    },
    /// The command reads no more: what is sent from now on is thrown away.
    StdinClosed {
        /// Which session.
        session: SessionId,
    },
    /// The session is over: its output has been sent, nothing of it is left in the guest.
    Exited {
        /// Which session.
        session: SessionId,
        /// How its main process ended.
        exit: Exit,
    },
}

impl HostFrame {
    /// Whose frame it is.
    pub fn session(&self) -> SessionId {
        match self {
            Self::Open { session, .. }
            | Self::Stdin { session, .. }
            | Self::StdinEnd { session }
            | Self::OutputCredit { session, .. }
            | Self::Resize { session, .. }
            | Self::Signal { session, .. }
            | Self::Close { session } => *session,
        }
    }
}

impl GuestFrame {
    /// Whose frame it is.
    pub fn session(&self) -> SessionId {
        match self {
            Self::Opened { session, .. }
            | Self::Refused { session, .. }
            | Self::Output { session, .. }
            | Self::StdinCredit { session, .. }
            | Self::StdinClosed { session }
            | Self::Exited { session, .. } => *session,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{FrameReader, Wire, encode_frame};
    use proptest::prelude::*;

    fn golden<T: Wire + PartialEq + std::fmt::Debug>(frame: T, payload: &[u8]) {
        let bytes = encode_frame(&frame).unwrap();
        let mut expected = (payload.len() as u32).to_le_bytes().to_vec();
        expected.extend_from_slice(payload);
        assert_eq!(bytes, expected, "{frame:?}");
        let mut reader = FrameReader::new();
        reader.feed(&bytes);
        assert_eq!(reader.next::<T>().unwrap().unwrap(), frame);
    }

    const SESSION: SessionId = SessionId(0x0102);
    const SIZE: TerminalSize = TerminalSize {
        rows: 24,
        columns: 80,
    };

    #[test]
    fn golden_bytes_of_the_hosts_frames() {
        let session = SESSION;
        let command = Command {
            command: vec!["ls".into()],
            env: vec![("A".into(), "b".into())],
            cwd: Some("/".into()),
            user: None,
            terminal: Some(SIZE),
            stdin: true,
        };
        #[rustfmt::skip]
        golden(
            HostFrame::Open { session, command },
            &[
                0, 0, 0, 0, 2, 1, 0, 0,
                1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'l', b's',
                1, 0, 0, 0, 0, 0, 0, 0,
                1, 0, 0, 0, 0, 0, 0, 0, b'A', 1, 0, 0, 0, 0, 0, 0, 0, b'b',
                1, 1, 0, 0, 0, 0, 0, 0, 0, b'/',
                0,
                1, 24, 0, 80, 0,
                1,
            ],
        );
        let bytes = vec![0xff, 0];
        #[rustfmt::skip]
        golden(
            HostFrame::Stdin { session, bytes },
            &[1, 0, 0, 0, 2, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0],
        );
        golden(HostFrame::StdinEnd { session }, &[2, 0, 0, 0, 2, 1, 0, 0]);
        golden(
            HostFrame::OutputCredit {
                session,
                credit: 65_536,
            },
            &[3, 0, 0, 0, 2, 1, 0, 0, 0, 0, 1, 0],
        );
        golden(
            HostFrame::Resize {
                session,
                size: SIZE,
            },
            &[4, 0, 0, 0, 2, 1, 0, 0, 24, 0, 80, 0],
        );
        golden(
            HostFrame::Signal {
                session,
                signal: 15,
            },
            &[5, 0, 0, 0, 2, 1, 0, 0, 15, 0, 0, 0],
        );
        golden(HostFrame::Close { session }, &[6, 0, 0, 0, 2, 1, 0, 0]);
    }

    #[test]
    fn golden_bytes_of_the_guests_frames() {
        let session = SESSION;
        golden(
            GuestFrame::Opened {
                session,
                pid: Some(GuestPid(7)),
            },
            &[0, 0, 0, 0, 2, 1, 0, 0, 1, 7, 0, 0, 0],
        );
        golden(
            GuestFrame::Opened { session, pid: None },
            &[0, 0, 0, 0, 2, 1, 0, 0, 0],
        );
        let message = "no".into();
        #[rustfmt::skip]
        golden(
            GuestFrame::Refused { session, message },
            &[1, 0, 0, 0, 2, 1, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'n', b'o'],
        );
        let (stream, bytes) = (Stream::Stderr, vec![0, 0xfe]);
        #[rustfmt::skip]
        golden(
            GuestFrame::Output { session, stream, bytes },
            &[2, 0, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe],
        );
        golden(
            GuestFrame::StdinCredit { session, credit: 1 },
            &[3, 0, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0],
        );
        golden(
            GuestFrame::StdinClosed { session },
            &[4, 0, 0, 0, 2, 1, 0, 0],
        );
        let exit = Exit::Signal { signal: 9 };
        #[rustfmt::skip]
        golden(
            GuestFrame::Exited { session, exit },
            &[5, 0, 0, 0, 2, 1, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0],
        );
    }

    #[test]
    fn a_full_chunk_fits_one_write_of_the_driver() {
        let frame = GuestFrame::Output {
            session: SESSION,
            stream: Stream::Stdout,
            bytes: vec![1; MAX_CHUNK],
        };
        assert!(encode_frame(&frame).unwrap().len() <= 32 * 1024);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = (bytes.len() as u32).to_le_bytes().to_vec();
            framed.extend(&bytes);
            let mut reader = FrameReader::new();
            reader.feed(&framed);
            if let Ok(Some(frame)) = reader.next::<GuestFrame>() {
                prop_assert_eq!(encode_frame(&frame).unwrap(), framed);
            }
        }
    }
}
