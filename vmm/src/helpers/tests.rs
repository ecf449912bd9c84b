use super::*;
use proptest::prelude::*;
use std::io::Write;

#[test]
fn an_explicit_directory_outweighs_the_variable_and_both_the_executable() {
    let explicit = HelperPlaces::in_directory("/a");
    let none = HelperPlaces::default();
    let exe = Some(PathBuf::from("/t/debug/deps/x-1"));
    let of =
        |places, variable: Option<&str>| candidates(places, variable.map(Into::into), exe.clone());
    let at = |origin, paths: &[&str]| (origin, paths.iter().map(PathBuf::from).collect());
    assert_eq!(of(&explicit, Some("/b")), at(Origin::Directory, &["/a"]));
    assert_eq!(of(&none, Some("/b")), at(Origin::Variable, &["/b"]));
    assert_eq!(
        of(&none, Some("")),
        at(Origin::Beside, &["/t/debug/deps", "/t/debug"])
    );
    assert_eq!(
        candidates(&none, None, Some("/usr/bin/iii-super".into())),
        at(Origin::Beside, &["/usr/bin"])
    );
}

#[test]
fn a_missing_helper_names_the_place_and_the_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let places = HelperPlaces::in_directory(directory.path());
    let error = find("iii-none", &places).unwrap_err().to_string();
    assert!(
        error.contains(&directory.path().display().to_string()),
        "{error}"
    );
    assert!(error.contains(HELPER_DIR_VARIABLE), "{error}");
}

fn helper(directory: &Path, contents: &str, mode: u32) -> PathBuf {
    let path = directory.join("iii-x");
    let mut file = File::create(&path).unwrap();
    file.write_all(contents.as_bytes()).unwrap();
    file.set_permissions(fs::Permissions::from_mode(mode))
        .unwrap();
    path
}

#[test]
fn other_versions_and_other_programs_are_refused_and_a_replaced_file_is_looked_at_again() {
    let directory = tempfile::tempdir().unwrap();
    let good = format!("..iii-helper:iii-x:{VERSION};..");
    let path = helper(directory.path(), &good, 0o755);
    check("iii-x", &path).unwrap();
    check("iii-x", &path).unwrap();
    assert!(matches!(
        check("iii-y", &path),
        Err(HelperError::NotAHelper { .. })
    ));

    fs::remove_file(&path).unwrap();
    helper(directory.path(), "iii-helper:iii-x:0.0.9;", 0o755);
    match check("iii-x", &path) {
        Err(HelperError::OtherVersion { found, .. }) => assert_eq!(found, "0.0.9"),
        other => panic!("{other:?}"),
    }

    fs::remove_file(&path).unwrap();
    helper(directory.path(), &good, 0o644);
    assert!(matches!(
        check("iii-x", &path),
        Err(HelperError::Unusable { .. })
    ));
}

/// Returns at most `step` bytes per read.
struct Slow<'a>(&'a [u8], usize);
impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.1.min(self.0.len()).min(buffer.len());
        buffer[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

proptest! {
    #[test]
    fn a_marker_is_found_wherever_it_lies(before in 0usize..3 * CHUNK, step in 1000usize..CHUNK) {
        let mut bytes = vec![b'i'; before];
        bytes.extend(b"iii-helper:iii-x:no end, then iii-helper:iii-x:1.2.3;");
        bytes.resize(before + 100, 0);
        let found = marker_version(&mut Slow(&bytes, step), "iii-x").unwrap();
        prop_assert_eq!(found.as_deref(), Some("1.2.3"));
    }
}

/// Helpers inside the executable that lie here once they are laid.
#[derive(Debug)]
struct Inside(PathBuf);

impl EmbeddedHelpers for Inside {
    fn place(&self, name: &str) -> Option<PathBuf> {
        (name == "iii-x" || name == "iii-full").then(|| self.0.join(name))
    }

    fn lay(&self, name: &str) -> Option<Result<PathBuf, Box<dyn Error + Send + Sync>>> {
        let path = self.place(name)?;
        if name == "iii-full" {
            return Some(Err("the disk is full; make room".into()));
        }
        Some(fs::write(&path, "laid").map(|()| path).map_err(Into::into))
    }
}

#[test]
fn what_is_inside_comes_last_and_is_no_substitute_for_what_was_named() {
    let (outside, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let inside =
        || -> Option<Arc<dyn EmbeddedHelpers>> { Some(Arc::new(Inside(cache.path().to_owned()))) };
    let of = |origin, name: &str| {
        let at = (origin, vec![outside.path().to_owned()]);
        choose_from(name, at, inside().as_deref(), |embedded| embedded.lay(name))
    };
    let laid = || Found {
        path: cache.path().join("iii-x"),
        origin: Origin::Embedded,
    };

    // Nothing is where it was looked for.
    for named in [Origin::Directory, Origin::Variable] {
        assert!(matches!(
            of(named, "iii-x"),
            Err(HelperError::Missing { .. })
        ));
    }
    assert_eq!(of(Origin::Beside, "iii-x").unwrap(), laid());
    assert!(matches!(
        of(Origin::Beside, "iii-y"),
        Err(HelperError::Missing { .. })
    ));
    let error = of(Origin::Beside, "iii-full").unwrap_err().to_string();
    assert!(error.contains("iii-full: the disk is full"), "{error}");

    // Of an older installation: an error where it was named, and passed by where it was not.
    let path = helper(outside.path(), "iii-helper:iii-x:0.0.9;", 0o755);
    assert!(matches!(
        of(Origin::Variable, "iii-x"),
        Err(HelperError::OtherVersion { .. })
    ));
    assert_eq!(of(Origin::Beside, "iii-x").unwrap(), laid());

    // Of this one: it goes first.
    fs::remove_file(&path).unwrap();
    helper(
        outside.path(),
        &format!("iii-helper:iii-x:{VERSION};"),
        0o755,
    );
    for origin in [Origin::Directory, Origin::Variable, Origin::Beside] {
        let path = path.clone();
        assert_eq!(of(origin, "iii-x").unwrap(), Found { path, origin });
    }
}

#[test]
fn a_look_lays_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let places = HelperPlaces {
        directory: None,
        embedded: Some(Arc::new(Inside(cache.path().to_owned()))),
    };
    let found = look("iii-x", &places).unwrap();
    assert_eq!(found.origin, Origin::Embedded);
    assert!(!found.path.exists());
    assert_eq!(find("iii-x", &places).unwrap(), found.path);
    assert!(found.path.exists());
}
