//! A project is a workers file; what is kept of it between runs has a directory of its own below
//! `~/.iii/projects`.

use std::path::{Path, PathBuf};

use iii_firmware::home::IiiHome;
use sha2::{Digest, Sha256};

/// Longest part of the directory's name that is there for people to recognise it by.
const MAX_LABEL: usize = 40;

/// There is no such file.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to find {path}: {source}; name the file with --file FILE, change into its directory, or \
     make one with `iii-super add NAME -- COMMAND`"
)]
pub(super) struct ProjectError {
    path: PathBuf,
    source: std::io::Error,
}

/// Where the state of the project of this workers file is kept: the same directory by whatever
/// path the file is named.
pub(super) fn state_dir(home: &IiiHome, file: &Path) -> Result<PathBuf, ProjectError> {
    let file = file.canonicalize().map_err(|source| ProjectError {
        path: file.to_owned(),
        source,
    })?;
    Ok(state_dir_of(home, &file))
}

/// The same for a command that speaks to a supervisor, which may run a file that was removed since.
pub(super) fn running_state_dir(home: &IiiHome, file: &Path) -> Result<PathBuf, ProjectError> {
    left_state_dir(home, file, crate::state::was_in_use)
}

/// The same for a command that reads what was kept, of whatever file.
pub(super) fn kept_state_dir(home: &IiiHome, file: &Path) -> Result<PathBuf, ProjectError> {
    left_state_dir(home, file, Path::exists)
}

fn left_state_dir(
    home: &IiiHome,
    file: &Path,
    there: fn(&Path) -> bool,
) -> Result<PathBuf, ProjectError> {
    state_dir(home, file).or_else(|error| {
        let absolute = std::path::absolute(file).ok();
        let gone = absolute.and_then(|file| {
            let parent = file.parent()?.canonicalize().ok()?;
            Some(state_dir_of(home, &parent.join(file.file_name()?)))
        });
        gone.filter(|directory| there(directory)).ok_or(error)
    })
}

/// Where the state of a project that is developed is kept, by its directory's real path.
pub(super) fn dev_state_dir(home: &IiiHome, directory: &Path) -> PathBuf {
    state_dir_of(home, &directory.join(crate::dev::manifest::FILE_NAME))
}

/// The same for a path behind all symbolic links, whose file may not be there yet.
pub(super) fn state_dir_of(home: &IiiHome, file: &Path) -> PathBuf {
    home.path().join("projects").join(directory_name(file))
}

/// The name of the file's directory, for people, and a digest of the whole path.
fn directory_name(file: &Path) -> String {
    let parent = file.parent().and_then(Path::file_name);
    let label: String = parent
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(MAX_LABEL)
        .collect();
    let digest = Sha256::digest(file.as_os_str().as_encoded_bytes());
    let digest: String = digest[..6].iter().map(|b| format!("{b:02x}")).collect();
    format!("{label}-{digest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_is_known_by_its_files_real_path() {
        let dir = tempfile::tempdir().unwrap();
        let app = dir.path().join("my app");
        std::fs::create_dir(&app).unwrap();
        let file = app.join("iii.workers.yaml");
        std::fs::write(&file, "").unwrap();
        let link = dir.path().join("link.yaml");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let home = IiiHome::at("/h").unwrap();
        let state = state_dir(&home, &file).unwrap();
        assert_eq!(state, state_dir(&home, &link).unwrap());
        let text = state.display().to_string();
        assert!(text.starts_with("/h/projects/my-app-"), "{text}");
        let other = app.join("other.yaml");
        std::fs::write(&other, "").unwrap();
        assert_ne!(state, state_dir(&home, &other).unwrap());

        let home = IiiHome::at(dir.path().join("home")).unwrap();
        let state = state_dir(&home, &file).unwrap();
        std::fs::create_dir_all(&state).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(state_dir(&home, &file).is_err());
        assert!(running_state_dir(&home, &file).is_err());
        assert_eq!(kept_state_dir(&home, &file).unwrap(), state);
        std::fs::write(state.join("lock"), "").unwrap();
        assert_eq!(running_state_dir(&home, &file).unwrap(), state);
        std::fs::remove_file(state.join("lock")).unwrap();
        std::fs::remove_dir(&state).unwrap();
        assert!(kept_state_dir(&home, &file).is_err());
    }
}
