//! YAML text to a small tree in which every value and key knows its place.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput};

use crate::error::{Sink, Span};

/// Most levels of lists and maps within each other, aliases expanded.
const DEPTH_MAX: usize = 32;
/// Most values in one file, aliases expanded; long texts count once more per [`TEXT_UNIT`].
const NODES_MAX: usize = 2_000_000;
const TEXT_UNIT: usize = 64;

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    /// In the order of the file, without repeated keys.
    Map(Vec<Entry>),
    /// Its error has been reported.
    Invalid,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// A scalar.
    pub(crate) key: Node,
    pub(crate) value: Node,
}

#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) text: Cow<'static, str>,
    /// Written without quotes, so that it may be a number, a boolean or null.
    pub(crate) plain: bool,
    /// Where parts of it came from outside of the file.
    pub(crate) origin: Option<Box<Origin>>,
}

/// A scalar with `${env:}` or `${file:}` in it.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// As written: what messages show.
    pub(crate) written: String,
    /// With what came from outside made unreadable: what `/config` shows.
    pub(crate) redacted: String,
    /// What was put in, in bytes of `text`.
    pub(crate) inserted: Vec<Range<usize>>,
}

impl Scalar {
    /// The text for messages: never a secret.
    pub(crate) fn shown(&self) -> &str {
        self.origin.as_ref().map_or(&self.text, |origin| &origin.written)
    }

    pub(crate) fn is_null(&self) -> bool {
        self.plain && self.origin.is_none() && matches!(&*self.text, "" | "~" | "null")
    }
}

impl Node {
    /// The value that a default stands for: `{}`, a list of plain scalars or one of them.
    pub(crate) fn literal(text: &'static str, span: Span) -> Self {
        let list = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let value = match text {
            "{}" => Value::Map(Vec::new()),
            _ if let Some(words) = list => {
                let words = words.split(',').map(str::trim).filter(|word| !word.is_empty());
                Value::List(words.map(|word| Self::literal(word, span)).collect())
            }
            _ => Value::Scalar(Scalar { text: Cow::Borrowed(text), plain: true, origin: None }),
        };
        Self { span, value }
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    pub(crate) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub(crate) fn scalar(&self) -> Option<&Scalar> {
        match &self.value {
            Value::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|entry| entry.key() == key).map(|entry| &entry.value)
    }

    /// A few words for messages.
    pub(crate) fn found(&self) -> String {
        match &self.value {
            Value::Scalar(scalar) if scalar.is_null() => "nothing".into(),
            Value::Scalar(scalar) => format!("`{}`", shortened(scalar.shown())),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a section of keys".into(),
            Value::Invalid => "an error".into(),
        }
    }
}

impl Entry {
    pub(crate) fn key(&self) -> &str {
        self.key.scalar().map_or("", |scalar| &scalar.text)
    }
}

/// Text of any length, for a message.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    const SHOWN_MAX: usize = 80;
    let line = text.lines().next().unwrap_or("");
    match line.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => Cow::Owned(format!("{}…", line.get(..end).unwrap_or(""))),
        None if line.len() < text.trim_end().len() => Cow::Owned(format!("{line}…")),
        None => Cow::Borrowed(line),
    }
}

/// Reads one document. `None` after an error that leaves nothing to go on with; other errors go to the sink, and
/// their values become [`Value::Invalid`].
pub(crate) fn parse(text: &str, source: usize, sink: &mut Sink) -> Option<Node> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let parser = Parser::new_from_str(text);
    let mut reader = Reader { parser, source, end: end_of(text), sink, anchors: HashMap::new(), nodes: 0 };
    match reader.document() {
        Ok(node) => Some(node),
        Err(Stop::Reported) => None,
        Err(Stop::Syntax(error)) => {
            let marker = error.marker();
            let mut span = reader.span(marker.line(), marker.col());
            // Behind a NUL the parser loses count of the columns.
            let line = text.replace("\r\n", "\n");
            let line = line.split(['\n', '\r']).nth((span.line as usize).saturating_sub(1)).unwrap_or("");
            span.column = span.column.min(clamp(line.chars().count() + 1));
            let (message, hint) = explain(error.info(), text, marker.line());
            reader.sink.error(span, message, hint);
            None
        }
    }
}

