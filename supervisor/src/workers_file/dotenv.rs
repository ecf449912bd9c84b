//! The files that `env_file:` names: `NAME=value` lines.
//!
//! Blank lines and lines that begin with `#` are skipped; `export ` before a name is allowed. An
//! unquoted value ends at the line's end or at ` #`; in single quotes everything is literal; in
//! double quotes `\n \r \t \" \\ \$` are escapes. Quoted values may span lines. Nothing is
//! interpolated: secrets often hold a `$`. No fault repeats a value.

use super::interpolate::is_name;

/// A fault at a line, counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DotenvFault {
    pub(crate) line: usize,
    pub(crate) message: &'static str,
}

/// The variables in the file's order; a later one of the same name wins with the caller.
pub(crate) fn parse(text: &str) -> (Vec<(String, String)>, Vec<DotenvFault>) {
    let mut variables = Vec::new();
    let mut faults = Vec::new();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let mut fault = |message| {
            faults.push(DotenvFault {
                line: index + 1,
                message,
            });
        };
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let Some((name, value)) = line.split_once('=') else {
            fault("no `=`: a line is written NAME=value");
            continue;
        };
        let name = name.trim();
        if !is_name(name) {
            fault("what stands before `=` is not a name (letters, digits and `_`)");
            continue;
        }
        let value = value.trim_start();
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => {
                let mut body = value[1..].to_owned();
                loop {
                    match closed(&body, quote) {
                        Closed::At(value, rest) if rest.is_empty() || rest.starts_with('#') => {
                            break Some(value);
                        }
                        Closed::At(..) => {
                            fault("something follows the closing quote");
                            break None;
                        }
                        Closed::No => match lines.next() {
                            Some((_, next)) => {
                                body.push('\n');
                                body += next;
                            }
                            None => {
                                fault("the quote is never closed");
                                break None;
                            }
                        },
                    }
                }
            }
            Some('#') => Some(String::new()),
            _ => {
                let end = value.find(" #").unwrap_or(value.len());
                Some(value[..end].trim_end().to_owned())
            }
        };
        match value {
            Some(value) if value.contains('\0') => fault("the value holds a NUL character"),
            Some(value) => variables.push((name.to_owned(), value)),
            None => {}
        }
    }
    (variables, faults)
}

enum Closed {
    /// The value, and what follows the closing quote.
    At(String, String),
    No,
}

fn closed(body: &str, quote: char) -> Closed {
    let mut value = String::new();
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c == quote {
            return Closed::At(value, chars.as_str().trim().to_owned());
        }
        if c == '\\' && quote == '"' {
            match chars.next() {
                Some('n') => value.push('\n'),
                Some('r') => value.push('\r'),
                Some('t') => value.push('\t'),
                Some(c @ ('"' | '\\' | '$')) => value.push(c),
                Some(c) => {
                    value.push('\\');
                    value.push(c);
                }
                None => return Closed::No,
            }
        } else {
            value.push(c);
        }
    }
    Closed::No
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_quotes_and_comments() {
        let text = "\
# comment
A=1
export B = two words # comment
C='$literal # \\n'
D=\"line\\none \\\"q\\\"\" # comment
E=
F=a#b
G=\"first
second\"
  H=x=y
I=#none
";
        let (variables, faults) = parse(text);
        assert_eq!(faults, []);
        let expected = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "$literal # \\n"),
            ("D", "line\none \"q\""),
            ("E", ""),
            ("F", "a#b"),
            ("G", "first\nsecond"),
            ("H", "x=y"),
            ("I", ""),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(variables, expected);
    }

    #[test]
    fn every_fault_has_its_line() {
        let (variables, faults) = parse("A\n1B=x\nC='x' y\nD=\"never\nE=1\n");
        assert_eq!(variables, []);
        let lines: Vec<usize> = faults.iter().map(|f| f.line).collect();
        assert_eq!(lines, [1, 2, 3, 4]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\PC\n\"'\\\\=# ]{0,200}") {
            let (variables, _) = parse(&text);
            prop_assert!(variables.iter().all(|(name, _)| is_name(name)));
        }

        #[test]
        fn double_quoted_values_survive(value in "[\\PC\n]{0,40}") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let (variables, faults) = parse(&format!("A=\"{escaped}\"\n"));
            prop_assert_eq!(faults, vec![]);
            prop_assert_eq!(variables, vec![("A".to_owned(), value)]);
        }
    }
}
