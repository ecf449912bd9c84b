//! The release asset, over HTTPS.

use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use super::FetchError;
use crate::digest::HashingWriter;
use crate::install::InstallError;
use crate::known::KnownLibrary;
use crate::progress::Progress;

/// Names and connections: a host that cannot be reached must not hold up the next source.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The answer's header.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two pieces of the body.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The whole body: ends the reader of a stalled connection.
const BODY_TIMEOUT: Duration = Duration::from_secs(1800);

pub(super) fn fetch(
    known: &'static KnownLibrary,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    progress.phase("downloading libkrunfw from the project's release");
    fetch_from(known.release_url, known, scratch, STALL_TIMEOUT, progress)
}

fn fetch_from(
    url: &str,
    known: &'static KnownLibrary,
    scratch: &Path,
    stall_timeout: Duration,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    let fault = |reason: String| FetchError::Http {
        url: url.to_owned(),
        reason,
    };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(RESPONSE_TIMEOUT))
        .timeout_recv_body(Some(BODY_TIMEOUT))
        .user_agent(concat!("iii-super/", env!("CARGO_PKG_VERSION")))
        .tls_config(
            ureq::tls::TlsConfig::builder()
                .root_certs(ureq::tls::RootCerts::PlatformVerifier)
                .build(),
        )
        .build()
        .into();
    let response = agent
        .get(url)
        .call()
        .map_err(|error| fault(error.to_string()))?;
    let body = response.into_body().into_reader();

    let path = scratch.join("release-asset");
    let io = |error| FetchError::Install(InstallError::new("write", &path, error));
    let mut writer = HashingWriter::new(File::create(&path).map_err(io)?);
    progress.bytes(0, Some(known.size));
    read_watched(body, stall_timeout, |piece| {
        if writer.written() + piece.len() as u64 > known.size {
            return Err(FetchError::TooLarge {
                what: url.to_owned(),
                size: known.size,
            });
        }
        writer.write_all(piece).map_err(io)?;
        progress.bytes(writer.written(), Some(known.size));
        Ok(())
    })
    .map_err(|error| match error {
        ReadError::Fetch(error) => error,
        ReadError::Body(reason) => fault(reason),
    })?;
    let found = writer.finish();
    if found.to_string() != known.sha256 {
        return Err(FetchError::Digest {
            what: url.to_owned(),
            found,
            wanted: known.sha256,
        });
    }
    Ok(path)
}

enum ReadError {
    Body(String),
    Fetch(FetchError),
}

/// Passes what `body` gives to `accept`, and gives up when nothing comes for `stall_timeout`. The
/// HTTP client bounds only the body as a whole, which is no help against a connection that went
/// silent; so a thread reads, and is left to its end by the body's own time-out.
fn read_watched(
    mut body: impl Read + Send + 'static,
    stall_timeout: Duration,
    mut accept: impl FnMut(&[u8]) -> Result<(), FetchError>,
) -> Result<(), ReadError> {
    let (sender, receiver) = sync_channel::<std::io::Result<Vec<u8>>>(4);
    std::thread::Builder::new()
        .name("iii-download".to_owned())
        .spawn(move || {
            loop {
                let mut piece = vec![0; 1 << 16];
                let read = body.read(&mut piece);
                let end = !matches!(read, Ok(1..));
                let message = read.map(|n| {
                    piece.truncate(n);
                    piece
                });
                // A receiver that is gone has given up.
                if sender.send(message).is_err() || end {
                    return;
                }
            }
        })
        .map_err(|error| ReadError::Body(format!("no thread to read with: {error}")))?;
    loop {
        match receiver.recv_timeout(stall_timeout) {
            Ok(Ok(piece)) if piece.is_empty() => return Ok(()),
            Ok(Ok(piece)) => accept(&piece).map_err(ReadError::Fetch)?,
            Ok(Err(error)) => return Err(ReadError::Body(error.to_string())),
            Err(RecvTimeoutError::Timeout) => {
                let seconds = stall_timeout.as_secs();
                return Err(ReadError::Body(format!("nothing came for {seconds} s")));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(ReadError::Body(
                    "the reader ended without a word".to_owned(),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::net::{TcpListener, TcpStream};
    use std::thread::JoinHandle;

    use super::super::tests::known;
    use super::*;

    const BODY: &[u8] = b"the library";

    /// Answers one request with these bytes; the connection stays open until the test ends.
    fn serve(answer: Vec<u8>) -> (String, JoinHandle<TcpStream>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/asset", listener.local_addr().expect("bound"));
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let reader = BufReader::new(stream.try_clone().expect("cloned"));
            reader
                .lines()
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .for_each(drop);
            stream.write_all(&answer).expect("sent");
            stream
        });
        (url, served)
    }

    fn answer(status: &str, length: usize, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn fetched(answer: Vec<u8>, stall: Duration) -> Result<Vec<u8>, FetchError> {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let (url, served) = serve(answer);
        let path = fetch_from(&url, known(BODY), scratch.path(), stall, &());
        served.join().expect("served");
        Ok(std::fs::read(path?).expect("readable"))
    }

    const PATIENT: Duration = Duration::from_secs(60);

    #[test]
    fn the_pinned_bytes_are_accepted() {
        let body = fetched(answer("200 OK", BODY.len(), BODY), PATIENT).expect("accepted");
        assert_eq!(body, BODY);
    }

    #[test]
    fn other_bytes_are_refused_by_digest_and_by_size() {
        let other = fetched(answer("200 OK", BODY.len(), b"the lIbrary"), PATIENT);
        let error = other.expect_err("other bytes");
        assert!(matches!(error, FetchError::Digest { .. }), "{error}");
        let longer = [BODY, b"!"].concat();
        let error = fetched(answer("200 OK", longer.len(), &longer), PATIENT).expect_err("longer");
        assert!(matches!(error, FetchError::TooLarge { .. }), "{error}");
        let error = fetched(answer("200 OK", 3, b"the"), PATIENT).expect_err("shorter");
        assert!(matches!(error, FetchError::Digest { .. }), "{error}");
    }

    #[test]
    fn an_error_of_the_server_is_told() {
        let error = fetched(answer("404 Not Found", 0, b""), PATIENT).expect_err("no such asset");
        assert!(error.to_string().contains("404"), "{error}");
    }

    #[test]
    fn a_connection_that_goes_silent_is_given_up() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let (url, served) = serve(answer("200 OK", BODY.len(), b"the"));
        let error = fetch_from(
            &url,
            known(BODY),
            scratch.path(),
            Duration::from_millis(50),
            &(),
        )
        .expect_err("silent");
        assert!(error.to_string().contains("nothing came"), "{error}");
        drop(served.join().expect("served"));
    }

    #[test]
    fn a_body_that_breaks_off_is_an_error() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let (url, served) = serve(answer("200 OK", BODY.len(), b"the"));
        let closer = std::thread::spawn(move || drop(served.join().expect("served")));
        let error = fetch_from(&url, known(BODY), scratch.path(), PATIENT, &()).expect_err("cut");
        assert!(matches!(error, FetchError::Http { .. }), "{error}");
        closer.join().expect("closed");
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error() {
        let scratch = tempfile::tempdir().expect("temporary directory");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/asset", listener.local_addr().expect("bound"));
        drop(listener);
        let error = fetch_from(&url, known(BODY), scratch.path(), PATIENT, &()).expect_err("gone");
        assert!(error.to_string().contains(&url), "{error}");
    }
}
