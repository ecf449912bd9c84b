//! As whom a workload runs, by the accounts of its root. Looked up here and not in the guest: the
//! file server must know the numbers, and the guest starts sooner.

use std::borrow::Cow;

use iii_actors::spec::{MountSpec, UserSpec};
use iii_image::{EntryKind, SkeletonEntry, skeleton};
use iii_proto::guest::GuestUser;

use crate::prepare::PrepareFault;

/// The user of a workload whose spec names none.
const DEFAULT_USER: (&str, u32) = ("worker", 1000);

/// A user of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: String,
}

impl Account {
    /// The default one.
    pub(crate) fn of_workers() -> Self {
        let (name, id) = DEFAULT_USER;
        Self {
            name: name.into(),
            uid: id,
            gid: id,
            home: format!("/home/{name}"),
        }
    }
}

/// The accounts of a root.
pub(crate) struct Accounts<'a> {
    skeleton: &'a [SkeletonEntry],
    users: Vec<Account>,
    groups: Cow<'a, str>,
}

impl<'a> Accounts<'a> {
    pub(crate) fn of(skeleton: &'a [SkeletonEntry]) -> Self {
        let text = text_of(skeleton, "/etc/passwd");
        Self {
            skeleton,
            users: text.lines().filter_map(account).collect(),
            groups: text_of(skeleton, "/etc/group"),
        }
    }

    /// The account that a spec asks for.
    pub(crate) fn find(&self, wanted: Option<&UserSpec>) -> Result<Account, PrepareFault> {
        match wanted {
            None => Ok(Account::of_workers()),
            Some(UserSpec::Ids { uid, gid }) => {
                let known = self.users.iter().find(|user| user.uid == *uid);
                let name = known.map_or_else(|| format!("u{uid}"), |user| user.name.clone());
                let home = known.map_or_else(|| format!("/home/{name}"), |user| user.home.clone());
                Ok(Account {
                    name,
                    uid: *uid,
                    gid: *gid,
                    home,
                })
            }
            Some(UserSpec::Named(text)) => self.named(text).ok_or_else(|| {
                let known: Vec<&str> = self.users.iter().map(|user| user.name.as_str()).collect();
                PrepareFault::UnknownUser(text.to_owned(), known.join(", "))
            }),
        }
    }

    /// `name` or `name:group`, as the guest's own files have them.
    fn named(&self, text: &str) -> Option<Account> {
        let (name, group) = match text.split_once(':') {
            Some((name, group)) => (name, Some(group)),
            None => (text, None),
        };
        let user = self.users.iter().find(|user| user.name == name)?;
        let gid = match group {
            None => user.gid,
            Some(group) => match group.parse() {
                Ok(gid) => gid,
                Err(_) => self.group_lines().find(|line| line.name == group)?.gid,
            },
        };
        Some(Account {
            gid,
            ..user.clone()
        })
    }

    fn group_lines(&self) -> impl Iterator<Item = GroupLine<'_>> {
        self.groups.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some(GroupLine {
                name: fields.next()?,
                gid: fields.nth(1)?.parse().ok()?,
                members: fields.next()?,
            })
        })
    }

    /// What the guest is told. Where the root holds the account and its home already, nothing is
    /// left to be done in the guest.
    pub(crate) fn for_guest(&self, account: Account, mounts: &[MountSpec]) -> GuestUser {
        let Account {
            name,
            uid,
            gid,
            home,
        } = account;
        let entered = self.users.iter().any(|user| user.uid == uid);
        let at_home = skeleton::entry(self.skeleton, &home).is_some_and(|entry| {
            entry.owner.uid == uid && matches!(entry.kind, EntryKind::Dir { .. })
        });
        let hidden = mounts.iter().any(|mount| {
            let mount = mount.guest.trim_end_matches('/');
            // A mount on the home itself takes its place.
            is_above(mount, &home) || mount == "/etc"
        });
        if !entered || !at_home || hidden {
            return GuestUser::Ids {
                name,
                uid,
                gid,
                home,
            };
        }
        let mut groups = vec![gid];
        for line in self.group_lines() {
            let member = line.members.split(',').any(|member| member.trim() == name);
            if member && !groups.contains(&line.gid) {
                groups.push(line.gid);
            }
        }
        GuestUser::Known {
            name,
            uid,
            gid,
            groups,
            home,
        }
    }
}

struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn account(line: &str) -> Option<Account> {
    let mut fields = line.split(':');
    Some(Account {
        name: fields.next()?.to_owned(),
        uid: fields.nth(1)?.parse().ok()?,
        gid: fields.next()?.parse().ok()?,
        home: fields.nth(1)?.to_owned(),
    })
}

fn is_above(directory: &str, path: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// A file of the skeleton; empty if it has none of that name.
fn text_of<'a>(skeleton: &'a [SkeletonEntry], path: &str) -> Cow<'a, str> {
    match skeleton::entry(skeleton, path).map(|entry| &entry.kind) {
        Some(EntryKind::File { bytes, .. }) => String::from_utf8_lossy(bytes),
        Some(EntryKind::Dir { .. } | EntryKind::Symlink { .. }) | None => Cow::Borrowed(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_image::{HostRoot, Owner};

    fn skeleton() -> Vec<SkeletonEntry> {
        let file = |path: &str, text: &str| SkeletonEntry {
            path: path.into(),
            kind: EntryKind::File {
                mode: 0o644,
                bytes: text.into(),
            },
            owner: Owner::default(),
        };
        let home = |path: &str, id| SkeletonEntry {
            path: path.into(),
            kind: EntryKind::Dir { mode: 0o755 },
            owner: Owner { uid: id, gid: id },
        };
        vec![
            file(
                "/etc/group",
                "root:x:0:\nstaff:x:50:worker, other\nvideo:x:44:worker\n",
            ),
            file(
                "/etc/passwd",
                "root:x:0:0::/root:/bin/sh\nmail:x:8:8::/var/mail:/bin/false\n\
                 worker:x:1000:1000::/home/worker:/bin/sh\n",
            ),
            home("/home/worker", 1000),
            home("/root", 0),
            home("/var/mail", 0),
        ]
    }

    fn ids(text: &str) -> Option<(u32, u32)> {
        let skeleton = skeleton();
        let found = Accounts::of(&skeleton).find(Some(&UserSpec::Named(text.into())));
        found.ok().map(|account| (account.uid, account.gid))
    }

    #[test]
    fn users_are_named_with_or_without_a_group() {
        assert_eq!(ids("root"), Some((0, 0)));
        assert_eq!(ids("worker:staff"), Some((1000, 50)));
        assert_eq!(ids("worker:7"), Some((1000, 7)));
        assert_eq!(ids("worker:nobody"), None);
        assert_eq!(ids("nobody"), None);
    }

    fn told(user: Option<UserSpec>, mounted: &[&str]) -> GuestUser {
        let skeleton = skeleton();
        let accounts = Accounts::of(&skeleton);
        let mounts: Vec<MountSpec> = mounted
            .iter()
            .map(|guest| MountSpec {
                host: "/srv".into(),
                guest: (*guest).into(),
                read_only: false,
            })
            .collect();
        let account = accounts.find(user.as_ref()).unwrap();
        accounts.for_guest(account, &mounts)
    }

    #[test]
    fn what_the_root_holds_already_is_known_with_its_groups() {
        let known = GuestUser::Known {
            name: "worker".into(),
            uid: 1000,
            gid: 1000,
            groups: vec![1000, 50, 44],
            home: "/home/worker".into(),
        };
        assert_eq!(told(None, &[]), known);
        assert_eq!(told(None, &["/home/worker/", "/home/workers"]), known);
        let root = told(Some(UserSpec::Named("root".into())), &[]);
        assert!(matches!(root, GuestUser::Known { uid: 0, .. }));
    }

    #[test]
    fn what_is_missing_or_hidden_is_left_to_the_guest() {
        let ids = |user, mounted: &[&str]| {
            assert!(
                matches!(told(user, mounted), GuestUser::Ids { .. }),
                "{mounted:?}"
            );
        };
        ids(None, &["/home"]);
        ids(None, &["/etc"]);
        ids(Some(UserSpec::Named("mail".into())), &[]);
        let stranger = UserSpec::Ids {
            uid: 4321,
            gid: 4321,
        };
        ids(Some(stranger), &[]);
    }

    #[test]
    fn the_default_user_is_known_to_this_hosts_root() {
        let root = HostRoot::discover().unwrap();
        let accounts = Accounts::of(&root.skeleton);
        let user = accounts.for_guest(accounts.find(None).unwrap(), &[]);
        assert!(
            matches!(user, GuestUser::Known { uid: 1000, .. }),
            "{user:?}"
        );
    }
}
