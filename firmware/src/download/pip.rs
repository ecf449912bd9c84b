//! The Python wheel, by the user's own pip.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use super::FetchError;
use crate::digest::{Digest, HashingWriter};
use crate::install::InstallError;
use crate::known::{KnownLibrary, KnownWheel};
use crate::progress::Progress;

/// How pip is called, in order of preference.
const PIPS: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];
/// The wheel is made for the stable ABI of 3.10; a host with an older Python can fetch it too.
const PYTHON_VERSION: &str = "3.12";
/// pip itself gives up a silent connection after its own time-out and retries; this bounds pip.
const DEADLINE: Duration = Duration::from_secs(1800);
/// Between two looks at how far pip is.
const POLL: Duration = Duration::from_millis(100);

pub(super) fn fetch(
    known: &'static KnownLibrary,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    progress.phase("downloading libkrunfw in the project's Python wheel, with pip");
    let wheel = download(&known.wheel, scratch, &PIPS, progress)?;
    progress.phase("unpacking libkrunfw from the wheel");
    unpack(&wheel, known, scratch, progress)
}

/// The verified wheel.
fn download(
    wheel: &'static KnownWheel,
    scratch: &Path,
    pips: &[&[&str]],
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    for pip in pips {
        let [program, arguments @ ..] = *pip else {
            continue;
        };
        let shown = pip.join(" ");
        let failed = |reason: String| FetchError::Pip {
            requirement: wheel.requirement,
            pip: shown.clone(),
            reason,
        };
        // pip downloads to its temporary directory first; here its size shows how far it is.
        let (temporary, destination) = (scratch.join("pip-tmp"), scratch.join("pip-out"));
        for dir in [&temporary, &destination] {
            fs::create_dir_all(dir).map_err(|error| InstallError::new("make", dir, error))?;
        }
        let said = scratch.join("pip-said");
        let log = File::create(&said).map_err(|error| InstallError::new("write", &said, error))?;
        let spawned = Command::new(program)
            .args(arguments)
            .args([
                "download",
                "--no-input",
                "--disable-pip-version-check",
                "--quiet",
            ])
            .args(["--progress-bar", "off", "--no-deps", "--only-binary=:all:"])
            .args(["--implementation", "cp", "--abi", "abi3"])
            .args([
                "--python-version",
                PYTHON_VERSION,
                "--platform",
                wheel.platform,
            ])
            .arg("--dest")
            .arg(&destination)
            .arg(wheel.requirement)
            .env("TMPDIR", &temporary)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error.to_string())),
        };
        let status = wait(&mut child, DEADLINE, || {
            let done = bytes_below(&temporary).max(bytes_below(&destination));
            progress.bytes(done.min(wheel.size), Some(wheel.size));
        })
        .map_err(|error| failed(error.to_string()))?;
        let Some(status) = status else {
            return Err(failed(format!(
                "it had not ended after {} s",
                DEADLINE.as_secs()
            )));
        };
        if !status.success() {
            let said = last_words(&said);
            if said.contains("No module named pip") {
                continue;
            }
            return Err(failed(if said.is_empty() {
                status.to_string()
            } else {
                said
            }));
        }
        let path = fs::read_dir(&destination)
            .map_err(|error| InstallError::new("list", &destination, error))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| failed("it left no wheel".to_owned()))?;
        let found = File::open(&path)
            .and_then(Digest::of_reader)
            .map_err(|error| InstallError::new("read", &path, error))?;
        if found.to_string() != wheel.sha256 {
            let what = format!("the wheel of {}", wheel.requirement);
            return Err(FetchError::Digest {
                what,
                found,
                wanted: wheel.sha256,
            });
        }
        return Ok(path);
    }
    let tried = pips
        .iter()
        .map(|pip| format!("`{}`", pip.join(" ")))
        .collect::<Vec<_>>();
    Err(FetchError::NoPip {
        tried: tried.join(", "),
    })
}

/// Waits for `child`, calling `look` meanwhile; ends it at the deadline, and then answers `None`.
fn wait(
    child: &mut Child,
    deadline: Duration,
    mut look: impl FnMut(),
) -> io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() > deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        look();
        std::thread::sleep(POLL);
    }
}

/// Bytes of the largest file below `dir`. pip moves and removes files meanwhile; what cannot be
/// read counts as nothing, since this is only shown.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else {
        return 0;
    };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .max()
        .unwrap_or(0)
}

/// The end of what pip said, in one line, for an error message.
fn last_words(path: &Path) -> String {
    const LINES: usize = 3;
    let Ok(bytes) = fs::read(path) else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}

