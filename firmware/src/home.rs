//! `~/.iii`, where this user's cache lives.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The directory `~/.iii`, or what `III_HOME` names instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IiiHome(PathBuf);

impl IiiHome {
    /// From the environment: `III_HOME`, else `$HOME/.iii`.
    pub fn from_env() -> Result<Self, HomeError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// As [`Self::from_env`] with the environment as an argument.
    pub fn from_lookup(env: impl Fn(&str) -> Option<OsString>) -> Result<Self, HomeError> {
        if let Some(named) = env("III_HOME").filter(|value| !value.is_empty()) {
            return Self::at(named).map_err(|path| HomeError::Relative {
                name: "III_HOME",
                path,
            });
        }
        // An empty or missing HOME must never become a path at the root of the file system.
        let Some(home) = env("HOME").filter(|value| !value.is_empty()) else {
            return Err(HomeError::Missing);
        };
        let home = PathBuf::from(home);
        if home == Path::new("/") {
            return Err(HomeError::Root);
        }
        Self::at(home.join(".iii")).map_err(|path| HomeError::Relative { name: "HOME", path })
    }

    /// This absolute directory. The path comes back if it is relative.
    pub fn at(path: impl Into<PathBuf>) -> Result<Self, PathBuf> {
        let path = path.into();
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(path)
        }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where libkrunfw is kept.
    pub fn lib_dir(&self) -> PathBuf {
        self.0.join("lib")
    }

    /// Where images are kept.
    pub fn images_dir(&self) -> PathBuf {
        self.0.join("images")
    }

    /// What can be deleted at any time and made again.
    pub fn cache_dir(&self) -> PathBuf {
        self.0.join("cache")
    }
}

/// No home directory to keep the cache in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HomeError {
    /// HOME is not set.
    #[error(
        "failed to find the cache directory: HOME is not set; set HOME, or III_HOME to a directory \
         that this user can write"
    )]
    Missing,
    /// HOME is `/`.
    #[error(
        "failed to find the cache directory: HOME is `/`, and nothing is written to the root of \
         the file system; set III_HOME to a directory that this user can write"
    )]
    Root,
    /// A relative path would mean another directory at each call.
    #[error(
        "failed to use {name} ({}): an absolute path is wanted; set III_HOME to one",
        path.display()
    )]
    Relative {
        /// The variable.
        name: &'static str,
        /// Its value.
        path: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(vars: &[(&str, &str)]) -> Result<IiiHome, HomeError> {
        IiiHome::from_lookup(|name| {
            vars.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn iii_home_wins_over_home() {
        let both = home(&[("HOME", "/home/ada"), ("III_HOME", "/var/lib/iii")]).expect("absolute");
        assert_eq!(both.path(), Path::new("/var/lib/iii"));
        let one = home(&[("HOME", "/home/ada")]).expect("absolute");
        assert_eq!(one.path(), Path::new("/home/ada/.iii"));
        assert_eq!(one.lib_dir(), Path::new("/home/ada/.iii/lib"));
    }

    #[test]
    fn a_missing_home_is_never_the_root() {
        assert_eq!(home(&[]), Err(HomeError::Missing));
        assert_eq!(home(&[("HOME", "")]), Err(HomeError::Missing));
        assert_eq!(home(&[("HOME", "/")]), Err(HomeError::Root));
        assert_eq!(
            home(&[("HOME", ""), ("III_HOME", "")]),
            Err(HomeError::Missing)
        );
    }

    #[test]
    fn relative_paths_are_refused_by_name() {
        let refused = home(&[("III_HOME", "cache")]).expect_err("relative");
        assert!(refused.to_string().contains("III_HOME"), "{refused}");
        let refused = home(&[("HOME", "ada")]).expect_err("relative");
        assert!(refused.to_string().contains("HOME"), "{refused}");
    }
}
