//! One line of an allow-list: `CIDR[:port[-port]]` or `domain[:port[-port]]`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self {
        first: 0,
        last: u16::MAX,
    };

    /// `None` if the range is empty.
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// Whether `port` lies within.
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// An address block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// `None` if the prefix is longer than the address.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        (u32::from(prefix) <= bits(address).1).then_some(Self { address, prefix })
    }

    /// Whether `address` lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, width) = bits(self.address);
        let (other, other_width) = bits(address);
        let host_bits = width - u32::from(self.prefix);
        width == other_width && (own ^ other).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

fn bits(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()), 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    }
}

/// A domain name, or everything below one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DomainPattern {
    /// In lower case, without a final dot; empty for `*`.
    name: String,
    below: bool,
}

impl DomainPattern {
    /// Whether `name` (without a final dot, in any case) is meant. `*.example.com` means the
    /// names below `example.com` and not itself, `*` every name.
    pub fn matches(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        if !self.below {
            return name == self.name;
        }
        self.name.is_empty()
            || name
                .strip_suffix(&self.name)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|label| !label.is_empty())
    }
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Addresses.
    Network(Cidr),
    /// Names, and the addresses that they were last seen to have.
    Domain(DomainPattern),
}

/// One line of an allow-list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Which destinations.
    pub target: Target,
    /// Which ports of them.
    pub ports: PortRange,
}

/// Why a rule could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to read the network rule `{rule}`: {reason}; write CIDR, domain or *.domain, with an optional :port or :first-last"
)]
pub struct RuleError {
    rule: String,
    reason: &'static str,
}

impl Rule {
    /// One port of one address.
    pub fn address(address: IpAddr, port: u16) -> Self {
        let prefix = bits(address).1 as u8;
        Self {
            target: Target::Network(Cidr { address, prefix }),
            ports: PortRange {
                first: port,
                last: port,
            },
        }
    }

    /// One port of one name, which is neither an address nor a pattern; `None` if it is no name.
    pub fn name(name: &str, port: u16) -> Option<Self> {
        let ports = PortRange {
            first: port,
            last: port,
        };
        match parse_target(name) {
            Ok(Target::Domain(pattern)) if !pattern.below => Some(Self {
                target: Target::Domain(pattern),
                ports,
            }),
            Ok(Target::Domain(_) | Target::Network(_)) | Err(_) => None,
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        parse(text.trim()).map_err(|reason| RuleError {
            rule: text.to_owned(),
            reason,
        })
    }
}

fn parse(text: &str) -> Result<Rule, &'static str> {
    // `[v6]:port`, `v6`, and anything else with at most one colon.
    let (target, ports) = if let Some(rest) = text.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("`[` without `]`")?;
        match after.strip_prefix(':') {
            Some(ports) => (inside, Some(ports)),
            None if after.is_empty() => (inside, None),
            None => return Err("something other than a port follows `]`"),
        }
    } else if text.matches(':').count() > 1 {
        (text, None)
    } else {
        match text.split_once(':') {
            Some((target, ports)) => (target, Some(ports)),
            None => (text, None),
        }
    };
    Ok(Rule {
        target: parse_target(target)?,
        ports: ports.map_or(Ok(PortRange::ALL), parse_ports)?,
    })
}

fn parse_ports(text: &str) -> Result<PortRange, &'static str> {
    let port = |text: &str| match text.parse() {
        Ok(0) | Err(_) => Err("a port is a number from 1 to 65535"),
        Ok(port) => Ok(port),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    PortRange::new(port(first)?, port(last)?).ok_or("the port range is empty")
}

