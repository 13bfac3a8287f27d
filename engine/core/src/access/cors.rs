//! Cross-origin resource sharing: the protocol of the Fetch standard (<https://fetch.spec.whatwg.org/#http-cors-protocol>).
//!
//! CORS lets scripts of other origins read answers. It keeps nobody from asking: a request of an origin that is not
//! allowed is still served, and its browser does not show the answer to the script.

/// What a preflight asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preflight<'a> {
    pub origin: &'a [u8],
    /// The method that the actual request will have.
    pub method: &'a [u8],
    /// `Access-Control-Request-Headers`: names, separated by commas.
    pub headers: Option<&'a [u8]>,
    /// `Access-Control-Request-Private-Network: true`.
    pub private_network: bool,
}

impl<'a> Preflight<'a> {
    /// Whether a request is a preflight: OPTIONS, with one `Origin` and one `Access-Control-Request-Method`.
    pub fn of(method: &str, headers: &[httparse::Header<'a>]) -> Option<Self> {
        if method != "OPTIONS" {
            return None;
        }
        let one = |name: &str| single(headers, name);
        Some(Self {
            origin: one("origin")?,
            method: one("access-control-request-method").filter(|method| is_token(method))?,
            headers: one("access-control-request-headers"),
            private_network: one("access-control-request-private-network") == Some(b"true"),
        })
    }
}

/// The request's `Origin`: `None` where there is none, or more than one.
pub fn origin<'a>(headers: &[httparse::Header<'a>]) -> Option<&'a [u8]> {
    single(headers, "origin")
}

fn single<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    let mut values = headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value);
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

/// Which origins may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// `*`. Never with credentials.
    Any,
    These(OriginList),
}

/// Origins, exact or with any subdomain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OriginList {
    /// Sorted. `null`, if it is allowed, is one of them.
    exact: Box<[Box<[u8]>]>,
    subdomains: Box<[Subdomains]>,
}

/// `https://*.example.com:8443`: what stands before the `*` and what after it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subdomains {
    before: Box<[u8]>,
    after: Box<[u8]>,
}

/// Why a text is no origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    #[error("an origin is a scheme and a host, `https://shop.example`")]
    NotAnOrigin,
    #[error("an origin has no path and no final `/`")]
    HasPath,
    #[error("a browser writes an origin in lower case")]
    UpperCase,
    #[error("a browser leaves the default port of the scheme out")]
    DefaultPort,
    #[error("a `*` stands for whole labels in front of a host: `https://*.example.com`")]
    BadWildcard,
}

impl OriginList {
    /// From origins as a browser writes them (RFC 6454 section 6.2), `https://*.example.com` for one or more labels in
    /// front of a host, and `null`.
    ///
    /// # Errors
    /// The index of the first text that is none of these.
    pub fn new<'t>(texts: impl IntoIterator<Item = &'t str>) -> Result<Self, (usize, OriginError)> {
        let (mut exact, mut subdomains) = (Vec::<Box<[u8]>>::new(), Vec::new());
        for (index, text) in texts.into_iter().enumerate() {
            check(text).map_err(|error| (index, error))?;
            match text.split_once('*') {
                Some((before, after)) => {
                    subdomains.push(Subdomains { before: before.as_bytes().into(), after: after.as_bytes().into() })
                }
                None => exact.push(text.as_bytes().into()),
            }
        }
        exact.sort_unstable();
        exact.dedup();
        Ok(Self { exact: exact.into(), subdomains: subdomains.into() })
    }

    fn contains(&self, origin: &[u8]) -> bool {
        self.exact.binary_search_by(|known| (**known).cmp(origin)).is_ok()
            || self.subdomains.iter().any(|Subdomains { before, after }| {
                let labels = origin.strip_prefix(&**before).and_then(|rest| rest.strip_suffix(&**after));
                labels.is_some_and(are_labels)
            })
    }
}

/// `a` or `a.b`, as a browser writes them.
fn are_labels(text: &[u8]) -> bool {
    let is_label = |label: &[u8]| {
        let allowed = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        !label.is_empty() && label.iter().all(allowed)
    };
    text.split(|byte| *byte == b'.').all(is_label)
}

