//! Two at once, crashes in between, and what must never be taken away.

use std::io::Read as _;

use super::*;

fn store() -> (tempfile::TempDir, ImageStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = ImageStore::open(directory.path().join("images")).unwrap();
    (directory, store)
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// An image with a root and a blob of its own beside a shared one.
fn image(store: &ImageStore, name: &str) -> Record {
    let record = Record {
        reference: name.parse().unwrap(),
        digest: Some(digest(&format!("manifest {name}"))),
        config: digest(&format!("config {name}")),
        root: digest(&format!("root {name}")),
        blobs: vec![digest(&format!("layer {name}")), digest("shared")],
        size: 4096,
        added: 1,
        origin: Origin::Registry,
    };
    for (text, blob) in [
        (format!("layer {name}"), record.blobs[0]),
        ("shared".into(), digest("shared")),
    ] {
        store.write_blob(&blob, text.as_bytes()).unwrap();
    }
    let make = |mut file: File, _: &Path| -> Result<(), StoreError> {
        file.write_all(name.as_bytes()).unwrap();
        Ok(())
    };
    store.make_root(&record.root, make).unwrap();
    store.enter(record.clone()).unwrap();
    record
}

#[test]
fn an_image_is_found_by_its_name_and_replaced_under_it() {
    let (_dir, store) = store();
    let first = image(&store, "a:1");
    assert_eq!(store.record(&first.reference).unwrap(), Some(first.clone()));
    let again = Record {
        added: 2,
        ..first.clone()
    };
    store.enter(again.clone()).unwrap();
    assert_eq!(store.records().unwrap(), [again]);
    assert_eq!(store.record(&"a:2".parse().unwrap()).unwrap(), None);
    let mut text = String::new();
    store
        .open_root(&first.root)
        .unwrap()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "a:1");
}

#[test]
fn removal_takes_what_only_that_name_stood_for() {
    let (_dir, store) = store();
    let (a, b) = (image(&store, "a"), image(&store, "b"));
    // A second name for the same image.
    let alias = Record {
        reference: "alias".parse().unwrap(),
        ..a.clone()
    };
    store.enter(alias.clone()).unwrap();
    assert_eq!(store.remove(&a.reference).unwrap().files, 0);
    assert!(store.root_path(&a.root).exists());
    assert_eq!(
        store.remove(&alias.reference).unwrap().files,
        2,
        "root and layer"
    );
    assert!(!store.root_path(&a.root).exists() && !store.blob_path(&a.blobs[0]).exists());
    assert!(store.blob_path(&digest("shared")).exists());
    assert_eq!(store.records().unwrap(), [b]);
    let error = store.remove(&a.reference).unwrap_err();
    assert!(matches!(error, collect::RemoveError::Unknown(_)), "{error}");
}

#[test]
fn what_a_worker_runs_on_stays() {
    let (_dir, store) = store();
    let a = image(&store, "a");
    let running = store.open_root(&a.root).unwrap().unwrap();
    let error = store.remove(&a.reference).unwrap_err();
    assert!(matches!(error, collect::RemoveError::InUse(_)), "{error}");
    assert!(store.is_in_use(&a).unwrap());
    // A VM's duplicate keeps it as well as the supervisor's descriptor.
    let inherited = running.try_clone().unwrap();
    drop(running);
    assert!(store.is_in_use(&a).unwrap());
    // Renamed away from under it, as a pull of the same name does.
    store
        .enter(Record {
            root: digest("other"),
            ..a.clone()
        })
        .unwrap();
    let collected = store.collect().unwrap();
    assert_eq!((collected.files, collected.in_use), (0, 1));
    drop(inherited);
    assert_eq!(store.collect().unwrap().files, 1);
    assert!(!store.root_path(&a.root).exists());
}

