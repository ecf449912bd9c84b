//! Output that is kept: what workloads write, below a state directory, so that it can be read while
//! a supervisor runs and after any end of it.
//!
//! ```text
//! STATE/logs/WORKER/00000007.log    the highest number is being written
//! ```
//!
//! * [`record`]: the bytes of one record, and their check;
//! * [`block`]: how records lie in a file, so that it can be read from anywhere;
//! * [`files`]: the files' names;
//! * [`write`]: the one writer: batches, rotation, a disk that is full;
//! * [`read`]: readers: the last lines, a time, several workers as one sequence, what is to come.
//!
//! What was taken over from a guest (its frames are acknowledged) is in a file by then, in the
//! kernel's hands: it survives any end of this process, though not one of the host within the
//! seconds that the kernel takes to write. A record torn by an unclean end is recognised and left
//! out. The text of a record is whatever the workload wrote.
//!
//! May depend on the bus of lines and its types in `actors`. Must never be in it: how lines look to
//! people, the command line, a running supervisor.

mod block;
mod files;
mod read;
mod record;
mod write;

use std::path::{Path, PathBuf};

pub use self::block::{Step, step};
pub use self::read::{Following, Found, Query, ReadLogsError, Reading, StoredLogs, Wake};
pub use self::record::{Flaw, Record, View};
pub(crate) use self::write::LogStore;

/// Where the output is kept in a state directory.
pub(crate) fn directory_in(state_dir: &Path) -> PathBuf {
    state_dir.join("logs")
}

#[cfg(test)]
mod testing;
