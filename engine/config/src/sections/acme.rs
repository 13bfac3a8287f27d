//! Certificates that the gateway orders by itself.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::authenticator::Url;
use super::key_list::{Redis, RedisKey};
use crate::acme::{ALL_NAMES_MAX, Acme, ChallengeKind, Challenges, ExternalAccount, Managed, NAMES_MAX, Storage};
use crate::decode::{Cx, Decode, OneOrMore, Spanned};
use crate::error::Span;
use crate::scalar::{Auto, Or, choice, or_variable, parsed};
use crate::shape::shape;
use crate::tree::Node;
use crate::units::{DAY_MS, HOUR_MS, Time};

shape! {
    /// How certificates are ordered (ACME, RFC 8555): those that listeners name with `acme` in `certificates`.
    pub(crate) struct AcmeSection {
        /// The directory of the authority. Without the key: that of Let's Encrypt.
        directory: Spanned<Url> = "https://acme-v02.api.letsencrypt.org/directory",
        /// Where the authority may write to: `mailto:operators@example.com`.
        contact: Vec<Contact> = "[]",
        /// That you agree to the authority's terms of service.
        terms_agreed: Spanned<bool>,
        /// File with the certificates (PEM) to trust for the directory, instead of the system's: for an authority of your own.
        ca: Option<Spanned<String>>,
        /// Where the account and the certificates are kept.
        storage: Spanned<StorageSection>,
        /// How the authority is shown that a host is the gateway's. `http-01`: by any listener, in the clear on port 80.
        /// `tls-alpn-01`: by the listener of the certificate, on port 443.
        challenge: ChallengeKind = "http-01",
        /// How long before its end a certificate is renewed; half of its lifetime counts at most. `auto`: a third of it.
        renew_before: Or<Auto, Time<60_000, { 365 * DAY_MS }>> = "auto",
        /// Ask the authority when to renew, where it can say (ARI, RFC 9773).
        ari: bool = "true",
        /// Until the next try after a failure. Doubles with each one more; a `Retry-After` that is longer counts.
        back_off: Time<100, { HOUR_MS }> = "1m",
        /// What that grows to.
        back_off_max: Time<100, { DAY_MS }> = "1h",
        /// An account that the authority knows by other means (RFC 8555 section 7.3.4).
        external_account: Option<ExternalAccountSection>,
    }

    /// Where the account and the certificates are kept. Exactly one of its keys.
    pub(crate) struct StorageSection {
        /// A directory, made where it is missing. Its files hold private keys: only their owner may read them.
        directory: Option<Spanned<String>>,
        /// In the Redis of the section `redis`: gateways that share it order once and answer each other's challenges.
        /// Private keys stand there as they are.
        redis: Option<Spanned<RedisStorageSection>>,
    }

    /// Keys in Redis.
    pub(crate) struct RedisStorageSection {
        /// What the keys begin with, behind the `prefix` of the section `redis` and a colon.
        key: RedisKey = "acme",
    }

    /// An account that the authority knows by other means.
    pub(crate) struct ExternalAccountSection {
        /// The name that the authority gave it.
        id: String,
        /// The secret that goes with it (HMAC, in base64url).
        key: Spanned<String>,
    }
}

choice! {
    ChallengeKind {
        "http-01" => ChallengeKind::Http01,
        "tls-alpn-01" => ChallengeKind::TlsAlpn01,
    }
}

/// Where an authority may write to.
#[derive(Debug)]
pub(crate) struct Contact(String);

impl Decode for Contact {
    fn kind() -> String {
        "a `mailto:` URL".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            let is_good = |to: &str| to.contains('@') && to.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
            match text.strip_prefix("mailto:") {
                Some(to) if is_good(to) => Ok(Self(text.to_owned())),
                None if is_good(text) => Err(Some(format!("write `mailto:{text}`"))),
                _ => Err(Some("such as `mailto:operators@example.com`, one for each address".into())),
            }
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^mailto:" }), generator)
    }
}

/// What one certificate is for.
pub(crate) type Hosts = Spanned<OneOrMore<Spanned<String>>>;

/// The section `acme`, as far as it could be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AcmeOf<'a> {
    pub(crate) section: Option<&'a Acme>,
    /// There is none.
    pub(crate) is_off: bool,
}

