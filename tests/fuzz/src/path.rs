//! Path normalization.

use ringway_core::path::{DotSegments, DoubleSlash, EncodedSlash, PathPolicy, normalize};

pub const DICTIONARY: &[&str] = &[
    "/", "//", "/./", "/../", ".", "..", "/..", "..;", ";x=1", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "%25",
    "%252e", "%00", "%0a", "%7f", "%41", "%7e", "%c3%a9", "%", "%%", "\\", "?", "#", " ", "\u{e9}", "a",
];

/// Any bytes, as the path of a request target.
pub fn target(bytes: &[u8]) {
    for policy in policies() {
        let mut out = b"left over".to_vec();
        let result = normalize(bytes, policy, &mut out);
        let expected = naive(bytes, policy);
        assert_eq!(result.ok(), expected.as_deref(), "{policy:?}");
        let Some(normal) = expected else { continue };
        let mut out = Vec::new();
        let path = normalize(bytes, policy, &mut out).expect("the same again");
        assert_eq!(std::ptr::eq(path, bytes), path == bytes, "borrowed where it was normal");
        let mut again = Vec::new();
        assert_eq!(normalize(&normal, policy, &mut again), Ok(normal.as_slice()), "idempotent");
        check_normal(&normal, policy);
    }
}

fn policies() -> impl Iterator<Item = PathPolicy> {
    let dots = [DotSegments::Resolve, DotSegments::Reject];
    let encoded = [EncodedSlash::Reject, EncodedSlash::Keep, EncodedSlash::Decode];
    let double = [DoubleSlash::Merge, DoubleSlash::Keep, DoubleSlash::Reject];
    dots.into_iter().flat_map(move |dot_segments| {
        encoded.into_iter().flat_map(move |encoded_slash| {
            double.into_iter().map(move |double_slash| PathPolicy { dot_segments, encoded_slash, double_slash })
        })
    })
}

/// Nothing in it that two recipients could read in two ways.
fn check_normal(path: &[u8], policy: PathPolicy) {
    let text = std::str::from_utf8(path).expect("a normal path is ASCII");
    let segments: Vec<_> = text.strip_prefix('/').expect("absolute").split('/').collect();
    let (last, inner) = segments.split_last().expect("at least one");
    for segment in &segments {
        let name = segment.split(';').next().unwrap_or_default();
        assert!(name != "." && name != "..", "{text}");
    }
    assert!(policy.double_slash == DoubleSlash::Keep || !inner.contains(&""), "{text} {last}");
    let escapes = text.split('%').skip(1).map(|rest| rest.get(..2).expect("two digits"));
    for escape in escapes {
        let byte = u8::from_str_radix(escape, 16).expect("hexadecimal");
        assert_eq!(escape, format!("{byte:02X}"), "upper case");
        assert!(!is_unreserved(byte) && !byte.is_ascii_control(), "{text}");
        match byte {
            b'/' => assert_eq!(policy.encoded_slash, EncodedSlash::Keep, "{text}"),
            b'\\' => assert_ne!(policy.encoded_slash, EncodedSlash::Reject, "{text}"),
            _ => {}
        }
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

/// RFC 3986 sections 5.2.4 and 6.2.2 in two passes: the escapes, then the segments. `None`: refused.
fn naive(raw: &[u8], policy: PathPolicy) -> Option<Vec<u8>> {
    if raw.first() != Some(&b'/') {
        return None;
    }
    let mut text = String::new();
    let mut bytes = raw.iter().copied();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            if !is_unreserved(byte) && !b"!$&'()*+,;=:@/".contains(&byte) {
                return None;
            }
            text.push(char::from(byte));
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let byte = u8::try_from(digit()? << 4 | digit()?).ok()?;
        match byte {
            b'/' | b'\\' if policy.encoded_slash == EncodedSlash::Reject => return None,
            b'/' if policy.encoded_slash == EncodedSlash::Decode => text.push('/'),
            _ if byte.is_ascii_control() => return None,
            _ if is_unreserved(byte) => text.push(char::from(byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    let segments: Vec<_> = text.get(1..)?.split('/').collect();
    let mut kept: Vec<&str> = Vec::new();
    for (index, segment) in segments.iter().enumerate() {
        let is_last = index + 1 == segments.len();
        let is_dots = matches!(segment.split(';').next(), Some("." | ".."));
        match *segment {
            _ if is_dots && (policy.dot_segments == DotSegments::Reject || segment.contains(';')) => return None,
            ".." => drop(kept.pop()?),
            "." => {}
            "" if !is_last && policy.double_slash == DoubleSlash::Reject => return None,
            "" if !is_last && policy.double_slash == DoubleSlash::Merge => continue,
            segment => {
                kept.push(segment);
                continue;
            }
        }
        if is_last {
            kept.push("");
        }
    }
    Some(format!("/{}", kept.join("/")).into_bytes())
}
