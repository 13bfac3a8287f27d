//! The service is told of a request and answers with a status, as nginx's `auth_request`, Envoy's `ext_authz` and
//! Traefik's ForwardAuth ask it.

use std::sync::Arc;

use super::{Asking, Refusal, Verdict};
use crate::auth::{HEADER_LINES_BYTES_MAX, Identity, Method};
use crate::http::{Name, ResponseHead, is_look_alike, list};

/// How the service is asked, and what of its answer goes where.
#[derive(Debug, PartialEq)]
pub struct Check {
    pub method: AskMethod,
    pub path: AskPath,
    /// Fields of the client's request that the service gets, credentials above all. See [`may_be_asked_with`].
    pub request_headers: Vec<Box<str>>,
    pub tells: Tells,
    /// Fields of a positive answer that the service behind gets, in place of the client's own. See [`may_be_given`].
    pub answer_headers: Vec<Box<str>>,
    /// Fields of a refusal that the client gets. See [`may_be_passed_on`].
    pub refusal_headers: Vec<Box<str>>,
    /// Fields of a positive answer that say who it is: one name, and lists between commas or blanks.
    pub user: Option<Box<str>>,
    pub roles: Option<Box<str>>,
    pub scopes: Option<Box<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskMethod {
    Fixed(Box<str>),
    OfClient,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskPath {
    Fixed(Box<str>),
    /// In front of the client's path and query.
    Prefix(Box<str>),
}

/// Which fields tell the service of the request besides its headers. Its answers are used again for requests that
/// are the same in these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tells {
    /// `X-Forwarded-Method`
    pub method: bool,
    /// `X-Forwarded-Uri`
    pub uri: bool,
    /// `X-Forwarded-Host`
    pub host: bool,
    /// `X-Forwarded-For`, the client's address alone.
    pub client: bool,
    /// `X-Forwarded-Proto`
    pub scheme: bool,
}

/// Whether a field of the client's request may go to an auth service: not what frames or routes the question, nor what
/// the gateway says itself.
pub fn may_be_asked_with(name: &str) -> bool {
    use Name::*;
    let of = Name::of(name);
    let own =
        matches!(of, ContentLength | Expect | Host | XForwardedFor | XForwardedHost | XForwardedProto | XRequestId);
    !own && !of.is_hop_by_hop() && !is_look_alike(name) && !is_ours(name)
}

/// Whether a field of a positive answer may go to the service behind: none that the gateway writes or judges itself, since
/// the client's own would stand beside it.
pub fn may_be_given(name: &str) -> bool {
    Name::of(name) == Name::Other && !is_look_alike(name)
}

/// Whether a field of a refusal may go to the client.
pub fn may_be_passed_on(name: &str) -> bool {
    use Name::*;
    let of = Name::of(name);
    !matches!(of, ContentLength | Date | Expect | Host | Trailer | XRequestId) && !of.is_hop_by_hop()
}

fn is_ours(name: &str) -> bool {
    ["x-forwarded-method", "x-forwarded-uri"].iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// Of a request as it is written here (RFC 9110 section 9.2.2).
pub(super) fn is_idempotent(request: &[u8]) -> bool {
    let idempotent: [&[u8]; 6] = [b"GET ", b"HEAD ", b"OPTIONS ", b"PUT ", b"DELETE ", b"TRACE "];
    idempotent.iter().any(|method| request.starts_with(method))
}

impl Check {
    pub(super) fn has_credentials(&self, asking: &Asking<'_>) -> bool {
        asking.headers.iter().any(|header| is_named(&self.request_headers, header.name))
    }

    /// The question up to what differs from request to request though it is the same question.
    pub(super) fn write_key(&self, host: &str, asking: &Asking<'_>, out: &mut Vec<u8>) {
        let method = match &self.method {
            AskMethod::Fixed(method) => method.as_bytes(),
            AskMethod::OfClient => asking.method,
        };
        out.extend_from_slice(method);
        out.push(b' ');
        match &self.path {
            AskPath::Fixed(path) => out.extend_from_slice(path.as_bytes()),
            AskPath::Prefix(prefix) => {
                out.extend_from_slice(prefix.as_bytes());
                write_uri(asking, out);
            }
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
        write_line("Host", host.as_bytes(), out);
        for header in asking.headers.iter().filter(|header| is_named(&self.request_headers, header.name)) {
            write_line(header.name, header.value, out);
        }
        let Tells { method, uri, host, client, scheme } = self.tells;
        if method {
            write_line("X-Forwarded-Method", asking.method, out);
        }
        if uri {
            out.extend_from_slice(b"X-Forwarded-Uri: ");
            write_uri(asking, out);
            out.extend_from_slice(b"\r\n");
        }
        if host && !asking.host.is_empty() {
            write_line("X-Forwarded-Host", asking.host, out);
        }
        if client {
            write_line("X-Forwarded-For", asking.client_ip, out);
        }
        if scheme {
            write_line("X-Forwarded-Proto", asking.scheme, out);
        }
    }

    pub(super) fn write_request(&self, asking: &Asking<'_>, key: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(key);
        write_identifiers(asking, out);
        if !is_idempotent(key) {
            // RFC 9110 section 8.6: a method that expects content says that there is none.
            out.extend_from_slice(b"Content-Length: 0\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }

    pub(super) fn judge(&self, answer: &ResponseHead<'_, '_>, body: &[u8]) -> Verdict {
        match answer.status {
            200..300 => self.pass(answer),
            // Nothing asked whether anything has changed.
            304 => Verdict::Down("not_modified"),
            300..500 => self.refuse(answer, body),
            _ => Verdict::Down("error_status"),
        }
    }

    fn pass(&self, answer: &ResponseHead<'_, '_>) -> Verdict {
        let mut header_lines = Vec::new();
        for header in answer.headers.iter().filter(|header| is_named(&self.answer_headers, header.name)) {
            write_line(header.name, header.value, &mut header_lines);
        }
        if header_lines.len() > HEADER_LINES_BYTES_MAX {
            return Verdict::Down("headers_too_long");
        }
        let user: Option<Box<str>> = values(answer, self.user.as_deref()).next().map(Into::into);
        let claims = user.iter().map(|user| ("sub".to_owned(), (&**user).into())).collect();
        Verdict::Pass(Arc::new(Identity {
            method: Method::AuthService,
            user,
            roles: words(answer, self.roles.as_deref()),
            scopes: words(answer, self.scopes.as_deref()),
            claims,
            header_lines,
            expires_at: None,
            token_id: None,
        }))
    }

    fn refuse(&self, answer: &ResponseHead<'_, '_>, body: &[u8]) -> Verdict {
        let mut lines = Vec::new();
        let mut challenges = false;
        for header in answer.headers.iter().filter(|header| is_named(&self.refusal_headers, header.name)) {
            challenges |= header.name.eq_ignore_ascii_case("www-authenticate");
            write_line(header.name, header.value, &mut lines);
        }
        if answer.status == 401 && !challenges {
            // RFC 9110 section 15.5.2: a 401 has a challenge.
            lines.extend_from_slice(b"WWW-Authenticate: Bearer\r\n");
        }
        Verdict::Refuse(Arc::new(Refusal { status: answer.status, lines, body: body.to_vec() }))
    }
}

/// The request's ID and what the client said of its trace.
pub(super) fn write_identifiers(asking: &Asking<'_>, out: &mut Vec<u8>) {
    write_line("X-Request-ID", asking.request_id, out);
    for header in asking.headers {
        if matches!(Name::of(header.name), Name::Traceparent | Name::Tracestate | Name::B3 | Name::XB3) {
            write_line(header.name, header.value, out);
        }
    }
}

pub(super) fn write_line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_uri(asking: &Asking<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(asking.path);
    if let Some(query) = asking.query {
        out.push(b'?');
        out.extend_from_slice(query);
    }
}

fn is_named(names: &[Box<str>], name: &str) -> bool {
    names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

/// The values of a field that are not empty; those that are not UTF-8 name nobody.
fn values<'a>(answer: &'a ResponseHead<'_, '_>, name: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    let named =
        answer.headers.iter().filter(move |header| name.is_some_and(|own| own.eq_ignore_ascii_case(header.name)));
    named.filter_map(|header| std::str::from_utf8(header.value).ok()).filter(|value| !value.is_empty())
}

fn words(answer: &ResponseHead<'_, '_>, name: Option<&str>) -> Vec<Box<str>> {
    let elements = values(answer, name).flat_map(|value| list(value.as_bytes()));
    let words = elements.flat_map(|element| element.split(u8::is_ascii_whitespace)).filter(|word| !word.is_empty());
    words.filter_map(|word| std::str::from_utf8(word).ok()).map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{asked, asking, header, judged, service};
    use super::super::{AuthService, Mode};
    use super::*;

    const ALL: Tells = Tells { method: true, uri: true, host: true, client: true, scheme: true };
    const NOTHING: Tells = Tells { method: false, uri: false, host: false, client: false, scheme: false };

    fn names(names: &[&str]) -> Vec<Box<str>> {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn check(method: AskMethod, path: AskPath, tells: Tells) -> AuthService {
        service(Mode::Check(Check {
            method,
            path,
            request_headers: names(&["Authorization", "Cookie"]),
            tells,
            answer_headers: names(&["X-User-Id", "X-Tenant"]),
            refusal_headers: names(&["WWW-Authenticate", "Set-Cookie", "Location"]),
            user: Some("X-User-Id".into()),
            roles: Some("X-Roles".into()),
            scopes: Some("X-Scopes".into()),
        }))
    }

    fn plain() -> AuthService {
        check(AskMethod::Fixed("GET".into()), AskPath::Fixed("/validate".into()), ALL)
    }

    #[test]
    fn the_service_is_told_of_the_request() {
        let headers = [
            header("authorization", "Bearer abc"),
            header("X-Forwarded-For", "10.0.0.1"),
            header("X-Other", "1"),
            header("Cookie", "a=b"),
            header("traceparent", "00-1-2-03"),
            header("Content-Length", "7"),
        ];
        assert_eq!(
            asked(&plain(), &headers).unwrap(),
            "GET /validate HTTP/1.1\r\nHost: auth\r\nauthorization: Bearer abc\r\nCookie: a=b\r\n\
             X-Forwarded-Method: POST\r\nX-Forwarded-Uri: /api/orders?a=1\r\nX-Forwarded-Host: shop.example\r\n\
             X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: http\r\nX-Request-ID: 0190-id\r\n\
             traceparent: 00-1-2-03\r\n\r\n"
        );
        let own = check(AskMethod::OfClient, AskPath::Prefix("/auth".into()), NOTHING);
        assert_eq!(
            asked(&own, &headers[..1]).unwrap(),
            "POST /auth/api/orders?a=1 HTTP/1.1\r\nHost: auth\r\nauthorization: Bearer abc\r\n\
             X-Request-ID: 0190-id\r\nContent-Length: 0\r\n\r\n"
        );
        assert_eq!(asked(&plain(), &headers[1..3]), None, "no credentials");
        assert!(AuthService::may_repeat(b"GET / HTTP/1.1", &own.mode));
        assert!(!AuthService::may_repeat(b"POST / HTTP/1.1", &own.mode));
    }

    #[test]
    fn the_key_is_all_that_the_service_is_told_but_what_names_the_request() {
        let key = |service: &AuthService, change: &dyn Fn(&mut Asking<'_>)| {
            let headers = [header("Authorization", "Bearer abc"), header("X-Other", "1")];
            let (mut asking, mut out) = (asking(&headers), Vec::new());
            change(&mut asking);
            service.key(&asking, &mut out).unwrap();
            out
        };
        let (told, silent) = (plain(), check(AskMethod::Fixed("GET".into()), AskPath::Fixed("/".into()), NOTHING));
        let changes: [&dyn Fn(&mut Asking<'_>); 6] = [
            &|asking| asking.method = b"GET",
            &|asking| asking.path = b"/api/other",
            &|asking| asking.query = None,
            &|asking| asking.host = b"other",
            &|asking| asking.client_ip = b"203.0.113.10",
            &|asking| asking.scheme = b"https",
        ];
        for change in changes {
            assert_ne!(key(&told, change), key(&told, &|_| {}));
            assert_eq!(key(&silent, change), key(&silent, &|_| {}));
        }
        let rest: [&dyn Fn(&mut Asking<'_>); 2] =
            [&|asking| asking.request_id = b"another", &|asking| asking.headers = &asking.headers[..1]];
        for change in rest {
            assert_eq!(key(&told, change), key(&told, &|_| {}));
        }
        for service in [&told, &silent] {
            assert_ne!(key(service, &|asking| asking.headers = &[]), key(service, &|_| {}));
        }
    }

    #[test]
    fn a_positive_answer_says_who_it_is() {
        let head = "HTTP/1.1 204 No Content\r\nx-user-id: u-1\r\nX-Roles: admin, user\r\nX-Roles: ops\r\n\
                    X-Scopes: read write\r\nX-Tenant: t\r\nX-Secret: s\r\nSet-Cookie: a\r\n\r\n";
        let Verdict::Pass(identity) = judged(&plain(), head, "") else { panic!("refused") };
        assert_eq!(identity.method, Method::AuthService);
        assert_eq!(identity.user.as_deref(), Some("u-1"));
        assert_eq!(
            (&identity.roles, &identity.scopes),
            (&names(&["admin", "user", "ops"]), &names(&["read", "write"]))
        );
        assert_eq!(identity.header_lines, b"x-user-id: u-1\r\nX-Tenant: t\r\n");
        assert_eq!(identity.claims["sub"], "u-1");

        let Verdict::Pass(nobody) = judged(&plain(), "HTTP/1.1 200 OK\r\nX-User-Id: \r\n\r\n", "") else { panic!() };
        assert_eq!((nobody.user.as_deref(), nobody.claims.len()), (None, 0));
        let long = format!("HTTP/1.1 200 OK\r\nX-Tenant: {}\r\n\r\n", "x".repeat(HEADER_LINES_BYTES_MAX));
        assert!(matches!(judged(&plain(), &long, ""), Verdict::Down("headers_too_long")));
    }

    #[test]
    fn a_refusal_goes_to_the_client_with_the_chosen_fields() {
        let head = "HTTP/1.1 302 Found\r\nLocation: /login\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: x\r\n\
                    Content-Length: 2\r\n\r\n";
        let Verdict::Refuse(refusal) = judged(&plain(), head, "go") else { panic!("not refused") };
        let lines = b"Location: /login\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n";
        assert_eq!(*refusal, Refusal { status: 302, lines: lines.to_vec(), body: b"go".to_vec() });

        let Verdict::Refuse(refusal) = judged(&plain(), "HTTP/1.1 401 No\r\n\r\n", "") else { panic!("not refused") };
        assert_eq!(refusal.lines, b"WWW-Authenticate: Bearer\r\n");
        let own = "HTTP/1.1 401 No\r\nWWW-Authenticate: Negotiate\r\n\r\n";
        let Verdict::Refuse(refusal) = judged(&plain(), own, "") else { panic!("not refused") };
        assert_eq!(refusal.lines, b"WWW-Authenticate: Negotiate\r\n");
        let Verdict::Refuse(refusal) = judged(&plain(), "HTTP/1.1 403 No\r\n\r\n", "") else { panic!("not refused") };
        assert_eq!((refusal.status, &*refusal.lines), (403, &b""[..]));
    }

    #[test]
    fn what_says_nothing_is_down() {
        for status in [304, 500, 502, 503, 599, 600, 999] {
            let verdict = judged(&plain(), &format!("HTTP/1.1 {status} X\r\n\r\n"), "");
            assert!(matches!(verdict, Verdict::Down(_)), "{status}: {verdict:?}");
        }
    }

    #[test]
    fn fields_that_would_break_the_question_or_the_answer_are_known() {
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "Connection",
            "X-Forwarded-Uri",
            "X-Request-ID",
            "X_Forwarded_For",
        ] {
            assert!(!may_be_asked_with(name), "{name}");
        }
        for name in ["Authorization", "Cookie", "X-API-Key", "Accept", "User-Agent", "Origin"] {
            assert!(may_be_asked_with(name), "{name}");
        }
        for name in ["Content-Length", "Transfer-Encoding", "Connection", "X-Request-ID", "Date"] {
            assert!(!may_be_passed_on(name), "{name}");
        }
        assert!(may_be_passed_on("Set-Cookie") && may_be_passed_on("Content-Type"));
        for name in ["User-Agent", "Forwarded", "Host", "traceparent", "X_Forwarded_For"] {
            assert!(!may_be_given(name), "{name}");
        }
        assert!(may_be_given("X-User-Id") && may_be_given("Authorization"));
    }
}
