//! The report on one screen.

use super::{HostKind, Report, Verdict};

/// Widest line of the text column, so that a report fits a terminal of 80 columns.
const TEXT: usize = 58;

/// The report as text with its last newline.
pub fn render(report: &Report, colour: bool) -> String {
    let width = report
        .checks
        .iter()
        .map(|check| check.title.len())
        .max()
        .unwrap_or(0);
    let mut out = String::new();
    for check in &report.checks {
        let (mark, sgr) = match check.verdict {
            Verdict::Ok => ("✓", "32"),
            Verdict::Warning => ("!", "33"),
            Verdict::Failure => ("✗", "31"),
        };
        let mark = if colour {
            format!("\x1b[{sgr}m{mark}\x1b[0m")
        } else {
            mark.to_owned()
        };
        let title = check.title;
        let mut lead = format!("{mark} {title:width$}  ");
        let mut paragraphs = vec![check.found.clone()];
        paragraphs.extend(check.fix.as_ref().map(|fix| format!("→ {fix}")));
        for line in paragraphs.iter().flat_map(|p| p.lines()).flat_map(wrap) {
            out += &lead;
            out += &line;
            out.push('\n');
            lead = " ".repeat(width + 4);
        }
    }
    out += &hosts(&report.hosts);
    out += if report.can_run {
        "\nThis host can run workers.\n"
    } else {
        "\nThis host cannot run workers: see what is marked ✗.\n"
    };
    out
}

/// The kinds of hosts, with a mark at this one.
fn hosts(hosts: &[HostKind]) -> String {
    let width = hosts.iter().map(|host| host.situation.len()).max();
    let Some(width) = width else {
        return String::new();
    };
    let mut out = String::from("\nHow guests are run, by kind of host (> this one):\n");
    for host in hosts {
        let mark = if host.this { '>' } else { ' ' };
        let (situation, acceleration) = (host.situation, &host.acceleration);
        let proven = if host.proven { "proven" } else { "unproven" };
        out += &format!("{mark} {situation:width$}  {acceleration}  {proven}\n");
    }
    out
}

/// Cuts a line at spaces; a longer word stays whole, since it may be a path to be copied.
fn wrap(line: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let last = lines.len() - 1;
        let length = lines[last].chars().count();
        if length > 0 && length + 1 + word.chars().count() > TEXT {
            lines.push(word.to_owned());
        } else {
            if length > 0 {
                lines[last].push(' ');
            }
            lines[last] += word;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::Check;
    use super::*;

    #[test]
    fn golden_report() {
        let report = Report {
            version: "0",
            can_run: false,
            checks: vec![
                Check::ok("a", "cpu", "fine"),
                Check::warning("b", "memory", "only a little of it", "buy more"),
                Check::failure("c", "qemu", "it is missing and ".repeat(4).trim(), None),
            ],
            hosts: vec![
                HostKind {
                    situation: "a fast one",
                    acceleration: "kvm".into(),
                    proven: false,
                    this: false,
                },
                HostKind {
                    situation: "this",
                    acceleration: "tcg".into(),
                    proven: true,
                    this: true,
                },
            ],
            boot: None,
        };
        assert_eq!(
            render(&report, false),
            "\
✓ cpu     fine
! memory  only a little of it
          → buy more
✗ qemu    it is missing and it is missing and it is missing and it
          is missing and

How guests are run, by kind of host (> this one):
  a fast one  kvm  unproven
> this        tcg  proven

This host cannot run workers: see what is marked ✗.
"
        );
        assert!(render(&report, true).contains("\x1b[31m✗\x1b[0m qemu"));
    }
}
