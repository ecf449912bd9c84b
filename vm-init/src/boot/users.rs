//! As whom the workload runs, by the guest's own `/etc/passwd` and `/etc/group`. Read by ourselves:
//! a static binary has no working getpwnam(3).

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use iii_proto::guest::GuestUser;

use crate::launch::Identity;
use crate::sys::Credentials;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Most bytes of either file; see `read_file`.
const MAX_FILE: u64 = 8 * 1024 * 1024;

/// Why the workload's user is not known.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such user.
    #[error("failed to find user {0:?}: the guest's {PASSWD} does not name it")]
    UnknownUser(String),
    /// No such group.
    #[error("failed to find group {0:?}: the guest's {GROUP} does not name it")]
    UnknownGroup(String),
    /// A field that the file's format cannot hold.
    #[error("failed to enter user {0:?}: its name and home must not hold ':' or a line break")]
    BadField(String),
    /// A file cannot be read or written.
    #[error("failed to {0} {1}: {2}")]
    File(&'static str, String, std::io::Error),
}

/// One line of passwd(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PasswdEntry<'a> {
    /// Login name.
    pub name: &'a str,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home directory.
    pub home: &'a str,
}

/// The well-formed lines of a passwd file.
pub fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let (_gecos, home) = (fields.next()?, fields.next()?);
        let home = if home.is_empty() { "/" } else { home };
        Some(PasswdEntry {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// One line of group(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry<'a> {
    /// Its name.
    pub name: &'a str,
    /// Group id.
    pub gid: u32,
    members: &'a str,
}

impl GroupEntry<'_> {
    /// The user is listed as a member.
    pub fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

/// The well-formed lines of a group file.
pub fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _password) = (fields.next()?, fields.next()?);
        let gid = fields.next()?.parse().ok()?;
        let members = fields.next()?;
        Some(GroupEntry { name, gid, members })
    })
}

/// Finds the spec's user, enters it where the guest lacks it, and makes its home. The warning is
/// for the user.
pub fn resolve(user: &GuestUser) -> Result<(Identity, Option<String>), UserError> {
    let files = || Ok((read(PASSWD)?, read(GROUP)?));
    match user {
        GuestUser::Known {
            name,
            uid,
            gid,
            groups,
            home,
        } => {
            let identity = identity(name.clone(), home.clone(), *uid, *gid, groups.clone());
            Ok((identity, None))
        }
        GuestUser::Ids {
            name,
            uid,
            gid,
            home,
        } => {
            let (passwd, group) = files()?;
            let known = passwd_entries(&passwd).find(|entry| entry.uid == *uid);
            let name = match known {
                Some(entry) => entry.name.to_owned(),
                None => enter(&passwd, &group, name, *uid, *gid, home)?,
            };
            let warning = make_home(Path::new(home), *uid, *gid)?;
            let groups = groups_of(&group, &name, *gid);
            Ok((identity(name, home.clone(), *uid, *gid, groups), warning))
        }
        GuestUser::Named(text) => {
            let (passwd, group) = files()?;
            Ok((find_named(&passwd, &group, text)?, None))
        }
    }
}

fn identity(name: String, home: String, uid: u32, gid: u32, groups: Vec<u32>) -> Identity {
    Identity {
        name,
        home,
        credentials: Some(Credentials { uid, gid, groups }),
    }
}

/// A user by `name`, `name:group`, `uid` or `uid:gid`, as the guest's files have it now.
pub fn named(text: &str) -> Result<Identity, UserError> {
    find_named(&read(PASSWD)?, &read(GROUP)?, text)
}

