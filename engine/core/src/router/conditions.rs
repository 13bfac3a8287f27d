//! What a route asks of a request besides its host and path.

use super::{RouteError, RouteRequest, ValueMatch};

/// The methods of RFC 9110 section 9.3 and RFC 5789, each a bit of a mask.
const KNOWN: [&[u8]; 9] = [b"CONNECT", b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PATCH", b"POST", b"PUT", b"TRACE"];
/// The bit of every method that is not in [`KNOWN`].
const OTHER: u16 = 1 << KNOWN.len();

fn bit(method: &[u8]) -> u16 {
    match method {
        b"GET" => 1 << 2,
        b"POST" => 1 << 6,
        _ => KNOWN.iter().position(|known| *known == method).map_or(OTHER, |at| 1 << at),
    }
}

/// A request's method, looked up once.
#[derive(Clone, Copy)]
pub(super) struct Method<'a> {
    bit: u16,
    name: &'a [u8],
}

impl<'a> Method<'a> {
    pub(super) fn new(name: &'a [u8]) -> Self {
        Self { bit: bit(name), name }
    }
}

/// The methods of a route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Methods {
    mask: u16,
    /// Sorted. Any, where this is empty and the mask has [`OTHER`].
    others: Box<[Box<[u8]>]>,
}

impl Methods {
    const ANY: u16 = u16::MAX;

    pub(super) fn parse(methods: &[String]) -> Result<Self, RouteError> {
        let (mut mask, mut others) = (0, Vec::<Box<[u8]>>::new());
        for method in methods {
            let name = method.as_bytes();
            if name.is_empty() || !name.iter().all(|byte| is_method_byte(*byte)) {
                return Err(RouteError::BadMethod(method.clone()));
            }
            match bit(name) {
                OTHER => others.push(name.into()),
                known => mask |= known,
            }
        }
        if mask & bit(b"GET") != 0 {
            mask |= bit(b"HEAD");
        }
        if !others.is_empty() {
            mask |= OTHER;
        }
        others.sort_unstable();
        others.dedup();
        Ok(Self { mask: if mask == 0 { Self::ANY } else { mask }, others: others.into() })
    }

    pub(super) fn is_any(&self) -> bool {
        self.mask == Self::ANY
    }

    #[inline]
    pub(super) fn accept(&self, method: Method<'_>) -> bool {
        self.mask & method.bit != 0
            && (method.bit != OTHER || self.is_any() || self.others.iter().any(|other| **other == *method.name))
    }

    /// The methods by name; none where any will do.
    pub(super) fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mask = if self.is_any() { 0 } else { self.mask };
        let known = KNOWN.iter().enumerate().filter(move |(at, _)| mask & (1 << at) != 0).map(|(_, name)| *name);
        known.chain(self.others.iter().map(|name| &**name))
    }
}

/// A `tchar` (RFC 9110 section 5.6.2) that is not a lower-case letter: methods are case-sensitive, and one in lower
/// case is a mistake.
fn is_method_byte(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Header and query conditions, sorted, so that equal ones compare equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Conditions {
    headers: Box<[(String, ValueMatch)]>,
    query: Box<[(String, ValueMatch)]>,
}

impl Conditions {
    pub(super) fn new(mut headers: Vec<(String, ValueMatch)>, mut query: Vec<(String, ValueMatch)>) -> Self {
        for (name, _) in &mut headers {
            name.make_ascii_lowercase();
        }
        for conditions in [&mut headers, &mut query] {
            conditions.sort_unstable();
            conditions.dedup();
        }
        Self { headers: headers.into(), query: query.into() }
    }

    pub(super) fn len(&self) -> usize {
        self.headers.len() + self.query.len()
    }

    pub(super) fn hold(&self, request: &RouteRequest<'_>) -> bool {
        self.headers.iter().all(|(name, want)| {
            let same = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
            any_holds(want, same.map(|header| header.value.iter().copied()))
        }) && self.query.iter().all(|(name, want)| {
            let same = pairs(request.query.unwrap_or_default()).filter(|(key, _)| decoded(key).eq(name.bytes()));
            any_holds(want, same.map(|(_, value)| decoded(value)))
        })
    }
}

/// Whether one of the values is as wanted (or, for [`ValueMatch::Absent`], there is none).
fn any_holds<V: Iterator<Item = u8>>(want: &ValueMatch, mut values: impl Iterator<Item = V>) -> bool {
    match want {
        ValueMatch::Present => values.next().is_some(),
        ValueMatch::Absent => values.next().is_none(),
        ValueMatch::Exact(text) => values.any(|value| value.eq(text.bytes())),
        ValueMatch::Prefix(text) => values.any(|value| value.take(text.len()).eq(text.bytes())),
    }
}

/// The (key, value) pairs of a query, still encoded. A key without `=` has an empty value.
pub(crate) fn pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
        match memchr::memchr(b'=', pair).and_then(|at| pair.split_at_checked(at)) {
            Some((key, value)) => (key, value.get(1..).unwrap_or_default()),
            None => (pair, &[][..]),
        }
    })
}

