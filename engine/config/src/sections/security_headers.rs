//! Headers that tell browsers to be careful.

use std::sync::Arc;

use ringway_core::access::SecurityHeaders;
use ringway_core::access::security_headers::{Preset, SecurityHeader};
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode, Spanned};
use crate::scalar::{OrOff, choice, one_of, parsed};
use crate::shape::shape;
use crate::suggest;
use crate::tree::{Node, Value};

shape! {
    /// Headers that tell browsers to be careful: those of a preset, changed one by one. `off`: the service's own stays.
    pub(crate) struct SecurityHeadersSection {
        /// `basic`: what no site misses. `strict`: for sites that load nothing from elsewhere and are embedded nowhere.
        /// `api`: for answers that are no pages. `off`: only what is written here.
        preset: Preset = "basic",
        /// What the service has set stays. Else it is replaced.
        if_absent: bool = "false",
        /// Send `Strict-Transport-Security` also where the client came without TLS, as behind a proxy that ends it.
        hsts_without_tls: bool = "false",
        /// RFC 6797, such as `max-age=31536000; includeSubDomains`.
        strict_transport_security: Option<HeaderText>,
        /// W3C Content Security Policy.
        content_security_policy: Option<HeaderText>,
        /// `DENY` or `SAMEORIGIN` (RFC 7034).
        x_frame_options: Option<HeaderText>,
        /// `nosniff`.
        x_content_type_options: Option<HeaderText>,
        /// W3C Referrer Policy.
        referrer_policy: Option<HeaderText>,
        /// W3C Permissions Policy, such as `camera=(), geolocation=(self)`.
        permissions_policy: Option<HeaderText>,
        /// `same-origin`, `same-origin-allow-popups`, `noopener-allow-popups` or `unsafe-none`.
        cross_origin_opener_policy: Option<HeaderText>,
        /// `require-corp`, `credentialless` or `unsafe-none`.
        cross_origin_embedder_policy: Option<HeaderText>,
        /// `same-origin`, `same-site` or `cross-origin`.
        cross_origin_resource_policy: Option<HeaderText>,
    }
}

choice! {
    Preset { "basic" => Preset::Basic, "strict" => Preset::Strict, "api" => Preset::Api, "off" => Preset::Off }
}

/// A header's value, or `off`.
type HeaderText = OrOff<Spanned<FieldValue>>;

#[derive(Debug, Clone)]
pub(crate) struct FieldValue(String);

