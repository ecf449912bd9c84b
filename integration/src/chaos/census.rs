//! What this process holds: threads, descriptors, children, temporary files.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// How many of each thing.
pub type Census = BTreeMap<String, usize>;

/// Counts.
pub fn take() -> Census {
    let mut census = Census::new();
    let mut count = |what: String| *census.entry(what).or_default() += 1;
    for task in entries(Path::new("/proc/self/task")) {
        // A thread may end between the two looks.
        if let Ok(name) = fs::read_to_string(task.join("comm")) {
            count(format!("thread {}", generic(name.trim())));
        }
    }
    for fd in entries(Path::new("/proc/self/fd")) {
        if let Ok(target) = fs::read_link(fd) {
            count(format!("descriptor {}", generic(&target.to_string_lossy())));
        }
    }
    for name in descendants() {
        count(format!("process {name}"));
    }
    for entry in entries(&std::env::temp_dir()) {
        let name = entry.file_name().map(|n| n.to_string_lossy().into_owned());
        count(format!("temporary file {}", name.unwrap_or_default()));
    }
    census
}

/// What there is more of than at `before`, once that does not shrink any more within `patience`:
/// what has just ended needs a moment until the kernel has forgotten it.
pub fn surplus(before: &Census, patience: Duration) -> Vec<String> {
    let end = Instant::now() + patience;
    loop {
        let now = take();
        let surplus: Vec<String> = now
            .iter()
            .filter_map(|(what, &count)| {
                let had = before.get(what).copied().unwrap_or(0);
                (count > had).then(|| format!("{what}: {had} at first, {count} now"))
            })
            .collect();
        if surplus.is_empty() || Instant::now() > end {
            return surplus;
        }
        // Nobody announces the end of a thread or a process of others.
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    let found = fs::read_dir(directory).into_iter().flatten();
    found.flatten().map(|entry| entry.path()).collect()
}

/// Without the numbers that tell one of its kind from another.
fn generic(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_ascii_digit())
        .collect::<String>()
}

/// Names of the programs of all processes below this one.
fn descendants() -> Vec<String> {
    let mut parents = BTreeMap::new();
    for process in entries(Path::new("/proc")) {
        let pid = process.file_name().and_then(|n| n.to_str()?.parse().ok());
        let stat = fs::read_to_string(process.join("stat"));
        let (Some(pid), Ok(stat)) = (pid, stat) else {
            continue;
        };
        if let Some((name, parent)) = parse(&stat) {
            parents.insert(pid, (parent, name.to_owned()));
        }
    }
    let me = std::process::id();
    let below = |mut pid: u32| {
        // The chain of parents ends at 0; nobody is his own ancestor.
        while let Some((parent, _)) = parents.get(&pid) {
            if *parent == me {
                return true;
            }
            pid = *parent;
        }
        false
    };
    parents
        .iter()
        .filter(|(pid, _)| below(**pid))
        .map(|(_, (_, name))| name.clone())
        .collect()
}

/// Program and parent in a `/proc/PID/stat` (proc_pid_stat(5)); a name may hold anything.
fn parse(stat: &str) -> Option<(&str, u32)> {
    let (head, tail) = stat.rsplit_once(") ")?;
    let (_, name) = head.split_once('(')?;
    let parent = tail.split(' ').nth(1)?.parse().ok()?;
    Some((name, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_hold_anything() {
        assert_eq!(parse("12 (sh) S 7 12 12 0"), Some(("sh", 7)));
        assert_eq!(parse("12 (a) R 1 (b) S 7 12"), Some(("a) R 1 (b", 7)));
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn what_is_more_is_told() {
        let before = take();
        let held: Vec<_> = (0..8)
            .map(|_| fs::File::open("/dev/zero").expect("every host has one"))
            .collect();
        let more = surplus(&before, Duration::ZERO);
        assert!(
            more.iter()
                .any(|line| line.contains("descriptor /dev/zero")),
            "{more:?}"
        );
        drop(held);
    }
}
