//! A test per row of the tables, and what no table says.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    directory
}

fn detected(files: &[(&str, &str)]) -> Project {
    let directory = directory(files);
    detect(directory.path()).unwrap_or_else(|error| panic!("{files:?}: {error}"))
}

/// Content that says nothing, but that the reader of such a file accepts.
fn empty(file: &str) -> (&str, &str) {
    let is_json = file.ends_with(".json");
    (file, if is_json { "{}" } else { "" })
}

/// A file by which a kind is known, and which no earlier kind is known by.
fn marker(kind: Kind) -> &'static str {
    KINDS.iter().find(|(k, _)| *k == kind).unwrap().1
}

#[test]
fn each_row_of_starts_is_started_as_it_says() {
    for (at, row) in STARTS.iter().enumerate() {
        let project = detected(&[empty(marker(row.kind)), empty(row.file)]);
        let first = STARTS.iter().position(|other| other.command == row.command);
        assert_eq!(first, Some(at), "{} is said twice", row.command);
        assert_eq!(project.steps.start, row.command, "{row:?}");
        assert_eq!(project.kind, row.kind, "{row:?}");
        assert_eq!(project.found, row.file);
        assert!(
            project.programs.contains(&row.program.to_owned()),
            "{row:?}"
        );
    }
}

#[test]
fn each_row_of_installs_is_installed_as_it_says() {
    for row in INSTALLS {
        let start = STARTS.iter().find(|start| start.kind == row.kind).unwrap();
        let package = r#"{"dependencies": {"a": "1"}}"#;
        let mut files = vec![empty(row.file), empty(start.file)];
        match row.kind {
            Kind::Node | Kind::Bun => files.push(("package.json", package)),
            _ => {}
        }
        if !KINDS
            .iter()
            .any(|(kind, file)| *kind == row.kind && *file == row.file)
        {
            files.push(empty(marker(row.kind)));
        }
        if (row.kind, row.file) == (Kind::Bun, "package.json") {
            files = vec![
                ("bunfig.toml", ""),
                ("package.json", package),
                ("index.ts", ""),
            ];
        }
        // A file that is written twice keeps the content that is to count.
        files.sort_by_key(|(name, text)| (*name != "package.json", text.len()));
        let project = detected(&files);
        assert_eq!(project.kind, row.kind, "{row:?}");
        assert_eq!(
            project.steps.install.as_deref(),
            Some(row.command),
            "{row:?}"
        );
        assert!(
            project.depends_on.contains(&row.file.to_owned()),
            "{project:?}"
        );
        assert!(
            project.programs.contains(&row.program.to_owned()),
            "{row:?}"
        );
    }
}

#[test]
fn each_row_of_kinds_is_recognised() {
    for (kind, file) in KINDS {
        let directory = directory(&[empty(file)]);
        match detect(directory.path()) {
            Ok(project) => assert_eq!(project.kind, *kind, "{file}"),
            Err(DetectError::NoStart {
                kind: found,
                marker,
                ..
            }) => {
                assert_eq!((found, marker), (*kind, *file));
            }
            Err(error) => panic!("{file}: {error}"),
        }
    }
}

#[test]
fn a_script_of_package_json_wins_over_files() {
    let package =
        r#"{"scripts": {"start": "node a.js", "dev": "node --inspect b.js"}, "main": "c.js"}"#;
    let project = detected(&[("package.json", package), ("index.js", "")]);
    assert_eq!(project.steps.start, "node --inspect b.js");
    assert_eq!(project.found, "package.json: scripts.dev");
    assert_eq!(project.cached, ["node_modules"]);
    assert_eq!(
        (project.steps.install, project.watches_itself),
        (None, None)
    );

    let hooked = r#"{"scripts": {"predev": "x", "dev": "vite"}, "devDependencies": {"vite": "1"}}"#;
    let project = detected(&[("package.json", hooked), ("package-lock.json", "{}")]);
    assert_eq!(project.steps.start, "npm run dev");
    assert_eq!(project.steps.install.as_deref(), Some("npm ci"));
    assert_eq!(project.watches_itself.as_deref(), Some("vite"));

    let main = detected(&[("package.json", r#"{"main": "lib/it is.js"}"#)]);
    assert_eq!(main.steps.start, "node 'lib/it is.js'");
    let task = detected(&[("deno.json", r#"{"tasks": {"dev": "deno run x.ts"}}"#)]);
    assert_eq!(task.steps.start, "deno task dev");
}

#[test]
fn executables_are_started_by_name() {
    let directory = directory(&[
        ("start", "#!/bin/sh\n"),
        ("other.sh", "#!/bin/sh\n"),
        ("x.py", ""),
    ]);
    for name in ["start", "other.sh"] {
        let path = directory.path().join(name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let start = |path: &Path| detect(path).unwrap().steps.start;
    assert_eq!(start(directory.path()), "./start");
    assert_eq!(start(&directory.path().join("other.sh")), "./other.sh");
    assert_eq!(start(&directory.path().join("x.py")), "python3 x.py");
    std::fs::remove_file(directory.path().join("start")).unwrap();
    assert_eq!(start(directory.path()), "./other.sh", "the only one");
}

#[test]
fn a_manifest_wins_over_what_is_guessed() {
    let manifest = "name: mine\nscripts: {start: ./go}\n";
    let package = r#"{"dependencies": {"a": "1"}}"#;
    let project = detected(&[
        ("iii.worker.yaml", manifest),
        ("package.json", package),
        ("index.js", ""),
    ]);
    assert_eq!(project.steps.start, "./go");
    assert_eq!(project.name.as_deref(), Some("mine"));
    let install = "npm install --no-package-lock";
    assert_eq!(project.steps.install.as_deref(), Some(install), "left open");
    assert_eq!(project.depends_on, ["package.json", "iii.worker.yaml"]);

    let alone = detected(&[("iii.worker.yaml", manifest)]);
    assert_eq!(alone.kind, Kind::Manifest);
    let directory = directory(&[("iii.worker.yaml", "name: mine\n")]);
    let error = detect(directory.path()).unwrap_err().to_string();
    assert!(error.contains("failed to recognise"), "{error}");
}

#[test]
fn what_is_missing_is_said_with_what_to_write() {
    let nothing = directory(&[]);
    let error = detect(nothing.path()).unwrap_err().to_string();
    assert!(
        error.contains("package.json") && error.contains("scripts:\n      start:"),
        "{error}"
    );
    let no_start = directory(&[("pyproject.toml", "")]);
    let error = detect(no_start.path()).unwrap_err().to_string();
    assert!(
        error.contains("Python by its pyproject.toml") && error.contains("main.py"),
        "{error}"
    );
    let broken = directory(&[("package.json", "{\n  \"scripts\": }")]);
    let error = detect(broken.path()).unwrap_err().to_string();
    assert!(error.contains("package.json:2:"), "{error}");
    let error = detect(Path::new("/nowhere/at/all"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
}
