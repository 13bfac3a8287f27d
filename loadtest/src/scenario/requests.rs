//! From the file's `requests` to bytes.

use std::collections::HashSet;

use super::file::{File, Headers, Request};
use super::text::{Place, Reader, Text};
use super::{Target, variables};
use crate::request::{Class, Expects, Message};
use crate::template::{self, Template};
use crate::units;

const REQUESTS_MAX: usize = 256;
const WEIGHT_MAX: u64 = 1_000_000;
const HEADERS_MAX: usize = 100;
const BODY_BYTES_MAX: u64 = 64 << 20;
const NAME_CHARS_MAX: usize = 64;

pub(crate) fn classes(reader: &mut Reader, file: &File, target: &Target, keep_alive: bool) -> Option<Vec<Class>> {
    let requests = &file.requests.value;
    if requests.is_empty() || requests.len() > REQUESTS_MAX {
        let message = format!("`requests` has 1 to {REQUESTS_MAX} requests");
        reader.problem(file.requests.referenced.into(), message, None);
    }
    let mut names = HashSet::new();
    let mut all = Vec::new();
    for request in requests {
        let class = class(reader, file, &request.value, target, keep_alive);
        if let Some(class) = &class
            && !names.insert(class.name.clone())
        {
            let place = request.value.name.as_ref().map_or(request.referenced.into(), |name| name.place);
            let message = format!("a second request is named `{}`", class.name);
            reader.problem(place, message, Some("give each its own `name`"));
        }
        all.push(class);
    }
    all.into_iter().collect()
}

fn class(reader: &mut Reader, file: &File, request: &Request, target: &Target, keep_alive: bool) -> Option<Class> {
    let body = body(reader, request);
    let method = match &request.method {
        None if request.has_body() => Some("POST".into()),
        None => Some("GET".into()),
        Some(text) => reader.value(text, "a method such as `GET`", |text| match text {
            "CONNECT" => Err(Some("tunnels cannot be loaded".into())),
            method if is_token(method) => Ok(method.to_owned()),
            _ => Err(None),
        }),
    };
    let path = path(reader, &request.path);
    let name = match &request.name {
        Some(text) => reader.value(text, &format!("a name of 1 to {NAME_CHARS_MAX} characters"), |text| {
            let fits = (1..=NAME_CHARS_MAX).contains(&text.chars().count()) && !text.contains(char::is_control);
            if fits { Ok(text.to_owned()) } else { Err(None) }
        }),
        None => method.as_ref().map(|method| {
            let name = format!("{method} {}", request.path.written);
            name.chars().take(NAME_CHARS_MAX).collect()
        }),
    };
    let weight = request.weight.as_ref().map_or(Some(1), |text| reader.number(text, 1, WEIGHT_MAX));
    let expects = request.expect.as_ref().map_or(Some(Expects::default()), |texts| expects(reader, texts));
    let fields = fields(reader, file, request);
    let (method, path, body, fields) = (method?, path?, body?, fields?);

    let mut head = Template::default();
    head.push_literal(format!("{method} {}", target.base).as_bytes());
    head.push(path);
    head.push_literal(b" HTTP/1.1\r\n");
    let automatic =
        [("Host", target.authority.as_str()), ("User-Agent", concat!("loadtest/", env!("CARGO_PKG_VERSION")))];
    for (name, value) in automatic {
        if !fields.iter().any(|field| field.name.eq_ignore_ascii_case(name)) {
            head.push_literal(format!("{name}: {value}\r\n").as_bytes());
        }
    }
    for field in fields {
        head.push_literal(format!("{}: ", field.name).as_bytes());
        head.push(field.value);
        head.push_literal(b"\r\n");
    }
    if !keep_alive {
        head.push_literal(b"Connection: close\r\n");
    }
    let message = match body {
        Some(body) if body.fixed().is_none() => {
            head.push_literal(b"Content-Length: ");
            head.push_body_bytes();
            head.push_literal(b"\r\n\r\n");
            Message { head, body: Some(body) }
        }
        body => {
            let body = body.as_ref().and_then(Template::fixed);
            // RFC 9110 section 8.6: methods that have a body say so even when it is empty.
            if body.is_some() || matches!(&method[..], "POST" | "PUT" | "PATCH") {
                head.push_literal(format!("Content-Length: {}\r\n", body.map_or(0, <[u8]>::len)).as_bytes());
            }
            head.push_literal(b"\r\n");
            head.push_literal(body.unwrap_or_default());
            Message { head, body: None }
        }
    };
    Some(Class { name: name?, expects: expects?, weight: weight?, method_is_head: method == "HEAD", message })
}

impl Request {
    fn has_body(&self) -> bool {
        self.body.is_some() || self.body_file.is_some() || self.body_size.is_some()
    }
}

