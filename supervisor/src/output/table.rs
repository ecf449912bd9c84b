//! Columns for people.

/// Spaces between two columns.
const GAP: &str = "  ";

/// A cell: its text, and the text as it is to be written where that differs (colours).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    shown: Option<String>,
}

impl Cell {
    /// Text that is written in the way that `paint` makes of it, which must not take more room.
    pub fn painted(text: impl Into<String>, paint: impl FnOnce(&str) -> String) -> Self {
        let text = text.into();
        let shown = Some(paint(&text));
        Self { text, shown }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            shown: None,
        }
    }
}

/// Rows under a heading, each column as wide as its widest cell.
pub fn table<const N: usize>(heading: [&str; N], rows: Vec<[Cell; N]>) -> String {
    let heading = heading.map(Cell::from);
    let mut widths = [0; N];
    for row in std::iter::once(&heading).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    let mut out = String::new();
    for row in std::iter::once(&heading).chain(&rows) {
        let mut line = String::new();
        // What ends a line is not padded.
        let mut owed = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line += &std::mem::take(&mut owed);
            line += cell.shown.as_ref().unwrap_or(&cell.text);
            owed = " ".repeat(width - cell.text.chars().count()) + GAP;
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let bold = |text: &str| format!("\x1b[1m{text}\x1b[0m");
        let rows = vec![
            ["web".into(), Cell::painted("ready", bold), "x".into()],
            ["a-long-one".into(), "–".into(), "".into()],
        ];
        assert_eq!(
            table(["NAME", "STATE", "P"], rows),
            "NAME        STATE  P\n\
             web         \x1b[1mready\x1b[0m  x\n\
             a-long-one  –\n"
        );
    }
}
