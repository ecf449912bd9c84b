//! Every command line that the documents and the help texts show can be read by the program.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use super::arguments::Arguments;

/// What stands in a document for a word of the reader's own.
const PLACEHOLDERS: [(&str, &str); 9] = [
    ("NAME", "web"),
    ("NAME…", "web"),
    ("NAMES", "web"),
    ("FILE", "iii.workers.yaml"),
    ("DIR", "directory"),
    ("PATH", "directory"),
    ("SIZE", "1GiB"),
    ("TIME", "10m"),
    ("URL", "ws://localhost:49134"),
];

/// Where a shell ends a command.
const ENDS: [&str; 7] = ["|", ">", ">>", "&&", "||", ";", "&"];

fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    let mut todo = vec![
        root.join("docs"),
        root.join("examples"),
        root.join("packaging"),
    ];
    while let Some(directory) = todo.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                found.push(path);
            }
        }
    }
    found.extend([root.join("README.md"), root.join("CONTRIBUTING.md")]);
    found
}

/// The command lines of a document: lines of its code blocks, and code in its sentences.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fence: Option<&str> = None;
    for line in text.lines() {
        let bare = line.trim_start();
        if let Some(info) = bare.strip_prefix("```") {
            fence = match fence {
                Some(_) => None,
                None => Some(info),
            };
            continue;
        }
        match fence {
            // In these the program's name begins no command.
            Some("rust" | "toml" | "ini" | "json" | "yaml") => {}
            Some(_) => found.push(bare.to_owned()),
            None => found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned)),
        }
    }
    found
}

/// The words behind `iii-super`, up to the end of its command; `None`: it is not called here.
fn arguments(line: &str) -> Option<Vec<String>> {
    let line = line.strip_prefix("$ ").unwrap_or(line);
    // A comment, as a shell has it.
    let line = match line.find(" #") {
        Some(at) => &line[..at],
        None => line,
    };
    let words = shell_words::split(line).ok()?;
    let mut words = words
        .into_iter()
        .skip_while(|word| word.contains('=') && !word.contains('/') || word == "sudo");
    let program = words.next()?;
    if program != "iii-super" && !program.ends_with("/iii-super") {
        return None;
    }
    let own = words.take_while(|word| !ENDS.contains(&word.as_str()));
    let own = own.map(|word| {
        let known = PLACEHOLDERS.iter().find(|(name, _)| *name == word);
        known.map_or(word, |(_, stands)| (*stands).to_owned())
    });
    Some(own.collect())
}

/// What is wrong with a command line.
fn fault(words: &[String]) -> Option<String> {
    let line = std::iter::once("iii-super").chain(words.iter().map(String::as_str));
    match Arguments::try_parse_from(line) {
        Ok(_) => None,
        Err(error) if error.exit_code() == 0 => None,
        // A command that is named, not given.
        Err(error)
            if error.kind() == ErrorKind::MissingRequiredArgument
                && words.iter().all(|word| is_bare(word)) =>
        {
            None
        }
        Err(error) => Some(error.to_string()),
    }
}

fn is_bare(word: &str) -> bool {
    word.chars().all(|c| c.is_ascii_lowercase())
}

#[test]
fn every_command_line_of_the_documents_is_one() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for path in documents() {
        let text = std::fs::read_to_string(&path).unwrap();
        for line in commands(&text) {
            // The bare name is no command line.
            let Some(words) = arguments(&line).filter(|words| !words.is_empty()) else {
                continue;
            };
            seen += 1;
            if let Some(error) = fault(&words) {
                faults.push(format!("{}: {line}\n{error}", path.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(
        seen > 30,
        "the documents are read as they are written: {seen}"
    );
}

#[test]
fn every_command_has_examples_that_are_command_lines_and_tells_its_exit_codes() {
    let mut faults = Vec::new();
    let program = Arguments::command();
    let mut todo: Vec<&clap::Command> = program.get_subcommands().collect();
    let mut nested = 0;
    while let Some(command) = todo.pop() {
        todo.extend(command.get_subcommands());
        nested += command.get_subcommands().count();
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_default();
        if !help.contains("Exit codes: ") {
            faults.push(format!("{}: no exit codes", command.get_name()));
        }
        let lines = help.lines().filter(|line| line.starts_with("  "));
        let examples: Vec<Vec<String>> = lines
            // What it does stands behind it.
            .filter_map(|line| arguments(line.trim_start().split("   ").next()?))
            .collect();
        if examples.is_empty() {
            faults.push(format!("{}: no example", command.get_name()));
        }
        for words in examples {
            if let Some(error) = fault(&words) {
                faults.push(format!(
                    "{}: {}\n{error}",
                    command.get_name(),
                    words.join(" ")
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(nested > 0, "commands of commands are looked at");
}

#[test]
fn command_lines_are_found_where_they_stand() {
    let text =
        "Say `iii-super run web` or\n```\n$ III_LOG=debug ./x/iii-super ps | jq .  # c\nx\n```\n";
    let found: Vec<Vec<String>> = commands(text).iter().filter_map(|l| arguments(l)).collect();
    assert_eq!(found, [vec!["run", "web"], vec!["ps"]]);
    assert!(fault(&["rnu".into()]).is_some());
    assert!(fault(&["run".into(), "--no-such-flag".into()]).is_some());
    assert_eq!(fault(&["run".into(), "--help".into()]), None);
}
