//! Arithmetic on guest paths. They are text: the guest's namespace is not this process's.

/// Follows `target` from the directory `from`, both of the guest, by text alone: `.` and `..` are
/// taken away, and `..` stops at the root.
pub(crate) fn join(from: &str, target: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let from = if target.starts_with('/') { "" } else { from };
    for part in from.split('/').chain(target.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &str) -> &str {
    match path.rfind('/') {
        None | Some(0) => "/",
        Some(slash) => &path[..slash],
    }
}

/// What of `path` lies below `dir`, without a leading slash; empty for `dir` itself.
pub(crate) fn below<'a>(path: &'a str, dir: &str) -> Option<&'a str> {
    if dir == "/" {
        return path.strip_prefix('/');
    }
    match path.strip_prefix(dir)? {
        "" => Some(""),
        rest => rest.strip_prefix('/'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_by_text_and_never_leaves_the_root() {
        assert_eq!(
            join("/etc/alternatives", "../../usr/bin/mawk"),
            "/usr/bin/mawk"
        );
        assert_eq!(join("/etc", "/usr//lib/./x"), "/usr/lib/x");
        assert_eq!(join("/", "../../.."), "/");
        assert_eq!(join("/app", "./server"), "/app/server");
    }

    #[test]
    fn below_knows_components() {
        assert_eq!(below("/usr/bin", "/usr"), Some("bin"));
        assert_eq!(below("/usr", "/usr"), Some(""));
        assert_eq!(below("/usrlocal", "/usr"), None);
        assert_eq!(below("/x", "/"), Some("x"));
        assert_eq!(
            (parent("/usr/bin"), parent("/usr"), parent("/")),
            ("/usr", "/", "/")
        );
    }
}
