//! API keys: who presents one, and until when. Keys are stored as hashes only.

mod file;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::Arc;

use ahash::RandomState;
use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};

use self::file::{Client, File};
use super::encoding::to_base64url;
use super::headers::{self, ClaimHeader};
use super::{Identity, Method};

/// Keys of one file or list; more are an error.
pub const KEYS_MAX: usize = 100_000;

/// Bytes of a key that is presented; a longer one is unknown before it is hashed.
pub const KEY_BYTES_MAX: usize = 512;

/// What stands in front of a stored hash.
const HASH_PREFIX: &str = "sha256:";

/// What generated keys begin with, so that scanners for leaked secrets find them.
const KEY_PREFIX: &str = "rwk_";

/// Why a key is refused. The text is fit for `error_description`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApiKeyError {
    Unknown,
    NotYetValid,
    Expired,
}

impl std::error::Error for ApiKeyError {}

impl fmt::Display for ApiKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

impl ApiKeyError {
    /// What the client is told.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Unknown => "the API key is not known",
            Self::NotYetValid => "the API key is not yet valid",
            Self::Expired => "the API key has expired",
        }
    }

    /// A word for metrics and audit records.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Unknown => "unknown_key",
            Self::NotYetValid => "not_yet_valid",
            Self::Expired => "expired",
        }
    }
}

/// Why a file of keys is refused. A file is taken whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiKeysError {
    /// What the parser says, with the place.
    #[error("{0}")]
    Syntax(String),
    #[error("client `{client}`: {problem}")]
    Client { client: String, problem: &'static str },
    #[error("more than 100,000 keys")]
    TooMany,
}

/// The live keys of all clients.
pub struct ApiKeys {
    /// By the hash of the key. The hash of what a client presents cannot be steered towards a stored one, so that the
    /// time of the lookup tells nothing.
    keys: HashMap<Hash, Key, RandomState>,
}

type Hash = [u8; 32];

struct Key {
    hash: Hash,
    not_before: Option<u64>,
    identity: Arc<Identity>,
}

impl Default for ApiKeys {
    fn default() -> Self {
        Self { keys: HashMap::with_hasher(RandomState::with_seeds(1, 2, 3, 4)) }
    }
}

impl ApiKeys {
    /// Reads YAML or JSON; `docs` of the format are those of the file's example:
    ///
    /// ```yaml
    /// clients:
    ///   - name: shop                  # the log's userId, and the claim `sub`
    ///     roles: [partner]
    ///     scopes: [orders.read]
    ///     metadata: { plan: gold }    # claims, for headers and conditions
    ///     keys:
    ///       - id: "2026-10"           # optional, shown in place of the key
    ///         hash: "sha256:5e88..."
    ///         not_before: 2026-10-01
    ///         expires: 2027-01-01T12:00:00Z
    ///       - hash: "sha256:03ac..."
    ///         roles: [reader]         # instead of the client's
    /// ```
    ///
    /// `headers` are made from `metadata` and `sub`.
    pub fn parse(text: &str, headers: &[ClaimHeader]) -> Result<Self, ApiKeysError> {
        let mut keys = Self::default();
        for client in File::parse(text)?.clients {
            keys.add(&client, headers)?;
        }
        Ok(keys)
    }

    /// Reads a list that others keep: hashes as a file has them, and for each the JSON of what is known of it:
    /// `{"client":"shop","id":"2026-10","not_before":"2026-10-01","expires":"2027-01-01","roles":[],"scopes":[],"metadata":{}}`,
    /// where `client` alone must be there. An entry that is not good does not count. Gives the number of those too, and
    /// what is wrong with one of them.
    pub(crate) fn of_entries(
        entries: &[(Vec<u8>, Vec<u8>)],
        headers: &[ClaimHeader],
    ) -> Result<(Self, usize, Option<ApiKeysError>), ApiKeysError> {
        let mut keys = Self::default();
        let (mut malformed, mut problem) = (0, None);
        for (hash, json) in entries {
            match file::of_list(hash, json).and_then(|client| keys.add(&client, headers)) {
                Ok(()) => {}
                Err(ApiKeysError::TooMany) => return Err(ApiKeysError::TooMany),
                Err(error) => {
                    malformed += 1;
                    problem.get_or_insert(error);
                }
            }
        }
        Ok((keys, malformed, problem))
    }

