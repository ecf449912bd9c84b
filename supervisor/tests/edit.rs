//! `iii-super add` and `remove` as a user calls them.
#![expect(
    clippy::unwrap_used,
    reason = "a test's helpers may fail like the test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A home and a project in it.
struct Project {
    home: TempDir,
}

impl Project {
    fn new(text: Option<&str>) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("app")).unwrap();
        let project = Self { home };
        if let Some(text) = text {
            fs::write(project.file(), text).unwrap();
        }
        project
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join("app")
    }

    fn file(&self) -> PathBuf {
        self.directory().join("iii.workers.yaml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn run(&self, words: &[&str]) -> (i32, String, String) {
        self.run_in(&self.directory(), words)
    }

    fn run_in(&self, directory: &Path, words: &[&str]) -> (i32, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_iii-super"))
            .args(words)
            .current_dir(directory)
            .env("HOME", self.home.path())
            .env("LEVEL", "info")
            .env_remove("III_HOME")
            .env_remove("III_LOG")
            .env_remove("III_URL")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let code = output.status.code().unwrap();
        (code, text(output.stdout), text(output.stderr))
    }

    /// A command that succeeds.
    fn done(&self, words: &[&str]) -> String {
        let (code, stdout, stderr) = self.run(words);
        assert_eq!((code, &*stderr), (0, ""), "{words:?}");
        stdout
    }

    /// A command that is refused and changes nothing; what is said.
    fn refused(&self, words: &[&str]) -> String {
        let before = fs::read(self.file()).ok();
        let (code, stdout, stderr) = self.run(words);
        assert_eq!((code, &*stdout), (2, ""), "{words:?} {stderr}");
        assert_eq!(fs::read(self.file()).ok(), before);
        self.nothing_else_is_left(usize::from(before.is_some()));
        stderr
    }

    fn nothing_else_is_left(&self, files: usize) {
        assert_eq!(fs::read_dir(self.directory()).unwrap().count(), files);
        let projects = self.home.path().join(".iii/projects");
        assert_eq!(fs::read_dir(projects).into_iter().flatten().count(), 0);
    }

    fn config(&self) -> serde_json::Value {
        serde_json::from_str(&self.done(&["config", "--json"])).unwrap()
    }
}

