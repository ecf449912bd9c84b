//! Who this user is to a registry: what was given for one pull, or what `docker login` kept in
//! `~/.docker/config.json` or with a credential helper.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use crate::oci::reference::DEFAULT_REGISTRY;

/// Under which `docker login` keeps what is for the default registry.
const DEFAULT_KEYS: [&str; 2] = ["https://index.docker.io/v1/", "docker.io"];
/// Most bytes of a configuration, and of a helper's answer.
const MAX_BYTES: u64 = 1 << 20;

/// Shown to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// What a token server gives tokens for.
    IdentityToken(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never what it is.
        f.write_str("Login")
    }
}

/// Where logins come from.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    given: Option<Login>,
    config: Option<PathBuf>,
}

/// Credentials that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file.
    #[error("failed to read credentials from {path}: {reason}; correct the file, or log in again")]
    File {
        /// Which.
        path: String,
        /// What is wrong, without anything that is in it.
        reason: String,
    },
    /// A credential helper.
    #[error("failed to ask the credential helper docker-credential-{helper}: {reason}")]
    Helper {
        /// Its name.
        helper: String,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl Credentials {
    /// What this login says, whatever is kept.
    pub fn given(login: Login) -> Self {
        Self {
            given: Some(login),
            config: None,
        }
    }

    /// What is kept in a `config.json`. A file that is not there keeps nothing.
    pub fn from_config(path: PathBuf) -> Self {
        Self {
            given: None,
            config: Some(path),
        }
    }

    /// What is kept where Docker keeps it: `$DOCKER_CONFIG`, else `~/.docker`.
    pub fn from_env() -> Self {
        let directory = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let config = directory("DOCKER_CONFIG")
            .map(PathBuf::from)
            .or_else(|| directory("HOME").map(|home| PathBuf::from(home).join(".docker")))
            .map(|directory| directory.join("config.json"));
        Self {
            given: None,
            config,
        }
    }

    /// The login for a registry, if there is one.
    pub fn login(&self, registry: &str) -> Result<Option<Login>, CredentialsError> {
        if let Some(given) = &self.given {
            return Ok(Some(given.clone()));
        }
        let Some(path) = &self.config else {
            return Ok(None);
        };
        let fault = |reason: String| CredentialsError::File {
            path: path.display().to_string(),
            reason,
        };
        let Some(bytes) = read(path).map_err(|error| fault(error.to_string()))? else {
            return Ok(None);
        };
        // Its own message would quote what is in the file.
        let config: Config = serde_json::from_slice(&bytes)
            .map_err(|error| fault(format!("line {} is not as it must be", error.line())))?;
        let keys = keys(registry);
        for key in &keys {
            if let Some(helper) = config.cred_helpers.get(key) {
                return ask(helper, key);
            }
        }
        if let Some(helper) = config
            .creds_store
            .as_ref()
            .filter(|helper| !helper.is_empty())
        {
            for key in &keys {
                if let Some(login) = ask(helper, key)? {
                    return Ok(Some(login));
                }
            }
        }
        let of_registry = config
            .auths
            .iter()
            .find(|(name, _)| keys.iter().any(|key| key == *name || *key == host_of(name)));
        match of_registry {
            Some((_, auth)) => login_of(auth).map_err(fault),
            None => Ok(None),
        }
    }
}

fn keys(registry: &str) -> Vec<String> {
    if registry == DEFAULT_REGISTRY {
        DEFAULT_KEYS.map(str::to_owned).to_vec()
    } else {
        vec![registry.to_owned()]
    }
}

/// `https://host/v1/` as older versions kept it.
fn host_of(name: &str) -> &str {
    let name = name
        .strip_prefix("https://")
        .or_else(|| name.strip_prefix("http://"))
        .unwrap_or(name);
    name.split('/').next().unwrap_or(name)
}

fn login_of(auth: &Auth) -> Result<Option<Login>, String> {
    if let Some(token) = auth
        .identitytoken
        .as_ref()
        .filter(|token| !token.is_empty())
    {
        return Ok(Some(Login::IdentityToken(token.clone())));
    }
    if let Some(encoded) = auth.auth.as_ref().filter(|text| !text.is_empty()) {
        let decoded = BASE64
            .decode(encoded.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or("an `auth` is not in base64")?;
        let (username, password) = decoded
            .split_once(':')
            .ok_or("an `auth` holds no name and password")?;
        return Ok(Some(Login::Password {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }));
    }
    Ok(match (&auth.username, &auth.password) {
        (Some(username), Some(password)) => Some(Login::Password {
            username: username.clone(),
            password: password.clone(),
        }),
        _ => None,
    })
}

fn read(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Runs `docker-credential-HELPER get`; one that keeps nothing for the registry says so and fails.
fn ask(helper: &str, registry: &str) -> Result<Option<Login>, CredentialsError> {
    let fault = |reason: &str| CredentialsError::Helper {
        helper: helper.to_owned(),
        reason: reason.to_owned(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if helper.is_empty() || !helper.chars().all(plain) {
        return Err(fault("that is no name of a helper"));
    }
    let failed = |error: std::io::Error| fault(&error.to_string());
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(registry.as_bytes()) {
            // It may know the answer without the question.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            other => other.map_err(failed)?,
        }
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MAX_BYTES)
            .read_to_end(&mut answer)
            .map_err(failed)?;
    }
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(fault(&format!("it ended with {status}")));
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&answer).map_err(|_| fault("it answered something else"))?;
    Ok(Some(if answer.username == "<token>" {
        Login::IdentityToken(answer.secret)
    } else {
        Login::Password {
            username: answer.username,
            password: answer.secret,
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn kept(config: &str) -> (tempfile::TempDir, Credentials) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, config).unwrap();
        (directory, Credentials::from_config(path))
    }

    fn password(username: &str, password: &str) -> Option<Login> {
        Some(Login::Password {
            username: username.into(),
            password: password.into(),
        })
    }

    #[test]
    fn logins_in_every_form_that_docker_writes() {
        let (_dir, credentials) = kept(
            &json!({
                "auths": {
                    "https://index.docker.io/v1/": {"auth": BASE64.encode("me:pa:ss")},
                    "localhost:5000": {"username": "u", "password": "p"},
                    "https://old.example/v1/": {"auth": BASE64.encode("o:p")},
                    "token.example": {"auth": "", "identitytoken": "tok"},
                    "empty.example": {},
                },
                "HttpHeaders": {"User-Agent": "x"},
            })
            .to_string(),
        );
        let login = |registry: &str| credentials.login(registry).unwrap();
        assert_eq!(login("docker.io"), password("me", "pa:ss"));
        assert_eq!(login("localhost:5000"), password("u", "p"));
        assert_eq!(login("old.example"), password("o", "p"));
        assert_eq!(
            login("token.example"),
            Some(Login::IdentityToken("tok".into()))
        );
        assert_eq!(login("empty.example"), None);
        assert_eq!(login("other.example"), None);
        let given = Login::IdentityToken("x".into());
        assert_eq!(
            Credentials::given(given.clone()).login("any").unwrap(),
            Some(given)
        );
    }

    #[test]
    fn no_secret_is_in_an_error() {
        for config in [
            "{\"auths\": {\"h\": {\"auth\": \"s3cret!\"}}}",
            "{\"auths\": {\"h\": {\"auth\": 5, \"password\": \"s3cret\"}}}",
            "s3cret",
        ] {
            let (_dir, credentials) = kept(config);
            let error = credentials.login("h").unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
        let login = password("s3cret", "s3cret");
        assert!(!format!("{login:?}").contains("s3cret"));
    }

    #[test]
    fn a_file_that_is_not_there_keeps_nothing() {
        let credentials = Credentials::from_config("/nonexistent/config.json".into());
        assert_eq!(credentials.login("docker.io").unwrap(), None);
    }

    #[test]
    fn a_helper_that_cannot_be_asked_is_an_error_and_no_path() {
        for helper in ["../../bin/sh", "", "a b"] {
            let config = json!({"credHelpers": {"h": helper}}).to_string();
            let (_dir, credentials) = kept(&config);
            assert!(credentials.login("h").is_err(), "{helper}");
        }
        let (_dir, credentials) = kept(&json!({"credsStore": "iii-none-such"}).to_string());
        let error = credentials.login("h").unwrap_err().to_string();
        assert!(error.contains("docker-credential-iii-none-such"), "{error}");
    }
}
