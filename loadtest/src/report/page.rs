//! A page that needs nothing else: style and script are in it, and its policy forbids it to load anything.

use std::fmt::Write;

/// Text that is HTML. It is made here and in `svg` only, and both escape whatever they are given, so that no name in
/// a scenario and no header of a target can become a part of the page.
#[derive(Debug, Clone, Default)]
pub(crate) struct Html(String);

/// A part of a page, with its heading.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    pub(crate) title: String,
    pub(crate) body: Html,
}

/// The whole page. `lead` is the sentence below its heading.
pub(crate) fn page(title: &str, lead: &str, sections: &[Section]) -> String {
    let mut body = String::new();
    for section in sections {
        let _ = write!(body, "<section>\n<h2>{}</h2>\n{}</section>\n", escape(&section.title), section.body.0);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" \
         content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta name=\"generator\" content=\"loadtest {version}\">\n\
         <title>{title}</title>\n<style>\n{style}</style>\n</head>\n\
         <body>\n<header>\n<h1>{title}</h1>\n<p>{lead}</p>\n</header>\n<main>\n{body}</main>\n\
         <script>\n{script}</script>\n</body>\n</html>\n",
        version = env!("CARGO_PKG_VERSION"),
        title = escape(title),
        lead = escape(lead),
        style = include_str!("page.css"),
        script = include_str!("page.js"),
    )
}

impl Section {
    pub(crate) fn new(title: &str, parts: impl IntoIterator<Item = Html>) -> Self {
        Self { title: title.to_owned(), body: Html::all(parts) }
    }
}

impl Html {
    pub(crate) fn paragraph(text: &str) -> Self {
        Self(format!("<p>{}</p>\n", escape(text)))
    }

    /// What the reader must not overlook.
    pub(crate) fn warnings(texts: &[String]) -> Self {
        let items: String = texts.iter().map(|text| format!("<li>{}</li>\n", escape(text))).collect();
        if items.is_empty() { Self::default() } else { Self(format!("<ul class=\"warnings\">\n{items}</ul>\n")) }
    }

    /// The figures that matter most, large: name, figure, remark.
    pub(crate) fn tiles(tiles: &[(&str, String, String)]) -> Self {
        let tile = |(name, figure, remark): &(&str, String, String)| {
            let (name, figure, remark) = (escape(name), escape(figure), escape(remark));
            format!("<div><dt>{name}</dt><dd><strong>{figure}</strong> {remark}</dd></div>\n")
        };
        Self(format!("<dl class=\"tiles\">\n{}</dl>\n", tiles.iter().map(tile).collect::<String>()))
    }

    pub(crate) fn facts(facts: &[(&str, String)]) -> Self {
        let fact = |(name, text): &(&str, String)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(text));
        Self(format!("<dl class=\"facts\">\n{}</dl>\n", facts.iter().map(fact).collect::<String>()))
    }

    /// The first cell of a row is its heading. Cells after it are figures.
    pub(crate) fn table<'a>(caption: &str, head: &[&str], rows: impl IntoIterator<Item = &'a [String]>) -> Self {
        let rows = rows.into_iter().map(|cells| table_row("", cells)).collect::<String>();
        Self(format!("<div class=\"scroll\">\n{}</div>\n", table(caption, head, &rows)))
    }

    /// Side by side where there is room.
    pub(crate) fn side_by_side(parts: impl IntoIterator<Item = Html>) -> Self {
        Self(format!("<div class=\"side\">\n{}</div>\n", Self::all(parts).0))
    }

    pub(crate) fn all(parts: impl IntoIterator<Item = Html>) -> Self {
        Self(parts.into_iter().map(|part| part.0).collect())
    }

    /// For `svg`, which escapes by itself.
    pub(super) fn from_markup(markup: String) -> Self {
        Self(markup)
    }
}

/// `rows` is markup.
pub(super) fn table(caption: &str, head: &[&str], rows: &str) -> String {
    let head: String = head.iter().map(|cell| format!("<th scope=\"col\">{}</th>", escape(cell))).collect();
    let caption = escape(caption);
    format!(
        "<table>\n<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
    )
}

/// `attributes` is markup.
pub(super) fn table_row(attributes: &str, cells: &[String]) -> String {
    let mut row = format!("<tr{attributes}>");
    for (at, cell) in cells.iter().enumerate() {
        let cell = escape(cell);
        row += &if at == 0 { format!("<th scope=\"row\">{cell}</th>") } else { format!("<td>{cell}</td>") };
    }
    row + "</tr>\n"
}

/// For text and for attributes in double quotes. Control characters, which a page may not hold, are replaced.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if c.is_control() && c != '\n' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_becomes_markup() {
        let bad = "</title><script>alert('1')</script>\"&\u{1b}";
        let texts = vec![bad.to_owned()];
        let section = Section::new(
            bad,
            [
                Html::paragraph(bad),
                Html::warnings(&texts),
                Html::tiles(&[(bad, bad.to_owned(), bad.to_owned())]),
                Html::facts(&[(bad, bad.to_owned())]),
                Html::table(bad, &[bad], [texts.as_slice()]),
            ],
        );
        let page = page(bad, bad, &[section]);
        assert_eq!(page.matches("<script>").count(), 1, "its own");
        assert_eq!(page.matches("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}").count(), 14);
        assert!(!page.contains('\u{1b}'));
    }

    #[test]
    fn no_warnings_leave_no_box() {
        assert_eq!(Html::warnings(&[]).0, "");
    }
}
