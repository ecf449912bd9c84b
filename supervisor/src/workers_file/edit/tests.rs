//! Before and after, byte for byte.

use proptest::prelude::*;

use super::*;

fn draft() -> Draft {
    let command = (
        "command".to_owned(),
        Draft::texts(&["x".into(), "-v".into()]),
    );
    Draft::Map(vec![command])
}

fn added(before: &str) -> String {
    add(before, "new", &draft()).unwrap_or_else(|error| panic!("{error}: {before:?}"))
}

fn removed(before: &str, name: &str) -> String {
    remove(before, name).unwrap_or_else(|error| panic!("{error}: {before:?}"))
}

fn replaced(before: &str, name: &str) -> String {
    replace(before, name, &draft()).unwrap_or_else(|error| panic!("{error}: {before:?}"))
}

#[test]
fn a_worker_is_added_behind_the_last() {
    for (before, after) in [
        // Nothing there yet.
        ("", "workers:\n  new:\n    command: [x, -v]\n"),
        (
            "# yaml-language-server: $schema=x\n",
            "# yaml-language-server: $schema=x\nworkers:\n  new:\n    command: [x, -v]\n",
        ),
        (
            "# mine\n",
            "# mine\n\nworkers:\n  new:\n    command: [x, -v]\n",
        ),
        ("---\n", "---\nworkers:\n  new:\n    command: [x, -v]\n"),
        ("workers:\n", "workers:\n  new:\n    command: [x, -v]\n"),
        ("workers:", "workers:\n  new:\n    command: [x, -v]\n"),
        (
            "workers: # none yet\nx-a: 1\n",
            "workers: # none yet\n  new:\n    command: [x, -v]\nx-a: 1\n",
        ),
        ("workers: ~\n", "workers:\n  new:\n    command: [x, -v]\n"),
        (
            "workers: null # n\n",
            "workers:  # n\n  new:\n    command: [x, -v]\n",
        ),
        ("workers: {}\n", "workers:\n  new:\n    command: [x, -v]\n"),
        (
            "workers: &w { } # n\n",
            "workers: &w  # n\n  new:\n    command: [x, -v]\n",
        ),
        (
            "workers: {\n  # n\n }\n",
            "workers: {new: {command: [x, -v]}\n  # n\n }\n",
        ),
        (
            "x-a: 1 # a\n# end\n",
            "x-a: 1 # a\n# end\n\nworkers:\n  new:\n    command: [x, -v]\n",
        ),
        ("{}\n", "{workers: {new: {command: [x, -v]}}}\n"),
        // By indentation.
        (
            "workers:\n  a:\n    command: y # c\n",
            "workers:\n  a:\n    command: y # c\n  new:\n    command: [x, -v]\n",
        ),
        // Without a newline at the end.
        (
            "workers:\n  a: {command: y}",
            "workers:\n  a: {command: y}\n  new:\n    command: [x, -v]\n",
        ),
        // The file's own steps, empty lines and comments.
        (
            "workers:\n    a:\n       command: y\n\n    b: *c\n    # of b\n\n# of x\nx: &c 1\n",
            "",
        ),
        (
            "x-c: &c {command: y}\nworkers:\n    a:\n       command: y\n\n    b: *c\n    # of b\n\n# of x\nx-d: 1\n",
            "x-c: &c {command: y}\nworkers:\n    a:\n       command: y\n\n    b: *c\n    # of b\n\n    new:\n       command: [x, -v]\n\n# of x\nx-d: 1\n",
        ),
        // CRLF.
        (
            "workers:\r\n  a:\r\n    command: y\r\nx-a: 1\r\n",
            "workers:\r\n  a:\r\n    command: y\r\n  new:\r\n    command: [x, -v]\r\nx-a: 1\r\n",
        ),
        // Block scalars, with and without their last newlines.
        (
            "workers:\n  a:\n    command:\n    - sh\n    - |\n      # no comment\n      ls\n\n# c\n",
            "workers:\n  a:\n    command:\n    - sh\n    - |\n      # no comment\n      ls\n  new:\n    command: [x, -v]\n\n# c\n",
        ),
        (
            "workers:\n  a:\n    command:\n    - |+\n      ls\n\n\nx-b: 1\n",
            "workers:\n  a:\n    command:\n    - |+\n      ls\n\n\n  new:\n    command: [x, -v]\nx-b: 1\n",
        ),
        // A document's marks, a byte order mark.
        (
            "--- # c\nworkers:\n  a: {command: y}\n... # end\n",
            "--- # c\nworkers:\n  a: {command: y}\n  new:\n    command: [x, -v]\n... # end\n",
        ),
        (
            "\u{feff}workers:\n  a: {command: y}\n",
            "\u{feff}workers:\n  a: {command: y}\n  new:\n    command: [x, -v]\n",
        ),
        // A merge key, an anchor on the map.
        (
            "x-w: &w {a: {command: y}}\nworkers: &all\n  <<: *w\n",
            "x-w: &w {a: {command: y}}\nworkers: &all\n  <<: *w\n  new:\n    command: [x, -v]\n",
        ),
        // By braces.
        (
            "workers: {a: {command: y}} # c\n",
            "workers: {a: {command: y}, new: {command: [x, -v]}} # c\n",
        ),
        (
            "workers: {\n  a: {command: y}, # , }\n  b: {command: z} # c\n } # end\n",
            "workers: {\n  a: {command: y}, # , }\n  b: {command: z},\n  new: {command: [x, -v]} # c\n } # end\n",
        ),
        (
            "workers: {\n  a: {command: y} # x\n  , # c\n }\n",
            "workers: {\n  a: {command: y} # x\n  ,\n  new: {command: [x, -v]}, # c\n }\n",
        ),
        // JSON.
        (
            "{\n  \"workers\": {\n    \"a\": {\"command\": \"y\"}\n  }\n}\n",
            "{\n  \"workers\": {\n    \"a\": {\"command\": \"y\"},\n    \"new\": {\"command\": [\"x\", \"-v\"]}\n  }\n}\n",
        ),
        (
            "{\"x-a\": 1}\n",
            "{\"x-a\": 1, \"workers\": {\"new\": {\"command\": [\"x\", \"-v\"]}}}\n",
        ),
        // Tabs where YAML allows them.
        (
            "workers:\n  a:\t{command: y}\t# c\n",
            "workers:\n  a:\t{command: y}\t# c\n  new:\n    command: [x, -v]\n",
        ),
    ] {
        if after.is_empty() {
            assert!(add(before, "new", &draft()).is_err(), "{before:?}");
        } else {
            assert_eq!(added(before), after, "{before:?}");
        }
    }
}