fn check(text: &str) -> Result<(), OriginError> {
    if text == "null" {
        return Ok(());
    }
    let (scheme, host) = text.split_once("://").ok_or(OriginError::NotAnOrigin)?;
    let scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(scheme_byte) {
        return Err(OriginError::NotAnOrigin);
    }
    if host.contains(['/', '?', '#', '@']) {
        return Err(OriginError::HasPath);
    }
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(OriginError::UpperCase);
    }
    let (host, port) = match host.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (host, None),
    };
    if let Some(port) = port {
        let number = port.parse::<u16>().ok().filter(|number| *number > 0 && number.to_string() == port);
        match (number, scheme) {
            (None, _) => return Err(OriginError::NotAnOrigin),
            (Some(80), "http") | (Some(443), "https") => return Err(OriginError::DefaultPort),
            _ => {}
        }
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().map(drop).map_err(|_| OriginError::NotAnOrigin);
    }
    let host = match host.split_once('*') {
        Some(("", rest)) => {
            rest.strip_prefix('.').filter(|rest| !rest.contains('*')).ok_or(OriginError::BadWildcard)?
        }
        Some(_) => return Err(OriginError::BadWildcard),
        None => host,
    };
    if are_labels(host.as_bytes()) { Ok(()) } else { Err(OriginError::NotAnOrigin) }
}

/// Methods or headers that a preflight is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Names {
    /// Whatever it asks for: what it asked is repeated, since browsers take a `*` literally beside credentials, and
    /// never let it stand for `Authorization`.
    Any,
    These(Vec<Box<str>>),
}

/// What [`Cors::new`] is made from.
#[derive(Debug, Clone)]
pub struct CorsSpec {
    pub origins: Origins,
    pub credentials: bool,
    pub methods: Names,
    pub headers: Names,
    /// Headers of the answer that scripts may read besides the few that they always may; [`Names::Any`]: all, never
    /// with credentials.
    pub expose: Names,
    /// How long a browser may remember the answer to a preflight, in seconds.
    pub max_age_secs: u32,
    /// Answer preflights for private networks (<https://wicg.github.io/private-network-access/>).
    pub private_network: bool,
}

/// A route's CORS policy, compiled into header lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    origins: Origins,
    /// `Access-Control-Allow-Credentials: true`, or nothing.
    credentials: &'static [u8],
    /// `None`: what the preflight asks for.
    methods: Option<Box<[u8]>>,
    headers: Option<Box<[u8]>>,
    expose: Box<[u8]>,
    max_age: Box<[u8]>,
    private_network: bool,
    /// The `Vary` of every answer.
    vary: &'static [u8],
    preflight_vary: &'static [u8],
}

/// What browsers would not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CorsError {
    #[error("credentials are never shared with all origins")]
    CredentialsForAll,
    #[error("with credentials the headers that scripts may read are named one by one")]
    ExposeAllWithCredentials,
}

impl Cors {
    /// # Errors
    /// Where the parts contradict each other. Names are taken as they are: tokens (RFC 9110 section 5.6.2).
    pub fn new(spec: CorsSpec) -> Result<Self, CorsError> {
        if spec.credentials && spec.origins == Origins::Any {
            return Err(CorsError::CredentialsForAll);
        }
        if spec.credentials && spec.expose == Names::Any {
            return Err(CorsError::ExposeAllWithCredentials);
        }
        let line = |name: &str, values: &[Box<str>]| match values {
            [] => Box::default(),
            values => Box::from(format!("{name}: {}\r\n", values.join(", ")).as_bytes()),
        };
        let wanted = |name: &str, names: &Names| match names {
            Names::Any => None,
            Names::These(names) => Some(line(name, names)),
        };
        let depends = spec.origins != Origins::Any;
        Ok(Self {
            credentials: if spec.credentials { b"Access-Control-Allow-Credentials: true\r\n" } else { b"" },
            methods: wanted("Access-Control-Allow-Methods", &spec.methods),
            headers: wanted("Access-Control-Allow-Headers", &spec.headers),
            expose: wanted("Access-Control-Expose-Headers", &spec.expose)
                .unwrap_or_else(|| Box::from(&b"Access-Control-Expose-Headers: *\r\n"[..])),
            max_age: Box::from(format!("Access-Control-Max-Age: {}\r\n", spec.max_age_secs).as_bytes()),
            private_network: spec.private_network,
            vary: if depends { b"Vary: Origin\r\n" } else { b"" },
            preflight_vary: match spec.private_network {
                false => b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n",
                true => {
                    b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                      Access-Control-Request-Private-Network\r\n"
                }
            },
            origins: spec.origins,
        })
    }

