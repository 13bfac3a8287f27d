//! Values with variables, compiled once: header values, redirect targets and path rewrites.

use crate::auth::{CertificateField, TlsFacts};
use crate::path::is_unreserved;
use crate::router::Captures;

/// What a variable may name. Written `${request.id}`, `${client.ip}`, `${request.host}`, `${request.method}`,
/// `${request.path}` (normalized, without query), `${request.query}` (without `?`), `${request.scheme}`,
/// `${route}`, `${service}`, `${path.NAME}` (a captured parameter), `${header.NAME}`, `${tls.version}`, `${tls.cipher}`,
/// `${tls.client.FIELD}` (of the client's certificate, by [`CertificateField::name`]); `$$` is a dollar sign.
/// In path templates a captured parameter may also be written `{NAME}`. A `$` before anything else stands for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Var {
    RequestId,
    ClientIp,
    Host,
    Method,
    Path,
    Query,
    Scheme,
    Route,
    Service,
    /// Index into [`Captures`].
    Capture(usize),
    /// A request header, lower case; its first value, empty where there is none.
    Header(Box<str>),
    TlsVersion,
    TlsCipher,
    /// Of the client's certificate; empty where there is none.
    Certificate(CertificateField),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    Literal(Box<[u8]>),
    Var(Var),
}

/// A compiled template.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template {
    /// Literals are never next to each other, and never empty.
    pieces: Box<[Piece]>,
    /// Makes a path or another part of a URI: variables are encoded.
    uri: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("unknown variable `${{{0}}}`")]
    UnknownVariable(String),
    #[error("`{{{0}}}` is not a parameter of the route's path")]
    UnknownParameter(String),
    #[error("`${{` without a closing `}}`")]
    Unclosed,
    #[error("a header value must not contain control characters")]
    ControlCharacter,
}

/// What the variables stand for in one request.
#[derive(Clone, Copy)]
pub struct Vars<'a> {
    pub request_id: &'a [u8],
    pub client_ip: &'a [u8],
    pub host: &'a [u8],
    pub method: &'a [u8],
    pub path: &'a [u8],
    pub query: Option<&'a [u8]>,
    pub scheme: &'a [u8],
    pub route: &'a str,
    pub service: &'a str,
    pub captures: &'a Captures,
    pub headers: &'a [httparse::Header<'a>],
    pub tls: TlsFacts<'a>,
}

impl Template {
    /// Compiles `text`; `parameters` are the names that the route's path captures, in order.
    /// `braces`: whether `{NAME}` stands for a parameter too (path templates).
    pub fn compile(text: &str, parameters: &[String], braces: bool) -> Result<Self, TemplateError> {
        let mut compiler = Compiler { pieces: Vec::new(), literal: Vec::new() };
        let mut rest = text;
        while let Some(at) = rest.find(if braces { &['$', '{'][..] } else { &['$'] }) {
            let (literal, special) = rest.split_at(at);
            compiler.literal.extend_from_slice(literal.as_bytes());
            rest = if let Some(after) = special.strip_prefix("${") {
                let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
                compiler.var(variable(name, parameters)?);
                after
            } else if let Some(after) = special.strip_prefix('{') {
                let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
                compiler.var(parameter(name, parameters)?);
                after
            } else {
                compiler.literal.push(b'$');
                special.strip_prefix("$$").or_else(|| special.strip_prefix('$')).unwrap_or_default()
            };
        }
        compiler.literal.extend_from_slice(rest.as_bytes());
        compiler.end_literal();
        if text.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(TemplateError::ControlCharacter);
        }
        Ok(Self { pieces: compiler.pieces.into(), uri: braces })
    }

    /// Appends the value to `out`. A variable's bytes that could end a header line (CR, LF, NUL) are left out.
    ///
    /// In a path template the path and its parameters keep their normalized, percent-encoded form. A header stands for
    /// data within one segment: all but unreserved characters are encoded, and a value `.` or `..`, which cannot be,
    /// is left out. In the other variables, bytes that would end the path, or that no URI may have, are encoded.
    ///
    /// Hot; watched by the benchmark `template`.
    pub fn render(&self, vars: &Vars<'_>, out: &mut Vec<u8>) {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(literal) => out.extend_from_slice(literal),
                Piece::Var(var) if self.uri => append_uri(var, vars.value(var), out),
                Piece::Var(var) => append_line(vars.value(var), out),
            }
        }
    }

    /// The whole value, where it has no variables.
    pub fn as_literal(&self) -> Option<&[u8]> {
        match &*self.pieces {
            [] => Some(b""),
            [Piece::Literal(literal)] => Some(literal),
            _ => None,
        }
    }
}

