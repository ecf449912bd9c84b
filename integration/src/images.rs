//! Images and registries for tests, made by other tools than are tested: layers by the `tar` crate,
//! images by umoci, registries by Docker's own, filled by skopeo.

// This is test code: an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::program::eventually;

/// Who may pull from a registry with logins.
pub const LOGIN: (&str, &str) = ("iii", "open sesame");
/// The login in the form that the registry takes (bcrypt).
const HTPASSWD: &str = "iii:$2y$05$UQedHMTcR403z65LWv9u2.zmiPJ0bp34hiLdGpXxahLY2xzBxeMuC\n";
/// The tag within layouts.
const TAG: &str = "app";

/// A layer under construction.
pub struct Layer(Builder<Vec<u8>>);

impl Default for Layer {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Layer {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A static busybox under the names of what scripts need.
    pub fn busybox() -> Self {
        let program = fs::read("/bin/busybox").expect("apt-get install busybox-static");
        let mut layer = Self::new()
            .directory("bin", 0o755, 0)
            .directory("tmp", 0o1777, 0)
            .file("bin/busybox", &program, 0o755, 0);
        for name in [
            "sh",
            "cat",
            "echo",
            "env",
            "id",
            "ls",
            "mkdir",
            "mount",
            "pwd",
            "sleep",
            "stat",
            "test",
            "touch",
            "true",
            "wc",
            "sha256sum",
            "chown",
            "readlink",
            "kill",
            "grep",
        ] {
            layer = layer.symlink(&format!("bin/{name}"), "busybox");
        }
        layer
    }

    fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        link: &str,
        content: &[u8],
        (mode, owner): (u32, u64),
    ) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(1_700_000_000);
        if link.is_empty() {
            self.0.append_data(&mut header, path, content).unwrap();
        } else {
            self.0.append_link(&mut header, path, link).unwrap();
        }
        self
    }

    /// A directory.
    pub fn directory(self, path: &str, mode: u32, owner: u64) -> Self {
        self.entry(
            &format!("{path}/"),
            EntryType::Directory,
            "",
            b"",
            (mode, owner),
        )
    }

    /// A regular file.
    pub fn file(self, path: &str, content: &[u8], mode: u32, owner: u64) -> Self {
        self.entry(path, EntryType::Regular, "", content, (mode, owner))
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, target, b"", (0o777, 0))
    }

    /// Another name of a file.
    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Link, target, b"", (0o644, 0))
    }

    /// A character device.
    pub fn device(mut self, path: &str, major: u32, minor: u32) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Char);
        header.set_size(0);
        header.set_mode(0o666);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.0.append_data(&mut header, path, &b""[..]).unwrap();
        self
    }

    /// An extended attribute of the entry that comes next.
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{name}");
        self.0.append_pax_extensions([(&*key, value)]).unwrap();
        self
    }

    /// The archive.
    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A program whose effective user is told apart from its real one, for set-id tests.
pub fn who_runs_it(directory: &Path) -> Vec<u8> {
    let source = directory.join("who.c");
    let program = directory.join("who");
    fs::write(
        &source,
        "#include <stdio.h>\n#include <unistd.h>\n\
         int main(void) { printf(\"uid %d euid %d\\n\", getuid(), geteuid()); return 0; }\n",
    )
    .unwrap();
    done(
        Command::new("gcc")
            .args(["-static", "-O1", "-o"])
            .arg(&program)
            .arg(&source),
    );
    fs::read(program).unwrap()
}

