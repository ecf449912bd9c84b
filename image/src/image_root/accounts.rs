//! Users by an image's own `/etc/passwd` and `/etc/group`, with the meaning that image formats give
//! `USER`. vm-init looks them up again in the guest, where they count; here they are needed for the
//! server of mounted files, and for an error before anything is started.

use crate::erofs::read::ReadError;

/// A user and group of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Home directory.
    pub home: String,
}

/// Names shown of those that there are.
const SHOWN: usize = 12;

/// Why there is no such user.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// Not in `/etc/passwd`.
    #[error(
        "failed to find the user \"{0}\" in the image; use a number, as `user: \"1000:1000\"`, or one \
         of: {1}"
    )]
    User(String, String),
    /// Not in `/etc/group`.
    #[error("failed to find the group \"{0}\" in the image; use a number, or one of: {1}")]
    Group(String, String),
    /// The image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Finds `name`, `uid`, `name:group` or numbers. A uid without an entry has group 0 and home `/`.
pub(super) fn find(passwd: &str, group: &str, text: &str) -> Result<Account, AccountError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = user.parse::<u32>().ok();
    let found = users(passwd)
        .find(|entry| entry.name == user)
        .or_else(|| users(passwd).find(|entry| Some(entry.uid) == number));
    let (uid, gid, home) = match (found, number) {
        (Some(entry), _) => (entry.uid, entry.gid, entry.home),
        (None, Some(uid)) => (uid, 0, "/"),
        (None, None) => {
            let known = listed(users(passwd).map(|entry| entry.name));
            return Err(AccountError::User(user.to_owned(), known));
        }
    };
    let gid = match wanted_group {
        None => gid,
        Some(wanted) => groups(group)
            .find(|(name, _)| *name == wanted)
            .map(|(_, gid)| gid)
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| {
                let known = listed(groups(group).map(|(name, _)| name));
                AccountError::Group(wanted.to_owned(), known)
            })?,
    };
    Ok(Account {
        uid,
        gid,
        home: home.to_owned(),
    })
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let shown: Vec<&str> = names.take(SHOWN).collect();
    if shown.is_empty() {
        "none".to_owned()
    } else {
        shown.join(", ")
    }
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        let home = if home.is_empty() { "/" } else { home };
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbad line\n\
        node:x:1000:1000::/home/node:/bin/sh\nempty:x:7:8:::\n";
    const GROUP: &str = "root:x:0:\nnode:x:1000:\nnogroup:x:65534:\n";

    fn found(text: &str) -> (u32, u32, String) {
        let account = find(PASSWD, GROUP, text).unwrap();
        (account.uid, account.gid, account.home)
    }

    #[test]
    fn names_and_numbers_as_vm_init_takes_them() {
        assert_eq!(found("node"), (1000, 1000, "/home/node".into()));
        assert_eq!(found("1000"), (1000, 1000, "/home/node".into()));
        assert_eq!(found("node:nogroup"), (1000, 65534, "/home/node".into()));
        assert_eq!(found("node:77"), (1000, 77, "/home/node".into()));
        assert_eq!(found("4321"), (4321, 0, "/".into()));
        assert_eq!(found("4321:5"), (4321, 5, "/".into()));
        assert_eq!(found("empty"), (7, 8, "/".into()));
    }

    #[test]
    fn who_is_missing_is_told_who_is_there() {
        let error = find(PASSWD, GROUP, "postgres").unwrap_err().to_string();
        assert!(error.ends_with("one of: root, node, empty"), "{error}");
        let error = find(PASSWD, GROUP, "node:wheel").unwrap_err().to_string();
        assert!(
            error.contains("\"wheel\"") && error.contains("nogroup"),
            "{error}"
        );
        assert!(find("", "", "x").unwrap_err().to_string().ends_with("none"));
    }
}
