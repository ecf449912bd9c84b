//! What a pull fetches: documents, then layers, several at a time, merged in their order as they
//! arrive.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::download::{Cancelled, DownloadError, Transfer, fetch};
use super::*;
use crate::layers::limits::most_unpacked;
use crate::layers::stream::LayerStream;

/// Downloads at a time: more only share the same line.
const PARALLEL: usize = 4;

pub(super) struct Pull<'a> {
    pub(super) puller: &'a Puller,
    pub(super) client: &'a Client,
    pub(super) image: &'a str,
    pub(super) progress: &'a dyn Progress,
}

impl Pull<'_> {
    fn content(&self, reason: &'static str) -> PullError {
        PullError::Content {
            image: self.image.to_owned(),
            reason,
        }
    }

    /// What the name stands for, and the manifest that fits this host.
    pub(super) fn manifest(&self, reference: &Reference) -> Result<(Digest, Manifest), PullError> {
        let bytes = self.document(&reference.wanted(), reference.digest())?;
        let digest = Digest::of(&bytes);
        match self.parse(&bytes)? {
            Document::Manifest(manifest) => Ok((digest, manifest)),
            Document::Index(all) => {
                let chosen = manifest::choose(&all, &self.puller.platform)
                    .map_err(|source| self.of_document(source))?;
                let wanted = chosen.digest;
                let bytes = self.document(&wanted.to_string(), Some(wanted))?;
                match self.parse(&bytes)? {
                    Document::Manifest(manifest) => Ok((digest, manifest)),
                    Document::Index(_) => Err(self.content("its index leads to another index")),
                }
            }
        }
    }

    fn document(&self, wanted: &str, digest: Option<Digest>) -> Result<Vec<u8>, PullError> {
        let bytes = download::patiently(|| self.client.document(wanted)).map_err(|source| {
            PullError::Registry {
                image: self.image.to_owned(),
                source: Box::new(source),
            }
        })?;
        let found = Digest::of(&bytes);
        match digest {
            Some(wanted) if wanted != found => Err(PullError::Digest {
                image: self.image.to_owned(),
                found,
                wanted,
            }),
            Some(_) | None => Ok(bytes),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Result<Document, PullError> {
        Document::parse(bytes).map_err(|source| self.of_document(source))
    }

    fn of_document(&self, source: DocumentError) -> PullError {
        PullError::Document {
            image: self.image.to_owned(),
            source: Box::new(source),
        }
    }

    fn of_download(&self, source: DownloadError) -> PullError {
        PullError::Download {
            image: self.image.to_owned(),
            source: Box::new(source),
        }
    }

    pub(super) fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        if descriptor.size > MAX_CONFIG {
            return Err(self.content("its configuration is larger than any real one"));
        }
        if let Some(bytes) = self
            .puller
            .store
            .read_blob(&descriptor.digest, MAX_CONFIG)?
        {
            return Ok(bytes);
        }
        let never = Cancelled::default();
        let counted = AtomicU64::new(0);
        let transfer = Transfer {
            client: self.client,
            store: &self.puller.store,
            cancelled: &never,
            progress: &|bytes| {
                counted.fetch_add(bytes, Ordering::Relaxed);
            },
        };
        fetch(&transfer, descriptor).map_err(|source| self.of_download(source))?;
        self.puller
            .store
            .read_blob(&descriptor.digest, MAX_CONFIG)?
            .ok_or_else(|| self.content("its configuration is another than it says"))
    }

    /// Fetches the layers and merges them into the root's file.
    pub(super) fn root(
        &self,
        root: &Digest,
        manifest: &Manifest,
        config: &ImageConfig,
    ) -> Result<(), PullError> {
        let total = manifest.layers.iter().map(|layer| layer.size).sum();
        let count = manifest.layers.len();
        let layers = if count == 1 { "layer" } else { "layers" };
        self.progress
            .phase(&format!("pulling {}: {count} {layers}", self.image));
        self.progress.bytes(0, Some(total));
        self.puller.store.make_root(root, |file, scratch| {
            self.make(file, scratch, manifest, config, total)
        })
    }

    fn make(
        &self,
        file: File,
        scratch: &Path,
        manifest: &Manifest,
        config: &ImageConfig,
        total: u64,
    ) -> Result<(), PullError> {
        let arrivals = Arrivals::default();
        let cancelled = Cancelled::default();
        let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
        let layers = &manifest.layers;
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL.min(layers.len()) {
                scope.spawn(|| {
                    let transfer = Transfer {
                        client: self.client,
                        store: &self.puller.store,
                        cancelled: &cancelled,
                        progress: &|bytes| {
                            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
                            self.progress.bytes(done.min(total), Some(total));
                        },
                    };
                    while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
                        arrivals.enter(layer.digest, fetch(&transfer, layer));
                    }
                });
            }
            let merged = self.merge(file, scratch, manifest, config, &arrivals);
            if merged.is_err() {
                cancelled.set();
            }
            merged
        })
    }

    fn merge(
        &self,
        file: File,
        scratch: &Path,
        manifest: &Manifest,
        config: &ImageConfig,
        arrivals: &Arrivals,
    ) -> Result<(), PullError> {
        let of_assembly = |source| PullError::Assembly {
            image: self.image.to_owned(),
            source: Box::new(source),
        };
        let mut assembly = Assembly::new(file, scratch).map_err(of_assembly)?;
        for (layer, diff_id) in manifest.layers.iter().zip(&config.diff_ids) {
            arrivals
                .wait(&layer.digest)
                .map_err(|source| self.of_download(source))?;
            let path = self.puller.store.blob_path(&layer.digest);
            let blob = File::open(&path).map_err(|error| StoreError::file("open", &path, error))?;
            let added = add_layer(
                &mut assembly,
                blob,
                layer.size,
                diff_id,
                &layer.digest,
                self.image,
            );
            if let Err(error) = added {
                // If it is the disk that changed it, the next pull fetches it anew.
                std::fs::remove_file(&path)
                    .map_err(|error| StoreError::file("take away", &path, error))?;
                return Err(error);
            }
        }
        self.progress.phase(&format!("writing {}", self.image));
        let finished = assembly.finish().map_err(of_assembly)?;
        tracing::debug!(
            image = self.image,
            bytes = finished.size,
            left_out = finished.left_out,
            "layers were merged"
        );
        Ok(())
    }
}

