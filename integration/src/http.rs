//! An HTTP/1.1 client (RFC 9112) that shows what is on the wire: no pool, no retry.

use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// One connection to a server.
pub struct HttpConnection {
    stream: BufReader<TcpStream>,
}

impl HttpConnection {
    /// Connects.
    pub async fn open(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server)
            .await
            .unwrap_or_else(|error| panic!("failed to connect to {server}: {error}"));
        stream.set_nodelay(true).expect("it is a TCP socket");
        let stream = BufReader::new(stream);
        Self { stream }
    }

    /// Asks for `path` and returns status and body. The connection stays open.
    pub async fn get(&mut self, path: &str) -> (u16, Vec<u8>) {
        self.request(path, "keep-alive").await
    }

    /// As [`Self::get`], and the server closes behind its answer.
    pub async fn get_and_close(mut self, path: &str) -> (u16, Vec<u8>) {
        let answer = self.request(path, "close").await;
        let mut rest = Vec::new();
        self.stream
            .read_to_end(&mut rest)
            .await
            .expect("an orderly end");
        assert!(rest.is_empty(), "{} bytes behind the body", rest.len());
        answer
    }

    async fn request(&mut self, path: &str, connection: &str) -> (u16, Vec<u8>) {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: {connection}\r\n\r\n");
        self.stream
            .write_all(request.as_bytes())
            .await
            .unwrap_or_else(|error| panic!("failed to ask for {path}: {error}"));
        let status = self.line(path).await;
        let status = status
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.split(' ').next())
            .and_then(|code| code.parse().ok())
            .unwrap_or_else(|| panic!("no status line but {status:?}"));
        let mut length = None;
        loop {
            let header = self.line(path).await.to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().ok();
            }
        }
        let mut body = vec![0; length.expect("the answer tells its length")];
        self.stream
            .read_exact(&mut body)
            .await
            .unwrap_or_else(|error| panic!("the body of {path} is cut short: {error}"));
        (status, body)
    }

    async fn line(&mut self, path: &str) -> String {
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .await
            .unwrap_or_else(|error| panic!("no answer to {path}: {error}"));
        assert!(line.ends_with("\r\n"), "{path} ended at {line:?}");
        line.truncate(line.len() - 2);
        line
    }
}
