//! Whether a cgroup may be used: the facts of it, and the decision. Pure.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Wish;

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// CPU time.
    Cpu,
}

impl Controller {
    pub(super) const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        })
    }
}

/// Those that a file of the kernel's names (`cgroup.controllers`, `cgroup.subtree_control`).
pub(super) fn controllers(text: &str) -> Vec<Controller> {
    let named = |controller: &Controller| {
        let name = controller.to_string();
        text.split_whitespace().any(|word| word == name)
    };
    Controller::ALL.into_iter().filter(named).collect()
}

/// Why no cgroup is used.
#[derive(Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// The user does not want it.
    Off,
    /// The host has no hierarchy of version 2 for this process.
    NoHierarchy,
    /// Nothing shows that the process's cgroup was handed to it.
    NotDelegated(PathBuf),
    /// It was, but this user cannot write to it.
    NotWritable(PathBuf),
    /// It holds threads, which have no memory of their own to limit.
    Threaded(PathBuf),
    /// Nothing can be limited below it.
    NoControllers(PathBuf),
    /// Others are in it.
    Shared {
        /// The cgroup.
        cgroup: PathBuf,
        /// How many.
        others: usize,
    },
    /// Another supervisor has it.
    Busy(PathBuf),
    /// The kernel refuses something.
    Failed {
        /// What was tried.
        action: &'static str,
        /// The cgroup, or its file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => write!(f, "switched off ({} = off)", super::VARIABLE),
            Self::NoHierarchy => f.write_str("this host has none of version 2 for this process"),
            Self::NotDelegated(path) => write!(f, "{} is not delegated", path.display()),
            Self::NotWritable(path) => {
                write!(f, "{} cannot be written by this user", path.display())
            }
            Self::Threaded(path) => write!(f, "{} is for threads", path.display()),
            Self::NoControllers(path) => write!(
                f,
                "{} has none of the controllers memory, pids and cpu",
                path.display()
            ),
            Self::Shared { cgroup, others } => {
                write!(f, "{others} other processes are in {}", cgroup.display())
            }
            Self::Busy(path) => write!(f, "another supervisor uses {}", path.display()),
            Self::Failed {
                action,
                path,
                source,
            } => write!(f, "failed to {action} {}: {source}", path.display()),
        }
    }
}

impl std::error::Error for Refusal {}

/// What is known of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) path: PathBuf,
    /// Whoever manages the host has marked it as handed over (the extended attribute `user.delegate`
    /// or `trusted.delegate`, systemd's).
    pub(super) marked: bool,
    /// The user to whom it belongs.
    pub(super) owner: u32,
    /// This user may make cgroups in it, move processes and enable controllers.
    pub(super) writable: bool,
    /// `cgroup.type`; none at the root of the hierarchy, where processes and limits go together.
    pub(super) kind: Option<String>,
    pub(super) controllers: Vec<Controller>,
    /// Processes in it that are not this one.
    pub(super) others: usize,
    /// It is the root of a cgroup namespace, as a container's is.
    pub(super) is_namespace_root: bool,
}

/// The leaf of the supervisor itself.
pub(super) const SUPERVISOR: &str = "supervisor";

/// Which cgroup to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// Below which the leaves are made.
    pub(super) root: PathBuf,
    /// This process has to leave it for a leaf of its own.
    pub(super) must_move: bool,
    pub(super) controllers: Vec<Controller>,
}

/// Decides. `own` is this process's cgroup, `parent` the one above it.
pub(super) fn decide(
    wish: Wish,
    user: u32,
    own: &Group,
    parent: Option<&Group>,
) -> Result<Decision, Refusal> {
    if wish == Wish::Off {
        return Err(Refusal::Off);
    }
    // A leaf of the supervisor's own, made by whoever has started it (systemd's DelegateSubgroup) or
    // by an earlier run.
    let in_leaf = own.path.file_name().is_some_and(|name| name == SUPERVISOR);
    if let Some(parent) = parent
        && (parent.marked && !own.marked || in_leaf && is_delegated(wish, user, parent, None))
    {
        check(parent)?;
        return Ok(Decision {
            root: parent.path.clone(),
            must_move: false,
            controllers: parent.controllers.clone(),
        });
    }
    if !is_delegated(wish, user, own, parent) {
        return Err(Refusal::NotDelegated(own.path.clone()));
    }
    check(own)?;
    Ok(Decision {
        root: own.path.clone(),
        must_move: own.kind.is_some(),
        controllers: own.controllers.clone(),
    })
}

fn is_delegated(wish: Wish, user: u32, group: &Group, parent: Option<&Group>) -> bool {
    // Given away by a change of owner alone, as older managers do it: it is this user's, and what is
    // above it is not. Root owns everything, so its ownership says nothing.
    let given = user != 0
        && group.owner == user
        && parent.is_some_and(|parent| parent.owner != user && !parent.writable);
    wish == Wish::Anyhow || group.marked || given || group.is_namespace_root && group.kind.is_some()
}

