//! The Linux calls that have no safe wrapper, each behind a safe function.
#![allow(unsafe_code)]

use nix::errno::Errno;

/// Slews the wall clock by this many microseconds (adjtime(3)).
pub(crate) fn slew_clock(microseconds: i64) -> nix::Result<()> {
    let delta = libc::timeval {
        tv_sec: microseconds.div_euclid(1_000_000),
        tv_usec: microseconds.rem_euclid(1_000_000),
    };
    // SAFETY: `delta` is a valid timeval for the length of the call, and a null second argument is
    // allowed (adjtime(3)).
    Errno::result(unsafe { libc::adjtime(&delta, std::ptr::null_mut()) }).map(drop)
}
