//! A real DNS server on the host's loopback: dnsmasq.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// dnsmasq lies where an ordinary user's PATH does not lead.
const PLACES: [&str; 2] = ["/usr/sbin/dnsmasq", "/usr/local/sbin/dnsmasq"];
/// Free ports that others have taken before the server could.
const ATTEMPTS: usize = 10;

/// A running server.
pub struct Upstream {
    child: Child,
    records: String,
    directory: TempDir,
    /// Where it answers, UDP and TCP.
    pub address: SocketAddr,
}

impl Upstream {
    /// Starts a server that knows these records, in dnsmasq's words, and asks nobody else.
    pub async fn start(records: &str) -> Self {
        let directory = tempfile::tempdir().expect("the host has room for a directory");
        for _ in 0..ATTEMPTS {
            let address = free_port();
            if let Ok(child) = spawn(&directory, records, address).await {
                let records = records.to_owned();
                return Self {
                    child,
                    records,
                    directory,
                    address,
                };
            }
        }
        panic!("dnsmasq does not start");
    }

    /// Stops it from answering, while its sockets stay open.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("it runs");
        let pid = Pid::from_raw(i32::try_from(id).expect("process ids are small"));
        kill(pid, signal).expect("it is a child of ours");
    }

    /// Ends it: its port is closed.
    pub async fn kill(&mut self) {
        self.child.kill().await.expect("it is a child of ours");
    }

    /// Starts it again where it was.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.directory, &self.records, self.address)
            .await
            .unwrap_or_else(|output| panic!("dnsmasq does not start again: {output}"));
    }
}

/// A port that is free for UDP and TCP just now.
fn free_port() -> SocketAddr {
    loop {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("the host has a free port");
        let address = udp.local_addr().expect("it is bound");
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Resolves once it answers, or to what it said instead.
async fn spawn(directory: &TempDir, records: &str, address: SocketAddr) -> Result<Child, String> {
    let program = PLACES
        .into_iter()
        .find(|place| std::path::Path::new(place).exists())
        .expect("install dnsmasq: apt-get install dnsmasq-base");
    let file = directory.path().join("dnsmasq.conf");
    let config = format!(
        "port={}\nlisten-address={}\nbind-interfaces\nno-resolv\nno-hosts\n{records}\n",
        address.port(),
        address.ip()
    );
    std::fs::write(&file, config).expect("the host has room for a file");
    let mut child = Command::new(program)
        .arg("--no-daemon")
        .arg(format!("--conf-file={}", file.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("dnsmasq can be executed");
    let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
    let mut said = String::new();
    while let Ok(Some(line)) = lines.next_line().await {
        said += &format!("{line}\n");
        // Said once its sockets are bound.
        if line.contains("started, version") {
            // It goes on talking, and must not stop at a full or broken pipe.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok(child);
        }
    }
    Err(said)
}
