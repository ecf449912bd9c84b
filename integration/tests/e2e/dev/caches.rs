//! Dependencies are the guest's: neither taken from the host's project nor put there.

use std::fs;

use super::{Project, names};

const PACKAGE: &str = r#"{
  "name": "app", "version": "1.0.0", "private": true,
  "dependencies": {"greet": "file:./greet"},
  "scripts": {"start": "node index.js"}
}"#;

#[test]
fn a_node_project_has_its_own_node_modules_which_is_kept() {
    let project = Project::new(
        "node",
        &[
            ("package.json", PACKAGE),
            (
                "greet/package.json",
                r#"{"name": "greet", "version": "1.0.0"}"#,
            ),
            ("greet/index.js", "module.exports = () => 'hello'\n"),
            (
                "index.js",
                "console.log('greets', require('greet')());\nsetInterval(() => {}, 1e6)\n",
            ),
            // What the host has under the same name must not be used.
            (
                "node_modules/greet/package.json",
                r#"{"name": "greet", "version": "9.9.9"}"#,
            ),
            (
                "node_modules/greet/index.js",
                "throw new Error('the host\\'s')\n",
            ),
        ],
    );
    let before = names(&project.root);
    for installs in [true, false] {
        let mut dev = project.dev(&[]);
        if installs {
            // npm takes its time in a guest without hardware virtualisation.
            let begun = dev.line(0, "> npm install --no-package-lock");
            dev.line(begun, "added 1 package");
        }
        let greets = dev.line(0, "greets hello");
        project.save(
            "index.js",
            "console.log('saved', require('greet')());\nsetInterval(() => {}, 1e6)\n",
        );
        let saved = dev.line(greets, "saved hello");
        assert_eq!(dev.boot(greets), dev.boot(saved));
        project.save(
            "index.js",
            "console.log('greets', require('greet')());\nsetInterval(() => {}, 1e6)\n",
        );
        dev.line(saved, "greets hello");
        dev.quit();
        let installed = dev.lines().contains(&"> npm install --no-package-lock");
        assert_eq!(installed, installs, "{}", dev.story());
    }
    assert_eq!(names(&project.root), before);
    assert_eq!(names(&project.path("node_modules")), ["greet"]);
    let hosts = fs::read_to_string(project.path("node_modules/greet/index.js")).unwrap();
    assert!(hosts.contains("throw"), "{hosts}");

    // A project that has none yet has none afterwards.
    fs::remove_dir_all(project.path("node_modules")).unwrap();
    let mut dev = project.dev(&[]);
    dev.line(0, "greets hello");
    dev.quit();
    assert!(!project.path("node_modules").exists());
}
