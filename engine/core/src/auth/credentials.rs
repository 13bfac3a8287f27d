//! Where a request carries its token or key.

use std::borrow::Cow;
use std::fmt;

use httparse::Header;
use memchr::memchr;

/// Bytes of a credential; longer ones are refused before they are decoded.
pub const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// A place in a request that may carry a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The credential behind the name of a scheme: `Authorization: Bearer ...` (RFC 6750 section 2.1).
    Scheme { header: Box<str>, scheme: Box<str> },
    /// The whole value of a field, as `X-API-Key`.
    Header { header: Box<str> },
    /// The value of a cookie (RFC 6265 section 4.2.1). Beware of cross-site request forgery.
    Cookie { cookie: Box<str> },
    /// The value of a query parameter (RFC 6750 section 2.3). Ends up in logs and histories.
    Query { parameter: Box<str> },
}

impl Place {
    /// `Authorization: Bearer`
    pub fn bearer() -> Self {
        Self::Scheme { header: "Authorization".into(), scheme: "Bearer".into() }
    }
}

/// Which credentials a service gets to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardCredentials {
    /// None: the gateway has judged them.
    None,
    /// Those in header fields and cookies. What stands in a URL ends up in logs and histories (RFC 6750 section 5.3).
    #[default]
    Headers,
    All,
}

/// Why what a request carries is no credential. The texts are fit for `error_description` (RFC 6750 section 3.1, error
/// `invalid_request`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialsError {
    Several,
    Malformed,
    TooLong,
}

impl std::error::Error for CredentialsError {}

impl fmt::Display for CredentialsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

impl CredentialsError {
    /// What the client is told.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Several => "more than one credential",
            Self::Malformed => "the credential is malformed",
            Self::TooLong => "the credential is too long",
        }
    }
}

/// The one credential that a request carries in these places, decoded: visible ASCII without blanks. `None` if there is
/// none; another scheme in the same field is none.
///
/// Two are refused, wherever they stand (RFC 6750 section 2): which one counts would be a guess, and a service behind
/// could guess otherwise. Hot; allocates only for a percent-encoded query parameter.
pub fn find<'r>(
    places: &[Place],
    headers: &[Header<'r>],
    query: Option<&'r [u8]>,
) -> Result<Option<Cow<'r, str>>, CredentialsError> {
    let mut found = None;
    for place in places {
        match place {
            Place::Scheme { header, scheme } => {
                let mut fields = fields(headers, header);
                let Some(value) = fields.next() else { continue };
                if fields.next().is_some() {
                    return Err(CredentialsError::Several);
                }
                if let Some(credential) = behind_scheme(value, scheme) {
                    take(&mut found, plain(credential))?;
                }
            }
            Place::Header { header } => {
                for value in fields(headers, header) {
                    take(&mut found, plain(value.trim_ascii()))?;
                }
            }
            Place::Cookie { cookie } => {
                for value in fields(headers, "cookie") {
                    for value in cookies(value, cookie.as_bytes()) {
                        take(&mut found, plain(value))?;
                    }
                }
            }
            Place::Query { parameter } => {
                for value in parameters(query.unwrap_or_default(), parameter.as_bytes()) {
                    take(&mut found, decoded(value))?;
                }
            }
        }
    }
    Ok(found)
}

type Judged<'r> = Result<Cow<'r, str>, CredentialsError>;

fn take<'r>(found: &mut Option<Cow<'r, str>>, credential: Judged<'r>) -> Result<(), CredentialsError> {
    match found.replace(credential?) {
        None => Ok(()),
        Some(_) => Err(CredentialsError::Several),
    }
}

pub fn fields<'h, 'r>(headers: &'h [Header<'r>], name: &'h str) -> impl Iterator<Item = &'r [u8]> + use<'h, 'r> {
    headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// What stands behind the scheme, whose name has no case (RFC 9110 section 11.1). Empty where nothing does.
fn behind_scheme<'r>(value: &'r [u8], scheme: &str) -> Option<&'r [u8]> {
    let value = value.trim_ascii();
    let (name, rest) = value.split_at_checked(scheme.len())?;
    let is_scheme = name.eq_ignore_ascii_case(scheme.as_bytes()) && matches!(rest.first(), None | Some(b' '));
    is_scheme.then(|| rest.trim_ascii_start())
}

/// Values of the cookies of that name; names have case, and quotes around a value are not part of it.
pub fn cookies<'r>(field: &'r [u8], name: &[u8]) -> impl Iterator<Item = &'r [u8]> {
    field.split(|byte| *byte == b';').filter_map(move |pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name)?.strip_prefix(b"=")?;
        Some(match value {
            [b'"', inner @ .., b'"'] => inner,
            value => value,
        })
    })
}

