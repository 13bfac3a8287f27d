//! Text with placeholders, compiled once and written without an allocation.

use std::ops::RangeInclusive;

use crate::population::Zipf;

/// Text that may differ from request to request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Template {
    parts: Vec<Part>,
}

/// Where the text will stand, and so which bytes may be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The request target: visible ASCII.
    Path,
    /// A header's value: no control bytes but the tab (RFC 9110 section 5.5).
    Header,
    /// Anything.
    Body,
}

/// What placeholders stand for.
#[derive(Debug)]
pub(crate) struct Values<'v> {
    pub(crate) client: u64,
    pub(crate) number: u64,
    /// Of the client; empty without tokens.
    pub(crate) token: &'v [u8],
    pub(crate) body_bytes: usize,
    pub(crate) random: &'v mut fastrand::Rng,
}

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    pub(crate) message: String,
    pub(crate) hint: String,
}

#[derive(Debug, Clone)]
enum Part {
    Literal(Vec<u8>),
    Client,
    Number,
    Random(RangeInclusive<u64>),
    Zipf(u64, Zipf),
    Pick(Vec<Box<[u8]>>),
    Uuid,
    Token,
    BodyBytes,
}

const KNOWN: &str =
    "placeholders: `{client}`, `{n}`, `{random:1..1000}`, `{zipf:1..1000}`, `{pick:a|b|c}`, `{uuid}`; `{{` is a brace";

impl Template {
    /// Placeholders are a brace and a letter; a brace before anything else (JSON) is itself, and so is `{{`.
    pub(crate) fn compile(text: &str, place: Place) -> Result<Self, Wrong> {
        let mut template = Self::default();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            let (before, from) = rest.split_at(at);
            template.push_literal(before.as_bytes());
            let inside = &from[1..];
            if let Some(after) = inside.strip_prefix('{') {
                template.push_literal(b"{");
                rest = after;
            } else if inside.starts_with(|c: char| c.is_ascii_alphabetic()) {
                let Some((placeholder, after)) = inside.split_once('}') else {
                    return Err(wrong(format!("`{{{}` has no closing `}}`", shortened(inside)), KNOWN));
                };
                template.parts.push(Part::compile(placeholder)?);
                rest = after;
            } else {
                template.push_literal(b"{");
                rest = inside;
            }
        }
        template.push_literal(rest.as_bytes());
        template.check(place)?;
        Ok(template)
    }

    pub(crate) fn push_literal(&mut self, bytes: &[u8]) {
        match self.parts.last_mut() {
            _ if bytes.is_empty() => {}
            Some(Part::Literal(literal)) => literal.extend_from_slice(bytes),
            _ => self.parts.push(Part::Literal(bytes.to_vec())),
        }
    }

    pub(crate) fn push(&mut self, other: Self) {
        for part in other.parts {
            match part {
                Part::Literal(bytes) => self.push_literal(&bytes),
                part => self.parts.push(part),
            }
        }
    }

    pub(crate) fn push_token(&mut self) {
        self.parts.push(Part::Token);
    }

    pub(crate) fn push_body_bytes(&mut self) {
        self.parts.push(Part::BodyBytes);
    }

    /// The text, if it is always the same.
    pub(crate) fn fixed(&self) -> Option<&[u8]> {
        match &self.parts[..] {
            [] => Some(b""),
            [Part::Literal(bytes)] => Some(bytes),
            _ => None,
        }
    }

    /// Appends the text. Allocates nothing once `out` is large enough.
    pub(crate) fn write(&self, values: &mut Values<'_>, out: &mut Vec<u8>) {
        for part in &self.parts {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Client => write_number(values.client, out),
                Part::Number => write_number(values.number, out),
                Part::Random(range) => write_number(values.random.u64(range.clone()), out),
                Part::Zipf(first, zipf) => write_number(first + zipf.sample(values.random), out),
                Part::Pick(choices) => out.extend_from_slice(&choices[values.random.usize(..choices.len())]),
                Part::Uuid => write_uuid(values.random, out),
                Part::Token => out.extend_from_slice(values.token),
                Part::BodyBytes => write_number(values.body_bytes as u64, out),
            }
        }
    }

    fn check(&self, place: Place) -> Result<(), Wrong> {
        let literals = self.parts.iter().flat_map(|part| match part {
            Part::Literal(bytes) => std::slice::from_ref(bytes).iter().map(|bytes| &bytes[..]).collect::<Vec<_>>(),
            Part::Pick(choices) => choices.iter().map(|choice| &choice[..]).collect(),
            _ => Vec::new(),
        });
        let bad = |byte: &u8| match place {
            Place::Path => !(0x21..=0x7e).contains(byte),
            Place::Header => *byte != b'\t' && (*byte < b' ' || *byte == 0x7f),
            Place::Body => false,
        };
        let Some(&byte) = literals.flatten().find(|byte| bad(byte)) else { return Ok(()) };
        let hint = match place {
            Place::Path => "in a path write it percent-encoded: a space is `%20`",
            _ => "a header's value is one line of text",
        };
        let shown = match byte {
            b' ' => "a space".into(),
            byte if byte.is_ascii() => format!("`{}`", byte.escape_ascii()),
            _ => "a character that is not ASCII".into(),
        };
        Err(wrong(format!("{shown} would break the request's framing"), hint))
    }
}

