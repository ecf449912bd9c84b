//! Limits that the host's kernel keeps for all processes of one VM together: a cgroup (v2) per boot,
//! a *leaf*, with its VMM, its file server and their shims.
//!
//! Cgroups belong to whoever manages the host, and iii-super takes only what was handed to it: the
//! cgroup of a service or scope with `Delegate=yes`, or of a container. Processes and limits do not
//! go together in one cgroup, so the supervisor moves itself into a leaf of its own there. It never
//! moves anybody else, and where it is not alone it leaves everything as it is.
//!
//! ```text
//! iii-super.service          delegated
//!  ├─ supervisor             this process
//!  ├─ vm-api-6f3c…           memory.max, pids.max, cpu.max
//!  └─ vm-web-91d0…
//! ```
//!
//! * `place`: where this process is; `delegation`: whether that may be used, decided from facts, and
//!   taking it; `limits`: how much a VM may use; `leaf`: one of them.

mod delegation;
mod facts;
mod leaf;
mod limits;
mod place;

pub use delegation::{Delegation, Held, VmSize, look};
pub use facts::{Controller, Refusal};
pub use leaf::{Leaf, OutOfMemory};
pub use limits::Limits;

/// Says whether cgroups are used: `off`; `on`, also where nothing shows that this process's cgroup is
/// handed to it; by default where something does.
pub const VARIABLE: &str = "III_CGROUPS";

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// Where they are delegated.
    #[default]
    Delegated,
    /// Whatever is known of who manages them.
    Anyhow,
    /// No.
    Off,
}

impl Wish {
    /// What [`VARIABLE`] says; what it does not know is taken for its default.
    pub fn from_env() -> Self {
        match std::env::var(VARIABLE).as_deref() {
            Ok("off") => Self::Off,
            Ok("on") => Self::Anyhow,
            Ok(_) | Err(_) => Self::Delegated,
        }
    }
}
