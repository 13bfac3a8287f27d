//! Path patterns as they are written in the configuration.

use super::{CAPTURES_MAX, PathMatch, RouteError};
use crate::path::{DotSegments, DoubleSlash, EncodedSlash, PathPolicy, normalize};

/// What a pattern asks of one segment. Parameters have no names here: patterns that differ in names match the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Segment {
    Literal(Box<[u8]>),
    /// Any segment that is not empty.
    Parameter,
}

/// What may follow the segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Tail {
    /// Nothing.
    Exact,
    /// Nothing, or a slash and anything.
    Prefix,
    /// A slash and anything: a prefix with a trailing slash, or a catch-all.
    Below,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pattern {
    pub(super) segments: Box<[Segment]>,
    pub(super) tail: Tail,
}

/// A parsed pattern and what it captures.
pub(super) struct Parsed {
    pub(super) pattern: Pattern,
    pub(super) names: Vec<String>,
    /// The last name is that of a catch-all.
    pub(super) captures_rest: bool,
}

/// An encoded slash may stand in a pattern, for listeners that keep it; an empty segment is a mistake in any case.
const WRITTEN: PathPolicy = PathPolicy {
    dot_segments: DotSegments::Reject,
    encoded_slash: EncodedSlash::Keep,
    double_slash: DoubleSlash::Reject,
};

pub(super) fn parse(path: &PathMatch) -> Result<Parsed, RouteError> {
    let (text, mut tail) = match path {
        PathMatch::Pattern(text) => (text, Tail::Exact),
        PathMatch::Prefix(text) => (text, Tail::Prefix),
    };
    let mut rest = Some(text.strip_prefix('/').ok_or(RouteError::NotAbsolute)?);
    let (mut segments, mut names, mut captures_rest) = (Vec::new(), Vec::new(), false);
    while let Some(piece) = rest {
        let (written, after) = match piece.split_once('/') {
            Some((written, after)) => (written, Some(after)),
            None => (piece, None),
        };
        rest = after;
        match piece_of(written)? {
            Piece::Literal if written.is_empty() && after.is_none() && tail == Tail::Prefix => tail = Tail::Below,
            Piece::Literal => segments.push(literal(written, after.is_none(), text)?),
            Piece::Parameter(name) => {
                segments.push(Segment::Parameter);
                add_name(&mut names, name)?;
            }
            Piece::CatchAll(_) if tail == Tail::Prefix => return Err(RouteError::BadParameter(written.to_owned())),
            Piece::CatchAll(name) if after.is_some() => return Err(RouteError::CatchAllNotLast(name.to_owned())),
            Piece::CatchAll(name) => {
                (tail, captures_rest) = (Tail::Below, true);
                add_name(&mut names, name)?;
            }
        }
    }
    Ok(Parsed { pattern: Pattern { segments: segments.into(), tail }, names, captures_rest })
}

enum Piece<'a> {
    Literal,
    Parameter(&'a str),
    CatchAll(&'a str),
}

fn piece_of(written: &str) -> Result<Piece<'_>, RouteError> {
    if !written.contains(['{', '}']) {
        return Ok(Piece::Literal);
    }
    let bad = || RouteError::BadParameter(written.to_owned());
    let inner = written.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(bad)?;
    let (name, piece) = match inner.strip_prefix('*') {
        Some(name) => (name, Piece::CatchAll(name)),
        None => (inner, Piece::Parameter(inner)),
    };
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if is_name { Ok(piece) } else { Err(bad()) }
}

fn literal(written: &str, last: bool, text: &str) -> Result<Segment, RouteError> {
    let path = format!("/{written}");
    let empty_inside = written.is_empty() && !last;
    if empty_inside || normalize(path.as_bytes(), WRITTEN, &mut Vec::new()) != Ok(path.as_bytes()) {
        return Err(RouteError::NotNormal(text.to_owned()));
    }
    Ok(Segment::Literal(written.as_bytes().into()))
}

fn add_name(names: &mut Vec<String>, name: &str) -> Result<(), RouteError> {
    if names.iter().any(|earlier| earlier == name) {
        return Err(RouteError::RepeatedParameter(name.to_owned()));
    }
    if names.len() == CAPTURES_MAX {
        return Err(RouteError::TooManyParameters);
    }
    names.push(name.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Parsed, RouteError> {
        parse(&PathMatch::Pattern(text.to_owned()))
    }

    fn prefix(text: &str) -> Result<Parsed, RouteError> {
        parse(&PathMatch::Prefix(text.to_owned()))
    }

    fn shape(parsed: Result<Parsed, RouteError>) -> (String, Tail, Vec<String>) {
        let Parsed { pattern, names, .. } = parsed.ok().unwrap();
        let segments = pattern.segments.iter().map(|segment| match segment {
            Segment::Literal(text) => format!("/{}", std::str::from_utf8(text).unwrap()),
            Segment::Parameter => "/*".to_owned(),
        });
        (segments.collect(), pattern.tail, names)
    }

    #[test]
    fn patterns_are_read_segment_by_segment() {
        let none = Vec::<String>::new;
        assert_eq!(shape(pattern("/")), ("/".into(), Tail::Exact, none()));
        assert_eq!(shape(pattern("/a/")), ("/a/".into(), Tail::Exact, none()));
        assert_eq!(shape(pattern("/a/{id}/b")), ("/a/*/b".into(), Tail::Exact, vec!["id".into()]));
        assert_eq!(shape(pattern("/{a}/{*rest}")), ("/*".into(), Tail::Below, vec!["a".into(), "rest".into()]));
        assert_eq!(shape(pattern("/a%2Fb")), ("/a%2Fb".into(), Tail::Exact, none()));
        assert_eq!(shape(prefix("/")), (String::new(), Tail::Below, none()));
        assert_eq!(shape(prefix("/api")), ("/api".into(), Tail::Prefix, none()));
        assert_eq!(shape(prefix("/api/")), ("/api".into(), Tail::Below, none()));
        assert_eq!(shape(prefix("/v/{x}")), ("/v/*".into(), Tail::Prefix, vec!["x".into()]));
    }

    #[test]
    fn mistakes_are_named() {
        let bad = |text: &str| RouteError::BadParameter(text.to_owned());
        let not_normal = |text: &str| RouteError::NotNormal(text.to_owned());
        let cases = [
            ("", RouteError::NotAbsolute),
            ("a", RouteError::NotAbsolute),
            ("/a//b", not_normal("/a//b")),
            ("/a/../b", not_normal("/a/../b")),
            ("/%41", not_normal("/%41")),
            ("/%2f", not_normal("/%2f")),
            ("/a b", not_normal("/a b")),
            ("/caf\u{e9}", not_normal("/caf\u{e9}")),
            ("/a?b", not_normal("/a?b")),
            ("/{}", bad("{}")),
            ("/{*}", bad("{*}")),
            ("/{a-b}", bad("{a-b}")),
            ("/x{a}", bad("x{a}")),
            ("/{a", bad("{a")),
            ("/{a}/{a}", RouteError::RepeatedParameter("a".into())),
            ("/{*a}/b", RouteError::CatchAllNotLast("a".into())),
            ("/{a}/{b}/{c}/{d}/{e}/{f}/{g}/{h}/{*i}", RouteError::TooManyParameters),
        ];
        for (text, error) in cases {
            assert_eq!(pattern(text).err(), Some(error), "{text}");
        }
        assert_eq!(prefix("/a/{*rest}").err(), Some(bad("{*rest}")));
        assert_eq!(prefix("/a//").err(), Some(not_normal("/a//")));
    }
}
