//! What is pulled is what was pushed: umoci unpacks the same image onto this file system, and every
//! file is compared.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use iii_image::Image;
use iii_image::erofs::read::{FileKind, Image as Files, Inode};
use iii_image::registry::{Credentials, Login, RegistryOptions};
use iii_integration::images::{BadLine, LOGIN, Layer, Line, Registry, done, layout, noise, saved};

use super::{count, here, image, pull, puller, said};

/// Three layers with everything that layers do to each other.
fn layers() -> Vec<Layer> {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    vec![
        Layer::busybox()
            .directory("data", 0o750, 999)
            .file("data/owned", b"by 999", 0o640, 999)
            .file("data/large", &noise(300_000), 0o600, 999)
            .file("data/gone", b"lower", 0o644, 0)
            .directory("opaque", 0o755, 0)
            .file("opaque/lower", b"lower", 0o644, 0)
            .directory("replaced", 0o755, 0)
            .file("replaced/in", b"lower", 0o644, 0)
            .file("one", b"linked", 0o644, 0)
            .link("two", "one")
            .device("null", 1, 3),
        Layer::new()
            .file("data/.wh.gone", b"", 0o644, 0)
            .file("data/owned", b"by 999 still", 0o600, 999)
            .file("opaque/.wh..wh..opq", b"", 0o644, 0)
            .file("opaque/upper", b"upper", 0o644, 0)
            .file("replaced", b"a file now", 0o644, 0)
            .file("sudo", b"#!/bin/sh\n", 0o4755, 0),
        Layer::new()
            .xattr("security.capability", &capability)
            .file("ping", b"can", 0o755, 0)
            .file(
                &format!("long/{}/name", "n".repeat(180)),
                b"",
                0o644,
                70_000,
            )
            .file("one", b"no longer linked", 0o644, 0),
    ]
}

/// A file in words: kind, mode, owner, names, time, and what it holds.
type Seen = BTreeMap<String, String>;

fn of_image(image: Image) -> Seen {
    let root = image.into_root();
    let files = Files::open(&root).unwrap();
    let mut seen = Seen::new();
    let mut pending = vec![(String::new(), files.root().unwrap())];
    while let Some((path, inode)) = pending.pop() {
        for entry in files.entries(&inode).unwrap() {
            let child = files.inode(entry.number).unwrap();
            let path = format!("{path}/{}", String::from_utf8(entry.name).unwrap());
            seen.insert(path.clone(), described(&files, &child));
            if child.kind == FileKind::Directory {
                pending.push((path, child));
            }
        }
    }
    seen
}

fn described(files: &Files<&fs::File>, inode: &Inode) -> String {
    let Inode {
        mode,
        uid,
        gid,
        mtime,
        ..
    } = inode;
    let holds = match inode.kind {
        FileKind::Directory => String::new(),
        FileKind::Symlink => String::from_utf8(files.target(inode).unwrap()).unwrap(),
        FileKind::File => {
            let attributes = files.xattrs(inode).unwrap();
            let named = attributes
                .iter()
                .map(|a| String::from_utf8_lossy(&a.name).into_owned());
            let content = sum(&files.content(inode, u64::MAX).unwrap());
            named.fold(content, |text, name| format!("{text} {name}"))
        }
        FileKind::Other => format!("device {:#x}", inode.block),
    };
    // Of a directory umoci's times are those of what it did last in it.
    let (links, mtime) = if inode.kind == FileKind::Directory {
        (0, 0)
    } else {
        (inode.links, *mtime)
    };
    format!("{mode:o} {uid}:{gid} {links} {mtime} {holds}")
}

fn sum(bytes: &[u8]) -> String {
    format!(
        "{} bytes {}",
        bytes.len(),
        iii_image::oci::Digest::of(bytes)
    )
}

fn of_directory(root: &Path) -> Seen {
    let mut seen = Seen::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let found = fs::symlink_metadata(&path).unwrap();
            let kind = found.file_type();
            let holds = if kind.is_dir() {
                String::new()
            } else if kind.is_symlink() {
                fs::read_link(&path).unwrap().to_string_lossy().into_owned()
            } else if kind.is_char_device() {
                format!("device {:#x}", found.rdev())
            } else {
                // As root it sets what it may set.
                let capable = path.ends_with("ping");
                let attributes = if capable { " capability" } else { "" };
                format!("{}{attributes}", sum(&fs::read(&path).unwrap()))
            };
            let (links, mtime) = if kind.is_dir() {
                (0, 0)
            } else {
                (found.nlink(), found.mtime())
            };
            let (mode, uid, gid) = (found.mode(), found.uid(), found.gid());
            let shown = format!("/{}", path.strip_prefix(root).unwrap().display());
            seen.insert(
                shown,
                format!("{mode:o} {uid}:{gid} {links} {mtime} {holds}"),
            );
            if kind.is_dir() {
                pending.push(path);
            }
        }
    }
    seen
}

