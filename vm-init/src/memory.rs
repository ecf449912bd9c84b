//! How much memory the guest has, as its kernel says.

use iii_proto::control::GuestMemory;

const MEMINFO: &str = "/proc/meminfo";

/// `None` where the kernel does not say.
pub(crate) fn read() -> Option<GuestMemory> {
    parse(&std::fs::read_to_string(MEMINFO).ok()?)
}

fn parse(meminfo: &str) -> Option<GuestMemory> {
    let bytes = |key: &str| {
        let mut lines = meminfo.lines();
        let value = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        let kib: u64 = value.trim().strip_suffix(" kB")?.parse().ok()?;
        kib.checked_mul(1024)
    };
    Some(GuestMemory {
        total: bytes("MemTotal")?,
        available: bytes("MemAvailable")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_and_available_are_found_and_nothing_is_made_up() {
        let text =
            "MemTotal:         237156 kB\nMemFree:           99 kB\nMemAvailable:     180000 kB\n";
        let memory = GuestMemory {
            total: 237_156 * 1024,
            available: 180_000 * 1024,
        };
        assert_eq!(parse(text), Some(memory));
        assert_eq!(parse("MemTotal: 1 kB\n"), None);
        assert_eq!(parse("MemTotal: x kB\nMemAvailable: 1 kB\n"), None);
        assert_eq!(
            parse(&format!("MemTotal: {} kB\nMemAvailable: 1 kB\n", u64::MAX)),
            None
        );
    }
}
