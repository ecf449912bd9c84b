//! Where in the text each key and value of a workers file stands.
//!
//! Built from the same parser's events as the tree that the reader works on, so that an edit and
//! the reader cannot disagree about what is where. All positions are byte offsets.

use std::iter::Peekable;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};

/// A value's place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    /// With its anchor, if it has one.
    pub(super) start: usize,
    /// Behind its last character. Comments and white space behind it are not part of it.
    pub(super) end: usize,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// Nothing, `~` or `null`.
    Null,
    Scalar,
    /// `*name`
    Alias,
    List,
    Map(MapPlace),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct MapPlace {
    pub(super) style: MapStyle,
    pub(super) entries: Vec<EntryPlace>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MapStyle {
    /// An entry per line, by indentation.
    Block,
    /// `{…}`, with the offsets of both braces.
    Flow { open: usize, close: usize },
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct EntryPlace {
    pub(super) key: String,
    /// The key as it is written, quotes included.
    pub(super) key_range: Range<usize>,
    pub(super) value: Place,
}

impl MapPlace {
    pub(super) fn position(&self, key: &str) -> Option<usize> {
        self.entries.iter().position(|entry| entry.key == key)
    }
}

impl EntryPlace {
    /// From the key to the end of the value; a value that is empty ends with its key's colon.
    pub(super) fn range(&self, text: &str) -> Range<usize> {
        let end = self.value.end.max(colon_end(text, self.key_range.end));
        self.key_range.start..end
    }
}

/// Behind the colon that follows a key.
pub(super) fn colon_end(text: &str, key_end: usize) -> usize {
    let rest = &text[key_end..];
    match rest.trim_start().strip_prefix(':') {
        Some(behind) => text.len() - behind.len(),
        None => key_end,
    }
}

/// The place of the document's value; `None` where the text holds none, or is no YAML that
/// [`super::super::node::parse`] takes, which is to be asked first: it bounds depth and size.
pub(super) fn outline(text: &str) -> Option<Place> {
    let mut offsets: Vec<usize> = text.char_indices().map(|(at, _)| at).collect();
    offsets.push(text.len());
    let mut walk = Walk {
        text,
        offsets,
        events: Parser::new_from_str(text).peekable(),
    };
    loop {
        let (event, span) = walk.events.next()?.ok()?;
        match event {
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => {}
            Event::DocumentEnd | Event::StreamEnd => return None,
            Event::Alias(_)
            | Event::Scalar(..)
            | Event::SequenceStart(..)
            | Event::SequenceEnd
            | Event::MappingStart(..)
            | Event::MappingEnd => return walk.value(event, span),
        }
    }
}

struct Walk<'t> {
    text: &'t str,
    /// Of each character, since the parser counts these.
    offsets: Vec<usize>,
    events: Peekable<Parser<'t, StrInput<'t>>>,
}

impl<'t> Walk<'t> {
    fn range(&self, span: Span) -> Range<usize> {
        let last = self.offsets.len() - 1;
        let at = |index: usize| self.offsets[index.min(last)];
        at(span.start.index())..at(span.end.index())
    }

    fn next(&mut self) -> Option<(Event<'t>, Span)> {
        self.events.next()?.ok()
    }

    fn value(&mut self, event: Event<'t>, span: Span) -> Option<Place> {
        let range = self.range(span);
        let start = range.start;
        match event {
            Event::Alias(_) => Some(Place {
                start,
                end: range.end,
                kind: Kind::Alias,
            }),
            Event::Scalar(value, style, ..) => {
                let null = matches!(&*value, "" | "~" | "null" | "Null" | "NULL");
                let null = null && style == ScalarStyle::Plain;
                Some(Place {
                    start,
                    end: self.scalar_end(range, style, &value),
                    kind: if null { Kind::Null } else { Kind::Scalar },
                })
            }
            Event::SequenceStart(..) => self.list(range),
            Event::MappingStart(..) => self.map(range),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::SequenceEnd
            | Event::MappingEnd => None,
        }
    }

    fn list(&mut self, range: Range<usize>) -> Option<Place> {
        let open = self.opening(&range, '[');
        let mut end = range.end;
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => break,
                (event, span) => end = end.max(self.value(event, span)?.end),
            }
        }
        if open.is_some() {
            end = closing(self.text, end, ']')? + 1;
        }
        Some(Place {
            start: range.start,
            end,
            kind: Kind::List,
        })
    }

    /// Where a brace opens that a value begins with, behind its anchor.
    fn opening(&self, range: &Range<usize>, brace: char) -> Option<usize> {
        let at = behind_anchor(self.text, range.start);
        self.text[at..].starts_with(brace).then_some(at)
    }

    fn map(&mut self, range: Range<usize>) -> Option<Place> {
        let open = self.opening(&range, '{');
        let mut end = open.unwrap_or(range.start);
        let mut entries = Vec::new();
        let style = loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                match open {
                    None => break MapStyle::Block,
                    Some(open) => {
                        let close = closing(self.text, end.max(open + 1), '}')?;
                        end = close + 1;
                        break MapStyle::Flow { open, close };
                    }
                }
            }
            let Event::Scalar(key, style, ..) = event else {
                return None;
            };
            let written = self.range(span);
            let key_range = written.start..self.scalar_end(written, style, &key);
            let (event, span) = self.next()?;
            let entry = EntryPlace {
                key: key.into_owned(),
                key_range,
                value: self.value(event, span)?,
            };
            end = end.max(entry.range(self.text).end);
            entries.push(entry);
        };
        Some(Place {
            start: range.start,
            end,
            kind: Kind::Map(MapPlace { style, entries }),
        })
    }

    /// Where a scalar ends as it is written. The parser's ranges of quoted and of block scalars
    /// reach into the white space and comments behind them.
    fn scalar_end(&self, range: Range<usize>, style: ScalarStyle, value: &str) -> usize {
        let written = &self.text[range.clone()];
        match style {
            ScalarStyle::Plain => range.end,
            ScalarStyle::SingleQuoted => range.start + quoted_end(written, '\''),
            ScalarStyle::DoubleQuoted => range.start + quoted_end(written, '"'),
            ScalarStyle::Literal | ScalarStyle::Folded => {
                // With `|+` the empty lines behind the text are a part of it.
                let keeps = value.is_empty() || value.ends_with("\n\n") || value == "\n";
                let indented = written.trim_end_matches(' ');
                let end = if keeps { indented } else { written.trim_end() };
                range.start + end.len()
            }
        }
    }
}