impl Part {
    fn compile(placeholder: &str) -> Result<Self, Wrong> {
        let (name, argument) = match placeholder.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (placeholder, None),
        };
        let unknown = |message: &str| Err(wrong(format!("{message} `{{{}}}`", shortened(placeholder)), KNOWN));
        match (name, argument) {
            ("client", None) => Ok(Self::Client),
            ("n", None) => Ok(Self::Number),
            ("uuid", None) => Ok(Self::Uuid),
            ("client" | "n" | "uuid", Some(_)) => unknown("nothing may follow the name in"),
            ("random", Some(range)) => match numbers(range) {
                Some((first, last)) => Ok(Self::Random(first..=last)),
                None => unknown("no range of numbers in"),
            },
            ("zipf", Some(argument)) => {
                let (range, exponent) = argument.split_once(':').unwrap_or((argument, "1"));
                let Some((first, last)) = numbers(range) else { return unknown("no range of numbers in") };
                let exponent = exponent.parse().ok().and_then(|exponent| Zipf::new(last - first + 1, exponent));
                match exponent {
                    Some(zipf) => Ok(Self::Zipf(first, zipf)),
                    None => unknown("the exponent is not a number above 0 and up to 10 in"),
                }
            }
            ("pick", Some(choices)) => {
                Ok(Self::Pick(choices.split('|').map(|choice| choice.as_bytes().into()).collect()))
            }
            ("random" | "zipf" | "pick", None) => unknown("something is missing after the name in"),
            _ => unknown("unknown placeholder"),
        }
    }
}

/// `1..1000`, both included.
fn numbers(range: &str) -> Option<(u64, u64)> {
    let (first, last) = range.split_once("..")?;
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last && last < u64::MAX).then_some((first, last))
}

fn wrong(message: String, hint: &str) -> Wrong {
    Wrong { message, hint: hint.into() }
}

fn shortened(text: &str) -> String {
    const SHOWN_MAX: usize = 40;
    let start: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_default).collect();
    if text.chars().nth(SHOWN_MAX).is_some() { start + "..." } else { start }
}