fn parse_target(text: &str) -> Result<Target, &'static str> {
    if let Ok(address) = text.parse::<IpAddr>() {
        let cidr = Cidr {
            address,
            prefix: if address.is_ipv4() { 32 } else { 128 },
        };
        return Ok(Target::Network(cidr));
    }
    if let Some((address, prefix)) = text.split_once('/') {
        let address = address.parse().map_err(|_| "no address before `/`")?;
        let prefix = prefix.parse().map_err(|_| "no prefix length after `/`")?;
        return Cidr::new(address, prefix)
            .map(Target::Network)
            .ok_or("the prefix is longer than the address");
    }
    if text == "*" {
        let everything = DomainPattern {
            name: String::new(),
            below: true,
        };
        return Ok(Target::Domain(everything));
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    let (name, below) = match text.strip_prefix("*.") {
        Some(name) => (name, true),
        None => (text, false),
    };
    let valid = name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        });
    // A last label of digits is an address with a slip, never a domain (RFC 3696 §2).
    let numeric = name
        .rsplit('.')
        .next()
        .is_some_and(|label| !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_digit()));
    if valid && !numeric {
        Ok(Target::Domain(DomainPattern {
            name: name.to_ascii_lowercase(),
            below,
        }))
    } else {
        Err("neither an address block nor a domain name")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_ports = self.ports != PortRange::ALL;
        match &self.target {
            Target::Network(cidr) if cidr.address.is_ipv6() && with_ports => {
                write!(f, "[{}/{}]", cidr.address, cidr.prefix)?;
            }
            Target::Network(cidr) => write!(f, "{}/{}", cidr.address, cidr.prefix)?,
            Target::Domain(DomainPattern { name, below }) => match (name.as_str(), below) {
                ("", _) => f.write_str("*")?,
                (name, true) => write!(f, "*.{name}")?,
                (name, false) => f.write_str(name)?,
            },
        }
        match (with_ports, self.ports.first == self.ports.last) {
            (false, _) => Ok(()),
            (true, true) => write!(f, ":{}", self.ports.first),
            (true, false) => write!(f, ":{}-{}", self.ports.first, self.ports.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(rule: &str, address: &str, port: u16) -> bool {
        let rule: Rule = rule.parse().unwrap();
        let Target::Network(cidr) = rule.target else {
            panic!("{rule} is no network");
        };
        cidr.contains(address.parse().unwrap()) && rule.ports.contains(port)
    }

    #[test]
    fn networks_and_ports() {
        assert!(contains("10.0.0.0/8", "10.9.9.9", 1));
        assert!(!contains("10.0.0.0/8", "11.0.0.0", 1));
        assert!(contains("0.0.0.0/0", "11.0.0.0", 1));
        assert!(!contains("0.0.0.0/0", "::1", 1));
        assert!(contains("::/0", "fe80::1", 1));
        assert!(contains("192.168.1.7", "192.168.1.7", 9));
        assert!(contains("192.168.1.7:80-90", "192.168.1.7", 90));
        assert!(!contains("192.168.1.7:80-90", "192.168.1.7", 91));
        assert!(contains("[fd00::/8]:443", "fd01::1", 443));
        assert!(!contains("[fd00::/8]:443", "fd01::1", 80));
        assert!(contains("fd00::/8", "fd01::1", 80));
    }

    #[test]
    fn domains() {
        let matches = |rule: &str, name: &str| match rule.parse::<Rule>().unwrap().target {
            Target::Domain(pattern) => pattern.matches(name),
            Target::Network(_) => panic!("{rule} is no domain"),
        };
        assert!(matches("example.com", "EXAMPLE.com"));
        assert!(!matches("example.com", "www.example.com"));
        assert!(matches("*.example.com:443", "a.b.example.com"));
        assert!(!matches("*.example.com", "example.com"));
        assert!(!matches("*.example.com", "evilexample.com"));
        assert!(matches("*", "anything.at.all"));
    }

    #[test]
    fn one_port_of_one_host() {
        let address = Rule::address("10.1.2.3".parse().unwrap(), 9);
        assert_eq!(address.to_string(), "10.1.2.3/32:9");
        let address = Rule::address("fd00::1".parse().unwrap(), 9);
        assert_eq!(address.to_string(), "[fd00::1/128]:9");
        let name = Rule::name("Example.com", 9).unwrap();
        assert_eq!(name.to_string(), "example.com:9");
        for name in ["*", "*.example.com", "10.1.2.3", "a b", ""] {
            assert_eq!(Rule::name(name, 9), None, "{name}");
        }
    }

    #[test]
    fn written_as_read() {
        for rule in [
            "10.0.0.0/8",
            "10.0.0.0/8:443",
            "[fd00::/8]:1-2",
            "*.example.com:80",
            "*",
            "a.b",
        ] {
            assert_eq!(rule.parse::<Rule>().unwrap().to_string(), rule);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for rule in [
            "",
            "10.0.0.0/33",
            "10.0.0/8",
            "10.0.0.0/8:0",
            "10.0.0.0/8:9-8",
            "a..b",
            "*.*.com",
            "a b",
            "[::1",
            "[::1]x",
            "10.0.0.300",
            "::/129",
            "*.",
            ".",
            "x:y",
            "http://a",
        ] {
            let error = rule.parse::<Rule>().unwrap_err().to_string();
            assert!(
                error.starts_with("failed to read the network rule"),
                "{error}"
            );
        }
    }
}