#[test]
fn collection_takes_leftovers_and_waits_for_nobody() {
    let (_dir, store) = store();
    let a = image(&store, "a");
    for path in [
        store.partial_path(&digest("x")),
        store.blob_path(&digest("x")),
        store.at("roots", "x.partial"),
        store.at("blobs", ".new-abc"),
    ] {
        fs::write(path, b"left by a crash").unwrap();
    }
    let held = store.hold().unwrap();
    assert!(matches!(store.collect(), Err(StoreError::Busy)));
    drop(held);
    let collected = store.collect().unwrap();
    assert_eq!(collected.files, 4);
    assert!(collected.bytes >= 4 * 512);
    assert!(store.open_root(&a.root).unwrap().is_some());
    assert!(store.read_blob(&a.blobs[0], 100).unwrap().is_some());
    assert_eq!(store.collect().unwrap(), collect::Collected::default());
}

#[test]
fn many_at_once_lose_nothing() {
    let (_dir, store) = store();
    std::thread::scope(|scope| {
        for n in 0..16 {
            let store = &store;
            scope.spawn(move || image(store, &format!("image{n}")));
        }
    });
    assert_eq!(store.records().unwrap().len(), 16);
}

#[test]
fn one_of_many_makes_a_root() {
    let (_dir, store) = store();
    let root = digest("root");
    let made = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let make = |mut file: File, _: &Path| -> Result<(), StoreError> {
                    made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    file.write_all(b"root").unwrap();
                    Ok(())
                };
                store.make_root(&root, make).unwrap();
                assert_eq!(fs::read(store.root_path(&root)).unwrap(), b"root");
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
    assert_eq!(
        fs::read_dir(store.directory().join("roots"))
            .unwrap()
            .count(),
        1
    );
}

#[test]
fn a_root_that_fails_or_was_left_half_made_is_made_from_the_start() {
    let (_dir, store) = store();
    let root = digest("root");
    let fail = |mut file: File, _: &Path| {
        file.write_all(b"half").unwrap();
        Err(StoreError::Busy)
    };
    assert!(store.make_root(&root, fail).is_err());
    assert_eq!(
        fs::read_dir(store.directory().join("roots"))
            .unwrap()
            .count(),
        0
    );
    let partial = store.at("roots", &format!("{}.partial", root.hex()));
    fs::write(&partial, b"left by a crash").unwrap();
    let make = |mut file: File, _: &Path| -> Result<(), StoreError> {
        file.write_all(b"whole").unwrap();
        Ok(())
    };
    store.make_root(&root, make).unwrap();
    assert_eq!(fs::read(store.root_path(&root)).unwrap(), b"whole");
}

#[test]
fn a_blob_that_the_disk_changed_is_none() {
    let (_dir, store) = store();
    let blob = digest("blob");
    store.write_blob(&blob, b"blob").unwrap();
    assert_eq!(
        store.read_blob(&blob, 100).unwrap().as_deref(),
        Some(&b"blob"[..])
    );
    fs::write(store.blob_path(&blob), b"blub").unwrap();
    assert_eq!(store.read_blob(&blob, 100).unwrap(), None);
}

#[test]
fn a_broken_index_is_named_with_its_remedy() {
    let (_dir, store) = store();
    for text in [
        "",
        "{",
        "{\"version\":9,\"records\":[]}",
        "{\"version\":1,\"records\":[{}]}",
    ] {
        fs::write(store.index_path(), text).unwrap();
        let error = store.records().unwrap_err().to_string();
        assert!(
            error.contains("index.json") && error.contains("take the file away"),
            "{error}"
        );
    }
}

#[test]
fn the_name_of_a_root_depends_on_every_layer_and_their_order() {
    let (a, b) = (digest("a"), digest("b"));
    let all = [
        root_digest(&[]),
        root_digest(&[a]),
        root_digest(&[a, b]),
        root_digest(&[b, a]),
    ];
    for (at, one) in all.iter().enumerate() {
        assert!(!all[..at].contains(one));
    }
}
