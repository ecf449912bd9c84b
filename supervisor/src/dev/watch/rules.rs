//! Which files are watched: what `.gitignore`, `.iiiignore` and the manifest say, and a list of
//! what nobody means when they save.
//!
//! `.iiiignore` and the manifest's `ignore` win over `.gitignore`, and this over the list; a
//! pattern with `!` brings back what an earlier one took away.

use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// The project's own rules, beside git's.
pub(crate) const OWN_FILE: &str = ".iiiignore";
const GIT_FILE: &str = ".gitignore";

/// What tools write, and what editors write beside what is saved.
const ALWAYS: &[&str] = &[
    // Of tools.
    ".git/",
    ".hg/",
    ".svn/",
    "node_modules/",
    ".venv/",
    "venv/",
    "target/",
    "dist/",
    "__pycache__/",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    "*.egg-info/",
    ".next/",
    ".cache/",
    "coverage/",
    "*.pyc",
    // Of workers.
    "*.log",
    "*.pid",
    "*.sqlite*",
    "*.db",
    "*.db-*",
    // Of editors and desktops.
    "*~",
    "*.swp",
    "*.swo",
    "*.swx",
    "*.tmp",
    ".#*",
    "\\#*#",
    "4913",
    ".*.kate-swp",
    ".goutputstream-*",
    "*___jb_tmp___",
    "*___jb_old___",
    ".idea/",
    ".vscode/",
    ".DS_Store",
];

/// Read by workers as they start, and kept out of git for what is in them.
const NEVER: &[&str] = &["!.env", "!.env.*"];

/// The rules of one project.
#[derive(Debug)]
pub(crate) struct Rules {
    root: PathBuf,
    /// What wins first.
    own: Gitignore,
    /// By directory, the deepest first.
    git: Vec<Gitignore>,
    always: Gitignore,
}

impl Rules {
    /// Reads the rules of the root; those of further directories are added as they are met.
    pub(crate) fn new(root: &Path, manifest: &[String]) -> Self {
        let mut own = GitignoreBuilder::new(root);
        lines(&mut own, NEVER.iter().copied());
        lines(&mut own, manifest.iter().map(String::as_str));
        let file = root.join(OWN_FILE);
        if file.is_file()
            && let Some(error) = own.add(&file)
        {
            tracing::warn!(%error, "failed to read {OWN_FILE}");
        }
        let mut always = GitignoreBuilder::new(root);
        lines(&mut always, ALWAYS.iter().copied());
        let mut rules = Self {
            root: root.to_owned(),
            own: build(&own),
            git: Vec::new(),
            always: build(&always),
        };
        rules.enter(root);
        rules
    }

    /// Takes in the rules of a directory.
    pub(crate) fn enter(&mut self, directory: &Path) {
        let file = directory.join(GIT_FILE);
        if !file.is_file() || self.git.iter().any(|rules| rules.path() == directory) {
            return;
        }
        let mut builder = GitignoreBuilder::new(directory);
        if let Some(error) = builder.add(&file) {
            tracing::warn!(%error, "failed to read {}", file.display());
        }
        let depth = |rules: &Gitignore| rules.path().components().count();
        self.git.push(build(&builder));
        self.git
            .sort_by_key(|rules| std::cmp::Reverse(depth(rules)));
    }

    /// Whether a change of this file decides what is watched.
    pub(crate) fn is_rule(path: &Path) -> bool {
        path.file_name()
            .is_some_and(|name| name == GIT_FILE || name == OWN_FILE)
    }

    /// Whether nobody means this path, which lies below the root.
    pub(crate) fn ignores(&self, path: &Path, is_directory: bool) -> bool {
        let Ok(relative) = path.strip_prefix(&self.root) else {
            return true;
        };
        // A parent that is ignored takes all below it with it, as in git.
        let mut at = self.root.clone();
        let mut components = relative.components().peekable();
        while let Some(component) = components.next() {
            at.push(component);
            let is_directory = is_directory || components.peek().is_some();
            if self.ignores_itself(&at, is_directory) {
                return true;
            }
        }
        false
    }

    fn ignores_itself(&self, path: &Path, is_directory: bool) -> bool {
        let git = self
            .git
            .iter()
            .filter(|rules| path.starts_with(rules.path()));
        let all = std::iter::once(&self.own)
            .chain(git)
            .chain(std::iter::once(&self.always));
        for rules in all {
            match rules.matched(path, is_directory) {
                Match::Ignore(_) => return true,
                Match::Whitelist(_) => return false,
                Match::None => {}
            }
        }
        false
    }
}

fn lines<'l>(builder: &mut GitignoreBuilder, lines: impl Iterator<Item = &'l str>) {
    for line in lines {
        if let Err(error) = builder.add_line(None, line) {
            tracing::warn!(%error, line, "failed to read a pattern");
        }
    }
}

fn build(builder: &GitignoreBuilder) -> Gitignore {
    builder.build().unwrap_or_else(|error| {
        tracing::warn!(%error, "failed to read patterns");
        Gitignore::empty()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = directory.path().to_owned();
        (directory, root)
    }

    fn ignored(rules: &Rules, root: &Path, path: &str) -> bool {
        rules.ignores(&root.join(path.trim_end_matches('/')), path.ends_with('/'))
    }

    #[test]
    fn what_tools_and_editors_write_is_ignored_and_what_is_saved_is_not() {
        let (_directory, root) = project(&[]);
        let rules = Rules::new(&root, &[]);
        for path in [
            ".git/index",
            "node_modules/a/index.js",
            "sub/node_modules/",
            "target/debug/app",
            "a/__pycache__/b.pyc",
            ".main.py.swp",
            "main.py~",
            "4913",
            "#main.py#",
            ".#main.py",
            "app.log",
            "data.sqlite3-wal",
        ] {
            assert!(ignored(&rules, &root, path), "{path}");
        }
        for path in [
            "main.py",
            "src/",
            "src/index.js",
            ".env",
            ".env.local",
            "package.json",
            "targets.py",
            "docs/readme.md",
        ] {
            assert!(!ignored(&rules, &root, path), "{path}");
        }
        assert!(rules.ignores(Path::new("/elsewhere"), false));
    }

    #[test]
    fn own_rules_win_over_gits_and_gits_deeper_ones_over_those_above() {
        let (_directory, root) = project(&[
            (".gitignore", "/build\n*.gen.js\nsecret\n.env\n"),
            ("sub/.gitignore", "!kept.gen.js\nonly-here\n"),
            (".iiiignore", "docs/\n!build\n"),
        ]);
        let mut rules = Rules::new(&root, &[String::from("fixtures/")]);
        rules.enter(&root.join("sub"));
        for (path, expected) in [
            ("build/x", false),
            ("sub/build/x", false),
            ("a.gen.js", true),
            ("sub/a.gen.js", true),
            ("sub/kept.gen.js", false),
            ("only-here", false),
            ("sub/only-here", true),
            ("docs/a.md", true),
            ("fixtures/a", true),
            ("secret", true),
            (".env", false),
        ] {
            assert_eq!(ignored(&rules, &root, path), expected, "{path}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_is_left_out() {
        let (_directory, root) = project(&[(".iiiignore", "a\\\nb\n")]);
        let rules = Rules::new(&root, &[String::from("[z-a]")]);
        assert!(ignored(&rules, &root, "b"));
        assert!(!ignored(&rules, &root, "a"));
    }
}
