//! How requests prove who they come from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ringway_core::auth::credentials::{ForwardCredentials, Place};
use ringway_core::auth::jwt::Rules;
use ringway_core::auth::{self, Algorithm, Algorithms, CertificateField, CertificateRules};
use ringway_core::auth::{ClaimHeader, ClaimPath, HttpUrl, Kind, Live, Source};
use ringway_core::auth_service::{self, AuthService};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::auth_service::{AuthServiceSection, IntrospectionSection};
use super::headers::HeaderName;
use super::key_list::{ApiKeyListSection, Redis, RevokedPlace, list};
use super::route::ANONYMOUS;
use crate::decode::{Cx, Decode, OneOrMore, Pairs, Spanned};
use crate::error::Span;
use crate::scalar::{Int, Name, choice, is_token, one_of, or_variable, parsed, words_schema};
use crate::shape::shape;
use crate::snapshot::{self, KeySource, KeySources, RevokedSource};
use crate::suggest;
use crate::tree::Node;
use crate::units::{HOUR_MS, KIB, MIB, Size, Time};

shape! {
    /// One way to prove who a request comes from. Exactly one of `jwt`, `api_keys`, `client_certificate`,
    /// `auth_service` and `introspection`.
    pub(crate) struct Authenticator {
        /// Names it in routes, logs, metrics and challenges. Unique.
        name: Spanned<Name>,
        /// JSON Web Tokens (RFC 7519).
        jwt: Option<Spanned<JwtSection>>,
        /// Keys that clients were given.
        api_keys: Option<Spanned<ApiKeysSection>>,
        /// The certificate that a client has shown in the TLS handshake.
        client_certificate: Option<Spanned<ClientCertificateSection>>,
        /// A service that is told of each request and says whether it may pass.
        auth_service: Option<Spanned<AuthServiceSection>>,
        /// A service that knows what tokens stand for (RFC 7662).
        introspection: Option<Spanned<IntrospectionSection>>,
    }

    /// JSON Web Tokens: who may have made them, and what they must say (RFC 7519, RFC 8725).
    pub(crate) struct JwtSection {
        /// What `iss` must be, byte for byte. Without it: anything.
        issuer: Option<String>,
        /// One of these must be in `aud`. Without it, a token that names an audience is refused; `*` takes any.
        audience: Option<OneOrMore<String>>,
        /// The signature algorithms that count. A token cannot choose another one.
        algorithms: Spanned<OneOrMore<AlgorithmName>>,
        /// The keys that signatures are checked with.
        keys: Spanned<KeysSection>,
        /// Where a request has its token. Of several, one at a time may be filled.
        from: OneOrMore<Location> = "bearer",
        /// What clocks may differ.
        leeway: Time<0, { HOUR_MS }> = "60s",
        /// Claims that must be there.
        required_claims: OneOrMore<String> = "exp",
        /// What the token's header must have as `typ`. Without it: nothing, `JWT` or `at+jwt`.
        typ: Option<String>,
        /// A longer token is refused before anything of it is read.
        token: Size<64, { 64 * KIB }> = "8KiB",
        /// The claim that says who the user is: for the log, for limits by user. A name, or a JSON Pointer.
        user: ClaimName = "sub",
        /// The claim with the roles: text, or a list of texts.
        roles: ClaimName = "roles",
        /// The claim with the scopes: words between spaces, or a list.
        scopes: ClaimName = "scope",
        /// Headers that tell the service a claim. The client's own of that name are dropped.
        headers: Pairs<HeaderName, ClaimName> = "{}",
        /// Token IDs (`jti`) that do not hold any more: the path of a file, or `{ file: PATH }`, or `{ redis: {} }`.
        revoked: Option<RevokedPlace>,
        /// Remember verified tokens.
        cache: bool = "true",
        /// Which tokens go on to the service. `headers`: those in header fields and cookies, and none of the query. `none`, `all`.
        forward_credentials: Forward = "headers",
    }

    /// Keys of token issuers. Exactly one of its keys.
    pub(crate) struct KeysSection {
        /// A shared secret, for HS256, HS384 and HS512; at least as long as the hash.
        secret: Option<Spanned<String>>,
        /// Public keys in PEM.
        pem: Option<Spanned<String>>,
        /// A JSON Web Key Set (RFC 7517), as text.
        jwks: Option<Spanned<String>>,
        /// A file with public keys in PEM. Read again when it changes.
        pem_file: Option<Spanned<String>>,
        /// A file with a JSON Web Key Set. Read again when it changes.
        jwks_file: Option<Spanned<String>>,
        /// Where a JSON Web Key Set is fetched, ahead of its expiry, and when a token has a key that it does not know.
        jwks_url: Option<Spanned<Url>>,
        /// The issuer, whose OpenID Connect discovery says where its keys are.
        oidc: Option<Spanned<Url>>,
    }

    /// Keys that clients were given. Exactly one of `file` and `redis`.
    pub(crate) struct ApiKeysSection {
        /// The file that lists the clients and the hashes of their keys. Read again when it changes.
        file: Option<Spanned<String>>,
        /// A hash in the Redis of the section `redis`: from the hash of a key to what is known of it.
        redis: Option<Spanned<ApiKeyListSection>>,
        /// Where a request has its key. Of several, one at a time may be filled.
        from: OneOrMore<Location> = "header X-API-Key",
        /// Headers that tell the service about the client: `sub` is its name, the others are from its `metadata`. The
        /// request's own of that name are dropped.
        headers: Pairs<HeaderName, ClaimName> = "{}",
        /// Which keys go on to the service. `headers`: those in header fields and cookies, and none of the query. `none`, `all`.
        forward_credentials: Forward = "headers",
    }

    /// Clients' certificates, of listeners that verify them (`tls.client_certificates`).
    pub(crate) struct ClientCertificateSection {
        /// What names the user: `subject` (RFC 4514), `common_name`, the first `san_uri`, `san_dns` or `san_email` of the
        /// alternative names, or `fingerprint` (SHA-256, hexadecimal). A certificate without it is refused.
        user: UserField = "subject",
        /// Roles of users, by that name.
        roles: Pairs<String, OneOrMore<String>> = "{}",
        /// Headers that tell the service about the client: `sub` is the user; `subject`, `common_name`, `san_uri`, `san_dns`,
        /// `san_email`, `fingerprint`, `serial`. The request's own of that name are dropped.
        headers: Pairs<HeaderName, ClaimName> = "{}",
    }

    /// What each worker remembers of verified tokens.
    pub(crate) struct TokenCacheSection {
        /// Tokens, of all authenticators.
        entries: Int<8, 10_000_000> = "16384",
        /// Their memory, by estimate.
        memory: Size<{ 64 * KIB }, { 64 * 1024 * MIB }> = "32MiB",
        /// After this time a token is verified again. Its own `exp` ends it sooner.
        ttl: Time<1000, { HOUR_MS }> = "60s",
    }
}