#[test]
fn a_worker_is_taken_out_with_its_own_comments_alone() {
    for (before, name, after) in [
        (
            "workers:\n  a: {command: y}\n  b: {command: z} # c\n",
            "b",
            "workers:\n  a: {command: y}\n",
        ),
        (
            "workers: # all\n  # of all\n  a:\n    command: y\n\n  # of b\n  b: {command: z}\n",
            "a",
            "workers: # all\n  # of all\n  # of b\n  b: {command: z}\n",
        ),
        (
            "workers:\n  a: {command: y}\n\n  # of b\n  # too\n  b:\n    command: z\n    # in b\n\n  # of c\n  c: {command: w}\n",
            "b",
            "workers:\n  a: {command: y}\n\n  # of c\n  c: {command: w}\n",
        ),
        (
            "workers:\n  a: {command: y}\n\n  # apart\n\n  b: {command: z}\n\nx-c: 1\n",
            "b",
            "workers:\n  a: {command: y}\n\n  # apart\n\nx-c: 1\n",
        ),
        (
            "workers:\n  a: {command: y}\n  b: {command: z}",
            "b",
            "workers:\n  a: {command: y}\n",
        ),
        (
            "workers: # c\n  a:\n    command: y\n# end\n",
            "a",
            "workers: {} # c\n# end\n",
        ),
        ("workers: &w\n  a: {command: y}\n", "a", "workers: &w {}\n"),
        ("workers:\r\n  a: {command: y}\r\n", "a", "workers: {}\r\n"),
        (
            "workers: {a: {command: y}, b: {command: z}, c: {command: w}}\n",
            "b",
            "workers: {a: {command: y}, c: {command: w}}\n",
        ),
        (
            "workers: {a: {command: y}, b: {command: z}}\n",
            "b",
            "workers: {a: {command: y}}\n",
        ),
        (
            "workers: {a: {command: y}, b: {command: z}}\n",
            "a",
            "workers: {b: {command: z}}\n",
        ),
        ("workers: {a: {command: y}} # c\n", "a", "workers: {} # c\n"),
        (
            "workers: { a: {command: y}, } # c\n",
            "a",
            "workers: { } # c\n",
        ),
        (
            "workers: {\n  \"a\": {command: y}, # of a\n  \"b\": {command: z} # of b\n }\n",
            "b",
            "workers: {\n  \"a\": {command: y} # of a\n }\n",
        ),
        (
            "{\n  \"workers\": {\n    \"a\": {\"command\": \"y\"},\n    \"b\": {\"command\": \"z\"}\n  }\n}\n",
            "b",
            "{\n  \"workers\": {\n    \"a\": {\"command\": \"y\"}\n  }\n}\n",
        ),
        (
            "{\n  \"workers\": {\n    \"a\": {\"command\": \"y\"},\n    \"b\": {\"command\": \"z\"}\n  }\n}\n",
            "a",
            "{\n  \"workers\": {\n    \"b\": {\"command\": \"z\"}\n  }\n}\n",
        ),
    ] {
        assert_eq!(removed(before, name), after, "{before:?}");
    }
}

