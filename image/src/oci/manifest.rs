//! What an image is made of: a manifest, or an index of manifests for several platforms.

use serde::Deserialize;

use super::digest::Digest;
use super::platform::Platform;
use crate::layers::limits::MAX_LAYERS;

/// Most bytes of a manifest or an index: what the distribution specification has registries take.
/// One without an end would fill memory.
pub const MAX_DOCUMENT: u64 = 4 << 20;

/// What is asked for of a registry, in the order of preference.
pub const ACCEPTED: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Types of configuration that are an image's.
const CONFIGURATIONS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

/// Names another document or a blob by its content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// What it is.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// Of its bytes.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    /// In an index: whom it is for.
    pub platform: Option<Platform>,
    /// In an index: more about it.
    #[serde(default)]
    pub annotations: Option<std::collections::BTreeMap<String, String>>,
}

/// An image for one platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// How it is run.
    pub config: Descriptor,
    /// The lowest first.
    pub layers: Vec<Descriptor>,
}

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Several.
    Index(Vec<Descriptor>),
}

/// A document that is no image's.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not JSON, or with other fields.
    #[error("failed to read the manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another kind.
    #[error("failed to read the manifest: {0}")]
    Kind(String),
    /// No image for this host.
    #[error("failed to find an image for {wanted}: there are only {found}")]
    Platform {
        /// This host's guests.
        wanted: Platform,
        /// What there is.
        found: String,
    },
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u32,
    #[serde(rename = "artifactType", default)]
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads one.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let kind = |text: &str| Err(DocumentError::Kind(text.to_owned()));
        match raw {
            // What one reader takes for an image is an index for another (CVE-2021-41190).
            Raw {
                manifests: Some(_),
                layers: Some(_),
                ..
            } => kind("it is both an image and an index of images"),
            Raw {
                manifests: Some(all),
                ..
            } => Ok(Self::Index(all)),
            Raw {
                config: Some(config),
                layers: Some(layers),
                artifact_type,
                ..
            } => {
                let media = &config.media_type;
                if let Some(artifact) = artifact_type.filter(|kind| !kind.is_empty()) {
                    return kind(&format!("it is no image, but of type {artifact:?}"));
                }
                if !media.is_empty() && !CONFIGURATIONS.contains(&media.as_str()) {
                    return kind(&format!("it is no image: its configuration is {media:?}"));
                }
                if layers.len() > MAX_LAYERS {
                    return kind("it has more layers than any image");
                }
                if layers
                    .iter()
                    .any(|layer| layer.media_type.contains("encrypted"))
                {
                    return kind("its layers are encrypted");
                }
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            Raw {
                schema_version: 1, ..
            } => kind("it is of the first version of the format, which has no digests to check"),
            Raw { .. } => kind("it is neither an image nor an index of images"),
        }
    }
}

