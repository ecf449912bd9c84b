//! Asks a registry for an image's manifests and blobs.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use ureq::http::{Response, StatusCode, header};

use super::challenge::{self, Challenge};
use super::credentials::{Credentials, CredentialsError, Login};
use crate::oci::manifest::{ACCEPTED, MAX_DOCUMENT};
use crate::oci::reference::DEFAULT_REGISTRY;
use crate::oci::{Digest, Reference};

/// The host that is the default registry.
const DEFAULT_HOST: &str = "registry-1.docker.io";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Between two pieces of an answer: a registry that went silent.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Most bytes of an error or a token.
const MAX_ANSWER: u64 = 1 << 20;
/// Longest text of a registry that is passed on to a user.
const MAX_SAID: usize = 300;

/// Why a registry did not answer as it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// It cannot be reached, or breaks off.
    #[error("failed to reach the registry {registry}: {reason}")]
    Unreachable {
        /// Its name.
        registry: String,
        /// Why.
        reason: String,
    },
    /// It wants a login that there is none for, or refuses the one there is.
    #[error("failed to log in to the registry {registry}: {reason}; {remedy}")]
    Denied {
        /// Its name.
        registry: String,
        /// What it said.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// It does not have what it was asked for.
    #[error(
        "failed to find {what} in the registry {registry}{reason}; check its name, and that this user may see it"
    )]
    Missing {
        /// Its name.
        registry: String,
        /// What it was asked for.
        what: String,
        /// What it said.
        reason: String,
    },
    /// Any other answer than success.
    #[error("failed to get {what} from the registry {registry}: it answered {status}{reason}")]
    Status {
        /// Its name.
        registry: String,
        /// What it was asked for.
        what: String,
        /// The status.
        status: u16,
        /// What it said.
        reason: String,
        /// It may answer otherwise when it is asked again, after so many seconds.
        again: Option<u64>,
    },
    /// Success with something else than what was asked for.
    #[error("failed to accept {what} from the registry {registry}: {reason}")]
    Answer {
        /// Its name.
        registry: String,
        /// What it was asked for.
        what: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// What is kept about this user.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl RegistryError {
    /// Whether the same question may get another answer, and after how many seconds.
    pub fn again(&self) -> Option<Option<u64>> {
        match self {
            Self::Unreachable { .. } => Some(None),
            Self::Status { again, .. } => again.map(Some),
            Self::Denied { .. }
            | Self::Missing { .. }
            | Self::Answer { .. }
            | Self::Credentials(_) => None,
        }
    }
}

/// How registries are spoken to.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Who this user is.
    pub credentials: Credentials,
    /// Registries, `host` or `host:port`, that may be spoken to without TLS.
    pub insecure: BTreeSet<String>,
}

/// A registry and one repository in it.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    registry: String,
    base: String,
    repository: String,
    plain: bool,
    login: Option<Login>,
    /// The header that the registry was content with last.
    authorization: Mutex<Option<String>>,
}

/// A blob's bytes.
pub struct Body {
    /// Which of its bytes comes first.
    pub from: u64,
    /// The bytes, to the end of the blob or of the connection.
    pub reader: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("from", &self.from)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client for the image's repository.
    pub fn new(image: &Reference, options: &RegistryOptions) -> Result<Self, RegistryError> {
        let registry = image.registry();
        let host = if registry == DEFAULT_REGISTRY {
            DEFAULT_HOST
        } else {
            registry
        };
        let may_be_plain = is_loopback(host) || options.insecure.contains(registry);
        let plain = may_be_plain && answers_plainly(host);
        let scheme = if plain { "http" } else { "https" };
        Ok(Self {
            agent: agent(!plain),
            registry: registry.to_owned(),
            base: format!("{scheme}://{host}/v2"),
            repository: image.repository().to_owned(),
            plain,
            login: options.credentials.login(registry)?,
            authorization: Mutex::new(None),
        })
    }

    /// A manifest or an index by tag or digest, as it lies there. Its digest is not checked.
    pub fn document(&self, wanted: &str) -> Result<Vec<u8>, RegistryError> {
        let what = format!("the image {}:{wanted}", self.repository);
        let url = format!("{}/{}/manifests/{wanted}", self.base, self.repository);
        let response = self.get(&url, &what, Some(&ACCEPTED.join(", ")), 0)?;
        self.bounded(response, MAX_DOCUMENT, &what)
    }

