//! Claims: how one is named, and how text and lists are read out of it.

use serde_json::{Map, Value};

/// Members that lie on the way to a claim.
const STEPS_MAX: usize = 8;

/// Where a claim stands. Names, separated by dots: `sub`, `realm_access.roles`. A URI is one name as it stands, with its
/// dots (RFC 7519 section 4.2): `https://example.com/roles`. Any other name with dots in it is written as a JSON Pointer
/// (RFC 6901): `/my.claim`. A number is the place in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPath(Vec<Box<str>>);

/// A text that names no claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadClaimPath {
    #[error("a claim, or a step on the way to it, has no name")]
    Empty,
    #[error("`~` in a JSON Pointer stands before `0` or `1` (RFC 6901 section 3)")]
    Escape,
    #[error("the way to a claim has at most 8 steps")]
    TooDeep,
}

impl ClaimPath {
    pub fn parse(text: &str) -> Result<Self, BadClaimPath> {
        let steps: Vec<Box<str>> = match text.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(unescape).collect::<Result<_, _>>()?,
            None if text.contains("://") || text.starts_with("urn:") => vec![text.into()],
            None => text.split('.').map(Box::from).collect(),
        };
        match steps {
            steps if steps.iter().any(|step| step.is_empty()) => Err(BadClaimPath::Empty),
            steps if steps.len() > STEPS_MAX => Err(BadClaimPath::TooDeep),
            steps => Ok(Self(steps)),
        }
    }

    /// A top-level claim.
    pub(crate) fn name(name: &str) -> Self {
        Self(vec![name.into()])
    }

    pub fn find<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        let (first, rest) = self.0.split_first()?;
        rest.iter().try_fold(claims.get(&**first)?, |value, step| match value {
            Value::Object(members) => members.get(&**step),
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            _ => None,
        })
    }
}

fn unescape(step: &str) -> Result<Box<str>, BadClaimPath> {
    let mut parts = step.split('~');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.as_bytes().first() {
            Some(b'0') => text.push('~'),
            Some(b'1') => text.push('/'),
            _ => return Err(BadClaimPath::Escape),
        }
        text.push_str(part.get(1..).unwrap_or_default());
    }
    Ok(text.into())
}

/// A string or a number, as text.
pub(crate) fn text(value: &Value) -> Option<Box<str>> {
    match value {
        Value::String(text) => Some(text.as_str().into()),
        Value::Number(number) => Some(number.to_string().into()),
        _ => None,
    }
}

/// A string is one item, of an array each string is one. What is no string counts as nothing: it gives no right.
pub(crate) fn items(value: &Value) -> Vec<Box<str>> {
    match value {
        Value::String(text) => vec![text.as_str().into()],
        Value::Array(values) => values.iter().filter_map(Value::as_str).map(Into::into).collect(),
        _ => Vec::new(),
    }
}

/// As [`items`], but a string holds items between spaces, as `scope` has them (RFC 8693 section 4.2).
pub(crate) fn spaced_items(value: &Value) -> Vec<Box<str>> {
    match value {
        Value::String(text) => text.split(' ').filter(|item| !item.is_empty()).map(Into::into).collect(),
        value => items(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(path: &str, claims: &str) -> Option<Value> {
        let claims = serde_json::from_str(claims).unwrap();
        ClaimPath::parse(path).unwrap().find(&claims).cloned()
    }

    #[test]
    fn claims_are_found_by_name_or_pointer() {
        let claims =
            r#"{"sub":"a","https://example.com/r":1,"a.b":2,"a":{"b":3,"c/d":{"~":4}},"urn:x:a.b":5,"l":[6,{"m":7}]}"#;
        for (path, expected) in [
            ("sub", r#""a""#),
            ("https://example.com/r", "1"),
            ("/a.b", "2"),
            ("a.b", "3"),
            ("/a/b", "3"),
            ("/a/c~1d/~0", "4"),
            ("urn:x:a.b", "5"),
            ("l.0", "6"),
            ("/l/1/m", "7"),
        ] {
            assert_eq!(find(path, claims), Some(serde_json::from_str(expected).unwrap()), "{path}");
        }
        for path in ["other", "/a/other", "/sub/x", "/l/2", "/l/x", "/a/b/c"] {
            assert_eq!(find(path, claims), None, "{path}");
        }
    }

    #[test]
    fn bad_paths_are_refused() {
        assert_eq!(ClaimPath::parse(""), Err(BadClaimPath::Empty));
        for path in ["/", "/a/", "a..b", ".a"] {
            assert_eq!(ClaimPath::parse(path), Err(BadClaimPath::Empty), "{path}");
        }
        assert_eq!(ClaimPath::parse("/a~"), Err(BadClaimPath::Escape));
        assert_eq!(ClaimPath::parse("/a~2"), Err(BadClaimPath::Escape));
        assert_eq!(ClaimPath::parse("/1/2/3/4/5/6/7/8/9"), Err(BadClaimPath::TooDeep));
    }

    #[test]
    fn lists_come_as_arrays_or_as_text() {
        let value = |json: &str| serde_json::from_str::<Value>(json).unwrap();
        let of = |items: &[&str]| items.iter().map(|item| Box::from(*item)).collect::<Vec<Box<str>>>();
        assert_eq!(items(&value(r#"["a b","c",1,null,["d"]]"#)), of(&["a b", "c"]));
        assert_eq!(items(&value(r#""super admin""#)), of(&["super admin"]));
        assert_eq!(spaced_items(&value(r#""read  write ""#)), of(&["read", "write"]));
        assert_eq!(spaced_items(&value(r#"["read","write"]"#)), of(&["read", "write"]));
        assert_eq!(spaced_items(&value("true")), of(&[]));
        assert_eq!(text(&value("42")).as_deref(), Some("42"));
        assert_eq!(text(&value("true")), None);
    }
}
