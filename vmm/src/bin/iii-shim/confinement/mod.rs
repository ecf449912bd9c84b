//! What a program is held to between its fork and its first instruction, in layers of which each
//! stands without the others: a root directory that holds nothing but what it needs ([`root`]), no
//! capabilities, Landlock ([`landlock`](mod@landlock)) and a filter of system calls ([`system_calls`]).
//!
//! A layer that this kernel refuses is reported, not fatal: older kernels and containers in
//! containers lack one or the other, and the guest's wall is the virtual machine.

mod landlock;
mod root;
mod system_calls;
mod threads;

use std::io;

use iii_proto::shim::{Confinement, Layer, Layers};
use rustix::thread::{CapabilitySet, CapabilitySets};

pub(crate) use threads::limit as limit_threads;

/// Makes the private root and enters it.
pub(crate) fn enter_root(confinement: &Confinement) -> Layer {
    layer(root::enter(confinement))
}

/// Gives up all capabilities: those that root has, or those of the user namespace. With
/// no-new-privs no program gives them back.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::clear_ambient_capability_set()?;
    Ok(rustix::thread::set_capabilities(None, none)?)
}

/// The layers that come last, since they would forbid the making of the others.
pub(crate) fn restrict(confinement: &Confinement, root: Layer) -> Layers {
    let landlock = landlock::restrict(confinement);
    Layers {
        root,
        landlock,
        system_calls: layer(system_calls::restrict()),
    }
}

fn layer(result: io::Result<()>) -> Layer {
    match result {
        Ok(()) => Layer::Applied,
        Err(error) => Layer::Refused(error.raw_os_error().unwrap_or(libc::EINVAL)),
    }
}
