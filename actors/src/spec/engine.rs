//! The iii engine's address: one URL on the host, and what it means in a guest.
//!
//! `localhost` means another machine in a guest than on the host. So an address of the host's
//! loopback is rewritten, once and here, by a URL parser; nothing else that a user writes is ever
//! rewritten.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use iii_net::config::HOST_NAME;
use iii_net::policy::HOST_LOOPBACK;
use iii_net::{Policy, Rule};
use url::{Host, Url};

/// Where workers find the iii engine.
#[derive(Clone, PartialEq, Eq)]
pub struct EngineAddress {
    /// As it was given, whole.
    given: String,
    /// As the guest must write it.
    guest: String,
    /// As it was given, without what may be secret.
    shown: String,
    reach: Reach,
}

/// What a guest's policy must open, and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reach {
    /// A port of the host's loopback, at the first of these addresses that answers.
    Loopback { port: u16, addresses: Vec<IpAddr> },
    /// One port of another host.
    Remote(Rule),
}

/// Why an engine's address was not taken. Does not repeat it: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to read the engine's address: {reason}; write it as ws://localhost:49134")]
pub struct EngineAddressError {
    reason: String,
}

impl EngineAddressError {
    /// What is wrong with it, without the rest of the sentence.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl FromStr for EngineAddress {
    type Err = EngineAddressError;

    fn from_str(text: &str) -> Result<Self, EngineAddressError> {
        let fail = |reason: &str| EngineAddressError {
            reason: reason.to_owned(),
        };
        // A URL parser drops these without a word, and what is left may be another host.
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(fail("it holds white space"));
        }
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(url::ParseError::RelativeUrlWithoutBase) => {
                return Err(fail("it does not begin with ws:// or wss://"));
            }
            Err(error) => return Err(fail(&error.to_string())),
        };
        if !matches!(url.scheme(), "ws" | "wss") {
            return Err(fail("it does not begin with ws:// or wss://"));
        }
        if url.fragment().is_some() {
            return Err(fail("a `#` has no meaning in it"));
        }
        let port = match url.port_or_known_default() {
            Some(0) | None => return Err(fail("port 0 is nobody's")),
            Some(port) => port,
        };
        let host = url.host().ok_or_else(|| fail("it names no host"))?;
        let (reach, name) = match host {
            Host::Ipv4(address) => at_address(IpAddr::V4(address), port),
            // An IPv4 address in IPv6 form is one to the host's kernel and none to the guest's
            // gateway.
            Host::Ipv6(address) => at_address(address.to_canonical(), port),
            Host::Domain(name) => at_name(name, port).ok_or_else(|| {
                fail("its host is neither an IP address nor a name of letters, digits, - and dots")
            })?,
        };
        let mut guest = url.clone();
        guest
            .set_host(Some(&name))
            .map_err(|error| fail(&error.to_string()))?;
        let mut shown = url;
        shown.set_query(None);
        // Both fail only for a URL without a host, and this one has one.
        shown
            .set_username("")
            .and_then(|()| shown.set_password(None))
            .map_err(|()| fail("it names no host"))?;
        Ok(Self {
            given: text.to_owned(),
            guest: written(&guest),
            shown: written(&shown),
            reach,
        })
    }
}

fn at_address(address: IpAddr, port: u16) -> (Reach, String) {
    let addresses = match address {
        // To connect there is to connect to oneself.
        _ if address.is_unspecified() => HOST_LOOPBACK.to_vec(),
        _ if address.is_loopback() => vec![address],
        IpAddr::V4(_) => {
            let rule = Rule::address(address, port);
            return (Reach::Remote(rule), address.to_string());
        }
        IpAddr::V6(_) => {
            let rule = Rule::address(address, port);
            return (Reach::Remote(rule), format!("[{address}]"));
        }
    };
    let reach = Reach::Loopback { port, addresses };
    (reach, HOST_NAME.to_owned())
}