impl AcmeSection {
    /// `None` after an error, which is reported. Without certificates: those come with the listeners.
    pub(crate) fn compile(self, redis: Redis<'_>, cx: &mut Cx) -> Option<Acme> {
        if !self.terms_agreed.value {
            let hint = "read them, then `terms_agreed: true`";
            cx.error(self.terms_agreed.span, "an authority issues nothing before its terms are agreed to", hint);
        }
        let directory = self.directory.value.0;
        if !directory.is_https() {
            cx.error(self.directory.span, "a directory is asked with TLS (RFC 8555 section 6.1)", "an `https://` URL");
        }
        let storage = self.storage.value.compile(self.storage.span, redis, cx);
        let external_account = match self.external_account {
            Some(section) => Some(section.compile(cx)?),
            None => None,
        };
        Some(Acme {
            directory,
            contact: self.contact.into_iter().map(|contact| contact.0).collect(),
            external_account,
            ca: self.ca.map(|ca| located(&ca, cx)),
            storage: storage?,
            challenge: self.challenge,
            renew_before: self.renew_before.0.map(|time| time.0),
            ari: self.ari,
            back_off: (self.back_off.0, self.back_off_max.0.max(self.back_off.0)),
            certificates: Vec::new(),
            challenges: Arc::new(Challenges::default()),
        })
    }
}

impl StorageSection {
    fn compile(self, span: Span, redis: Redis<'_>, cx: &mut Cx) -> Option<Storage> {
        match (self.directory, self.redis) {
            (Some(directory), None) => Some(Storage::Directory(located(&directory, cx))),
            (None, Some(Spanned { value, span })) => match redis.section {
                Some(redis) => Some(Storage::Redis(format!("{}:{}", redis.prefix, value.key.0).into())),
                None => {
                    if redis.is_off {
                        let hint = "at the top level: `redis: { url: \"redis://127.0.0.1:6379\" }`";
                        cx.error(span, "storage in Redis needs the section `redis`, which is missing", hint);
                    }
                    None
                }
            },
            _ => {
                let hint = "`{ directory: /var/lib/ringway/acme }` or `{ redis: {} }`";
                cx.error(span, "certificates are kept in one place: `directory` or `redis`", hint);
                None
            }
        }
    }
}

impl ExternalAccountSection {
    fn compile(self, cx: &mut Cx) -> Option<ExternalAccount> {
        match URL_SAFE_NO_PAD.decode(self.key.value.trim_end_matches('=')) {
            Ok(key) if !key.is_empty() => Some(ExternalAccount { id: self.id, key: key.into() }),
            _ => {
                cx.error(self.key.span, "the key of an external account is base64url", "as the authority gave it");
                None
            }
        }
    }
}

/// A certificate for these hosts; `None` after an error, which is reported.
pub(crate) fn managed(hosts: &Hosts, acme: AcmeOf<'_>, cx: &mut Cx) -> Option<Arc<Managed>> {
    if acme.section.is_none() {
        // What is wrong with the section is told there.
        if acme.is_off {
            let hint = "at the top level: `acme: { terms_agreed: true, storage: { directory: acme } }`";
            cx.error(hosts.span, "certificates by ACME need the section `acme`, which is missing", hint);
        }
        return None;
    }
    let names = &hosts.value.0;
    if names.len() > NAMES_MAX {
        let message = format!("a certificate has at most {NAMES_MAX} names, here are {}", names.len());
        cx.error(hosts.span, message, "one more entry of `certificates` for the others");
        return None;
    }
    let mut seen = HashSet::new();
    let names: Vec<Option<String>> = names.iter().map(|name| host(name, &mut seen, cx)).collect();
    let made = Managed::new(names.into_iter().collect::<Option<_>>()?);
    made.map_err(|problem| cx.error(hosts.span, format!("no certificate can be for these: {problem}"), None)).ok()
}

/// The name in lower case, each once.
fn host(name: &Spanned<String>, seen: &mut HashSet<String>, cx: &mut Cx) -> Option<String> {
    let text = name.value.to_ascii_lowercase();
    let label = |label: &str| {
        let inner = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_address = text.rsplit('.').next().is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()));
    let (problem, hint) = match () {
        () if text.starts_with("*.") => (
            format!("`{text}`: certificates for wildcards need the challenge DNS-01, which the gateway does not have"),
            "name each host, or take the certificate from files: `{ certificate: FILE, key: FILE }`",
        ),
        () if text.len() > 253 || !text.split('.').all(label) || is_address => {
            (format!("`{text}` is not a host name"), "such as `www.example.com`, without a dot at its end")
        }
        () if !seen.insert(text.clone()) => (format!("`{text}` is named twice"), "leave one of them out"),
        () => return Some(text),
    };
    cx.error(name.span, problem, hint);
    None
}

/// All certificates of the listeners, within what is allowed of them.
pub(crate) fn count_names(acme: &Acme, span: Span, cx: &mut Cx) {
    let names: usize = acme.certificates.iter().map(|managed| managed.names.len()).sum();
    if names > ALL_NAMES_MAX {
        let message = format!("certificates by ACME have {names} names in all, {ALL_NAMES_MAX} are allowed");
        cx.error(span, message, "take some certificates from files");
    }
}

/// A relative path starts at the directory of the configuration file.
fn located(path: &Spanned<String>, cx: &Cx) -> std::path::PathBuf {
    Path::new(cx.sink.source(path.span.source)).parent().unwrap_or(Path::new("")).join(&path.value)
}
