//! The tree as YAML, with what came from outside made unreadable.

use crate::tree::{Node, Scalar, Value};

/// The document as it was read, without its secrets, comments and anchors.
pub(crate) fn redacted(root: &Node) -> String {
    let mut out = String::new();
    emit(root, 0, &mut out);
    out
}

/// A value that does not go on the line of its key.
fn emit(node: &Node, indent: usize, out: &mut String) {
    match &node.value {
        Value::Map(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                // The first key of a list's item stands behind the dash.
                if index > 0 || out.is_empty() || out.ends_with('\n') {
                    pad(indent, out);
                }
                out.push_str(&entry.key.scalar().map_or_else(String::new, scalar));
                out.push(':');
                value(&entry.value, indent + 2, out);
            }
        }
        Value::List(items) => {
            for item in items {
                pad(indent, out);
                out.push('-');
                match &item.value {
                    Value::Map(entries) if !entries.is_empty() => {
                        out.push(' ');
                        emit(item, indent + 2, out);
                    }
                    _ => value(item, indent + 2, out),
                }
            }
        }
        Value::Scalar(_) | Value::Invalid => value(node, indent, out),
    }
}

/// What follows a key or a dash.
fn value(node: &Node, indent: usize, out: &mut String) {
    let inline = match &node.value {
        Value::Scalar(text) => scalar(text),
        Value::Map(entries) if entries.is_empty() => "{}".into(),
        Value::List(items) if items.is_empty() => "[]".into(),
        Value::Invalid => "null".into(),
        Value::Map(_) | Value::List(_) => {
            out.push('\n');
            return emit(node, indent, out);
        }
    };
    out.push(' ');
    out.push_str(&inline);
    out.push('\n');
}

fn pad(indent: usize, out: &mut String) {
    out.extend(std::iter::repeat_n(' ', indent));
}

/// Without quotes where it was written so; else in double quotes, whose escapes are those of JSON.
fn scalar(scalar: &Scalar) -> String {
    match &scalar.origin {
        None if scalar.plain && stays_plain(&scalar.text) => scalar.text.to_string(),
        None => serde_json::Value::from(&*scalar.text).to_string(),
        Some(origin) => serde_json::Value::from(origin.redacted.as_str()).to_string(),
    }
}

/// Whether a scalar that was written without quotes reads the same on a line of its own: within `{…}` and `[…]` the parser
/// lets more pass.
fn stays_plain(text: &str) -> bool {
    !text.contains('\n') && !text.starts_with(|first: char| "|>&*!%@`#,[]{}\"'".contains(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Sink;
    use crate::expand::expand;
    use crate::tree::parse;

    fn round(text: &str) -> String {
        let mut sink = Sink::new(vec!["f".into()]);
        let mut root = parse(text, 0, &mut sink).unwrap();
        expand(&mut root, &|_| Some("hunter2".into()), &mut sink);
        assert!(sink.is_clean());
        redacted(&root)
    }

    #[test]
    fn is_yaml_again_and_keeps_no_secret() {
        let text = "a: 1 # one\nb: [x, {c: \"d: e\", f: []}, [g, [h]]]\ni: {}\n\"j\\n\": 'Bearer ${env:TOKEN}'\nk: &k |\n  two\n  lines\nl: *k\n";
        let once = round(text);
        let expected = "a: 1\nb:\n  - x\n  - c: \"d: e\"\n    f: []\n  -\n    - g\n    -\n      - h\ni: {}\n\"j\\n\": \"Bearer [redacted]\"\nk: \"two\\nlines\\n\"\nl: \"two\\nlines\\n\"\n";
        assert_eq!(once, expected);
        assert_eq!(round(&once), once);
        // In a flow mapping a bar is text to the parser.
        let once = round("{a: |\nb}\n");
        assert_eq!(round(&once), once);
    }
}
