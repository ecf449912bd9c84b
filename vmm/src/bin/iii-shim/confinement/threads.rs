//! How many threads a program may have, where the kernel can tell them from its user's others.

use std::io;

use nix::unistd::geteuid;

use crate::sys;

/// Since then RLIMIT_NPROC counts the processes of a user per user namespace (user_namespaces(7));
/// before, all that the user runs on this host would count against one VMM.
const COUNTS_BY_NAMESPACE: (u32, u32) = (5, 14);

/// Limits this process and what it becomes. Root is exempt from this limit, and without a user
/// namespace there is nothing to count by: then it is a cgroup's matter.
pub(crate) fn limit(most: u64) -> io::Result<()> {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy();
    let own_namespace = std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| is_own_user_alone(&map, geteuid().as_raw()));
    if !own_namespace || !is_at_least(&release, COUNTS_BY_NAMESPACE) {
        return Ok(());
    }
    sys::set_limit(libc::RLIMIT_NPROC, most, most)
}

/// Whether `/proc/self/uid_map` is that of a namespace made by [`crate::namespaces`].
fn is_own_user_alone(map: &str, user: u32) -> bool {
    let fields: Vec<Option<u32>> = map
        .split_whitespace()
        .map(|field| field.parse().ok())
        .collect();
    fields == [Some(user), Some(user), Some(1)]
}

/// `5.14.0-427.el9.x86_64`, `6.1.0`
fn is_at_least(release: &str, wanted: (u32, u32)) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart_by_their_release() {
        for (release, expected) in [
            ("5.14.0-427.el9.x86_64", true),
            ("5.13.19", false),
            ("6.1.0", true),
            ("4.19", false),
            ("10.0", true),
            ("5", false),
            ("", false),
        ] {
            assert_eq!(
                is_at_least(release, COUNTS_BY_NAMESPACE),
                expected,
                "{release}"
            );
        }
    }

    #[test]
    fn a_namespace_of_one_user_is_known_by_its_map() {
        assert!(is_own_user_alone(
            "      1000       1000          1\n",
            1000
        ));
        assert!(!is_own_user_alone("0 0 4294967295\n", 0));
        assert!(!is_own_user_alone("0 1000 1\n", 0));
        assert!(!is_own_user_alone("", 0));
    }
}
