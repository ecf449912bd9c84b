//! A host root, from made-up hosts and from this one.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use iii_image::{EntryKind, HostRoot, HostRootError};

fn write(root: &Path, path: &str, bytes: &[u8], mode: u32) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().expect("has one")).expect("made");
    fs::write(&path, bytes).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
}

/// A host with a merged /usr and an empty /etc.
fn host() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("temporary directory");
    for name in ["usr/bin", "usr/sbin", "usr/lib", "etc"] {
        fs::create_dir_all(dir.path().join(name)).expect("made");
    }
    for name in ["bin", "sbin", "lib"] {
        symlink(format!("usr/{name}"), dir.path().join(name)).expect("linked");
    }
    dir
}

fn kind<'a>(root: &'a HostRoot, path: &str) -> Option<&'a EntryKind> {
    root.skeleton
        .iter()
        .find(|entry| entry.path == path)
        .map(|entry| &entry.kind)
}

fn content<'a>(root: &'a HostRoot, path: &str) -> Option<&'a [u8]> {
    match kind(root, path) {
        Some(EntryKind::File { bytes, .. }) => Some(bytes),
        Some(EntryKind::Dir { .. } | EntryKind::Symlink { .. }) | None => None,
    }
}

fn link<'a>(root: &'a HostRoot, path: &str) -> Option<&'a str> {
    match kind(root, path) {
        Some(EntryKind::Symlink { target }) => Some(target),
        Some(EntryKind::Dir { .. } | EntryKind::File { .. }) | None => None,
    }
}

#[test]
fn merge_links_are_kept_as_on_the_host() {
    let host = host();
    symlink("/usr/lib64", host.path().join("lib64")).expect("linked");
    let root = HostRoot::discover_in(host.path()).expect("merged");
    assert_eq!(link(&root, "/bin"), Some("usr/bin"));
    assert_eq!(link(&root, "/lib64"), Some("/usr/lib64"));
    assert_eq!(kind(&root, "/lib32"), None);
    assert_eq!(root.exports.len(), 1);
    assert_eq!(root.exports[0].host_path, host.path().join("usr"));
    assert_eq!(
        (&*root.exports[0].tag, &*root.exports[0].guest_path),
        ("usr", "/usr")
    );
}

#[test]
fn a_host_without_a_merged_usr_is_refused_and_an_image_named() {
    let refuse = |change: fn(&Path)| {
        let host = host();
        change(host.path());
        let error = HostRoot::discover_in(host.path()).expect_err("not merged");
        assert!(matches!(error, HostRootError::NotMerged { .. }));
        assert!(error.to_string().contains("image:"), "{error}");
    };
    refuse(|root| {
        fs::remove_file(root.join("bin")).expect("removed");
        fs::create_dir(root.join("bin")).expect("made");
    });
    refuse(|root| fs::remove_file(root.join("lib")).expect("removed"));
    refuse(|root| symlink("/opt/lib64", root.join("lib64")).expect("linked"));
    refuse(|root| fs::create_dir(root.join("lib64")).expect("made"));
    refuse(|root| fs::remove_dir_all(root.join("usr")).expect("removed"));
}

#[test]
fn only_what_is_listed_and_readable_by_all_is_copied() {
    let host = host();
    let root = host.path();
    write(
        root,
        "etc/passwd",
        b"ada:x:1000:1000:Ada:/home/ada:/bin/sh\n",
        0o644,
    );
    write(root, "etc/npmrc", b"//registry/:_authToken=secret\n", 0o644);
    write(root, "etc/shadow", b"root:secret", 0o644);
    write(root, "etc/services", b"http 80/tcp\n", 0o644);
    write(root, "etc/ssl/openssl.cnf", b"[x]\n", 0o640);
    write(root, "etc/ssl/private/key.pem", b"x", 0o644);
    write(
        root,
        "etc/ssl/leaked.pem",
        b"-----BEGIN RSA PRIVATE KEY-----\nMII",
        0o644,
    );
    write(
        root,
        "etc/ssl/certs/ca.pem",
        b"-----BEGIN CERTIFICATE-----",
        0o444,
    );
    write(root, "etc/pki/closed/x", b"x", 0o644);
    fs::set_permissions(
        root.join("etc/pki/closed"),
        fs::Permissions::from_mode(0o700),
    )
    .expect("set");
    write(
        root,
        "etc/java-21-openjdk/security/java.security",
        b"x",
        0o644,
    );
    write(root, "etc/python3.13/sitecustomize.py", b"x", 0o755);

    let found = HostRoot::discover_in(root).expect("merged");
    assert_eq!(
        content(&found, "/etc/services"),
        Some(&b"http 80/tcp\n"[..])
    );
    assert_eq!(
        content(&found, "/etc/ssl/certs/ca.pem"),
        Some(&b"-----BEGIN CERTIFICATE-----"[..])
    );
    assert_eq!(
        content(&found, "/etc/java-21-openjdk/security/java.security"),
        Some(&b"x"[..])
    );
    assert!(matches!(
        kind(&found, "/etc/python3.13/sitecustomize.py"),
        Some(EntryKind::File { mode: 0o755, .. })
    ));
    for absent in [
        "/etc/npmrc",
        "/etc/shadow",
        "/etc/ssl/openssl.cnf",
        "/etc/ssl/private",
        "/etc/ssl/private/key.pem",
        "/etc/ssl/leaked.pem",
        "/etc/pki/closed",
    ] {
        assert_eq!(kind(&found, absent), None, "{absent}");
    }
    for entry in &found.skeleton {
        if let EntryKind::File { bytes, .. } = &entry.kind {
            let text = String::from_utf8_lossy(bytes);
            assert!(
                !text.contains("secret") && !text.contains("ada"),
                "{}",
                entry.path
            );
        }
    }
    for noted in [
        "/etc/ssl/openssl.cnf",
        "/etc/ssl/private",
        "/etc/ssl/leaked.pem",
        "/etc/pki/closed",
    ] {
        assert!(
            found.notes.iter().any(|note| note.starts_with(noted)),
            "{noted}: {:?}",
            found.notes
        );
    }
}