/// `name`, `uid`, `name:group` or numbers, with the meaning that image formats give `USER`: a uid
/// without an entry has group 0 and home `/`, and a group that is named replaces all others.
fn find_named(passwd: &str, group: &str, text: &str) -> Result<Identity, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = user.parse::<u32>().ok();
    let entry = passwd_entries(passwd)
        .find(|entry| entry.name == user)
        .or_else(|| passwd_entries(passwd).find(|entry| Some(entry.uid) == number));
    let (name, uid, gid, home) = match (entry, number) {
        (Some(entry), _) => (entry.name, entry.uid, entry.gid, entry.home),
        (None, Some(uid)) => (user, uid, 0, "/"),
        (None, None) => return Err(UserError::UnknownUser(user.to_owned())),
    };
    let (gid, groups) = match wanted_group {
        Some(wanted) => {
            let gid = group_entries(group)
                .find(|entry| entry.name == wanted)
                .map(|entry| entry.gid)
                .or_else(|| wanted.parse().ok())
                .ok_or_else(|| UserError::UnknownGroup(wanted.to_owned()))?;
            (gid, vec![gid])
        }
        None => (gid, groups_of(group, name, gid)),
    };
    Ok(identity(name.to_owned(), home.to_owned(), uid, gid, groups))
}

fn groups_of(group: &str, user: &str, gid: u32) -> Vec<u32> {
    let mut groups = vec![gid];
    for entry in group_entries(group) {
        if entry.has(user) && !groups.contains(&entry.gid) {
            groups.push(entry.gid);
        }
    }
    groups
}

/// Appends the user, and its group if that is missing; the name under which it was entered.
fn enter(
    passwd: &str,
    group: &str,
    name: &str,
    uid: u32,
    gid: u32,
    home: &str,
) -> Result<String, UserError> {
    let (user_line, group_line, name) = entries_for(passwd, group, name, uid, gid, home)?;
    append(PASSWD, passwd, &user_line)?;
    if let Some(line) = group_line {
        append(GROUP, group, &line)?;
    }
    Ok(name)
}

fn entries_for(
    passwd: &str,
    group: &str,
    name: &str,
    uid: u32,
    gid: u32,
    home: &str,
) -> Result<(String, Option<String>, String), UserError> {
    if name.is_empty() || [name, home].iter().any(|s| s.contains([':', '\n', '\r'])) {
        return Err(UserError::BadField(name.to_owned()));
    }
    // The image may use the name for another uid: then ours carries its number.
    let name = if passwd_entries(passwd).any(|entry| entry.name == name) {
        format!("{name}{uid}")
    } else {
        name.to_owned()
    };
    let group_line = group_entries(group)
        .all(|entry| entry.gid != gid)
        .then(|| format!("{name}:x:{gid}:\n"));
    let user_line = format!("{name}:x:{uid}:{gid}::{home}:/bin/sh\n");
    Ok((user_line, group_line, name))
}

fn append(path: &str, before: &str, line: &str) -> Result<(), UserError> {
    let failed = |error| UserError::File("write", path.to_owned(), error);
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(failed)?;
    let gap = if before.is_empty() || before.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    file.write_all(format!("{gap}{line}").as_bytes())
        .map_err(failed)
}