struct Compiler {
    pieces: Vec<Piece>,
    /// The literal that goes on.
    literal: Vec<u8>,
}

impl Compiler {
    fn end_literal(&mut self) {
        if !self.literal.is_empty() {
            self.pieces.push(Piece::Literal(std::mem::take(&mut self.literal).into()));
        }
    }

    fn var(&mut self, var: Var) {
        self.end_literal();
        self.pieces.push(Piece::Var(var));
    }
}

fn variable(name: &str, parameters: &[String]) -> Result<Var, TemplateError> {
    Ok(match name {
        "request.id" => Var::RequestId,
        "client.ip" => Var::ClientIp,
        "request.host" => Var::Host,
        "request.method" => Var::Method,
        "request.path" => Var::Path,
        "request.query" => Var::Query,
        "request.scheme" => Var::Scheme,
        "route" => Var::Route,
        "service" => Var::Service,
        "tls.version" => Var::TlsVersion,
        "tls.cipher" => Var::TlsCipher,
        _ => {
            if let Some(name) = name.strip_prefix("path.") {
                return parameter(name, parameters);
            }
            let of_certificate = |field: &CertificateField| name.strip_prefix("tls.client.") == Some(field.name());
            if let Some(field) = CertificateField::ALL.into_iter().find(of_certificate) {
                return Ok(Var::Certificate(field));
            }
            match name.strip_prefix("header.") {
                Some(header) if is_token(header) => Var::Header(header.to_ascii_lowercase().into()),
                _ => return Err(TemplateError::UnknownVariable(name.to_owned())),
            }
        }
    })
}

fn parameter(name: &str, parameters: &[String]) -> Result<Var, TemplateError> {
    let index = parameters.iter().position(|parameter| parameter == name);
    index.map(Var::Capture).ok_or_else(|| TemplateError::UnknownParameter(name.to_owned()))
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

impl<'a> Vars<'a> {
    fn value(&self, var: &Var) -> &'a [u8] {
        match var {
            Var::RequestId => self.request_id,
            Var::ClientIp => self.client_ip,
            Var::Host => self.host,
            Var::Method => self.method,
            Var::Path => self.path,
            Var::Query => self.query.unwrap_or_default(),
            Var::Scheme => self.scheme,
            Var::Route => self.route.as_bytes(),
            Var::Service => self.service.as_bytes(),
            Var::Capture(index) => self.captures.get(*index, self.path).unwrap_or_default(),
            Var::Header(name) => {
                let header = self.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
                header.map_or(&[], |header| header.value)
            }
            Var::TlsVersion => self.tls.version.as_bytes(),
            Var::TlsCipher => self.tls.cipher.as_bytes(),
            Var::Certificate(field) => {
                self.tls.certificate.and_then(|certificate| certificate.get(*field)).unwrap_or_default().as_bytes()
            }
        }
    }
}

fn append_line(value: &[u8], out: &mut Vec<u8>) {
    for part in value.split(|byte| matches!(byte, b'\r' | b'\n' | 0)) {
        out.extend_from_slice(part);
    }
}

fn append_uri(var: &Var, value: &[u8], out: &mut Vec<u8>) {
    match var {
        Var::Path | Var::Capture(_) => append_line(value, out),
        Var::Header(_) | Var::Certificate(_) if matches!(value, b"." | b"..") => {}
        Var::Header(_) | Var::Certificate(_) => append_encoded(value, is_unreserved, out),
        _ => append_encoded(value, is_uri_byte, out),
    }
}

/// What may stand in a path or query and ends neither (RFC 3986 sections 3.3 and 3.4).
fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"#<>?\\^`{|}".contains(&byte)
}