/// `name` is in lower case, as the URL parser leaves it.
fn at_name(name: &str, port: u16) -> Option<(Reach, String)> {
    let bare = name.strip_suffix('.').unwrap_or(name);
    // RFC 6761 §6.3: every name below localhost is the loopback too.
    let loopback = bare == "localhost" || bare.ends_with(".localhost") || bare == HOST_NAME;
    if loopback {
        let reach = Reach::Loopback {
            port,
            addresses: HOST_LOOPBACK.to_vec(),
        };
        return Some((reach, HOST_NAME.to_owned()));
    }
    let rule = Rule::name(bare, port)?;
    Some((Reach::Remote(rule), name.to_owned()))
}

impl EngineAddress {
    /// The URL as it was given, its password included.
    pub fn as_given(&self) -> &str {
        &self.given
    }

    /// The URL as a guest must write it, its password included.
    pub fn in_guest(&self) -> String {
        self.guest.clone()
    }

    /// Opens the way to it, and no other.
    pub fn open(&self, policy: &mut Policy) {
        match &self.reach {
            Reach::Loopback { port, addresses } => {
                policy.host_streams.insert(*port, addresses.clone());
            }
            Reach::Remote(rule) => policy.allow.push(rule.clone()),
        }
    }
}

/// A URL parser adds a path `/`, to which clients that append a path of their own add another.
fn written(url: &Url) -> String {
    let text = url.as_str();
    match (url.path(), url.query()) {
        ("/", None) => text.trim_end_matches('/').to_owned(),
        _ => text.to_owned(),
    }
}

