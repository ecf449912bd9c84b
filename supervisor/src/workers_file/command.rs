//! `command:` and a probe's `exec:`: a list, or a string that is split as a shell splits words.

use super::reader::{Reader, Setting};

/// What only a shell would understand in a command that is not given to one.
const SHELL_SYNTAX: [&str; 10] = ["|", "||", "&&", "&", ";", ">", ">>", "<", "2>&1", "2>"];

/// Program and arguments.
pub(crate) fn command(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Option<Vec<String>> {
    let words = if setting.is_list() {
        let items = reader.items(setting);
        let words: Vec<String> = items
            .iter()
            .filter_map(|item| reader.text(item).map(str::to_owned))
            .collect();
        if words.len() != items.len() {
            return None;
        }
        words
    } else {
        let text = reader.text(setting)?;
        match shell_words::split(text) {
            Ok(words) => {
                if let Some(word) = words.iter().find(|w| SHELL_SYNTAX.contains(&w.as_str())) {
                    reader.fault_with_remedy(
                        setting,
                        format!("`{word}` is shell syntax, and no shell runs this command"),
                        "write it as a list: [sh, -c, \"…\"]; a literal word is quoted in a list",
                    );
                    return None;
                }
                words
            }
            Err(_) => {
                reader.fault(setting, "a quote is opened and never closed");
                return None;
            }
        }
    };
    if words.first().is_none_or(String::is_empty) {
        reader.fault(setting, "names no program");
        return None;
    }
    if words.iter().any(|word| word.contains('\0')) {
        reader.fault(setting, "holds a NUL character");
        return None;
    }
    Some(words)
}
