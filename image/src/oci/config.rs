//! An image's configuration: how it wants to be run, and the digests of its layers' content.

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::platform::Platform;
use crate::layers::limits::MAX_LAYERS;

/// Most bytes of a configuration: one without an end would fill memory.
pub const MAX_CONFIG: u64 = 8 << 20;

/// A configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageConfig {
    /// Whom it is for; empty where the image does not say.
    pub platform: Platform,
    /// How it wants to be run.
    pub run: RunConfig,
    /// Of the layers' archives, uncompressed; the lowest first.
    pub diff_ids: Vec<Digest>,
}

/// How an image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Variables with their values.
    pub env: Vec<(String, String)>,
    /// What a command is given to.
    pub entrypoint: Vec<String>,
    /// The command, or the entry point's arguments.
    pub cmd: Vec<String>,
    /// Where it runs; empty: the root.
    pub working_dir: String,
    /// As whom: `user`, `uid`, `user:group`, `uid:gid`; empty: root.
    pub user: String,
    /// What ends it, instead of SIGTERM.
    pub stop_signal: Option<i32>,
}

/// A configuration that no image can have.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or with other fields.
    #[error("failed to read the image's configuration: {0}")]
    Json(#[from] serde_json::Error),
    /// It says what cannot be.
    #[error("failed to read the image's configuration: {0}")]
    Content(&'static str),
}

#[derive(Deserialize)]
struct Raw {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<RawRun>,
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

impl ImageConfig {
    /// Reads one.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let raw: Raw = serde_json::from_slice(bytes)?;
        let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
        if diff_ids.len() > MAX_LAYERS {
            return Err(ConfigError::Content("it has more layers than any image"));
        }
        let run = raw.config.unwrap_or_default();
        let run = RunConfig {
            env: run
                .env
                .unwrap_or_default()
                .into_iter()
                .filter_map(|variable| {
                    let (name, value) = variable.split_once('=')?;
                    Some((name.to_owned(), value.to_owned()))
                })
                .collect(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            working_dir: run.working_dir.unwrap_or_default(),
            user: run.user.unwrap_or_default(),
            stop_signal: match run.stop_signal.as_deref() {
                None | Some("") => None,
                Some(text) => Some(signal(text).ok_or(ConfigError::Content(
                    "its stop signal is none that Linux has",
                ))?),
            },
        };
        let words = run.entrypoint.iter().chain(&run.cmd);
        let pairs = run.env.iter().flat_map(|(name, value)| [name, value]);
        let all = words.chain(pairs).chain([&run.working_dir, &run.user]);
        if all.into_iter().any(|text| text.contains('\0')) {
            return Err(ConfigError::Content("one of its texts has a NUL"));
        }
        if run.env.iter().any(|(name, _)| name.is_empty()) {
            return Err(ConfigError::Content("a variable has no name"));
        }
        if !run.working_dir.is_empty() && !run.working_dir.starts_with('/') {
            return Err(ConfigError::Content(
                "its working directory is not absolute",
            ));
        }
        Ok(Self {
            platform: raw.platform,
            run,
            diff_ids,
        })
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn signal(text: &str) -> Option<i32> {
    /// The first that is a program's to use.
    const FIRST_REAL_TIME: i32 = 34;
    const LAST: i32 = 64;
    let name = text.strip_prefix("SIG").unwrap_or(text);
    let number = match name.strip_prefix("RTMIN") {
        Some("") => Some(FIRST_REAL_TIME),
        Some(more) => more
            .strip_prefix('+')
            .and_then(|more| more.parse::<u8>().ok())
            .map(|more| FIRST_REAL_TIME + i32::from(more)),
        None => name.parse().ok().or_else(|| {
            let named: nix::sys::signal::Signal = format!("SIG{name}").parse().ok()?;
            Some(named as i32)
        }),
    };
    number.filter(|number| (1..=LAST).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(value: &serde_json::Value) -> Result<ImageConfig, ConfigError> {
        ImageConfig::parse(&serde_json::to_vec(value).unwrap())
    }

    #[test]
    fn what_is_said_is_taken_over() {
        let config = parse(&json!({
            "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {
                "User": "999:999", "Env": ["PATH=/bin", "EMPTY=", "A=b=c", "nonsense"],
                "Entrypoint": ["/entry"], "Cmd": ["a", ""], "WorkingDir": "/srv",
                "StopSignal": "SIGINT", "ExposedPorts": {"80/tcp": {}}, "Labels": null,
            },
            "rootfs": {"type": "layers", "diff_ids": [Digest::of(b"1")]},
            "history": [],
        }))
        .unwrap();
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            config.run,
            RunConfig {
                env: vec![pair("PATH", "/bin"), pair("EMPTY", ""), pair("A", "b=c")],
                entrypoint: vec!["/entry".into()],
                cmd: vec!["a".into(), String::new()],
                working_dir: "/srv".into(),
                user: "999:999".into(),
                stop_signal: Some(2),
            }
        );
        assert_eq!(config.diff_ids, [Digest::of(b"1")]);
        assert_eq!(config.platform.to_string(), "linux/amd64");
    }

    #[test]
    fn stop_signals() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("QUIT", Some(3)),
            ("2", Some(2)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+31", None),
            ("SIGNONE", None),
            ("0", None),
            ("65", None),
            ("SIG", None),
        ] {
            assert_eq!(signal(text), number, "{text}");
        }
        let config = json!({"config": {"StopSignal": "SIGNONE"}, "rootfs": {}});
        assert!(parse(&config).is_err());
    }

    #[test]
    fn nothing_said_is_nothing_wanted() {
        for config in [
            json!(null),
            json!({}),
            json!({"Cmd": null, "Env": null, "User": null}),
        ] {
            let parsed = parse(&json!({"config": config, "rootfs": {"diff_ids": null}})).unwrap();
            assert_eq!(parsed.run, RunConfig::default());
        }
        assert!(parse(&json!({"rootfs": {}})).is_ok());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let with = |config| parse(&json!({"config": config, "rootfs": {}}));
        for config in [
            json!({"Cmd": "a string"}),
            json!({"Cmd": ["a\0b"]}),
            json!({"Env": ["=x"]}),
            json!({"Env": ["A=\0"]}),
            json!({"WorkingDir": "srv"}),
            json!({"User": 5}),
        ] {
            assert!(with(config.clone()).is_err(), "{config}");
        }
        assert!(parse(&json!({})).is_err());
        assert!(parse(&json!({"rootfs": {"diff_ids": ["sha256:x"]}})).is_err());
    }
}
