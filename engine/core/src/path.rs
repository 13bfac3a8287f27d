//! Path normalization (RFC 3986 section 6.2.2), done once, before anything looks at a path.

/// What to do with `.` and `..` segments, also when written as `%2e`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DotSegments {
    /// Remove them as RFC 3986 section 5.2.4 does; a `..` above the root is an error.
    #[default]
    Resolve,
    /// Answer 400.
    Reject,
}

/// What to do with `%2F` and `%5C` (an encoded `/` or `\`), which services decode differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EncodedSlash {
    /// Answer 400.
    #[default]
    Reject,
    /// Leave it as it is: it is data, never a separator, for routing and for the service.
    Keep,
    /// Decode `%2F` to `/` before dot segments are resolved (`%5C` is kept).
    Decode,
}

/// What to do with empty segments (`//`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DoubleSlash {
    /// Merge them into one `/`.
    #[default]
    Merge,
    /// Leave them as they are.
    Keep,
    /// Answer 400.
    Reject,
}

/// How a listener normalizes paths. The default is safe for services of any kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathPolicy {
    pub dot_segments: DotSegments,
    pub encoded_slash: EncodedSlash,
    pub double_slash: DoubleSlash,
}

/// Why a path was refused: 400 in every case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not start with a slash")]
    NotAbsolute,
    #[error("the path has a character that a URI must percent-encode")]
    BadCharacter,
    #[error("the path has an incomplete or invalid percent-encoding")]
    BadEscape,
    #[error("the path has an encoded NUL or control character")]
    ControlCharacter,
    #[error("the path leads above the root")]
    AboveRoot,
    #[error("the path has dot segments")]
    DotSegment,
    #[error("the path has an encoded slash")]
    EncodedSlash,
    #[error("the path has an empty segment")]
    EmptySegment,
}

/// Normalizes the path of a request target (without `?query`). A path that is normal already, the usual case, is
/// borrowed from `raw` and costs one scan; else the result is written to `out`, which is cleared first.
/// Unreserved characters are decoded, the hex digits of what stays encoded are upper-cased. Idempotent.
///
/// Nothing is decoded twice: `%252e` stays. Slashes are merged before `..` takes a segment away, as most servers do it:
/// `/a//../b` is `/b` with [`DoubleSlash::Merge`], `/a/b` (RFC 3986 to the letter) with [`DoubleSlash::Keep`].
/// A dot segment with parameters, `..;x`, is refused by every policy: some services take it for `..`.
///
/// Hot; watched by the benchmark `path`.
pub fn normalize<'a>(raw: &'a [u8], policy: PathPolicy, out: &'a mut Vec<u8>) -> Result<&'a [u8], PathError> {
    if is_plain(raw) || is_normal(raw, policy) {
        return Ok(raw);
    }
    rewrite(raw, policy, out)?;
    Ok(out)
}

/// What a byte means in a path (RFC 3986 section 3.3). `Plain`: any `pchar` that needs no closer look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Plain,
    Slash,
    Percent,
    Bad,
}

#[allow(clippy::indexing_slicing)] // evaluated by the compiler: an index out of bounds does not build
const CLASSES: [Class; 256] = {
    let mut table = [Class::Bad; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'/' => Class::Slash,
            b'%' => Class::Percent,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@' => Class::Plain,
            other if is_unreserved(other) => Class::Plain,
            _ => Class::Bad,
        };
        byte += 1;
    }
    table
};

/// Bits for [`is_plain`]: a slash, what makes a slash suspicious, what is suspicious anywhere.
const MARK_SLASH: u8 = 1;
const MARK_AFTER_SLASH: u8 = 2;
const MARK_ANYWHERE: u8 = 4;

#[allow(clippy::indexing_slicing)] // evaluated by the compiler: an index out of bounds does not build
const MARKS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match CLASSES[byte] {
            Class::Slash => MARK_SLASH | MARK_AFTER_SLASH,
            Class::Plain if byte as u8 == b'.' => MARK_AFTER_SLASH,
            Class::Plain => 0,
            Class::Percent | Class::Bad => MARK_ANYWHERE,
        };
        byte += 1;
    }
    table
};

/// Whether a path is normal for every policy at first sight, as nearly all are. Without branches: twice as fast as
/// [`is_normal`].
fn is_plain(raw: &[u8]) -> bool {
    let (mut seen, mut before) = (0, 0);
    for byte in raw {
        let marks = MARKS.get(usize::from(*byte)).copied().unwrap_or(MARK_ANYWHERE);
        // `MARK_SLASH` of the byte before, moved to `MARK_AFTER_SLASH`.
        seen |= (marks & MARK_ANYWHERE) | (marks & MARK_AFTER_SLASH & (before << 1));
        before = marks & MARK_SLASH;
    }
    raw.first() == Some(&b'/') && seen == 0
}