/// Merges one layer and checks that it holds what the configuration says: a root is named by that.
pub(crate) fn add_layer(
    assembly: &mut Assembly,
    blob: impl std::io::Read,
    size: u64,
    diff_id: &Digest,
    layer: &Digest,
    image: &str,
) -> Result<(), PullError> {
    let of_layer = |source| PullError::Layer {
        image: image.to_owned(),
        layer: *layer,
        source: Box::new(source),
    };
    let stream = LayerStream::open(blob, most_unpacked(size))
        .map_err(|error| of_layer(LayerError::Tar(error.into())))?;
    let found = assembly.layer(stream).map_err(of_layer)?.digest();
    if found == *diff_id {
        return Ok(());
    }
    Err(PullError::OtherLayer {
        image: image.to_owned(),
        layer: *layer,
        found,
        wanted: *diff_id,
    })
}

/// Blobs that were fetched, or were not.
#[derive(Default)]
struct Arrivals {
    all: Mutex<BTreeMap<Digest, Result<(), DownloadError>>>,
    changed: Condvar,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Digest, Result<(), DownloadError>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, digest: Digest, result: Result<(), DownloadError>) {
        self.lock().insert(digest, result);
        self.changed.notify_all();
    }

    /// Waits for a blob; any failure ends the wait, since the image is lost.
    fn wait(&self, digest: &Digest) -> Result<(), DownloadError> {
        let mut all = self.lock();
        loop {
            if let Some(failed) = all.iter().find(|(_, result)| result.is_err()) {
                let failed = *failed.0;
                return all.remove(&failed).unwrap_or(Ok(()));
            }
            if all.contains_key(digest) {
                return Ok(());
            }
            all = self
                .changed
                .wait(all)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}
