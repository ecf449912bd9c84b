//! Images from files: what `docker save` writes, and OCI image layouts, as directories or archives.
//!
//! * [`Importer`] finds the images of a file and merges their layers;
//! * `source` is the file: names and what they hold.
//!
//! What is imported is checked as what is pulled: a configuration by its digest where the file
//! names one, each layer by the configuration.

mod source;

use std::path::Path;

use serde::Deserialize;

use crate::layers::{Assembly, AssemblyError};
use crate::oci::config::MAX_CONFIG;
use crate::oci::manifest::{self, MAX_DOCUMENT};
use crate::oci::{Descriptor, Digest, Document, ImageConfig, Reference};
use crate::progress::Progress;
use crate::pull::{PullError, Puller, fetch::add_layer, now};
use crate::store::{Origin, Record, StoreError, root_digest};

use source::Source;
pub use source::SourceError;

/// Most images of one file: a list without an end would keep us for ever.
const MAX_IMAGES: usize = 1000;

/// Why nothing can be imported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// The file.
    #[error("failed to import {file}: {source}")]
    Source {
        /// Which.
        file: String,
        /// Why.
        #[source]
        source: SourceError,
    },
    /// What it holds.
    #[error("failed to import {file}: {reason}")]
    Content {
        /// Which.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// An image of it.
    #[error(transparent)]
    Image(#[from] PullError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An image of a file, before it is read.
#[derive(Debug)]
struct Found {
    names: Vec<Reference>,
    /// Of its manifest, if it has one.
    digest: Option<Digest>,
    /// Name and announced digest of its configuration.
    config: (String, Option<Digest>),
    /// Names of its layers, the lowest first.
    layers: Vec<String>,
}

/// One image in the list of a `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Imports images.
#[derive(Debug)]
pub struct Importer<'a> {
    puller: &'a Puller,
    progress: &'a dyn Progress,
    source: Source,
    file: String,
}

impl std::fmt::Debug for dyn Progress + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

impl<'a> Importer<'a> {
    /// Opens a file or a directory.
    pub fn open(
        puller: &'a Puller,
        path: &Path,
        progress: &'a dyn Progress,
    ) -> Result<Self, ImportError> {
        let file = path.display().to_string();
        let source =
            Source::open(path, puller.store.directory()).map_err(|source| ImportError::Source {
                file: file.clone(),
                source,
            })?;
        Ok(Self {
            puller,
            progress,
            source,
            file,
        })
    }

    /// Imports all images, under their own names; with `name` the only one, under that.
    pub fn import(&self, name: Option<&Reference>) -> Result<Vec<Record>, ImportError> {
        let _held = self.puller.store.hold()?;
        let mut found = self.images()?;
        match (name, &mut found[..]) {
            (_, []) => return Err(self.content("there is no image for this host in it")),
            (Some(name), [only]) => only.names = vec![name.clone()],
            (Some(_), many) => {
                return Err(self.content(&format!(
                    "it holds {} images ({}), and one name is no name for all of them; leave \
                     `--name` out",
                    many.len(),
                    listed(many)
                )));
            }
            (None, all) => {
                if all.iter().any(|image| image.names.is_empty()) {
                    return Err(self.content(
                        "it names an image not at all, or only by a tag; give its name, as \
                         `--name myapp:1`",
                    ));
                }
            }
        }
        let mut records = Vec::new();
        for image in &found {
            records.extend(self.image(image)?);
        }
        Ok(records)
    }

    fn content(&self, reason: &str) -> ImportError {
        ImportError::Content {
            file: self.file.clone(),
            reason: reason.to_owned(),
        }
    }

    fn of_source(&self, source: SourceError) -> ImportError {
        ImportError::Source {
            file: self.file.clone(),
            source,
        }
    }

    fn small(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, ImportError> {
        self.source
            .small(name, most)
            .map_err(|source| self.of_source(source))
    }

    fn images(&self) -> Result<Vec<Found>, ImportError> {
        // Newer versions of Docker write both; this one has whole names.
        if let Some(bytes) = self.small("manifest.json", MAX_DOCUMENT)? {
            return self.saved(&bytes);
        }
        match self.small("index.json", MAX_DOCUMENT)? {
            Some(bytes) => self.layout(&bytes),
            None => Err(self.content(
                "it has neither a manifest.json, as `docker save` writes, nor an index.json, as an \
                 OCI image layout has",
            )),
        }
    }

    fn saved(&self, bytes: &[u8]) -> Result<Vec<Found>, ImportError> {
        let saved: Vec<Saved> = serde_json::from_slice(bytes)
            .map_err(|error| self.content(&format!("its manifest.json is malformed: {error}")))?;
        if saved.len() > MAX_IMAGES {
            return Err(self.content("it has more images than any archive"));
        }
        saved
            .into_iter()
            .map(|image| {
                let names = image.repo_tags.unwrap_or_default();
                let names = names
                    .iter()
                    .map(|name| {
                        let fault = |error| self.content(&format!("{error}"));
                        name.parse()
                            .map_err(|error: crate::oci::reference::ReferenceError| fault(error))
                    })
                    .collect::<Result<_, _>>()?;
                Ok(Found {
                    names,
                    digest: None,
                    config: (image.config, None),
                    layers: image.layers.unwrap_or_default(),
                })
            })
            .collect()
    }

    fn layout(&self, bytes: &[u8]) -> Result<Vec<Found>, ImportError> {
        let Document::Index(all) = self.document(bytes)? else {
            return Err(self.content("its index.json is no index"));
        };
        if all.len() > MAX_IMAGES {
            return Err(self.content("it has more images than any layout"));
        }
        let mut found = Vec::new();
        for descriptor in &all {
            let host = &self.puller.platform;
            let elsewhere = |p: &crate::oci::Platform| p.fits(host).is_none();
            // Of several platforms those are left out that no guest of this host is.
            if descriptor.platform.as_ref().is_some_and(elsewhere) {
                continue;
            }
            found.push(self.of_layout(descriptor)?);
        }
        Ok(found)
    }

    fn of_layout(&self, descriptor: &Descriptor) -> Result<Found, ImportError> {
        let manifest = match self.document(&self.blob(descriptor)?)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(all) => {
                let chosen = manifest::choose(&all, &self.puller.platform)
                    .map_err(|error| self.content(&error.to_string()))?;
                match self.document(&self.blob(chosen)?)? {
                    Document::Manifest(manifest) => manifest,
                    Document::Index(_) => {
                        return Err(self.content("its index leads to another index"));
                    }
                }
            }
        };
        Ok(Found {
            names: whole_name(descriptor).into_iter().collect(),
            digest: Some(descriptor.digest),
            config: (
                blob_name(&manifest.config.digest),
                Some(manifest.config.digest),
            ),
            layers: (manifest.layers.iter())
                .map(|layer| blob_name(&layer.digest))
                .collect(),
        })
    }

    fn document(&self, bytes: &[u8]) -> Result<Document, ImportError> {
        Document::parse(bytes).map_err(|error| self.content(&error.to_string()))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
        let name = blob_name(&descriptor.digest);
        let bytes = self
            .small(&name, MAX_DOCUMENT)?
            .ok_or_else(|| self.content(&format!("it lacks {name}")))?;
        self.check(&bytes, &descriptor.digest, &name)?;
        Ok(bytes)
    }

    fn check(&self, bytes: &[u8], wanted: &Digest, name: &str) -> Result<(), ImportError> {
        let found = Digest::of(bytes);
        if found == *wanted {
            return Ok(());
        }
        Err(self.content(&format!("its {name} is {found} and was to be {wanted}")))
    }

    fn image(&self, found: &Found) -> Result<Vec<Record>, ImportError> {
        let store = &self.puller.store;
        let shown = found
            .names
            .first()
            .map_or_else(|| self.file.clone(), Reference::familiar);
        let (name, announced) = &found.config;
        let bytes = self
            .small(name, MAX_CONFIG)?
            .ok_or_else(|| self.content(&format!("it lacks {name}")))?;
        if let Some(announced) = announced {
            self.check(&bytes, announced, name)?;
        }
        let config = ImageConfig::parse(&bytes).map_err(|source| PullError::Config {
            image: shown.clone(),
            source,
        })?;
        self.puller.check_platform(&shown, &config)?;
        if config.diff_ids.len() != found.layers.len() {
            return Err(self.content("its configuration disagrees on the number of layers"));
        }
        let digest = Digest::of(&bytes);
        store.write_blob(&digest, &bytes)?;
        let root = root_digest(&config.diff_ids);
        if store.open_root(&root)?.is_none() {
            self.progress.phase(&format!("importing {shown}"));
            store.make_root(&root, |output, scratch| {
                self.merge(output, scratch, found, &config, &shown)
            })?;
        }
        let mut records = Vec::new();
        for reference in &found.names {
            let image = self.puller.enter(Record {
                reference: reference.clone(),
                digest: found.digest,
                config: digest,
                root,
                blobs: vec![digest],
                size: 0,
                added: now(),
                origin: Origin::Import,
            })?;
            records.push(image.record().clone());
        }
        Ok(records)
    }

    fn merge(
        &self,
        output: std::fs::File,
        scratch: &Path,
        found: &Found,
        config: &ImageConfig,
        shown: &str,
    ) -> Result<(), ImportError> {
        let of_assembly = |source: AssemblyError| PullError::Assembly {
            image: shown.to_owned(),
            source: Box::new(source),
        };
        let mut assembly = Assembly::new(output, scratch).map_err(of_assembly)?;
        for (name, diff_id) in found.layers.iter().zip(&config.diff_ids) {
            let (size, blob) = self
                .source
                .open_blob(name)
                .map_err(|source| self.of_source(source))?
                .ok_or_else(|| self.content(&format!("it lacks {name}")))?;
            // Named by what is in it: the file may name it by anything.
            add_layer(&mut assembly, blob, size, diff_id, diff_id, shown)?;
        }
        assembly.finish().map_err(of_assembly)?;
        Ok(())
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A name that says more than a tag: containerd's, or an OCI layout's if it is a whole one.
fn whole_name(descriptor: &Descriptor) -> Option<Reference> {
    let annotations = descriptor.annotations.as_ref()?;
    let get = |key: &str| annotations.get(key);
    let text = get("io.containerd.image.name").or_else(|| {
        get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']))
    })?;
    text.parse().ok()
}

fn listed(images: &[Found]) -> String {
    let names: Vec<String> = images
        .iter()
        .map(|image| {
            image
                .names
                .first()
                .map_or_else(|| "one without a name".to_owned(), Reference::familiar)
        })
        .take(10)
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests;
