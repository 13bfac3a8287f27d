//! One way to prove who a request comes from: where its credential stands, and how it is judged.

use std::sync::Arc;

use httparse::Header;

use super::credentials::{self, CredentialsError, ForwardCredentials, Place};
use super::jwt::{self, JwtError, Rules};
use super::{Asked, CertificateRules, ClaimHeader, ClientCertificate, Identity, Live, TokenCache};
use crate::auth_service::AuthService;

/// An authenticator as configured. What it knows at the moment is its [`Live`].
#[derive(Debug, Clone)]
pub struct Authenticator {
    /// Names it in logs, metrics and as the realm of a challenge.
    pub name: Arc<str>,
    /// Where requests have its credential; of a service that is told of the whole request: nowhere.
    pub places: Box<[Place]>,
    /// What the service behind gets of it.
    pub forward: ForwardCredentials,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    /// JSON Web Tokens.
    Jwt {
        rules: Box<Rules>,
        /// Whether verified tokens are remembered.
        cached: bool,
    },
    /// Keys that clients were given.
    ApiKeys { headers: Arc<[ClaimHeader]> },
    /// A service that is asked.
    Service(Arc<AuthService>),
    /// The certificate that the client has shown in the TLS handshake.
    ClientCertificate(Arc<CertificateRules>),
}

/// What is wrong with a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flaw {
    /// The error code of RFC 6750 section 3.1.
    pub code: &'static str,
    /// For `error_description`.
    pub description: &'static str,
    /// One word, for metrics and audit records.
    pub reason: &'static str,
}

/// What an authenticator says of a request.
#[derive(Debug)]
pub enum Finding {
    /// The request has no credential of this kind.
    None,
    Known {
        identity: Arc<Identity>,
        /// It was remembered, not verified anew.
        cached: bool,
    },
    Refused(Flaw),
    /// There is nothing to judge the credential with.
    Unavailable,
    /// Its key is unknown, and is being looked for. Ask again when the control plane has rung.
    Wait,
    /// A service has to be asked.
    Ask,
}

impl Authenticator {
    /// The scheme of its challenge (RFC 9110 section 11.6.1). Keys that stand in a field of their own have none that is
    /// registered.
    pub fn scheme(&self) -> &str {
        self.places
            .iter()
            .find_map(|place| match place {
                Place::Scheme { scheme, .. } => Some(&**scheme),
                _ => None,
            })
            .unwrap_or(match self.kind {
                Kind::Jwt { .. } | Kind::Service(_) => "Bearer",
                Kind::ApiKeys { .. } => "ApiKey",
                Kind::ClientCertificate(_) => "ClientCertificate",
            })
    }

    /// Names of the fields that tell the service who asks. Those that the client sent are dropped.
    pub fn vouches_for(&self, name: &str) -> bool {
        let headers = match &self.kind {
            Kind::Jwt { rules, .. } => &rules.headers[..],
            Kind::ApiKeys { headers } => headers,
            Kind::ClientCertificate(rules) => &rules.headers,
            Kind::Service(service) => return service.field_names().any(|own| is_same_field(own, name)),
        };
        headers.iter().any(|header| is_same_field(&header.name, name))
    }

    /// Whether a part of a query, as stands between two `&`, is a credential that the service does not get.
    pub fn hides_parameter(&self, pair: &[u8]) -> bool {
        self.forward != ForwardCredentials::All
            && self.places.iter().any(|place| credentials::is_parameter(place, pair))
    }

    /// Whether there are header fields or cookies that the service does not get.
    pub fn hides_fields(&self) -> bool {
        self.forward == ForwardCredentials::None
    }

    /// Whether a field is a credential that the service does not get.
    pub fn hides_field(&self, name: &str, value: &[u8]) -> bool {
        self.hides_fields() && self.places.iter().any(|place| credentials::is_field(place, name, value))
    }

    /// The same of a part of `Cookie`, as stands between two `;`.
    pub fn hides_cookie(&self, pair: &[u8]) -> bool {
        self.hides_fields() && self.places.iter().any(|place| credentials::is_cookie(place, pair))
    }

