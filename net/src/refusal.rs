//! What the policy refuses, told to whoever runs the guest: each destination once.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

/// Destinations that are told in a loop's life. A guest that scans a network would otherwise fill
/// its host's memory and its user's screen with them.
const MOST: usize = 32;

/// What the guest wanted and did not get.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// A TCP connection.
    Connection(SocketAddr),
    /// A UDP datagram.
    Datagram(SocketAddr),
    /// An ICMP echo.
    Echo(IpAddr),
    /// A TCP connection to a port of the host that is not open to it.
    HostPort(u16),
    /// A DNS name, in lower case and without its last dot, at most 255 bytes of the guest's choice.
    Name(String),
    /// More than are told. The counters go on.
    More,
}

/// What a refusal is told to; called on the loop's thread.
pub type RefusalCallback = Box<dyn FnMut(Refused) + Send>;

#[derive(Default)]
pub(crate) struct Notices(Mutex<State>);

#[derive(Default)]
struct State {
    told: HashSet<Refused>,
    callback: Option<RefusalCallback>,
}

impl Notices {
    pub(crate) fn tell_to(&self, callback: RefusalCallback) {
        self.lock().callback = Some(callback);
    }

    /// Takes one down, and tells it if that is news.
    pub(crate) fn add(&self, refused: Refused) {
        let mut state = self.lock();
        let State { told, callback } = &mut *state;
        let Some(callback) = callback else { return };
        if is_noise(&refused) || told.len() > MOST {
            return;
        }
        let refused = match told.len() {
            MOST if !told.contains(&refused) => Refused::More,
            _ => refused,
        };
        if told.insert(refused.clone()) {
            callback(refused);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").finish_non_exhaustive()
    }
}

/// Programs look for their neighbours by multicast without being asked to.
fn is_noise(refused: &Refused) -> bool {
    match refused {
        Refused::Connection(to) | Refused::Datagram(to) => is_for_all(to.ip()),
        Refused::Echo(to) => is_for_all(*to),
        Refused::HostPort(_) | Refused::Name(_) | Refused::More => false,
    }
}

fn is_for_all(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::from([255; 4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn told(by: impl FnOnce(&Notices)) -> Vec<Refused> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let notices = Notices::default();
        let sink = Arc::clone(&told);
        notices.tell_to(Box::new(move |refused| sink.lock().unwrap().push(refused)));
        by(&notices);
        std::mem::take(&mut *told.lock().unwrap())
    }

    fn to(last: u8) -> Refused {
        Refused::Connection(([192, 168, 0, last], 80).into())
    }

    #[test]
    fn each_is_told_once() {
        let name = Refused::Name("a.example".into());
        let told = told(|notices| {
            for refused in [to(1), to(2), to(1), name.clone(), name.clone()] {
                notices.add(refused);
            }
        });
        assert_eq!(told, [to(1), to(2), name]);
    }

    #[test]
    fn a_guest_that_scans_is_told_of_and_then_only_counted() {
        let told = told(|notices| (0..=255).for_each(|last| notices.add(to(last))));
        assert_eq!(told.len(), MOST + 1);
        assert_eq!(told[MOST], Refused::More);
    }

    #[test]
    fn multicast_is_no_news() {
        let told = told(|notices| {
            notices.add(Refused::Datagram(([224, 0, 0, 251], 5353).into()));
            notices.add(Refused::Datagram(([255, 255, 255, 255], 67).into()));
            notices.add(Refused::Echo("ff02::1".parse().unwrap()));
        });
        assert_eq!(told, []);
    }
}
