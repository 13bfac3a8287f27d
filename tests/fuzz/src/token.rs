//! JSON Web Tokens, as they come and as they are once they are signed.

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use ringway_core::auth::jwt::{Rules, verify};
use ringway_core::auth::{Algorithm, Algorithms, ClaimHeader, ClaimPath, KeySet};
use serde_json::Value;

pub const DICTIONARY: &[&str] = &[
    HEADERS[0],
    HEADERS[1],
    HEADERS[2],
    PAYLOAD,
    "eyJhbGciOiJub25lIn0",
    "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
    ".",
    "=",
    "\0",
    "{",
    "}",
    "{\"alg\":\"HS256\"",
    ",\"kid\":\"a\"",
    ",\"typ\":\"JWT\"",
    ",\"crit\":[]",
    ",\"cty\":\"JWT\"",
    ",\"alg\":\"none\"",
    "{\"exp\":1300819380",
    ",\"nbf\":",
    ",\"iat\":-1",
    ",\"aud\":[\"api\"]",
    ",\"sub\":\"\\r\\n",
    ",\"roles\":[\"a,b\",1]",
    ",\"scope\":\"a b\"",
    "1e999",
    "1.5",
    "\\u0000",
    "\u{e9}",
];

/// RFC 7515 appendices A.1 to A.3.
const HEADERS: [&str; 3] = ["eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJSUzI1NiJ9", "eyJhbGciOiJFUzI1NiJ9"];
const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const KEYS: &str = include_str!("../corpus/jwks/rfc7515");
const NOW: u64 = 1_300_000_000;

static SET: LazyLock<KeySet> = LazyLock::new(|| KeySet::from_jwks(KEYS.as_bytes(), true).expect("good keys"));

/// A token; or, with a NUL in it, the header and the claims of one that is signed.
pub fn target(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match text.split_once('\0') {
        None => check_forged(&text),
        Some((header, claims)) => check_signed(header, claims),
    }
}

fn rules() -> Rules {
    let header = |name: &str, claim| ClaimHeader { name: name.into(), claim: ClaimPath::parse(claim).expect("a path") };
    Rules {
        headers: vec![header("X-User", "sub"), header("X-Roles", "roles"), header("X-Any", "any")],
        ..Rules::new(Algorithms::new(Algorithm::ALL).expect("algorithms"))
    }
}

/// Nobody but the owner of a key makes a token: what verifies is an example of the RFC, to the byte.
fn check_forged(token: &str) {
    if verify(&rules(), &SET, token, NOW).is_ok() {
        let (header, rest) = token.split_once('.').expect("parts");
        let (payload, _) = rest.split_once('.').expect("parts");
        assert!(HEADERS.contains(&header) && payload == PAYLOAD, "{token}");
    }
}

/// Whatever its owner signs, an identity keeps to the rules.
fn check_signed(header: &str, claims: &str) {
    static SECRET: [u8; 64] = [7; 64];
    static OWN: LazyLock<KeySet> = LazyLock::new(|| KeySet::from_secret(&SECRET).expect("a long secret"));
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let message = [encode(header), encode(claims)].join(".");
    let sign =
        |algorithm| jsonwebtoken::crypto::sign(message.as_bytes(), &EncodingKey::from_secret(&SECRET), algorithm);
    let token = [message.as_str(), &sign(jsonwebtoken::Algorithm::HS256).expect("a signature")].join(".");
    let Ok(identity) = verify(&rules(), &OWN, &token, NOW) else { return };

    let read: Value = serde_json::from_str(claims).expect("an object");
    assert_eq!(read, Value::Object(identity.claims.clone()), "one reading");
    assert!(identity.expires_at.is_some_and(|expires| expires + 60 > NOW));
    assert!(identity.claims.get("aud").is_none(), "a token for somebody else");
    let header: Value = serde_json::from_str(header).expect("an object");
    assert!(header["alg"] == "HS256" && header.get("crit").is_none() && header.get("b64").is_none());
    let lines = String::from_utf8(identity.header_lines).expect("text");
    for line in lines.split_terminator("\r\n") {
        let (name, value) = line.split_once(": ").expect("a field");
        assert!(["X-User", "X-Roles", "X-Any"].contains(&name) && !value.is_empty());
        assert!(value.bytes().all(|byte| matches!(byte, b' '..=b'~')) && value.trim() == value, "{value}");
    }
}
