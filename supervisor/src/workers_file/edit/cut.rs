//! How an entry is taken out, and the text without it.

use std::ops::Range;

use super::EditError;
use super::insert::{comma_between, indent_of, line_end, line_start, spliced};
use super::outline::{EntryPlace, MapPlace, MapStyle, colon_end};

/// The text without an entry of `map`, which is the value of `parent`.
pub(super) fn entry(
    text: &str,
    parent: &EntryPlace,
    map: &MapPlace,
    at: usize,
) -> Result<String, EditError> {
    match map.style {
        MapStyle::Flow { close, .. } => Ok(from_braces(text, map, at, close)),
        MapStyle::Block => from_lines(text, parent, map, at),
    }
}

fn from_lines(
    text: &str,
    parent: &EntryPlace,
    map: &MapPlace,
    at: usize,
) -> Result<String, EditError> {
    let entry = &map.entries[at];
    let indent = indent_of(text, entry)?;
    let range = entry.range(text);
    let mut from = line_start(text, range.start);
    let mut to = own_comments(text, line_end(text, range.end), indent);
    if at > 0 {
        from = comments_above(text, from, indent);
    }
    if at + 1 < map.entries.len() {
        to = behind_empty(text, to);
    } else if at > 0 {
        // Empty lines that a text before it ends with are that text's own.
        let before = map.entries[at - 1].range(text).end;
        from = before_empty(text, from).max(before.min(from));
    }
    let without = spliced(text, from, to, "");
    if map.entries.len() > 1 {
        return Ok(without);
    }
    // A map without entries is written by braces: nothing at all would mean no map.
    let behind = match map_anchor(text, parent) {
        Some(anchor) => anchor.end,
        None => colon_end(text, parent.key_range.end),
    };
    Ok(spliced(&without, behind, behind, " {}"))
}

/// `&name` before a map.
fn map_anchor(text: &str, parent: &EntryPlace) -> Option<Range<usize>> {
    let start = parent.value.start;
    let rest = text[start..].strip_prefix('&')?;
    let length = rest.find(char::is_whitespace).unwrap_or(rest.len());
    Some(start..start + 1 + length)
}

/// Past comments that stand deeper than the entry's key: they are about what is in it.
fn own_comments(text: &str, from: usize, indent: usize) -> usize {
    super::insert::behind_comments(text, from, indent + 1)
}

/// The first of the comments that stand directly above an entry, at its depth.
fn comments_above(text: &str, from: usize, indent: usize) -> usize {
    let mut first = from;
    for line in text[..from].split_inclusive('\n').rev() {
        let bare = line.trim_start_matches(' ');
        if line.len() - bare.len() != indent || !bare.starts_with('#') {
            break;
        }
        first -= line.len();
    }
    first
}

fn behind_empty(text: &str, from: usize) -> usize {
    let empty = text[from..].split_inclusive('\n');
    from + empty
        .take_while(|line| line.trim().is_empty())
        .map(str::len)
        .sum::<usize>()
}

fn before_empty(text: &str, from: usize) -> usize {
    let empty = text[..from].split_inclusive('\n').rev();
    from - empty
        .take_while(|line| line.trim().is_empty())
        .map(str::len)
        .sum::<usize>()
}

fn from_braces(text: &str, map: &MapPlace, at: usize, close: usize) -> String {
    let range = map.entries[at].range(text);
    let next = map.entries.get(at + 1).map(|entry| entry.key_range.start);
    let comma = comma_between(text, range.end, next.unwrap_or(close));
    let before = at.checked_sub(1).map(|at| map.entries[at].range(text).end);
    let mut new = text.to_owned();
    // From the back to the front, so that places stay true.
    match (comma, next, before) {
        (Some(comma), ..) => cut(&mut new, range.start, comma + 1, next.is_some()),
        (None, _, Some(before)) => {
            cut(&mut new, range.start, range.end, false);
            if let Some(comma) = comma_between(text, before, range.start) {
                new.replace_range(comma..=comma, "");
            }
        }
        (None, _, None) => cut(&mut new, range.start, range.end, false),
    }
    new
}

/// Takes out a range, and with it the line if nothing else but a comment stands there, else the
/// white space on one side.
fn cut(text: &mut String, from: usize, to: usize, followed: bool) {
    let start = line_start(text, from);
    let end = line_end(text, to);
    let before = &text[start..from];
    let after = &text[to..end];
    let idle = after.trim().is_empty() || after.trim_start().starts_with('#');
    if before.trim().is_empty() && idle && start > 0 && end < text.len() {
        text.replace_range(start..end, "");
    } else if followed && !after.trim().is_empty() {
        let spaces = after.len() - after.trim_start_matches([' ', '\t']).len();
        text.replace_range(from..to + spaces, "");
    } else {
        let kept = before.trim_end_matches([' ', '\t']).len();
        let kept = if before.trim().is_empty() {
            before.len()
        } else {
            kept
        };
        text.replace_range(start + kept..to, "");
    }
}
