//! What a route does with a request besides forwarding it, and how it changes it on the way.

use std::sync::Arc;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Number, Value as Json};

use super::endpoint::is_host;
use super::headers::TemplateText;
use crate::decode::{Cx, Decode, Spanned};
use crate::scalar::Int;
use crate::shape::shape;
use crate::snapshot::{HostRewrite, Redirect, Respond, Rewrite};
use crate::tree::{Node, Scalar, Value};
use crate::units::MIB;

shape! {
    /// Answer with a redirect.
    pub(crate) struct RedirectSection {
        /// Where to: a URL or a path, with variables: `https://${request.host}${request.path}`.
        to: Spanned<TemplateText>,
        /// 301, 302, 303, 307 or 308.
        status: Spanned<Int<301, 308>> = "308",
    }

    /// Answer with this. At most one of `json`, `text` and `body`.
    pub(crate) struct RespondSection {
        /// The answer's status.
        status: Spanned<Int<200, 599>> = "200",
        /// A body, written as YAML and sent as JSON.
        json: Option<JsonBody>,
        /// A body of plain text.
        text: Option<String>,
        /// A body of any other type.
        body: Option<String>,
        /// Of the body. Without it: `application/json`, `text/plain; charset=utf-8` or `application/octet-stream`.
        content_type: Option<Spanned<String>>,
    }

    /// How the path is changed for the service. Exactly one of these.
    pub(crate) struct RewriteSection {
        /// Takes this off the front of the path: `/api` turns `/api/x` into `/x`.
        strip_prefix: Option<Spanned<String>>,
        /// The whole path, with parameters: `/products/{id}`.
        path: Option<Spanned<TemplateText>>,
    }
}

/// Most bytes of a fixed answer.
const BODY_BYTES_MAX: u64 = MIB;

#[derive(Debug, Clone)]
pub(crate) enum HostChoice {
    Keep,
    Endpoint,
    Fixed(String),
}

