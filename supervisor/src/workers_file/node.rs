//! YAML as a tree in which every key and value knows its place.
//!
//! Built from the parser's events, so that all faults of a file can be reported together, each
//! with line and column, and so that scalars keep the text that the user wrote (`1.10` stays
//! `1.10`). Anchors, aliases and merge keys (`<<`) work; tags and several documents do not.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError};

/// A place in the file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

impl From<Marker> for Position {
    fn from(mark: Marker) -> Self {
        Self {
            line: mark.line(),
            column: mark.col() + 1,
        }
    }
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) at: Position,
    pub(crate) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Any other scalar, as its text.
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) at: Position,
    pub(crate) value: Node,
}

impl Value {
    /// The kind in words, for "expected a list, found a map".
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a single value",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// Why a text is not YAML of the kind that a workers file is written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) at: Position,
    pub(crate) message: String,
}

/// Most nodes of one file, aliases counted each time: nested aliases ("billion laughs") would
/// otherwise turn a kilobyte into gigabytes.
const MAX_NODES: usize = 50_000;

/// Deepest nesting: dropping and walking the tree recurse.
const MAX_DEPTH: usize = 64;

/// A list or map whose end has not been seen.
struct Open {
    at: Position,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        key: Option<(String, Position)>,
    },
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    root: Option<Node>,
    nodes: usize,
}

/// Parses `text`; an empty file is `None`.
pub(crate) fn parse(text: &str) -> Result<Option<Node>, SyntaxError> {
    let mut builder = Builder::default();
    let mut documents = 0;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(scan_error)?;
        let at = Position::from(span.start);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                documents += 1;
                if documents > 1 {
                    return Err(fault(at, "a second document: the file holds one only"));
                }
            }
            Event::Alias(id) => {
                let Some(node) = builder.anchors.get(&id).cloned() else {
                    return Err(fault(at, "an alias inside of what it names"));
                };
                builder.count(size(&node), at)?;
                builder.put(node, at)?;
            }
            Event::Scalar(text, style, anchor, tag) => {
                no_tag(tag.is_some(), at)?;
                builder.count(1, at)?;
                let plain = style == ScalarStyle::Plain;
                let value = match &*text {
                    "" | "~" | "null" | "Null" | "NULL" if plain => Value::Null,
                    _ => Value::Text(text.into_owned()),
                };
                builder.finish(Node { at, value }, anchor, at)?;
            }
            Event::SequenceStart(anchor, tag) => {
                no_tag(tag.is_some(), at)?;
                builder.open(at, anchor, OpenKind::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                no_tag(tag.is_some(), at)?;
                let kind = OpenKind::Map {
                    entries: Vec::new(),
                    key: None,
                };
                builder.open(at, anchor, kind)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                // The parser emits an end only for what it started.
                if let Some(open) = builder.open.pop() {
                    let value = match open.kind {
                        OpenKind::List(items) => Value::List(items),
                        OpenKind::Map { entries, .. } => Value::Map(merged(entries)?),
                    };
                    let at = open.at;
                    builder.finish(Node { at, value }, open.anchor, at)?;
                }
            }
        }
    }
    Ok(builder.root.filter(|node| node.value != Value::Null))
}

fn fault(at: Position, message: impl Into<String>) -> SyntaxError {
    SyntaxError {
        at,
        message: message.into(),
    }
}

fn scan_error(error: ScanError) -> SyntaxError {
    fault(Position::from(*error.marker()), error.info())
}

fn no_tag(tagged: bool, at: Position) -> Result<(), SyntaxError> {
    if tagged {
        return Err(fault(at, "YAML tags (`!name`) mean nothing here"));
    }
    Ok(())
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Null | Value::Text(_) => 0,
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|e| size(&e.value)).sum(),
    }
}

fn depth(node: &Node) -> usize {
    1 + match &node.value {
        Value::Null | Value::Text(_) => 0,
        Value::List(items) => items.iter().map(depth).max().unwrap_or(0),
        Value::Map(entries) => entries.iter().map(|e| depth(&e.value)).max().unwrap_or(0),
    }
}

