//! Where a new entry goes, and the text with it.

use super::draft::{self, Draft, Layout};
use super::outline::{EntryPlace, Kind, MapPlace, MapStyle, Place, colon_end};
use super::scalar::{self, Form};
use super::{EditError, WORKERS};

/// Columns that a level has where the file does not show it.
const STEP: usize = 2;

/// The text with one more worker.
pub(super) fn worker(
    text: &str,
    root: Option<Place>,
    name: &str,
    worker: &Draft,
) -> Result<String, EditError> {
    let all = || Draft::Map(vec![(name.to_owned(), worker.clone())]);
    let Some(root) = root else {
        return Ok(appended(
            text,
            &draft::block(WORKERS, &all(), layout(text, 0, STEP)),
        ));
    };
    let Kind::Map(top) = &root.kind else {
        return Err(EditError::by_hand("the file is not a map"));
    };
    let Some(at) = top.position(WORKERS) else {
        return into_map(text, top, WORKERS, &all());
    };
    let workers = &top.entries[at];
    match &workers.value.kind {
        Kind::Map(map) if map.entries.is_empty() => {
            into_empty(text, top, workers, map, name, worker)
        }
        Kind::Map(map) => into_map(text, map, name, worker),
        Kind::Null if top.style == MapStyle::Block => below(text, top, workers, name, worker),
        Kind::Null => Err(EditError::by_hand("`workers` has no value, within braces")),
        Kind::Alias => Err(EditError::by_hand(
            "its workers stand elsewhere in the file, by an alias",
        )),
        Kind::Scalar | Kind::List => Err(EditError::by_hand("`workers` is not a map")),
    }
}

/// The text with another worker in the place of one that is there.
pub(super) fn instead(
    text: &str,
    map: &MapPlace,
    at: usize,
    worker: &Draft,
) -> Result<String, EditError> {
    let entry = &map.entries[at];
    let range = entry.range(text);
    match map.style {
        MapStyle::Flow { .. } => {
            let new = format!(
                "{}: {}",
                &text[entry.key_range.clone()],
                worker.inline(form(text, map))
            );
            Ok(spliced(text, range.start, range.end, &new))
        }
        MapStyle::Block => {
            let indent = indent_of(text, entry)?;
            let new = draft::block(
                &entry.key,
                worker,
                layout(text, indent, step(text, map, indent)),
            );
            let from = line_start(text, range.start);
            let to = line_end(text, range.end);
            Ok(spliced(text, from, to, &new))
        }
    }
}

/// Behind the last entry of a map that has entries.
fn into_map(text: &str, map: &MapPlace, key: &str, value: &Draft) -> Result<String, EditError> {
    let Some(last) = map.entries.last() else {
        return match map.style {
            MapStyle::Flow { open, close } => Ok(within_braces(text, map, open, close, key, value)),
            MapStyle::Block => Err(EditError::by_hand("the file is not a map")),
        };
    };
    let end = last.range(text).end;
    match map.style {
        MapStyle::Flow { close, .. } => {
            Ok(behind_in_braces(text, map, last, end, close, key, value))
        }
        MapStyle::Block => {
            let indent = indent_of(text, last)?;
            let layout = layout(text, indent, step(text, map, indent));
            let to = behind_comments(text, line_end(text, end), indent);
            let mut new = String::new();
            if !text[..to].ends_with('\n') {
                new += layout.newline;
            }
            let apart = ends_with_empty_line(&text[..to]);
            if (is_spaced(text, map) || indent == 0) && !apart {
                new += layout.newline;
            }
            new += &draft::block(key, value, layout);
            Ok(spliced(text, to, to, &new))
        }
    }
}

