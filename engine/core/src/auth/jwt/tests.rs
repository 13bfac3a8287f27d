//! The RFCs' own examples, every algorithm, and the attacks of RFC 8725.

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaPublicKeyComponents};
use jsonwebtoken::EncodingKey;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::auth::encoding::to_base64url;
use crate::auth::{Algorithm, KeySetError};
use Algorithm::*;

const NOW: u64 = 1_800_000_000;
const SECRET: &[u8] = &[b's'; 64];

/// A private key of each kind, and the set of their public keys.
struct Keys {
    rsa: Vec<u8>,
    p256: Vec<u8>,
    p384: Vec<u8>,
    ed25519: Vec<u8>,
    jwks: Value,
    rsa_der: Vec<u8>,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let random = SystemRandom::new();
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let components = RsaPublicKeyComponents::<Vec<u8>>::from(rsa.public_key());
    let rsa_der = rsa.public_key().as_ref().to_vec();
    let ec = |algorithm| EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap().as_ref().to_vec();
    let (p256, p384) =
        (ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING), ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING));
    let ed25519 = Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref().to_vec();
    let point = |algorithm, pkcs8: &[u8], kid, curve| {
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, pkcs8).unwrap();
        let point = &pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(point.len() / 2);
        json!({ "kid": kid, "kty": "EC", "crv": curve, "x": to_base64url(x), "y": to_base64url(y) })
    };
    let jwks = json!({ "keys": [
        { "kid": "hmac", "kty": "oct", "k": to_base64url(SECRET) },
        { "kid": "rsa", "kty": "RSA", "n": to_base64url(&components.n), "e": to_base64url(&components.e) },
        point(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &p256, "p256", "P-256"),
        point(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, &p384, "p384", "P-384"),
        { "kid": "ed", "kty": "OKP", "crv": "Ed25519",
          "x": to_base64url(Ed25519KeyPair::from_pkcs8(&ed25519).unwrap().public_key().as_ref()) },
    ]});
    let rsa = AsDer::<Pkcs8V1Der<'_>>::as_der(&rsa).unwrap().as_ref().to_vec();
    // PKCS#8 around PKCS#1, which is what the library signs with.
    Keys { rsa: pkcs1_of(&rsa).to_vec(), p256, p384, ed25519, jwks, rsa_der }
});

/// The private key inside of PKCS#8: an OCTET STRING with a length of two bytes, behind version and algorithm.
fn pkcs1_of(pkcs8: &[u8]) -> &[u8] {
    let at = pkcs8.windows(2).position(|bytes| bytes == [0x04, 0x82]).unwrap();
    &pkcs8[at + 4..]
}

fn kid_of(algorithm: Algorithm) -> &'static str {
    match algorithm {
        HS256 | HS384 | HS512 => "hmac",
        ES256 => "p256",
        ES384 => "p384",
        EdDSA => "ed",
        _ => "rsa",
    }
}

fn sign(algorithm: Algorithm, header: &str, claims: &str) -> String {
    let key = match kid_of(algorithm) {
        "hmac" => EncodingKey::from_secret(SECRET),
        "rsa" => EncodingKey::from_rsa_der(&KEYS.rsa),
        "p256" => EncodingKey::from_ec_der(&KEYS.p256),
        "p384" => EncodingKey::from_ec_der(&KEYS.p384),
        _ => EncodingKey::from_ed_der(&KEYS.ed25519),
    };
    sign_with(&key, algorithm, header, claims)
}

fn sign_with(key: &EncodingKey, algorithm: Algorithm, header: &str, claims: &str) -> String {
    let message = [to_base64url(header.as_bytes()), to_base64url(claims.as_bytes())].join(".");
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm.for_library()).unwrap();
    [message, signature].join(".")
}

fn all_rules() -> Rules {
    Rules::new(Algorithms::new(Algorithm::ALL).unwrap())
}

fn keys(jwks: &Value) -> KeySet {
    KeySet::from_jwks(jwks.to_string().as_bytes(), true).unwrap()
}

fn all_keys() -> KeySet {
    keys(&KEYS.jwks)
}

