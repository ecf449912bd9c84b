//! What users call images: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// The registry of names that begin with none.
pub const DEFAULT_REGISTRY: &str = "docker.io";
/// Where the default registry keeps images that belong to nobody.
const DEFAULT_NAMESPACE: &str = "library/";
/// The tag of names that end with none.
const DEFAULT_TAG: &str = "latest";

const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// The name of an image, its defaults filled in.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Text that names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to read the image name {text:?}: {reason}; a name is [REGISTRY/]REPOSITORY[:TAG][@DIGEST], \
     as debian:12-slim or localhost:5000/team/app@sha256:…"
)]
pub struct ReferenceError {
    text: String,
    reason: &'static str,
}

impl ReferenceError {
    /// What is wrong, without the text itself.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

impl Reference {
    /// `docker.io`, or a host with its port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path within the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `None` if there is a digest instead.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that its manifest must have.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// What a registry is asked for: the digest, or else the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_owned()),
        }
    }

    /// As people write it: without the default registry and namespace.
    pub fn familiar(&self) -> String {
        let whole = self.to_string();
        let short = whole
            .strip_prefix(DEFAULT_REGISTRY)
            .and_then(|rest| rest.strip_prefix('/'));
        match short {
            None => whole,
            Some(short) => short
                .strip_prefix(DEFAULT_NAMESPACE)
                .unwrap_or(short)
                .to_owned(),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fault = |reason| ReferenceError {
            text: text.chars().take(300).collect(),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                let digest = digest
                    .parse()
                    .map_err(|_| fault("its digest is not sha256: and 64 hexadecimal digits"))?;
                (rest, Some(digest))
            }
        };
        // A colon behind the last slash begins a tag; one before it, a port.
        let last = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            None => (rest, None),
            Some((name, tag)) => (&rest[..last + name.len()], Some(tag)),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(fault(
                "a tag is up to 128 letters, digits, `_`, `.` and `-`, of which the last two do not begin it",
            ));
        }
        let (registry, repository) = match name.split_once('/') {
            Some((first, rest)) if is_registry(first) => (first, rest.to_owned()),
            _ => (DEFAULT_REGISTRY, name.to_owned()),
        };
        if !is_host(registry) {
            return Err(fault("its registry is no host name"));
        }
        // What other tools call the same.
        let registry = match registry {
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
            registry => registry,
        };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("{DEFAULT_NAMESPACE}{repository}")
        } else {
            repository
        };
        if repository.len() + registry.len() > MAX_NAME {
            return Err(fault("it is longer than 255 characters"));
        }
        if repository.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(fault("a repository has no capital letters"));
        }
        if !repository.split('/').all(is_component) {
            return Err(fault(
                "a repository is parts of a-z and 0-9, joined by `.`, `_`, `__` or `-`, between slashes",
            ));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// The first part of a name is a registry if it looks like a host.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase)
}

fn is_host(registry: &str) -> bool {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (registry, None),
    };
    let port_is_sound = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    port_is_sound
        && match bracketed {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => host.split('.').all(|label| {
                let inner = |c: char| c.is_ascii_alphanumeric() || c == '-';
                !label.is_empty()
                    && label.len() <= 63
                    && label.chars().all(inner)
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            }),
        }
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.starts_with(word)
        && tag.len() <= MAX_TAG
        && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_component(component: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |between: &str| {
        matches!(between, "" | "." | "_" | "__") || between.chars().all(|c| c == '-')
    };
    component.starts_with(plain)
        && component.ends_with(plain)
        && component.split(plain).all(separator)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn defaults_are_filled_in() {
        for (text, whole, familiar) in [
            ("node", "docker.io/library/node:latest", "node:latest"),
            (
                "node:22-slim",
                "docker.io/library/node:22-slim",
                "node:22-slim",
            ),
            (
                "bitnami/redis",
                "docker.io/bitnami/redis:latest",
                "bitnami/redis:latest",
            ),
            (
                "index.docker.io/library/node:1",
                "docker.io/library/node:1",
                "node:1",
            ),
            (
                "localhost/app",
                "localhost/app:latest",
                "localhost/app:latest",
            ),
            (
                "localhost:5000/a/b:x",
                "localhost:5000/a/b:x",
                "localhost:5000/a/b:x",
            ),
            (
                "ghcr.io/a/b-c__d.e",
                "ghcr.io/a/b-c__d.e:latest",
                "ghcr.io/a/b-c__d.e:latest",
            ),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            (
                "127.0.0.1:5000/a",
                "127.0.0.1:5000/a:latest",
                "127.0.0.1:5000/a:latest",
            ),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(whole.parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn a_digest_is_what_is_wanted() {
        let pinned: Reference = format!("node:22@{DIGEST}").parse().unwrap();
        assert_eq!((pinned.tag(), &*pinned.wanted()), (Some("22"), DIGEST));
        let only: Reference = format!("node@{DIGEST}").parse().unwrap();
        assert_eq!((only.tag(), &*only.wanted()), (None, DIGEST));
        assert_eq!(only.familiar(), format!("node@{DIGEST}"));
    }

    #[test]
    fn what_is_no_name_is_refused_with_a_reason() {
        for text in [
            "",
            ":tag",
            "Node",
            "node:",
            "node:-x",
            "a//b",
            "/a",
            "a/",
            "a/../b",
            "..",
            "http://host/a",
            "host.example:0/a",
            "host.example:99999/a",
            "[::x]:1/a",
            "-.x/a",
            "a b",
            "node@sha256:12",
            "node@md5:x",
            &"a".repeat(300),
            "a_-b",
            "node?x",
        ] {
            let error = text.parse::<Reference>().unwrap_err();
            assert!(error.to_string().contains("; a name is"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_safe_in_a_url_and_stays_itself(text in "[a-z0-9./:@_-]{1,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let safe = |c: char| c.is_ascii_alphanumeric() || "./_-".contains(c);
                prop_assert!(reference.repository().chars().all(safe));
                prop_assert!(!reference.repository().split('/').any(|c| c == ".." || c == "."));
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