/// A signature algorithm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AlgorithmName(Algorithm);

const ALGORITHMS: [&str; 12] =
    ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

impl Decode for AlgorithmName {
    fn kind() -> String {
        one_of(&ALGORITHMS)
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match Algorithm::parse(text) {
            Some(algorithm) => Ok(Self(algorithm)),
            None if text.eq_ignore_ascii_case("none") => Err(Some("a token without a signature proves nothing".into())),
            None => Err(suggest::closest(text, ALGORITHMS).map(|word| format!("did you mean `{word}`?"))),
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        words_schema(&ALGORITHMS, generator)
    }
}

/// Where a claim stands.
#[derive(Debug, Clone)]
pub(crate) struct ClaimName(pub(crate) ClaimPath);

impl Decode for ClaimName {
    fn kind() -> String {
        "a claim".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let forms = "`tenant`, `realm_access.roles`, `https://a.example/roles` or, with dots in a name, `/my.claim`";
        parsed(node, cx, |text| ClaimPath::parse(text).map(Self).map_err(|error| Some(format!("{error}; {forms}"))))
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1 })
    }
}

/// Which credentials a service gets to see.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forward(pub(crate) ForwardCredentials);

/// What names the owner of a certificate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UserField(CertificateField);

choice! {
    UserField {
        "subject" => Self(CertificateField::Subject),
        "common_name" => Self(CertificateField::CommonName),
        "san_uri" => Self(CertificateField::SanUri),
        "san_dns" => Self(CertificateField::SanDns),
        "san_email" => Self(CertificateField::SanEmail),
        "fingerprint" => Self(CertificateField::Fingerprint),
    }
    Forward {
        "headers" => Self(ForwardCredentials::Headers),
        "none" => Self(ForwardCredentials::None),
        "all" => Self(ForwardCredentials::All),
    }
}

