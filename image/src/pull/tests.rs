//! Pulls from a stand-in for a registry, which says what a real one would not.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;

use super::*;
use crate::registry::{Credentials, Login};
use crate::testing::{Built, descriptor, gzip, image, layer};

#[derive(Clone, Debug)]
struct Request {
    method: String,
    /// With its query.
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// Status, headers and body; the body may be shorter than announced.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    announced: Option<u64>,
}

fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
    Answer {
        status,
        headers: Vec::new(),
        body: body.into(),
        announced: None,
    }
}

impl Answer {
    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Requests = Arc<Mutex<Vec<Request>>>;

/// Answers until the test ends.
struct StandIn {
    port: u16,
    requests: Requests,
}

impl StandIn {
    fn new(how: impl Fn(&Request, u16) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Requests::default();
        let (how, seen) = (Arc::new(how), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (how, seen) = (how.clone(), seen.clone());
                std::thread::spawn(move || {
                    while let Some(request) = read(&stream) {
                        seen.lock().unwrap().push(request.clone());
                        if !write(&stream, how(&request, port)) {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, requests }
    }

    /// Of this image, under any name; `change` has the first word.
    fn of(
        built: Built,
        change: impl Fn(&Request, u16) -> Option<Answer> + Send + Sync + 'static,
    ) -> Self {
        let blobs: BTreeMap<String, Vec<u8>> = built
            .blobs()
            .map(|blob| (Digest::of(blob).to_string(), blob.clone()))
            .collect();
        Self::new(move |request, port| {
            if let Some(answer) = change(request, port) {
                return answer;
            }
            let last = request.path.rsplit('/').next().unwrap();
            if request.path == "/v2/" {
                answer(200, "{}")
            } else if let Some(blob) = blobs.get(last) {
                ranged(request, blob)
            } else if request.path.contains("/manifests/") {
                answer(200, built.manifest.clone())
            } else {
                answer(404, "{}")
            }
        })
    }

    fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    fn requests(&self, holding: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        let holds = |request: &&Request| request.path.contains(holding);
        requests.iter().filter(holds).cloned().collect()
    }
}

fn ranged(request: &Request, blob: &[u8]) -> Answer {
    let from = request.header("range").and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    match from {
        Some(from) => answer(206, &blob[from..]).with(
            "content-range",
            format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()),
        ),
        None => answer(200, blob),
    }
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).unwrap();
    Some(Request {
        method,
        path,
        headers,
        body,
    })
}

/// False: the connection is to be closed, since less came than was announced.
fn write(mut stream: &TcpStream, answer: Answer) -> bool {
    let length = answer.announced.unwrap_or(answer.body.len() as u64);
    let mut head = format!(
        "HTTP/1.1 {} X\r\ncontent-length: {length}\r\n",
        answer.status
    );
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let bytes = [head.as_bytes(), b"\r\n", &answer.body].concat();
    stream.write_all(&bytes).is_ok() && length == answer.body.len() as u64
}

struct Case {
    _directory: tempfile::TempDir,
    puller: Puller,
}

fn case() -> Case {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(directory.path()).unwrap();
    Case {
        puller: Puller::new(store, RegistryOptions::default()),
        _directory: directory,
    }
}

impl Case {
    fn pull(&self, name: &str) -> Result<Image, PullError> {
        self.puller
            .pull(&name.parse().unwrap(), &())
            .map(|(image, _)| image)
    }

    /// Why nothing came of it, and nothing is left of it.
    fn refused(&self, name: &str) -> String {
        let error = self.pull(name).unwrap_err();
        assert!(self.puller.store.records().unwrap().is_empty());
        let roots = self.puller.store.directory().join("roots");
        assert_eq!(std::fs::read_dir(roots).unwrap().count(), 0);
        error.to_string()
    }
}

fn small() -> Built {
    let files = layer().dir("etc/").file("etc/a", "text");
    image(
        vec![files, layer().file("b", "more")],
        json!({"Cmd": ["/b"]}),
    )
}

fn password() -> Login {
    Login::Password {
        username: "me".into(),
        password: "s3cret".into(),
    }
}

#[test]
fn a_token_is_fetched_shown_and_fetched_again_when_it_has_expired() {
    let served = Arc::new(Mutex::new(0));
    let expires = served.clone();
    let registry = StandIn::of(small(), move |request, port| {
        if request.path.starts_with("/token") {
            let mut served = served.lock().unwrap();
            *served += 1;
            return Some(answer(
                200,
                json!({"token": format!("t{served}")}).to_string(),
            ));
        }
        if request.path == "/v2/" {
            return None;
        }
        // The first is good for the manifest alone.
        let good = match *expires.lock().unwrap() {
            1 => "Bearer t1",
            _ => "Bearer t2",
        };
        let is_blob = request.path.contains("/blobs/");
        if request.header("authorization") == Some(good) && (good != "Bearer t1" || !is_blob) {
            return None;
        }
        let challenge = format!(
            "Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"here\",scope=\"repository:team/app:pull\""
        );
        Some(answer(401, "{}").with("www-authenticate", challenge))
    });
    let mut case = case();
    case.puller.registry.credentials = Credentials::given(password());
    case.pull(&registry.name("team/app:1")).unwrap();
    let tokens = registry.requests("/token");
    assert!(tokens.len() >= 2, "{}", tokens.len());
    for token in tokens {
        let basic = format!("Basic {}", BASE64.encode("me:s3cret"));
        assert_eq!(token.header("authorization"), Some(&*basic));
        assert!(token.path.contains("service=here"), "{}", token.path);
        assert!(
            token.path.contains("repository%3Ateam%2Fapp%3Apull"),
            "{}",
            token.path
        );
    }
    // The password goes to the token server alone.
    for request in registry.requests("/v2/") {
        assert!(
            !request
                .header("authorization")
                .unwrap_or("")
                .starts_with("Basic")
        );
    }
}

#[test]
fn an_identity_token_is_changed_into_a_token() {
    let registry = StandIn::of(small(), |request, port| {
        if request.path == "/token" {
            let sound = request.method == "POST" && request.body.contains("refresh_token=identity");
            let token = json!({"access_token": "t"}).to_string();
            return Some(answer(if sound { 200 } else { 400 }, token));
        }
        let known = request.path == "/v2/" || request.header("authorization") == Some("Bearer t");
        let challenge = format!("Bearer realm=\"http://127.0.0.1:{port}/token\"");
        (!known).then(|| answer(401, "{}").with("www-authenticate", challenge))
    });
    let mut case = case();
    case.puller.registry.credentials = Credentials::given(Login::IdentityToken("identity".into()));
    case.pull(&registry.name("app")).unwrap();
}

#[test]
fn what_is_no_token_is_not_shown_to_anybody() {
    for token in [
        "{}",
        "[]",
        "{\"token\":\"\"}",
        "{\"token\":\"a\\r\\nX: y\"}",
        "{\"token\":5}",
    ] {
        let registry = StandIn::of(small(), move |request, port| {
            if request.path.starts_with("/token") {
                return Some(answer(200, token));
            }
            let challenge = format!("Bearer realm=\"http://127.0.0.1:{port}/token\"");
            (request.path != "/v2/").then(|| answer(401, "").with("www-authenticate", challenge))
        });
        let error = case().refused(&registry.name("app"));
        assert!(error.contains("failed to accept a token"), "{error}");
    }
    let registry = StandIn::of(small(), |request, _| {
        let challenge = "Bearer realm=\"file:///etc/passwd\"";
        (request.path != "/v2/").then(|| answer(401, "").with("www-authenticate", challenge))
    });
    let error = case().refused(&registry.name("app"));
    assert!(error.contains("token server"), "{error}");
}

#[test]
fn a_login_does_not_follow_where_blobs_are_kept() {
    let built = small();
    let blobs: Vec<Vec<u8>> = built.blobs().cloned().collect();
    let elsewhere = StandIn::new(move |request, _| {
        let found = blobs
            .iter()
            .find(|blob| request.path.ends_with(&Digest::of(blob).hex()));
        found.map_or_else(|| answer(404, ""), |blob| ranged(request, blob))
    });
    let port = elsewhere.port;
    let registry = StandIn::of(built, move |request, _| {
        let basic = format!("Basic {}", BASE64.encode("me:s3cret"));
        if request.path != "/v2/" && request.header("authorization") != Some(&*basic) {
            return Some(answer(401, "").with("www-authenticate", "Basic realm=x"));
        }
        let digest = request.path.split("/blobs/sha256:").nth(1)?;
        // Another name of the same host is another host.
        let target = format!("http://localhost:{port}/{digest}");
        Some(answer(307, "").with("location", target))
    });
    let mut case = case();
    case.puller.registry.credentials = Credentials::given(password());
    case.pull(&registry.name("app")).unwrap();
    let followed = elsewhere.requests("");
    assert!(followed.len() >= 3, "{}", followed.len());
    for request in followed {
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
fn a_registry_that_is_busy_is_asked_again() {
    let count = Mutex::new(0);
    let registry = StandIn::of(small(), move |request, _| {
        let mut count = count.lock().unwrap();
        *count += 1;
        (request.path != "/v2/" && *count % 2 == 0)
            .then(|| answer(if *count % 4 == 0 { 503 } else { 429 }, "").with("retry-after", "0"))
    });
    case().pull(&registry.name("app")).unwrap();
}

#[test]
fn a_registry_that_knows_no_ranges_begins_again() {
    let built = image(
        vec![layer().file("large", &"x y z ".repeat(50_000))],
        json!({}),
    );
    let large = built.layers[0].clone();
    let name = Digest::of(&large).to_string();
    let first = Mutex::new(true);
    let registry = StandIn::of(built, move |request, _| {
        if !request.path.ends_with(&name) {
            return None;
        }
        let whole = large.len() as u64;
        let cut = std::mem::take(&mut *first.lock().unwrap());
        let body = if cut {
            &large[..large.len() / 2]
        } else {
            &large[..]
        };
        Some(Answer {
            announced: Some(whole),
            ..answer(200, body)
        })
    });
    case().pull(&registry.name("app")).unwrap();
    let ranges = registry.requests("/blobs/");
    assert!(
        ranges
            .iter()
            .any(|request| request.header("range").is_some())
    );
}

#[test]
fn what_is_larger_than_announced_or_than_anything_real_is_cut_off() {
    let registry = StandIn::of(small(), |request, _| {
        let body = vec![b' '; (manifest::MAX_DOCUMENT + 1) as usize];
        request
            .path
            .contains("/manifests/")
            .then(|| answer(200, body))
    });
    let error = case().refused(&registry.name("app"));
    assert!(error.contains("larger than any real one"), "{error}");

    let built = small();
    let layer = Digest::of(&built.layers[0]).to_string();
    let registry = StandIn::of(built, move |request, _| {
        request
            .path
            .ends_with(&layer)
            .then(|| answer(200, vec![7; 1 << 20]))
    });
    let error = case().refused(&registry.name("app"));
    assert!(error.contains("more than the"), "{error}");
}

#[test]
fn another_manifest_than_was_pinned_is_refused() {
    let registry = StandIn::of(small(), |_, _| None);
    let pinned = format!("app@{}", Digest::of(b"another"));
    let error = case().refused(&registry.name(&pinned));
    assert!(error.contains("nothing of it was used"), "{error}");
}

#[test]
fn the_image_for_this_host_is_chosen_from_an_index() {
    let built = small();
    let host = Platform::of_host();
    let of = |architecture: &str, bytes: &[u8]| {
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", bytes);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    };
    let index = |entries: Vec<serde_json::Value>| {
        serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": entries})).unwrap()
    };
    let manifest = built.manifest.clone();
    let nested = index(vec![]);
    let documents = [
        (
            "good",
            index(vec![
                of("s390x", b"other"),
                of(&host.architecture, &manifest),
            ]),
        ),
        ("other", index(vec![of("s390x", b"other")])),
        ("nested", index(vec![of(&host.architecture, &nested)])),
        (&*Digest::of(&nested).to_string().leak(), nested),
        ("forged", index(vec![of(&host.architecture, b"another")])),
    ];
    let registry = StandIn::of(built, move |request, _| {
        let tag = request.path.split("/manifests/").nth(1)?;
        let found = documents.iter().find(|(name, _)| *name == tag)?;
        Some(answer(200, found.1.clone()))
    });
    for (tag, expected) in [
        ("other", "there are only linux/s390x"),
        ("nested", "another index"),
        ("forged", "nothing of it was used"),
    ] {
        let error = case().refused(&registry.name(&format!("app:{tag}")));
        assert!(error.contains(expected), "{error}");
    }
    case().pull(&registry.name("app:good")).unwrap();
}

#[test]
fn layers_that_are_not_what_the_configuration_says_are_refused() {
    // Otherwise one image could be made to stand in the store for another.
    let mut built = small();
    let forged = gzip(&layer().file("etc/a", "forged").0);
    let text = String::from_utf8(built.manifest.clone()).unwrap();
    let text = text.replace(
        &Digest::of(&built.layers[0]).hex(),
        &Digest::of(&forged).hex(),
    );
    let size = format!("\"size\":{}", built.layers[0].len());
    built.manifest = text
        .replace(&size, &format!("\"size\":{}", forged.len()))
        .into_bytes();
    built.layers[0] = forged;
    let registry = StandIn::of(built, |_, _| None);
    let case = case();
    let error = case.refused(&registry.name("app"));
    assert!(
        error.contains("and the image's configuration says"),
        "{error}"
    );
    // The next pull does not find the same blob again.
    let blobs = std::fs::read_dir(case.puller.store.directory().join("blobs")).unwrap();
    assert!(blobs.count() <= 2);

    let mut built = small();
    let text = String::from_utf8(built.config.clone()).unwrap();
    let plain = &built.plain_layers[1];
    let config = text.replace(&format!(",\"{}\"", Digest::of(plain)), "");
    let manifest = String::from_utf8(built.manifest.clone()).unwrap();
    let manifest = manifest.replace(
        &Digest::of(&built.config).hex(),
        &Digest::of(config.as_bytes()).hex(),
    );
    let size = format!("\"size\":{}", built.config.len());
    built.manifest = manifest
        .replace(&size, &format!("\"size\":{}", config.len()))
        .into_bytes();
    built.config = config.into_bytes();
    let registry = StandIn::of(built, |_, _| None);
    let error = self::case().refused(&registry.name("app"));
    assert!(
        error.contains("disagree on the number of layers"),
        "{error}"
    );
}

#[test]
fn an_archive_that_wants_out_is_refused_and_leaves_nothing() {
    for bad in [
        layer().file("../../../../tmp/out", "x"),
        layer().file("ok", "x").link("l", "/etc/shadow"),
        layer().symlink("a", "a").file("a/b", "x"),
    ] {
        let registry = StandIn::of(image(vec![bad], json!({})), |_, _| None);
        let error = case().refused(&registry.name("app"));
        assert!(error.contains("failed to unpack"), "{error}");
    }
}