fn behind_in_braces(
    text: &str,
    map: &MapPlace,
    last: &EntryPlace,
    end: usize,
    close: usize,
    key: &str,
    value: &Draft,
) -> String {
    let form = form(text, map);
    let written = format!("{}: {}", scalar::key(key, form), value.inline(form));
    // A new line, and what the last entry has before it, if that stands on a line of its own.
    let start = line_start(text, last.key_range.start);
    let lead = &text[start..last.key_range.start];
    let gap = if lead.trim().is_empty() && start > 0 {
        format!("{}{lead}", newline(text))
    } else {
        String::from(" ")
    };
    match comma_between(text, end, close) {
        // The comma behind the last entry stays the one behind the last.
        Some(comma) => spliced(text, comma + 1, comma + 1, &format!("{gap}{written},")),
        None => spliced(text, end, end, &format!(",{gap}{written}")),
    }
}

fn within_braces(
    text: &str,
    map: &MapPlace,
    open: usize,
    close: usize,
    key: &str,
    value: &Draft,
) -> String {
    let form = form(text, map);
    let written = format!("{}: {}", scalar::key(key, form), value.inline(form));
    if text[open + 1..close].trim().is_empty() && !text[open..close].contains('\n') {
        spliced(text, open + 1, close, &written)
    } else {
        spliced(text, open + 1, open + 1, &written)
    }
}

/// `workers: {}`
fn into_empty(
    text: &str,
    top: &MapPlace,
    workers: &EntryPlace,
    map: &MapPlace,
    name: &str,
    worker: &Draft,
) -> Result<String, EditError> {
    let MapStyle::Flow { open, close } = map.style else {
        return Err(EditError::by_hand("`workers` is not a map"));
    };
    let inside = &text[open + 1..close];
    if top.style != MapStyle::Block || !inside.trim().is_empty() || inside.contains('\n') {
        return Ok(within_braces(text, map, open, close, name, worker));
    }
    // By indentation, as the file itself is written.
    below_value(text, top, workers, open, close + 1, name, worker)
}

/// `workers:`, `workers: ~`
fn below(
    text: &str,
    top: &MapPlace,
    workers: &EntryPlace,
    name: &str,
    worker: &Draft,
) -> Result<String, EditError> {
    let colon = colon_end(text, workers.key_range.end);
    let place = &workers.value;
    let written = &text[place.start..place.end];
    let (from, to) = match written {
        "" => (colon, colon),
        _ if written.starts_with('&') => {
            return Err(EditError::by_hand("`workers` is an anchor without a value"));
        }
        _ => (place.start, place.end),
    };
    below_value(text, top, workers, from, to, name, worker)
}

/// Takes what stands behind `workers:` out, and writes below.
fn below_value(
    text: &str,
    top: &MapPlace,
    workers: &EntryPlace,
    from: usize,
    to: usize,
    name: &str,
    worker: &Draft,
) -> Result<String, EditError> {
    let indent = indent_of(text, workers)?;
    let step = step(text, top, indent);
    let layout = layout(text, indent + step, step);
    // White space before what is taken out goes with it, where nothing follows.
    let before = text[..from].trim_end_matches([' ', '\t']).len();
    let rest = &text[to..line_end(text, to)];
    let from = if rest.trim().is_empty() { before } else { from };
    let line_end = line_end(text, to);
    let mut new = text[to..line_end].to_owned();
    if !new.ends_with('\n') {
        new += layout.newline;
    }
    new += &draft::block(name, worker, layout);
    Ok(spliced(text, from, line_end, &new))
}

/// The text with lines at its end, below an empty one where something else stands before.
fn appended(text: &str, lines: &str) -> String {
    let newline = newline(text);
    let mut new = text.to_owned();
    if !new.is_empty() && !new.ends_with('\n') {
        new += newline;
    }
    let last = text.lines().next_back().unwrap_or_default().trim();
    let belongs_to_what_follows = ["---", "# yaml-language-server:"]
        .iter()
        .any(|start| last.starts_with(start));
    if !last.is_empty() && !belongs_to_what_follows {
        new += newline;
    }
    new + lines
}

pub(super) fn spliced(text: &str, from: usize, to: usize, new: &str) -> String {
    format!("{}{new}{}", &text[..from], &text[to..])
}