#[test]
fn a_worker_is_replaced_where_it_stands() {
    for (before, name, after) in [
        (
            "workers:\n  # of a\n  a:\n    command: y # c\n    # in a\n\n  b: {command: z}\n",
            "a",
            "workers:\n  # of a\n  a:\n    command: [x, -v]\n    # in a\n\n  b: {command: z}\n",
        ),
        (
            "workers: {a: {command: y}, 'b' : {command: z} } # c\n",
            "b",
            "workers: {a: {command: y}, 'b': {command: [x, -v]} } # c\n",
        ),
    ] {
        assert_eq!(replaced(before, name), after, "{before:?}");
    }
}

#[test]
fn what_cannot_be_edited_rightly_is_refused_and_says_why() {
    let by_hand = |result: Result<String, EditError>| match result {
        Err(EditError::ByHand(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let alias = "x-w: &w {a: {command: y}}\nworkers: *w\n";
    let merged = "x-w: &w {a: {command: y}}\nworkers:\n  <<: *w\n";
    let anchored = "workers:\n  a: &a {command: y}\n  b: *a\n";
    for (result, part) in [
        (add(alias, "new", &draft()), "by an alias"),
        (remove(alias, "a"), "by an alias"),
        (remove(merged, "a"), "by an alias or a merge key"),
        (replace(merged, "a", &draft()), "by an alias or a merge key"),
        (
            remove(anchored, "a"),
            "an anchor within it is used elsewhere",
        ),
        (
            replace(anchored, "a", &draft()),
            "an anchor within it is used elsewhere",
        ),
        (
            add("workers: &w\n", "new", &draft()),
            "an anchor without a value",
        ),
        (add("{workers: }\n", "new", &draft()), "within braces"),
        (add("workers: [a]\n", "new", &draft()), "not a map"),
        (add("workers: a\n", "new", &draft()), "not a map"),
        (add("[a]\n", "new", &draft()), "not a map"),
        (add("~\n", "new", &draft()), "not a map"),
        (
            add("? workers\n: ? a\n  : {command: y}\n", "new", &draft()),
            "beginning of its line",
        ),
        (
            add("workers:\r  a: {command: y}\r", "new", &draft()),
            "carriage return",
        ),
        // An anchor that is defined twice means the nearer one.
        (
            remove(
                "x-a: &x {command: y}\nworkers:\n  a: &x {command: z}\n  b: *x\n",
                "a",
            ),
            "the meaning of something else",
        ),
    ] {
        let reason = by_hand(result);
        assert!(reason.contains(part), "{reason}");
    }
    let two = "workers: {a: {command: y}}\n";
    assert_eq!(add(two, "a", &draft()), Err(EditError::Present("a".into())));
    assert_eq!(
        add(merged, "a", &draft()),
        Err(EditError::Present("a".into()))
    );
    assert_eq!(remove(two, "b"), Err(EditError::Absent("b".into())));
    assert_eq!(
        replace(two, "b", &draft()),
        Err(EditError::Absent("b".into()))
    );
    for text in ["a: 1\n---\nb: 2\n", "a: [\n", "a:\n\tb: 1\n", "a: !t 1\n"] {
        let error = add(text, "new", &draft()).unwrap_err();
        assert!(matches!(error, EditError::Syntax(_)), "{error:?}");
    }
}

/// Files made of pieces that people write.
fn any_file() -> impl Strategy<Value = String> {
    let worker = prop_oneof![
        Just(" {command: y}".to_owned()),
        Just(" {command: [y, 'z', \"q\"]} # c".to_owned()),
        Just("\nIcommand: y # c\nI# in it\n".to_owned()),
        Just(" &NAME # c\nIcommand: [y,\nII z]\nI# in it\n".to_owned()),
        Just("\nIcommand:\nI- sh\nI- |\nIII# text\n\nIII{x\n".to_owned()),
        Just("\nIcommand: >+\nIIfolded\nIItext\n\n\n".to_owned()),
        Just("\nI<<: *base\nIenv:\nII A: 'it''s'\nII B:\n".to_owned()),
        Just(" *base # c".to_owned()),
    ];
    let comment = prop_oneof![
        Just(""),
        Just("\n"),
        Just("IN# c\n"),
        Just("\nIN# c\n\n"),
        Just("# out\n"),
    ];
    let entries = prop::collection::vec((comment, worker), 0..5);
    let head = prop_oneof![
        Just("x-base: &base {command: b}\n"),
        Just("# head\n\nx-base: &base\n  command: b\n"),
        Just("--- # c\nx-base: &base {command: b}\n\n"),
    ];
    let tail = prop_oneof![
        Just(""),
        Just("\nx-tail: 1\n"),
        Just("# end\n"),
        Just("... # end\n")
    ];
    (head, entries, tail, 1usize..5, any::<bool>()).prop_map(|(head, entries, tail, step, crlf)| {
        let mut text = head.to_owned();
        text += if entries.is_empty() {
            "workers: {}"
        } else {
            "workers: # all"
        };
        text.push('\n');
        let indent = " ".repeat(step);
        for (n, (comment, worker)) in entries.iter().enumerate() {
            text += &comment.replace("IN", &indent);
            let body = worker
                .replace('I', &indent.repeat(2))
                .replace("NAME", &format!("w{n}"));
            text += &format!("{indent}w{n}:{body}");
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        text += tail;
        if crlf {
            text.replace('\n', "\r\n")
        } else {
            text
        }
    })
}

/// A text without white space and the braces of an empty map.
fn bare(text: &str) -> String {
    text.replace("{}", "").split_whitespace().collect()
}

/// Whether `less` is `more` with something taken out; white space does not count.
fn is_within(less: &str, more: &str) -> bool {
    let more = bare(more);
    let mut rest = more.chars();
    bare(less).chars().all(|c| rest.any(|other| other == c))
}

proptest! {
    #[test]
    fn an_edit_changes_its_worker_and_nothing_else(text in any_file(), pick in 0usize..5) {
        prop_assume!(node::parse(&text).is_ok());
        match add(&text, "new", &draft()) {
            Ok(after) => {
                prop_assert!(is_within(&text, &after), "{text}\n{after}");
                // And out again: only empty lines and the braces of an empty map may differ.
                let back = remove(&after, "new").unwrap();
                prop_assert_eq!(bare(&back), bare(&text));
                let twice = add(&back, "new", &draft()).unwrap();
                prop_assert_eq!(bare(&twice), bare(&after));
            }
            Err(error) => prop_assert!(false, "{error}\n{text}"),
        }
        let name = format!("w{pick}");
        match remove(&text, &name) {
            Ok(after) => {
                prop_assert!(is_within(&after, &text), "{text}\n{after}");
                let line = format!("{name}:");
                let left = after.lines().any(|l| l.trim_start().starts_with(&line));
                prop_assert!(!left, "{text}\n{after}");
            }
            Err(EditError::Absent(_)) => {}
            // Empty lines behind it would become a part of what is before it.
            Err(EditError::ByHand(_)) if text.contains(">+") => {}
            Err(error) => prop_assert!(false, "{error}\n{text}"),
        }
    }

    #[test]
    fn any_text_is_edited_or_refused(text in "([a-c&*:<!\\[\\]{},'\"|>#?~ \r\n-]|workers:|a: b|\n  ){0,40}") {
        let added = add(&text, "new", &draft());
        let removed = remove(&text, "a");
        // Every edit is checked against its meaning; here, that none panics.
        prop_assert!(matches!(added, Ok(_) | Err(_)) && matches!(removed, Ok(_) | Err(_)));
    }
}