fn check(group: &Group) -> Result<(), Refusal> {
    let path = || group.path.clone();
    if !group.writable {
        return Err(Refusal::NotWritable(path()));
    }
    match group.kind.as_deref() {
        None => {}
        Some(_) if group.others > 0 => {
            return Err(Refusal::Shared {
                cgroup: path(),
                others: group.others,
            });
        }
        Some("domain") => {}
        Some(_) => return Err(Refusal::Threaded(path())),
    }
    if group.controllers.is_empty() {
        return Err(Refusal::NoControllers(path()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u32 = 1000;

    fn group(path: &str, owner: u32) -> Group {
        Group {
            path: path.into(),
            marked: false,
            owner,
            writable: owner == ME,
            kind: Some("domain".into()),
            controllers: Controller::ALL.into(),
            others: 0,
            is_namespace_root: false,
        }
    }

    fn decided(own: &Group, parent: &Group) -> Result<Decision, String> {
        decide(Wish::Delegated, ME, own, Some(parent)).map_err(|refusal| refusal.to_string())
    }

    fn uses(root: &str, must_move: bool) -> Result<Decision, String> {
        Ok(Decision {
            root: root.into(),
            must_move,
            controllers: Controller::ALL.into(),
        })
    }

    #[test]
    fn a_service_of_an_own_user_is_marked_or_given_away_by_its_owner() {
        let slice = group("/cg/system.slice", 0);
        let mut service = group("/cg/system.slice/iii.service", ME);
        assert_eq!(
            decided(&service, &slice),
            uses("/cg/system.slice/iii.service", true)
        );
        service.marked = true;
        assert_eq!(
            decided(&service, &slice),
            uses("/cg/system.slice/iii.service", true)
        );
    }

    #[test]
    fn of_a_users_own_manager_only_what_is_marked_is_handed_over() {
        let slice = group("/cg/app.slice", ME);
        let mut scope = group("/cg/app.slice/run-1.scope", ME);
        let text = decided(&scope, &slice).unwrap_err();
        assert_eq!(text, "/cg/app.slice/run-1.scope is not delegated");
        scope.marked = true;
        assert_eq!(
            decided(&scope, &slice),
            uses("/cg/app.slice/run-1.scope", true)
        );
        // Above it is a delegated one, of the user's manager, which has marked this one as its own.
        let mut manager = slice;
        manager.marked = true;
        assert_eq!(
            decided(&scope, &manager),
            uses("/cg/app.slice/run-1.scope", true)
        );
    }

    #[test]
    fn a_supervisors_leaf_is_left_as_it_is() {
        let mut service = group("/cg/iii.service", ME);
        let mut leaf = group("/cg/iii.service/main", ME);
        service.marked = true;
        assert_eq!(decided(&leaf, &service), uses("/cg/iii.service", false));
        // Of an earlier run in a container.
        service.marked = false;
        service.is_namespace_root = true;
        leaf.path = "/cg/iii.service/supervisor".into();
        assert_eq!(decided(&leaf, &service), uses("/cg/iii.service", false));
    }

    #[test]
    fn root_is_handed_only_what_is_marked_or_the_root_of_a_namespace() {
        let mut session = group("/cg/session-1.scope", 0);
        session.writable = true;
        let decided = |group: &Group, wish| decide(wish, 0, group, None);
        assert!(matches!(
            decided(&session, Wish::Delegated),
            Err(Refusal::NotDelegated(_))
        ));
        assert!(decided(&session, Wish::Anyhow).unwrap().must_move);
        assert!(matches!(decided(&session, Wish::Off), Err(Refusal::Off)));
        session.is_namespace_root = true;
        assert!(decided(&session, Wish::Delegated).unwrap().must_move);
        // The root of the hierarchy belongs to whoever manages the host; its processes may stay.
        session.kind = None;
        session.others = 90;
        assert!(decided(&session, Wish::Delegated).is_err());
        assert!(!decided(&session, Wish::Anyhow).unwrap().must_move);
    }

    #[test]
    fn what_keeps_a_delegated_cgroup_from_being_used_is_named() {
        let slice = group("/cg", 0);
        let refused = |change: &dyn Fn(&mut Group)| {
            let mut service = group("/cg/a", ME);
            change(&mut service);
            decided(&service, &slice).unwrap_err()
        };
        let text = refused(&|group| group.others = 3);
        assert_eq!(text, "3 other processes are in /cg/a");
        assert!(refused(&|group| group.controllers.clear()).contains("memory, pids and cpu"));
        assert!(refused(&|group| group.kind = Some("threaded".into())).contains("threads"));
        assert!(refused(&|group| group.writable = false).contains("cannot be written"));
    }

    #[test]
    fn controllers_are_told_by_their_whole_names() {
        use Controller::{Memory, Pids};
        assert_eq!(controllers("cpuset pids io memory\n"), [Memory, Pids]);
        assert_eq!(controllers(""), []);
    }
}