#[test]
fn links_stay_links_where_the_guest_sees_their_target() {
    let host = host();
    let root = host.path();
    for name in [
        "etc/alternatives",
        "etc/ssl/certs",
        "var/lib/ca-certificates/pem",
        "home/ada",
    ] {
        fs::create_dir_all(root.join(name)).expect("made");
    }
    write(root, "var/lib/ca-certificates/bundle.pem", b"bundle", 0o644);
    write(root, "home/ada/own.pem", b"own", 0o644);
    for (target, at) in [
        ("/usr/bin/mawk", "etc/alternatives/awk"),
        ("/usr/share/man/man1/mawk.1.gz", "etc/alternatives/awk.1.gz"),
        ("/opt/jdk/bin/java", "etc/alternatives/java"),
        ("../usr/lib/os-release", "etc/os-release"),
        ("/usr/share/zoneinfo/Etc/UTC", "etc/localtime"),
        ("ca.pem", "etc/ssl/certs/1.0"),
        (
            "../../../var/lib/ca-certificates/bundle.pem",
            "etc/ssl/certs/bundle.pem",
        ),
        ("/home/ada/own.pem", "etc/ssl/certs/own.pem"),
        ("/etc/npmrc", "etc/ssl/certs/token"),
        ("/var/lib/ca-certificates/loop", "etc/ssl/certs/loop"),
    ] {
        symlink(target, root.join(at)).expect("linked");
    }
    symlink(
        "/var/lib/ca-certificates/loop",
        root.join("var/lib/ca-certificates/loop"),
    )
    .expect("linked");

    let found = HostRoot::discover_in(root).expect("merged");
    assert_eq!(link(&found, "/etc/alternatives/awk"), Some("/usr/bin/mawk"));
    assert_eq!(
        link(&found, "/etc/os-release"),
        Some("../usr/lib/os-release")
    );
    assert_eq!(
        link(&found, "/etc/localtime"),
        Some("/usr/share/zoneinfo/Etc/UTC")
    );
    assert_eq!(link(&found, "/etc/ssl/certs/1.0"), Some("ca.pem"));
    assert_eq!(
        content(&found, "/etc/ssl/certs/bundle.pem"),
        Some(&b"bundle"[..])
    );
    for absent in [
        "/etc/alternatives/awk.1.gz",
        "/etc/alternatives/java",
        "/etc/ssl/certs/own.pem",
        "/etc/ssl/certs/token",
        "/etc/ssl/certs/loop",
    ] {
        assert_eq!(kind(&found, absent), None, "{absent}");
    }
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("/home/ada/own.pem")),
        "{:?}",
        found.notes
    );
}

#[test]
fn what_is_too_large_is_left_out_with_a_note() {
    let host = host();
    write(
        host.path(),
        "etc/mime.types",
        &vec![b'x'; (2 << 20) + 1],
        0o644,
    );
    for at in 0..9 {
        write(
            host.path(),
            &format!("etc/ssl/{at}"),
            &vec![b'x'; 2 << 20],
            0o644,
        );
    }
    let found = HostRoot::discover_in(host.path()).expect("merged");
    assert_eq!(content(&found, "/etc/mime.types"), None);
    assert!(content(&found, "/etc/ssl/7").is_some());
    assert_eq!(content(&found, "/etc/ssl/8"), None);
    for noted in ["/etc/mime.types", "/etc/ssl/8"] {
        assert!(
            found.notes.iter().any(|note| note.starts_with(noted)),
            "{:?}",
            found.notes
        );
    }
}

#[test]
fn the_digest_follows_the_host() {
    let host = host();
    let digest = || HostRoot::discover_in(host.path()).expect("merged").digest();
    let before = digest();
    assert_eq!(digest(), before);
    write(host.path(), "etc/services", b"x", 0o644);
    assert_ne!(digest(), before);
}

#[cfg(target_os = "linux")]
#[test]
fn this_host_has_a_sound_skeleton() {
    let root = HostRoot::discover().expect("Debian 12 has a merged /usr");
    let mut seen = std::collections::HashSet::from(["/".to_owned()]);
    for entry in &root.skeleton {
        let (parent, _) = entry.path.rsplit_once('/').expect("absolute");
        let parent = if parent.is_empty() { "/" } else { parent };
        assert!(
            seen.contains(parent),
            "{} comes before its directory",
            entry.path
        );
        if matches!(entry.kind, EntryKind::Dir { .. }) {
            seen.insert(entry.path.clone());
        }
    }
    for path in ["/bin", "/etc/passwd", "/etc/ld.so.cache", "/tmp", "/proc"] {
        assert!(kind(&root, path).is_some(), "{path}");
    }
}
