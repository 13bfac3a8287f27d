//! A new API key, and what a gateway keeps of it.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use ringway_core::auth::api_key::{ApiKeyError, ApiKeys, generate};
use serde_json::{Map, Value, json};

use crate::failure::Failure;

#[derive(Debug, Args)]
pub(crate) struct ApiKeyArgs {
    /// Whose key it is: the user in the access log
    #[arg(long, value_name = "NAME")]
    client: String,
    /// Shown in place of the key, to tell a client's keys apart
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,
    /// From when on it counts: 2027-01-31, or 2027-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    not_before: Option<String>,
    /// Until when it counts, in the same form
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// A role of whoever has it; may be repeated
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// A scope of whoever has it; may be repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// The hash in Redis, its prefix included
    #[arg(long, value_name = "KEY", default_value = "ringway:api-keys")]
    redis_key: String,
    /// Print one line of JSON, for programs
    #[arg(long)]
    json: bool,
}

impl ApiKeyArgs {
    /// The text to print. It has the key, which is stored nowhere.
    pub(crate) fn make(&self) -> Result<String, Failure> {
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| Failure::runtime("the system has no random numbers"))?;
        let (key, hash) = generate(random);
        let file = self.file(&hash);
        // What is printed is good: the gateway's own reader says so.
        let keys = ApiKeys::parse(&file, &[]).map_err(|error| Failure::usage(format!("api-key: {error}")))?;
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let Err(ApiKeyError::Expired) = keys.verify(key.as_bytes(), now_s) {
            return Err(Failure::usage("api-key: --expires is in the past"));
        }
        let entry = Value::from(self.entry());
        if self.json {
            return Ok(format!("{}\n", json!({ "key": key, "hash": hash, "entry": entry })));
        }
        let (redis_key, quoted) = (quoted(&self.redis_key), quoted(&entry.to_string()));
        Ok(format!(
            "The key, for the client. It is shown this once and stored nowhere:\n\n  {key}\n\n\
             What the gateway keeps of it, in a file (api_keys: {{ file: PATH }}):\n\n{file}\n\
             or in Redis (api_keys: {{ redis: {{}} }}):\n\nredis-cli HSET {redis_key} {hash} {quoted}\n"
        ))
    }

    /// As the file of keys has it. Texts are written as JSON, which is YAML too.
    fn file(&self, hash: &str) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let mut file = format!("clients:\n  - name: {}\n", text(&self.client));
        for (name, words) in [("roles", &self.roles), ("scopes", &self.scopes)] {
            if !words.is_empty() {
                let _ = writeln!(file, "    {name}: {}", json!(words));
            }
        }
        let _ = writeln!(file, "    keys:\n      - hash: {}", text(hash));
        for (name, value) in self.about() {
            let _ = writeln!(file, "        {name}: {}", text(value));
        }
        file
    }

    /// As the hash in Redis has it.
    fn entry(&self) -> Map<String, Value> {
        let mut entry = Map::from_iter([("client".to_owned(), Value::from(&*self.client))]);
        entry.extend(self.about().map(|(name, value)| (name.to_owned(), Value::from(value))));
        for (name, words) in [("roles", &self.roles), ("scopes", &self.scopes)] {
            if !words.is_empty() {
                entry.insert(name.to_owned(), json!(words));
            }
        }
        entry
    }

    fn about(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let about = [("id", &self.id), ("not_before", &self.not_before), ("expires", &self.expires)];
        about.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }
}

/// One word to a shell (POSIX.1 section 2.2.2), left as it is where it is one.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:/".contains(&byte);
    match !text.is_empty() && text.bytes().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}