    fn add(&mut self, client: &Client, headers: &[ClaimHeader]) -> Result<(), ApiKeysError> {
        let problem = |problem| ApiKeysError::Client { client: client.name.clone(), problem };
        for entry in &client.keys {
            let hash = parse_hash(&entry.hash).ok_or_else(|| problem("a hash is `sha256:` and 64 hex digits"))?;
            let (not_before, expires) = entry.validity().map_err(problem)?;
            let claims = client.claims(entry).map_err(problem)?;
            let identity = Identity {
                method: Method::ApiKey,
                user: Some(client.name.as_str().into()),
                roles: entry.roles.as_ref().unwrap_or(&client.roles).clone(),
                scopes: entry.scopes.as_ref().unwrap_or(&client.scopes).clone(),
                header_lines: headers::lines(headers, &claims)
                    .ok_or_else(|| problem("the headers made from its metadata are too long"))?,
                claims,
                expires_at: expires,
                token_id: entry.id.clone(),
            };
            if self.keys.len() == KEYS_MAX {
                return Err(ApiKeysError::TooMany);
            }
            match self.keys.entry(hash) {
                Entry::Occupied(_) => return Err(problem("a hash that occurs twice")),
                Entry::Vacant(place) => place.insert(Key { hash, not_before, identity: Arc::new(identity) }),
            };
        }
        Ok(())
    }

    /// Whose key this is. Hashes it; allocates nothing.
    pub fn verify(&self, key: &[u8], now_s: u64) -> Result<Arc<Identity>, ApiKeyError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(ApiKeyError::Unknown);
        }
        let hash = hash(key);
        let known = self.keys.get(&hash).filter(|known| verify_slices_are_equal(&known.hash, &hash).is_ok());
        let known = known.ok_or(ApiKeyError::Unknown)?;
        if known.not_before.is_some_and(|not_before| now_s < not_before) {
            return Err(ApiKeyError::NotYetValid);
        }
        if known.identity.expires_at.is_some_and(|expires| now_s >= expires) {
            return Err(ApiKeyError::Expired);
        }
        Ok(known.identity.clone())
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

impl std::fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeys").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A new key and what to store of it. 256 random bits need no slow hash: they cannot be guessed.
pub fn generate(random: [u8; 32]) -> (String, String) {
    let plain = [KEY_PREFIX, &to_base64url(&random)].concat();
    let hash = stored(plain.as_bytes());
    (plain, hash)
}

/// What to store of a key: `sha256:` and its hash in hex.
pub fn stored(key: &[u8]) -> String {
    let digits = hash(key).map(|byte| {
        let [.., high, low] = crate::hex::digits(u64::from(byte));
        [char::from(high), char::from(low)]
    });
    HASH_PREFIX.chars().chain(digits.into_iter().flatten()).collect()
}

