//! The service is told a token and answers what it stands for (RFC 7662).

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::check::{write_identifiers, write_line};
use super::{Asking, Verdict};
use crate::auth::credentials::{self, CredentialsError, Place};
use crate::auth::{ClaimHeader, ClaimPath, Identity, Method, claim, encoding, headers};

/// How tokens are looked up.
#[derive(PartialEq)]
pub struct Introspection {
    pub path: Box<str>,
    /// The gateway's own `Authorization`, as [`basic_credentials`] makes one. A secret.
    pub authorization: Option<Box<str>>,
    /// Where a request has its token.
    pub places: Vec<Place>,
    /// What `aud` must name; `None`: anything.
    pub audience: Option<Box<str>>,
    /// Where the answer says who it is; without it `username` does.
    pub user: ClaimPath,
    pub roles: Option<ClaimPath>,
    /// Fields for the service behind.
    pub headers: Vec<ClaimHeader>,
}

/// `Basic ...` of a client's identifier and secret (RFC 6749 section 2.3.1).
pub fn basic_credentials(client_id: &str, client_secret: &str) -> String {
    let mut pair = Vec::new();
    write_form(client_id.as_bytes(), &mut pair);
    pair.push(b':');
    write_form(client_secret.as_bytes(), &mut pair);
    format!("Basic {}", STANDARD.encode(pair))
}

/// Leaves out the secret.
impl fmt::Debug for Introspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Introspection").field("path", &self.path).field("places", &self.places).finish_non_exhaustive()
    }
}

impl Introspection {
    /// The token is the key: nothing else is told.
    pub(super) fn write_key(&self, asking: &Asking<'_>, out: &mut Vec<u8>) -> Result<bool, CredentialsError> {
        let found = credentials::find(&self.places, asking.headers, asking.query)?;
        out.extend_from_slice(found.as_deref().unwrap_or_default().as_bytes());
        Ok(found.is_some())
    }

    pub(super) fn write_request(&self, host: &str, asking: &Asking<'_>, token: &[u8], out: &mut Vec<u8>) {
        const BEFORE: &[u8] = b"token=";
        const BEHIND: &[u8] = b"&token_type_hint=access_token";
        out.extend_from_slice(b"POST ");
        out.extend_from_slice(self.path.as_bytes());
        out.extend_from_slice(b" HTTP/1.1\r\n");
        write_line("Host", host.as_bytes(), out);
        if let Some(authorization) = &self.authorization {
            write_line("Authorization", authorization.as_bytes(), out);
        }
        out.extend_from_slice(b"Accept: application/json\r\nContent-Type: application/x-www-form-urlencoded\r\n");
        write_identifiers(asking, out);
        let escaped = token.iter().filter(|byte| !is_unreserved(**byte)).count();
        let length = BEFORE.len() + token.len() + 2 * escaped + BEHIND.len();
        write_line("Content-Length", itoa::Buffer::new().format(length).as_bytes(), out);
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(BEFORE);
        write_form(token, out);
        out.extend_from_slice(BEHIND);
    }

