//! What this host can run, and why: the facts, a verdict on each, and the fix.

mod boot;
mod checks;
mod confinement;
mod limits;
mod render;

use iii_vmm::host::{HostFacts, TABLE};
use serde::Serialize;

pub use boot::{BootFailure, BootReport, Step, boot, render_boot};
pub use render::render;

/// What a fact means for workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Workers run, but worse than they could.
    Warning,
    /// No worker can run.
    Failure,
}

/// One fact of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at, for programs.
    pub id: &'static str,
    /// What was looked at, for people.
    pub title: &'static str,
    /// What it means.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    fn ok(id: &'static str, title: &'static str, found: impl Into<String>) -> Self {
        Self {
            id,
            title,
            verdict: Verdict::Ok,
            found: found.into(),
            fix: None,
        }
    }

    fn warning(
        id: &'static str,
        title: &'static str,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Warning,
            fix: Some(fix.into()),
            ..Self::ok(id, title, found)
        }
    }

    fn failure(
        id: &'static str,
        title: &'static str,
        found: impl Into<String>,
        fix: Option<String>,
    ) -> Self {
        Self {
            verdict: Verdict::Failure,
            fix,
            ..Self::ok(id, title, found)
        }
    }
}

/// All facts of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Of iii-super.
    pub version: &'static str,
    /// Whether a worker can run here.
    pub can_run: bool,
    /// In the order in which they matter.
    pub checks: Vec<Check>,
    /// The kinds of hosts that are told apart.
    pub hosts: Vec<HostKind>,
    /// A VM that was booted, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootReport>,
}

impl Report {
    /// Looks at this host. Starts QEMU to ask for its version; changes nothing, but that
    /// embedded helpers are laid where they can be executed.
    pub fn collect() -> Self {
        let checks = checks::all();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            can_run: checks.iter().all(|c| c.verdict != Verdict::Failure),
            checks,
            hosts: host_kinds(&HostFacts::collect()),
            boot: None,
        }
    }
}

/// A kind of host, and how guests are run there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostKind {
    /// What it is.
    pub situation: &'static str,
    /// `kvm` or `tcg`.
    pub acceleration: String,
    /// VMs have been run on such a host by this project.
    pub proven: bool,
    /// This host is of that kind.
    pub this: bool,
}

fn host_kinds(facts: &HostFacts) -> Vec<HostKind> {
    let kinds = TABLE.iter().map(|row| HostKind {
        situation: row.situation,
        acceleration: row.acceleration.to_string(),
        proven: row.proven,
        this: row.is_of(facts),
    });
    kinds.collect()
}