fn hash(key: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.iter_mut().zip(digest(&SHA256, key).as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

fn parse_hash(text: &str) -> Option<Hash> {
    let digits = text.strip_prefix(HASH_PREFIX)?.as_bytes();
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let mut hash = [0; 32];
    if pairs.len() != hash.len() {
        return None;
    }
    for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
        let digit = |byte: &u8| char::from(*byte).to_digit(16);
        *byte = (digit(high)? << 4 | digit(low)?) as u8;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ClaimPath;

    fn one(hash: &str, more: &str) -> String {
        format!(
            "clients:\n- name: shop\n  roles: [partner]\n  metadata: {{ plan: gold }}\n  keys:\n  - {{ hash: \"{hash}\"{more} }}\n"
        )
    }

    fn parse(text: &str) -> Result<ApiKeys, ApiKeysError> {
        let header = |name: &str, claim| ClaimHeader { name: name.into(), claim: ClaimPath::parse(claim).unwrap() };
        ApiKeys::parse(text, &[header("X-Client", "sub"), header("X-Plan", "plan")])
    }

    #[test]
    fn a_generated_key_is_known_by_its_hash() {
        let (plain, hash) = generate([7; 32]);
        assert_eq!(plain, "rwk_BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
        assert_eq!(stored(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let keys = parse(&one(&hash, "")).unwrap();
        let identity = keys.verify(plain.as_bytes(), 0).unwrap();
        assert_eq!((identity.method, identity.user.as_deref()), (Method::ApiKey, Some("shop")));
        assert!(identity.has_role("partner") && !identity.has_scope("partner"));
        assert_eq!(identity.header_lines, b"X-Client: shop\r\nX-Plan: gold\r\n");
        assert!(Arc::ptr_eq(&identity, &keys.verify(plain.as_bytes(), 1).unwrap()));

        let mut other = plain.clone().into_bytes();
        for at in 0..other.len() {
            other[at] ^= 1;
            assert_eq!(keys.verify(&other, 0).unwrap_err(), ApiKeyError::Unknown);
            other[at] ^= 1;
        }
        for other in [hash.as_bytes(), &hash.as_bytes()[7..], b"", &[b'a'; KEY_BYTES_MAX + 1]] {
            assert_eq!(keys.verify(other, 0).unwrap_err(), ApiKeyError::Unknown);
        }
    }

    #[test]
    fn keys_come_and_go_while_their_client_stays() {
        let (old, new) = (generate([1; 32]), generate([2; 32]));
        let text = format!(
            r#"{{"clients":[{{"name":"a","scopes":["x"],"keys":[
                {{"id":"old","hash":"{}","expires":"1970-01-02"}},
                {{"id":"new","hash":"{}","not_before":"1970-01-01T12:00:00Z","scopes":["y"]}}]}}]}}"#,
            old.1, new.1
        );
        let keys = parse(&text).unwrap();
        let verify = |key: &str, now| keys.verify(key.as_bytes(), now);
        assert_eq!(keys.len(), 2);
        assert!(verify(&old.0, 0).unwrap().has_scope("x"));
        assert_eq!(verify(&new.0, 43_199).unwrap_err(), ApiKeyError::NotYetValid);
        let identity = verify(&new.0, 43_200).unwrap();
        assert!(identity.has_scope("y") && !identity.has_scope("x"));
        assert_eq!(identity.token_id.as_deref(), Some("new"));
        assert_eq!(verify(&old.0, 86_399).unwrap().expires_at, Some(86_400));
        assert_eq!(verify(&old.0, 86_400).unwrap_err(), ApiKeyError::Expired);
    }

    #[test]
    fn bad_files_are_refused_with_the_reason() {
        let hash = stored(b"x");
        assert!(parse(&one(&hash, "")).is_ok());
        assert!(parse(&one(&hash.to_uppercase().replace("SHA", "sha"), "")).is_ok());
        for (text, message) in [
            (one(&hash[..70], ""), "client `shop`: a hash is `sha256:` and 64 hex digits"),
            (one(&hash.replace("sha256:", ""), ""), "client `shop`: a hash is `sha256:` and 64 hex digits"),
            (one(&hash.replace('2', "g"), ""), "client `shop`: a hash is `sha256:` and 64 hex digits"),
            (one(&hash, ", expires: tomorrow"), "client `shop`: a time is `2027-01-31` or `2027-01-31T12:00:00Z`"),
            (
                one(&hash, ", not_before: 2027-01-02, expires: 2027-01-02"),
                "client `shop`: a key that expires before it becomes valid",
            ),
            (one(&hash, ", metadata: { sub: admin }"), "client `shop`: `sub` in metadata, which is the client's name"),
            (one(&hash, ", secret: x"), "unknown"),
            (format!("{}  - {{ hash: \"{hash}\" }}\n", one(&hash, "")), "client `shop`: a hash that occurs twice"),
            ("clients: [{ name: '', keys: [] }]".into(), "client ``: a client needs a name"),
            ("clients: [{ name: a, keys: [] }, { name: a, keys: [] }]".into(), "client `a`: a name that occurs twice"),
            ("clients: []\nclients: []".into(), "duplicate"),
            ("clients: {}".into(), "sequence"),
            ("".into(), ""),
            (r#"{"clients":[],"clients":[]}"#.into(), "duplicate"),
        ] {
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}\n{error}");
        }
    }
}
