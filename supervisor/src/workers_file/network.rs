//! `network:`: what a worker may reach.

use std::net::{IpAddr, SocketAddr};

use iii_actors::spec::{NetworkMode, NetworkSpec};

use super::reader::{Reader, Setting};

/// Keys of the map form.
pub(crate) const KEYS: &[&str] = &["mode", "allow", "host_ports", "dns"];

const MODES: &[(&str, NetworkMode)] = &[
    ("public", NetworkMode::Public),
    ("engine", NetworkMode::Engine),
    ("none", NetworkMode::None),
];

/// A word, or a map.
pub(crate) fn network(reader: &mut Reader<'_>, setting: &Setting<'_>) -> NetworkSpec {
    let mut network = NetworkSpec::default();
    if !setting.is_map() {
        network.mode = reader.word(setting, MODES).unwrap_or_default();
        return network;
    }
    let Some(fields) = reader.fields(setting, KEYS) else {
        return network;
    };
    if let Some(s) = fields.get("mode") {
        network.mode = reader.word(&s, MODES).unwrap_or_default();
    }
    for item in fields
        .get("allow")
        .map(|s| reader.items_or_one(&s))
        .unwrap_or_default()
    {
        network
            .allow
            .extend(reader.parsed_expanded(&item, destination));
    }
    for item in fields
        .get("host_ports")
        .map(|s| reader.items_or_one(&s))
        .unwrap_or_default()
    {
        // Bounded by 65535 in the call.
        let port = reader.number(&item, 1, 65535).map(|port| port as u16);
        network.host_ports.extend(port);
    }
    for item in fields
        .get("dns")
        .map(|s| reader.items_or_one(&s))
        .unwrap_or_default()
    {
        network.dns.extend(reader.parsed_expanded(&item, server));
    }
    if network.mode == NetworkMode::None {
        for key in ["allow", "host_ports", "dns"] {
            if let Some(s) = fields.get(key) {
                reader.fault_with_remedy(
                    &s,
                    "has no meaning with `mode: none`, which leaves the guest no network at all",
                    "remove it, or take `mode: engine`, which allows only what is named",
                );
            }
        }
    }
    network
}

/// `ADDRESS` or `ADDRESS:PORT`, port 53 unless given.
fn server(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 53));
    }
    text.parse().map_err(|_| {
        String::from(
            "is not the address of a DNS server: write it 9.9.9.9, 127.0.0.1:5353 or [::1]:53",
        )
    })
}

/// Checks `CIDR[:port[-port]]`, `*.domain` or `domain`.
fn destination(text: &str) -> Result<String, String> {
    let help = || {
        String::from(
            "is not a destination: write it 10.0.0.0/8, 10.1.2.3:5432, 10.0.0.0/8:8000-8100, \
             example.com or *.example.com",
        )
    };
    let (host, ports) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(help)?;
        match rest {
            "" => (host, None),
            _ => (host, Some(rest.strip_prefix(':').ok_or_else(help)?)),
        }
    } else if text.matches(':').count() > 1 {
        // An IPv6 address without brackets: no port can follow it.
        (text, None)
    } else {
        match text.split_once(':') {
            Some((host, ports)) => (host, Some(ports)),
            None => (text, None),
        }
    };
    if let Some(ports) = ports {
        let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
        let first: u16 = first.parse().map_err(|_| help())?;
        let last: u16 = last.parse().map_err(|_| help())?;
        if first == 0 || last < first {
            return Err(help());
        }
    }
    let (address, prefix) = match host.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (host, None),
    };
    match (address.parse::<IpAddr>(), prefix) {
        (Ok(address), Some(prefix)) => {
            let most = if address.is_ipv4() { 32 } else { 128 };
            match prefix.parse::<u8>() {
                Ok(bits) if bits <= most => Ok(text.to_owned()),
                _ => Err(help()),
            }
        }
        (Ok(_), None) => Ok(text.to_owned()),
        (Err(_), Some(_)) => Err(help()),
        (Err(_), None) => {
            let domain = host.strip_prefix("*.").unwrap_or(host);
            let label = |label: &str| {
                !label.is_empty()
                    && label.len() <= 63
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            };
            // A text of digits and dots is a slip in an address, not a domain.
            let numeric = domain.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            if numeric || domain.len() > 253 || !domain.split('.').all(label) {
                return Err(help());
            }
            Ok(text.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        for text in [
            "10.0.0.0/8",
            "10.1.2.3:5432",
            "10.0.0.0/8:8000-8100",
            "::1",
            "fd00::/8",
            "[fd00::1]:443",
            "example.com",
            "example.com:443",
            "*.example.com",
        ] {
            assert_eq!(destination(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0",
            "10.0.0.1:0",
            "10.0.0.1:9-8",
            "a..b",
            "*.*.b",
            "[::1",
            "http://x",
            "x y",
        ] {
            assert!(destination(text).is_err(), "{text}");
        }
    }

    #[test]
    fn dns_servers() {
        assert_eq!(server("9.9.9.9"), Ok("9.9.9.9:53".parse().unwrap()));
        assert_eq!(server("::1"), Ok("[::1]:53".parse().unwrap()));
        assert_eq!(
            server("127.0.0.1:5353"),
            Ok("127.0.0.1:5353".parse().unwrap())
        );
        assert!(server("dns.example").is_err());
    }
}