    /// A blob's bytes from `from` on; a registry that cannot do that begins with the first.
    pub fn blob(&self, digest: &Digest, from: u64) -> Result<Body, RegistryError> {
        let what = format!("the blob {digest}");
        let url = format!("{}/{}/blobs/{digest}", self.base, self.repository);
        let response = self.get(&url, &what, None, from)?;
        let from = match response.status() {
            StatusCode::PARTIAL_CONTENT => range_start(&response)
                .filter(|start| *start == from)
                .ok_or_else(|| self.odd(&what, "it is another part than was asked for"))?,
            _ => 0,
        };
        Ok(Body {
            from,
            reader: Box::new(response.into_body().into_reader()),
        })
    }

    fn get(
        &self,
        url: &str,
        what: &str,
        accept: Option<&str>,
        from: u64,
    ) -> Result<Response<ureq::Body>, RegistryError> {
        let kept = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let response = self.send(url, accept, from, kept.as_deref())?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.successful(response, what);
        }
        // Tokens live for minutes, downloads longer.
        let challenge = response
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|header| challenge::parse(header.to_str().ok()?))
            .next();
        let authorization = match challenge {
            Some(challenge) => self.authorize(challenge)?,
            None => None,
        };
        let Some(authorization) = authorization else {
            return self.successful(response, what);
        };
        let response = self.send(url, accept, from, Some(&authorization))?;
        let response = self.successful(response, what)?;
        *self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        Ok(response)
    }

    fn send(
        &self,
        url: &str,
        accept: Option<&str>,
        from: u64,
        authorization: Option<&str>,
    ) -> Result<Response<ureq::Body>, RegistryError> {
        let mut request = self.agent.get(url);
        if let Some(accept) = accept {
            request = request.header(header::ACCEPT, accept);
        }
        if from > 0 {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request.call().map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &ureq::Error) -> RegistryError {
        RegistryError::Unreachable {
            registry: self.registry.clone(),
            reason: error.to_string(),
        }
    }

    fn odd(&self, what: &str, reason: &'static str) -> RegistryError {
        RegistryError::Answer {
            registry: self.registry.clone(),
            what: what.to_owned(),
            reason,
        }
    }

    /// The header that answers a challenge; `None`: there is nothing to show.
    fn authorize(&self, challenge: Challenge) -> Result<Option<String>, RegistryError> {
        match challenge {
            Challenge::Basic => Ok(self.basic()),
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let token = self.token(&realm, service.as_deref(), scope.as_deref())?;
                Ok(Some(format!("Bearer {token}")))
            }
        }
    }

    fn basic(&self) -> Option<String> {
        match &self.login {
            Some(Login::Password { username, password }) => {
                let encoded = BASE64.encode(format!("{username}:{password}"));
                Some(format!("Basic {encoded}"))
            }
            Some(Login::IdentityToken(_)) | None => None,
        }
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
    ) -> Result<String, RegistryError> {
        // A registry must not make us show a password to the network.
        let safe = realm.starts_with("https://") || (self.plain && realm.starts_with("http://"));
        if !safe {
            return Err(self.odd("a token", "its token server is not reached by https"));
        }
        let own = format!("repository:{}:pull", self.repository);
        let scope = scope.unwrap_or(&own);
        let response = match &self.login {
            Some(Login::IdentityToken(token)) => {
                let mut form = vec![
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token),
                    ("client_id", "iii-super"),
                    ("scope", scope),
                ];
                form.extend(service.map(|service| ("service", service)));
                self.agent.post(realm).send_form(form)
            }
            Some(Login::Password { .. }) | None => {
                let mut request = self.agent.get(realm).query("scope", scope);
                if let Some(service) = service {
                    request = request.query("service", service);
                }
                if let Some(basic) = self.basic() {
                    request = request.header(header::AUTHORIZATION, basic);
                }
                request.call()
            }
        };
        let response = response.map_err(|error| self.unreachable(&error))?;
        let response = self.successful(response, "a token")?;
        let bytes = self.bounded(response, MAX_ANSWER, "a token")?;
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let answer: Answer = serde_json::from_slice(&bytes)
            .map_err(|_| self.odd("a token", "it is something else"))?;
        let token = answer.token.or(answer.access_token).unwrap_or_default();
        // It goes into a header.
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(self.odd("a token", "it is something else"));
        }
        Ok(token)
    }

    fn successful(
        &self,
        response: Response<ureq::Body>,
        what: &str,
    ) -> Result<Response<ureq::Body>, RegistryError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let wait = response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        let mut said = Vec::new();
        // What it says is a courtesy; without it there is still the status.
        response
            .into_body()
            .into_reader()
            .take(MAX_ANSWER)
            .read_to_end(&mut said)
            .ok();
        let said = said_of(&said);
        let reason = said
            .as_ref()
            .map_or_else(String::new, |said| format!(": {said}"));
        let registry = self.registry.clone();
        let what = what.to_owned();
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
                registry,
                reason: said.unwrap_or_else(|| format!("it answered {}", status.as_u16())),
                remedy: if self.login.is_some() {
                    "check the name, the password and what this user may see"
                } else {
                    "give `--username` and `--password-stdin`, or log in with `docker login`"
                },
            },
            StatusCode::NOT_FOUND => RegistryError::Missing {
                registry,
                what,
                reason,
            },
            // Bytes were asked for that were announced.
            StatusCode::RANGE_NOT_SATISFIABLE => RegistryError::Answer {
                registry,
                what,
                reason: "it has fewer bytes than were announced",
            },
            status => RegistryError::Status {
                registry,
                what,
                status: status.as_u16(),
                reason,
                again: (status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error())
                    .then_some(wait.unwrap_or(0)),
            },
        })
    }

    fn bounded(
        &self,
        response: Response<ureq::Body>,
        most: u64,
        what: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(most + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| RegistryError::Unreachable {
                registry: self.registry.clone(),
                reason: error.to_string(),
            })?;
        if bytes.len() as u64 > most {
            return Err(self.odd(what, "it is larger than any real one"));
        }
        Ok(bytes)
    }
}