pub(super) fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

/// Behind the newline of the line that holds what ends at `at`.
pub(super) fn line_end(text: &str, at: usize) -> usize {
    // What ends with its newline, as a block scalar that keeps it, ends its line too.
    if at > 0 && text[..at].ends_with('\n') {
        return at;
    }
    text[at..]
        .find('\n')
        .map_or(text.len(), |newline| at + newline + 1)
}

fn newline(text: &str) -> &'static str {
    match text.find('\n') {
        Some(at) if text[..at].ends_with('\r') => "\r\n",
        Some(_) | None => "\n",
    }
}

fn layout(text: &str, indent: usize, step: usize) -> Layout<'static> {
    Layout {
        indent,
        step,
        newline: newline(text),
    }
}

/// The columns before an entry's key, which must be all that stands there.
pub(super) fn indent_of(text: &str, entry: &EntryPlace) -> Result<usize, EditError> {
    let start = entry.key_range.start;
    let lead = &text[line_start(text, start)..start];
    let lead = lead.trim_start_matches('\u{feff}');
    if lead.chars().all(|c| c == ' ') {
        Ok(lead.len())
    } else {
        Err(EditError::by_hand(format!(
            "`{}` does not stand at the beginning of its line",
            entry.key
        )))
    }
}

/// How much deeper the file writes what is below an entry of `map`.
fn step(text: &str, map: &MapPlace, indent: usize) -> usize {
    let mut steps = map.entries.iter().filter_map(|entry| {
        let Kind::Map(MapPlace {
            style: MapStyle::Block,
            entries,
        }) = &entry.value.kind
        else {
            return None;
        };
        let deeper = indent_of(text, entries.first()?).ok()?;
        deeper.checked_sub(indent).filter(|step| *step > 0)
    });
    // The last one is the nearest to what is written.
    steps.next_back().unwrap_or(STEP)
}

/// As the keys that are there are written.
fn form(text: &str, map: &MapPlace) -> Form {
    let quoted = |entry: &EntryPlace| text[entry.key_range.clone()].starts_with('"');
    // An empty map within braces that begin the text is JSON.
    let json_file = || text.trim_start().starts_with('{') && text.contains('"');
    let json = match &map.entries[..] {
        [] => json_file(),
        entries => entries.iter().all(quoted),
    };
    if json { Form::Json } else { Form::Plain }
}

/// Whether there is an empty line between the last two entries.
fn is_spaced(text: &str, map: &MapPlace) -> bool {
    match &map.entries[..] {
        [.., before, last] => {
            let between = &text[before.range(text).end..last.key_range.start];
            // The first is the rest of a line, the last what stands before the key.
            let mut lines = between.split_inclusive('\n').skip(1);
            lines.any(|line| line.ends_with('\n') && line.trim().is_empty())
        }
        [] | [_] => false,
    }
}

fn ends_with_empty_line(text: &str) -> bool {
    text.ends_with("\n\n") || text.ends_with("\n\r\n")
}

/// Past comments that stand at least as deep as the map's keys, and empty lines between them: they
/// belong to what is there.
pub(super) fn behind_comments(text: &str, from: usize, indent: usize) -> usize {
    let mut end = from;
    let mut at = from;
    for line in text[from..].split_inclusive('\n') {
        at += line.len();
        let depth = line.len() - line.trim_start_matches(' ').len();
        let bare = line.trim();
        if bare.starts_with('#') && depth >= indent {
            end = at;
        } else if !bare.is_empty() {
            break;
        }
    }
    end
}

/// The comma between the end of the last entry and the closing brace.
pub(super) fn comma_between(text: &str, from: usize, to: usize) -> Option<usize> {
    let mut comment = false;
    text[from..to].char_indices().find_map(|(at, c)| {
        match c {
            '\n' => comment = false,
            '#' => comment = true,
            ',' if !comment => return Some(from + at),
            _ => {}
        }
        None
    })
}
