use std::cell::Cell;
use std::os::unix::fs::symlink;

use super::*;

/// A project: a file and its state directory.
struct Project {
    directory: tempfile::TempDir,
}

impl Project {
    fn new(text: Option<&str>) -> Self {
        let project = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(project.directory.path().join("app")).unwrap();
        if let Some(text) = text {
            std::fs::write(project.path(), text).unwrap();
        }
        project
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("app/w.yaml")
    }

    fn lock(&self) -> EditFile {
        let state = self.directory.path().join("state");
        EditFile::lock(&real_path(&self.path()).unwrap(), &state).unwrap()
    }

    fn text(&self) -> Option<String> {
        std::fs::read_to_string(self.path()).ok()
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path().join("app")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// The host's disk up to a step, and then what the test says.
struct Broken {
    step: Cell<usize>,
    breaks_at: usize,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// The step fails, and the next ones do not.
    Fails,
    /// Half of the step is done, and nothing after it.
    Crashes,
}

impl Broken {
    fn at(breaks_at: usize, how: How) -> Self {
        Self {
            step: Cell::new(0),
            breaks_at,
            how,
        }
    }

    fn broken(&self) -> bool {
        self.step.get() > self.breaks_at && self.how == How::Crashes
    }

    /// Whether this step is to be done.
    fn step(&self) -> Result<(), Error> {
        let step = self.step.get();
        self.step.set(step + 1);
        if step == self.breaks_at || self.broken() {
            return Err(Error::from_raw_os_error(Errno::ENOSPC as i32));
        }
        Ok(())
    }
}

impl Disk for Broken {
    fn create(&self, path: &Path, mode: u32) -> Result<File, Error> {
        self.step()?;
        HostDisk.create(path, mode)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> Result<(), Error> {
        let step = self.step();
        if step.is_err() && self.step.get() == self.breaks_at + 1 {
            HostDisk.write(file, &bytes[..bytes.len() / 2])?;
        }
        step?;
        HostDisk.write(file, bytes)
    }

    fn dress(&self, file: &File, like: Stat) -> Result<(), Error> {
        self.step()?;
        HostDisk.dress(file, like)
    }

    fn sync(&self, file: &File) -> Result<(), Error> {
        self.step()?;
        HostDisk.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.step()?;
        HostDisk.rename(from, to)
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let step = self.step();
        if step.is_err() && self.step.get() == self.breaks_at + 1 && self.how == How::Crashes {
            std::fs::hard_link(from, to)?;
        }
        step?;
        HostDisk.rename_new(from, to)
    }

    fn sync_directory(&self, path: &Path) -> Result<(), Error> {
        self.step()?;
        HostDisk.sync_directory(path)
    }

    fn remove(&self, path: &Path) {
        if !self.broken() {
            HostDisk.remove(path);
        }
    }
}

#[test]
fn the_new_text_has_the_old_ones_mode_behind_a_link_too() {
    let project = Project::new(Some("old"));
    let private = std::fs::Permissions::from_mode(0o640);
    std::fs::set_permissions(project.path(), private).unwrap();
    let link = project.directory.path().join("link.yaml");
    symlink("app/w.yaml", &link).unwrap();
    let real = real_path(&link).unwrap();
    assert_eq!(real, real_path(&project.path()).unwrap());
    let state = project.directory.path().join("state");
    let file = EditFile::lock(&real, &state).unwrap();
    let original = file.read().unwrap();
    assert_eq!(original.text, "old");
    assert_eq!(file.replace(&original, "new").unwrap(), Replaced::Done);
    drop(file);
    assert!(link.is_symlink());
    assert_eq!(project.text().as_deref(), Some("new"));
    let mode = std::fs::metadata(project.path()).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o640);
    assert_eq!(project.names(), ["w.yaml"]);
    assert!(!state.exists(), "nothing is left of the lock");
}

#[test]
fn an_owner_is_kept_or_nothing_is_done() {
    if !nix::unistd::geteuid().is_root() {
        // An ordinary user cannot make the file of another; `integration/tests/e2e/edit.rs` does.
        return;
    }
    let project = Project::new(Some("old"));
    std::os::unix::fs::chown(project.path(), Some(65534), Some(1)).unwrap();
    let file = project.lock();
    let original = file.read().unwrap();
    assert_eq!(file.replace(&original, "new").unwrap(), Replaced::Done);
    let meta = std::fs::metadata(project.path()).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (65534, 1));
}

#[test]
fn a_file_is_made_where_there_is_none() {
    let project = Project::new(None);
    let file = project.lock();
    let original = file.read().unwrap();
    assert!(!original.exists() && original.text.is_empty());
    assert_eq!(file.replace(&original, "new").unwrap(), Replaced::Done);
    assert_eq!(project.text().as_deref(), Some("new"));
    assert_eq!(project.names(), ["w.yaml"]);
}

#[test]
fn what_somebody_else_saved_meanwhile_is_not_overwritten() {
    for (before, meanwhile) in [
        (Some("old"), Some("theirs")),
        // The same length, and the same time stamp on a coarse clock.
        (Some("old"), Some("odl")),
        (Some("old"), None),
        (None, Some("theirs")),
    ] {
        let project = Project::new(before);
        let file = project.lock();
        let original = file.read().unwrap();
        match meanwhile {
            Some(text) => std::fs::write(project.path(), text).unwrap(),
            None => std::fs::remove_file(project.path()).unwrap(),
        }
        assert_eq!(file.replace(&original, "new").unwrap(), Replaced::Raced);
        assert_eq!(project.text().as_deref(), meanwhile);
        let left = usize::from(meanwhile.is_some());
        assert_eq!(project.names().len(), left, "{:?}", project.names());
    }
    // An editor that saves the same text as another file, with another mode.
    let project = Project::new(Some("old"));
    let file = project.lock();
    let original = file.read().unwrap();
    std::fs::remove_file(project.path()).unwrap();
    std::fs::write(project.path(), "old").unwrap();
    std::fs::set_permissions(project.path(), PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(file.replace(&original, "new").unwrap(), Replaced::Raced);
}

#[test]
fn a_step_that_fails_leaves_the_old_file_and_nothing_else() {
    for before in [Some("old"), None] {
        for step in 0..8 {
            let project = Project::new(before);
            let file = project.lock();
            let original = file.read().unwrap();
            let disk = Broken::at(step, How::Fails);
            match file.replace_on(&disk, &original, "new") {
                Ok(done) => {
                    assert_eq!(done, Replaced::Done);
                    assert!(
                        disk.step.get() <= step,
                        "step {step} failed and was not told"
                    );
                    assert!(step >= 4, "{step}");
                    break;
                }
                Err(EditFileError::Unsafe { .. }) => {
                    assert_eq!(project.text().as_deref(), Some("new"));
                }
                Err(error) => {
                    assert_eq!(project.text().as_deref(), before, "step {step}");
                    let error = error.to_string();
                    assert!(error.contains("No space left"), "{error}");
                    assert!(error.contains("is unchanged"), "{error}");
                    assert!(!error.contains("read"), "{error}");
                }
            }
            let names = project.names();
            assert!(names.len() <= 1, "step {step} leaves {names:?}");
            assert!(step < 7, "the replacement ends");
        }
    }
}

#[test]
fn a_crash_at_any_step_leaves_the_old_or_the_new_file_and_the_next_edit_works() {
    for before in [Some("old"), None] {
        for step in 0..8 {
            let project = Project::new(before);
            let file = project.lock();
            let original = file.read().unwrap();
            let disk = Broken::at(step, How::Crashes);
            let crashed = file.replace_on(&disk, &original, "new").is_err();
            let now = project.text();
            assert!(
                now.as_deref() == before || now.as_deref() == Some("new"),
                "step {step}: {now:?}"
            );
            drop(file);
            let file = project.lock();
            let original = file.read().unwrap();
            assert_eq!(file.replace(&original, "newer").unwrap(), Replaced::Done);
            assert_eq!(project.text().as_deref(), Some("newer"));
            assert_eq!(project.names(), ["w.yaml"], "step {step}");
            if !crashed {
                assert!(step >= 4, "{step}");
                break;
            }
            assert!(step < 7, "the replacement ends");
        }
    }
}

#[test]
fn what_is_no_ordinary_file_is_refused() {
    let project = Project::new(Some("old"));
    std::fs::hard_link(project.path(), project.directory.path().join("other")).unwrap();
    let error = project.lock().read().unwrap_err();
    assert!(error.to_string().contains("hard links"), "{error}");

    let project = Project::new(None);
    nix::unistd::mkfifo(&project.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = project.lock().read().unwrap_err();
    assert!(error.to_string().contains("regular file"), "{error}");

    let project = Project::new(None);
    symlink("nowhere", project.path()).unwrap();
    let error = real_path(&project.path()).unwrap_err();
    assert!(error.to_string().contains("leads nowhere"), "{error}");

    let project = Project::new(None);
    let bytes = vec![b'#'; MAX_FILE as usize + 1];
    std::fs::write(project.path(), bytes).unwrap();
    let error = project.lock().read().unwrap_err();
    assert!(error.to_string().contains("1 MiB"), "{error}");

    let missing = project.directory.path().join("none/w.yaml");
    assert!(real_path(&missing).is_err());
}

#[test]
fn only_what_dead_edits_left_is_swept() {
    let project = Project::new(Some("old"));
    let app = project.directory.path().join("app");
    let mut child = std::process::Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let dead = format!(".w.yaml.{}.iii-new", child.id());
    // PID 1 is alive as long as the host.
    let kept = [
        ".other.yaml.1.iii-new",
        ".w.yaml.1.iii-new",
        ".w.yaml.x.iii-new",
    ];
    for name in kept.iter().copied().chain([dead.as_str()]) {
        std::fs::write(app.join(name), "").unwrap();
    }
    drop(project.lock());
    assert_eq!(project.names(), [&kept[..], &["w.yaml"]].concat());
}
