//! Where this process is in the hierarchy of cgroups, read from what the kernel says of it. Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// The cgroup (v2) of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its directory.
    pub(super) directory: PathBuf,
    /// Where the hierarchy is mounted.
    pub(super) mount: PathBuf,
    /// What `/proc/self/cgroup` calls it: `/` at the root of a cgroup namespace, and of the hierarchy.
    pub(super) name: PathBuf,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nowhere {
    /// No hierarchy of version 2 is mounted.
    NotMounted,
    /// The mounted part of the hierarchy does not hold this process.
    Outside,
}

/// `own` is the text of `/proc/self/cgroup` (cgroups(7)), `mounts` that of `/proc/self/mountinfo`
/// (proc(5)).
pub(super) fn find(own: &str, mounts: &str) -> Result<Place, Nowhere> {
    let name = own
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .ok_or(Nowhere::NotMounted)?;
    // A process that was moved away under a reader keeps its name with this behind it.
    let name = PathBuf::from(name.trim_end_matches(" (deleted)"));
    let mut mounted = false;
    for (root, mount) in mounts.lines().filter_map(mount_of) {
        mounted = true;
        // A part of the hierarchy is mounted, or all of it as this namespace has it.
        let Ok(below) = name.strip_prefix(&root) else {
            continue;
        };
        // Outside of a namespace's root the kernel writes `/..`.
        if below.components().any(|part| part == Component::ParentDir) {
            continue;
        }
        return Ok(Place {
            directory: match below.as_os_str().is_empty() {
                // Joined it would end in a slash.
                true => mount.clone(),
                false => mount.join(below),
            },
            mount,
            name,
        });
    }
    Err(match mounted {
        true => Nowhere::Outside,
        false => Nowhere::NotMounted,
    })
}

/// Root and mount point of a line, if it is of this kind.
fn mount_of(line: &str) -> Option<(PathBuf, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    if after.split(' ').next() != Some("cgroup2") {
        return None;
    }
    let mut fields = before.split(' ').skip(3);
    let root = unescaped(fields.next()?);
    let mount = unescaped(fields.next()?);
    Path::new(&mount).is_absolute().then_some((root, mount))
}

/// The kernel writes blanks, line ends and backslashes of a path as three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, others)) = rest.split_first() {
        let digits = others.get(..3).and_then(|three| {
            let text = std::str::from_utf8(three).ok()?;
            u8::from_str_radix(text, 8).ok()
        });
        match (first, digits) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &others[3..];
            }
            _ => {
                bytes.push(first);
                rest = others;
            }
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNIFIED: &str = "25 30 0:23 / /sys rw - sysfs sysfs rw\n\
        31 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_process_is_below_the_mount_by_its_name() {
        let place = find("0::/user.slice/a.scope\n", UNIFIED).unwrap();
        assert_eq!(
            place.directory,
            Path::new("/sys/fs/cgroup/user.slice/a.scope")
        );
        assert_eq!(place.mount, Path::new("/sys/fs/cgroup"));
        assert_eq!(place.name, Path::new("/user.slice/a.scope"));
        let root = find("0::/\n", UNIFIED).unwrap();
        assert_eq!(root.directory.as_os_str(), "/sys/fs/cgroup");
    }

    #[test]
    fn beside_version_1_the_unified_hierarchy_is_found_where_it_is_mounted() {
        let mounts = "31 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
            32 31 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            33 31 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let place = find("4:memory:/a\n0::/b\n", mounts).unwrap();
        assert_eq!(place.directory, Path::new("/sys/fs/cgroup/unified/b"));
        assert_eq!(find("4:memory:/a\n", mounts), Err(Nowhere::NotMounted));
        assert_eq!(find("0::/b\n", ""), Err(Nowhere::NotMounted));
    }

    #[test]
    fn a_part_of_the_hierarchy_holds_what_is_below_it_alone() {
        let mounts = "1 2 0:26 /docker/x /mnt/cg\\040roups rw - cgroup2 none rw\n";
        let place = find("0::/docker/x/y\n", mounts).unwrap();
        assert_eq!(place.directory, Path::new("/mnt/cg roups/y"));
        assert_eq!(find("0::/docker/xy\n", mounts), Err(Nowhere::Outside));
        assert_eq!(find("0::/../sibling\n", UNIFIED), Err(Nowhere::Outside));
    }

    proptest! {
        #[test]
        fn whatever_the_texts_a_place_is_below_its_mount(own in ".{0,60}", mounts in ".{0,120}") {
            if let Ok(place) = find(&format!("0::/{own}"), &format!("{UNIFIED}{mounts}")) {
                prop_assert!(place.directory.starts_with(&place.mount));
            }
        }
    }
}
