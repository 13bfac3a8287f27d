//! Key sets: JSON Web Key Sets and PEM files.

use ringway_core::auth::{KEYS_MAX, KeySet, KeySetError};

pub const DICTIONARY: &[&str] = &[
    "{\"keys\":[",
    "]}",
    "{\"kty\":\"RSA\",\"n\":\"",
    "\",\"e\":\"AQAB\"}",
    "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"",
    "\",\"y\":\"",
    "{\"kty\":\"OKP\",\"crv\":\"Ed25519\",\"x\":\"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo\"}",
    "{\"kty\":\"oct\",\"k\":\"",
    "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T",
    ",\"kid\":\"a\"",
    ",\"use\":\"sig\"",
    ",\"use\":\"enc\"",
    ",\"key_ops\":[\"verify\"]",
    ",\"alg\":\"RS256\"",
    ",\"alg\":\"HS256\"",
    "-----BEGIN PUBLIC KEY-----\n",
    "-----END PUBLIC KEY-----\n",
    "-----BEGIN RSA PUBLIC KEY-----\n",
    "MCowBQYDK2VwAyEA",
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE",
    "AAAA",
    ",",
    "\0",
];

/// A whole file.
pub fn target(bytes: &[u8]) {
    let open = KeySet::from_jwks(bytes, false);
    let with_secrets = KeySet::from_jwks(bytes, true);
    match (&open, &with_secrets) {
        (Ok(open), Ok(with_secrets)) => {
            assert!((1..=KEYS_MAX).contains(&with_secrets.len()) && open.len() <= with_secrets.len());
            let all = |set: &KeySet| set.len() + set.ignored();
            assert_eq!(all(open), all(with_secrets), "each key is taken or counted");
        }
        (Ok(_), Err(error)) => panic!("{error} with more kinds of keys"),
        (Err(error), Ok(_)) => assert_eq!(*error, KeySetError::NoKey),
        (Err(open), Err(with_secrets)) => assert_eq!(open, with_secrets),
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(keys) = KeySet::from_pem(text)
    {
        assert_eq!(keys.len(), text.matches("-----BEGIN ").count(), "all of a file or nothing");
        assert!(keys.len() <= KEYS_MAX && !text.contains("PRIVATE KEY-----\n"));
    }
}