/// Values of the parameters of that name, as they are.
fn parameters<'r>(query: &'r [u8], name: &[u8]) -> impl Iterator<Item = &'r [u8]> {
    query
        .split(|byte| *byte == b'&')
        .map(split_pair)
        .filter(move |(own, _)| is_named(own, name))
        .map(|(_, value)| value)
}

fn split_pair(pair: &[u8]) -> (&[u8], &[u8]) {
    let (name, value) = pair.split_at(memchr(b'=', pair).unwrap_or(pair.len()));
    (name, value.get(1..).unwrap_or_default())
}

/// A parameter's name is decoded before it is compared, or a second credential could hide behind an escape.
fn is_named(own: &[u8], name: &[u8]) -> bool {
    own == name || (memchr(b'%', own).is_some() && unescaped(own).eq(name.iter().map(|byte| Some(*byte))))
}

/// Whether a part of a query, as stands between two `&`, is the parameter of that place.
pub(crate) fn is_parameter(place: &Place, pair: &[u8]) -> bool {
    matches!(place, Place::Query { parameter } if is_named(split_pair(pair).0, parameter.as_bytes()))
}

/// Whether a part of `Cookie`, as stands between two `;`, is the cookie of that place.
pub(crate) fn is_cookie(place: &Place, pair: &[u8]) -> bool {
    matches!(place, Place::Cookie { cookie } if split_pair(pair.trim_ascii()).0 == cookie.as_bytes())
}

/// Whether a field is the credential of that place, and nothing else.
pub(crate) fn is_field(place: &Place, name: &str, value: &[u8]) -> bool {
    match place {
        Place::Scheme { header, scheme } => header.eq_ignore_ascii_case(name) && behind_scheme(value, scheme).is_some(),
        Place::Header { header } => header.eq_ignore_ascii_case(name),
        Place::Cookie { .. } | Place::Query { .. } => false,
    }
}

fn plain(credential: &[u8]) -> Judged<'_> {
    if credential.len() > CREDENTIAL_BYTES_MAX {
        return Err(CredentialsError::TooLong);
    }
    let is_visible = !credential.is_empty() && credential.iter().all(u8::is_ascii_graphic);
    match std::str::from_utf8(credential) {
        Ok(text) if is_visible => Ok(Cow::Borrowed(text)),
        _ => Err(CredentialsError::Malformed),
    }
}

/// A `+` stays one: a blank, as forms mean it, can be in no credential.
fn decoded(value: &[u8]) -> Judged<'_> {
    if value.len() > CREDENTIAL_BYTES_MAX || memchr(b'%', value).is_none() {
        return plain(value);
    }
    let bytes: Vec<u8> = unescaped(value).collect::<Option<_>>().ok_or(CredentialsError::Malformed)?;
    plain(&bytes).map(|text| Cow::Owned(text.into_owned()))
}

