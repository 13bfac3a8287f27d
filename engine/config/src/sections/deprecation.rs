//! Notices that a route is going away.

use ringway_core::access::Deprecation;
use ringway_core::access::deprecation::{DeprecationSpec, unix_seconds};
use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode, Spanned};
use crate::scalar::parsed;
use crate::shape::shape;
use crate::tree::Node;

shape! {
    /// Tells clients that the route is going away. One key at least.
    pub(crate) struct DeprecationSection {
        /// Since when, or from when on: `Deprecation` (RFC 9745).
        since: Option<Date>,
        /// When it ends: `Sunset` (RFC 8594).
        sunset: Option<Spanned<Date>>,
        /// A page about it: `Link`, `rel="deprecation"`.
        link: Option<Url>,
        /// A page about the end: `Link`, `rel="sunset"`.
        sunset_link: Option<Url>,
        /// What to use instead: `Link`, `rel="successor-version"`.
        successor: Option<Url>,
    }
}

/// Seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Date(u64);

impl Decode for Date {
    fn kind() -> String {
        "a date".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let hint = "as of RFC 3339: `2026-01-31` or `2026-01-31T10:00:00Z`";
        parsed(node, cx, |text| unix_seconds(text).map(Self).ok_or(Some(hint.into())))
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// A URL or a path.
#[derive(Debug, Clone)]
pub(crate) struct Url(String);

impl Decode for Url {
    fn kind() -> String {
        "a URL or a path".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        const LENGTH_MAX: usize = 2048;
        parsed(node, cx, |text| {
            let starts = ["/", "http://", "https://"].iter().any(|start| text.starts_with(start));
            let allowed = |byte: u8| matches!(byte, 0x21..=0x7e) && !b"<>\"\\^`{|}".contains(&byte);
            match starts && text.len() <= LENGTH_MAX && text.bytes().all(allowed) {
                true => Ok(Self(text.to_owned())),
                false => Err(Some("such as `https://docs.example/v1` or `/v2`, percent-encoded".into())),
            }
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(/|https?://)" })
    }
}

impl Spanned<DeprecationSection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<Deprecation> {
        let section = self.value;
        if let (Some(since), Some(sunset)) = (section.since, &section.sunset)
            && sunset.value.0 < since.0
        {
            cx.error(
                sunset.span,
                "`sunset` is before `since`",
                "a route ends after it is deprecated (RFC 9745 section 4)",
            );
        }
        let text = |url: Option<Url>| url.map(|url| url.0);
        let spec = DeprecationSpec {
            since: section.since.map(|date| date.0),
            sunset: section.sunset.map(|date| date.value.0),
            link: text(section.link),
            sunset_link: text(section.sunset_link),
            successor: text(section.successor),
        };
        if spec == DeprecationSpec::default() {
            cx.error(self.span, "`deprecation` says nothing", "such as `{ since: 2026-01-31, successor: /v2 }`");
            return None;
        }
        Some(Deprecation::new(&spec))
    }
}