    /// Appends the header lines of the answer to a preflight: status 204, no body. Where the origin is not allowed there
    /// is nothing but `Vary`, which a browser takes for a no.
    pub fn preflight(&self, asked: &Preflight<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.preflight_vary);
        if !self.allow_origin(Some(asked.origin), out) {
            return;
        }
        match &self.methods {
            Some(line) => out.extend_from_slice(line),
            None => write_names(b"Access-Control-Allow-Methods: ", asked.method, out),
        }
        match (&self.headers, asked.headers) {
            (Some(line), _) => out.extend_from_slice(line),
            (None, Some(names)) => write_names(b"Access-Control-Allow-Headers: ", names, out),
            (None, None) => {}
        }
        out.extend_from_slice(&self.max_age);
        if self.private_network && asked.private_network {
            out.extend_from_slice(b"Access-Control-Allow-Private-Network: true\r\n");
        }
    }

    /// Appends the header lines of the answer to an actual request.
    ///
    /// Hot; watched by the benchmark `cors`.
    pub fn simple(&self, origin: Option<&[u8]>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.vary);
        if self.allow_origin(origin, out) {
            out.extend_from_slice(&self.expose);
        }
    }

    /// Whether a header of the service's answer is dropped, since the gateway speaks for it.
    pub fn owns(&self, name: &str) -> bool {
        const OWN: [&str; 7] = [
            "allow-origin",
            "allow-credentials",
            "allow-methods",
            "allow-headers",
            "expose-headers",
            "max-age",
            "allow-private-network",
        ];
        let rest = name
            .split_at_checked("access-control-".len())
            .filter(|(front, _)| front.eq_ignore_ascii_case("access-control-"));
        rest.is_some_and(|(_, rest)| OWN.iter().any(|own| own.eq_ignore_ascii_case(rest)))
    }

    /// Whether the origin may read; if so, appends the lines that say it.
    fn allow_origin(&self, origin: Option<&[u8]>, out: &mut Vec<u8>) -> bool {
        match (&self.origins, origin) {
            (Origins::Any, _) => out.extend_from_slice(b"Access-Control-Allow-Origin: *\r\n"),
            (Origins::These(list), Some(origin)) if list.contains(origin) => {
                out.extend_from_slice(b"Access-Control-Allow-Origin: ");
                out.extend_from_slice(origin);
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(self.credentials);
            }
            (Origins::These(_), _) => return false,
        }
        true
    }
}