/// `application/x-www-form-urlencoded` (WHATWG URL section 5.1): `+` is a space, an invalid escape stands for itself.
pub(crate) fn decoded(text: &[u8]) -> impl Iterator<Item = u8> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if let [b'%', high, low, tail @ ..] = rest
            && let Some(byte) = crate::path::unhex(*high, *low)
        {
            rest = tail;
            return Some(byte);
        }
        let (byte, tail) = rest.split_first()?;
        rest = tail;
        Some(if *byte == b'+' { b' ' } else { *byte })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn methods(names: &[&str]) -> Result<Methods, RouteError> {
        Methods::parse(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_short_cuts_agree_with_the_table() {
        for (at, name) in KNOWN.iter().enumerate() {
            assert_eq!(bit(name), 1 << at);
        }
        assert!(KNOWN.is_sorted());
    }

    #[test]
    fn methods_accept_what_they_name() {
        let cases: [(&[&str], &[&str], &[&str]); 4] = [
            (&[], &["GET", "FOO", "get"], &[]),
            (&["GET"], &["GET", "HEAD"], &["POST", "FOO", "get", ""]),
            (&["HEAD"], &["HEAD"], &["GET"]),
            (&["PUT", "PURGE"], &["PUT", "PURGE"], &["GET", "PURG", "FOO"]),
        ];
        for (names, yes, no) in cases {
            let set = methods(names).unwrap();
            for name in yes {
                assert!(set.accept(Method::new(name.as_bytes())), "{names:?} {name}");
            }
            for name in no {
                assert!(!set.accept(Method::new(name.as_bytes())), "{names:?} {name}");
            }
        }
        assert_eq!(methods(&["GET", "HEAD"]), methods(&["GET"]));
        for bad in ["", "get", "A B", "\u{c9}"] {
            assert_eq!(methods(&[bad]), Err(RouteError::BadMethod(bad.to_owned())));
        }
    }

    fn holds(headers: &[(&str, ValueMatch)], query: &[(&str, ValueMatch)], given: &[(&str, &str)], text: &str) -> bool {
        let owned = |list: &[(&str, ValueMatch)]| {
            list.iter().map(|(name, want)| ((*name).to_owned(), want.clone())).collect::<Vec<_>>()
        };
        let given: Vec<_> =
            given.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        let request =
            RouteRequest { host: b"", method: b"GET", path: b"/", query: Some(text.as_bytes()), headers: &given };
        Conditions::new(owned(headers), owned(query)).hold(&request)
    }

    #[test]
    fn headers_are_compared_by_name_and_value() {
        use ValueMatch::*;
        let given = [("X-Tier", "gold"), ("x-tier", "silver"), ("Accept", "text/html")];
        let header = |name, want| holds(&[(name, want)], &[], &given, "");
        assert!(header("x-tier", Present) && header("x-tier", Exact("silver".into())));
        assert!(header("x-tier", Prefix("go".into())) && header("x-tier", Prefix("".into())));
        assert!(!header("x-tier", Exact("Gold".into())) && !header("x-tier", Prefix("golden".into())));
        assert!(header("x-none", Absent) && !header("x-tier", Absent) && !header("x-none", Present));
        assert!(!holds(&[("accept", Present), ("x-none", Present)], &[], &given, ""));
    }

    #[test]
    fn queries_are_compared_decoded() {
        use ValueMatch::*;
        let query = |name, want, text| holds(&[], &[(name, want)], &[], text);
        assert!(query("a b", Exact("c&d".into()), "x=1&a+b=c%26d"));
        assert!(query("a", Exact("2".into()), "a=1&a=2"));
        assert!(query("a", Exact("".into()), "a") && query("a", Exact("b=c".into()), "a=b=c"));
        assert!(query("a", Prefix("caf\u{e9}".into()), "%61=caf%c3%a9s"));
        assert!(query("a", Exact("100%".into()), "a=100%") && query("a", Exact("%zz".into()), "a=%zz"));
        assert!(query("a", Absent, "") && query("a", Absent, "ab=1&&") && !query("", Present, "&&"));
        assert!(!query("a", Present, "A=1") && !query("a", Exact("1".into()), "a=12"));
    }
}
