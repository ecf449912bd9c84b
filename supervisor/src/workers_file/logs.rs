//! `logs:`: how much of a worker's output is kept.

use iii_actors::spec::LogSpec;

use super::reader::{Reader, Setting};
use super::worker::size_within;

/// Keys of the map.
pub(crate) const KEYS: &[&str] = &["max_size", "max_files"];

/// A file is made of blocks of this size.
const LEAST_SIZE: u64 = 64 << 10;
const MOST_SIZE: u64 = 1 << 40;
/// With one file, nothing would be left just after it was full.
const LEAST_FILES: u64 = 2;
const MOST_FILES: u64 = 1000;

pub(crate) fn logs(reader: &mut Reader<'_>, setting: &Setting<'_>) -> LogSpec {
    let mut logs = LogSpec::default();
    let Some(fields) = reader.fields(setting, KEYS) else {
        return logs;
    };
    if let Some(s) = fields.get("max_size")
        && let Some(max_size) = size_within(reader, &s, LEAST_SIZE, MOST_SIZE)
    {
        logs.max_size = max_size;
    }
    if let Some(s) = fields.get("max_files")
        && let Some(max_files) = reader.number(&s, LEAST_FILES, MOST_FILES)
    {
        // Bounded by MOST_FILES just above.
        logs.max_files = max_files as u32;
    }
    logs
}
