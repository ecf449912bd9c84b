//! A new worker as a tree, and how it is written.

use super::super::node::{Entry, Node, Position, Value};
use super::scalar::{self, Form};

/// Longest line that a list or a map of single values is written on.
const LINE: usize = 80;

/// A value that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Draft {
    /// A text: quoted where it would be read as something else.
    Text(String),
    /// A number or a word of the format's own, which needs no quotes.
    Word(String),
    List(Vec<Draft>),
    Map(Vec<(String, Draft)>),
}

impl Draft {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A list of texts.
    pub(crate) fn texts(texts: &[String]) -> Self {
        Self::List(texts.iter().map(Self::text).collect())
    }

    fn is_single(&self) -> bool {
        matches!(self, Self::Text(_) | Self::Word(_))
    }

    /// The value as the reader's tree has it.
    pub(super) fn value(&self) -> Value {
        // No place is looked at where trees are compared.
        let at = Position { line: 0, column: 0 };
        let node = |draft: &Draft| Node {
            at,
            value: draft.value(),
        };
        match self {
            Self::Text(text) | Self::Word(text) => Value::Text(text.clone()),
            Self::List(items) => Value::List(items.iter().map(node).collect()),
            Self::Map(entries) => {
                let entry = |(key, value): &(String, Draft)| Entry {
                    key: key.clone(),
                    at,
                    value: node(value),
                };
                Value::Map(entries.iter().map(entry).collect())
            }
        }
    }

    /// On one line.
    pub(super) fn inline(&self, form: Form) -> String {
        let all = |parts: Vec<String>| parts.join(", ");
        match self {
            Self::Text(text) => scalar::text(text, form),
            Self::Word(text) => scalar::word(text, form),
            Self::List(items) => {
                let items = items.iter().map(|item| item.inline(form));
                format!("[{}]", all(items.collect()))
            }
            Self::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| {
                    format!("{}: {}", scalar::key(key, form), value.inline(form))
                });
                format!("{{{}}}", all(entries.collect()))
            }
        }
    }
}

/// How an entry is laid out in a map that is written by indentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout<'t> {
    /// Columns of the entry's own key.
    pub(super) indent: usize,
    /// Columns that each level adds.
    pub(super) step: usize,
    pub(super) newline: &'t str,
}

/// An entry with its last newline. Its own values stand on lines of their own below the key.
pub(super) fn block(key: &str, value: &Draft, layout: Layout<'_>) -> String {
    let mut out = String::new();
    entry(&mut out, key, value, layout, true);
    out
}

fn entry(out: &mut String, key: &str, value: &Draft, layout: Layout<'_>, tall: bool) {
    let lead = " ".repeat(layout.indent);
    let key = scalar::key(key, Form::Plain);
    let line = format!("{lead}{key}: {}", value.inline(Form::Plain));
    let deeper = Layout {
        indent: layout.indent + layout.step,
        ..layout
    };
    match value {
        Draft::Map(entries) if !entries.is_empty() && (tall || !fits(value, &line)) => {
            *out += &format!("{lead}{key}:{}", layout.newline);
            for (key, value) in entries {
                // Variables stand below each other, as people write them.
                entry(out, key, value, deeper, key == "env");
            }
        }
        Draft::List(items) if !items.is_empty() && !fits(value, &line) => {
            *out += &format!("{lead}{key}:{}", layout.newline);
            let lead = " ".repeat(deeper.indent);
            for item in items {
                *out += &format!("{lead}- {}{}", item.inline(Form::Plain), layout.newline);
            }
        }
        Draft::Text(_) | Draft::Word(_) | Draft::List(_) | Draft::Map(_) => {
            *out += &line;
            *out += layout.newline;
        }
    }
}

fn fits(value: &Draft, line: &str) -> bool {
    let flat = match value {
        Draft::Text(_) | Draft::Word(_) => true,
        Draft::List(items) => items.iter().all(Draft::is_single),
        Draft::Map(entries) => entries.iter().all(|(_, value)| value.is_single()),
    };
    flat && line.chars().count() <= LINE
}

#[cfg(test)]
mod tests {
    use super::super::super::node;
    use super::*;
    use proptest::prelude::*;

    fn worker() -> Draft {
        let map = |entries: &[(&str, Draft)]| {
            let entries = entries.iter();
            Draft::Map(entries.map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
        };
        map(&[
            (
                "command",
                Draft::texts(&["node".into(), "server.js".into()]),
            ),
            (
                "env",
                map(&[("PORT", Draft::text("3000")), ("A", Draft::text("x"))]),
            ),
            ("resources", map(&[("cpus", Draft::Word("2".into()))])),
            ("ports", Draft::texts(&["8080:3000".into()])),
            (
                "mounts",
                Draft::texts(&vec!["./some/long/directory:/data".into(); 4]),
            ),
        ])
    }

    #[test]
    fn a_worker_is_written_as_people_write_it() {
        let layout = Layout {
            indent: 2,
            step: 2,
            newline: "\n",
        };
        assert_eq!(
            block("api", &worker(), layout),
            "  api:
    command: [node, server.js]
    env:
      PORT: \"3000\"
      A: x
    resources: {cpus: 2}
    ports: [\"8080:3000\"]
    mounts:
      - \"./some/long/directory:/data\"
      - \"./some/long/directory:/data\"
      - \"./some/long/directory:/data\"
      - \"./some/long/directory:/data\"
"
        );
    }

    fn any_draft() -> impl Strategy<Value = Draft> {
        let single = prop_oneof![
            "\\PC{0,12}".prop_map(Draft::Text),
            "[ -~\n\t]{0,12}".prop_map(Draft::Text),
            "[a-z0-9]{1,6}".prop_map(Draft::Word),
        ];
        single.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Draft::List),
                prop::collection::btree_map("\\PC{1,6}", inner, 0..4)
                    .prop_map(|map| Draft::Map(map.into_iter().collect())),
            ]
        })
    }

    fn read(text: &str) -> Value {
        let root = node::parse(text).unwrap_or_else(|error| panic!("{error:?} in\n{text}"));
        let Value::Map(entries) = root.unwrap().value else {
            panic!()
        };
        entries[0].value.value.clone()
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(draft in any_draft(), step in 1usize..5, indent in 0usize..3) {
            let expected = draft.value();
            // A word is one of ours and never one that YAML takes for nothing.
            prop_assume!(!format!("{draft:?}").contains("Word(\"null\")"));
            prop_assume!(!format!("{draft:?}").contains("\"<<\""));
            for newline in ["\n", "\r\n"] {
                let layout = Layout { indent, step, newline };
                let text = block("key", &draft, layout);
                prop_assert!(super::super::same(&read(&text), &expected), "{text}");
            }
            for form in [Form::Plain, Form::Json] {
                let text = format!("{{key: {}}}", draft.inline(form));
                prop_assert!(super::super::same(&read(&text), &expected), "{text}");
            }
        }
    }
}