const SHOP: &str = "\
# The shop.
workers:
  # Keeps the stock.
  stock:
    command: [sleep, \"1\"]   # a second

  web:
    command: sleep 2
    depends_on: [stock]
";

#[test]
fn a_new_file_names_its_schema_and_is_sound() {
    let project = Project::new(None);
    let said = project.done(&["add", "web", "--path", ".", "--", "sleep", "1"]);
    assert_eq!(
        said,
        "added worker \"web\" in iii.workers.yaml, which was made\nstart it: iii-super run web\n"
    );
    let text = project.text();
    let (first, rest) = text.split_once('\n').unwrap();
    assert!(
        first.starts_with("# yaml-language-server: $schema=https://"),
        "{first}"
    );
    assert_eq!(
        rest,
        "workers:\n  web:\n    path: .\n    command: [sleep, \"1\"]\n"
    );
    project.config();
    project.nothing_else_is_left(1);
    // The last one out leaves a file that takes the next one.
    project.done(&["remove", "web"]);
    assert_eq!(project.text(), format!("{first}\nworkers: {{}}\n"));
    project.done(&["add", "web", "--command", "sleep 1"]);
    assert_eq!(
        project.text(),
        format!("{first}\nworkers:\n  web:\n    command: sleep 1\n")
    );
}

#[test]
fn every_option_arrives_where_the_file_has_it() {
    let project = Project::new(Some(SHOP));
    fs::create_dir(project.directory().join("data")).unwrap();
    fs::write(project.directory().join("s.env"), "TOKEN=x\n").unwrap();
    let words = "add api --command node --cwd /srv --env A=1 --env B=${LEVEL}-${LEVEL:-x} \
        --env-file s.env --secret A --secret TOKEN --port 8080:80 -p 9000 --mount ./data:/data:ro --cpus 2 --memory 300MiB \
        --pids 100 --open-files 1024 --persist 1GiB --restart always --health http:80/health \
        --depends-on stock:started --depends-on web --network engine --allow 10.0.0.0/8:5432 \
        --host-port 5432 --user 1000:100 --stop-grace 3s";
    let words: Vec<&str> = words.split_whitespace().collect();
    project.done(&words);
    let text = project.text();
    let added = text
        .strip_prefix(SHOP)
        .expect("everything else is as it was");
    assert_eq!(
        added,
        "
  api:
    root: {persist: 1GiB}
    command: node
    cwd: /srv
    env:
      A: \"1\"
      B: \"${LEVEL}-${LEVEL:-x}\"
    env_file: s.env
    secrets: [A, TOKEN]
    ports: [\"8080:80\", \"9000\"]
    mounts: [\"./data:/data:ro\"]
    resources: {cpus: 2, memory: 300MiB, pids: 100, open_files: 1024}
    restart: always
    health: {http: 80/health}
    depends_on: {stock: started, web: ready}
    network:
      mode: engine
      allow: [\"10.0.0.0/8:5432\"]
      host_ports: [5432]
    user: \"1000:100\"
    stop_grace: 3s
"
    );
    let api = &project.config()["workers"]["api"];
    assert_eq!(api["env"]["B"], "info-info");
    assert_eq!(api["resources"]["cpus"], 2);
    assert_eq!(api["depends_on"]["web"]["condition"], "ready");
    // An image may have a command of its own.
    project.done(&[
        "add",
        "api",
        "--replace",
        "--image",
        "debian:12-slim",
        "--disk",
        "64MiB",
    ]);
    let added = project.text().strip_prefix(SHOP).unwrap().to_owned();
    assert_eq!(
        added,
        "\n  api:\n    image: \"debian:12-slim\"\n    resources: {disk: 64MiB}\n"
    );
    // In its place again, and out.
    let said = project.done(&[
        "add",
        "api",
        "--replace",
        "--env",
        "LEVEL",
        "--",
        "sh",
        "-c",
        "a | b",
    ]);
    assert!(said.starts_with("replaced worker \"api\""), "{said}");
    let added = project.text().strip_prefix(SHOP).unwrap().to_owned();
    assert_eq!(
        added,
        "\n  api:\n    command: [sh, -c, \"a | b\"]\n    env: [LEVEL]\n"
    );
    project.done(&["remove", "api"]);
    assert_eq!(project.text(), SHOP);
}

#[test]
fn a_dry_run_shows_the_change_and_makes_none() {
    let project = Project::new(Some(SHOP));
    let diff = project.done(&["add", "api", "--dry-run", "--command", "node x.js"]);
    assert_eq!(
        diff,
        "\
--- iii.workers.yaml
+++ iii.workers.yaml
@@ -7,3 +7,6 @@
   web:
     command: sleep 2
     depends_on: [stock]
+
+  api:
+    command: node x.js
"
    );
    assert_eq!(project.text(), SHOP);
    let json = project.done(&["remove", "web", "--dry-run", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["dry_run"], true);
    assert_eq!(json["workers"][0], "web");
    assert!(
        json["diff"].as_str().unwrap().contains("\n-  web:\n"),
        "{json}"
    );
    assert_eq!(project.text(), SHOP);

    let project = Project::new(None);
    let diff = project.done(&["add", "api", "--dry-run", "--command", "x"]);
    assert!(diff.starts_with("--- /dev/null\n"), "{diff}");
    project.nothing_else_is_left(0);
    assert!(!project.home.path().join(".iii").exists());
}

#[test]
fn json_tells_what_was_done() {
    let project = Project::new(None);
    let json = project.done(&["add", "web", "--json", "--command", "sleep 1"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["action"], "added");
    assert_eq!(json["created"], true);
    let file = project.file().canonicalize().unwrap();
    assert_eq!(json["file"], file.to_str().unwrap());
    let json = project.done(&["remove", "web", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["action"], &json["created"]),
        (&"removed".into(), &false.into())
    );
}

#[test]
fn paths_are_written_for_the_file_behind_a_link() {
    let project = Project::new(Some(SHOP));
    let links = project.home.path().join("links");
    for directory in [&links, &project.directory().join("api")] {
        fs::create_dir(directory).unwrap();
    }
    std::os::unix::fs::symlink(project.file(), links.join("w.yaml")).unwrap();
    let words = "add -f w.yaml api --path ../app/api --command x";
    let words: Vec<&str> = words.split_whitespace().collect();
    let (code, _, stderr) = project.run_in(&links, &words);
    assert_eq!(code, 0, "{stderr}");
    let api = project.directory().canonicalize().unwrap().join("api");
    let expected = [format!("{}:/app:rw", api.display())];
    assert_eq!(
        project.config()["workers"]["api"]["mounts"],
        serde_json::json!(expected)
    );
}

#[test]
fn paths_start_where_the_user_is() {
    let project = Project::new(Some(SHOP));
    for directory in ["app/api", "app/data", "other"] {
        fs::create_dir(project.home.path().join(directory)).unwrap();
    }
    let words = [
        "add",
        "-f",
        "app/iii.workers.yaml",
        "api",
        "--path",
        "app/api",
        "--mount",
        "app/./data:/d",
        "--mount",
        "other:/o",
        "--mount",
        "~/other:/h",
        "--command",
        "x",
    ];
    let (code, said, stderr) = project.run_in(project.home.path(), &words);
    assert_eq!(code, 0, "{stderr}");
    assert!(
        said.ends_with("start it: iii-super run -f app/iii.workers.yaml api\n"),
        "{said}"
    );
    let text = project.text();
    let other = project.home.path().join("other");
    let mounts = format!(
        "[\"./data:/d\", \"{}:/o\", \"~/other:/h\"]",
        other.display()
    );
    assert!(text.contains("    path: ./api\n"), "{text}");
    let flow = format!("    mounts: {mounts}\n");
    let block = mounts.trim_matches(['[', ']']).replace(", ", "\n      - ");
    let block = format!("    mounts:\n      - {block}\n");
    assert!(text.contains(&flow) || text.contains(&block), "{text}");
}

#[test]
fn what_would_not_be_sound_is_refused_with_its_remedy() {
    let project = Project::new(Some(SHOP));
    for (words, part) in [
        (&["add", "Web", "--command", "x"][..], "a worker's name"),
        (&["add", "web", "--command", "x"], "--replace replaces it"),
        (&["add", "api"], "has no `command`"),
        (&["add", "api", "--command", "a | b"], "shell syntax"),
        (
            &["add", "api", "--command", "x", "--memory", "512M"],
            "api.resources.memory: \"512M\" can mean two sizes",
        ),
        (
            &["add", "api", "--command", "x", "--path", "./none"],
            "make it: mkdir -p",
        ),
        (
            &["add", "api", "--command", "x", "--depends-on", "wbe"],
            "did you mean `web`?",
        ),
        (
            &["add", "api", "--command", "x", "--health", "8080"],
            "http:8080/health",
        ),
        (
            &["add", "api", "--command", "x", "--env", "A=${NOPE}"],
            "NOPE is not set",
        ),
        (
            &[
                "add",
                "web",
                "--replace",
                "--command",
                "x",
                "--depends-on",
                "web",
            ],
            "is a circle",
        ),
        (&["remove", "wbe"], "did you mean \"web\"?"),
        (
            &["remove", "stock"],
            "web depends on it; take it out of their depends_on, or remove them too: iii-super remove stock web",
        ),
        (&["remove", "-f", "none.yaml", "web"], "--file FILE"),
        (
            &["add", "-f", "none/w.yaml", "api", "--command", "x"],
            "failed to find directory none, in which none/w.yaml is to be; make it first",
        ),
    ] {
        let stderr = project.refused(words);
        assert!(stderr.contains(part), "{words:?}\n{stderr}");
        assert!(stderr.starts_with("iii-super: failed to "), "{stderr}");
    }
    // Both together can go.
    project.done(&["remove", "stock", "web"]);
    // Bytes that are no option's value are told by the parser of the command line.
    let (code, _, stderr) = project.run(&["add", "--command", "x"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("<NAME>"), "{stderr}");
}

#[test]
fn faults_that_the_file_has_already_stop_an_add_and_no_remove() {
    let project = Project::new(Some(
        "workers:\n  a: {command: x}\n  b: {command: x, path: ./none, env: {A: '${NOPE}'}}\n",
    ));
    let stderr = project.refused(&["add", "c", "--command", "x"]);
    assert!(
        stderr.starts_with("iii.workers.yaml:3:25: workers.b.path:"),
        "{stderr}"
    );
    assert!(
        stderr.contains("2 faults in iii.workers.yaml; correct that first"),
        "{stderr}"
    );
    project.done(&["remove", "a"]);
    project.done(&["remove", "b"]);
    let project = Project::new(Some("workers:\n  a: {command: [\n"));
    for words in [&["add", "c", "--command", "x"][..], &["remove", "a"]] {
        let stderr = project.refused(words);
        assert!(stderr.contains("iii.workers.yaml:"), "{stderr}");
        assert!(stderr.contains("not valid YAML"), "{stderr}");
    }
}

#[test]
fn what_cannot_be_edited_is_shown_to_be_written_by_hand() {
    let project = Project::new(Some("x-w: &w {a: {command: y}}\nworkers: *w\n"));
    let stderr = project.refused(&["add", "web", "--port", "8080:80", "--command", "sleep 1"]);
    assert!(
        stderr.ends_with(
            "write it by hand:\n\nworkers:\n  web:\n    command: sleep 1\n    ports: [\"8080:80\"]\n\n"
        ),
        "{stderr}"
    );
    let stderr = project.refused(&["remove", "a"]);
    assert!(stderr.contains("take it out by hand"), "{stderr}");
}