#[inline]
fn class(byte: u8) -> Class {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(Class::Bad)
}

/// RFC 3986 section 2.3: encoded or not, these mean the same.
pub(crate) const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Whether a rest of a path, right after a slash, begins with a dot segment, with or without parameters.
fn starts_with_dot_segment(rest: &[u8]) -> bool {
    let after = rest.strip_prefix(b"..").or_else(|| rest.strip_prefix(b"."));
    after.is_some_and(|after| matches!(after.first(), None | Some(b'/' | b';')))
}

fn is_normal(raw: &[u8], policy: PathPolicy) -> bool {
    let mut rest = match raw {
        [b'/', rest @ ..] => rest,
        _ => return false,
    };
    let empty_ok = policy.double_slash == DoubleSlash::Keep;
    // Where a segment begins: what it is cannot be told from one byte.
    let segment_ok = |rest: &[u8]| match rest.first() {
        Some(b'/') => empty_ok,
        Some(b'.') => !starts_with_dot_segment(rest),
        _ => true,
    };
    if !segment_ok(rest) {
        return false;
    }
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match class(*byte) {
            Class::Plain => {}
            Class::Slash => {
                if !segment_ok(rest) {
                    return false;
                }
            }
            Class::Percent => match rest {
                [high, low, tail @ ..] if stays_encoded(*high, *low, policy) => rest = tail,
                _ => return false,
            },
            Class::Bad => return false,
        }
    }
    true
}

/// Whether `%` with these two digits is in its normal form.
fn stays_encoded(high: u8, low: u8, policy: PathPolicy) -> bool {
    let Some(byte) = unhex(high, low) else { return false };
    let slash_ok = match byte {
        b'/' => policy.encoded_slash == EncodedSlash::Keep,
        b'\\' => policy.encoded_slash != EncodedSlash::Reject,
        _ => true,
    };
    slash_ok
        && !byte.is_ascii_control()
        && !is_unreserved(byte)
        && !high.is_ascii_lowercase()
        && !low.is_ascii_lowercase()
}

pub(crate) fn unhex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

/// Writes the normal form of `raw` to `out`. What `out` holds is normal all the time, but for its last, open segment.
fn rewrite(raw: &[u8], policy: PathPolicy, out: &mut Vec<u8>) -> Result<(), PathError> {
    out.clear();
    let mut rest = match raw {
        [b'/', rest @ ..] => rest,
        _ => return Err(PathError::NotAbsolute),
    };
    out.push(b'/');
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match class(*byte) {
            Class::Plain => out.push(*byte),
            Class::Slash => next_segment(policy, out)?,
            Class::Bad => return Err(PathError::BadCharacter),
            Class::Percent => {
                let [high, low, tail @ ..] = rest else { return Err(PathError::BadEscape) };
                rest = tail;
                let byte = unhex(*high, *low).ok_or(PathError::BadEscape)?;
                match (byte, policy.encoded_slash) {
                    (b'/' | b'\\', EncodedSlash::Reject) => return Err(PathError::EncodedSlash),
                    (b'/', EncodedSlash::Decode) => next_segment(policy, out)?,
                    _ if byte.is_ascii_control() => return Err(PathError::ControlCharacter),
                    _ if is_unreserved(byte) => out.push(byte),
                    _ => out.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
                }
            }
        }
    }
    end_segment(policy, out)?;
    Ok(())
}

/// Ends the open segment and opens the next.
fn next_segment(policy: PathPolicy, out: &mut Vec<u8>) -> Result<(), PathError> {
    match (end_segment(policy, out)?, policy.double_slash) {
        (Ended::Dots, _) | (Ended::Empty, DoubleSlash::Merge) => {}
        (Ended::Kept, _) | (Ended::Empty, DoubleSlash::Keep) => out.push(b'/'),
        (Ended::Empty, DoubleSlash::Reject) => return Err(PathError::EmptySegment),
    }
    Ok(())
}

enum Ended {
    Kept,
    Empty,
    /// Resolved: `out` ends with the slash that the next segment follows.
    Dots,
}

fn end_segment(policy: PathPolicy, out: &mut Vec<u8>) -> Result<Ended, PathError> {
    let start = after_last_slash(out);
    let segment = out.get(start..).unwrap_or_default();
    if segment.is_empty() {
        return Ok(Ended::Empty);
    }
    if !starts_with_dot_segment(segment) {
        return Ok(Ended::Kept);
    }
    let up = match segment {
        b"." => false,
        b".." => true,
        _ => return Err(PathError::DotSegment),
    };
    if policy.dot_segments == DotSegments::Reject {
        return Err(PathError::DotSegment);
    }
    out.truncate(start);
    if up {
        out.pop();
        if out.is_empty() {
            return Err(PathError::AboveRoot);
        }
        out.truncate(after_last_slash(out));
    }
    Ok(Ended::Dots)
}

