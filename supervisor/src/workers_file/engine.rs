//! `engine:`: where the workers find the iii engine.

use std::str::FromStr;

use iii_actors::spec::{EngineAddress, EngineAddressError};

use super::reader::{Reader, Setting};

/// The word for no engine at all.
const NONE: &str = "none";

/// What a workers file, or whoever may overrule it, says of the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EngineKey {
    /// Nothing.
    #[default]
    Absent,
    /// That there is none, whatever others say.
    None,
    /// Where it is.
    Address(EngineAddress),
}

impl EngineKey {
    /// The address, if one is named.
    pub fn address(&self) -> Option<&EngineAddress> {
        match self {
            Self::Address(address) => Some(address),
            Self::Absent | Self::None => None,
        }
    }

    /// As it is written on a command line, passwords included; `None`: nothing is.
    pub fn as_given(&self) -> Option<&str> {
        match self {
            Self::Absent => None,
            Self::None => Some(NONE),
            Self::Address(address) => Some(address.as_given()),
        }
    }

    /// This, or what `other` says if this says nothing.
    #[must_use]
    pub fn or(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Absent => other(),
            Self::None | Self::Address(_) => self,
        }
    }
}

/// A URL, or `none`.
impl FromStr for EngineKey {
    type Err = EngineAddressError;

    fn from_str(text: &str) -> Result<Self, EngineAddressError> {
        match text {
            NONE => Ok(Self::None),
            _ => text.parse().map(Self::Address),
        }
    }
}

pub(crate) fn engine(reader: &mut Reader<'_>, setting: &Setting<'_>) -> EngineKey {
    let parse = |text: &str| {
        EngineKey::from_str(text).map_err(|error| {
            format!(
                "is not the engine's address: {}; write it as ws://localhost:49134, or none",
                error.reason()
            )
        })
    };
    reader.parsed_expanded(setting, parse).unwrap_or_default()
}