    /// Reads the body of a 200.
    pub(super) fn judge(&self, body: &[u8], unix_s: u64) -> Verdict {
        let Some(claims) = encoding::from_json_object(body) else { return Verdict::Down("not_json") };
        match claims.get("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Verdict::Invalid("the token is not active"),
            _ => return Verdict::Down("no_active"),
        }
        let expires_at = match claims.get("exp") {
            None | Some(Value::Null) => None,
            Some(exp) => match exp.as_u64().or_else(|| exp.as_f64().map(|exp| exp as u64)) {
                None => return Verdict::Down("bad_exp"),
                Some(exp) if exp <= unix_s => return Verdict::Invalid("the token has expired"),
                exp => exp,
            },
        };
        let is_for = |own: &str| claims.get("aud").is_some_and(|aud| claim::items(aud).iter().any(|aud| **aud == *own));
        if self.audience.as_deref().is_some_and(|audience| !is_for(audience)) {
            return Verdict::Invalid("the token is for another audience");
        }
        let Some(header_lines) = headers::lines(&self.headers, &claims) else {
            return Verdict::Down("headers_too_long");
        };
        let text = |value: Option<&Value>| value.and_then(claim::text);
        Verdict::Pass(Arc::new(Identity {
            method: Method::AuthService,
            user: text(self.user.find(&claims)).or_else(|| text(claims.get("username"))),
            roles: self.roles.as_ref().and_then(|roles| roles.find(&claims)).map(claim::items).unwrap_or_default(),
            scopes: claims.get("scope").map(claim::spaced_items).unwrap_or_default(),
            header_lines,
            expires_at,
            token_id: text(claims.get("jti")),
            claims,
        }))
    }
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Appends a value of `application/x-www-form-urlencoded`.
fn write_form(value: &[u8], out: &mut Vec<u8>) {
    for byte in value {
        if is_unreserved(*byte) {
            out.push(*byte);
        } else {
            let [.., high, low] = crate::hex::digits(u64::from(*byte));
            out.extend_from_slice(&[b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{asked, asking, header, judged, service};
    use super::super::{AuthService, Mode};
    use super::*;

    fn introspection(audience: Option<&str>) -> AuthService {
        service(Mode::Introspection(Introspection {
            path: "/introspect".into(),
            authorization: Some(basic_credentials("s6BhdRkqt3", "7Fjfp0ZBr1KtDRbnfVdmIw").into()),
            places: vec![Place::bearer()],
            audience: audience.map(Into::into),
            user: ClaimPath::parse("sub").unwrap(),
            roles: Some(ClaimPath::parse("/realm_access/roles").unwrap()),
            headers: vec![ClaimHeader { name: "X-User-Id".into(), claim: ClaimPath::parse("sub").unwrap() }],
        }))
    }

    fn answer(body: &str) -> Verdict {
        judged(&introspection(None), "HTTP/1.1 200 OK\r\n\r\n", body)
    }

    #[test]
    fn a_token_is_asked_about_as_the_rfc_says() {
        let request = asked(&introspection(None), &[header("Authorization", "bearer a.b+/=~"), header("Cookie", "x")]);
        let request = request.unwrap();
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            head,
            // The credentials are those of RFC 6749 section 2.3.1.
            "POST /introspect HTTP/1.1\r\nHost: auth\r\n\
             Authorization: Basic czZCaGRSa3F0Mzo3RmpmcDBaQnIxS3REUmJuZlZkbUl3\r\nAccept: application/json\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nX-Request-ID: 0190-id\r\nContent-Length: 48"
        );
        assert_eq!(body, "token=a.b%2B%2F%3D~&token_type_hint=access_token");
        assert_eq!(body.len(), 48);
    }

    #[test]
    fn the_token_alone_is_the_key_and_two_are_refused() {
        let key = |headers: &[httparse::Header<'_>]| {
            let mut out = Vec::new();
            introspection(None).key(&asking(headers), &mut out).map(|found| (found, out))
        };
        assert_eq!(key(&[header("Authorization", "Bearer abc"), header("X", "1")]), Ok((true, b"abc".to_vec())));
        assert_eq!(key(&[header("Authorization", "Basic abc")]), Ok((false, vec![])));
        let twice = [header("Authorization", "Bearer abc"), header("Authorization", "Bearer abd")];
        assert_eq!(key(&twice), Err(CredentialsError::Several));
    }

    #[test]
    fn an_active_token_says_who_it_is() {
        let verdict = answer(
            r#"{"active":true,"sub":"Z5O3","username":"jdoe","scope":"read write","exp":1419356238,"jti":"7",
                "realm_access":{"roles":["admin"]}}"#,
        );
        let Verdict::Pass(identity) = verdict else { panic!("{verdict:?}") };
        assert_eq!((identity.user.as_deref(), identity.token_id.as_deref()), (Some("Z5O3"), Some("7")));
        assert!(identity.has_role("admin") && identity.has_scope("read") && identity.has_scope("write"));
        assert_eq!(identity.expires_at, Some(1_419_356_238));
        assert_eq!(identity.header_lines, b"X-User-Id: Z5O3\r\n");

        let Verdict::Pass(identity) = answer(r#"{"active":true,"username":"jdoe"}"#) else { panic!("refused") };
        assert_eq!((identity.user.as_deref(), identity.expires_at), (Some("jdoe"), None));
    }

    #[test]
    fn what_is_not_active_now_and_here_counts_for_nothing() {
        for body in [r#"{"active":false}"#, r#"{"active":true,"exp":1000}"#, r#"{"active":true,"exp":-5.5}"#] {
            assert!(matches!(answer(body), Verdict::Invalid(_)), "{body}");
        }
        let audience = |body| judged(&introspection(Some("api")), "HTTP/1.1 200 OK\r\n\r\n", body);
        assert!(matches!(audience(r#"{"active":true}"#), Verdict::Invalid(_)));
        assert!(matches!(audience(r#"{"active":true,"aud":"apis"}"#), Verdict::Invalid(_)));
        assert!(matches!(audience(r#"{"active":true,"aud":["x","api"]}"#), Verdict::Pass(_)));
    }

    #[test]
    fn what_is_no_answer_lets_nobody_pass() {
        for body in [
            "",
            "[]",
            "true",
            r#"{"active":"true"}"#,
            r#"{"active":1}"#,
            r#"{}"#,
            r#"{"active":false,"active":true}"#,
            r#"{"active":true,"exp":"soon"}"#,
        ] {
            assert!(matches!(answer(body), Verdict::Down(_)), "{body}");
        }
        for status in [201, 204, 302, 401, 403, 404, 500, 503] {
            let head = format!("HTTP/1.1 {status} X\r\n\r\n");
            assert!(matches!(judged(&introspection(None), &head, r#"{"active":true}"#), Verdict::Down(_)), "{status}");
        }
    }

    #[test]
    fn the_secret_is_not_shown() {
        assert!(!format!("{:?}", introspection(None)).contains("czZC"));
    }
}
