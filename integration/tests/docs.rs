//! What the documents name is there: files that they link to, commands and flags that they show,
//! tests that the specification promises.

// In a test, an unwrap is an assertion; the lint knows only functions marked as tests.
#![allow(clippy::unwrap_used)]

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
        "examples/quickstart",
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

fn help(words: &[&str]) -> Option<String> {
    let output = Command::new(binaries().join("iii-super"))
        .args(words)
        .arg("--help")
        .output()
        .unwrap();
    output
        .status
        .success()
        .then(|| String::from_utf8(output.stdout).unwrap())
}

/// The `iii-super …` command lines in code spans and code blocks.
fn commands(text: &str) -> Vec<Vec<&str>> {
    text.split(['`', '\n'])
        .map(|piece| piece.trim().trim_start_matches("$ "))
        .filter(|piece| piece.starts_with("iii-super "))
        .map(|piece| {
            let end = piece.find(['#', ';', '|', ',']).unwrap_or(piece.len());
            piece[..end].split_whitespace().skip(1).collect()
        })
        .collect()
}

#[test]
fn commands_and_flags_exist() {
    let general = help(&[]).unwrap();
    let mut faults = Vec::new();
    for (path, text) in documents() {
        for words in commands(&text) {
            let Some(command) = words.first().filter(|word| !word.starts_with('-')) else {
                continue;
            };
            // Prose such as "iii-super is …" is no command line.
            if !command.chars().all(|c| c.is_ascii_lowercase()) || words.len() > 6 {
                continue;
            }
            let missing = || format!("{}: iii-super {}", path.display(), words.join(" "));
            let Some(mut its_help) = help(&[command]) else {
                faults.push(missing());
                continue;
            };
            if its_help.contains("\nCommands:\n")
                && let Some(below) = words.get(1).filter(|word| !word.starts_with('-'))
            {
                let Some(more) = help(&[command, below]) else {
                    faults.push(missing());
                    continue;
                };
                its_help += &more;
            }
            for flag in words.iter().filter(|word| word.starts_with('-')) {
                let flag = flag.split('=').next().unwrap();
                if !its_help.contains(flag) && !general.contains(flag) {
                    faults.push(format!("{}: iii-super {command} {flag}", path.display()));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
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
        let source = fs::read_to_string(tests.join(file)).unwrap_or_default();
        assert!(
            source.contains(&format!("fn {test}(")),
            "no test {test} in {file}"
        );
    }
    assert!(named > 10, "the specification is read as it is written");
}
