//! What a guest wrote, made safe for a terminal.
//!
//! A workload's bytes are untrusted: an escape sequence could move the cursor over earlier lines,
//! set the window's title or answer back as typed input. So:
//!
//! * tabs stay; every other control character (C0, DEL, C1) is shown as `\x1b` and the like;
//! * marks that reorder or hide text (bidirectional controls, line separators, byte order marks)
//!   are shown as `\u{202e}` and the like;
//! * bytes that are not UTF-8 are shown as U+FFFD;
//! * colours (SGR sequences, `ESC [ … m`) are kept where colours are wanted and dropped where they
//!   are not. Kept ones end with the line.

/// What becomes of well-formed colour sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    /// Kept, and reset at the end.
    Keep,
    /// Taken out.
    Drop,
}

const RESET: &str = "\x1b[0m";

/// Longest parameters of a colour sequence that is taken as one; real ones have at most 20 or so.
const MAX_SGR: usize = 48;

/// One line that a workload wrote, without its newline.
pub fn line(bytes: &[u8], colours: Colours) -> String {
    let text = String::from_utf8_lossy(bytes);
    // The line's end as a DOS or terminal program writes it.
    let mut rest = text.strip_suffix('\r').unwrap_or(&text);
    let mut out = String::with_capacity(rest.len() + 8);
    let mut coloured = false;
    while let Some(c) = rest.chars().next() {
        if c == '\x1b'
            && let Some(length) = sgr(rest)
        {
            if colours == Colours::Keep {
                out += &rest[..length];
                coloured = true;
            }
            rest = &rest[length..];
            continue;
        }
        push(&mut out, c);
        rest = &rest[c.len_utf8()..];
    }
    if coloured {
        out += RESET;
    }
    out
}

/// Text of ours that may quote a guest or a user's file: no colours, newlines stay.
pub fn text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' {
            out.push(c);
        } else {
            push(&mut out, c);
        }
    }
    out
}

/// The length of the colour sequence that the text begins with.
fn sgr(text: &str) -> Option<usize> {
    let body = text.strip_prefix("\x1b[")?;
    let end = body
        .bytes()
        .take(MAX_SGR + 1)
        .position(|b| !matches!(b, b'0'..=b'9' | b';' | b':'))?;
    (body.as_bytes()[end] == b'm').then_some(2 + end + 1)
}

fn push(out: &mut String, c: char) {
    match c {
        '\t' => out.push(c),
        c if c.is_control() => *out += &format!("\\x{:02x}", c as u32),
        '\u{061c}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}'
        | '\u{feff}' => *out += &format!("\\u{{{:x}}}", c as u32),
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn colours_are_kept_or_dropped() {
        let bytes = b"a \x1b[1;31mred\x1b[m b";
        assert_eq!(line(bytes, Colours::Keep), "a \x1b[1;31mred\x1b[m b\x1b[0m");
        assert_eq!(line(bytes, Colours::Drop), "a red b");
    }

    #[test]
    fn everything_else_is_shown() {
        for (bytes, expected) in [
            (&b"\x1b[2Jx"[..], "\\x1b[2Jx"),
            (b"\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            (b"\x1b[31", "\\x1b[31"),
            (b"\x1b", "\\x1b"),
            (b"a\tb\r", "a\tb"),
            (b"a\rb", "a\\x0db"),
            (b"nul\0", "nul\\x00"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            ("\u{9b}31m".as_bytes(), "\\x9b31m"),
            ("\u{202e}evil".as_bytes(), "\\u{202e}evil"),
            ("naïve ✓".as_bytes(), "naïve ✓"),
        ] {
            assert_eq!(line(bytes, Colours::Keep), expected);
        }
        let long = format!("\x1b[{}m", "1;".repeat(100));
        assert!(line(long.as_bytes(), Colours::Keep).starts_with("\\x1b[1;"));
    }

    proptest! {
        #[test]
        fn no_control_character_comes_through(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let shown = line(&bytes, Colours::Drop);
            prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\t'), "{shown:?}");
        }

        #[test]
        fn only_colours_come_through(text in "(\x1b|\\[|[0-9;:]|m|K|\\]|x|\u{9b}|\r){0,40}") {
            let mut shown = line(text.as_bytes(), Colours::Keep);
            while let Some(at) = shown.find('\x1b') {
                let length = sgr(&shown[at..]);
                prop_assert!(length.is_some(), "{shown:?}");
                shown.replace_range(at..at + length.unwrap(), "");
            }
            prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\t'));
        }
    }
}
