//! Ranges of media types.

use std::fmt;

/// `application/json`, `image/*`, or `application/*+json` for all with this suffix (RFC 6838 section 4.2.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaRange {
    kind: Box<str>,
    subtype: Subtype,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Subtype {
    Any,
    Suffix(Box<str>),
    Exact(Box<str>),
}

impl MediaRange {
    /// `None` where it is none of the three forms. Any case; parameters have no place in it.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, subtype) = text.split_once('/')?;
        let subtype = match subtype.strip_prefix('*') {
            Some("") => Subtype::Any,
            Some(rest) => {
                Subtype::Suffix(rest.strip_prefix('+').filter(|suffix| is_name(suffix))?.to_lowercase().into())
            }
            None => Subtype::Exact(Some(subtype).filter(|name| is_name(name))?.to_lowercase().into()),
        };
        is_name(kind).then(|| Self { kind: kind.to_lowercase().into(), subtype })
    }

    /// Whether a `Content-Type` (RFC 9110 section 8.3), with or without parameters, lies in the range.
    pub fn matches(&self, value: &[u8]) -> bool {
        let essence = value.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let Some((kind, subtype)) = memchr::memchr(b'/', essence).and_then(|at| essence.split_at_checked(at)) else {
            return false;
        };
        let subtype = subtype.get(1..).unwrap_or_default();
        let is_token = |text: &[u8]| std::str::from_utf8(text).is_ok_and(is_name);
        kind.eq_ignore_ascii_case(self.kind.as_bytes())
            && match &self.subtype {
                Subtype::Any => is_token(subtype),
                Subtype::Exact(name) => subtype.eq_ignore_ascii_case(name.as_bytes()),
                Subtype::Suffix(suffix) => {
                    let at = subtype.iter().rposition(|byte| *byte == b'+');
                    let split = at.and_then(|at| subtype.split_at_checked(at));
                    split.is_some_and(|(name, end)| {
                        is_token(name) && end.get(1..).is_some_and(|end| end.eq_ignore_ascii_case(suffix.as_bytes()))
                    })
                }
            }
    }
}

/// RFC 6838 section 4.2.
fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte);
    (1..=127).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for MediaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.subtype {
            Subtype::Any => write!(f, "{}/*", self.kind),
            Subtype::Suffix(suffix) => write!(f, "{}/*+{suffix}", self.kind),
            Subtype::Exact(name) => write!(f, "{}/{name}", self.kind),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_contain_what_they_say() {
        for (range, good, bad) in [
            (
                "application/json",
                &["application/json", "Application/JSON; charset=utf-8", " application/json ;x"][..],
                &[
                    "application/jsonx",
                    "application/json/x",
                    "text/json",
                    "application",
                    "",
                    "application/json,text/html",
                ][..],
            ),
            ("image/*", &["image/png", "image/svg+xml"], &["image/", "images/png", "image", "image/a/b", "image/*"]),
            (
                "application/*+json",
                &["application/problem+json", "application/a+b+JSON;q=1"],
                &["application/json", "application/+json", "application/x+jsonp", "text/x+json"],
            ),
        ] {
            let parsed = MediaRange::parse(range).unwrap();
            assert_eq!(parsed.to_string(), range);
            assert!(good.iter().all(|value| parsed.matches(value.as_bytes())), "{range}");
            for value in bad {
                assert!(!parsed.matches(value.as_bytes()), "{range} {value}");
            }
        }
        for bad in ["", "json", "a/", "/b", "*/*", "a/b;c=d", "a/*b", "a/*+", "a b/c", "a/b/c"] {
            assert_eq!(MediaRange::parse(bad), None, "{bad}");
        }
        assert_eq!(MediaRange::parse("Text/HTML").unwrap().to_string(), "text/html");
    }
}
