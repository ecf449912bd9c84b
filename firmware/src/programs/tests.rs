use std::os::unix::fs::symlink;
use std::sync::Barrier;

use super::*;
use crate::embedded::tests::embedded;

const SCRIPT: &[u8] = b"#!/bin/sh\necho as it was built\n";

struct World {
    _home: tempfile::TempDir,
    cache: PathBuf,
    program: Embedded,
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("temporary directory");
        Self {
            cache: home.path().join("cache"),
            _home: home,
            program: embedded("iii-test", SCRIPT),
        }
    }

    fn programs(&self) -> Programs {
        Programs::in_cache(&self.cache)
    }

    fn laid(&self) -> PathBuf {
        self.programs().lay(&self.program).expect("laid")
    }

    fn assert_sound(&self, path: &Path) {
        assert_eq!(fs::read(path).expect("there"), SCRIPT);
        let metadata = path.symlink_metadata().expect("there");
        assert!(metadata.is_file());
        assert_eq!(metadata.mode() & 0o7777, PROGRAM_MODE);
    }
}

#[test]
fn a_program_is_laid_by_its_digest_once() {
    let world = World::new();
    let path = world.laid();
    assert!(path.ends_with(format!("cache/programs/{}/iii-test", Digest::of(SCRIPT))));
    world.assert_sound(&path);
    let inode = fs::metadata(&path).expect("there").ino();
    let programs = world.programs();
    for _ in 0..2 {
        assert_eq!(programs.lay(&world.program).expect("there"), path);
    }
    assert_eq!(fs::metadata(&path).expect("there").ino(), inode);
    let beside = fs::read_dir(path.parent().expect("has one")).expect("lists");
    assert_eq!(beside.count(), 1, "nothing unfinished");
}

/// Each of these is found by a process that has never seen the program, and by one that has.
fn tampering(how: impl Fn(&Path)) {
    for known in [false, true] {
        let world = World::new();
        let programs = world.programs();
        let path = programs.lay(&world.program).expect("laid");
        how(&path);
        let again = if known { programs } else { world.programs() };
        assert_eq!(again.lay(&world.program).expect("made anew"), path);
        world.assert_sound(&path);
    }
}

#[test]
fn other_content_of_the_same_size_and_time_is_replaced() {
    tampering(|path| {
        let time = fs::metadata(path).and_then(|m| m.modified()).expect("has");
        let before = fs::metadata(path).expect("there");
        let evil = SCRIPT.to_ascii_uppercase();
        // The clock of file times ticks every few milliseconds: write until it has.
        loop {
            fs::write(path, &evil).expect("ours to write");
            let file = File::options().write(true).open(path).expect("opens");
            file.set_modified(time).expect("set back");
            let now = fs::metadata(path).expect("there");
            assert_eq!(now.len(), before.len());
            if (now.ctime(), now.ctime_nsec()) != (before.ctime(), before.ctime_nsec()) {
                break;
            }
        }
    });
}

#[test]
fn more_content_is_replaced() {
    tampering(|path| fs::write(path, [SCRIPT, b"x"].concat()).expect("written"));
}

#[test]
fn a_lost_file_is_made_anew() {
    tampering(|path| fs::remove_file(path).expect("removed"));
    tampering(|path| fs::remove_dir_all(path.parent().expect("has one")).expect("removed"));
}

#[test]
fn another_mode_is_put_right() {
    tampering(|path| {
        fs::set_permissions(path, Permissions::from_mode(0o644)).expect("ours");
    });
    tampering(|path| {
        fs::set_permissions(path, Permissions::from_mode(0o4777)).expect("ours");
    });
}

#[test]
fn a_link_or_a_pipe_in_its_place_is_replaced_and_not_followed() {
    tampering(|path| {
        let elsewhere = path.with_file_name("elsewhere");
        fs::rename(path, &elsewhere).expect("renamed");
        symlink(elsewhere, path).expect("linked");
    });
    tampering(|path| {
        fs::remove_file(path).expect("removed");
        nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o755)).expect("made");
    });
}

#[test]
fn a_directory_that_others_can_write_is_closed() {
    let world = World::new();
    let path = world.laid();
    let directory = path.parent().expect("has one");
    for open in [directory, directory.parent().expect("has one")] {
        fs::set_permissions(open, Permissions::from_mode(0o777)).expect("ours");
        assert_eq!(world.laid(), path);
        let mode = fs::metadata(open).expect("there").mode();
        assert_eq!(mode & WRITABLE_FOR_OTHERS, 0);
    }
    world.assert_sound(&path);
}

#[test]
fn a_directory_of_somebody_else_is_refused() {
    if !geteuid().is_root() {
        // Nobody else can give a directory away.
        return;
    }
    let world = World::new();
    let path = world.laid();
    let directory = path.parent().and_then(Path::parent).expect("has one");
    std::os::unix::fs::chown(directory, Some(4711), None).expect("root may");
    let error = world.programs().lay(&world.program).expect_err("foreign");
    let text = error.to_string();
    assert!(matches!(error, ProgramError::Foreign { owner: 4711, .. }));
    assert!(text.contains("4711") && text.contains("III_HOME"), "{text}");
}

#[test]
fn a_link_in_place_of_the_directory_is_refused() {
    let world = World::new();
    let elsewhere = world.cache.join("elsewhere");
    fs::create_dir_all(&elsewhere).expect("made");
    symlink(&elsewhere, world.cache.join("programs")).expect("linked");
    let error = world.programs().lay(&world.program).expect_err("a link");
    assert!(error.to_string().contains("programs"), "{error}");
    assert_eq!(fs::read_dir(&elsewhere).expect("lists").count(), 0);
}

#[test]
fn many_at_once_make_one() {
    let world = World::new();
    const MANY: usize = 8;
    let barrier = Barrier::new(MANY);
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..MANY)
            .map(|_| {
                scope.spawn(|| {
                    let programs = world.programs();
                    barrier.wait();
                    programs.lay(&world.program).expect("laid")
                })
            })
            .collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        ended.map(|path| path.expect("no panic")).collect()
    });
    assert!(paths.iter().all(|path| *path == paths[0]));
    world.assert_sound(&paths[0]);
}

#[test]
fn a_damaged_executable_lays_nothing() {
    let world = World::new();
    let damaged = Embedded {
        packed: b"rubbish",
        ..world.program
    };
    let programs = world.programs();
    let error = programs.lay(&damaged).expect_err("damaged").to_string();
    assert!(error.contains("install it anew"), "{error}");
    let path = programs.place(&damaged);
    let beside = fs::read_dir(path.parent().expect("has one")).expect("lists");
    assert_eq!(beside.count(), 0);
}

#[test]
fn a_file_in_the_way_is_named() {
    let world = World::new();
    fs::write(&world.cache, "").expect("written");
    let error = world.programs().lay(&world.program).expect_err("a file");
    let text = error.to_string();
    assert!(text.contains("III_HOME"), "{text}");
    assert!(text.contains(world.cache.to_str().expect("text")), "{text}");
}