/// Past `&name` and the white space and comments behind it.
pub(super) fn behind_anchor(text: &str, from: usize) -> usize {
    let mut rest = &text[from..];
    if !rest.starts_with('&') {
        return from;
    }
    rest = rest
        .trim_start_matches(|c: char| !c.is_whitespace())
        .trim_start();
    while rest.starts_with('#') {
        rest = rest.trim_start_matches(|c| c != '\n').trim_start();
    }
    text.len() - rest.len()
}

/// The closing brace behind the last value within. The parser says where a comma before it is, if
/// there is one.
fn closing(text: &str, from: usize, brace: char) -> Option<usize> {
    let mut comment = false;
    text[from..].char_indices().find_map(|(at, c)| {
        match c {
            '\n' => comment = false,
            '#' => comment = true,
            _ if c == brace && !comment => return Some(from + at),
            _ => {}
        }
        None
    })
}

/// The length of a quoted scalar in front of other text, an anchor before it included.
fn quoted_end(text: &str, quote: char) -> usize {
    let Some(open) = text.find(quote) else {
        return text.len();
    };
    let mut escaped = false;
    let mut rest = text
        .char_indices()
        .skip_while(|(at, _)| *at <= open)
        .peekable();
    while let Some((at, c)) = rest.next() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            _ if c == quote => match rest.peek() {
                // '' within single quotes is a quote.
                Some((_, next)) if quote == '\'' && *next == quote => {
                    rest.next();
                }
                Some(_) | None => return at + quote.len_utf8(),
            },
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(place: &Place) -> &MapPlace {
        match &place.kind {
            Kind::Map(map) => map,
            other => panic!("no map: {other:?}"),
        }
    }

    /// `key → text from the key to the value's end` of each entry below `workers`.
    fn entries(text: &str) -> Vec<String> {
        let root = outline(text).unwrap();
        let at = map(&root).position("workers").unwrap();
        let workers = &map(&root).entries[at].value;
        let entries = map(workers).entries.iter();
        entries.map(|e| text[e.range(text)].to_owned()).collect()
    }

    #[test]
    fn entries_end_where_their_last_word_ends() {
        for (text, expected) in [
            (
                "workers:\n  a: 1 # c\n  b:\n    - x\n    - 'y' # c\n\n# c\n",
                &["a: 1", "b:\n    - x\n    - 'y'"][..],
            ),
            (
                "workers: {a: {b: 1} , 'c' : [x] # c\n }\n",
                &["a: {b: 1}", "'c' : [x]"],
            ),
            (
                "workers: &w # c\n  a: &x {} # c\n  b: *x # c\n",
                &["a: &x {}", "b: *x"],
            ),
            (
                "workers:\r\n  é: ü\r\n  b: \"\\\"x\" # c\r\n",
                &["é: ü", "b: \"\\\"x\""],
            ),
            (
                "workers:\n  a: 'it''s' # c\n  b: &q \"x\" # c",
                &["a: 'it''s'", "b: &q \"x\""],
            ),
            (
                "workers:\n  a:\n  b: {x: , y: }\n",
                &["a:", "b: {x: , y: }"],
            ),
            (
                "workers:\n  a: {x: ~}\n  b:\n    c: |\n      t\n\n  # c\n",
                &["a: {x: ~}", "b:\n    c: |\n      t"],
            ),
            (
                "workers:\n  a: |+\n    t\n\n  b: 1\n",
                &["a: |+\n    t\n\n", "b: 1"],
            ),
            ("workers:\n  a: x\n    y\n", &["a: x\n    y"]),
            (
                "workers: {a: {b: [1,],}, # }\n b: [ # ]\n ] , }\n",
                &["a: {b: [1,],}", "b: [ # ]\n ]"],
            ),
        ] {
            assert_eq!(entries(text), expected, "{text:?}");
        }
    }

    #[test]
    fn braces_are_known() {
        let text = "workers: &w { a: 1 }  # }\n";
        let root = outline(text).unwrap();
        let workers = map(&map(&root).entries[0].value);
        let MapStyle::Flow { open, close } = workers.style else {
            panic!()
        };
        assert_eq!(&text[open..=close], "{ a: 1 }");
    }

    #[test]
    fn nothing_is_none() {
        assert_eq!(outline("# c\n"), None);
        assert_eq!(outline(""), None);
        assert!(matches!(outline("~\n").unwrap().kind, Kind::Null));
    }
}
