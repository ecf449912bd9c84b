//! Whose files are whose: how host owners appear in the guest, and what a chown may ask.
//!
//! Every request runs with the server's own credentials, so everything that the guest creates
//! belongs to the server's user. In the guest that user appears as the workload's. All other host
//! ids appear as they are, so that `/etc/passwd` lookups of a foreign owner say what they say on
//! the host.

use fuse_backend_rs::api::filesystem::SetattrValid;

/// The mapping of one export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    server: (u32, u32),
    guest: (u32, u32),
}

impl Ownership {
    /// The server's uid and gid appear as the guest's pair.
    pub fn new(server: (u32, u32), guest: (u32, u32)) -> Self {
        Self { server, guest }
    }

    /// Nothing is mapped: for trees like `/usr`, which belong to root and must show it, also when
    /// the server itself runs as root.
    pub fn unmapped() -> Self {
        Self::new((0, 0), (0, 0))
    }

    /// What the guest sees of a host owner.
    pub fn to_guest(self, uid: u32, gid: u32) -> (u32, u32) {
        (
            if uid == self.server.0 {
                self.guest.0
            } else {
                uid
            },
            if gid == self.server.1 {
                self.guest.1
            } else {
                gid
            },
        )
    }

    /// Rewrites the owner in attributes on their way to the guest.
    pub fn map_attributes(self, attributes: &mut libc::stat64) {
        (attributes.st_uid, attributes.st_gid) =
            self.to_guest(attributes.st_uid, attributes.st_gid);
    }

    /// What a chown comes to on the host.
    pub fn chown(
        self,
        current: &libc::stat64,
        requested: &libc::stat64,
        valid: SetattrValid,
    ) -> Chown {
        let (uid, gid) = self.to_guest(current.st_uid, current.st_gid);
        if valid.contains(SetattrValid::UID) && requested.st_uid != uid {
            Chown::Refused
        } else if !valid.contains(SetattrValid::GID) || requested.st_gid == gid {
            Chown::Nothing
        } else if requested.st_gid == self.guest.1 && self != Self::unmapped() {
            Chown::Group(self.server.1)
        } else {
            Chown::Refused
        }
    }
}

/// See [`Ownership::chown`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chown {
    /// The guest asks for what it sees already: success.
    Nothing,
    /// A file of another group comes to the server's own group, if the host lets its user do so.
    Group(u32),
    /// EPERM.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_backend_rs::api::filesystem::Entry;

    fn attributes(uid: u32, gid: u32) -> libc::stat64 {
        let mut attributes = Entry::default().attr;
        (attributes.st_uid, attributes.st_gid) = (uid, gid);
        attributes
    }

    const MAPPED: Ownership = Ownership {
        server: (501, 20),
        guest: (1000, 1000),
    };

    #[test]
    fn only_the_servers_own_ids_are_mapped() {
        assert_eq!(MAPPED.to_guest(501, 20), (1000, 1000));
        assert_eq!(MAPPED.to_guest(0, 20), (0, 1000));
        assert_eq!(MAPPED.to_guest(501, 0), (1000, 0));
        assert_eq!(MAPPED.to_guest(33, 33), (33, 33));
        assert_eq!(Ownership::unmapped().to_guest(0, 5), (0, 5));
    }

    #[test]
    fn a_chown_to_what_is_seen_succeeds_and_anything_else_does_not() {
        let both = SetattrValid::UID | SetattrValid::GID;
        let own = attributes(501, 20);
        let chown = |current, uid, gid, valid| MAPPED.chown(current, &attributes(uid, gid), valid);
        assert_eq!(chown(&own, 1000, 1000, both), Chown::Nothing);
        assert_eq!(chown(&own, 0, 1000, both), Chown::Refused);
        assert_eq!(chown(&own, 1000, 0, both), Chown::Refused);
        assert_eq!(chown(&own, 0, 1000, SetattrValid::GID), Chown::Nothing);
        // The host's own number is not what the guest sees: nobody may claim it.
        assert_eq!(chown(&own, 501, 1000, both), Chown::Refused);
        // A foreign file may not be taken over, but a foreign group given up.
        let foreign = attributes(0, 0);
        assert_eq!(chown(&foreign, 1000, 1000, both), Chown::Refused);
        assert_eq!(chown(&foreign, 0, 0, both), Chown::Nothing);
        assert_eq!(
            chown(&attributes(501, 50), 1000, 1000, both),
            Chown::Group(20)
        );
        assert_eq!(
            Ownership::unmapped().chown(&own, &attributes(0, 0), SetattrValid::GID),
            Chown::Refused
        );
    }
}
