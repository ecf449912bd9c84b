//! How single values are written, so that every YAML reader takes a text for that text.

/// What the values around are written like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Without quotes where that is safe.
    Plain,
    /// As JSON.
    Json,
}

/// A text.
pub(super) fn text(text: &str, form: Form) -> String {
    match form {
        Form::Plain if is_plain(text) => text.to_owned(),
        Form::Plain if is_printable(text) && text.contains(['"', '\\']) => {
            format!("'{}'", text.replace('\'', "''"))
        }
        Form::Plain | Form::Json => double_quoted(text),
    }
}

/// A number, or a word of the workers file's own.
pub(super) fn word(word: &str, form: Form) -> String {
    let json = serde_json::from_str::<serde_json::Number>(word).is_ok();
    match form {
        Form::Plain => word.to_owned(),
        Form::Json if json => word.to_owned(),
        Form::Json => double_quoted(word),
    }
}

/// A map's key.
pub(super) fn key(key: &str, form: Form) -> String {
    text(key, form)
}

/// Whether a text may stand without quotes: letters, digits and a few signs that mean nothing to
/// YAML, and nothing that any version of YAML takes for a number, a truth value or nothing.
fn is_plain(text: &str) -> bool {
    let sign = |c: char| matches!(c, '_' | '.' | '/' | '+' | '=' | '-' | ' ');
    let first = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '/' | '-');
    text.starts_with(first)
        && !text.ends_with(' ')
        && text.chars().all(|c| c.is_alphanumeric() || sign(c))
        // `- x` is a list, and `---` begins a document.
        && !text.starts_with("- ")
        && !text.starts_with("---")
        && !text.starts_with("...")
        && text != "-"
        && !is_word_of_yaml(text)
        && !looks_like_a_number(text)
}

/// Of YAML 1.1 too, which many editors and tools still speak.
fn is_word_of_yaml(text: &str) -> bool {
    const WORDS: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    WORDS.contains(&text.to_ascii_lowercase().as_str())
}

fn looks_like_a_number(text: &str) -> bool {
    let bare = text.trim_start_matches(['+', '-']);
    let bare = bare.strip_prefix('.').unwrap_or(bare);
    let number = bare.starts_with(|c: char| c.is_ascii_digit())
        && bare.chars().all(|c| {
            c.is_ascii_hexdigit() || matches!(c, '_' | '.' | 'x' | 'X' | 'o' | 'O' | '+' | '-')
        });
    number || matches!(bare.to_ascii_lowercase().as_str(), "inf" | "nan")
}

fn is_printable(text: &str) -> bool {
    !text.chars().any(is_escaped)
}

/// Characters that YAML takes as line breaks or not at all, or that nobody sees.
fn is_escaped(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
        )
}

/// In double quotes with JSON's escapes, which are YAML's too.
fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\t' => out += "\\t",
            '\r' => out += "\\r",
            // All of these are in the basic plane.
            c if is_escaped(c) => out += &format!("\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_stand_where_they_must() {
        for plain in [
            "node",
            "server.js",
            "./api",
            "-c",
            "--port",
            "node server.js",
            "512MiB",
            "10s",
            "a=b",
            "on-failure",
            ".",
            "é",
            "/usr/bin/x",
            "http",
            "x1",
        ] {
            assert_eq!(text(plain, Form::Plain), plain);
        }
        for quoted in [
            "",
            " a",
            "a ",
            "3000",
            "1.10",
            "1e3",
            "0x1f",
            "-1",
            "+1",
            ".5",
            "1_000",
            "10.0.0.1",
            "true",
            "No",
            "ON",
            "y",
            "null",
            "NULL",
            "~",
            "-",
            "- x",
            "---",
            "...",
            "a: b",
            "a #b",
            "8080:80",
            "a,b",
            "{a}",
            "[a]",
            "*a",
            "&a",
            "!a",
            "|",
            ">",
            "%a",
            "@a",
            "`a`",
            "?",
            ".inf",
            ".NaN",
            "=",
            "a:",
            "2024-01-01",
            "'a'",
            "$HOME",
            "a*b",
        ] {
            let written = text(quoted, Form::Plain);
            assert_eq!(written, format!("\"{quoted}\""));
        }
        assert_eq!(text("a \"b\"", Form::Plain), "'a \"b\"'");
        assert_eq!(text("it's \\d", Form::Plain), "'it''s \\d'");
        assert_eq!(
            text("a\nb\t\u{1b}\u{2028}", Form::Plain),
            "\"a\\nb\\t\\u001b\\u2028\""
        );
        assert_eq!(text("node", Form::Json), "\"node\"");
        assert_eq!(word("2", Form::Json), "2");
        assert_eq!(word("512MiB", Form::Json), "\"512MiB\"");
        assert_eq!(word("512MiB", Form::Plain), "512MiB");
    }
}