/// Takes the library out of a verified wheel.
fn unpack(
    wheel: &Path,
    known: &'static KnownLibrary,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, FetchError> {
    let member = known.wheel.member;
    let failed = |reason: String| FetchError::Wheel { member, reason };
    let file = File::open(wheel).map_err(|error| InstallError::new("read", wheel, error))?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| failed(error.to_string()))?;
    let mut packed = archive
        .by_name(member)
        .map_err(|error| failed(error.to_string()))?;

    let path = scratch.join("from-wheel");
    let io = |error| FetchError::Install(InstallError::new("write", &path, error));
    let mut writer = HashingWriter::new(File::create(&path).map_err(io)?);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = packed
            .read(&mut buffer)
            .map_err(|error| failed(error.to_string()))?;
        if n == 0 {
            break;
        }
        if writer.written() + n as u64 > known.size {
            return Err(FetchError::TooLarge {
                what: member.to_owned(),
                size: known.size,
            });
        }
        io::Write::write_all(&mut writer, &buffer[..n]).map_err(io)?;
        progress.bytes(writer.written(), Some(known.size));
    }
    let found = writer.finish();
    if found.to_string() != known.sha256 {
        return Err(FetchError::Digest {
            what: member.to_owned(),
            found,
            wanted: known.sha256,
        });
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use zip::write::SimpleFileOptions;

    use super::super::tests::{known, known_in_wheel};
    use super::*;

    const LIBRARY: &[u8] = b"the library";

    fn wheel(member: &str, content: &[u8]) -> Vec<u8> {
        let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        let options =
            SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        archive.start_file(member, options).expect("started");
        archive.write_all(content).expect("written");
        archive.finish().expect("finished").into_inner()
    }

    /// A pip that behaves as `script` says; `$DEST` is where the wheel goes. The shell is given the
    /// file: executing what was just written fails while another test's fork holds it open.
    fn pip(dir: &Path, script: &str) -> &'static [&'static str] {
        let path = dir.join("pip");
        let preamble = "while [ \"$1\" != --dest ]; do shift; done\nDEST=$2\n";
        fs::write(&path, format!("{preamble}{script}\n")).expect("written");
        vec!["sh", path.display().to_string().leak()].leak()
    }

    fn run(script: &str, packed: &[u8]) -> Result<Vec<u8>, FetchError> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let scratch = dir.path().join("scratch");
        fs::create_dir(&scratch).expect("made");
        fs::write(dir.path().join("packed"), packed).expect("written");
        let script = script.replace("$PACKED", &dir.path().join("packed").display().to_string());
        let known = known_in_wheel(LIBRARY, packed);
        let wheel = download(&known.wheel, &scratch, &[pip(dir.path(), &script)], &())?;
        let library = unpack(&wheel, known, &scratch, &())?;
        Ok(fs::read(library).expect("readable"))
    }

    const MEMBER: &str = "microsandbox/_bundled/lib/libkrunfw.so.5.6.1";

    #[test]
    fn the_library_comes_out_of_the_pinned_wheel() {
        let packed = wheel(MEMBER, LIBRARY);
        let library = run("cp $PACKED $DEST/microsandbox.whl", &packed).expect("accepted");
        assert_eq!(library, LIBRARY);
    }

    #[test]
    fn another_wheel_or_library_is_refused() {
        let packed = wheel(MEMBER, LIBRARY);
        let error = run("echo other > $DEST/microsandbox.whl", &packed).expect_err("other wheel");
        assert!(matches!(error, FetchError::Digest { .. }), "{error}");
        for (member, content) in [
            (MEMBER, &b"thE library"[..]),
            (MEMBER, b"the library and more"),
            ("other", LIBRARY),
        ] {
            let packed = wheel(member, content);
            let error = run("cp $PACKED $DEST/microsandbox.whl", &packed).expect_err("refused");
            assert!(error.to_string().contains(MEMBER), "{error}");
        }
        assert!(matches!(
            run("cp $PACKED $DEST/microsandbox.whl", b"no archive"),
            Err(FetchError::Wheel { .. })
        ));
    }

    #[test]
    fn what_pip_says_is_passed_on() {
        let error =
            run("echo 'ERROR: No matching distribution' >&2; exit 1", b"").expect_err("fails");
        assert!(
            error.to_string().contains("No matching distribution"),
            "{error}"
        );
        let error = run("exit 3", b"").expect_err("fails");
        assert!(error.to_string().contains("exit status: 3"), "{error}");
        let error = run("exit 0", b"").expect_err("left nothing");
        assert!(error.to_string().contains("left no wheel"), "{error}");
    }

    #[test]
    fn without_pip_the_remedy_is_named() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let without = pip(
            dir.path(),
            "echo 'python3: No module named pip' >&2; exit 1",
        );
        let error = download(
            &known(LIBRARY).wheel,
            dir.path(),
            &[without, &["/no/such/pip"]],
            &(),
        )
        .expect_err("no pip");
        let text = error.to_string();
        assert!(
            text.contains("/no/such/pip") && text.contains("install python3-pip"),
            "{text}"
        );
    }

    #[test]
    fn a_pip_that_hangs_is_ended() {
        let mut child = Command::new("sleep").arg("600").spawn().expect("started");
        let mut looks = 0;
        let ended = wait(&mut child, Duration::from_millis(1), || looks += 1).expect("waits");
        assert!(ended.is_none() && looks > 0);
        assert!(child.try_wait().expect("reaped").is_some());
    }
}
