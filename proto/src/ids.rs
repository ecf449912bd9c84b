//! Names and numbers that identify things on both sides.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};
use serde::{Deserialize, Serialize};

/// Longest worker name: it becomes the guest's host name (RFC 1123 §2.1 label).
pub const MAX_WORKER_NAME: usize = 63;

/// A worker's name: lower-case letters, digits and inner hyphens, a valid host name label.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct WorkerName(String);

/// Why a text is not a worker name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkerNameError {
    /// The name has no character.
    #[error("a worker's name must not be empty")]
    Empty,
    /// The name is longer than [`MAX_WORKER_NAME`].
    #[error("a worker's name has at most {MAX_WORKER_NAME} characters, this one has {0}")]
    TooLong(usize),
    /// A character that a host name label cannot hold.
    #[error(
        "a worker's name is made of a-z, 0-9 and '-', and does not start or end with '-': {0:?}"
    )]
    BadCharacter(char),
}

impl WorkerName {
    /// Checks `name` and takes it.
    pub fn new(name: impl Into<String>) -> Result<Self, WorkerNameError> {
        let name = name.into();
        if name.is_empty() {
            return Err(WorkerNameError::Empty);
        }
        if name.len() > MAX_WORKER_NAME {
            return Err(WorkerNameError::TooLong(name.len()));
        }
        let bad = |c: &char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-');
        if let Some(c) = name.chars().find(bad) {
            return Err(WorkerNameError::BadCharacter(c));
        }
        if name.starts_with('-') || name.ends_with('-') {
            return Err(WorkerNameError::BadCharacter('-'));
        }
        Ok(Self(name))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for WorkerName {
    type Err = WorkerNameError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::new(s)
    }
}

impl TryFrom<String> for WorkerName {
    type Error = WorkerNameError;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        Self::new(s)
    }
}

impl From<WorkerName> for String {
    fn from(name: WorkerName) -> Self {
        name.0
    }
}

/// One life of a VM. Drawn at random by the host; the guest repeats it in `Hello`, so that a frame
/// of an earlier life is never taken for one of this.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct BootId(u64);

impl BootId {
    /// A boot id from 64 bits that the caller drew at random.
    pub const fn from_random(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits that it was made of.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

impl From<BootId> for String {
    fn from(id: BootId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for BootId {
    type Error = std::num::ParseIntError;
    fn try_from(s: String) -> Result<Self, Self::Error> {
        u64::from_str_radix(&s, 16).map(Self)
    }
}

/// A process id inside the guest; never to be handed to a host's `kill`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode, Serialize, Deserialize,
)]
pub struct GuestPid(pub i32);

impl fmt::Display for GuestPid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_names_are_host_name_labels() {
        assert!(WorkerName::new("api-2").is_ok());
        assert_eq!(WorkerName::new(""), Err(WorkerNameError::Empty));
        assert_eq!(
            WorkerName::new("Api"),
            Err(WorkerNameError::BadCharacter('A'))
        );
        assert_eq!(
            WorkerName::new("a/b"),
            Err(WorkerNameError::BadCharacter('/'))
        );
        assert_eq!(
            WorkerName::new("-a"),
            Err(WorkerNameError::BadCharacter('-'))
        );
        assert_eq!(
            WorkerName::new("a".repeat(64)),
            Err(WorkerNameError::TooLong(64))
        );
    }

    #[test]
    fn boot_ids_are_written_as_sixteen_hex_digits() {
        let id = BootId::from_random(0xab);
        assert_eq!(id.to_string(), "00000000000000ab");
        assert_eq!(BootId::try_from(id.to_string()), Ok(id));
    }
}
