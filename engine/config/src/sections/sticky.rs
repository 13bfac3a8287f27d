//! Sessions that stay with an endpoint.

use std::sync::Arc;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode, Spanned};
use crate::scalar::{Auto, Or, OrOff, choice, is_token, parsed};
use crate::shape::shape;
use crate::sticky::{Secure, Sticky, own_secret};
use crate::tree::Node;
use crate::units::{DAY_MS, Time};

/// Bytes of a secret, at least.
const SECRET_BYTES_MIN: usize = 16;

shape! {
    /// A cookie of the gateway's tells which endpoint a client keeps.
    pub(crate) struct StickySection {
        /// Its name. Another one for each service that a client may meet under the same host and path.
        cookie: CookieName,
        /// What its values are signed with, 16 bytes or more; gateways that share clients need the same one. Without it: one by
        /// chance for each start of the process.
        secret: Option<Spanned<String>>,
        /// How long browsers keep it, from the first answer on. `off`: until they are closed.
        ttl: OrOff<Time<1_000, { 400 * DAY_MS }>> = "off",
        /// The paths that browsers send it with.
        path: CookiePath = "/",
        /// Whether browsers send it with requests that other sites cause.
        same_site: SameSite = "lax",
        /// Browsers send it over TLS only. `auto`: where it was set over TLS.
        secure: Or<Auto, bool> = "auto",
        /// Scripts do not see it.
        http_only: bool = "true",
        /// The service does not get it.
        indirect: bool = "false",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SameSite {
    Lax,
    Strict,
    None,
    Off,
}

choice! {
    SameSite {
        "lax" => SameSite::Lax,
        "strict" => SameSite::Strict,
        "none" => SameSite::None,
        "off" => SameSite::Off,
    }
}

/// The name of a cookie.
#[derive(Debug)]
pub(crate) struct CookieName(String);

impl Decode for CookieName {
    fn kind() -> String {
        "the name of a cookie".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        const LENGTH_MAX: usize = 64;
        parsed(node, cx, |text| match is_token(text) && text.len() <= LENGTH_MAX {
            true => Ok(Self(text.to_owned())),
            false => Err(Some(format!("a token of up to {LENGTH_MAX} characters, such as `stay`"))),
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

/// The paths of a cookie.
#[derive(Debug)]
pub(crate) struct CookiePath(String);

impl Decode for CookiePath {
    fn kind() -> String {
        "a path".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        const LENGTH_MAX: usize = 256;
        parsed(node, cx, |text| {
            let allowed = |byte: u8| matches!(byte, 0x21..=0x7e) && byte != b';';
            match text.starts_with('/') && text.len() <= LENGTH_MAX && text.bytes().all(allowed) {
                true => Ok(Self(text.to_owned())),
                false => Err(Some("such as `/` or `/shop`".into())),
            }
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl Spanned<StickySection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<Sticky> {
        let StickySection { cookie, secret, ttl, path, same_site, secure, http_only, indirect } = self.value;
        if same_site == SameSite::None && secure.0 == Some(false) {
            cx.error(self.span, "browsers drop a cookie with `same_site: none` that is not `secure`", None);
        }
        let name = &cookie.0;
        if (name.starts_with("__Secure-") || name.starts_with("__Host-")) && secure.0 == Some(false) {
            cx.error(self.span, format!("browsers drop a cookie named `{name}` that is not `secure`"), None);
        }
        if name.starts_with("__Host-") && path.0 != "/" {
            cx.error(self.span, format!("browsers drop a cookie named `{name}` whose `path` is not `/`"), None);
        }
        let secret: Arc<[u8]> = match secret {
            None => own_secret().into(),
            Some(written) if written.value.len() < SECRET_BYTES_MIN => {
                let message = format!("the secret has {} bytes: fewer than {SECRET_BYTES_MIN}", written.value.len());
                cx.error(written.span, message, "such as the output of `openssl rand -base64 32`");
                return None;
            }
            Some(written) => written.value.into_bytes().into(),
        };
        let mut attributes = format!("; Path={}", path.0);
        if let Some(ttl) = ttl.0 {
            attributes += &format!("; Max-Age={}", ttl.0.as_secs());
        }
        if http_only {
            attributes += "; HttpOnly";
        }
        attributes += match same_site {
            SameSite::Lax => "; SameSite=Lax",
            SameSite::Strict => "; SameSite=Strict",
            SameSite::None => "; SameSite=None",
            SameSite::Off => "",
        };
        let secure = match secure.0 {
            None => Secure::Auto,
            Some(true) => Secure::Always,
            Some(false) => Secure::Never,
        };
        let (cookie, attributes) = (cookie.0.into(), attributes.into());
        Some(Sticky { cookie, secret: secret.into(), attributes, secure, is_indirect: indirect })
    }
}
