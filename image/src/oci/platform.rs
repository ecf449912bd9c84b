//! Which of several images fits a guest on this host.

use serde::{Deserialize, Serialize};

/// A platform, in Go's words, which images use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`.
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// `v8`, `v2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Of guests on this host.
    pub fn of_host() -> Self {
        Self::of(std::env::consts::ARCH)
    }

    /// Of guests of this architecture, named as in [`std::env::consts::ARCH`].
    pub fn of(architecture: &str) -> Self {
        let architecture = match architecture {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: None,
        }
    }

    /// How well an image for `self` runs on `host`: `None` not at all, the larger the better.
    pub fn fits(&self, host: &Self) -> Option<u8> {
        if self.os != host.os || self.architecture != host.architecture {
            return None;
        }
        match (self.architecture.as_str(), self.variant.as_deref()) {
            (_, None | Some("")) => Some(2),
            ("arm64", Some("v8")) => Some(2),
            ("amd64", Some("v1")) => Some(2),
            // Newer instructions, which this host may lack.
            (_, Some(_)) => Some(1),
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) if !variant.is_empty() => write!(f, "/{variant}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_platform_fits_best() {
        let platform = |os: &str, architecture: &str, variant: Option<&str>| Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.map(Into::into),
        };
        let (amd64, arm64) = (Platform::of("x86_64"), Platform::of("aarch64"));
        for (image, host, expected) in [
            (platform("linux", "amd64", None), &amd64, Some(2)),
            (platform("linux", "amd64", Some("v3")), &amd64, Some(1)),
            (platform("linux", "arm64", Some("v8")), &arm64, Some(2)),
            (platform("linux", "arm64", None), &arm64, Some(2)),
            (platform("linux", "arm", Some("v7")), &arm64, None),
            (platform("windows", "amd64", None), &amd64, None),
            (platform("unknown", "unknown", None), &amd64, None),
        ] {
            assert_eq!(image.fits(host), expected, "{image}");
        }
    }
}
