//! Layers and images for this crate's own tests, made by other code than is tested.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use ::tar::{EntryType, Header};
use serde_json::{Value, json};

use crate::oci::{Digest, Platform};

/// A layer under construction, in one line per entry.
#[derive(Default)]
pub(crate) struct Layer(pub(crate) Vec<u8>);

pub(crate) fn layer() -> Layer {
    Layer::default()
}

impl Layer {
    pub(crate) fn entry(self, path: &str, kind: EntryType, link: &str, content: &[u8]) -> Self {
        self.with_mode(path, kind, link, content, 0o755)
    }

    pub(crate) fn with_mode(
        mut self,
        path: &str,
        kind: EntryType,
        link: &str,
        content: &[u8],
        mode: u32,
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(999);
        header.set_gid(7);
        header.set_mtime(1);
        // Bytes as they are: the crate's own setters refuse what is wanted here.
        let fields = header.as_mut_bytes();
        fields[..path.len()].copy_from_slice(path.as_bytes());
        fields[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, "", b"")
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.entry(path, EntryType::Regular, "", content.as_bytes())
    }

    pub(crate) fn plain(self, path: &str, content: &str) -> Self {
        self.with_mode(path, EntryType::Regular, "", content.as_bytes(), 0o644)
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, target, b"")
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, target, b"")
    }
}

/// An image: blobs by their digests, the manifest's among them.
pub(crate) struct Built {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    /// Compressed.
    pub(crate) layers: Vec<Vec<u8>>,
    pub(crate) plain_layers: Vec<Vec<u8>>,
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

pub(crate) fn image(layers: Vec<Layer>, run: Value) -> Built {
    let host = Platform::of_host();
    let plain: Vec<Vec<u8>> = layers.into_iter().map(|layer| layer.0).collect();
    let diff_ids: Vec<Digest> = plain.iter().map(|bytes| Digest::of(bytes)).collect();
    let config = json!({
        "architecture": host.architecture, "os": "linux", "config": run,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = serde_json::to_vec(&config).unwrap();
    let compressed: Vec<Vec<u8>> = plain.iter().map(|bytes| gzip(bytes)).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": compressed.iter()
            .map(|bytes| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", bytes))
            .collect::<Vec<_>>(),
    });
    Built {
        config,
        manifest: serde_json::to_vec(&manifest).unwrap(),
        layers: compressed,
        plain_layers: plain,
    }
}

pub(crate) fn descriptor(media: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media, "digest": Digest::of(bytes), "size": bytes.len()})
}

impl Built {
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        [&self.config, &self.manifest]
            .into_iter()
            .chain(&self.layers)
    }

    /// An OCI image layout with this name in its index.
    pub(crate) fn layout(&self, directory: &Path, name: Option<&str>) -> PathBuf {
        let blobs = directory.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for blob in self.blobs() {
            std::fs::write(blobs.join(Digest::of(blob).hex()), blob).unwrap();
        }
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &self.manifest);
        if let Some(name) = name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
        std::fs::write(
            directory.join("oci-layout"),
            "{\"imageLayoutVersion\":\"1.0.0\"}",
        )
        .unwrap();
        directory.to_owned()
    }

    /// What `docker save` writes, in the old form: layers uncompressed, equal ones linked.
    pub(crate) fn saved(&self, names: &[&str]) -> Vec<u8> {
        let mut archive = layer();
        let mut layers = Vec::new();
        for (at, bytes) in self.plain_layers.iter().enumerate() {
            let name = format!("{at}/layer.tar");
            let first = self
                .plain_layers
                .iter()
                .position(|other| other == bytes)
                .unwrap();
            archive = if first < at {
                archive.symlink(&name, &format!("../{first}/layer.tar"))
            } else {
                archive.entry(&name, EntryType::Regular, "", bytes)
            };
            layers.push(name);
        }
        let config = "0123.json";
        let list = json!([{"Config": config, "RepoTags": names, "Layers": layers}]);
        archive
            .entry(config, EntryType::Regular, "", &self.config)
            .file("manifest.json", &list.to_string())
            .0
    }
}
