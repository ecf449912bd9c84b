//! A release archive and its installation: what a user of a release has of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use iii_integration::binaries;

const PROGRAMS: [&str; 4] = ["iii-krun", "iii-shim", "iii-super", "iii-vfs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Makes the archive of the programs that were built for the tests.
fn archive(out: &Path) -> PathBuf {
    let output = Command::new(root().join("scripts/dist"))
        .arg(binaries())
        .arg(out)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        // Unoptimised programs are large, and nobody downloads these.
        .env("III_DIST_LEVEL", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let names = fs::read_dir(out)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let archives: Vec<PathBuf> = names
        .filter(|path| path.extension().is_some_and(|e| e == "gz"))
        .collect();
    assert_eq!(archives.len(), 1, "{archives:?}");
    archives[0].clone()
}

fn install(prefix: &Path, arguments: &[&str]) -> Output {
    Command::new("sh")
        .arg(root().join("packaging/install.sh"))
        .arg("--prefix")
        .arg(prefix)
        .args(arguments)
        .output()
        .unwrap()
}

fn installed(prefix: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(prefix.join("bin")) else {
        return Vec::new();
    };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

/// The programs, and the init of other guests where it was built.
fn expected() -> Vec<String> {
    let mut names = PROGRAMS.map(String::from).to_vec();
    let other = ["vm-init-aarch64", "vm-init-x86_64"];
    let built = other
        .into_iter()
        .filter(|name| binaries().join(name).exists());
    names.extend(built.map(String::from));
    names
}

#[test]
fn an_archive_is_installed_once_its_checksum_is_right() {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("prefix");
    let out = directory.path().join("dist");
    let archive = archive(&out);
    let path = archive.to_str().unwrap();

    // A byte of it is another one.
    let spoiled = directory.path().join("spoiled.tar.gz");
    let mut bytes = fs::read(&archive).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&spoiled, bytes).unwrap();
    let sum = |path: &Path| PathBuf::from(format!("{}.sha256", path.display()));
    fs::copy(sum(&archive), sum(&spoiled)).unwrap();
    let output = install(&prefix, &[spoiled.to_str().unwrap()]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("nothing was installed"), "{said}");
    assert!(!prefix.exists());

    // Without a checksum it is none that can be trusted.
    fs::remove_file(sum(&spoiled)).unwrap();
    assert!(
        !install(&prefix, &[spoiled.to_str().unwrap()])
            .status
            .success()
    );
    assert!(!prefix.exists());

    // From a directory of releases, as from a file; over what is there already.
    let version = env!("CARGO_PKG_VERSION");
    let from = format!("file://{}", out.display());
    for arguments in [&[path][..], &["--version", version, "--from", &from]] {
        let output = install(&prefix, arguments);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(installed(&prefix), expected());
    }
    let program = prefix.join("bin/iii-super");
    let said = Command::new(&program).arg("--version").output().unwrap();
    assert_eq!(said.stdout, format!("iii-super {version}\n").as_bytes());
    assert!(prefix.join("share/man/man1/iii-super-run.1").is_file());
    // It finds its helpers where it was put.
    let said = Command::new(&program)
        .args(["doctor", "--json"])
        .env_remove("III_HELPER_DIR")
        .output()
        .unwrap();
    let report: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    for check in report["checks"].as_array().unwrap() {
        if ["iii-shim", "iii-vfs"].contains(&check["id"].as_str().unwrap()) {
            let found = check["found"].as_str().unwrap();
            assert!(found.starts_with(prefix.to_str().unwrap()), "{check}");
        }
    }
}

#[test]
fn the_same_programs_give_the_same_archive() {
    let directory = tempfile::tempdir().unwrap();
    let [first, second] =
        ["a", "b"].map(|name| fs::read(archive(&directory.path().join(name))).unwrap());
    assert!(
        first == second,
        "{} and {} bytes",
        first.len(),
        second.len()
    );
}
