//! Which files of a project were saved.
//!
//! Each directory that is not ignored is watched by itself: a watch on all below the root would
//! use up the host's watches on `node_modules`. A directory that is new is looked through when it
//! is seen, since files may have been put into it before it was watched.

mod rules;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{Config, ErrorKind, Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

pub(crate) use self::rules::{OWN_FILE, Rules};

/// Paths that are kept until they are asked for; beyond it only that there are more is known.
const MOST_PATHS: usize = 4096;
/// Directories that are watched.
const MOST_DIRECTORIES: usize = 100_000;

/// Why a project cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WatchError {
    /// The host's limit.
    #[error(
        "failed to watch {}: this user's limit of watched directories is used up; raise it (sudo \
         sysctl fs.inotify.max_user_watches=524288), or ignore what need not be watched in {OWN_FILE}",
        directory.display()
    )]
    Limit { directory: PathBuf },
    /// Too many directories.
    #[error(
        "failed to watch {}: it holds more than {MOST_DIRECTORIES} directories; ignore what need \
         not be watched in {OWN_FILE}",
        directory.display()
    )]
    TooMany { directory: PathBuf },
    /// Anything else.
    #[error("failed to watch {}: {source}", directory.display())]
    System {
        directory: PathBuf,
        source: notify::Error,
    },
}

/// What has changed since it was last asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Absolute paths of files, and of directories that are new or gone.
    pub(crate) paths: BTreeSet<PathBuf>,
    /// Those of them that another file was given the name of: who watches the file that was there
    /// before sees nothing of it.
    pub(crate) replaced: BTreeSet<PathBuf>,
    /// There were more than could be kept, or the kernel has dropped some.
    pub(crate) more: bool,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.paths.is_empty() && !self.more
    }
}

#[derive(Debug, Default)]
struct Inbox {
    changes: Mutex<Changes>,
    arrived: Notify,
}

/// Watches a project.
#[derive(Debug)]
pub(crate) struct Watch {
    root: PathBuf,
    patterns: Vec<String>,
    rules: Rules,
    watcher: RecommendedWatcher,
    watched: BTreeSet<PathBuf>,
    inbox: Arc<Inbox>,
}

impl Watch {
    /// Watches `root`; `patterns` are the manifest's.
    pub(crate) fn new(root: &Path, patterns: &[String]) -> Result<Self, WatchError> {
        let inbox = Arc::new(Inbox::default());
        let handler = {
            let inbox = Arc::clone(&inbox);
            move |event| inbox.take_in(event)
        };
        let config = Config::default().with_follow_symlinks(false);
        let watcher =
            RecommendedWatcher::new(handler, config).map_err(|source| WatchError::System {
                directory: root.to_owned(),
                source,
            })?;
        let mut watch = Self {
            root: root.to_owned(),
            patterns: patterns.to_vec(),
            rules: Rules::new(root, patterns),
            watcher,
            watched: BTreeSet::new(),
            inbox,
        };
        watch.descend(root, &mut BTreeSet::new())?;
        Ok(watch)
    }

