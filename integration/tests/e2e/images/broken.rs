//! Registries that send something else, lines that break off, hosts that fail in between.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use iii_integration::PATIENCE;
use iii_integration::images::{BadLine, Layer, Line, Registry, layout, noise};
use iii_integration::program::eventually;

use super::{count, here, image, pull, puller, said};

/// A layer of three million bytes, and another.
fn large() -> Vec<Layer> {
    let content = noise(3_000_000);
    vec![
        Layer::new().file("large", &content, 0o644, 0),
        Layer::busybox(),
    ]
}

#[test]
fn a_line_that_breaks_off_again_and_again_only_delays() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), large(), &[]);
    let registry = Registry::start();
    registry.push(&layout, "app", &[]);
    let puller = puller(directory.path());
    let line = BadLine::to(registry.port, Line::CutAfter(700_000));
    let (image, _) = pull(&puller, &line.name("app")).unwrap();
    drop(image);
    // The layers once, and little more: each try went on where the last one ended.
    let answered = line.answered();
    assert!(answered < 5_000_000, "{answered}");
    assert!(line.resumed() >= 4, "{}", line.resumed());
    assert_eq!(count(&puller, "partial"), 0);
}

#[test]
fn a_line_that_never_brings_anything_is_given_up_and_what_came_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), large(), &[]);
    let registry = Registry::start();
    registry.push(&layout, "app", &[]);
    let puller = puller(directory.path());
    // Enough for the documents, then less and less of the layers.
    let line = BadLine::to(registry.port, Line::CutAfter(200_000));
    let spoilt = std::thread::scope(|scope| {
        let spoil = scope.spawn(|| {
            eventually("a part of a layer", PATIENCE, || {
                count(&puller, "partial") > 0
            });
            line.becomes(Line::CutAfter(0));
        });
        let error = pull(&puller, &line.name("app")).unwrap_err();
        spoil.join().unwrap();
        error.to_string()
    });
    assert!(spoilt.contains("broke off 5 times in a row"), "{spoilt}");
    assert_eq!(count(&puller, "roots"), 0, "nothing half made");
    assert!(count(&puller, "partial") > 0);
    line.becomes(Line::Whole);
    pull(&puller, &line.name("app")).unwrap();
    assert!(line.resumed() > 0);
}

#[test]
fn a_pull_that_was_killed_is_continued_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), large(), &[]);
    let registry = Registry::start();
    registry.push(&layout, "app", &[]);
    let home = directory.path().join("home");
    let line = BadLine::to(registry.port, Line::StallAfter(1_500_000));
    let name = line.name("app");
    let mut child = image(&home, &["pull", &name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let partial = home.join("images/partial");
    let fetched = || {
        let files = fs::read_dir(&partial).into_iter().flatten().flatten();
        files
            .map(|file| file.metadata().map_or(0, |found| found.len()))
            .sum::<u64>()
    };
    eventually("a part of a layer", PATIENCE, || fetched() > 1_000_000);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    line.answered();
    line.becomes(Line::Whole);
    let output = image(&home, &["pull", &name]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let answered = line.answered();
    assert!(
        answered < 3_500_000,
        "{answered} of more than 4 million bytes were fetched again"
    );
    for directory in ["partial", "roots"] {
        let left = fs::read_dir(home.join("images").join(directory)).unwrap();
        assert_eq!(left.count(), usize::from(directory == "roots"));
    }
}

#[test]
fn two_at_once_fetch_once() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), large(), &[]);
    let registry = Registry::start();
    registry.push(&layout, "app", &[]);
    let line = BadLine::to(registry.port, Line::Whole);
    let home = directory.path().join("home");
    let name = line.name("app");
    let both: Vec<_> = (0..2)
        .map(|_| {
            image(&home, &["pull", &name])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in both {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    }
    let answered = line.answered();
    assert!(answered < 6_000_000, "{answered}");
}

#[test]
fn other_bytes_than_were_announced_are_refused_and_leave_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let layout = layout(directory.path(), large(), &[]);
    let registry = Registry::start();
    let name = registry.push(&layout, "app", &[]);
    let puller = puller(directory.path());
    // Which blob is the large layer: the largest.
    let mut blobs: Vec<(u64, String)> = fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            (entry.metadata().unwrap().len(), name)
        })
        .collect();
    blobs.sort();
    let blob = registry.blob(&blobs.last().unwrap().1);
    let whole = fs::read(&blob).unwrap();
    for (forged, expected) in [
        ([&whole[..whole.len() - 1], b"!"].concat(), "what came is"),
        (whole[..whole.len() - 10].to_vec(), "fewer bytes"),
        ([&whole[..], b"more"].concat(), "more than the"),
    ] {
        fs::write(&blob, forged).unwrap();
        let error = pull(&puller, &name).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(count(&puller, "roots"), 0);
        assert!(here(&puller, &name).is_err());
        fs::remove_dir_all(puller.store.directory().join("partial")).unwrap();
        fs::create_dir(puller.store.directory().join("partial")).unwrap();
    }
    // What a crash of the host left behind of an earlier try is not trusted either.
    fs::write(&blob, &whole).unwrap();
    let partial = puller
        .store
        .directory()
        .join("partial")
        .join(&blobs.last().unwrap().1);
    fs::write(&partial, vec![0; 1_000_000]).unwrap();
    pull(&puller, &name).unwrap();
    assert_eq!(count(&puller, "partial"), 0);
}

#[test]
fn what_is_not_there_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let registry = Registry::start();
    let puller = puller(directory.path());
    let error = pull(&puller, &registry.name("nothing:1"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("failed to find the image nothing:1"),
        "{error}"
    );
    assert!(error.contains("check its name"), "{error}");
    let name = registry.name("app");
    drop(registry);
    let error = pull(&puller, &name).unwrap_err().to_string();
    assert!(error.contains("failed to reach the registry"), "{error}");
}
