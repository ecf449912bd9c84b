//! `${NAME}`, `${NAME:-default}` and `${NAME:?message}` from the host's environment.
//!
//! Only `${` begins a reference; a `$` before anything else is a `$`, and `$${` is a literal `${`.
//! A variable that is set but empty counts as unset for `:-` and `:?`, as in sh.

/// Replaces every reference in `text`.
pub(crate) fn interpolate(
    text: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
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
        result += &rest[..start];
        let body = &rest[start + 2..];
        let Some(end) = body.find('}') else {
            return Err(String::from(
                "`${` without its `}`; a literal `${` is written `$${`",
            ));
        };
        result += &value(&body[..end], lookup)?;
        rest = &body[end + 1..];
    }
    result += rest;
    Ok(result)
}

fn value(reference: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, rest) = match reference.find(':') {
        Some(colon) => reference.split_at(colon),
        None => (reference, ""),
    };
    if !is_name(name) {
        return Err(format!(
            "`${{{reference}}}` does not name a variable; a literal `${{` is written `$${{`"
        ));
    }
    if let Some(default) = rest.strip_prefix(":-") {
        return Ok(lookup(name)
            .filter(|v| !v.is_empty())
            .unwrap_or_else(|| default.to_owned()));
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
            "`${{{reference}}}` is not understood: write ${{{name}}}, ${{{name}:-default}} or \
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
        ] {
            let error = interpolate(text, &lookup).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
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