fn after_last_slash(out: &[u8]) -> usize {
    memchr::memrchr(b'/', out).map_or(0, |slash| slash + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAFE: PathPolicy = PathPolicy {
        dot_segments: DotSegments::Resolve,
        encoded_slash: EncodedSlash::Reject,
        double_slash: DoubleSlash::Merge,
    };
    const KEEP: PathPolicy = PathPolicy { encoded_slash: EncodedSlash::Keep, double_slash: DoubleSlash::Keep, ..SAFE };
    const DECODE: PathPolicy = PathPolicy { encoded_slash: EncodedSlash::Decode, ..SAFE };
    const REJECT: PathPolicy = PathPolicy {
        dot_segments: DotSegments::Reject,
        encoded_slash: EncodedSlash::Reject,
        double_slash: DoubleSlash::Reject,
    };

    fn run(raw: &str, policy: PathPolicy) -> Result<String, PathError> {
        let mut out = b"left over".to_vec();
        normalize(raw.as_bytes(), policy, &mut out).map(|path| String::from_utf8(path.to_vec()).unwrap())
    }

    #[track_caller]
    fn gives(policy: PathPolicy, cases: &[(&str, &str)]) {
        for (raw, normal) in cases {
            assert_eq!(run(raw, policy).as_deref(), Ok(*normal), "{raw}");
        }
    }

    #[track_caller]
    fn refuses(policy: PathPolicy, error: PathError, cases: &[&str]) {
        for raw in cases {
            assert_eq!(run(raw, policy), Err(error), "{raw}");
        }
    }

    #[test]
    fn the_default_is_the_safe_policy() {
        assert_eq!(PathPolicy::default(), SAFE);
    }

    #[test]
    fn normal_paths_are_borrowed() {
        for raw in ["/", "/a", "/a/", "/api/products/123", "/.well-known/x", "/..a/...", "/a%20b", "/%25", "/a;b=1,2"] {
            let mut out = Vec::new();
            let path = normalize(raw.as_bytes(), SAFE, &mut out).unwrap();
            assert!(std::ptr::eq(path, raw.as_bytes()), "{raw}");
            assert_eq!(out.capacity(), 0);
        }
    }

    #[test]
    fn dot_segments_are_resolved() {
        gives(
            SAFE,
            &[
                ("/a/./b", "/a/b"),
                ("/a/../b", "/b"),
                ("/a/b/..", "/a/"),
                ("/a/.", "/a/"),
                ("/.", "/"),
                ("/a/..", "/"),
                ("/a/b/c/./../../g", "/a/g"),
                ("/a/%2e%2E/b", "/b"),
                ("/a/.%2e/b", "/b"),
                ("/a/%2e/b", "/a/b"),
                ("/a//../b", "/b"),
            ],
        );
        gives(KEEP, &[("/a//../b", "/a/b"), ("//..", "/"), ("/.//x", "//x")]);
        refuses(SAFE, PathError::AboveRoot, &["/..", "/../a", "/a/../..", "/%2e%2e/a", "//..", "/./.."]);
        refuses(REJECT, PathError::DotSegment, &["/.", "/a/../b", "/a/%2e/b", "/.."]);
        for policy in [SAFE, KEEP, DECODE, REJECT] {
            refuses(policy, PathError::DotSegment, &["/a/..;/b", "/a/.;x=1", "/%2e%2e;x"]);
        }
    }

    #[test]
    fn empty_segments_follow_the_policy() {
        gives(SAFE, &[("//a", "/a"), ("/a///b//", "/a/b/"), ("//", "/"), ("/a/.//b", "/a/b")]);
        gives(KEEP, &[("//a", "//a"), ("/a//", "/a//"), ("/a/.//b", "/a//b")]);
        gives(REJECT, &[("/a/", "/a/")]);
        refuses(REJECT, PathError::EmptySegment, &["//", "/a//b", "/a//"]);
    }

    #[test]
    fn encoded_slashes_follow_the_policy() {
        refuses(SAFE, PathError::EncodedSlash, &["/a%2fb", "/a%2Fb", "/a%5cb", "/%5C"]);
        gives(KEEP, &[("/a%2fb", "/a%2Fb"), ("/a%5cb", "/a%5Cb"), ("/..%2fa", "/..%2Fa")]);
        gives(DECODE, &[("/a%2fb", "/a/b"), ("/a%2f%2fb", "/a/b"), ("/a%2f..%2fb", "/b"), ("/a%5cb", "/a%5Cb")]);
        refuses(DECODE, PathError::AboveRoot, &["/a%2f..%2f..", "/..%2f"]);
        let strict = PathPolicy { encoded_slash: EncodedSlash::Decode, ..REJECT };
        refuses(strict, PathError::EmptySegment, &["/a/%2fb", "/%2F"]);
        refuses(strict, PathError::DotSegment, &["/a%2f.%2fb"]);
    }

    #[test]
    fn escapes_are_brought_to_one_form() {
        gives(
            SAFE,
            &[("/%41%7e", "/A~"), ("/a%3ab", "/a%3Ab"), ("/%c3%a9", "/%C3%A9"), ("/%252e%252E", "/%252e%252E")],
        );
        gives(DECODE, &[("/%252f", "/%252f"), ("/%25%32%66", "/%252f")]);
        refuses(SAFE, PathError::BadEscape, &["/%", "/%4", "/%4g", "/%zz", "/a%", "/%%41", "/%+1"]);
        refuses(SAFE, PathError::ControlCharacter, &["/%00", "/%0d%0a", "/%1F", "/%7f"]);
    }

    #[test]
    fn other_characters_are_refused() {
        for byte in (0..=255u8).filter(|byte| !byte.is_ascii_alphanumeric() && !b"-._~!$&'()*+,;=:@/%".contains(byte)) {
            let mut out = Vec::new();
            assert_eq!(normalize(&[b'/', b'a', byte], SAFE, &mut out), Err(PathError::BadCharacter), "{byte:#x}");
        }
        refuses(SAFE, PathError::NotAbsolute, &["", "a", "*", "%2Fa", "http://a/"]);
    }

    fn policies() -> impl Strategy<Value = PathPolicy> {
        let dots = prop_oneof![Just(DotSegments::Resolve), Just(DotSegments::Reject)];
        let encoded = prop_oneof![Just(EncodedSlash::Reject), Just(EncodedSlash::Keep), Just(EncodedSlash::Decode)];
        let double = prop_oneof![Just(DoubleSlash::Merge), Just(DoubleSlash::Keep), Just(DoubleSlash::Reject)];
        (dots, encoded, double).prop_map(|(dot_segments, encoded_slash, double_slash)| PathPolicy {
            dot_segments,
            encoded_slash,
            double_slash,
        })
    }

    fn paths() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "/", "/", "/", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "%25", "2e", "a", "b", ";", "%61", "%c3",
            "%20",
        ]);
        prop::collection::vec(piece, 0..16).prop_map(|pieces| format!("/{}", pieces.concat()).into_bytes())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn any_bytes_are_handled(raw in prop::collection::vec(any::<u8>(), 0..64), policy in policies()) {
            let _ = normalize(&raw, policy, &mut Vec::new());
        }

        #[test]
        fn what_comes_out_is_normal(raw in paths(), policy in policies()) {
            let mut out = Vec::new();
            let Ok(path) = normalize(&raw, policy, &mut out) else { return Ok(()) };
            let borrowed = std::ptr::eq(path, raw.as_slice());
            prop_assert_eq!(borrowed, path == raw.as_slice());

            let mut again = Vec::new();
            prop_assert_eq!(normalize(path, policy, &mut again), Ok(path));

            let text = std::str::from_utf8(path).unwrap();
            let mut segments = text.strip_prefix('/').unwrap().split('/').rev();
            let last = segments.next().unwrap();
            prop_assert!(last != "." && last != "..");
            for segment in segments {
                prop_assert!(segment != "." && segment != "..", "{}", text);
                prop_assert!(!segment.is_empty() || policy.double_slash == DoubleSlash::Keep, "{}", text);
            }
            match policy.encoded_slash {
                EncodedSlash::Reject => prop_assert!(!text.contains("%2F") && !text.contains("%5C")),
                EncodedSlash::Decode => prop_assert!(!text.contains("%2F")),
                EncodedSlash::Keep => prop_assert_eq!(
                    text.matches("%2F").count() <= raw.windows(3).filter(|at| at.eq_ignore_ascii_case(b"%2f")).count(),
                    true
                ),
            }
        }

        #[test]
        fn the_scan_agrees_with_the_rewrite(raw in paths(), policy in policies()) {
            let mut out = Vec::new();
            let unchanged = rewrite(&raw, policy, &mut out).is_ok() && out == raw;
            prop_assert_eq!(is_normal(&raw, policy), unchanged);
            prop_assert!(!is_plain(&raw) || unchanged);
        }
    }
}