fn write_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// A random UUID (RFC 9562 section 5.4).
fn write_uuid(random: &mut fastrand::Rng, out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let bits = random.u128(..) & !(0xf << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62;
    for nibble in (0..32).rev() {
        out.push(HEX[(bits >> (nibble * 4)) as usize & 0xf]);
        if matches!(nibble, 24 | 20 | 16 | 12) {
            out.push(b'-');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str, seed: u64) -> String {
        let template = Template::compile(text, Place::Body).unwrap();
        let mut random = fastrand::Rng::with_seed(seed);
        let mut values = Values { client: 7, number: 41, token: b"", body_bytes: 0, random: &mut random };
        let mut out = Vec::new();
        template.write(&mut values, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn error(text: &str, place: Place) -> String {
        Template::compile(text, place).unwrap_err().message
    }

    #[test]
    fn placeholders_are_filled_and_other_braces_stay() {
        for (text, expected) in [
            ("", ""),
            ("/plain", "/plain"),
            ("/{client}/{n}", "/7/41"),
            (r#"{"id": {n}, "a": {}, "b": {"c": [{n}]}}"#, r#"{"id": 41, "a": {}, "b": {"c": [41]}}"#),
            ("{{n}", "{n}"),
            ("{pick:one}", "one"),
            ("{random:5..5}-{zipf:9..9}", "5-9"),
            ("{", "{"),
            ("a } b", "a } b"),
        ] {
            assert_eq!(written(text, 1), expected, "{text}");
        }
    }

    #[test]
    fn random_values_stay_in_their_range() {
        let mut picked = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let random: u64 = written("{random:10..12}", seed).parse().unwrap();
            assert!((10..=12).contains(&random), "seed {seed}: {random}");
            let zipf: u64 = written("{zipf:100..104:1.5}", seed).parse().unwrap();
            assert!((100..=104).contains(&zipf), "seed {seed}: {zipf}");
            picked.insert(written("{pick:a|b|}", seed));
        }
        assert_eq!(picked.into_iter().collect::<Vec<_>>(), ["", "a", "b"]);
    }

    #[test]
    fn a_uuid_is_of_version_4() {
        for seed in 0..50 {
            let uuid = written("{uuid}", seed);
            let lengths: Vec<_> = uuid.split('-').map(str::len).collect();
            assert_eq!(lengths, [8, 4, 4, 4, 12], "seed {seed}: {uuid}");
            assert_eq!(&uuid[14..15], "4", "seed {seed}: {uuid}");
            assert!("89ab".contains(&uuid[19..20]), "seed {seed}: {uuid}");
        }
        assert_ne!(written("{uuid}", 1), written("{uuid}", 2));
        assert_eq!(written("{uuid}", 1), written("{uuid}", 1));
    }

    #[test]
    fn bad_templates_are_errors() {
        for (text, message) in [
            ("/{id}", "unknown placeholder `{id}`"),
            ("/{random}", "something is missing after the name in `{random}`"),
            ("/{random:5..1}", "no range of numbers in `{random:5..1}`"),
            ("/{random:a..b}", "no range of numbers in `{random:a..b}`"),
            ("/{zipf:1..9:0}", "the exponent is not a number above 0 and up to 10 in `{zipf:1..9:0}`"),
            ("/{n:1}", "nothing may follow the name in `{n:1}`"),
            ("/{client", "`{client` has no closing `}`"),
        ] {
            assert_eq!(error(text, Place::Path), message, "{text}");
        }
        assert!(Template::compile("/{id}", Place::Path).unwrap_err().hint.starts_with("placeholders: `{client}`"));
    }

    #[test]
    fn bytes_that_would_break_framing_are_errors() {
        for (text, place, shown) in [
            ("/a b", Place::Path, "a space"),
            ("/a\r\nb", Place::Path, "`\\r`"),
            ("/ä", Place::Path, "a character that is not ASCII"),
            ("/{pick:a|b c}", Place::Path, "a space"),
            ("a\nb", Place::Header, "`\\n`"),
            ("a\0b", Place::Header, "`\\x00`"),
            ("{pick:a\r|b}", Place::Header, "`\\r`"),
        ] {
            assert_eq!(error(text, place), format!("{shown} would break the request's framing"), "{text:?}");
        }
        assert!(Template::compile("two words\tä", Place::Header).is_ok());
        assert!(Template::compile("any\r\nbytes\0", Place::Body).is_ok());
    }
}