    /// Waits for changes that count.
    pub(crate) async fn next(&mut self) -> Result<Changes, WatchError> {
        loop {
            self.inbox.arrived.notified().await;
            let inbox = self.inbox.changes.lock();
            let changes = std::mem::take(&mut *inbox.unwrap_or_else(PoisonError::into_inner));
            let changes = self.sift(changes)?;
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    /// Leaves out what is ignored, and takes in directories that are new.
    fn sift(&mut self, changes: Changes) -> Result<Changes, WatchError> {
        let mut counted = Changes {
            paths: BTreeSet::new(),
            replaced: changes.replaced,
            more: changes.more,
        };
        if changes.more || changes.paths.iter().any(|path| Rules::is_rule(path)) {
            self.rules = Rules::new(&self.root, &self.patterns);
            let root = self.root.clone();
            // Watched anew where that is wanted now. A watch that is not is harmless: what it tells
            // is left out.
            self.descend(&root, &mut BTreeSet::new())?;
        }
        for path in changes.paths {
            let kind = std::fs::symlink_metadata(&path).map(|meta| meta.file_type());
            let is_directory = match &kind {
                Ok(kind) => kind.is_dir(),
                Err(_) => self.watched.remove(&path),
            };
            if self.rules.ignores(&path, is_directory) || Rules::is_rule(&path) {
                continue;
            }
            if is_directory && kind.is_ok() {
                self.descend(&path, &mut counted.paths)?;
            }
            counted.paths.insert(path);
        }
        counted.replaced.retain(|path| counted.paths.contains(path));
        Ok(counted)
    }

    /// Watches a directory and all below it; `found` gets the files of those that were not watched
    /// before.
    fn descend(&mut self, top: &Path, found: &mut BTreeSet<PathBuf>) -> Result<(), WatchError> {
        let mut open = vec![top.to_owned()];
        while let Some(directory) = open.pop() {
            if directory != self.root && self.rules.ignores(&directory, true) {
                continue;
            }
            let is_new = self.watch(&directory)?;
            self.rules.enter(&directory);
            // It may be gone again, or not be ours to read: there is nothing to be watched then.
            let Ok(entries) = std::fs::read_dir(&directory) else {
                continue;
            };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => open.push(entry.path()),
                    Ok(_) if is_new && found.len() < MOST_PATHS => {
                        let path = entry.path();
                        if !self.rules.ignores(&path, false) {
                            found.insert(path);
                        }
                    }
                    Ok(_) | Err(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Whether it was not watched yet.
    fn watch(&mut self, directory: &Path) -> Result<bool, WatchError> {
        if self.watched.contains(directory) {
            return Ok(false);
        }
        let owned = || directory.to_owned();
        if self.watched.len() >= MOST_DIRECTORIES {
            return Err(WatchError::TooMany {
                directory: self.root.clone(),
            });
        }
        match self.watcher.watch(directory, RecursiveMode::NonRecursive) {
            Ok(()) => {
                self.watched.insert(owned());
                Ok(true)
            }
            Err(error) => match error.kind {
                ErrorKind::PathNotFound => Ok(false),
                ErrorKind::MaxFilesWatch => Err(WatchError::Limit { directory: owned() }),
                ErrorKind::Io(ref io)
                    if directory != self.root
                        && matches!(
                            io.kind(),
                            std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
                        ) =>
                {
                    Ok(false)
                }
                _ => Err(WatchError::System {
                    directory: owned(),
                    source: error,
                }),
            },
        }
    }
}

impl Inbox {
    /// Called by the watcher's own thread.
    fn take_in(&self, event: notify::Result<Event>) {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::debug!(%error, "a watch failed");
                return;
            }
        };
        let counts = match event.kind {
            EventKind::Create(_) | EventKind::Remove(_) => true,
            // A mode or a time is no content. The guest is told of a change by a change of mode
            // to what it was, which comes back here.
            EventKind::Modify(ModifyKind::Metadata(_)) => false,
            EventKind::Modify(_) => true,
            EventKind::Access(_) | EventKind::Any | EventKind::Other => false,
        };
        if !counts && !event.need_rescan() {
            return;
        }
        {
            let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            changes.more |= event.need_rescan();
            if let EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both)) =
                event.kind
                && let Some(path) = event.paths.last()
                && changes.replaced.len() < MOST_PATHS
            {
                changes.replaced.insert(path.clone());
            }
            for path in event.paths {
                if changes.paths.len() < MOST_PATHS {
                    changes.paths.insert(path);
                } else {
                    changes.more = true;
                }
            }
        }
        self.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    struct Scene {
        directory: tempfile::TempDir,
        root: PathBuf,
        watch: Watch,
    }

    impl Scene {
        fn open() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().canonicalize().unwrap();
            fs::create_dir_all(root.join("src/deep")).unwrap();
            fs::create_dir_all(root.join("node_modules/a")).unwrap();
            fs::write(root.join("src/a.js"), "").unwrap();
            let watch = Watch::new(&root, &[]).unwrap();
            Self {
                directory,
                root,
                watch,
            }
        }

        /// All changes until `last` is among them.
        async fn until(&mut self, last: &str) -> Vec<String> {
            let mut all = BTreeSet::new();
            let last = self.root.join(last);
            let waiting = async {
                while !all.contains(&last) {
                    all.extend(self.watch.next().await.unwrap().paths);
                }
            };
            tokio::time::timeout(Duration::from_secs(60), waiting)
                .await
                .expect("the change is seen");
            let relative = |path: &PathBuf| path.strip_prefix(&self.root).unwrap().to_owned();
            all.iter()
                .map(|path| relative(path).display().to_string())
                .collect()
        }
    }

    #[tokio::test]
    async fn saves_are_seen_and_what_is_ignored_is_not() {
        let mut scene = Scene::open();
        let path = |name: &str| scene.root.join(name);
        fs::write(path("node_modules/a/index.js"), "x").unwrap();
        fs::write(path("src/.a.js.swp"), "x").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(path("src/a.js"), mode).unwrap();
        fs::write(path("src/deep/b.js"), "x").unwrap();
        assert_eq!(scene.until("src/deep/b.js").await, ["src/deep/b.js"]);
        // As editors do it: a new file takes the old one's name.
        let path = |name: &str| scene.root.join(name);
        fs::write(path("src/a.js.tmp"), "y").unwrap();
        fs::rename(path("src/a.js.tmp"), path("src/a.js")).unwrap();
        let changes = scene.watch.next().await.unwrap();
        let expected = BTreeSet::from([scene.root.join("src/a.js")]);
        assert_eq!(
            (changes.paths, changes.replaced),
            (expected.clone(), expected)
        );
        fs::remove_file(scene.root.join("src/a.js")).unwrap();
        assert_eq!(scene.until("src/a.js").await, ["src/a.js"]);
    }

    #[tokio::test]
    async fn a_new_directory_is_watched_with_what_is_in_it() {
        let mut scene = Scene::open();
        let outside = tempfile::tempdir_in(scene.directory.path().parent().unwrap()).unwrap();
        let new = outside.path().join("new");
        fs::create_dir_all(new.join("sub/node_modules")).unwrap();
        fs::write(new.join("sub/file.js"), "").unwrap();
        fs::rename(&new, scene.root.join("new")).unwrap();
        let seen = scene.until("new/sub/file.js").await;
        assert_eq!(seen, ["new", "new/sub/file.js"]);
        fs::write(scene.root.join("new/sub/later.js"), "").unwrap();
        scene.until("new/sub/later.js").await;
        fs::remove_dir_all(scene.root.join("new")).unwrap();
        scene.until("new").await;
    }

    #[tokio::test]
    async fn rules_that_change_count_from_then_on() {
        let mut scene = Scene::open();
        fs::write(scene.root.join(".gitignore"), "out\n").unwrap();
        fs::write(scene.root.join("b.js"), "").unwrap();
        scene.until("b.js").await;
        fs::create_dir(scene.root.join("out")).unwrap();
        fs::write(scene.root.join("out/x.js"), "").unwrap();
        fs::write(scene.root.join("c.js"), "").unwrap();
        assert_eq!(scene.until("c.js").await, ["c.js"]);
    }
}
