//! From the kernel's `/init` to a prepared workload, stage by stage.
//!
//! Order: [`early`] (kernel file systems, own priority), [`ports`] and the spec, [`root`] (overlay,
//! mounts, switch), [`network`] over [`netlink`], then [`users`] and [`cgroup`]. Each module has
//! one error enum whose message is for the user: it travels in `PoweringOff{SetupFailed}`.

pub mod cgroup;
pub mod disks;
pub mod early;
pub mod filesystem;
pub mod netlink;
pub mod network;
pub mod ports;
pub mod root;
pub mod spec;
pub mod users;
