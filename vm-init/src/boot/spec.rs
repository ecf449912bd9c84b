//! Reading the GuestSpec, once.

use std::path::Path;

use iii_proto::codec::{CodecError, decode_spec};
use iii_proto::guest::GuestSpec;

/// Why there is no spec to follow.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The boot medium has none.
    #[error("failed to read guest spec {0}: {1}")]
    Read(&'static str, std::io::Error),
    /// It was written by another version of iii-super.
    #[error(
        "failed to read guest spec: it is of protocol {theirs}, this vm-init speaks {ours}; use \
         the vm-init that was built with iii-super"
    )]
    Version {
        /// The spec's.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// It is none.
    #[error("failed to read guest spec: {0}")]
    Decode(#[from] CodecError),
}

/// Reads the spec of the boot medium and deletes it, so that the workload cannot read the secrets
/// in its environment there.
pub fn take(path: &'static str) -> Result<GuestSpec, SpecError> {
    let bytes = std::fs::read(path).map_err(|error| SpecError::Read(path, error))?;
    match std::fs::remove_file(Path::new(path)) {
        Ok(()) => {}
        // A read-only boot medium: it is out of the workload's reach after the switch of roots.
        Err(error) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {}
        Err(error) => return Err(SpecError::Read(path, error)),
    }
    decode(&bytes)
}

/// Decodes a spec after a look at its version, which every version has in front.
pub fn decode(bytes: &[u8]) -> Result<GuestSpec, SpecError> {
    if let Some(version) = bytes.first_chunk() {
        let theirs = u32::from_le_bytes(*version);
        let ours = iii_proto::PROTOCOL_VERSION;
        if theirs != ours {
            return Err(SpecError::Version { theirs, ours });
        }
    }
    Ok(decode_spec(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_named_before_anything_is_decoded() {
        let error = decode(&[9, 0, 0, 0, 1, 2, 3]).unwrap_err();
        assert!(error.to_string().contains("it is of protocol 9"), "{error}");
    }

    #[test]
    fn a_short_spec_is_an_error() {
        assert!(matches!(decode(&[]), Err(SpecError::Decode(_))));
        let version = iii_proto::PROTOCOL_VERSION.to_le_bytes();
        assert!(matches!(decode(&version), Err(SpecError::Decode(_))));
    }
}
