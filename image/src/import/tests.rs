//! Files of images in every form, and files that are none.

use serde_json::json;

use super::*;
use crate::erofs::read::{FileKind, Lookup};
use crate::store::ImageStore;
use crate::testing::{Built, gzip, image, layer};

struct Case {
    directory: tempfile::TempDir,
    puller: Puller,
}

fn case() -> Case {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(directory.path().join("store")).unwrap();
    let puller = Puller::new(store, Default::default());
    Case { directory, puller }
}

impl Case {
    fn import(&self, path: &Path, name: Option<&str>) -> Result<Vec<String>, ImportError> {
        let name = name.map(|name| name.parse().unwrap());
        let importer = Importer::open(&self.puller, path, &())?;
        let records = importer.import(name.as_ref())?;
        Ok(records.iter().map(|r| r.reference.familiar()).collect())
    }

    fn write(&self, bytes: &[u8]) -> std::path::PathBuf {
        let path = self.directory.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn refused(&self, path: &Path, name: Option<&str>) -> String {
        let error = self.import(path, name).unwrap_err().to_string();
        assert!(self.puller.store.records().unwrap().is_empty(), "{error}");
        let roots = self.puller.store.directory().join("roots");
        assert_eq!(std::fs::read_dir(roots).unwrap().count(), 0, "{error}");
        error
    }

    fn content(&self, name: &str, path: &[u8]) -> Option<Vec<u8>> {
        let reference = name.parse().unwrap();
        let image = self
            .puller
            .get(&reference, crate::PullPolicy::Never, &())
            .unwrap();
        let files = image.files().unwrap();
        match files.lookup(path).unwrap() {
            Lookup::Found(inode) if inode.kind == FileKind::File => {
                Some(files.content(&inode, 1000).unwrap())
            }
            _ => None,
        }
    }
}

fn small() -> Built {
    let lower = || {
        layer()
            .dir("etc/")
            .file("etc/a", "lower")
            .file("etc/b", "lower")
    };
    let upper = layer().file("etc/a", "upper").file("etc/.wh.b", "");
    image(
        vec![lower(), upper, layer(), layer()],
        json!({"Cmd": ["/bin/x"]}),
    )
}

fn check(case: &Case, name: &str) {
    assert_eq!(
        case.content(name, b"/etc/a").as_deref(),
        Some(&b"upper"[..])
    );
    assert_eq!(case.content(name, b"/etc/b"), None);
}

#[test]
fn a_layout_as_a_directory_and_as_an_archive() {
    let built = small();
    let case = case();
    let layout = built.layout(&case.directory.path().join("layout"), None);
    assert_eq!(case.import(&layout, Some("app:1")).unwrap(), ["app:1"]);
    check(&case, "app:1");
    // A tag alone is no name; the whole one that containerd writes is.
    built.layout(&layout, Some("latest"));
    let error = case.import(&layout, None).unwrap_err().to_string();
    assert!(error.contains("--name"), "{error}");
    built.layout(&layout, Some("registry.example/team/app:2"));
    let mut archive = ::tar::Builder::new(Vec::new());
    archive.append_dir_all(".", &layout).unwrap();
    let bytes = archive.into_inner().unwrap();
    for bytes in [gzip(&bytes), bytes] {
        let path = case.write(&bytes);
        assert_eq!(
            case.import(&path, None).unwrap(),
            ["registry.example/team/app:2"]
        );
        check(&case, "registry.example/team/app:2");
    }
    // The same content is one file, whatever its names.
    let roots = case.puller.store.directory().join("roots");
    assert_eq!(std::fs::read_dir(roots).unwrap().count(), 1);
}

#[test]
fn what_docker_saves() {
    let case = case();
    let path = case.write(&small().saved(&["app:1", "other:2"]));
    assert_eq!(case.import(&path, None).unwrap(), ["app:1", "other:2"]);
    check(&case, "other:2");
    assert_eq!(
        case.import(&path, Some("renamed")).unwrap(),
        ["renamed:latest"]
    );
    check(&case, "renamed");
    let path = case.write(&small().saved(&[]));
    let error = case.import(&path, None).unwrap_err().to_string();
    assert!(error.contains("--name"), "{error}");
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing() {
    let case = case();
    for (bytes, expected) in [
        (
            &b"plain text that is longer than a header, or not"[..],
            "breaks off",
        ),
        (b"", "neither"),
        (&layer().file("x", "y").0, "neither"),
        (&layer().file("manifest.json", "{").0, "malformed"),
        (&layer().file("manifest.json", "[]").0, "no image"),
        (
            &layer().file("index.json", "{\"manifests\":[]}").0,
            "no image",
        ),
        (&layer().file("index.json", "[[[").0, "failed to read"),
    ] {
        let path = case.write(bytes);
        let error = case.refused(&path, Some("app"));
        assert!(error.contains(expected), "{error}");
    }
    let error = case.refused(Path::new("/nonexistent"), Some("app"));
    assert!(error.contains("/nonexistent"), "{error}");
}

#[test]
fn content_that_is_not_what_was_announced_is_refused() {
    let case = case();
    let mut built = small();
    built.plain_layers[0] = layer().file("etc/a", "forged").0;
    let path = case.write(&built.saved(&["app"]));
    let error = case.refused(&path, None);
    assert!(error.contains("the image's configuration says"), "{error}");

    let layout = small().layout(&case.directory.path().join("layout"), None);
    let blob = |bytes: &[u8]| layout.join(blob_name(&Digest::of(bytes)));
    for part in [&small().manifest, &small().config, &small().layers[0]] {
        let path = blob(part);
        let forged = [&part[..part.len() - 1], b" "].concat();
        std::fs::write(&path, forged).unwrap();
        let error = case.refused(&layout, Some("app"));
        std::fs::write(&path, part).unwrap();
        assert!(error.contains("failed to"), "{error}");
        std::fs::remove_file(&path).unwrap();
        let error = case.refused(&layout, Some("app"));
        assert!(error.contains("it lacks blobs/sha256/"), "{error}");
        std::fs::write(&path, part).unwrap();
    }
    assert_eq!(case.import(&layout, Some("app")).unwrap(), ["app:latest"]);
}

#[test]
fn names_in_an_archive_lead_nowhere_else() {
    let case = case();
    let secret = case.directory.path().join("secret");
    std::fs::write(&secret, "{}").unwrap();
    for config in ["../secret", "/../secret", "loop"] {
        let list = json!([{"Config": config, "RepoTags": ["app"], "Layers": []}]);
        let archive = layer()
            .symlink("loop", "loop")
            .symlink("secret", secret.to_str().unwrap())
            .file("manifest.json", &list.to_string());
        let path = case.write(&archive.0);
        let error = case.refused(&path, None);
        assert!(error.contains("it lacks"), "{error}");
        let layout = case.directory.path().join("layout");
        std::fs::create_dir_all(&layout).unwrap();
        std::fs::write(layout.join("manifest.json"), list.to_string()).unwrap();
        let error = case.refused(&layout, None);
        assert!(error.contains("it lacks"), "{error}");
    }
}

#[test]
fn an_image_for_another_kind_of_machine_is_refused() {
    let case = case();
    let mut built = small();
    let text = String::from_utf8(built.config.clone()).unwrap();
    let host = crate::oci::Platform::of_host().architecture;
    built.config = text
        .replace(&format!("\"{host}\""), "\"s390x\"")
        .into_bytes();
    let path = case.write(&built.saved(&["app"]));
    let error = case.refused(&path, None);
    assert!(error.contains("linux/s390x"), "{error}");
}