#[test]
fn every_file_is_as_another_tool_unpacks_it() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), layers(), &[("cmd", "true")]);
    let registry = Registry::start();
    let puller = puller(directory.path());
    let unpacked = directory.path().join("unpacked");
    if nix::unistd::geteuid().is_root() {
        let image = format!("{}:app", layout.display());
        let mut unpack = Command::new("umoci");
        done(
            unpack
                .args(["raw", "unpack", "--keep-dirlinks", "--image", &image])
                .arg(&unpacked),
        );
    }
    let mut before = None;
    // The same image in the words of both formats.
    for (tag, options) in [("oci", &[][..]), ("docker", &["--format", "v2s2"])] {
        let name = registry.push(&layout, &format!("team/app:{tag}"), options);
        let (image, changed) = pull(&puller, &name).unwrap();
        assert!(changed);
        assert_eq!(image.run().cmd, ["true"]);
        let seen = of_image(image);
        if unpacked.exists() {
            let expected = of_directory(&unpacked);
            for (path, words) in &expected {
                assert_eq!(seen.get(path), Some(words), "{path}");
            }
            assert_eq!(seen.len(), expected.len());
        }
        assert_eq!(*before.get_or_insert_with(|| seen.clone()), seen);
        assert!(
            seen["/sudo"].starts_with("104755 0:0 1 "),
            "{}",
            seen["/sudo"]
        );
        assert!(seen["/data/owned"].starts_with("100600 999:999 1 "));
        assert!(!seen.contains_key("/data/gone") && !seen.contains_key("/opaque/lower"));
    }
    // One root for both names: what is in them is the same.
    assert_eq!(count(&puller, "roots"), 1);
    let file = saved(&layout, directory.path(), "saved:1");
    let importer = iii_image::Importer::open(&puller, &file, &()).unwrap();
    assert_eq!(
        importer.import(None).unwrap()[0].reference.familiar(),
        "saved:1"
    );
    assert_eq!(of_image(here(&puller, "saved:1").unwrap()), before.unwrap());
}

#[test]
fn what_is_here_is_not_fetched_again() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), vec![Layer::busybox()], &[]);
    let registry = Registry::start();
    let line = BadLine::to(registry.port, Line::Whole);
    let puller = puller(directory.path());
    registry.push(&layout, "app:1", &[]);
    registry.push(&layout, "app:2", &[]);
    let (one, two) = (line.name("app:1"), line.name("app:2"));
    assert!(pull(&puller, &one).unwrap().1);
    let whole = line.answered();
    assert!(whole > 500_000, "{whole}");
    // Up to date: the manifest alone. Another name for the same: not even its layers.
    assert!(!pull(&puller, &one).unwrap().1);
    assert!(line.answered() < 5_000);
    assert!(pull(&puller, &two).unwrap().1);
    assert!(line.answered() < 5_000);
    // Not even that when it may be what is here.
    let policy = iii_image::PullPolicy::Missing;
    puller.get(&one.parse().unwrap(), policy, &()).unwrap();
    here(&puller, &two).unwrap();
    assert_eq!(line.answered(), 0);
    // A root that somebody took away is made of the layers that are still here.
    for root in fs::read_dir(puller.store.directory().join("roots")).unwrap() {
        fs::remove_file(root.unwrap().path()).unwrap();
    }
    let error = here(&puller, &one).unwrap_err().to_string();
    assert!(error.contains("`pull: never`"), "{error}");
    puller.get(&one.parse().unwrap(), policy, &()).unwrap();
    assert!(line.answered() < 5_000);
    // A digest in the name holds what the tag may stand for later.
    let digest = puller.store.records().unwrap()[0].digest.unwrap();
    let pinned = format!("{}@{digest}", line.name("app"));
    pull(&puller, &pinned).unwrap();
    let other = format!("{}@sha256:{}", line.name("app"), "0".repeat(64));
    let error = pull(&puller, &other).unwrap_err().to_string();
    assert!(error.contains("failed to find the image"), "{error}");
}