/// Where a request has its credential.
#[derive(Debug, Clone)]
pub(crate) struct Location(pub(crate) Place);

impl Decode for Location {
    fn kind() -> String {
        "`bearer`, `header NAME`, `cookie NAME` or `query NAME`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| {
            let (kind, name) = text.split_once(' ').unwrap_or((text, ""));
            match kind {
                "bearer" if name.is_empty() => Ok(Self(Place::bearer())),
                "header" if is_token(name) => Ok(Self(Place::Header { header: name.into() })),
                "cookie" if is_token(name) => Ok(Self(Place::Cookie { cookie: name.into() })),
                "query" if is_token(name) => Ok(Self(Place::Query { parameter: name.into() })),
                _ => Err(None),
            }
        })
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^(bearer|(header|cookie|query) [^ ]+)$" }), generator)
    }
}

/// An `http:` or `https:` URL.
#[derive(Debug, Clone)]
pub(crate) struct Url(HttpUrl);

impl Decode for Url {
    fn kind() -> String {
        "an `http://` or `https://` URL".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| HttpUrl::parse(text).map(Self).map_err(|error| Some(error.to_string())))
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        or_variable(json_schema!({ "type": "string", "pattern": "^https?://" }), generator)
    }
}

impl TokenCacheSection {
    pub(crate) fn compile(&self) -> snapshot::TokenCache {
        snapshot::TokenCache { entries: self.entries.0 as usize, bytes: self.memory.0 as usize, ttl: self.ttl.0 }
    }
}

impl Authenticator {
    /// Whether a service is asked.
    pub(crate) fn asks_a_service(&self) -> bool {
        self.auth_service.is_some() || self.introspection.is_some()
    }

    /// `sees_certificates`: whether a listener verifies those of clients. `None` after an error, which is reported.
    pub(crate) fn compile(
        self,
        services: &[Arc<snapshot::Service>],
        sees_certificates: bool,
        redis: Redis<'_>,
        cx: &mut Cx,
    ) -> Option<(auth::Authenticator, KeySources)> {
        if self.name.value.0 == ANONYMOUS {
            cx.error(self.name.span, "`anonymous` is what routes call nobody", "name it otherwise");
        }
        let name: Arc<str> = Arc::from(self.name.value.0);
        let given = [
            self.jwt.map(|section| (section.span, Written::Jwt(Box::new(section.value)))),
            self.api_keys.map(|section| (section.span, Written::ApiKeys(section.value))),
            self.client_certificate.map(|section| (section.span, Written::ClientCertificate(section.value))),
            self.auth_service.map(|section| (section.span, Written::AuthService(section.value))),
            self.introspection.map(|section| (section.span, Written::Introspection(section.value))),
        ];
        let mut given = given.into_iter().flatten();
        const ONE: &str =
            "an authenticator has one of `jwt`, `api_keys`, `client_certificate`, `auth_service` and `introspection`";
        let Some((at, written)) = given.next() else {
            cx.error(self.name.span, format!("{ONE}: it has none"), None);
            return None;
        };
        if let Some((second, _)) = given.next() {
            cx.error(second, ONE, "make it two");
            return None;
        }
        let told_all = (OneOrMore(Vec::new()), Forward(ForwardCredentials::All));
        let judged_there = |(from, forward), service: AuthService| Compiled {
            from,
            forward,
            kind: Kind::Service(Arc::new(service)),
            keys: KeySources::NONE,
        };
        let compiled = match written {
            Written::Jwt(section) => section.compile(redis, cx)?,
            Written::ApiKeys(section) => section.compile(at, redis, cx)?,
            Written::ClientCertificate(section) => section.compile(at, sees_certificates, cx),
            Written::AuthService(section) => judged_there(told_all, section.compile(services, cx)),
            Written::Introspection(section) => {
                let places = (OneOrMore(section.from.0.clone()), section.forward_credentials);
                judged_there(places, section.compile(services, cx))
            }
        };
        let Compiled { from, forward: Forward(forward), kind, keys } = compiled;
        let places = from.0.into_iter().map(|place| place.0).collect();
        Some((auth::Authenticator { name, places, forward, kind }, keys))
    }
}