fn agent(https_only: bool) -> ureq::Agent {
    ureq::Agent::config_builder()
        .https_only(https_only)
        .http_status_as_error(false)
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(STALL_TIMEOUT))
        .timeout_per_read(Some(STALL_TIMEOUT))
        .user_agent(concat!("iii-super/", env!("CARGO_PKG_VERSION")))
        .tls_config(
            ureq::tls::TlsConfig::builder()
                .root_certs(ureq::tls::RootCerts::PlatformVerifier)
                .build(),
        )
        .build()
        .into()
}

fn is_loopback(host: &str) -> bool {
    let host = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether a registry that may be spoken to without TLS has to be: one with it answers 400 to what
/// is not. Nothing secret is in the question.
fn answers_plainly(host: &str) -> bool {
    let asked = agent(false).get(format!("http://{host}/v2/")).call();
    match asked {
        Ok(response) => response.status() != StatusCode::BAD_REQUEST,
        // Then the error is told by what is really asked.
        Err(_) => true,
    }
}

/// The first byte of a partial answer.
fn range_start(response: &Response<ureq::Body>) -> Option<u64> {
    let range = response
        .headers()
        .get(header::CONTENT_RANGE)?
        .to_str()
        .ok()?;
    range
        .strip_prefix("bytes ")?
        .split('-')
        .next()?
        .parse()
        .ok()
}

/// What a registry says about an error, fit to be shown.
fn said_of(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        errors: Vec<One>,
    }
    #[derive(Deserialize)]
    struct One {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let answer: Answer = serde_json::from_slice(bytes).ok()?;
    let one = answer.errors.into_iter().next()?;
    let text = if one.message.is_empty() {
        one.code
    } else {
        one.message
    };
    let shown: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_SAID)
        .collect();
    (!shown.is_empty()).then_some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.8.8.8",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example",
            "10.0.0.1:5000",
            "registry-1.docker.io",
            "[::2]:1",
            "x",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn what_a_registry_says_is_shown_without_its_tricks() {
        let said = said_of(b"{\"errors\":[{\"code\":\"X\",\"message\":\"no\\u001b[2J such\"}]}");
        assert_eq!(said.unwrap(), "no[2J such");
        assert_eq!(
            said_of(b"{\"errors\":[{\"code\":\"DENIED\"}]}").unwrap(),
            "DENIED"
        );
        for nothing in [
            &b""[..],
            b"<html>",
            b"{\"errors\":[]}",
            b"{\"errors\":[{}]}",
        ] {
            assert_eq!(said_of(nothing), None);
        }
        let long = format!("{{\"errors\":[{{\"message\":\"{}\"}}]}}", "x".repeat(9000));
        assert_eq!(said_of(long.as_bytes()).unwrap().len(), MAX_SAID);
    }
}
