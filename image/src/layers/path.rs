//! Names of a layer's entries: bytes as they come, then components that can be keys of a tree.

use crate::erofs::{NAME_MAX, PATH_MAX};

/// What a name may not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathFault {
    /// It leads upwards.
    #[error("its name has a `..`")]
    Parent,
    /// Longer than any file's name.
    #[error("its name is too long")]
    Length,
    /// What ends names.
    #[error("its name has a NUL")]
    Nul,
}

/// The components of a path, which is taken as relative to the root, however it begins. Empty for
/// the root itself.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, PathFault> {
    if path.len() >= PATH_MAX {
        return Err(PathFault::Length);
    }
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(PathFault::Parent),
            name if name.len() > NAME_MAX => return Err(PathFault::Length),
            name if name.contains(&0) => return Err(PathFault::Nul),
            name => names.push(name),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_notation_of_a_path_is_the_same_path() {
        for path in ["a/b", "/a/b", "./a/b", "./a//./b/", "//a/b/."] {
            assert_eq!(
                components(path.as_bytes()),
                Ok(vec![&b"a"[..], b"b"]),
                "{path}"
            );
        }
        for path in ["", "/", ".", "./"] {
            assert_eq!(components(path.as_bytes()), Ok(vec![]), "{path}");
        }
    }

    #[test]
    fn what_leads_out_is_refused() {
        for path in ["..", "../a", "a/../b", "/..", "a/.."] {
            assert_eq!(
                components(path.as_bytes()),
                Err(PathFault::Parent),
                "{path}"
            );
        }
        assert_eq!(components(b"...").unwrap(), [b"..."]);
        assert_eq!(components(&[b'a'; 256]), Err(PathFault::Length));
        assert_eq!(components(&b"a/".repeat(2048)), Err(PathFault::Length));
        assert_eq!(components(b"a\0b"), Err(PathFault::Nul));
    }

    proptest! {
        #[test]
        fn a_component_is_a_file_name(path in prop::collection::vec(any::<u8>(), 0..300)) {
            for name in components(&path).unwrap_or_default() {
                prop_assert!(!name.is_empty() && name != b"." && name != b"..");
                prop_assert!(!name.contains(&b'/') && !name.contains(&0) && name.len() <= 255);
            }
        }
    }
}