/// Where the text ends: line and column. The parser may report a place beyond it.
fn end_of(text: &str) -> (u32, u32) {
    // What YAML takes for line breaks.
    let breaks = text.matches('\n').count() + text.matches('\r').count() - text.matches("\r\n").count();
    let last = text.rsplit(['\n', '\r']).next().unwrap_or("");
    (clamp(breaks + 1), clamp(last.chars().count() + 1))
}

fn clamp(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The parser's message and what to do about it.
fn explain(info: &str, text: &str, line: usize) -> (String, Option<String>) {
    let near = || text.lines().skip(line.saturating_sub(2)).take(2);
    let hint = if near().any(|line| line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t')) {
        Some("YAML is indented with spaces, never with tabs".into())
    } else if info.contains("flow") && near().any(|line| line.contains("${") || line.contains("/{")) {
        Some("within `{…}` and `[…]` a value with braces needs quotes: `\"${env:NAME}\"`, `\"/orders/{id}\"`".into())
    } else if info.contains("did not find expected") || info.contains("simple key") {
        Some("look at the indentation and the colons of this line and the one before it".into())
    } else {
        None
    };
    (format!("not valid YAML: {info}"), hint)
}

/// Why a file cannot be read on.
enum Stop {
    Reported,
    Syntax(ScanError),
}

impl From<ScanError> for Stop {
    fn from(error: ScanError) -> Self {
        Self::Syntax(error)
    }
}

/// What an anchor stands for.
struct Anchored {
    node: Node,
    nodes: usize,
    height: usize,
}

struct Reader<'t, 's> {
    parser: Parser<'t, StrInput<'t>>,
    source: usize,
    end: (u32, u32),
    sink: &'s mut Sink,
    anchors: HashMap<usize, Anchored>,
    /// Values so far.
    nodes: usize,
}

impl<'t> Reader<'t, '_> {
    fn next(&mut self) -> Result<(Event<'t>, Span), Stop> {
        match self.parser.next_event() {
            Some(event) => {
                let (event, span) = event?;
                Ok((event, self.span(span.start.line(), span.start.col())))
            }
            None => Ok((Event::StreamEnd, Span::whole(self.source))),
        }
    }

    fn span(&self, line: usize, characters_before: usize) -> Span {
        let (line, column) = (clamp(line), clamp(characters_before + 1)).min(self.end);
        Span { source: self.source, line, column }
    }

    fn stop<T>(&mut self, span: Span, message: &str, hint: &str) -> Result<T, Stop> {
        self.sink.error(span, message, (!hint.is_empty()).then(|| hint.into()));
        Err(Stop::Reported)
    }

    fn document(&mut self) -> Result<Node, Stop> {
        let mut root = None;
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => break,
                (Event::DocumentStart(_), span) if root.is_some() => {
                    return self.stop(span, "a second document", "a file is one document: remove the line `---`");
                }
                (Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing, _) => {}
                (event, span) => root = Some(self.node(event, span, 0)?.0),
            }
        }
        match root {
            Some(node) if node.scalar().is_none_or(|scalar| !scalar.is_null()) => Ok(node),
            _ => self.stop(Span::whole(self.source), "the file is empty", "start from configs/quickstart.yaml"),
        }
    }

    /// Reads the value that begins with `event`; gives also its height.
    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<(Node, usize), Stop> {
        self.count(1, span)?;
        let before = self.nodes;
        let (value, anchor, height, tag) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(text.len() / TEXT_UNIT, span)?;
                let plain = style == ScalarStyle::Plain;
                let scalar = Scalar { text: Cow::Owned(text.into_owned()), plain, origin: None };
                (Value::Scalar(scalar), anchor, 0, tag)
            }
            Event::SequenceStart(anchor, tag) => {
                let (items, height) = self.list(span, depth + 1)?;
                (Value::List(items), anchor, height + 1, tag)
            }
            Event::MappingStart(anchor, tag) => {
                let (entries, height) = self.map(span, depth + 1)?;
                (Value::Map(entries), anchor, height + 1, tag)
            }
            Event::Alias(anchor) => return self.alias(anchor, span, depth),
            _ => return self.stop(span, "not valid YAML: a value is missing", ""),
        };
        let value = match tag {
            None => value,
            Some(_) => {
                self.sink.error(span, "tags (`!…`) are not used here", Some("remove the tag".into()));
                Value::Invalid
            }
        };
        let node = Node { span, value };
        if anchor != 0 {
            let nodes = self.nodes - before + 1;
            self.count(nodes, span)?;
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, height });
        }
        Ok((node, height))
    }

    fn count(&mut self, nodes: usize, span: Span) -> Result<(), Stop> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            return self.stop(span, "too many values", "aliases are expanded: does one stand for very much?");
        }
        Ok(())
    }

    fn deeper(&mut self, depth: usize, span: Span) -> Result<(), Stop> {
        if depth > DEPTH_MAX {
            return self.stop(span, &format!("more than {DEPTH_MAX} levels within each other"), "");
        }
        Ok(())
    }

    fn alias(&mut self, anchor: usize, span: Span, depth: usize) -> Result<(Node, usize), Stop> {
        let Some(Anchored { nodes, height, .. }) = self.anchors.get(&anchor) else {
            return self.stop(span, "an alias within the value that it stands for", "");
        };
        let (nodes, height) = (*nodes, *height);
        self.count(nodes, span)?;
        self.deeper(depth + height, span)?;
        let node = self.anchors.get(&anchor).map(|anchored| anchored.node.clone());
        Ok((node.unwrap_or(Node { span, value: Value::Invalid }), height))
    }

    fn list(&mut self, span: Span, depth: usize) -> Result<(Vec<Node>, usize), Stop> {
        self.deeper(depth, span)?;
        let (mut items, mut height) = (Vec::new(), 0);
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok((items, height)),
                (event, span) => {
                    let (item, item_height) = self.node(event, span, depth)?;
                    height = height.max(item_height);
                    items.push(item);
                }
            }
        }
    }

    fn map(&mut self, span: Span, depth: usize) -> Result<(Vec<Entry>, usize), Stop> {
        self.deeper(depth, span)?;
        let (mut entries, mut height) = (Vec::new(), 0);
        loop {
            let key = match self.next()? {
                (Event::MappingEnd, _) => break,
                (event, span) => self.node(event, span, depth)?.0,
            };
            let (event, span) = self.next()?;
            let (value, value_height) = self.node(event, span, depth)?;
            height = height.max(value_height);
            match key.scalar() {
                Some(scalar) if scalar.plain && scalar.text == "<<" => self.sink.error(
                    key.span,
                    "merge keys (`<<`) are not part of YAML 1.2",
                    Some("use an alias for a whole value, or repeat the keys".into()),
                ),
                Some(_) => entries.push(Entry { key, value }),
                None => self.sink.error(key.span, format!("a key is text, not {}", key.found()), None),
            }
        }
        self.drop_repeated(&mut entries);
        Ok((entries, height))
    }

    /// Keeps the first of entries with the same key and reports the others.
    fn drop_repeated(&mut self, entries: &mut Vec<Entry>) {
        let mut first: HashMap<String, Span> = HashMap::with_capacity(entries.len());
        entries.retain(|entry| {
            let Some(at) = first.get(entry.key()) else {
                first.insert(entry.key().to_owned(), entry.key.span);
                return true;
            };
            let place = self.sink.place(*at);
            let message = format!("the key `{}` occurs twice, first at {place}", shortened(entry.key()));
            self.sink.error(entry.key.span, message, None);
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> String {
        let mut sink = Sink::new(vec!["f".into()]);
        let _ = parse(text, 0, &mut sink);
        sink.into_errors().to_string()
    }

    #[test]
    fn places_are_those_of_an_editor() {
        let mut sink = Sink::new(vec!["f".into()]);
        let root = parse("# x\na:\n  - b: 'ü'\n    ü: [1, two]\n", 0, &mut sink).unwrap();
        assert!(sink.is_clean());
        let item = &root.get("a").unwrap().items()[0];
        assert_eq!((item.span.line, item.span.column), (3, 5));
        let list = item.get("ü").unwrap();
        assert_eq!((list.span.line, list.span.column), (4, 8));
        assert_eq!((list.items()[1].span.line, list.items()[1].span.column), (4, 12));
    }

    #[test]
    fn no_place_is_beyond_the_text() {
        for text in ["a: {b: [c\n", "a: \"b", "a:\r b: {", "a: !!x\r\n\r\n b: [", "\u{feff}'ü", "*a"] {
            let mut sink = Sink::new(vec!["f".into()]);
            assert!(parse(text, 0, &mut sink).is_none(), "{text:?}");
            let errors = sink.into_errors();
            let place = (errors.list()[0].line, errors.list()[0].column);
            assert!((1, 1) <= place && place <= end_of(text.trim_start_matches('\u{feff}')), "{text:?}: {errors}");
        }
        let said = errors("%%%\u{fffd}\0\n\u{fffd}\u{fffd}%%%%%%\u{fffd}\0\0");
        assert!(said.starts_with("f:1:6: "), "{said}");
        let mut sink = Sink::new(vec!["f".into()]);
        let root = parse("? ", 0, &mut sink).unwrap();
        assert_eq!((root.entries()[0].key.span.line, root.entries()[0].value.span.line), (1, 1));
    }

    #[test]
    fn aliases_are_resolved() {
        let mut sink = Sink::new(vec!["f".into()]);
        let root = parse("a: &x { b: [1] }\nc: *x\n", 0, &mut sink).unwrap();
        assert_eq!(root.get("c").unwrap().get("b").unwrap().items().len(), 1);
        assert!(sink.is_clean());
    }

    #[test]
    fn laughs_are_bounded() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..20 {
            let alias = format!("*a{}", level - 1);
            text += &format!("a{level}: &a{level} [{}]\n", [alias.as_str(); 10].join(", "));
        }
        assert!(errors(&text).contains("too many values"));
    }

    #[test]
    fn depth_is_bounded_also_through_aliases() {
        assert!(errors(&"[".repeat(100)).contains("more than 32 levels"));
        let mut text = String::from("a0: &a0 [x]\n");
        for level in 1..100 {
            text += &format!("a{level}: &a{level} [*a{}]\n", level - 1);
        }
        assert!(errors(&text).contains("more than 32 levels"));
    }

    #[test]
    fn refuses_what_it_does_not_use() {
        assert_eq!(errors("a: 1\nb: 2\na: 3\n"), "f:3:1: the key `a` occurs twice, first at f:1:1\n1 error");
        assert!(errors("a: &x [*x]\n").contains("f:1:8: an alias within"));
        assert!(errors("a: !!str 1\n").contains("tags"));
        assert!(errors("a: 1\n---\nb: 1\n").contains("f:2:1: a second document"));
        assert!(errors("").starts_with("f: the file is empty\n"));
        assert!(errors("# nothing\n").starts_with("f: the file is empty\n"));
        assert!(errors("? [1]\n: 2\n").contains("a key is text, not a list"));
        assert!(errors("<<: {}\n").contains("merge keys"));
    }
}