/// Percent-decoding (RFC 3986 section 2.1); `None`, and then no more, where a `%` is not followed by two hex digits.
fn unescaped(text: &[u8]) -> impl Iterator<Item = Option<u8>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (byte, behind) = rest.split_first()?;
        rest = behind;
        if *byte != b'%' {
            return Some(Some(*byte));
        }
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        let decoded = rest.split_first_chunk().and_then(|([high, low], behind)| {
            rest = behind;
            Some((digit(high)? << 4 | digit(low)?) as u8)
        });
        if decoded.is_none() {
            rest = &[];
        }
        Some(decoded)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Fields<'a> = [(&'a str, &'a str)];

    fn found<'a>(places: &[Place], fields: &Fields<'a>, query: &'a str) -> Result<Option<String>, CredentialsError> {
        let headers: Vec<_> = fields.iter().map(|(name, value)| Header { name, value: value.as_bytes() }).collect();
        find(places, &headers, Some(query.as_bytes())).map(|found| found.map(Cow::into_owned))
    }

    fn everywhere() -> [Place; 4] {
        [
            Place::bearer(),
            Place::Header { header: "X-API-Key".into() },
            Place::Cookie { cookie: "session".into() },
            Place::Query { parameter: "access_token".into() },
        ]
    }

    #[test]
    fn a_credential_is_found_in_each_place() {
        for (fields, query) in [
            (&[("authorization", "Bearer a.b-c_d~e+f/g==")][..], ""),
            (&[("AUTHORIZATION", "bearer   a.b-c_d~e+f/g==")], ""),
            (&[("x-api-key", "a.b-c_d~e+f/g==")], ""),
            (&[("Cookie", "other=1; session=a.b-c_d~e+f/g==; xsession=2")], "x=access_token"),
            (&[("Cookie", "other=1"), ("Cookie", "session=\"a.b-c_d~e+f/g==\"")], ""),
            (&[], "x=1&access_token=a.b-c_d~e+f/g=="),
            (&[], "access_token=a.b-c_d~e%2Bf%2fg%3D%3D&y"),
            (&[], "access%5Ftoken=a.b-c_d~e+f/g=="),
            (&[("Authorization", "Basic eDp5"), ("Cookie", "session=a.b-c_d~e+f/g==")], ""),
        ] {
            assert_eq!(found(&everywhere(), fields, query), Ok(Some("a.b-c_d~e+f/g==".into())), "{fields:?} {query}");
        }
    }

    #[test]
    fn nothing_is_no_credential() {
        for (fields, query) in [
            (&[][..], ""),
            (&[("Authorization", "Basic eDp5")][..], "Access_token=1"),
            (&[("Authorization", "Bearerabc"), ("Cookie", "Session=1; session")], "access_tokens=1&xaccess_token=2"),
        ] {
            assert_eq!(found(&everywhere(), fields, query), Ok(None), "{fields:?} {query}");
        }
        assert_eq!(find(&everywhere(), &[], None), Ok(None));
    }

    #[test]
    fn two_credentials_are_refused_wherever_they_stand() {
        for (fields, query) in [
            (&[("Authorization", "Bearer a"), ("Authorization", "Bearer a")][..], ""),
            (&[("Authorization", "Basic a"), ("authorization", "Bearer a")], ""),
            (&[("Authorization", "Bearer a"), ("Cookie", "session=a")], ""),
            (&[("Authorization", "Bearer a")], "access_token=a"),
            (&[("X-API-Key", "a"), ("X-API-Key", "b")], ""),
            (&[("Cookie", "session=a; session=b")], ""),
            (&[], "access_token=a&access%5ftoken=b"),
        ] {
            assert_eq!(found(&everywhere(), fields, query), Err(CredentialsError::Several), "{fields:?} {query}");
        }
    }

    #[test]
    fn a_part_is_the_credential_or_not() {
        let [scheme, header, cookie, query] = everywhere();
        for (pair, expected) in [
            ("access_token=a", true),
            ("access_token", true),
            ("access%5ftoken=", true),
            ("%61ccess_token=a=b", true),
            ("access_token%=a", false),
            ("access%5_token=a", false),
            ("access_tokens=a", false),
            ("access_toke=a", false),
            ("xaccess_token=a", false),
            ("Access_Token=a", false),
            ("=access_token", false),
            ("", false),
        ] {
            assert_eq!(is_parameter(&query, pair.as_bytes()), expected, "{pair}");
            assert!(!is_parameter(&cookie, pair.as_bytes()));
        }
        assert!(
            is_cookie(&cookie, b" session=1") && !is_cookie(&cookie, b"xsession=1") && !is_cookie(&query, b"session")
        );
        assert!(is_field(&scheme, "authorization", b"bearer x") && !is_field(&scheme, "Authorization", b"Basic x"));
        assert!(is_field(&header, "x-api-key", b"x") && !is_field(&header, "X-API", b"x"));
        assert!(!is_field(&cookie, "cookie", b"session=1"));
    }

    #[test]
    fn malformed_and_long_credentials_are_refused() {
        for (fields, query) in [
            (&[("Authorization", "Bearer")][..], ""),
            (&[("Authorization", "Bearer ")], ""),
            (&[("Authorization", "Bearer a b")], ""),
            (&[("Authorization", "Bearer a\tb")], ""),
            (&[("X-API-Key", "")], ""),
            (&[("X-API-Key", "\u{e9}")], ""),
            (&[("Cookie", "session=")], ""),
            (&[], "access_token"),
            (&[], "access_token=%"),
            (&[], "access_token=a%2"),
            (&[], "access_token=a%zz"),
            (&[], "access_token=a%00"),
            (&[], "access_token=a%0d%0ab"),
        ] {
            assert_eq!(found(&everywhere(), fields, query), Err(CredentialsError::Malformed), "{fields:?} {query}");
        }
        let long = format!("Bearer {}", "a".repeat(CREDENTIAL_BYTES_MAX + 1));
        let header = [("Authorization", long.as_str())];
        assert_eq!(found(&everywhere(), &header, ""), Err(CredentialsError::TooLong));
    }

    proptest! {
        #[test]
        fn whatever_is_found_is_visible_ascii(value: Vec<u8>, query: Vec<u8>) {
            for name in ["Authorization", "X-API-Key", "Cookie"] {
                let value = [b"session=", &value[..]].concat();
                let headers = [Header { name, value: &value }];
                if let Ok(Some(found)) = find(&everywhere(), &headers, Some(&query)) {
                    prop_assert!(!found.is_empty() && found.bytes().all(|byte| byte.is_ascii_graphic()));
                }
            }
        }
    }
}
