//! What each name stands for.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{StoreError, write_whole};
use crate::oci::{Digest, Reference};

const VERSION: u32 = 1;
/// Most bytes of an index; one without an end would fill memory.
const MAX_BYTES: u64 = 64 << 20;

/// An image under one of its names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The name.
    pub reference: Reference,
    /// Of what the name stood for in the registry: a manifest, or an index of manifests.
    pub digest: Option<Digest>,
    /// Of its configuration: what other tools call the image's id.
    pub config: Digest,
    /// What its file in `roots` is named by.
    pub root: Digest,
    /// Blobs that it was made from and that are kept, the configuration included.
    pub blobs: Vec<Digest>,
    /// Bytes of the file in `roots`.
    pub size: u64,
    /// When it was pulled or imported, in seconds since the Unix epoch.
    pub added: u64,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where an image comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// A registry, which has it still.
    Registry,
    /// An archive, which nobody may have any more.
    Import,
}

/// All images.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    pub(super) records: Vec<Record>,
}

impl Index {
    pub(super) fn read(path: &Path) -> Result<Self, StoreError> {
        let mut bytes = Vec::new();
        match File::open(path) {
            Ok(file) => file
                .take(MAX_BYTES)
                .read_to_end(&mut bytes)
                .map_err(|error| StoreError::file("read", path, error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    version: VERSION,
                    records: Vec::new(),
                });
            }
            Err(error) => return Err(StoreError::file("read", path, error)),
        };
        let fault = |reason: String| StoreError::Index {
            path: path.display().to_string(),
            reason,
        };
        let index: Self =
            serde_json::from_slice(&bytes).map_err(|error| fault(error.to_string()))?;
        if index.version == VERSION {
            Ok(index)
        } else {
            Err(fault(format!("it is of version {}", index.version)))
        }
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec_pretty(self)
            .map_err(|error| StoreError::file("write", path, error.into()))?;
        write_whole(path, &bytes)
    }
}