fn append_encoded(value: &[u8], keeps: fn(u8) -> bool, out: &mut Vec<u8>) {
    const HEX: [u8; 16] = *b"0123456789ABCDEF";
    let hex = |digit: u8| HEX.get(usize::from(digit)).copied().unwrap_or_default();
    for byte in value.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)) {
        if keeps(byte) {
            out.push(byte);
        } else {
            out.extend([b'%', hex(byte >> 4), hex(byte & 15)]);
        }
    }
}

/// Header changes, applied in the order remove, set, add. Names are lower case. Hop-by-hop and framing headers
/// (`connection`, `content-length`, `transfer-encoding`, `te`, `trailer`, `upgrade`, `keep-alive`,
/// `proxy-connection`) and `host` in `request_headers` are refused by the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderOps {
    pub remove: Box<[Box<str>]>,
    pub set: Box<[(Box<str>, Template)]>,
    pub add: Box<[(Box<str>, Template)]>,
}

impl HeaderOps {
    pub fn is_empty(&self) -> bool {
        self.remove.is_empty() && self.set.is_empty() && self.add.is_empty()
    }

    /// Whether a header of this name (any case) is dropped: removed, or replaced by `set`.
    pub fn drops(&self, name: &str) -> bool {
        let set = self.set.iter().map(|(name, _)| name);
        self.remove.iter().chain(set).any(|dropped| dropped.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ClientCertificate;
    use crate::router::{Found, PathMatch, RouteRequest, RouteSpec, RouterBuilder};
    use proptest::prelude::*;

    const PATH: &[u8] = b"/a/p%20q/x/y";

    /// Renders with the captures `id` = `p%20q` and `rest` = `x/y`.
    fn render(text: &str, braces: bool) -> Result<String, TemplateError> {
        let mut builder = RouterBuilder::new();
        let spec = RouteSpec {
            hosts: Vec::new(),
            path: PathMatch::Pattern("/a/{id}/{*rest}".to_owned()),
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
            priority: 0,
        };
        let names = builder.add(0, spec).unwrap();
        let request = RouteRequest { host: b"", method: b"GET", path: PATH, query: None, headers: &[] };
        let Found::Route { captures, .. } = builder.build().find(&request) else { panic!("no route") };
        let template = Template::compile(text, &names, braces)?;
        let headers = [
            httparse::Header { name: "X-A", value: b"1/2 %\xff" },
            httparse::Header { name: "x-a", value: b"second" },
            httparse::Header { name: "X-Split", value: b"a\r\nb: c\0d" },
            httparse::Header { name: "X-Dots", value: b".." },
        ];
        let certificate = ClientCertificate { subject: "CN=a b,O=c".into(), ..ClientCertificate::default() };
        let vars = Vars {
            request_id: b"ID",
            client_ip: b"::1",
            host: b"example.com:80",
            method: b"GET",
            path: PATH,
            query: Some(b"a=%20b?c&d= #"),
            scheme: b"http",
            route: "the route",
            service: "app",
            captures: &captures,
            headers: &headers,
            tls: TlsFacts { version: "TLSv1.3", cipher: "TLS_AES_128_GCM_SHA256", certificate: Some(&certificate) },
        };
        let mut out = b"> ".to_vec();
        template.render(&vars, &mut out);
        Ok(String::from_utf8_lossy(out.strip_prefix(b"> ").unwrap()).into_owned())
    }

    #[track_caller]
    fn gives(braces: bool, cases: &[(&str, &str)]) {
        for (text, value) in cases {
            assert_eq!(render(text, braces).as_deref(), Ok(*value), "{text}");
        }
    }

    #[test]
    fn variables_stand_for_their_values() {
        gives(
            false,
            &[
                ("", ""),
                ("plain {id}", "plain {id}"),
                ("${request.id}|${client.ip}|${request.host}", "ID|::1|example.com:80"),
                ("${request.method} ${request.scheme}://", "GET http://"),
                ("${request.path}?${request.query}", "/a/p%20q/x/y?a=%20b?c&d= #"),
                ("${route}, ${service}", "the route, app"),
                ("<${path.id}${path.rest}>", "<p%20qx/y>"),
                ("${header.X-a}", "1/2 %\u{fffd}"),
                ("${header.none}", ""),
                ("${tls.version} ${tls.cipher}", "TLSv1.3 TLS_AES_128_GCM_SHA256"),
                ("${tls.client.subject}|${tls.client.san_uri}", "CN=a b,O=c|"),
                ("$$ $${route} $5 $", "$ ${route} $5 $"),
                ("$$$${service}$${service}", "$${service}${service}"),
                ("$$${service}", "$app"),
            ],
        );
    }

    #[test]
    fn path_templates_have_braces_and_encode_what_is_not_path() {
        gives(
            true,
            &[
                ("/v2/{id}/{rest}", "/v2/p%20q/x/y"),
                ("/${path.id}${request.path}", "/p%20q/a/p%20q/x/y"),
                ("/${header.x-a}/${header.x-dots}", "/1%2F2%20%25%FF/"),
                ("/${route}/${client.ip}", "/the%20route/::1"),
                ("http://${request.host}/?${request.query}", "http://example.com:80/?a=%20b%3Fc&d=%20%23"),
                ("/}$", "/}$"),
            ],
        );
    }

    #[test]
    fn a_variable_cannot_end_a_line() {
        gives(false, &[("${header.x-split}", "ab: cd")]);
        gives(true, &[("${header.x-split}", "ab%3A%20cd")]);
    }

    #[test]
    fn mistakes_are_named() {
        let variable = |name: &str| Err(TemplateError::UnknownVariable(name.to_owned()));
        let parameter = |name: &str| Err(TemplateError::UnknownParameter(name.to_owned()));
        for (text, braces, error) in [
            ("${nope}", false, variable("nope")),
            ("${}", false, variable("")),
            ("${tls.client.issuer}", false, variable("tls.client.issuer")),
            ("${header.}", false, variable("header.")),
            ("${header.a b}", false, variable("header.a b")),
            ("${path.no}", false, parameter("no")),
            ("/{no}", true, parameter("no")),
            ("a${route", false, Err(TemplateError::Unclosed)),
            ("/{id", true, Err(TemplateError::Unclosed)),
            ("a\r\nb", false, Err(TemplateError::ControlCharacter)),
            ("a\u{7f}", true, Err(TemplateError::ControlCharacter)),
        ] {
            assert_eq!(render(text, braces), error, "{text}");
        }
    }

    #[test]
    fn literals_are_known_as_such() {
        let literal = |text: &str| Template::compile(text, &[], false).unwrap().as_literal().map(<[u8]>::to_vec);
        assert_eq!(literal(""), Some(b"".to_vec()));
        assert_eq!(literal("a$$b$${route}$"), Some(b"a$b${route}$".to_vec()));
        assert_eq!(literal("a${route}"), None);
        assert_eq!(Template::default().as_literal(), Some(&b""[..]));
    }

    #[test]
    fn removed_and_replaced_headers_are_dropped() {
        let template = || Template::compile("x", &[], false).unwrap();
        let ops = HeaderOps {
            remove: ["x-old".into()].into(),
            set: [("server".into(), template())].into(),
            add: [("vary".into(), template())].into(),
        };
        assert!(ops.drops("X-Old") && ops.drops("SERVER") && ops.drops("server"));
        assert!(!ops.drops("vary") && !ops.drops("x-ol") && !ops.drops(""));
        assert!(!HeaderOps::default().drops("x-old"));
    }

    proptest! {
        #[test]
        fn a_text_without_variables_stands_for_itself(text in "[^$\\p{Cc}]{0,40}") {
            let template = Template::compile(&text, &[], false).unwrap();
            prop_assert_eq!(template.as_literal(), Some(text.as_bytes()));
        }

        #[test]
        fn any_text_is_handled(text in "[a-z.${}\r\u{e9}]{0,40}", braces in any::<bool>()) {
            let _ = Template::compile(&text, &["a".to_owned()], braces);
        }

        #[test]
        fn an_escaped_text_is_a_literal(text in "[a-z.${}]{0,40}") {
            let template = Template::compile(&text.replace('$', "$$"), &[], false).unwrap();
            prop_assert_eq!(template.as_literal(), Some(text.as_bytes()));
        }
    }
}