impl Decode for HostChoice {
    fn kind() -> String {
        "`keep`, `endpoint` or a host name".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match node.scalar().filter(|scalar| !scalar.is_null()).map(|scalar| &*scalar.text) {
            Some("keep") => Some(Self::Keep),
            Some("endpoint") => Some(Self::Endpoint),
            Some(text) if is_authority(text) => Some(Self::Fixed(text.to_owned())),
            _ => {
                cx.mismatch::<Self>(node, Some("such as `api.example.com` or `api.example.com:8080`".into()));
                None
            }
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl From<HostChoice> for HostRewrite {
    fn from(choice: HostChoice) -> Self {
        match choice {
            HostChoice::Keep => Self::Keep,
            HostChoice::Endpoint => Self::Endpoint,
            HostChoice::Fixed(name) => Self::Fixed(Arc::from(name)),
        }
    }
}

/// `host`, `host:port` or an IP address with or without a port.
fn is_authority(text: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else { return false };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (rest.is_empty() || rest.strip_prefix(':').is_some_and(port));
    }
    match text.split_once(':') {
        Some((host, number)) => is_host(host) && port(number),
        None => is_host(text),
    }
}

/// Any value, as JSON.
#[derive(Debug, Clone)]
pub(crate) struct JsonBody(pub(super) Json);

impl Decode for JsonBody {
    fn kind() -> String {
        "any value".into()
    }

    fn decode(node: &Node, _: &mut Cx) -> Option<Self> {
        json_of(node).map(Self)
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({})
    }
}

/// By YAML's core schema. `None` where a value has been reported.
fn json_of(node: &Node) -> Option<Json> {
    match &node.value {
        Value::Invalid => None,
        Value::Scalar(scalar) => Some(json_of_scalar(scalar)),
        Value::List(items) => items.iter().map(json_of).collect::<Option<_>>().map(Json::Array),
        Value::Map(entries) => {
            let pair = |entry: &crate::tree::Entry| Some((entry.key().to_owned(), json_of(&entry.value)?));
            entries.iter().map(pair).collect::<Option<_>>().map(Json::Object)
        }
    }
}

fn json_of_scalar(scalar: &Scalar) -> Json {
    let text: &str = &scalar.text;
    if !scalar.plain {
        return text.into();
    }
    match text {
        "" | "~" | "null" => return Json::Null,
        "true" => return Json::Bool(true),
        "false" => return Json::Bool(false),
        _ => {}
    }
    // Not what Rust reads as a number besides: `inf`, `nan`, `1_000`.
    let number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let int = || text.parse::<i64>().ok().map(Number::from).or_else(|| text.parse::<u64>().ok().map(Number::from));
    let float = || text.parse::<f64>().ok().and_then(Number::from_f64);
    match number.then(|| int().or_else(float)).flatten() {
        Some(number) => Json::Number(number),
        None => text.into(),
    }
}

impl Spanned<RedirectSection> {
    pub(crate) fn compile(self, parameters: &[String], cx: &mut Cx) -> Option<Redirect> {
        let RedirectSection { to, status } = self.value;
        let code = status.value.0 as u16;
        if !matches!(code, 301 | 302 | 303 | 307 | 308) {
            cx.error(status.span, format!("`{code}` does not redirect"), "one of 301, 302, 303, 307 and 308");
        }
        let text = to.value.0.as_str();
        if !["/", "http://", "https://", "${"].iter().any(|start| text.starts_with(start)) {
            cx.error(to.span, "a redirect leads to `http://…`, `https://…` or a path", None);
        }
        if let Some(bad) = text.chars().find(|c| *c <= ' ' || !c.is_ascii()) {
            cx.error(to.span, format!("{bad:?} must be percent-encoded in a URL"), None);
        }
        to.compile(parameters, true, cx).map(|location| Redirect { status: code, location })
    }
}

impl Spanned<RespondSection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<Respond> {
        let RespondSection { status, json, text, body, content_type } = self.value;
        let given = [json.is_some(), text.is_some(), body.is_some()].into_iter().filter(|given| *given).count();
        if given > 1 {
            cx.error(self.span, "an answer has at most one of `json`, `text` and `body`", None);
            return None;
        }
        let (default_type, bytes) = match (json, text, body) {
            (Some(json), ..) => ("application/json", json.0.to_string().into_bytes()),
            (_, Some(text), _) => ("text/plain; charset=utf-8", text.into_bytes()),
            (.., Some(body)) => ("application/octet-stream", body.into_bytes()),
            (None, None, None) => ("", Vec::new()),
        };
        let code = status.value.0 as u16;
        if matches!(code, 204 | 205 | 304) && !bytes.is_empty() {
            cx.error(status.span, format!("an answer with status {code} has no body"), None);
        }
        if bytes.len() as u64 > BODY_BYTES_MAX {
            let message = format!("the body has {} bytes: more than {BODY_BYTES_MAX}", bytes.len());
            cx.error(self.span, message, "serve large answers from a service");
        }
        if let Some(written) = &content_type
            && (given == 0 || !written.value.bytes().all(|byte| matches!(byte, 0x20..=0x7e)))
        {
            cx.error(written.span, "a content type is printable ASCII, and belongs to a body", None);
        }
        let content_type = content_type.map_or_else(|| Arc::from(default_type), |written| Arc::from(written.value));
        Some(Respond { status: code, content_type, body: Arc::from(bytes) })
    }
}

impl Spanned<RewriteSection> {
    /// `written`: the route's `path` or `prefix`.
    pub(crate) fn compile(
        self,
        written: Option<&Spanned<String>>,
        parameters: &[String],
        cx: &mut Cx,
    ) -> Option<Rewrite> {
        match (self.value.strip_prefix, self.value.path) {
            (Some(prefix), None) => strip(&prefix, written, cx),
            (None, Some(path)) => {
                let text = path.value.0.as_str();
                if !text.starts_with('/') {
                    cx.error(path.span, "a path starts with `/`", None);
                }
                if let Some(bad) = text.chars().find(|c| *c <= ' ' || !c.is_ascii() || matches!(c, '?' | '#')) {
                    let hint = "the query of the request is kept as it is";
                    cx.error(path.span, format!("{bad:?} has no place in a path"), hint);
                }
                path.compile(parameters, true, cx).map(Rewrite::Path)
            }
            _ => {
                cx.error(self.span, "expected exactly one of `strip_prefix` and `path`", None);
                None
            }
        }
    }
}

/// What is stripped must be in front of every path that the route matches.
fn strip(prefix: &Spanned<String>, written: Option<&Spanned<String>>, cx: &mut Cx) -> Option<Rewrite> {
    let text = prefix.value.trim_end_matches('/');
    if text.is_empty() || !text.starts_with('/') || text.contains('{') {
        cx.error(prefix.span, "expected a path of one or more segments without parameters", "such as `/api`");
        return None;
    }
    let path = written.map_or("/", |written| &written.value);
    match path.strip_prefix(text) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(Rewrite::Strip(text.len())),
        _ => {
            let message = format!("`{text}` is not in front of the route's path `{path}`");
            cx.error(prefix.span, message, "strip what `match` asks for");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_follows_the_core_schema() {
        let plain = |text: &'static str| {
            let scalar = Scalar { text: text.into(), plain: true, origin: None };
            json_of_scalar(&scalar).to_string()
        };
        for (text, json) in [
            ("1", "1"),
            ("-1.5e3", "-1500.0"),
            ("18446744073709551615", "18446744073709551615"),
            ("true", "true"),
            ("~", "null"),
            ("nan", r#""nan""#),
            ("1_000", r#""1_000""#),
            ("-", r#""-""#),
            ("yes", r#""yes""#),
        ] {
            assert_eq!(plain(text), json);
        }
    }

    #[test]
    fn authorities() {
        for good in ["a", "a.example", "a:80", "10.0.0.1:80", "[::1]", "[::1]:80"] {
            assert!(is_authority(good), "{good}");
        }
        for bad in ["", "a:", "a:0", "::1", "[::1", "[::1]80", "a/b", "a b", "http://a"] {
            assert!(!is_authority(bad), "{bad}");
        }
    }
}
