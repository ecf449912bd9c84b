//! Checks of single values that a guest sends: names, open flags, modes, attribute names. Pure.

use std::ffi::CStr;

use crate::events::Refusal;

/// Set-id bits: they never reach the host's disk on a guest's word.
pub const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// Open flags that reach the host. Left out are those that the guest's kernel has served already
/// (`O_DIRECT`, `O_CREAT`, `O_EXCL`), those that could make the server wait or be signalled
/// (`O_NONBLOCK`, `O_ASYNC`), and `O_NOATIME`, which only an owner may use.
const PASSED_FLAGS: i32 =
    libc::O_ACCMODE | libc::O_APPEND | libc::O_TRUNC | libc::O_SYNC | libc::O_DSYNC;

/// A name must be one path component. The guest's kernel resolves `.` and `..` itself; a server
/// that resolves `..` leaves the export when the host has moved the directory out of it.
pub fn component(name: &CStr) -> Result<(), Refusal> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(Refusal::Name),
        bytes if bytes.contains(&b'/') => Err(Refusal::Name),
        _ => Ok(()),
    }
}

/// The flags that an open may pass on. `O_PATH` would make the host ignore the rest and follow
/// a symlink; `O_TMPFILE` would create a file through an open; access mode 3 asks for a device's
/// ioctls.
pub fn open_flags(flags: u32) -> Result<u32, Refusal> {
    let flags = flags as i32;
    let tmpfile = libc::O_TMPFILE & !libc::O_DIRECTORY;
    if flags & libc::O_PATH != 0
        || flags & tmpfile != 0
        || flags & libc::O_ACCMODE == libc::O_ACCMODE
    {
        return Err(Refusal::OpenFlags);
    }
    Ok((flags & PASSED_FLAGS) as u32)
}

/// The flags of an open file as they come with each read and write; unlike an open's they are
/// not refused, only cut down to what [`open_flags`] passed, without what acts at open alone.
pub fn status_flags(flags: u32) -> u32 {
    flags & (PASSED_FLAGS & !libc::O_TRUNC) as u32
}

/// Whether an open with these flags could change something.
pub fn writes(flags: u32) -> bool {
    let flags = flags as i32;
    flags & libc::O_ACCMODE != libc::O_RDONLY || flags & (libc::O_TRUNC | libc::O_CREAT) != 0
}

/// The mode that a chmod may set: the guest can keep or remove set-id bits that the host has put
/// there, not add any.
pub fn chmod_mode(current: u32, requested: u32) -> u32 {
    requested & !(SET_ID & !current)
}

/// Extended attributes of the user's namespace alone pass. `security.*` holds file capabilities,
/// `trusted.*` and `system.*` need privileges or change who may access what.
pub fn attribute_name(name: &CStr) -> bool {
    name.to_bytes().starts_with(b"user.")
}

/// Keeps the names that [`attribute_name`] allows, in a NUL-separated list.
pub fn attribute_list(names: &[u8]) -> Vec<u8> {
    names
        .split_inclusive(|byte| *byte == 0)
        .filter(|name| name.starts_with(b"user.") && name.ends_with(b"\0"))
        .flatten()
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::CString;

    #[test]
    fn names_are_one_component() {
        for good in [c"a", c"...", c".git", c" ", c"\xff"] {
            assert!(component(good).is_ok(), "{good:?}");
        }
        for bad in [c"", c".", c"..", c"/", c"a/b", c"../x", c"a/"] {
            assert_eq!(component(bad), Err(Refusal::Name), "{bad:?}");
        }
    }

    #[test]
    fn flags_that_are_no_plain_open_are_refused() {
        for bad in [
            libc::O_PATH,
            libc::O_TMPFILE | libc::O_RDWR,
            libc::O_TMPFILE,
            libc::O_ACCMODE,
        ] {
            assert_eq!(open_flags(bad as u32), Err(Refusal::OpenFlags));
        }
        assert_eq!(
            open_flags((libc::O_RDWR | libc::O_DIRECT | libc::O_NONBLOCK | libc::O_APPEND) as u32),
            Ok((libc::O_RDWR | libc::O_APPEND) as u32)
        );
        // A guest opens directories with O_DIRECTORY: not to be taken for O_TMPFILE, which
        // contains it.
        assert_eq!(open_flags(libc::O_DIRECTORY as u32), Ok(0));
    }

    #[test]
    fn writing_opens_are_recognised() {
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_TRUNC, libc::O_CREAT] {
            assert!(writes(flags as u32));
        }
        assert!(!writes((libc::O_RDONLY | libc::O_APPEND) as u32));
    }

    #[test]
    fn set_id_bits_can_be_kept_or_removed_but_not_added() {
        assert_eq!(chmod_mode(0o755, 0o6755), 0o755);
        assert_eq!(chmod_mode(0o2755, 0o6775), 0o2775);
        assert_eq!(chmod_mode(0o2755, 0o775), 0o775);
        assert_eq!(chmod_mode(0o755, 0o1777), 0o1777);
    }

    #[test]
    fn foreign_attributes_are_not_listed() {
        assert_eq!(
            attribute_list(b"security.capability\0user.a\0trusted.overlay.opaque\0user.b\0"),
            b"user.a\0user.b\0"
        );
        assert_eq!(attribute_list(b""), b"");
    }

    proptest! {
        #[test]
        fn what_passes_the_checks_is_harmless(bytes in prop::collection::vec(1u8.., 0..300), flags: u32) {
            let name = CString::new(bytes.clone()).unwrap();
            if component(&name).is_ok() {
                prop_assert!(!bytes.contains(&b'/') && bytes != b".." && bytes != b"." && !bytes.is_empty());
            }
            if let Ok(passed) = open_flags(flags) {
                prop_assert_eq!(passed as i32 & !PASSED_FLAGS, 0);
                prop_assert!(!writes(passed) || writes(flags));
            }
            prop_assert!(attribute_list(&bytes).is_empty());
        }
    }
}