/// Makes the home directory and gives it to the user; what belongs to another user stays so.
fn make_home(home: &Path, uid: u32, gid: u32) -> Result<Option<String>, UserError> {
    let shown = || home.display().to_string();
    match fs::metadata(home) {
        Ok(found) => {
            if found.uid() == uid || found.uid() != 0 || home == Path::new("/") {
                return Ok(None);
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(home)
                .map_err(|error| UserError::File("make home", shown(), error))?;
        }
        Err(error) => return Err(UserError::File("look at home", shown(), error)),
    }
    match std::os::unix::fs::chown(home, Some(uid), Some(gid)) {
        Ok(()) => Ok(None),
        // An export whose files belong to somebody else on the host.
        Err(error) => Ok(Some(format!(
            "failed to give home {} to user {uid}: {error}",
            home.display()
        ))),
    }
}

fn read(path: &str) -> Result<String, UserError> {
    match read_file(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(UserError::File("read", path.to_owned(), error)),
    }
}

/// Reads a file that root of the guest may have put in another's place while it runs: a pipe would
/// keep PID 1 waiting for ever, and one without an end would fill its memory.
fn read_file(path: &str) -> std::io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > MAX_FILE {
        let what = format!("it is no file of at most {MAX_FILE} bytes");
        return Err(std::io::Error::new(ErrorKind::InvalidData, what));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD_TEXT: &str = "root:x:0:0:root:/root:/bin/bash\nbad line\n\
        node:x:1000:1000::/home/node:/bin/sh\nempty:x:7:8:::\n";
    const GROUP_TEXT: &str = "root:x:0:\naudio:x:29:node,other\nnode:x:1000:\nnogroup:x:65534:\n";

    fn named(text: &str) -> Result<(String, String, Credentials), UserError> {
        find_named(PASSWD_TEXT, GROUP_TEXT, text).map(|i| (i.name, i.home, i.credentials.unwrap()))
    }

    fn credentials(uid: u32, gid: u32, groups: &[u32]) -> Credentials {
        Credentials {
            uid,
            gid,
            groups: groups.to_vec(),
        }
    }

    #[test]
    fn names_and_numbers_as_image_formats_mean_them() {
        let node = ("node".to_owned(), "/home/node".to_owned());
        let (name, home, c) = named("node").unwrap();
        assert_eq!((name, home), node);
        assert_eq!(c, credentials(1000, 1000, &[1000, 29]));
        assert_eq!(
            named("1000").unwrap().2,
            credentials(1000, 1000, &[1000, 29])
        );
        assert_eq!(
            named("node:nogroup").unwrap().2,
            credentials(1000, 65534, &[65534])
        );
        assert_eq!(named("node:77").unwrap().2, credentials(1000, 77, &[77]));
        let (name, home, c) = named("4321").unwrap();
        assert_eq!((name.as_str(), home.as_str()), ("4321", "/"));
        assert_eq!(c, credentials(4321, 0, &[0]));
        assert_eq!(named("empty").unwrap().1, "/");
        assert!(matches!(named("nobody"), Err(UserError::UnknownUser(_))));
        assert!(matches!(
            named("node:wheel"),
            Err(UserError::UnknownGroup(_))
        ));
    }

    #[test]
    fn a_missing_user_is_entered_under_a_name_that_is_free() {
        let (line, group, name) = entries_for(
            PASSWD_TEXT,
            GROUP_TEXT,
            "worker",
            1001,
            1001,
            "/home/worker",
        )
        .unwrap();
        assert_eq!(line, "worker:x:1001:1001::/home/worker:/bin/sh\n");
        assert_eq!(group.as_deref(), Some("worker:x:1001:\n"));
        assert_eq!(name, "worker");
        let (line, group, name) =
            entries_for(PASSWD_TEXT, GROUP_TEXT, "node", 1001, 1000, "/h").unwrap();
        assert_eq!(name, "node1001");
        assert_eq!(line, "node1001:x:1001:1000::/h:/bin/sh\n");
        assert_eq!(group, None);
    }

    #[test]
    fn a_line_cannot_be_smuggled_in() {
        for (name, home) in [("a\nroot2:x:0:0::/:", "/"), ("a", "/h:x"), ("", "/")] {
            assert!(matches!(
                entries_for("", "", name, 1, 1, home),
                Err(UserError::BadField(_))
            ));
        }
    }

    #[test]
    fn a_home_is_made_with_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home/me");
        let own = nix::unistd::geteuid().as_raw();
        let group = nix::unistd::getegid().as_raw();
        assert_eq!(make_home(&home, own, group).unwrap(), None);
        assert!(home.is_dir());
        assert_eq!(make_home(&home, own, group).unwrap(), None);
    }

    #[test]
    fn a_pipe_in_a_files_place_is_refused_and_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = read(path.to_str().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no file"), "{error}");
    }

    proptest! {
        #[test]
        fn any_file_is_survived(text in "(\\PC|:|\n){0,200}") {
            for entry in passwd_entries(&text) {
                prop_assert!(!entry.name.contains(':'));
            }
            for entry in group_entries(&text) {
                prop_assert!(!entry.name.contains(':'));
            }
        }
    }
}