fn path(reader: &mut Reader, text: &Text) -> Option<Template> {
    if !text.written.starts_with(['/', '$']) || text.written.contains('#') {
        reader.problem(text.place, "a path begins with `/` and has no `#`", None);
        return None;
    }
    reader.template(text, template::Place::Path)
}

/// The body, if there is one.
fn body(reader: &mut Reader, request: &Request) -> Option<Option<Template>> {
    let given = [&request.body, &request.body_file, &request.body_size];
    let mut given = given.into_iter().flatten();
    if let (Some(_), Some(second)) = (given.next(), given.next()) {
        let message = "more than one of `body`, `body_file` and `body_size`";
        reader.problem(second.place, message, None);
        return None;
    }
    let mut fixed = Template::default();
    if let Some(text) = &request.body {
        return reader.template(text, template::Place::Body).map(Some);
    } else if let Some(text) = &request.body_file {
        let path = reader.plain(text)?;
        let path = reader.directory.join(path);
        match variables::read(&path, BODY_BYTES_MAX) {
            Ok(bytes) => fixed.push_literal(&bytes),
            Err((message, hint)) => {
                reader.problem(text.place, message, Some(hint));
                return None;
            }
        }
    } else if let Some(text) = &request.body_size {
        let size = reader.value(text, "a size from 0B to 64MiB", |text| match units::bytes(text)? {
            size if size <= BODY_BYTES_MAX => Ok(size),
            _ => Err(None),
        })?;
        let filler = b"0123456789abcdefghijklmnopqrstuvwxyz".iter().copied().cycle();
        fixed.push_literal(&filler.take(size as usize).collect::<Vec<_>>());
    } else {
        return Some(None);
    }
    Some(Some(fixed))
}

fn expects(reader: &mut Reader, texts: &[Text]) -> Option<Expects> {
    let ranges = texts.iter().map(|text| {
        reader.value(text, "a status such as `200`, or a class such as `2xx`", |text| match text.strip_suffix("xx") {
            Some(class) => match class.parse() {
                Ok(class @ 1_u16..=5) => Ok(class * 100..=class * 100 + 99),
                _ => Err(None),
            },
            None => match text.parse() {
                Ok(status @ 100_u16..=599) => Ok(status..=status),
                _ => Err(None),
            },
        })
    });
    let ranges: Vec<_> = ranges.collect();
    ranges.into_iter().collect::<Option<Vec<_>>>().map(Expects)
}

struct Field {
    name: String,
    value: Template,
}

/// The headers in the order in which they are sent. A request's own replace those of all requests, and the client's
/// key and token.
fn fields(reader: &mut Reader, file: &File, request: &Request) -> Option<Vec<Field>> {
    let given =
        |Headers(list): &Headers, name: &str| list.iter().any(|(other, _)| other.written.eq_ignore_ascii_case(name));
    let own = |name: &str| given(&request.headers, name);
    let mut fields = Vec::new();
    for (name, value) in file.headers.0.iter().filter(|(name, _)| !own(&name.written)).chain(&request.headers.0) {
        fields.push(field(reader, name, value));
    }
    if fields.len() > HEADERS_MAX {
        reader.problem(request.path.place, format!("more than {HEADERS_MAX} headers"), None);
    }
    if let Some(api_key) = &file.clients.api_key {
        let name = api_key.header.clone().unwrap_or(Text { written: "X-API-Key".into(), place: Place::Whole });
        if !own(&name.written) {
            fields.push(field(reader, &name, &api_key.value));
        }
    }
    if let Some(jwt) = &file.clients.jwt {
        let name = jwt.header.clone().unwrap_or(Text { written: "Authorization".into(), place: Place::Whole });
        if !own(&name.written) {
            let mut value = Template::default();
            if name.written.eq_ignore_ascii_case("authorization") {
                value.push_literal(b"Bearer ");
            }
            value.push_token();
            fields.push(header_name(reader, &name).map(|name| Field { name, value }));
        }
    }
    fields.into_iter().collect()
}

fn field(reader: &mut Reader, name: &Text, value: &Text) -> Option<Field> {
    let value = reader.template(value, template::Place::Header);
    Some(Field { name: header_name(reader, name)?, value: value? })
}

fn header_name(reader: &mut Reader, text: &Text) -> Option<String> {
    let name = text.written.as_str();
    if !is_token(name) {
        reader.problem(text.place, format!("`{name}` is not a header name"), None);
        return None;
    }
    let hint = match name.to_ascii_lowercase().as_str() {
        "content-length" => "it is computed from the body",
        "transfer-encoding" | "trailer" | "te" => "bodies are sent with `Content-Length`",
        "connection" | "keep-alive" | "proxy-connection" => "`keep_alive` says whether connections are used again",
        "upgrade" | "expect" => "requests are sent whole and answered once",
        _ => return Some(name.to_owned()),
    };
    reader.problem(text.place, format!("`{name}` is not yours to set"), Some(hint));
    None
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}