/// The one kind that an authenticator is of.
enum Written {
    Jwt(Box<JwtSection>),
    ApiKeys(ApiKeysSection),
    ClientCertificate(ClientCertificateSection),
    AuthService(AuthServiceSection),
    Introspection(IntrospectionSection),
}

struct Compiled {
    from: OneOrMore<Location>,
    forward: Forward,
    kind: Kind,
    keys: KeySources,
}

/// Header fields that tell a service about who asks.
pub(crate) fn claim_headers(headers: Pairs<HeaderName, ClaimName>, cx: &mut Cx) -> Vec<ClaimHeader> {
    let headers = headers.0.into_iter();
    let given = headers.map(|(name, claim)| {
        if !auth_service::may_be_given(&name.value.0) {
            let message = format!("`{}` is the gateway's own: it is not told from a claim", name.value.0);
            cx.error(name.span, message, "such as `X-User-Id`");
        }
        ClaimHeader { name: name.value.0.into(), claim: claim.0 }
    });
    given.collect()
}

impl JwtSection {
    fn compile(self, redis: Redis<'_>, cx: &mut Cx) -> Option<Compiled> {
        let names = self.algorithms.value.0.iter().map(|name| name.0);
        let algorithms = Algorithms::new(names)?;
        let keys = self.keys.value.compile(self.keys.span, algorithms, self.algorithms.span, cx)?;
        let audiences = self.audience.map(|audience| audience.0).unwrap_or_default();
        let any_audience = audiences.iter().any(|audience| audience == "*");
        let boxed = |texts: Vec<String>| texts.into_iter().map(String::into_boxed_str).collect::<Vec<_>>();
        let rules = Rules {
            issuer: self.issuer.map(String::into_boxed_str),
            audiences: if any_audience { Vec::new() } else { boxed(audiences) },
            any_audience,
            algorithms,
            leeway_s: self.leeway.0.as_secs(),
            required_claims: boxed(self.required_claims.0),
            typ: self.typ.map(String::into_boxed_str),
            token_bytes_max: self.token.0 as usize,
            user: self.user.0,
            roles: self.roles.0,
            scopes: self.scopes.0,
            headers: claim_headers(self.headers, cx),
        };
        let revoked = match self.revoked {
            Some(place) => place.0.value.compile(place.0.span, redis, cx)?,
            None => RevokedSource::Nowhere,
        };
        let kind = Kind::Jwt { rules: Box::new(rules), cached: self.cache };
        Some(Compiled { from: self.from, forward: self.forward_credentials, kind, keys: KeySources { keys, revoked } })
    }
}

impl KeysSection {
    fn compile(self, span: Span, algorithms: Algorithms, algorithms_span: Span, cx: &mut Cx) -> Option<KeySource> {
        let text =
            |source: Source, text: Spanned<String>| (KeySource::Text(source, text.value.as_bytes().into()), text.span);
        let url = |make: fn(HttpUrl) -> KeySource, url: Spanned<Url>| (make(url.value.0), url.span);
        let is_secret = self.secret.is_some();
        let has_hmac = algorithms.iter().any(Algorithm::is_hmac);
        let jwks = Source::Jwks { secrets: has_hmac };
        let given = [
            self.secret.map(|secret| text(Source::Secret, secret)),
            self.pem.map(|pem| text(Source::Pem, pem)),
            self.jwks.map(|set| text(jwks.clone(), set)),
            file(self.pem_file, Source::Pem, cx)?,
            file(self.jwks_file, jwks, cx)?,
            self.jwks_url.map(|at| url(KeySource::Jwks, at)),
            self.oidc.map(|at| url(KeySource::Oidc, at)),
        ];
        let mut given = given.into_iter().flatten();
        let Some((source, at)) = given.next() else {
            cx.error(
                span,
                "there are no keys",
                "one of `secret`, `pem`, `jwks`, `pem_file`, `jwks_file`, `jwks_url`, `oidc`",
            );
            return None;
        };
        if let Some((_, second)) = given.next() {
            cx.error(second, "keys come from one place", "make it two authenticators");
            return None;
        }
        let mixed = algorithms.iter().any(|algorithm| algorithm.is_hmac() != is_secret);
        let is_remote = matches!(source, KeySource::Jwks(_) | KeySource::Oidc(_));
        if (is_secret && mixed) || (is_remote && has_hmac) {
            let message = "secrets go with HS256, HS384 and HS512, public keys with the other algorithms";
            cx.error(algorithms_span, message, None);
            return None;
        }
        if let (Some(shortest), KeySource::Text(Source::Secret, secret)) =
            (algorithms.iter().map(Algorithm::secret_bytes_min).max(), &source)
            && secret.len() < shortest
        {
            let message =
                format!("the secret has {} bytes; its algorithm needs {shortest} (RFC 7518 section 3.2)", secret.len());
            cx.sink.error(at, message, Some("make one: `openssl rand -base64 48`".into()));
            return None;
        }
        if let KeySource::Text(source, text) = &source
            && let Err(error) = Live::new("").load(source, text, 0)
        {
            cx.sink.error(at, format!("the keys cannot be used: {error}"), None);
            return None;
        }
        Some(source)
    }
}