impl Decode for FieldValue {
    fn kind() -> String {
        "a header's value".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        const LENGTH_MAX: usize = 4096;
        parsed(node, cx, |text| {
            let fits = (1..=LENGTH_MAX).contains(&text.len()) && text.trim() == text;
            match fits && text.bytes().all(|byte| matches!(byte, 0x20..=0x7e)) {
                true => Ok(Self(text.to_owned())),
                false => Err(Some(format!("up to {LENGTH_MAX} printable ASCII characters, in one line"))),
            }
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// A preset by name, or a section.
#[derive(Debug)]
pub(crate) enum SecurityHeadersChoice {
    Preset(Preset),
    Section(Box<SecurityHeadersSection>),
}

impl Decode for SecurityHeadersChoice {
    fn kind() -> String {
        format!("{}, or a section of keys", Preset::kind())
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match (&node.value, node.scalar().map(|scalar| &*scalar.text)) {
            (Value::Map(_), _) => SecurityHeadersSection::decode(node, cx).map(|section| Self::Section(section.into())),
            (_, Some("basic" | "strict" | "api" | "off")) => Preset::decode(node, cx).map(Self::Preset),
            (_, word) => {
                let hint = word.and_then(|word| suggest::closest(word, ["basic", "strict", "api", "off"]));
                cx.mismatch::<Self>(node, hint.map(|word| format!("did you mean `{word}`?")));
                None
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [Preset::schema(generator), SecurityHeadersSection::schema(generator)] })
    }
}

impl SecurityHeadersChoice {
    /// `None` where there are none, or after an error.
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<Arc<SecurityHeaders>> {
        let (preset, if_absent, hsts_without_tls, written) = match self {
            Self::Preset(preset) => (preset, false, false, Vec::new()),
            Self::Section(section) => (section.preset, section.if_absent, section.hsts_without_tls, section.written()),
        };
        let mut headers = Vec::new();
        for header in SecurityHeader::ALL {
            let own = written.iter().find(|(name, _)| *name == header).and_then(|(_, text)| text.as_ref());
            let value = match own {
                None => preset.value(header).map(str::to_owned),
                Some(text) => text.0.as_ref().map(|text| {
                    check(header, text, cx);
                    text.value.0.clone()
                }),
            };
            headers.extend(value.map(|value| (header, value)));
        }
        (!headers.is_empty()).then(|| Arc::new(SecurityHeaders::new(headers, if_absent, hsts_without_tls)))
    }
}

impl SecurityHeadersSection {
    fn written(self) -> Vec<(SecurityHeader, Option<HeaderText>)> {
        use SecurityHeader as H;
        vec![
            (H::StrictTransportSecurity, self.strict_transport_security),
            (H::ContentSecurityPolicy, self.content_security_policy),
            (H::XFrameOptions, self.x_frame_options),
            (H::XContentTypeOptions, self.x_content_type_options),
            (H::ReferrerPolicy, self.referrer_policy),
            (H::PermissionsPolicy, self.permissions_policy),
            (H::CrossOriginOpenerPolicy, self.cross_origin_opener_policy),
            (H::CrossOriginEmbedderPolicy, self.cross_origin_embedder_policy),
            (H::CrossOriginResourcePolicy, self.cross_origin_resource_policy),
        ]
    }
}

/// A browser ignores what it does not know, and then there is no protection.
fn check(header: SecurityHeader, text: &Spanned<FieldValue>, cx: &mut Cx) {
    use SecurityHeader as H;
    let value = text.value.0.as_str();
    let words: &[&str] = match header {
        H::XFrameOptions => &["DENY", "SAMEORIGIN"],
        H::XContentTypeOptions => &["nosniff"],
        H::CrossOriginOpenerPolicy => {
            &["same-origin", "same-origin-allow-popups", "noopener-allow-popups", "unsafe-none"]
        }
        H::CrossOriginEmbedderPolicy => &["require-corp", "credentialless", "unsafe-none"],
        H::CrossOriginResourcePolicy => &["same-origin", "same-site", "cross-origin"],
        H::ReferrerPolicy => &[
            "no-referrer",
            "no-referrer-when-downgrade",
            "origin",
            "origin-when-cross-origin",
            "same-origin",
            "strict-origin",
            "strict-origin-when-cross-origin",
            "unsafe-url",
        ],
        H::StrictTransportSecurity => return check_hsts(value, text, cx),
        H::ContentSecurityPolicy | H::PermissionsPolicy => return,
    };
    // A referrer policy may be a list, the last that a browser knows counts; the opener's and embedder's have parameters.
    let separator = if header == H::ReferrerPolicy { ',' } else { ';' };
    let mut parts = value.split(separator).map(str::trim);
    let known = |part: &str| words.iter().any(|word| word.eq_ignore_ascii_case(part));
    let good = match header {
        H::ReferrerPolicy => parts.all(known),
        _ => parts.next().is_some_and(known),
    };
    if !good {
        let hint = suggest::closest(value, words.iter().copied()).map(|word| format!("did you mean `{word}`?"));
        let message = format!("`{}` is {}", header.name(), one_of(words));
        cx.sink.error(text.span, message, hint);
    }
}

/// RFC 6797 section 6.1.
fn check_hsts(value: &str, text: &Spanned<FieldValue>, cx: &mut Cx) {
    let (mut max_age, mut subdomains, mut preload) = (None, false, false);
    for directive in value.split(';').map(str::trim) {
        let lower = directive.to_ascii_lowercase();
        match lower.strip_prefix("max-age=") {
            Some(number) if max_age.is_none() => max_age = number.trim_matches('"').parse::<u64>().ok(),
            None if lower == "includesubdomains" => subdomains = true,
            None if lower == "preload" => preload = true,
            _ => {
                let hint = "such as `max-age=31536000; includeSubDomains`";
                cx.error(text.span, "`Strict-Transport-Security` has no such directive", hint);
                return;
            }
        }
    }
    match max_age {
        None => cx.error(text.span, "`Strict-Transport-Security` needs a `max-age` in seconds", "`max-age=31536000`"),
        Some(seconds) if preload && (seconds < 31_536_000 || !subdomains) => {
            cx.error(text.span, "`preload` asks for a `max-age` of 31536000 or more and `includeSubDomains`", None);
        }
        Some(_) => {}
    }
}