/// For people: without user, password and query, which may hold secrets.
impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EngineAddress({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> EngineAddress {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn opened(address: &EngineAddress) -> (Vec<String>, Vec<(u16, Vec<String>)>) {
        let mut policy = Policy::default();
        address.open(&mut policy);
        let rules = policy.allow.iter().map(Rule::to_string).collect();
        let streams = policy.host_streams.into_iter();
        let streams = streams
            .map(|(port, addresses)| (port, addresses.iter().map(IpAddr::to_string).collect()));
        assert!(policy.host_ports.is_empty());
        (rules, streams.collect())
    }

    #[test]
    fn the_hosts_loopback_in_every_form_is_the_gateway_to_the_guest() {
        let both = &["127.0.0.1", "::1"][..];
        for (text, guest, port, addresses) in [
            (
                "ws://localhost:49134",
                "ws://host.iii.internal:49134",
                49134,
                both,
            ),
            (
                "ws://localhost:49134/",
                "ws://host.iii.internal:49134",
                49134,
                both,
            ),
            (
                "WS://LocalHost:49134",
                "ws://host.iii.internal:49134",
                49134,
                both,
            ),
            (
                "ws://localhost.:49134",
                "ws://host.iii.internal:49134",
                49134,
                both,
            ),
            (
                "ws://engine.localhost:9",
                "ws://host.iii.internal:9",
                9,
                both,
            ),
            ("ws://loc%61lhost:9", "ws://host.iii.internal:9", 9, both),
            ("ws://localhost", "ws://host.iii.internal", 80, both),
            ("wss://localhost", "wss://host.iii.internal", 443, both),
            ("wss://localhost:80", "wss://host.iii.internal:80", 80, both),
            (
                "ws://host.iii.internal:9",
                "ws://host.iii.internal:9",
                9,
                both,
            ),
            ("ws://0.0.0.0:9", "ws://host.iii.internal:9", 9, both),
            ("ws://[::]:9", "ws://host.iii.internal:9", 9, both),
            (
                "ws://127.0.0.1:9",
                "ws://host.iii.internal:9",
                9,
                &["127.0.0.1"],
            ),
            (
                "ws://127.0.0.1",
                "ws://host.iii.internal",
                80,
                &["127.0.0.1"],
            ),
            (
                "ws://127.1:9",
                "ws://host.iii.internal:9",
                9,
                &["127.0.0.1"],
            ),
            (
                "ws://2130706433:9",
                "ws://host.iii.internal:9",
                9,
                &["127.0.0.1"],
            ),
            (
                "ws://0x7f.0.0.1:9",
                "ws://host.iii.internal:9",
                9,
                &["127.0.0.1"],
            ),
            (
                "ws://127.8.9.10:9",
                "ws://host.iii.internal:9",
                9,
                &["127.8.9.10"],
            ),
            ("ws://[::1]:9", "ws://host.iii.internal:9", 9, &["::1"]),
            (
                "ws://[0:0:0:0:0:0:0:1]:9",
                "ws://host.iii.internal:9",
                9,
                &["::1"],
            ),
            (
                "ws://[::ffff:127.0.0.1]:9",
                "ws://host.iii.internal:9",
                9,
                &["127.0.0.1"],
            ),
            (
                "ws://ada:pass@localhost:9/a/b?token=x",
                "ws://ada:pass@host.iii.internal:9/a/b?token=x",
                9,
                both,
            ),
        ] {
            let address = read(text);
            assert_eq!(address.in_guest(), guest, "{text}");
            let addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
            let expected = (vec![], vec![(port, addresses)]);
            assert_eq!(opened(&address), expected, "{text}");
        }
    }

    #[test]
    fn another_host_keeps_its_name_and_one_port_is_opened() {
        for (text, guest, rule) in [
            (
                "ws://engine.example.com:49134",
                "ws://engine.example.com:49134",
                "engine.example.com:49134",
            ),
            (
                "wss://Engine.Example.com/x",
                "wss://engine.example.com/x",
                "engine.example.com:443",
            ),
            (
                "ws://example.com.:9",
                "ws://example.com.:9",
                "example.com:9",
            ),
            (
                "ws://localhost.example.com:9",
                "ws://localhost.example.com:9",
                "localhost.example.com:9",
            ),
            (
                "ws://notlocalhost:9",
                "ws://notlocalhost:9",
                "notlocalhost:9",
            ),
            (
                "ws://localhost@example.com:9",
                "ws://localhost@example.com:9",
                "example.com:9",
            ),
            ("ws://10.1.2.3:9", "ws://10.1.2.3:9", "10.1.2.3/32:9"),
            ("ws://[fd00::1]:9", "ws://[fd00::1]:9", "[fd00::1/128]:9"),
            (
                "ws://[::ffff:10.1.2.3]:9",
                "ws://10.1.2.3:9",
                "10.1.2.3/32:9",
            ),
            (
                "ws://bücher.example:9",
                "ws://xn--bcher-kva.example:9",
                "xn--bcher-kva.example:9",
            ),
        ] {
            let address = read(text);
            assert_eq!(address.in_guest(), guest, "{text}");
            assert_eq!(opened(&address), (vec![rule.to_owned()], vec![]), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_right_form() {
        for (text, part) in [
            ("", "does not begin with ws://"),
            ("localhost:49134", "does not begin with ws://"),
            ("127.0.0.1:49134", "does not begin with ws://"),
            ("http://localhost:49134", "does not begin with ws://"),
            ("ws://", "empty host"),
            ("ws://localhost:0", "port 0"),
            ("ws://localhost:99999", "port"),
            ("ws://localhost:49134#x", "`#`"),
            ("ws://local host:1", "white space"),
            ("ws://local\nhost:1", "white space"),
            // A rule made from these would open more than one host.
            ("ws://*:9", "neither"),
            ("ws://*.example.com:9", "neither"),
            ("ws://a..b:9", "neither"),
            ("ws://[::1:9", "IPv6"),
            ("ws://300.1.1.1:9", "IPv4"),
        ] {
            let error = text.parse::<EngineAddress>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
            assert!(error.contains("ws://localhost:49134"), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let address = read("ws://ada:hunter2@localhost:9/x?token=hunter2");
        assert_eq!(address.to_string(), "ws://localhost:9/x");
        assert!(!format!("{address:?}").contains("hunter2"));
        assert!(address.in_guest().contains("hunter2"));
        let error = "ws://ada:hunter2@:9".parse::<EngineAddress>().unwrap_err();
        assert!(!error.to_string().contains("hunter2"));
    }
}
