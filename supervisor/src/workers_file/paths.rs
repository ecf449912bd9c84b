//! Host paths in the file, and paths in the guest.

use std::path::{Component, Path, PathBuf};

use super::reader::{Reader, Setting};

/// The setting's text, expanded, as an absolute path; relative to the file, `~/` to HOME.
pub(crate) fn resolve(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Option<PathBuf> {
    let text = reader.expanded(setting)?;
    match absolute(reader, &text) {
        Ok(path) => Some(path),
        Err(message) => {
            reader.fault(setting, message);
            None
        }
    }
}

/// A host path as the file writes it, made absolute and without `..`. Symbolic links are left
/// alone, but for those that a `..` leads out of.
pub(crate) fn absolute(reader: &Reader<'_>, text: &str) -> Result<PathBuf, String> {
    if text.is_empty() {
        return Err(String::from("the path is empty"));
    }
    if text.contains('\0') {
        return Err(String::from("the path holds a NUL character"));
    }
    if text == "~" || text.starts_with("~/") {
        let Some(home) = (reader.lookup)("HOME").filter(|home| home.starts_with('/')) else {
            return Err(String::from(
                "`~` needs HOME, which is not set in the environment",
            ));
        };
        let text = text[1..].trim_start_matches('/');
        return Ok(without_parents(&Path::new(&home).join(text)));
    }
    Ok(without_parents(&reader.directory.join(text)))
}

/// The path as people would write it. What lies above a link is what lies above its target, as for
/// the kernel.
fn without_parents(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    // `components` drops `.` and doubled slashes.
    for component in path.components() {
        if component != Component::ParentDir {
            clean.push(component);
            continue;
        }
        if clean.is_symlink()
            && let Ok(target) = clean.canonicalize()
        {
            clean = target;
        }
        // The root is above itself.
        clean.pop();
    }
    clean
}

/// An existing directory of the host, or what to say about it.
pub(crate) enum DirectoryFault {
    Missing,
    NotADirectory,
    Unreadable(std::io::Error),
}

/// Looks whether a path is a directory that can be shown to a guest.
pub(crate) fn check_directory(path: &Path) -> Result<(), DirectoryFault> {
    match std::fs::metadata(path) {
        Ok(meta) if !meta.is_dir() => Err(DirectoryFault::NotADirectory),
        Ok(_) => match std::fs::read_dir(path) {
            Ok(_) => Ok(()),
            Err(error) => Err(DirectoryFault::Unreadable(error)),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(DirectoryFault::Missing),
        Err(error) => Err(DirectoryFault::Unreadable(error)),
    }
}

/// Reports a directory's fault with its remedy; `true` if there is none.
pub(crate) fn directory_exists(
    reader: &mut Reader<'_>,
    setting: &Setting<'_>,
    path: &Path,
) -> bool {
    let shown = path.display();
    match check_directory(path) {
        Ok(()) => return true,
        Err(DirectoryFault::Missing) => reader.fault_with_remedy(
            setting,
            format!("the directory {shown} does not exist"),
            format!(
                "make it: mkdir -p {}",
                shell_words::quote(&shown.to_string())
            ),
        ),
        Err(DirectoryFault::NotADirectory) => reader.fault_with_remedy(
            setting,
            format!("{shown} is not a directory"),
            "only directories can be shown to a guest: name the directory that holds the file",
        ),
        Err(DirectoryFault::Unreadable(error)) => {
            reader.fault(setting, format!("failed to open {shown}: {error}"));
        }
    }
    false
}

/// Where the guest's own file systems are; a mount there would break the guest.
const RESERVED: [&str; 5] = ["/proc", "/sys", "/dev", "/iii", "/run"];

/// Checks a path in the guest: absolute, without `..`, not where the guest's own things are.
pub(crate) fn guest(text: &str) -> Result<String, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!("the path in the guest must be absolute: {text:?}"));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(format!(
            "the path in the guest must not hold `..`: {text:?}"
        ));
    }
    let clean: PathBuf = path.components().collect();
    let clean = clean.to_string_lossy().into_owned();
    if clean == "/" {
        return Err(String::from(
            "nothing can be mounted on / of the guest: its root is set by `root:`",
        ));
    }
    let inside = |top: &str| clean == top || clean.starts_with(&format!("{top}/"));
    if let Some(top) = RESERVED.into_iter().find(|top| inside(top)) {
        return Err(format!("{top} of the guest is its own"));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_paths_are_absolute_and_clean() {
        assert_eq!(guest("/app//x/./y/").as_deref(), Ok("/app/x/y"));
        for (text, part) in [
            ("app", "absolute"),
            ("/a/../b", "`..`"),
            ("/", "root:"),
            ("/proc", "its own"),
            ("/dev/shm", "its own"),
        ] {
            assert!(guest(text).unwrap_err().contains(part), "{text}");
        }
        assert!(guest("/device").is_ok());
    }
}