/// A token of HS256 with this header and these claims, judged.
fn judged(rules: &Rules, header: &str, claims: &str) -> Result<Identity, JwtError> {
    verify(rules, &all_keys(), &sign(HS256, header, claims), NOW)
}

const HEADER: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

fn claims(more: &str) -> String {
    format!(r#"{{"exp":{}{more}}}"#, NOW + 300)
}

// RFC 7515 appendices A.1 to A.3; the first is also the example of RFC 7519 section 3.1.
const RFC_PAYLOAD: &str =
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const RFC_KEYS: &str = r#"{"keys":[
  {"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"},
  {"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"},
  {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},
  {"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
const RFC_TOKENS: [(&str, &str); 3] = [
    ("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
    (
        "eyJhbGciOiJSUzI1NiJ9",
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
    ),
    ("eyJhbGciOiJFUzI1NiJ9", "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"),
];
const RFC_EXPIRES: u64 = 1_300_819_380;

#[test]
fn the_examples_of_rfc_7515_and_7519() {
    let keys = KeySet::from_jwks(RFC_KEYS.as_bytes(), true).unwrap();
    let rules = Rules { leeway_s: 0, issuer: Some("joe".into()), ..all_rules() };
    for (header, signature) in RFC_TOKENS {
        let token = [header, RFC_PAYLOAD, signature].join(".");
        let identity = verify(&rules, &keys, &token, RFC_EXPIRES - 1).unwrap();
        assert_eq!(identity.claims["http://example.com/is_root"], true);
        assert_eq!(identity.expires_at, Some(RFC_EXPIRES));
        assert_eq!(verify(&rules, &keys, &token, RFC_EXPIRES), Err(JwtError::Expired));
    }
    // RFC 7519 section 6.1: unsecured.
    let unsecured = ["eyJhbGciOiJub25lIn0", RFC_PAYLOAD, ""].join(".");
    assert_eq!(verify(&rules, &keys, &unsecured, 0), Err(JwtError::Malformed));
    // RFC 8037 appendix A.4 signs a text that is no JSON: its signature is good, its claims are not.
    let text = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    assert_eq!(verify(&rules, &keys, text, 0), Err(JwtError::Malformed));
    assert_eq!(verify(&rules, &keys, &text.replace("-09", "-08"), 0), Err(JwtError::Signature));
}

#[test]
fn every_algorithm_verifies_with_its_key_and_no_other() {
    let (rules, keys) = (all_rules(), all_keys());
    for algorithm in Algorithm::ALL {
        let header = |kid: &str| format!(r#"{{"alg":"{}","kid":"{kid}"}}"#, algorithm.name());
        for kid in ["hmac", "rsa", "p256", "p384", "ed"] {
            let token = sign(algorithm, &header(kid), &claims(""));
            let result = verify(&rules, &keys, &token, NOW).map(|identity| identity.expires_at);
            if kid == kid_of(algorithm) {
                assert_eq!(result, Ok(Some(NOW + 300)), "{algorithm:?}");
            } else {
                assert_eq!(result, Err(JwtError::UnknownKey { kid: Some(kid.into()) }), "{algorithm:?} with {kid}");
            }
        }
        let without_kid = sign(algorithm, &format!(r#"{{"alg":"{}"}}"#, algorithm.name()), &claims(""));
        assert!(verify(&rules, &keys, &without_kid, NOW).is_ok(), "{algorithm:?}");
        let others = Algorithm::ALL.into_iter().filter(|other| *other != algorithm);
        let pinned = Rules::new(Algorithms::new(others).unwrap());
        assert_eq!(verify(&pinned, &keys, &without_kid, NOW), Err(JwtError::Algorithm), "{algorithm:?}");
    }
}

#[test]
fn a_public_key_is_never_a_secret() {
    // RFC 8725 section 2.1: the token is signed by HMAC with the bytes of the public key, in each of its forms.
    let mut rsa_only = KEYS.jwks.clone();
    rsa_only["keys"].as_array_mut().unwrap().retain(|key| key["kty"] == "RSA");
    let keys = keys(&rsa_only);
    let pem = pem("RSA PUBLIC KEY", &KEYS.rsa_der);
    let n = from_base64url(rsa_only["keys"][0]["n"].as_str().unwrap().as_bytes()).unwrap();
    let jwk = rsa_only["keys"][0].to_string();
    for secret in [&KEYS.rsa_der[..], pem.as_bytes(), &n, jwk.as_bytes()] {
        for algorithm in Algorithm::HMAC {
            let header = format!(r#"{{"alg":"{}","kid":"rsa"}}"#, algorithm.name());
            let token = sign_with(&EncodingKey::from_secret(secret), algorithm, &header, &claims(""));
            assert_eq!(verify(&all_rules(), &keys, &token, NOW), Err(JwtError::UnknownKey { kid: Some("rsa".into()) }));
        }
    }
}

#[test]
fn headers_that_change_what_is_verified_are_refused() {
    let good = judged(&all_rules(), HEADER, &claims(""));
    assert!(good.is_ok(), "{good:?}");
    for (header, error) in [
        (r#"{"alg":"none"}"#, JwtError::Algorithm),
        (r#"{"alg":"nOnE"}"#, JwtError::Algorithm),
        (r#"{"alg":"hs256"}"#, JwtError::Algorithm),
        (r#"{"alg":"ES256K"}"#, JwtError::Algorithm),
        (r#"{"alg":null}"#, JwtError::Malformed),
        (r#"{"alg":["HS256"]}"#, JwtError::Malformed),
        (r#"{}"#, JwtError::Malformed),
        (r#"[]"#, JwtError::Malformed),
        (r#"{"alg":"HS256"} "#, JwtError::Signature),
        (r#"{"alg":"HS256"}x"#, JwtError::Malformed),
        (r#"{"alg":"none","alg":"HS256"}"#, JwtError::Malformed),
        (r#"{"alg":"HS256","\u0061lg":"HS256"}"#, JwtError::Malformed),
        (r#"{"alg":"HS256","x":1,"x":1}"#, JwtError::Malformed),
        (r#"{"alg":"HS256","crit":["exp"],"exp":1}"#, JwtError::Critical),
        (r#"{"alg":"HS256","crit":[]}"#, JwtError::Critical),
        (r#"{"alg":"HS256","b64":false}"#, JwtError::Critical),
        (r#"{"alg":"HS256","cty":"JWT"}"#, JwtError::Encrypted),
        (r#"{"alg":"HS256","cty":"application/jwt"}"#, JwtError::Encrypted),
        (r#"{"alg":"HS256","zip":"DEF"}"#, JwtError::Encrypted),
        (r#"{"alg":"HS256","enc":"A128GCM"}"#, JwtError::Encrypted),
        (r#"{"alg":"HS256","kid":1}"#, JwtError::Malformed),
        (r#"{"alg":"HS256","typ":"logout+jwt"}"#, JwtError::Type),
        (r#"{"alg":"HS256","typ":"secevent+jwt"}"#, JwtError::Type),
        (r#"{"alg":"HS256","kid":"../../dev/null"}"#, JwtError::UnknownKey { kid: Some("../../dev/null".into()) }),
        (r#"{"alg":"HS256","kid":""}"#, JwtError::UnknownKey { kid: Some("".into()) }),
    ] {
        if error == JwtError::Signature {
            // Whitespace is part of what was signed: the same header, signed, is good.
            assert!(judged(&all_rules(), header, &claims("")).is_ok(), "{header}");
        } else {
            assert_eq!(judged(&all_rules(), header, &claims("")), Err(error), "{header}");
        }
    }
    let long_kid = format!(r#"{{"alg":"HS256","kid":"{}"}}"#, "k".repeat(KID_BYTES_MAX + 1));
    assert_eq!(judged(&all_rules(), &long_kid, &claims("")), Err(JwtError::Malformed));
    let members: String = (0..40).map(|number| format!(r#","x{number}":0"#)).collect();
    assert_eq!(judged(&all_rules(), &format!(r#"{{"alg":"HS256"{members}}}"#), &claims("")), Err(JwtError::Malformed));
}

#[test]
fn keys_that_a_token_brings_itself_do_not_count() {
    // RFC 8725 sections 2.9 and 3.10: signed with the attacker's key, which `jwk`, `x5c`, `jku` or `x5u` hands over.
    let own = EncodingKey::from_secret(&[b'x'; 32]);
    let jwk = format!(r#"{{"kty":"oct","k":"{}"}}"#, to_base64url(&[b'x'; 32]));
    for member in [
        format!(r#""jwk":{jwk}"#),
        format!(r#""kid":"hmac","jwk":{jwk}"#),
        r#""jku":"http://127.0.0.1:1/jwks""#.into(),
        r#""x5u":"http://127.0.0.1:1/cert""#.into(),
        r#""x5c":["AAAA"]"#.into(),
    ] {
        let token = sign_with(&own, HS256, &format!(r#"{{"alg":"HS256",{member}}}"#), &claims(""));
        assert_eq!(verify(&all_rules(), &all_keys(), &token, NOW), Err(JwtError::Signature), "{member}");
    }
}

#[test]
fn the_form_of_a_token_is_strict() {
    let token = sign(HS256, HEADER, &claims(""));
    let [header, payload, signature] = parts(&token).unwrap();
    let check =
        |token: String, error| assert_eq!(verify(&all_rules(), &all_keys(), &token, NOW), Err(error), "{token}");
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        format!("{header}.{payload}"),
        format!("{header}.{payload}."),
        format!(".{payload}.{signature}"),
        format!("{header}..{signature}"),
        format!("{token}."),
        format!("{token}.x"),
        format!("{header}=.{payload}.{signature}"),
        format!(" {token}"),
        format!("{header}\n.{payload}.{signature}"),
        format!("{header}.{payload}.{signature}.a.b.c"),
    ] {
        check(bad, JwtError::Malformed);
    }
    check(format!("{token}.a.b"), JwtError::Encrypted);
    for bad in
        [format!("{token}="), format!("{token}\n"), format!("{token} "), format!("{header}.{payload}=.{signature}")]
    {
        check(bad, JwtError::Signature);
    }
    let long = format!("{}{token}", "a".repeat(TOKEN_BYTES_MAX));
    check(long, JwtError::TooLong);
    let exact = Rules { token_bytes_max: token.len(), ..all_rules() };
    assert!(verify(&exact, &all_keys(), &token, NOW).is_ok());
    let shorter = Rules { token_bytes_max: token.len() - 1, ..all_rules() };
    assert_eq!(verify(&shorter, &all_keys(), &token, NOW), Err(JwtError::TooLong));
    assert_eq!(verify(&all_rules(), &KeySet::default(), &token, NOW), Err(JwtError::NoKeys));
}

#[test]
fn claims_are_strict_json() {
    for bad in [
        r#"{"exp":9999999999,"sub":"a","sub":"b"}"#,
        r#"{"exp":9999999999,"x":{"y":1,"y":2}}"#,
        "[]",
        "null",
        "{",
        "\u{feff}{}",
        r#"{"exp":9999999999} {}"#,
        r#""eyJhbGciOiJIUzI1NiJ9.e30.xxxx""#,
    ] {
        assert_eq!(judged(&all_rules(), HEADER, bad), Err(JwtError::Malformed), "{bad}");
    }
}

#[test]
fn times_hold_within_the_leeway() {
    let rules = Rules { leeway_s: 10, ..all_rules() };
    let check = |claims: String, expected: Result<(), JwtError>| {
        assert_eq!(judged(&rules, HEADER, &claims).map(|_| ()), expected, "{claims}");
    };
    check(format!(r#"{{"exp":{}}}"#, NOW - 9), Ok(()));
    check(format!(r#"{{"exp":{}}}"#, NOW - 10), Err(JwtError::Expired));
    check(format!(r#"{{"exp":{}.9}}"#, NOW - 10), Err(JwtError::Expired));
    check(r#"{"exp":-1}"#.into(), Err(JwtError::Expired));
    check(r#"{"exp":0}"#.into(), Err(JwtError::Expired));
    check(r#"{"exp":1e300}"#.into(), Ok(()));
    check(r#"{"exp":18446744073709551615}"#.into(), Ok(()));
    check(claims(&format!(r#","nbf":{}"#, NOW + 10)), Ok(()));
    check(claims(&format!(r#","nbf":{}.1"#, NOW + 10)), Err(JwtError::NotYetValid));
    check(claims(&format!(r#","iat":{}.5"#, NOW + 10)), Ok(()));
    check(claims(&format!(r#","iat":{}"#, NOW + 11)), Err(JwtError::NotYetValid));
    check(claims(r#","nbf":1e300"#), Err(JwtError::NotYetValid));
    check(claims(r#","nbf":-5"#), Ok(()));
    for name in ["exp", "nbf", "iat"] {
        for value in [r#""1900000000""#, "null", "true", "[1900000000]", "{}"] {
            let text =
                if name == "exp" { format!(r#"{{"exp":{value}}}"#) } else { claims(&format!(r#","{name}":{value}"#)) };
            check(text, Err(JwtError::ClaimType { name }));
        }
    }
    check("{}".into(), Err(JwtError::MissingClaim { name: "exp".into() }));
    let endless = Rules { required_claims: vec![], ..all_rules() };
    assert_eq!(judged(&endless, HEADER, "{}").unwrap().expires_at, None);
}

#[test]
fn issuer_audience_and_required_claims() {
    let rules =
        Rules { issuer: Some("https://id.example".into()), audiences: vec!["api".into(), "web".into()], ..all_rules() };
    let iss = r#","iss":"https://id.example""#;
    let check = |rules: &Rules, more: &str, expected: Result<(), JwtError>| {
        assert_eq!(judged(rules, HEADER, &claims(more)).map(|_| ()), expected, "{more}");
    };
    check(&rules, &format!(r#"{iss},"aud":"api""#), Ok(()));
    check(&rules, &format!(r#"{iss},"aud":["x","web"]"#), Ok(()));
    check(&rules, &format!(r#"{iss},"aud":["x"]"#), Err(JwtError::Audience));
    check(&rules, &format!(r#"{iss},"aud":[]"#), Err(JwtError::Audience));
    check(&rules, &format!(r#"{iss},"aud":"API""#), Err(JwtError::Audience));
    check(&rules, iss, Err(JwtError::Audience));
    check(&rules, &format!(r#"{iss},"aud":["api",1]"#), Err(JwtError::ClaimType { name: "aud" }));
    check(&rules, &format!(r#"{iss},"aud":{{}}"#), Err(JwtError::ClaimType { name: "aud" }));
    check(&rules, r#","aud":"api""#, Err(JwtError::Issuer));
    check(&rules, r#","iss":"https://id.example/","aud":"api""#, Err(JwtError::Issuer));
    check(&rules, r#","iss":["https://id.example"],"aud":"api""#, Err(JwtError::ClaimType { name: "iss" }));
    // No audience of its own: a token for somebody is not for this gateway.
    check(&all_rules(), "", Ok(()));
    check(&all_rules(), r#","aud":"api""#, Err(JwtError::Audience));
    check(&Rules { any_audience: true, ..all_rules() }, r#","aud":"api""#, Ok(()));
    let required = Rules { required_claims: vec!["exp".into(), "tenant".into()], ..all_rules() };
    check(&required, r#","tenant":null"#, Ok(()));
    check(&required, "", Err(JwtError::MissingClaim { name: "tenant".into() }));
    check(&all_rules(), r#","jti":7"#, Err(JwtError::ClaimType { name: "jti" }));
}

#[test]
fn the_type_of_a_token_counts() {
    let header = |typ: &str| format!(r#"{{"alg":"HS256","typ":"{typ}"}}"#);
    let access = Rules { typ: Some("at+jwt".into()), ..all_rules() };
    for (rules, header, is_good) in [
        (&access, header("at+jwt"), true),
        (&access, header("AT+JWT"), true),
        (&access, header("Application/at+jwt"), true),
        (&access, header("JWT"), false),
        (&access, r#"{"alg":"HS256"}"#.into(), false),
        (&all_rules(), header("jwt"), true),
        (&all_rules(), header("at+jwt"), true),
        (&all_rules(), r#"{"alg":"HS256"}"#.into(), true),
        (&all_rules(), header("dpop+jwt"), false),
    ] {
        let result = judged(rules, &header, &claims("")).map(|_| ());
        assert_eq!(result, if is_good { Ok(()) } else { Err(JwtError::Type) }, "{header}");
    }
}

#[test]
fn an_identity_is_made_of_claims() {
    let path = |text| ClaimPath::parse(text).unwrap();
    let header = |name: &str, claim| ClaimHeader { name: name.into(), claim: path(claim) };
    let rules = Rules {
        user: path("preferred_username"),
        roles: path("/realm_access/roles"),
        headers: vec![header("X-User-Id", "sub"), header("X-Roles", "/realm_access/roles"), header("X-None", "none")],
        ..all_rules()
    };
    let more = r#","sub":42,"preferred_username":"ada","jti":"id-1","scope":"read write","realm_access":{"roles":["user","a,admin"]}"#;
    let identity = judged(&rules, HEADER, &claims(more)).unwrap();
    assert_eq!(identity.user.as_deref(), Some("ada"));
    assert!(identity.has_role("user") && identity.has_role("a,admin") && !identity.has_role("admin"));
    assert!(identity.has_scope("read") && identity.has_scope("write"));
    assert_eq!(identity.header_lines.escape_ascii().to_string(), r"X-User-Id: 42\r\nX-Roles: user,a%2Cadmin\r\n");
    assert_eq!(identity.token_id.as_deref(), Some("id-1"));
    assert!(!format!("{identity:?}").contains("realm_access"));
    let long = Rules { headers: vec![header("X-Long", "sub")], token_bytes_max: 1 << 20, ..all_rules() };
    let sub = format!(r#","sub":"{}""#, "x".repeat(20_000));
    assert_eq!(judged(&long, HEADER, &claims(&sub)), Err(JwtError::TooLong));
}

#[test]
fn what_is_told_to_a_client_has_nothing_of_the_token() {
    for error in [
        JwtError::UnknownKey { kid: Some("kid\"1".into()) },
        JwtError::MissingClaim { name: "cl\"aim".into() },
        JwtError::ClaimType { name: "exp" },
        JwtError::Signature,
        JwtError::Revoked,
    ] {
        let text = error.to_string();
        assert!(text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'), "{text}");
        assert!(!text.contains("kid") && !text.contains("cl\""), "{text}");
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// SubjectPublicKeyInfo of a point or of bytes, for these object identifiers in DER.
fn spki(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
    let sequence = |tag: u8, content: &[u8]| {
        let length = content.len();
        let head = if length < 128 { vec![tag, length as u8] } else { vec![tag, 0x81, length as u8] };
        [&head[..], content].concat()
    };
    let bits = sequence(0x03, &[&[0], key].concat());
    sequence(0x30, &[&sequence(0x30, algorithm)[..], &bits].concat())
}

#[test]
fn keys_come_from_pem_files() {
    let random = pem("RSA PUBLIC KEY", &KEYS.rsa_der);
    let point = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &KEYS.p256).unwrap();
    let ec_oid = [0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let ec = pem("PUBLIC KEY", &spki(&ec_oid, point.public_key().as_ref()));
    let ed = Ed25519KeyPair::from_pkcs8(&KEYS.ed25519).unwrap();
    let ed = pem("PUBLIC KEY", &spki(&[0x06, 3, 0x2b, 0x65, 0x70], ed.public_key().as_ref()));
    let all = KeySet::from_pem(&format!("a comment\n{random}\n{ec}{ed}")).unwrap();
    assert_eq!(all.len(), 3);
    for algorithm in Algorithm::ALL {
        let token = sign(algorithm, &format!(r#"{{"alg":"{}","kid":"any"}}"#, algorithm.name()), &claims(""));
        let result = verify(&all_rules(), &all, &token, NOW);
        assert_eq!(result.is_ok(), !algorithm.is_hmac() && algorithm != ES384, "{algorithm:?}: {result:?}");
    }
    let off_curve = {
        let mut point = point.public_key().as_ref().to_vec();
        point[64] ^= 1;
        pem("PUBLIC KEY", &spki(&ec_oid, &point))
    };
    for (text, error) in [
        (pem("PRIVATE KEY", &KEYS.ed25519), KeySetError::NotPublic),
        (pem("RSA PRIVATE KEY", &KEYS.rsa), KeySetError::NotPublic),
        (pem("CERTIFICATE", &KEYS.rsa_der), KeySetError::NotPublic),
        (format!("{ec}{}", pem("PRIVATE KEY", &KEYS.ed25519)), KeySetError::NotPublic),
        (off_curve, KeySetError::Unfit),
        (pem("PUBLIC KEY", b"nonsense"), KeySetError::Pem),
        (pem("OTHER", &KEYS.rsa_der), KeySetError::Pem),
        ("".into(), KeySetError::Pem),
        ("-----BEGIN PUBLIC KEY".into(), KeySetError::Pem),
        (ec.repeat(129), KeySetError::TooMany),
    ] {
        assert_eq!(KeySet::from_pem(&text).unwrap_err(), error, "{text}");
    }
}

#[test]
fn a_set_takes_what_it_understands_and_leaves_the_rest() {
    let rsa = KEYS.jwks["keys"][1].clone();
    let with = |member: &str, value: Value| {
        let mut key = rsa.clone();
        key[member] = value;
        key
    };
    let small = with("n", json!(to_base64url(&[0xff; 128])));
    let mut good = vec![
        with("use", json!("sig")),
        with("key_ops", json!(["verify"])),
        with("alg", json!("RS512")),
        with(
            "n",
            json!(to_base64url(&[&[0][..], &from_base64url(rsa["n"].as_str().unwrap().as_bytes()).unwrap()].concat())),
        ),
        with("x5t", json!("ignored")),
    ];
    let bad = vec![
        with("use", json!("enc")),
        with("use", json!(1)),
        with("key_ops", json!(["sign"])),
        with("key_ops", json!("verify")),
        with("alg", json!("HS256")),
        with("alg", json!("RSA-OAEP")),
        with("alg", json!("ES256")),
        with("alg", Value::Null),
        with("kid", json!(7)),
        with("kty", json!("EC")),
        with("kty", json!("oct")),
        with("kty", json!("AKP")),
        with("e", json!("AQAC")),
        with("e", json!("AQ")),
        with("e", json!("")),
        with("n", json!("")),
        with("n", json!("AQAB=")),
        small,
        json!({ "kty": "oct", "k": to_base64url(b"short") }),
        json!({ "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA" }),
        json!({ "kty": "EC", "crv": "P-256", "x": to_base64url(&[1; 32]), "y": to_base64url(&[1; 32]) }),
        json!({ "kty": "EC", "crv": "P-256", "x": to_base64url(&[1; 31]), "y": to_base64url(&[1; 33]) }),
        json!({ "kty": "OKP", "crv": "X25519", "x": to_base64url(&[1; 32]) }),
        json!({ "kty": "OKP", "crv": "Ed25519", "x": to_base64url(&[1; 31]) }),
        json!("text"),
        json!({}),
    ];
    for key in &bad {
        let jwks = json!({ "keys": [key] }).to_string();
        assert_eq!(KeySet::from_jwks(jwks.as_bytes(), true).unwrap_err(), KeySetError::NoKey, "{jwks}");
    }
    let count = good.len();
    good.extend(bad);
    let set = keys(&json!({ "keys": good, "other": 1 }));
    assert_eq!((set.len(), set.ignored()), (count, good.len() - count));

    let alg = keys(&json!({ "keys": [with("alg", json!("RS512"))] }));
    for (algorithm, is_good) in [(RS512, true), (RS256, false), (PS512, false)] {
        let token = sign(algorithm, &format!(r#"{{"alg":"{}"}}"#, algorithm.name()), &claims(""));
        assert_eq!(verify(&all_rules(), &alg, &token, NOW).is_ok(), is_good, "{algorithm:?}");
    }
    for bad in ["", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":[],"keys":[]}"#, "{\"keys\":[]"] {
        assert_eq!(KeySet::from_jwks(bad.as_bytes(), true).unwrap_err(), KeySetError::Jwks, "{bad}");
    }
    assert_eq!(KeySet::from_jwks(br#"{"keys":[]}"#, true).unwrap_err(), KeySetError::NoKey);
    let many = json!({ "keys": vec![rsa; 129] }).to_string();
    assert_eq!(KeySet::from_jwks(many.as_bytes(), true).unwrap_err(), KeySetError::TooMany);
    // What anyone can read is no secret.
    let secret = json!({ "keys": [KEYS.jwks["keys"][0]] }).to_string();
    assert_eq!(KeySet::from_jwks(secret.as_bytes(), false).unwrap_err(), KeySetError::NoKey);
}

#[test]
fn two_keys_of_one_name_are_both_tried() {
    let other = json!({ "kid": "hmac", "kty": "oct", "k": to_base64url(&[b'o'; 32]) });
    for order in [vec![other.clone(), KEYS.jwks["keys"][0].clone()], vec![KEYS.jwks["keys"][0].clone(), other]] {
        let set = keys(&json!({ "keys": order }));
        assert!(set.has_kid("hmac") && !set.has_kid("other"));
        let token = sign(HS256, r#"{"alg":"HS256","kid":"hmac"}"#, &claims(""));
        assert!(verify(&all_rules(), &set, &token, NOW).is_ok());
    }
}

#[test]
fn a_secret_serves_the_hashes_it_is_long_enough_for() {
    assert_eq!(KeySet::from_secret(&[1; 31]).unwrap_err(), KeySetError::ShortSecret);
    for (length, good) in [(32, 1), (48, 2), (64, 3)] {
        let secret = vec![b's'; length];
        let set = KeySet::from_secret(&secret).unwrap();
        for (index, algorithm) in Algorithm::HMAC.into_iter().enumerate() {
            let header = format!(r#"{{"alg":"{}"}}"#, algorithm.name());
            let token = sign_with(&EncodingKey::from_secret(&secret), algorithm, &header, &claims(""));
            assert_eq!(
                verify(&all_rules(), &set, &token, NOW).is_ok(),
                index < good,
                "{algorithm:?} with {length} bytes"
            );
        }
        assert!(!format!("{set:?}").contains("115"), "the secret is not shown");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_changed_byte_verifies(which in 0usize..4, at: proptest::sample::Index, byte: u8) {
        static TOKENS: LazyLock<Vec<String>> = LazyLock::new(|| {
            [HS256, RS256, ES256, EdDSA]
                .map(|algorithm| sign(algorithm, &format!(r#"{{"alg":"{}"}}"#, algorithm.name()), &claims(r#","sub":"a""#)))
                .into()
        });
        static SET: LazyLock<KeySet> = LazyLock::new(all_keys);
        let token = &TOKENS[which];
        let mut changed = token.clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        if let Ok(changed) = String::from_utf8(changed) {
            prop_assert_eq!(verify(&all_rules(), &SET, &changed, NOW).is_ok(), changed == *token);
        }
    }

    #[test]
    fn any_text_is_judged_without_a_panic(text: String) {
        let keys = KeySet::from_secret(SECRET).unwrap();
        prop_assert!(verify(&all_rules(), &keys, &text, NOW).is_err());
    }

    #[test]
    fn any_signed_claims_make_whole_header_lines(name in "[a-z]{1,3}", value: String, header in "\\PC{0,40}") {
        let path = ClaimPath::parse(&name).unwrap();
        let rules = Rules { headers: vec![ClaimHeader { name: "X-Claim".into(), claim: path }], ..all_rules() };
        let text = json!({ "exp": NOW + 1, name: value }).to_string();
        if let Ok(identity) = judged(&rules, HEADER, &text) {
            let lines = identity.header_lines;
            let controls = lines.iter().filter(|byte| byte.is_ascii_control()).count();
            prop_assert_eq!(controls, 2 * usize::from(!lines.is_empty()));
        }
        prop_assert!(judged(&rules, &header, &text).is_err());
    }
}