/// Repeats the tokens of a list; what is no token is left out.
fn write_names(name: &[u8], list: &[u8], out: &mut Vec<u8>) {
    let mut separator = name;
    for token in list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|token| is_token(token)) {
        out.extend_from_slice(separator);
        out.extend_from_slice(token);
        separator = b", ";
    }
    if separator != name {
        out.extend_from_slice(b"\r\n");
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_tchar)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origins(texts: &[&str]) -> Origins {
        Origins::These(OriginList::new(texts.iter().copied()).unwrap())
    }

    fn these(names: &[&str]) -> Names {
        Names::These(names.iter().map(|name| Box::from(*name)).collect())
    }

    fn spec(origins: Origins) -> CorsSpec {
        CorsSpec {
            origins,
            credentials: false,
            methods: these(&["GET", "POST"]),
            headers: these(&["content-type", "authorization"]),
            expose: these(&[]),
            max_age_secs: 600,
            private_network: false,
        }
    }

    fn simple(cors: &Cors, origin: Option<&str>) -> String {
        let mut out = Vec::new();
        cors.simple(origin.map(str::as_bytes), &mut out);
        String::from_utf8(out).unwrap()
    }

    fn preflight(cors: &Cors, origin: &str, headers: Option<&str>) -> String {
        let headers = headers.map(str::as_bytes);
        let asked = Preflight { origin: origin.as_bytes(), method: b"PUT", headers, private_network: true };
        let mut out = Vec::new();
        cors.preflight(&asked, &mut out);
        String::from_utf8(out).unwrap()
    }

    const VARY: &str = "Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers\r\n";

    #[test]
    fn an_allowed_origin_is_told_so_and_others_are_told_nothing() {
        let credentials =
            CorsSpec { credentials: true, expose: these(&["x-a"]), ..spec(origins(&["https://a.example"])) };
        let cors = Cors::new(credentials).unwrap();
        assert_eq!(
            simple(&cors, Some("https://a.example")),
            "Vary: Origin\r\nAccess-Control-Allow-Origin: https://a.example\r\n\
             Access-Control-Allow-Credentials: true\r\nAccess-Control-Expose-Headers: x-a\r\n"
        );
        for other in
            [None, Some("https://b.example"), Some("null"), Some("http://a.example"), Some("https://a.example:8443")]
        {
            assert_eq!(simple(&cors, other), "Vary: Origin\r\n");
        }
        assert_eq!(
            preflight(&cors, "https://a.example", Some("x-b")),
            format!(
                "{VARY}Access-Control-Allow-Origin: https://a.example\r\nAccess-Control-Allow-Credentials: true\r\n\
                 Access-Control-Allow-Methods: GET, POST\r\n\
                 Access-Control-Allow-Headers: content-type, authorization\r\nAccess-Control-Max-Age: 600\r\n"
            )
        );
        assert_eq!(preflight(&cors, "https://b.example", Some("x-b")), VARY);
    }

    #[test]
    fn all_origins_are_a_star_that_depends_on_nothing() {
        let cors = Cors::new(CorsSpec { expose: Names::Any, ..spec(Origins::Any) }).unwrap();
        for origin in [None, Some("null"), Some("https://a.example")] {
            let lines = "Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: *\r\n";
            assert_eq!(simple(&cors, origin), lines);
        }
        let with_credentials = CorsSpec { credentials: true, ..spec(Origins::Any) };
        assert_eq!(Cors::new(with_credentials), Err(CorsError::CredentialsForAll));
        let exposed = CorsSpec { credentials: true, expose: Names::Any, ..spec(origins(&["https://a.example"])) };
        assert_eq!(Cors::new(exposed), Err(CorsError::ExposeAllWithCredentials));
    }

    #[test]
    fn any_names_are_those_that_were_asked_for() {
        let any = CorsSpec { methods: Names::Any, headers: Names::Any, ..spec(origins(&["null"])) };
        let cors = Cors::new(any).unwrap();
        let start = format!("{VARY}Access-Control-Allow-Origin: null\r\nAccess-Control-Allow-Methods: PUT\r\n");
        let end = "Access-Control-Max-Age: 600\r\n";
        assert_eq!(preflight(&cors, "null", None), format!("{start}{end}"));
        assert_eq!(preflight(&cors, "null", Some(" ,x y")), format!("{start}{end}"));
        let lines = format!("{start}Access-Control-Allow-Headers: authorization, x-a\r\n{end}");
        assert_eq!(preflight(&cors, "null", Some("authorization,, \"q\" , x-a")), lines);
    }

    #[test]
    fn private_networks_are_opened_where_told() {
        let cors = Cors::new(CorsSpec { private_network: true, ..spec(Origins::Any) }).unwrap();
        let lines = preflight(&cors, "https://a.example", None);
        assert!(lines.ends_with("Access-Control-Allow-Private-Network: true\r\n"), "{lines}");
        assert!(lines.starts_with("Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers, Access-Control-Request-Private-Network\r\n"), "{lines}");
        let closed = Cors::new(spec(Origins::Any)).unwrap();
        assert!(!preflight(&closed, "https://a.example", None).contains("Private-Network"));
    }

    #[test]
    fn subdomains_are_whole_labels() {
        let Origins::These(list) = origins(&["https://*.a.example", "http://*.b.example:8080"]) else { panic!() };
        for good in ["https://x.a.example", "https://x.y-1.a.example", "http://x.b.example:8080"] {
            assert!(list.contains(good.as_bytes()), "{good}");
        }
        for bad in [
            "https://a.example",
            "https://.a.example",
            "https://x..a.example",
            "https://xa.example",
            "https://evil.example/.a.example",
            "https://evil.example#.a.example",
            "https://evil.example:1.a.example",
            "https://X.a.example",
            "http://x.a.example",
            "https://x.a.example:443",
            "http://x.b.example",
            "https://x.a.example.evil",
            "",
        ] {
            assert!(!list.contains(bad.as_bytes()), "{bad}");
        }
    }

    #[test]
    fn origins_are_as_a_browser_writes_them() {
        for good in [
            "https://a.example",
            "http://localhost:3000",
            "null",
            "https://[::1]:8443",
            "https://10.0.0.1",
            "app://x",
            "https://*.a.example:1",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, error) in [
            ("a.example", OriginError::NotAnOrigin),
            ("https://", OriginError::NotAnOrigin),
            ("://a", OriginError::NotAnOrigin),
            ("https://a b", OriginError::NotAnOrigin),
            ("https://a:x", OriginError::NotAnOrigin),
            ("https://a:0", OriginError::NotAnOrigin),
            ("https://a:08", OriginError::NotAnOrigin),
            ("https://[::1", OriginError::NotAnOrigin),
            ("https://[*.a]", OriginError::NotAnOrigin),
            ("https://a.example/", OriginError::HasPath),
            ("https://A.example", OriginError::UpperCase),
            ("https://a.example:443", OriginError::DefaultPort),
            ("http://a.example:80", OriginError::DefaultPort),
            ("https://*", OriginError::BadWildcard),
            ("https://a.*", OriginError::BadWildcard),
            ("https://*a.example", OriginError::BadWildcard),
            ("https://*.*.example", OriginError::BadWildcard),
            ("https://*.", OriginError::NotAnOrigin),
        ] {
            assert_eq!(check(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn a_preflight_has_one_origin_and_one_method() {
        let header = |name, value: &'static str| httparse::Header { name, value: value.as_bytes() };
        let (origin, method) = (header("Origin", "https://a"), header("access-control-request-method", "PUT"));
        let found =
            Preflight::of("OPTIONS", &[origin, method, header("Access-Control-Request-Headers", "x-a")]).unwrap();
        assert_eq!((found.origin, found.method, found.headers), (&b"https://a"[..], &b"PUT"[..], Some(&b"x-a"[..])));
        assert!(!found.private_network);
        for (verb, headers) in [
            ("GET", vec![origin, method]),
            ("OPTIONS", vec![origin]),
            ("OPTIONS", vec![method]),
            ("OPTIONS", vec![origin, origin, method]),
            ("OPTIONS", vec![origin, method, method]),
            ("OPTIONS", vec![origin, header("Access-Control-Request-Method", "A B")]),
        ] {
            assert_eq!(Preflight::of(verb, &headers), None);
        }
        assert_eq!(super::origin(&[origin]), Some(&b"https://a"[..]));
        assert_eq!(super::origin(&[origin, origin]), None);
    }

    #[test]
    fn the_services_own_words_are_dropped() {
        let cors = Cors::new(spec(Origins::Any)).unwrap();
        for name in ["Access-Control-Allow-Origin", "access-control-max-age", "ACCESS-CONTROL-EXPOSE-HEADERS"] {
            assert!(cors.owns(name), "{name}");
        }
        for name in ["Vary", "Access-Control-", "access-control-request-method", "X-Access-Control-Allow-Origin", "é"]
        {
            assert!(!cors.owns(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn nothing_sent_ends_a_line(origin: Vec<u8>, method: Vec<u8>, headers: Option<Vec<u8>>) {
            let any = CorsSpec { methods: Names::Any, headers: Names::Any, ..spec(origins(&["https://*.a.example"])) };
            let cors = Cors::new(any).unwrap();
            for origin in [&origin[..], b"https://x.a.example"] {
                let asked = Preflight { origin, method: &method, headers: headers.as_deref(), private_network: false };
                let mut out = Vec::new();
                cors.preflight(&asked, &mut out);
                cors.simple(Some(origin), &mut out);
                prop_assert!(out.ends_with(b"\r\n"));
                let text = String::from_utf8(out).unwrap();
                for line in text.strip_suffix("\r\n").unwrap().split("\r\n") {
                    prop_assert!(line.starts_with("Vary: ") || line.starts_with("Access-Control-"), "{line:?}");
                    prop_assert!(!line.contains(['\r', '\n', '\0']));
                }
            }
        }
    }
}
