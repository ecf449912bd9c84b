//! `${NAME}`, `${NAME:-default}` and `${NAME:?message}` from the host's environment.
//!
//! Only `${` begins a reference; a `$` before anything else is a `$`, and `$${` is a literal `${`.
//! A variable that is set but empty counts as unset for `:-` and `:?`, as in sh. A default is a text
//! like any other: references in it are replaced if it is needed, and checked if it is not, so that
//! a file is not sound on one host and at fault on the next. A message is shown as it stands.
//!
//! No fault repeats more of the text than the name of a variable and a `:?` message: the rest may be
//! part of a secret.

/// How many references may stand within one another.
const MAX_DEPTH: usize = 8;

/// Replaces every reference in `text`.
pub(crate) fn interpolate(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    replace(text, lookup, 0)
}

/// The same for a text within `depth` references.
fn replace(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
    depth: usize,
) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        if rest[..start].ends_with('$') {
            result += &rest[..start - 1];
            result += "${";
            rest = &rest[start + 2..];
            continue;
        }
        if depth == MAX_DEPTH {
            return Err(format!(
                "references stand within another more than {MAX_DEPTH} deep: take some apart"
            ));
        }
        result += &rest[..start];
        let body = &rest[start + 2..];
        let Some(end) = closing(body) else {
            return Err(String::from(
                "`${` without its `}`; a literal `${` is written `$${`",
            ));
        };
        result += &value(&body[..end], lookup, depth + 1)?;
        rest = &body[end + 1..];
    }
    result += rest;
    Ok(result)
}

/// Where the `}` of a reference is whose `${` stands before `body`.
fn closing(body: &str) -> Option<usize> {
    let bytes = body.as_bytes();
    let (mut open, mut at) = (1_usize, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'}' => {
                open -= 1;
                if open == 0 {
                    return Some(at);
                }
            }
            b'$' if bytes[at..].starts_with(b"$${") => at += 2,
            b'$' if bytes[at..].starts_with(b"${") => {
                open += 1;
                at += 1;
            }
            _ => {}
        }
        at += 1;
    }
    None
}

fn value(
    reference: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
    depth: usize,
) -> Result<String, String> {
    let (name, rest) = match reference.find(':') {
        Some(colon) => reference.split_at(colon),
        None => (reference, ""),
    };
    if !is_name(name) {
        return Err(String::from(
            "what follows `${` does not name a variable; a literal `${` is written `$${`",
        ));
    }
    if let Some(default) = rest.strip_prefix(":-") {
        return match lookup(name).filter(|v| !v.is_empty()) {
            Some(value) => {
                // Only what is written can be wrong here: every variable counts as set.
                replace(default, &|_| Some(String::from("set")), depth)?;
                Ok(value)
            }
            None => replace(default, lookup, depth),
        };
    }
    if let Some(message) = rest.strip_prefix(":?") {
        return lookup(name).filter(|v| !v.is_empty()).ok_or_else(|| {
            let message = if message.is_empty() {
                "it is required"
            } else {
                message
            };
            format!("{name} is not set in the environment: {message}")
        });
    }
    if !rest.is_empty() {
        return Err(format!(
            "the reference to {name} is not understood: write ${{{name}}}, ${{{name}:-default}} or \
             ${{{name}:?message}}"
        ));
    }
    lookup(name).ok_or_else(|| {
        format!(
            "{name} is not set in the environment: set it, or write ${{{name}:-}} for an empty \
             value"
        )
    })
}

/// Whether a text is a portable name of an environment variable (POSIX.1 §8.1, either case).
pub(crate) fn is_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "A" => Some("1".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn references_are_replaced() {
        for (text, expected) in [
            ("x", "x"),
            ("${A}", "1"),
            ("a${A}b${A}", "a1b1"),
            ("${B:-two}", "two"),
            ("${A:-two}", "1"),
            ("${EMPTY}", ""),
            ("${EMPTY:-e}", "e"),
            ("${B:-}", ""),
            ("${A:?m}", "1"),
            ("$A $ $$ 5$", "$A $ $$ 5$"),
            ("$${A}", "${A}"),
            ("${B:-http://x}", "http://x"),
            // A default is read as any other text.
            ("${B:-${C:-deep}}", "deep"),
            ("${B:-${A}}", "1"),
            ("<${B:-a${C:-b${A}c}d}>", "<ab1cd>"),
            ("${B:-${EMPTY:-${C:-}}}x", "x"),
            ("${A:-${C}}", "1"),
            ("${B:-$${C}}", "${C}"),
            ("${B:-{x}}", "{x}"),
            ("${A:?see ${C}}", "1"),
        ] {
            assert_eq!(
                interpolate(text, &lookup).as_deref(),
                Ok(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn faults_name_the_variable() {
        for (text, part) in [
            ("${B}", "B is not set"),
            ("${B:?set it to the token}", "set it to the token"),
            ("${EMPTY:?}", "EMPTY is not set"),
            ("${A", "without its `}`"),
            ("${}", "does not name"),
            ("${1A}", "does not name"),
            ("${A:+x}", "not understood"),
            ("${B:-${C}}", "C is not set"),
            ("${B:-${C:?ask Ann}}", "ask Ann"),
            ("${B:-${C}", "without its `}`"),
            // Wrong whether or not the default is needed today.
            ("${A:-${1C}}", "does not name"),
            ("${A:-${B:-${C:+x}}}", "not understood"),
            // What a variable holds is not told.
            ("${B:?see ${A}}", "see ${A}"),
        ] {
            let error = interpolate(text, &lookup).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn defaults_nest_to_a_bound() {
        let nested = |depth: usize| format!("{}x{}", "${B:-".repeat(depth), "}".repeat(depth));
        assert_eq!(interpolate(&nested(MAX_DEPTH), &lookup).as_deref(), Ok("x"));
        for depth in [MAX_DEPTH + 1, 100_000] {
            let error = interpolate(&nested(depth), &lookup).unwrap_err();
            assert!(error.contains("within another"), "{error}");
        }
    }

    #[test]
    fn faults_repeat_no_text_that_may_be_secret() {
        for text in ["${hun ter2}", "${A:+hunter2}", "${B:-${C:=hunter2}}"] {
            let error = interpolate(text, &lookup).unwrap_err();
            assert!(!error.contains("ter2"), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[A-C${}:?é -]{0,30}") {
            prop_assert!(matches!(interpolate(&text, &lookup), Ok(_) | Err(_)));
        }

        #[test]
        fn text_without_references_stays(text in "[^$]{0,40}") {
            prop_assert_eq!(interpolate(&text, &lookup), Ok(text));
        }
    }
}