/// The descriptor of an index that fits the platform best; of equal ones the first.
pub fn choose<'a>(
    index: &'a [Descriptor],
    host: &Platform,
) -> Result<&'a Descriptor, DocumentError> {
    let fitting = index.iter().filter_map(|descriptor| {
        let fits = descriptor.platform.as_ref()?.fits(host)?;
        Some((fits, descriptor))
    });
    // `max_by_key` would answer the last of equals.
    let best = fitting.reduce(|best, next| if next.0 > best.0 { next } else { best });
    match (best, index) {
        (Some((_, descriptor)), _) => Ok(descriptor),
        // Made by tools that know of one platform; the configuration names it.
        (None, [only]) if only.platform.is_none() => Ok(only),
        (None, _) => {
            let mut names: Vec<String> = index
                .iter()
                .filter_map(|descriptor| descriptor.platform.as_ref())
                .filter(|platform| platform.os != "unknown")
                .map(ToString::to_string)
                .collect();
            names.sort();
            names.dedup();
            names.truncate(20);
            Err(DocumentError::Platform {
                wanted: host.clone(),
                found: if names.is_empty() {
                    "images that name no platform".to_owned()
                } else {
                    names.join(", ")
                },
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(of: &str) -> serde_json::Value {
        json!({"mediaType": CONFIGURATIONS[0], "digest": Digest::of(of.as_bytes()), "size": 7})
    }

    fn parse(value: &serde_json::Value) -> Result<Document, DocumentError> {
        Document::parse(&serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn a_manifest_in_the_words_of_both_formats() {
        for media in [
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
        ] {
            let document = json!({
                "schemaVersion": 2, "mediaType": media,
                "config": descriptor("c"), "layers": [descriptor("1"), descriptor("2")],
                "annotations": {"any": "thing"},
            });
            let Document::Manifest(manifest) = parse(&document).unwrap() else {
                panic!("a manifest");
            };
            assert_eq!(manifest.config.digest, Digest::of(b"c"));
            let layers: Vec<Digest> = manifest.layers.iter().map(|layer| layer.digest).collect();
            assert_eq!(layers, [Digest::of(b"1"), Digest::of(b"2")]);
        }
    }

    #[test]
    fn what_is_no_image_is_refused_by_what_it_is() {
        let mut chart = descriptor("c");
        chart["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
        let mut secret = descriptor("1");
        secret["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
        for (document, expected) in [
            (json!({"layers": [], "manifests": []}), "both"),
            (json!({"schemaVersion": 1, "fsLayers": []}), "first version"),
            (json!({}), "neither"),
            (json!({"config": chart, "layers": []}), "helm"),
            (
                json!({"config": descriptor("c"), "layers": [secret]}),
                "encrypted",
            ),
            (
                json!({"config": descriptor("c"), "layers": vec![descriptor("1"); 513]}),
                "more layers",
            ),
            (
                json!({"config": descriptor("c"), "layers": [], "artifactType": "x/y"}),
                "x/y",
            ),
            (json!([1]), "failed to read"),
        ] {
            let error = parse(&document).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(Document::parse(b"").is_err());
        assert!(Document::parse(b"{\"config\":{\"digest\":\"sha256:../..\",\"size\":1}}").is_err());
        assert!(
            Document::parse(&b"[".repeat(100_000)).is_err(),
            "no stack overflow"
        );
    }

    #[test]
    fn the_hosts_platform_is_chosen() {
        let of = |name: &str, os: &str, architecture: &str, variant: Option<&str>| {
            let mut value = descriptor(name);
            value["platform"] = json!({"os": os, "architecture": architecture});
            if let Some(variant) = variant {
                value["platform"]["variant"] = json!(variant);
            }
            value
        };
        let index = json!({"schemaVersion": 2, "manifests": [
            of("arm", "linux", "arm64", Some("v8")),
            of("attestation", "unknown", "unknown", None),
            of("v3", "linux", "amd64", Some("v3")),
            of("plain", "linux", "amd64", None),
            of("second", "linux", "amd64", None),
        ]});
        let Document::Index(all) = parse(&index).unwrap() else {
            panic!("an index");
        };
        let host = |architecture: &str| Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: None,
        };
        let chosen = |architecture| choose(&all, &host(architecture)).map(|d| d.digest);
        assert_eq!(chosen("amd64").unwrap(), Digest::of(b"plain"));
        assert_eq!(chosen("arm64").unwrap(), Digest::of(b"arm"));
        let error = chosen("s390x").unwrap_err().to_string();
        assert!(
            error.ends_with("linux/amd64, linux/amd64/v3, linux/arm64/v8"),
            "{error}"
        );
        let plain: Descriptor = serde_json::from_value(descriptor("x")).unwrap();
        assert_eq!(
            choose(std::slice::from_ref(&plain), &host("amd64")).unwrap(),
            &plain
        );
        assert!(choose(&[plain.clone(), plain], &host("amd64")).is_err());
        assert!(choose(&[], &host("amd64")).is_err());
    }
}
