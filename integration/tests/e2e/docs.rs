//! What the documents name is there: files that they link to, tests that the specification promises;
//! and what they mark as runnable runs. That each command line can be read is a test of the program's
//! own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use iii_integration::binaries;
use iii_integration::program::home;

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

/// A block of a document and the mark before it.
struct Block<'t> {
    /// As `` ```sh `` says it.
    language: &'t str,
    mark: Option<Mark<'t>>,
    text: String,
}

/// What is done about a block's commands.
enum Mark<'t> {
    /// `<!-- run -->` or `<!-- run: SETUP -->`: it is run as it stands, in a directory of its
    /// document's own; SETUP is what a reader has done before.
    Run(&'t str),
    /// `<!-- run by: FILE: TEST -->`: that test does the same.
    RunBy(&'t str),
    /// `<!-- not run: REASON -->`.
    NotRun(&'t str),
    /// `<!-- file: NAME -->`: it is that file in the document's directory.
    File(&'t str),
}

fn mark(line: &str) -> Option<Mark<'_>> {
    let text = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    let (kind, rest) = text.split_once(": ").unwrap_or((text, ""));
    match kind {
        "run" => Some(Mark::Run(rest)),
        "run by" => Some(Mark::RunBy(rest)),
        "not run" => Some(Mark::NotRun(rest)),
        "file" => Some(Mark::File(rest)),
        _ => None,
    }
}

fn blocks(text: &str) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    let mut before = "";
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            found.push(Block {
                language,
                mark: mark(before),
                text: block.join("\n") + "\n",
            });
        }
        if !line.is_empty() {
            before = line;
        }
    }
    found
}

/// The source of a test file, by its path in `integration/tests` or in the repository.
fn source(file: &str) -> String {
    let tests = root().join("integration/tests");
    [
        tests.join("e2e").join(file),
        tests.join(file),
        root().join(file),
    ]
    .iter()
    .find_map(|path| fs::read_to_string(path).ok())
    .unwrap_or_default()
}

fn is_test(named: &str) -> bool {
    named
        .split_once(": ")
        .is_some_and(|(file, test)| source(file).contains(&format!("fn {test}(")))
}

#[test]
fn every_block_of_commands_is_run_or_says_why_not() {
    let mut faults = Vec::new();
    for (document, text) in documents() {
        for block in blocks(&text) {
            let is_shell = matches!(block.language, "" | "sh" | "console");
            let fault = match block.mark {
                Some(Mark::Run(_) | Mark::File(_)) => continue,
                Some(Mark::RunBy(test)) if is_test(test) => continue,
                Some(Mark::NotRun(reason)) if !reason.is_empty() => continue,
                Some(Mark::RunBy(test)) => format!("no test {test}"),
                Some(Mark::NotRun(_)) => "no reason".to_owned(),
                None if is_shell => "no mark".to_owned(),
                None => continue,
            };
            faults.push(format!("{}: {fault}:\n{}", document.display(), block.text));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
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
        let (directory, home) = (tempfile::tempdir().unwrap(), home());
        for Block { mark, text, .. } in blocks(&text) {
            let setup = match mark {
                Some(Mark::File(name)) => {
                    fs::write(directory.path().join(name), text).unwrap();
                    continue;
                }
                Some(Mark::Run(setup)) => setup,
                Some(Mark::RunBy(_) | Mark::NotRun(_)) | None => continue,
            };
            ran += 1;
            let script = format!("set -euo pipefail\n{setup}\n{text}");
            let output = Command::new("bash")
                .args(["-c", &script])
                .current_dir(directory.path())
                .env("PATH", &path)
                .env("III_HOME", home.path())
                .env_remove("III_LOG")
                .env_remove("III_URL")
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "{}: {}\n{}\n{}",
                document.display(),
                text,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    assert!(ran >= 4, "the documents mark what can be run: {ran}");
}

#[test]
fn the_specification_names_tests_that_exist() {
    let text = fs::read_to_string(root().join("docs/specification.md")).unwrap();
    let mut named = 0;
    for span in text.split('`').skip(1).step_by(2) {
        let Some((file, test)) = span.split_once(": ") else {
            continue;
        };
        named += 1;
        assert!(
            source(file).contains(&format!("fn {test}(")),
            "no test {test} in {file}"
        );
    }
    assert!(named > 10, "the specification is read as it is written");
}
