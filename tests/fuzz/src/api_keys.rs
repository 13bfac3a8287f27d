//! Files of API keys, in YAML and JSON.

use ringway_core::auth::api_key::{ApiKeyError, ApiKeys};
use ringway_core::auth::{ClaimHeader, ClaimPath, Revoked};

pub const DICTIONARY: &[&str] = &[
    "clients:\n",
    "- name: a\n",
    "  keys:\n",
    "  - hash: \"",
    "sha256:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683",
    "  roles: [x, y]\n",
    "  metadata: { plan: gold }\n",
    "    not_before: 2026-10-01\n",
    "    expires: 2027-01-01T12:00:00Z\n",
    "{\"clients\":[",
    "{\"name\":\"a\",\"keys\":[{\"hash\":\"",
    "\"}]}",
    "]}",
    "&a ",
    "*a",
    "<<: ",
    "!!str ",
    "---\n",
    "#",
    "\t",
    "\0",
    "\u{e9}",
];

/// The one key whose hash the dictionary has.
const KEY: &str = "key";

/// A whole file.
pub fn target(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(revoked) = Revoked::parse(text) {
        assert!(revoked.len() <= text.lines().count());
        assert!(
            text.lines()
                .all(|line| line.trim().is_empty() || line.trim().starts_with('#') || revoked.contains(line.trim()))
        );
    }
    let header = |name: &str, claim| ClaimHeader { name: name.into(), claim: ClaimPath::parse(claim).expect("a path") };
    let Ok(keys) = ApiKeys::parse(text, &[header("X-Client", "sub"), header("X-Plan", "plan")]) else { return };
    match keys.verify(KEY.as_bytes(), 1_800_000_000) {
        Ok(identity) => {
            let name = identity.user.as_deref().expect("a client's name");
            assert!(!name.is_empty() && identity.claims["sub"] == name);
            assert!(identity.expires_at.is_none_or(|expires| expires > 1_800_000_000));
            assert!(identity.header_lines.starts_with(b"X-Client: ") && identity.header_lines.ends_with(b"\r\n"));
            let lines = identity.header_lines.iter().filter(|byte| byte.is_ascii_control()).count() / 2;
            assert!((1..=2).contains(&lines));
        }
        // The hash may stand in a comment, a name or a description.
        Err(ApiKeyError::Unknown) => {}
        Err(ApiKeyError::NotYetValid | ApiKeyError::Expired) => {}
    }
    assert!(keys.is_empty() || text.contains("sha256:"));
    assert_eq!(keys.verify(b"another key", 0).err(), Some(ApiKeyError::Unknown));
    assert_eq!(keys.verify(text.as_bytes(), 0).err(), Some(ApiKeyError::Unknown));
}