impl Builder {
    fn count(&mut self, nodes: usize, at: Position) -> Result<(), SyntaxError> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(fault(
                at,
                format!("more than {MAX_NODES} values, aliases included"),
            ));
        }
        Ok(())
    }

    fn open(&mut self, at: Position, anchor: usize, kind: OpenKind) -> Result<(), SyntaxError> {
        self.count(1, at)?;
        if let Some(Open {
            kind: OpenKind::Map { key: None, .. },
            ..
        }) = self.open.last()
        {
            return Err(fault(at, "a key must be a single value"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(fault(at, format!("nested more than {MAX_DEPTH} deep")));
        }
        self.open.push(Open { at, anchor, kind });
        Ok(())
    }

    /// A node is complete: it can be named by aliases from now on.
    fn finish(&mut self, node: Node, anchor: usize, at: Position) -> Result<(), SyntaxError> {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        self.put(node, at)
    }

    /// Puts a node where the document has come to; `at` is where it is used.
    fn put(&mut self, node: Node, at: Position) -> Result<(), SyntaxError> {
        if self.open.len() + depth(&node) > MAX_DEPTH {
            return Err(fault(at, format!("nested more than {MAX_DEPTH} deep")));
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, key }) => match key.take() {
                Some((key, at)) => entries.push(Entry {
                    key,
                    at,
                    value: node,
                }),
                None => match node.value {
                    Value::Text(text) => *key = Some((text, at)),
                    Value::Null => *key = Some((String::from("null"), at)),
                    Value::List(_) | Value::Map(_) => {
                        return Err(fault(at, "a key must be a single value"));
                    }
                },
            },
        }
        Ok(())
    }
}

/// Applies merge keys: `<<: *other` adds the entries of `other` whose keys the map itself lacks.
fn merged(entries: Vec<Entry>) -> Result<Vec<Entry>, SyntaxError> {
    if !entries.iter().any(|e| e.key == "<<") {
        return Ok(entries);
    }
    let (merges, mut own): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|e| e.key == "<<");
    for merge in merges {
        let sources = match merge.value.value {
            Value::List(items) => items,
            Value::Null | Value::Text(_) | Value::Map(_) => vec![merge.value],
        };
        for source in sources {
            let Value::Map(more) = source.value else {
                return Err(fault(merge.at, "`<<` merges maps only"));
            };
            for entry in more {
                if !own.iter().any(|e| e.key == entry.key) {
                    own.push(entry);
                }
            }
        }
    }
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get<'a>(node: &'a Node, key: &str) -> &'a Node {
        let Value::Map(entries) = &node.value else {
            panic!("no map: {node:?}")
        };
        &entries.iter().find(|e| e.key == key).unwrap().value
    }

    #[test]
    fn values_keep_text_and_place() {
        let root = parse("a: 1.10\nb:\n  - 'x'\n  - \"~\"\nc: ~\n")
            .unwrap()
            .unwrap();
        assert_eq!(get(&root, "a").value, Value::Text("1.10".into()));
        assert_eq!(get(&root, "a").at, Position { line: 1, column: 4 });
        let Value::List(items) = &get(&root, "b").value else {
            panic!()
        };
        assert_eq!(items[1].value, Value::Text("~".into()));
        assert_eq!(items[1].at, Position { line: 4, column: 5 });
        assert_eq!(get(&root, "c").value, Value::Null);
    }

    #[test]
    fn empty_files_are_nothing() {
        for text in ["", "\n", "# only a comment\n", "---\n", "~\n"] {
            assert_eq!(parse(text).unwrap(), None, "{text:?}");
        }
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        let root = parse("x: &d {a: 1, b: 2}\ny:\n  <<: *d\n  b: 3\n")
            .unwrap()
            .unwrap();
        assert_eq!(get(get(&root, "y"), "a").value, Value::Text("1".into()));
        assert_eq!(get(get(&root, "y"), "b").value, Value::Text("3".into()));
    }

    #[test]
    fn faults_name_their_place() {
        for (text, line, column, part) in [
            ("a: !x 1\n", 1, 4, "tags"),
            ("a: 1\n---\nb: 1\n", 2, 1, "second document"),
            ("a:\n\tb: 1\n", 2, 2, "tab"),
            ("? [a]\n: b\n", 1, 3, "key"),
            ("a: &x [*x]\n", 1, 8, "alias"),
            ("a: 1\n<<: 2\n", 2, 1, "merges maps"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.at, Position { line, column }, "{text:?} {error:?}");
            assert!(error.message.contains(part), "{text:?} {error:?}");
        }
    }

    #[test]
    fn billions_of_laughs_are_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..10 {
            let alias = format!("*a{}", n - 1);
            text += &format!("a{n}: &a{n} [{}]\n", vec![alias; 10].join(", "));
        }
        assert!(parse(&text).unwrap_err().message.contains("50000 values"));
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |depth| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(&nested(60)).is_ok());
        assert!(parse(&nested(70)).unwrap_err().message.contains("deep"));
        assert!(parse(&nested(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "[\\PC\n\t ]{0,200}") {
            // Reaching the end is the property: no panic, no endless loop.
            prop_assert!(matches!(parse(&text), Ok(_) | Err(_)));
        }

        #[test]
        fn yaml_like_text_is_parsed_or_refused(text in "([a-c&*:<!\\[\\]{},'\"|>#?~ \n-]){0,120}") {
            prop_assert!(matches!(parse(&text), Ok(_) | Err(_)));
        }
    }
}