    /// Who a request comes from, as far as that is known without a signature's being verified: a token that was before, and
    /// still holds, a key that is known, the certificate of the connection. `index` and what is `carried` as in
    /// [`Authenticator::judge`].
    pub fn recall(
        &self,
        index: u32,
        live: &Live,
        carried: (&[Header<'_>], Option<&[u8]>, Option<&ClientCertificate>),
        cache: &mut TokenCache,
        now_s: u64,
    ) -> Option<Arc<Identity>> {
        let (headers, query, certificate) = carried;
        if let Kind::ClientCertificate(rules) = &self.kind {
            return match rules.identify(certificate?, now_s) {
                Finding::Known { identity, .. } => Some(identity),
                _ => None,
            };
        }
        let credential = credentials::find(&self.places, headers, query).ok()??;
        match &self.kind {
            Kind::Jwt { cached: true, .. } => cache.get(index, credential.as_bytes(), now_s, live.generation()),
            Kind::ApiKeys { .. } => live.api_keys().as_ref()?.verify(credential.as_bytes(), now_s).ok(),
            Kind::Jwt { .. } | Kind::Service(_) | Kind::ClientCertificate(_) => None,
        }
    }

    /// Judges the credential of a request. `index`: this authenticator's in its configuration; `may_wait`: whether an unknown
    /// key is worth a wait.
    ///
    /// Hot; watched by the benchmark `authenticate`.
    pub fn judge(
        &self,
        index: u32,
        live: &Live,
        (headers, query, certificate): (&[Header<'_>], Option<&[u8]>, Option<&ClientCertificate>),
        cache: &mut TokenCache,
        now_s: u64,
        may_wait: bool,
    ) -> Finding {
        match &self.kind {
            // It knows itself where its credentials stand.
            Kind::Service(_) => return Finding::Ask,
            Kind::ClientCertificate(rules) => {
                return certificate.map_or(Finding::None, |certificate| rules.identify(certificate, now_s));
            }
            Kind::Jwt { .. } | Kind::ApiKeys { .. } => {}
        }
        let credential = match credentials::find(&self.places, headers, query) {
            Ok(Some(credential)) => credential,
            Ok(None) => return Finding::None,
            Err(error) => return Finding::Refused(error.into()),
        };
        match &self.kind {
            Kind::Service(_) | Kind::ClientCertificate(_) => Finding::None,
            // Again only where the first keys have come meanwhile.
            Kind::ApiKeys { .. } => loop {
                let generation = live.generation();
                match live.api_keys().as_ref().map(|keys| keys.verify(credential.as_bytes(), now_s)) {
                    Some(Ok(identity)) => return Finding::Known { identity, cached: false },
                    Some(Err(error)) => {
                        let (description, reason) = (error.description(), error.reason());
                        return Finding::Refused(Flaw { code: "invalid_token", description, reason });
                    }
                    None => match live.ask_for_list(generation) {
                        Asked::Wait if may_wait => return Finding::Wait,
                        Asked::Wait | Asked::No => return Finding::Unavailable,
                        Asked::Again => {}
                    },
                }
            },
            // Again only where the keys have changed while the token was judged.
            Kind::Jwt { rules, cached } => loop {
                // Before the keys, so that what is remembered is never newer than they are.
                let generation = live.generation();
                if *cached && let Some(identity) = cache.get(index, credential.as_bytes(), now_s, generation) {
                    return Finding::Known { identity, cached: true };
                }
                let error = match jwt::verify(rules, &live.keys(), &credential, now_s) {
                    Ok(identity) => {
                        match (identity.token_id.as_deref(), live.revoked().as_ref()) {
                            (None, _) => {}
                            (Some(id), Some(revoked)) if revoked.contains(id) => {
                                return Finding::Refused(invalid(&JwtError::Revoked));
                            }
                            (Some(_), Some(_)) => {}
                            (Some(_), None) => match live.ask_for_list(generation) {
                                Asked::Wait if may_wait => return Finding::Wait,
                                Asked::Wait | Asked::No => return Finding::Unavailable,
                                Asked::Again => continue,
                            },
                        }
                        let identity = Arc::new(identity);
                        if *cached {
                            cache.insert(index, credential.as_bytes(), now_s, generation, &identity);
                        }
                        return Finding::Known { identity, cached: false };
                    }
                    Err(error) => error,
                };
                let kid = match &error {
                    JwtError::UnknownKey { kid } => Some(kid.as_deref()),
                    JwtError::NoKeys => Some(None),
                    _ => None,
                };
                match kid.filter(|_| may_wait).map(|kid| live.ask(kid, generation)) {
                    Some(Asked::Wait) => return Finding::Wait,
                    Some(Asked::Again) => {}
                    Some(Asked::No) | None if error == JwtError::NoKeys => return Finding::Unavailable,
                    Some(Asked::No) | None => return Finding::Refused(invalid(&error)),
                }
            },
        }
    }
}

fn invalid(error: &JwtError) -> Flaw {
    Flaw { code: "invalid_token", description: error.description(), reason: error.reason() }
}

impl From<CredentialsError> for Flaw {
    fn from(error: CredentialsError) -> Self {
        Self { code: "invalid_request", description: error.description(), reason: "credentials" }
    }
}

/// Whether two names are one to a service that turns `-` into `_` (CGI, WSGI, PHP).
fn is_same_field(own: &str, other: &str) -> bool {
    let folded = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    own.len() == other.len() && own.bytes().map(folded).eq(other.bytes().map(folded))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields_are_the_same_to_services_that_fold_them() {
        assert!(is_same_field("X-User-Id", "x_user-ID") && !is_same_field("X-User-Id", "X-User-I"));
    }
}
