//! `ports:`: which ports of a guest the host publishes.

use std::net::{IpAddr, Ipv4Addr};

use iii_actors::spec::PublishSpec;

use super::node::Position;
use super::reader::{Reader, Setting};

/// A published port and its place, to name both when two collide.
pub(crate) struct Published {
    pub(crate) port: PublishSpec,
    pub(crate) at: Position,
    pub(crate) path: String,
}

/// The ports of one worker. Those of all workers so far are in `taken`.
pub(crate) fn ports(
    reader: &mut Reader<'_>,
    setting: &Setting<'_>,
    taken: &mut Vec<Published>,
) -> Vec<PublishSpec> {
    let mut all = Vec::new();
    for item in reader.items_or_one(setting) {
        let Some(port) = reader.parsed_expanded(&item, parse) else {
            continue;
        };
        if let Some(other) = taken.iter().find(|other| collide(&other.port, &port)) {
            let message = format!(
                "host port {} is taken by {} at line {}",
                port.host_port, other.path, other.at.line
            );
            reader.fault(&item, message);
            continue;
        }
        taken.push(Published {
            port,
            at: item.at(),
            path: item.path,
        });
        all.push(port);
    }
    all
}

fn collide(a: &PublishSpec, b: &PublishSpec) -> bool {
    a.host_port != 0
        && a.host_port == b.host_port
        && (a.address == b.address || a.address.is_unspecified() || b.address.is_unspecified())
}

/// `[ADDRESS:]HOST:GUEST`, or one number for both.
pub(crate) fn parse(text: &str) -> Result<PublishSpec, String> {
    let text = match text.rsplit_once('/') {
        Some((text, "tcp")) => text,
        Some((_, protocol)) => {
            return Err(format!(
                "asks for {protocol}: only TCP ports can be published"
            ));
        }
        None => text,
    };
    let (rest, guest) = match text.rsplit_once(':') {
        Some((rest, guest)) => (Some(rest), guest),
        None => (None, text),
    };
    let guest_port = port(guest)?;
    if guest_port == 0 {
        return Err(String::from("publishes port 0 of the guest: name its port"));
    }
    let (address, host_port) = match rest {
        None => (None, guest_port),
        Some(rest) => match rest.rsplit_once(':') {
            None => (None, port(rest)?),
            Some((address, host)) => (Some(address), port(host)?),
        },
    };
    let address = match address {
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(address) => {
            let bare = address
                .strip_prefix('[')
                .and_then(|a| a.strip_suffix(']'))
                .unwrap_or(address);
            bare.parse()
                .map_err(|_| format!("names a host address that is no IP address: {address:?}"))?
        }
    };
    Ok(PublishSpec {
        address,
        host_port,
        guest_port,
    })
}

fn port(text: &str) -> Result<u16, String> {
    // `u16::from_str` takes a plus sign, which nobody means here.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(String::from(
            "is not a port: write it 8080:80 (host:guest), 127.0.0.1:8080:80 or 80",
        ));
    }
    text.parse()
        .map_err(|_| String::from("holds a port above 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_ways() {
        let spec = |address: &str, host_port, guest_port| PublishSpec {
            address: address.parse().unwrap(),
            host_port,
            guest_port,
        };
        for (text, expected) in [
            ("80", spec("127.0.0.1", 80, 80)),
            ("8080:80", spec("127.0.0.1", 8080, 80)),
            ("8080:80/tcp", spec("127.0.0.1", 8080, 80)),
            ("0:80", spec("127.0.0.1", 0, 80)),
            ("0.0.0.0:8080:80", spec("0.0.0.0", 8080, 80)),
            ("localhost:8080:80", spec("127.0.0.1", 8080, 80)),
            ("[::1]:8080:80", spec("::1", 8080, 80)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn faults_say_what_is_wrong() {
        for (text, part) in [
            ("", "is not a port"),
            ("http", "is not a port"),
            ("+80", "is not a port"),
            ("70000", "above 65535"),
            ("8080:0", "port 0"),
            ("53:53/udp", "only TCP"),
            ("example.com:1:2", "no IP address"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_port_collides_on_the_same_or_any_address() {
        let p = |text| parse(text).unwrap();
        assert!(collide(&p("80:1"), &p("80:2")));
        assert!(collide(&p("0.0.0.0:80:1"), &p("80:2")));
        assert!(!collide(&p("127.0.0.2:80:1"), &p("80:2")));
        assert!(!collide(&p("0:1"), &p("0:1")));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9:.\\[\\]/a-z]{0,24}") {
            prop_assert!(matches!(parse(&text), Ok(_) | Err(_)));
        }
    }
}
