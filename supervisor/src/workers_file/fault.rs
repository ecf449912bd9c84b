//! What is wrong with a workers file: everything, each with its place.

use std::path::PathBuf;

use super::node::Position;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where in the file; `None`: the file as a whole.
    pub at: Option<Position>,
    /// Which setting (`workers.web.resources.memory`); empty: none in particular.
    pub path: String,
    /// What is wrong. Never holds a value of the environment.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Why a workers file was not taken.
#[derive(Debug, thiserror::Error)]
pub enum WorkersFileError {
    /// The file cannot be read.
    #[error("failed to read {}: {source}{}", path.display(), remedy.map(|r| format!("\n    {r}")).unwrap_or_default())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
        /// What to do about it.
        remedy: Option<&'static str>,
    },
    /// The file was read, and these are all its faults.
    #[error("{}", render(path, faults))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// In the order of the file.
        faults: Vec<Fault>,
    },
}

/// One line per fault, as compilers write them (`file:line:column: …`), the remedy indented below.
fn render(path: &std::path::Path, faults: &[Fault]) -> String {
    let mut text = String::new();
    for fault in faults {
        if !text.is_empty() {
            text.push('\n');
        }
        text += &path.display().to_string();
        if let Some(at) = fault.at {
            text += &format!(":{at}");
        }
        text += ": ";
        if !fault.path.is_empty() {
            text += &fault.path;
            text += ": ";
        }
        text += &fault.message;
        if let Some(remedy) = &fault.remedy {
            text += "\n    ";
            text += remedy;
        }
    }
    text
}
