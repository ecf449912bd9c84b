//! From a name to an image that workers can run on.
//!
//! * [`Puller`] decides what has to be fetched, and merges layers while others still come;
//! * `fetch` gets documents, and layers several at a time;
//! * `download` gets one blob, going on where an earlier try broke off.

mod download;
pub(crate) mod fetch;

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

pub use download::DownloadError;

use crate::image_root::Image;
use crate::layers::{Assembly, AssemblyError, LayerError};
use crate::oci::config::{ConfigError, MAX_CONFIG};
use crate::oci::manifest::{self, DocumentError};
use crate::oci::{Descriptor, Digest, Document, ImageConfig, Manifest, Platform, Reference};
use crate::progress::Progress;
use crate::registry::{Client, RegistryError, RegistryOptions};
use crate::store::{ImageStore, Origin, Record, StoreError, root_digest};

/// When a registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PullPolicy {
    /// If the image is not on this host.
    #[default]
    Missing,
    /// Each time: what its name stands for may have changed.
    Always,
    /// Not at all.
    Never,
}

/// Why there is no such image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// It may not be pulled and is not there.
    #[error(
        "failed to find the image {0} on this host, and `pull: never` forbids to pull it; \
         `iii-super image pull {0}` or `iii-super image import` brings it in"
    )]
    NotHere(String),
    /// The registry.
    #[error("failed to pull {image}: {source}")]
    Registry {
        /// Its name.
        image: String,
        /// Why.
        #[source]
        source: Box<RegistryError>,
    },
    /// A blob.
    #[error("failed to pull {image}: {source}")]
    Download {
        /// Its name.
        image: String,
        /// Why.
        #[source]
        source: Box<DownloadError>,
    },
    /// A document.
    #[error("failed to pull {image}: {source}")]
    Document {
        /// Its name.
        image: String,
        /// Why.
        #[source]
        source: Box<DocumentError>,
    },
    /// A configuration.
    #[error("failed to pull {image}: {source}")]
    Config {
        /// Its name.
        image: String,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// A document with another digest than it was asked for by.
    #[error(
        "failed to pull {image}: the registry sent {found} for {wanted}; nothing of it was used"
    )]
    Digest {
        /// Its name.
        image: String,
        /// Of what was sent.
        found: Digest,
        /// What was asked for.
        wanted: Digest,
    },
    /// Indexes in indexes, numbers of layers that do not agree.
    #[error("failed to pull {image}: {reason}")]
    Content {
        /// Its name.
        image: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// For another kind of machine.
    #[error("failed to pull {image}: it is for {found}, and the guest is to be {wanted}")]
    Platform {
        /// Its name.
        image: String,
        /// Whom it is for.
        found: String,
        /// Of the guest.
        wanted: String,
    },
    /// A layer that cannot be merged.
    #[error("failed to merge layer {layer} of {image}: {source}")]
    Layer {
        /// Its name.
        image: String,
        /// Its digest.
        layer: Digest,
        /// Why.
        #[source]
        source: Box<LayerError>,
    },
    /// A layer that holds something else than the configuration says.
    #[error(
        "failed to merge layer {layer} of {image}: it holds {found}, and the image's configuration says {wanted}"
    )]
    OtherLayer {
        /// Its name.
        image: String,
        /// Its digest.
        layer: Digest,
        /// Of what is in it.
        found: Digest,
        /// What was announced.
        wanted: Digest,
    },
    /// The file that layers become.
    #[error("failed to make {image}: {source}")]
    Assembly {
        /// Its name.
        image: String,
        /// Why.
        #[source]
        source: Box<AssemblyError>,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Gets images.
#[derive(Clone, Debug)]
pub struct Puller {
    /// Where they are kept.
    pub store: ImageStore,
    /// How registries are spoken to.
    pub registry: RegistryOptions,
    /// Whom images must be for.
    pub platform: Platform,
}

impl Puller {
    /// For guests of this host.
    pub fn new(store: ImageStore, registry: RegistryOptions) -> Self {
        Self {
            store,
            registry,
            platform: Platform::of_host(),
        }
    }

    /// The image of this name, pulled if the policy says so and ready to be run on.
    pub fn get(
        &self,
        reference: &Reference,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> Result<Image, PullError> {
        let _held = self.store.hold()?;
        let known = self.store.record(reference)?;
        let known = match (policy, known) {
            (PullPolicy::Missing | PullPolicy::Never, Some(record)) => self.open(record)?,
            (PullPolicy::Always, _) | (_, None) => None,
        };
        match (known, policy) {
            (Some(image), _) => Ok(image),
            (None, PullPolicy::Never) => Err(PullError::NotHere(reference.familiar())),
            (None, PullPolicy::Missing | PullPolicy::Always) => {
                Ok(self.pull(reference, progress)?.0)
            }
        }
    }

    /// Asks the registry what the name stands for and fetches what is not here. The second answer:
    /// whether anything had to be done.
    pub fn pull(
        &self,
        reference: &Reference,
        progress: &dyn Progress,
    ) -> Result<(Image, bool), PullError> {
        let _held = self.store.hold()?;
        let image = reference.familiar();
        let of_registry = |source| PullError::Registry {
            image: image.clone(),
            source: Box::new(source),
        };
        let client = Client::new(reference, &self.registry).map_err(of_registry)?;
        let pull = fetch::Pull {
            puller: self,
            client: &client,
            image: &image,
            progress,
        };
        progress.phase(&format!("looking up {image}"));
        let (digest, manifest) = pull.manifest(reference)?;
        let known = self.store.record(reference)?;
        if let Some(record) = known
            && record.digest == Some(digest)
            && record.config == manifest.config.digest
            && let Some(found) = self.open(record)?
        {
            return Ok((found, false));
        }
        let config_bytes = pull.config(&manifest.config)?;
        let config = self.config(&image, &config_bytes, &manifest)?;
        let root = root_digest(&config.diff_ids);
        if self.store.open_root(&root)?.is_none() {
            pull.root(&root, &manifest, &config)?;
        }
        let mut blobs = vec![manifest.config.digest];
        blobs.extend(manifest.layers.iter().map(|layer| layer.digest));
        let record = Record {
            reference: reference.clone(),
            digest: Some(digest),
            config: manifest.config.digest,
            root,
            blobs,
            size: 0,
            added: now(),
            origin: Origin::Registry,
        };
        Ok((self.enter(record)?, true))
    }

    /// Enters an image whose files are all there.
    pub(crate) fn enter(&self, mut record: Record) -> Result<Image, PullError> {
        let path = self.store.root_path(&record.root);
        let found =
            std::fs::metadata(&path).map_err(|error| StoreError::file("look at", &path, error))?;
        record.size = found.len();
        self.store.enter(record.clone())?;
        match self.open(record)? {
            Some(image) => Ok(image),
            None => {
                let error = std::io::ErrorKind::NotFound.into();
                Err(StoreError::file("open", &path, error).into())
            }
        }
    }

    /// What a record stands for; `None` if something of it is not there any more.
    pub(crate) fn open(&self, record: Record) -> Result<Option<Image>, PullError> {
        let Some(root) = self.store.open_root(&record.root)? else {
            return Ok(None);
        };
        let Some(config) = self.store.read_blob(&record.config, MAX_CONFIG)? else {
            return Ok(None);
        };
        let config = ImageConfig::parse(&config).map_err(|source| PullError::Config {
            image: record.reference.familiar(),
            source,
        })?;
        Ok(Some(Image::new(record, config.run, root)))
    }

    /// A configuration that fits the manifest and this host.
    fn config(
        &self,
        image: &str,
        bytes: &[u8],
        manifest: &Manifest,
    ) -> Result<ImageConfig, PullError> {
        let config = ImageConfig::parse(bytes).map_err(|source| PullError::Config {
            image: image.to_owned(),
            source,
        })?;
        self.check_platform(image, &config)?;
        if config.diff_ids.len() != manifest.layers.len() {
            return Err(PullError::Content {
                image: image.to_owned(),
                reason: "its configuration and its manifest disagree on the number of layers",
            });
        }
        Ok(config)
    }

    pub(crate) fn check_platform(
        &self,
        image: &str,
        config: &ImageConfig,
    ) -> Result<(), PullError> {
        let found = &config.platform;
        // Images that were made by hand may not say.
        if found.architecture.is_empty() || found.fits(&self.platform).is_some() {
            return Ok(());
        }
        Err(PullError::Platform {
            image: image.to_owned(),
            found: found.to_string(),
            wanted: self.platform.to_string(),
        })
    }
}

#[cfg(test)]
mod tests;

pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