#[test]
fn logins_are_wanted_given_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), vec![Layer::busybox()], &[]);
    let registry = Registry::with_logins();
    let name = registry.push(&layout, "private/app:1", &[]);
    let home = directory.path().join("home");
    fs::create_dir(&home).unwrap();

    let output = image(&home, &["pull", &name]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("--password-stdin"),
        "{}",
        said(&output)
    );

    let with_password = |password: &str| {
        let mut child = image(
            &home,
            &["pull", &name, "--username", LOGIN.0, "--password-stdin"],
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(password.as_bytes()).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    };
    let output = with_password("s3cret guess\n");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("check the name, the password"),
        "{}",
        said(&output)
    );
    assert!(!said(&output).contains("s3cret"), "{}", said(&output));
    let output = with_password(&format!("{}\n", LOGIN.1));
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("pulled"), "{}", said(&output));

    // What `docker login` keeps.
    done(image(&home, &["rm", &name]).env("III_LOG", "debug"));
    let mut login = Command::new("skopeo");
    let server = format!("127.0.0.1:{}", registry.port);
    done(
        login
            .args([
                "login",
                "--tls-verify=false",
                "-u",
                LOGIN.0,
                "-p",
                LOGIN.1,
                &server,
            ])
            .env("REGISTRY_AUTH_FILE", home.join("config.json")),
    );
    let said = done(&mut image(&home, &["pull", &name, "--json"]));
    let value: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&value["name"], &value["changed"]),
        (&name.as_str().into(), &true.into())
    );

    // As the library is given them.
    let mut other = puller(directory.path());
    other.registry = RegistryOptions {
        credentials: Credentials::given(Login::Password {
            username: LOGIN.0.into(),
            password: LOGIN.1.into(),
        }),
        ..RegistryOptions::default()
    };
    pull(&other, &name).unwrap();
}

#[test]
fn the_program_lists_imports_removes_and_prunes() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().join("home");
    let layout = layout(directory.path(), vec![Layer::busybox()], &[]);
    let file = saved(&layout, directory.path(), "team/saved:1");
    let run = |args: &[&str]| image(&home, args).output().unwrap();
    let empty = run(&["ls"]);
    assert!(empty.status.success() && said(&empty).contains("there are no images"));
    let output = run(&["import", file.to_str().unwrap()]);
    assert!(
        said(&output).starts_with("iii-super: importing team/saved:1\n")
            || said(&output).contains("team/saved:1 imported"),
        "{}",
        said(&output)
    );
    assert!(output.status.success());
    let output = run(&["import", layout.to_str().unwrap(), "--name", "other"]);
    assert!(
        said(&output).contains("other:latest imported"),
        "{}",
        said(&output)
    );
    let listed = said(&run(&["ls"]));
    assert!(
        listed.starts_with("NAME") && listed.contains("team/saved:1"),
        "{listed}"
    );
    let all: serde_json::Value = serde_json::from_str(&said(&run(&["ls", "--json"]))).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 2);
    assert_eq!(all[0]["in_use"], false);
    assert_eq!(all[0]["id"], all[1]["id"]);
    for (args, code, expected) in [
        (&["rm", "nothing"][..], 1, "there is none of that name"),
        (&["rm", "Not A Name"], 2, "failed to read the image name"),
        (&["pull", "Not A Name"], 2, "failed to read the image name"),
        (&["import", "/nonexistent"], 1, "/nonexistent"),
        (
            &["import", "/etc/passwd", "--name", "x"],
            1,
            "is this a tar archive?",
        ),
        (
            &["pull", "127.0.0.1:1/app"],
            1,
            "failed to reach the registry 127.0.0.1:1",
        ),
        (
            &["rm", "other", "team/saved:1"],
            0,
            "other:latest removed (0.0 kB freed)",
        ),
        (&["prune"], 0, "freed"),
    ] {
        let output = run(args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}: {}",
            said(&output)
        );
        assert!(
            said(&output).contains(expected),
            "{args:?}: {}",
            said(&output)
        );
    }
    assert!(said(&run(&["ls"])).contains("there are no images"));
    let roots = home.join("images/roots");
    assert_eq!(fs::read_dir(roots).unwrap().count(), 0);
}