impl ApiKeysSection {
    fn compile(self, span: Span, redis: Redis<'_>, cx: &mut Cx) -> Option<Compiled> {
        let headers: Arc<[ClaimHeader]> = claim_headers(self.headers, cx).into();
        let keys = match (self.file, self.redis) {
            (Some(file), None) => {
                let source = Source::ApiKeys { headers: Arc::clone(&headers) };
                let (path, text) = read(&file, &source, cx)?;
                KeySource::File(source, path, text)
            }
            (None, Some(Spanned { value: ApiKeyListSection { key, every }, span })) => {
                let list = list(redis, ("API keys", span), &key, every.0, cx)?;
                KeySource::Redis(Arc::clone(&headers), list)
            }
            (Some(_), Some(second)) => {
                cx.error(second.span, "API keys come from one place", "make it two authenticators");
                return None;
            }
            (None, None) => {
                cx.error(span, "there is no place to take API keys from", "`file: PATH` or `redis: {}`");
                return None;
            }
        };
        let keys = KeySources { keys, revoked: RevokedSource::Nowhere };
        Some(Compiled { from: self.from, forward: self.forward_credentials, kind: Kind::ApiKeys { headers }, keys })
    }
}

impl ClientCertificateSection {
    fn compile(self, span: Span, sees_certificates: bool, cx: &mut Cx) -> Compiled {
        if !sees_certificates {
            let hint = "`tls: { client_certificates: { ca: PATH } }` in a listener";
            cx.error(span, "no listener asks clients for certificates", hint);
        }
        let roles = self.roles.0.into_iter().map(|(user, roles)| {
            let roles = roles.0.into_iter().map(String::into_boxed_str).collect();
            (user.value.into_boxed_str(), roles)
        });
        let roles: HashMap<_, _> = roles.collect();
        let rules = CertificateRules { user: self.user.0, roles, headers: claim_headers(self.headers, cx) };
        let forward = Forward(ForwardCredentials::All);
        let kind = Kind::ClientCertificate(Arc::new(rules));
        Compiled { from: OneOrMore(Vec::new()), forward, kind, keys: KeySources::NONE }
    }
}

/// The source that a key names, if it does; `None` after an error.
fn file(path: Option<Spanned<String>>, source: Source, cx: &mut Cx) -> Option<Option<(KeySource, Span)>> {
    let Some(path) = path else { return Some(None) };
    let (file, text) = read(&path, &source, cx)?;
    Some(Some((KeySource::File(source, file, text), path.span)))
}

/// Reads a file that must hold what `source` says. A relative path starts at the directory of the configuration file.
pub(super) fn read(path: &Spanned<String>, source: &Source, cx: &mut Cx) -> Option<(PathBuf, Arc<[u8]>)> {
    let directory = Path::new(cx.sink.source(path.span.source)).parent().unwrap_or(Path::new("")).to_path_buf();
    let file = directory.join(&path.value);
    let problem = match std::fs::read(&file) {
        Ok(text) => match Live::new("").load(source, &text, 0) {
            Ok(_) => return Some((file, text.into())),
            Err(error) => error.to_string(),
        },
        Err(error) => error.to_string(),
    };
    cx.sink.error(path.span, format!("`{}` cannot be used: {problem}", file.display()), None);
    None
}
