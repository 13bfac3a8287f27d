//! Text in columns.

/// Where a cell stands in its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows as lines, each column as wide as its widest cell, two spaces between columns, none at a line's end. Rows
/// may have fewer cells than there are columns; columns past `align` stand to the right.
pub(crate) fn columns(rows: &[Vec<String>], align: &[Align]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| wide(cell)).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            let space = " ".repeat(width - wide(cell));
            match align.get(column) {
                Some(Align::Left) => format!("{cell}{space}"),
                _ => format!("{space}{cell}"),
            }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// At most `width` characters, with a mark where something was cut; control characters, which could move the
/// terminal's cursor, are replaced.
pub(crate) fn cell(text: &str, width: usize) -> String {
    let clean = |c: char| if c.is_control() { '?' } else { c };
    if wide(text) <= width {
        return text.chars().map(clean).collect();
    }
    text.chars().take(width.saturating_sub(3)).map(clean).chain("...".chars()).collect()
}

/// Words on lines of at most `width` characters; every line but the first is indented.
pub(crate) fn wrapped(text: &str, width: usize, indent: usize) -> String {
    let mut lines = String::new();
    let mut length = 0;
    for word in text.split_whitespace() {
        if length > 0 && length + 1 + wide(word) > width {
            lines.push('\n');
            lines.push_str(&" ".repeat(indent));
            length = indent;
        } else if length > 0 {
            lines.push(' ');
            length += 1;
        }
        lines.push_str(&cell(word, usize::MAX));
        length += wide(word);
    }
    lines.push('\n');
    lines
}

fn wide(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cells: &[&str]) -> Vec<String> {
        cells.iter().map(|cell| (*cell).to_owned()).collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [row(&["name", "p50", "max"]), row(&["a", "1.5 ms", "2 s"]), row(&["über", "", ""]), row(&["long name"])];
        let text = columns(&rows, &[Align::Left, Align::Right]);
        assert_eq!(text, "name          p50  max\na          1.5 ms  2 s\nüber\nlong name\n");
        assert_eq!(columns(&[], &[]), "");
    }

    #[test]
    fn cells_are_cut_and_harmless() {
        assert_eq!(cell("GET /products", 20), "GET /products");
        assert_eq!(cell("GET /products/of/the/day", 16), "GET /products...");
        assert_eq!(cell("a\x1b[2Jb\n", 20), "a?[2Jb?");
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrapped("one two three four", 9, 2), "one two\n  three\n  four\n");
        assert_eq!(wrapped("incomprehensibilities", 9, 2), "incomprehensibilities\n");
    }
}
