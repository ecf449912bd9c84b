//! Commands of images: in the image, over it, and nowhere.

use serde_json::json;

use crate::command::MountView;
use crate::image_root::{Image, ImageCommandError, ImageCommandLookup};
use crate::store::ImageStore;
use crate::testing::{image, layer};
use crate::{Importer, PullPolicy, Puller};

const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

fn opened(run: serde_json::Value) -> (tempfile::TempDir, Image) {
    let files = layer()
        .dir("usr/bin/")
        .symlink("bin", "usr/bin")
        .file("usr/bin/node", "ELF")
        .file("usr/bin/script", "#!/usr/bin/env node\n")
        .file("usr/bin/env", "ELF")
        .file("usr/bin/orphan", "#!/usr/bin/perl -w\n")
        .plain("usr/bin/data", "text")
        .symlink("usr/bin/nodejs", "/etc/alternatives/node")
        .symlink("etc/alternatives/node", "../../bin/node")
        .symlink("usr/bin/loop", "loop")
        .symlink("usr/bin/up", "../../../../usr/bin/node")
        .dir("app/");
    let directory = tempfile::tempdir().unwrap();
    let layout = image(vec![files], run).layout(&directory.path().join("layout"), None);
    let store = ImageStore::open(directory.path().join("store")).unwrap();
    let puller = Puller::new(store, Default::default());
    let name = "app:1".parse().unwrap();
    Importer::open(&puller, &layout, &())
        .unwrap()
        .import(Some(&name))
        .unwrap();
    let image = puller.get(&name, PullPolicy::Never, &()).unwrap();
    (directory, image)
}

fn check(image: &Image, program: &str, cwd: &str, mounts: &[MountView]) -> Result<(), String> {
    let lookup = ImageCommandLookup {
        path: PATH,
        cwd,
        mounts,
    };
    image
        .check_command(Some(program), &lookup)
        .map_err(|error| error.to_string())
}

#[test]
fn commands_are_found_as_in_the_guest() {
    let (_dir, image) = opened(json!({}));
    for program in [
        "node",
        "nodejs",
        "script",
        "up",
        "/bin/node",
        "/usr/bin/../bin/node",
        "../usr/bin/node",
        "./../bin/script",
    ] {
        assert_eq!(check(&image, program, "/app", &[]), Ok(()), "{program}");
    }
    for (program, expected) in [
        (
            "npm",
            "has none in its PATH (/usr/local/bin:/usr/bin:/bin); use an image",
        ),
        ("nde", "did you mean `node`?"),
        ("data", "has none in its PATH"),
        ("/usr/bin/data", "is not executable"),
        ("/usr/bin", "is not a file"),
        ("orphan", "asks for /usr/bin/perl"),
        ("loop", "has none"),
        ("/usr/bin/loop", "there is no /usr/bin/loop"),
        ("./server", "there is no /app/server"),
        ("/usr/bin/node/x", "there is no"),
    ] {
        let error = check(&image, program, "/app", &[]).unwrap_err();
        assert!(
            error.contains(expected) && error.contains("app:1"),
            "{error}"
        );
    }
}

#[test]
fn what_is_mounted_hides_the_image_and_is_seen() {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    let (dir, image) = opened(json!({}));
    let host = dir.path().join("project");
    std::fs::create_dir(&host).unwrap();
    for name in ["server", "run"] {
        std::fs::write(host.join(name), "#!/bin/node\n").unwrap();
        std::fs::set_permissions(host.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    symlink("/usr/bin/env", host.join("in-the-image")).unwrap();
    symlink("/etc/passwd", host.join("not-in-the-image")).unwrap();
    let mounts = [
        ("/app", &host),
        ("/opt/deep/tools/", &host),
        ("/usr/local/bin", &host),
    ]
    .map(|(guest, host)| MountView {
        host: host.clone(),
        guest: guest.into(),
    });
    for program in [
        "./server",
        "/app/run",
        "/opt/deep/tools/run",
        "/opt/deep/../deep/tools/run",
        "server",
        "./in-the-image",
    ] {
        assert_eq!(check(&image, program, "/app", &mounts), Ok(()), "{program}");
    }
    for program in ["./not-in-the-image", "/opt/deep/run", "./missing"] {
        let error = check(&image, program, "/app", &mounts).unwrap_err();
        assert!(error.contains("there is no"), "{error}");
    }
    let error = check(&image, "/opt/deep", "/", &mounts).unwrap_err();
    assert!(error.contains("is not a file"), "{error}");
}

#[test]
fn entry_point_and_command_are_the_workers_or_the_images() {
    let (_dir, image) = opened(json!({"Entrypoint": ["/entry", "-x"], "Cmd": ["serve"]}));
    let own = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for (entrypoint, command, expected) in [
        (None, "", "/entry -x serve"),
        (None, "migrate now", "/entry -x migrate now"),
        (Some("/bin/sh -c"), "true", "/bin/sh -c true"),
        (Some("/bin/sh"), "", "/bin/sh"),
        (Some(""), "node a.js", "node a.js"),
        (Some(""), "", ""),
    ] {
        let entrypoint = entrypoint.map(own);
        let found = image.command(entrypoint.as_deref(), &own(command));
        assert_eq!(found, own(expected));
    }
    let lookup = ImageCommandLookup {
        path: PATH,
        cwd: "/",
        mounts: &[],
    };
    let error = image.check_command(None, &lookup).unwrap_err();
    assert!(matches!(error, ImageCommandError::Empty { .. }), "{error}");
}