/// Runs a tool that must succeed; what it says.
pub fn done(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}; `make tools-test` installs it"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes an OCI image layout of these layers. `config` are umoci's options without their prefix,
/// such as `("cmd", "true")`.
pub fn layout(directory: &Path, layers: Vec<Layer>, config: &[(&str, &str)]) -> PathBuf {
    let layout = directory.join("layout");
    let image = format!("{}:{TAG}", layout.display());
    done(
        Command::new("umoci")
            .args(["init", "--layout"])
            .arg(&layout),
    );
    done(Command::new("umoci").args(["new", "--image", &image]));
    let file = directory.join("layer.tar");
    for layer in layers {
        fs::write(&file, layer.bytes()).unwrap();
        done(
            Command::new("umoci")
                .args(["raw", "add-layer", "--image", &image])
                .arg(&file),
        );
    }
    let mut set = Command::new("umoci");
    set.args(["config", "--image", &image]);
    for (name, value) in config {
        set.arg(format!("--config.{name}")).arg(value);
    }
    done(&mut set);
    layout
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// What `docker save` would write.
pub fn saved(layout: &Path, directory: &Path, name: &str) -> PathBuf {
    let file = directory.join("saved.tar");
    let target = format!("docker-archive:{}:{name}", file.display());
    done(
        Command::new("skopeo")
            .arg("copy")
            .arg(of_layout(layout))
            .arg(target),
    );
    file
}

/// The layout's image in skopeo's words.
pub fn of_layout(layout: &Path) -> String {
    format!("oci:{}:{TAG}", layout.display())
}

/// A registry on the host's loopback.
pub struct Registry {
    child: Child,
    /// Its port.
    pub port: u16,
    directory: TempDir,
    logins: bool,
}

impl Registry {
    /// One that asks nobody who they are.
    pub fn start() -> Self {
        Self::with(false)
    }

    /// One that knows only [`LOGIN`].
    pub fn with_logins() -> Self {
        Self::with(true)
    }

    fn with(logins: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port = free_port();
        let at = directory.path().display();
        let auth = if logins {
            fs::write(directory.path().join("htpasswd"), HTPASSWD).unwrap();
            format!("auth: {{htpasswd: {{realm: test, path: {at}/htpasswd}}}}\n")
        } else {
            String::new()
        };
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {at}/storage}}}}\n\
             http: {{addr: '127.0.0.1:{port}'}}\n{auth}"
        );
        let file = directory.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("apt-get install docker-registry");
        let registry = Self {
            child,
            port,
            directory,
            logins,
        };
        eventually("a registry that answers", PATIENCE, || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        registry
    }

    /// What an image of this name is called.
    pub fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }

    /// Puts a layout's image into it.
    pub fn push(&self, layout: &Path, image: &str, options: &[&str]) -> String {
        let name = self.name(image);
        let mut copy = Command::new("skopeo");
        copy.args(["copy", "--dest-tls-verify=false"]).args(options);
        if self.logins {
            copy.arg("--dest-creds")
                .arg(format!("{}:{}", LOGIN.0, LOGIN.1));
        }
        done(copy.arg(of_layout(layout)).arg(format!("docker://{name}")));
        name
    }

    /// The file in which it keeps a blob.
    pub fn blob(&self, hex: &str) -> PathBuf {
        let blobs = "storage/docker/registry/v2/blobs/sha256";
        let path = format!("{blobs}/{}/{hex}/data", &hex[..2]);
        self.directory.path().join(path)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A port that nobody has just now.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// What a line to a registry does with each connection.
#[derive(Clone, Copy, Debug)]
pub enum Line {
    /// Lets everything through.
    Whole,
    /// Breaks it off after so many bytes of answers.
    CutAfter(u64),
    /// Lets nothing more through after so many bytes of answers, and says nothing.
    StallAfter(u64),
}

/// A line to a registry that is not as good as it could be.
pub struct BadLine {
    /// Where it begins.
    pub port: u16,
    line: Arc<Mutex<Line>>,
    answered: Arc<AtomicU64>,
    asked: Arc<Mutex<Vec<u8>>>,
    ended: Arc<AtomicBool>,
}

impl BadLine {
    /// A line to this port.
    pub fn to(port: u16, line: Line) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let bad = Self {
            port: listener.local_addr().unwrap().port(),
            line: Arc::new(Mutex::new(line)),
            answered: Arc::default(),
            asked: Arc::default(),
            ended: Arc::default(),
        };
        let (line, answered) = (bad.line.clone(), bad.answered.clone());
        let (asked, ended) = (bad.asked.clone(), bad.ended.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                let (to, from) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let asked = asked.clone();
                std::thread::spawn(move || {
                    forward(from, to, |bytes| {
                        asked.lock().unwrap().extend(bytes);
                        bytes.len()
                    })
                });
                let (line, answered) = (*line.lock().unwrap(), answered.clone());
                std::thread::spawn(move || {
                    let mut left = match line {
                        Line::Whole => u64::MAX,
                        Line::CutAfter(bytes) | Line::StallAfter(bytes) => bytes,
                    };
                    forward(server, client.try_clone().unwrap(), |bytes| {
                        let passed = (bytes.len() as u64).min(left);
                        left -= passed;
                        answered.fetch_add(passed, Ordering::Relaxed);
                        passed as usize
                    });
                    match line {
                        // Held open until the client has enough of it.
                        Line::StallAfter(_) => drop((&client).read(&mut [0; 1])),
                        Line::Whole | Line::CutAfter(_) => {
                            // The client may have hung up itself, here and below.
                            client.shutdown(Shutdown::Both).ok();
                        }
                    }
                });
            }
        });
        bad
    }

    /// What becomes of connections from now on.
    pub fn becomes(&self, line: Line) {
        *self.line.lock().unwrap() = line;
    }

    /// Bytes of answers that went through since this was asked last.
    pub fn answered(&self) -> u64 {
        self.answered.swap(0, Ordering::Relaxed)
    }

    /// How often part of a blob was asked for.
    pub fn resumed(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        String::from_utf8_lossy(&asked)
            .to_lowercase()
            .matches("range: bytes=")
            .count()
    }

    /// What an image of this name is called at its end.
    pub fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }
}

impl Drop for BadLine {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        // Wakes the listener.
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok();
    }
}

/// Copies until an end, or until fewer bytes pass than came.
fn forward(mut from: TcpStream, mut to: TcpStream, mut passed: impl FnMut(&[u8]) -> usize) {
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let count = passed(&buffer[..n]);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        if count < n {
            // A stall keeps the client's end as it is.
            from.shutdown(Shutdown::Both).ok();
            return;
        }
    }
    to.shutdown(Shutdown::Both).ok();
}
