//! What the documents name is there: files that they link to, tests that the specification promises;
//! and what they mark as runnable runs. That each command line can be read is a test of the program's
//! own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use iii_integration::binaries;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn documents() -> Vec<(PathBuf, String)> {
    let root = root();
    let mut found = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    for directory in [
        "docs",
        "examples/embed",
        "examples/node-worker",
        "examples/python-worker",
        "examples/quickstart",
        "examples/rust-worker",
        "images/node",
        "images/python",
    ] {
        for entry in fs::read_dir(root.join(directory)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(&path).unwrap()))
        .collect()
}

/// Every `](target)` of a document.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    for (path, text) in documents() {
        for link in links(&text).filter(|link| !link.contains("://") && !link.starts_with('#')) {
            let target = link.split('#').next().unwrap();
            if !path.parent().unwrap().join(target).exists() {
                faults.push(format!("{} links to {link}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// A block of a document that is to be tried, and what stands in its mark.
struct Marked<'t> {
    setup: &'t str,
    text: String,
}

/// `<!-- run -->` or `<!-- run: SETUP -->` before a code block says that it is run as it stands, in a
/// directory of its document's own; SETUP is what a reader has done before. `<!-- file: NAME -->`
/// says that a block is that file there.
fn marked<'t>(text: &'t str, mark: &str) -> Vec<Marked<'t>> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(rest) = line
            .strip_prefix("<!-- ")
            .and_then(|rest| rest.strip_suffix(" -->"))
            .and_then(|rest| rest.strip_prefix(mark))
        else {
            continue;
        };
        let open = lines.by_ref().find(|line| !line.is_empty()).unwrap();
        assert!(open.starts_with("```"), "a block follows {line}");
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        found.push(Marked {
            setup: rest.trim_start_matches(": "),
            text: block.join("\n") + "\n",
        });
    }
    found
}

#[test]
fn blocks_that_are_marked_run() {
    let mut ran = 0;
    let path = format!(
        "{}:{}",
        binaries().display(),
        std::env::var("PATH").unwrap()
    );
    for (document, text) in documents() {
        let directory = tempfile::tempdir().unwrap();
        for file in marked(&text, "file") {
            fs::write(directory.path().join(file.setup), file.text).unwrap();
        }
        for block in marked(&text, "run") {
            ran += 1;
            let script = format!("set -euo pipefail\n{}\n{}", block.setup, block.text);
            let output = Command::new("bash")
                .args(["-c", &script])
                .current_dir(directory.path())
                .env("PATH", &path)
                .env_remove("III_LOG")
                .env_remove("III_URL")
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}: {}\n{}\n{}",
                document.display(),
                block.text,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    assert!(ran >= 4, "the documents mark what can be run: {ran}");
}

#[test]
fn the_specification_names_tests_that_exist() {
    let tests = root().join("integration/tests");
    let text = fs::read_to_string(root().join("docs/specification.md")).unwrap();
    let mut named = 0;
    for span in text.split('`').skip(1).step_by(2) {
        let Some((file, test)) = span.split_once(": ") else {
            continue;
        };
        named += 1;
        let source = [tests.join("e2e").join(file), tests.join(file)]
            .iter()
            .find_map(|path| fs::read_to_string(path).ok())
            .unwrap_or_default();
        assert!(
            source.contains(&format!("fn {test}(")),
            "no test {test} in {file}"
        );
    }
    assert!(named > 10, "the specification is read as it is written");
}
