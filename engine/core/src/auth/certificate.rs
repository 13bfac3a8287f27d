//! Clients' certificates as identities. The TLS layer has verified them; here is what they say, and who that is.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::headers::{self, ClaimHeader};
use super::{Finding, Flaw, Identity, Method};

/// What is known of a client by its TLS connection.
#[derive(Debug, Clone, Copy)]
pub struct TlsFacts<'a> {
    /// `TLSv1.3`; empty in the clear.
    pub version: &'a str,
    /// The suite's name as registered (IANA); empty in the clear.
    pub cipher: &'a str,
    /// The client's certificate, which was verified; `None`: it has shown none.
    pub certificate: Option<&'a ClientCertificate>,
}

impl TlsFacts<'_> {
    /// Of a connection in the clear.
    pub const NONE: Self = Self { version: "", cipher: "", certificate: None };
}

/// A part of a certificate that names its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateField {
    Subject,
    CommonName,
    SanUri,
    SanDns,
    SanEmail,
    Fingerprint,
    Serial,
}

impl CertificateField {
    pub const ALL: [Self; 7] =
        [Self::Subject, Self::CommonName, Self::SanUri, Self::SanDns, Self::SanEmail, Self::Fingerprint, Self::Serial];

    /// Its name in the configuration, in templates and among the claims.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::CommonName => "common_name",
            Self::SanUri => "san_uri",
            Self::SanDns => "san_dns",
            Self::SanEmail => "san_email",
            Self::Fingerprint => "fingerprint",
            Self::Serial => "serial",
        }
    }
}

/// A client's certificate, as far as it is of use behind the handshake. Made once for a connection.
#[derive(Default)]
pub struct ClientCertificate {
    /// The subject's distinguished name (RFC 4514, as OpenSSL writes it: RFC 2253), in ASCII.
    pub subject: Box<str>,
    /// The last common name of the subject.
    pub common_name: Option<Box<str>>,
    /// The first of each kind among the alternative names.
    pub san_uri: Option<Box<str>>,
    pub san_dns: Option<Box<str>>,
    pub san_email: Option<Box<str>>,
    /// SHA-256 of the certificate, in hexadecimal digits, lower case.
    pub fingerprint: Box<str>,
    /// In hexadecimal digits, upper case.
    pub serial: Box<str>,
    /// Unix seconds from which on it is not valid any more.
    pub not_after: u64,
    /// The value of `Client-Cert` (RFC 9440 section 2.2); empty where services are not told.
    pub header: Box<str>,
    pub known: Known,
}

/// Who an authenticator took it for when it was last asked, so that a request makes no identity anew.
#[derive(Default)]
pub struct Known(RefCell<Option<(Arc<CertificateRules>, Arc<Identity>)>>);

/// Leaves out what may be personal.
impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl ClientCertificate {
    /// What it says; `None` where it does not.
    pub fn get(&self, field: CertificateField) -> Option<&str> {
        match field {
            CertificateField::Subject => Some(&self.subject).filter(|subject| !subject.is_empty()).map(|text| &**text),
            CertificateField::CommonName => self.common_name.as_deref(),
            CertificateField::SanUri => self.san_uri.as_deref(),
            CertificateField::SanDns => self.san_dns.as_deref(),
            CertificateField::SanEmail => self.san_email.as_deref(),
            CertificateField::Fingerprint => Some(&self.fingerprint),
            CertificateField::Serial => Some(&self.serial),
        }
    }
}

/// Who the owner of a certificate is.
#[derive(Debug, Clone, PartialEq)]
pub struct CertificateRules {
    /// What the owner is called: the user of logs, conditions and limits.
    pub user: CertificateField,
    /// Roles by that name.
    pub roles: HashMap<Box<str>, Vec<Box<str>>>,
    /// What the service is told.
    pub headers: Vec<ClaimHeader>,
}

impl CertificateRules {
    /// Whose certificate it is. Allocates only when it is asked of a connection for the first time.
    pub(super) fn identify(self: &Arc<Self>, certificate: &ClientCertificate, now_s: u64) -> Finding {
        let refused = |description, reason| Finding::Refused(Flaw { code: "invalid_token", description, reason });
        // It was valid in the handshake; the connection, or its session, may have outlived it.
        if now_s >= certificate.not_after {
            return refused("the client's certificate has expired", "expired");
        }
        let mut known = certificate.known.0.borrow_mut();
        if let Some((rules, identity)) = &*known
            && Arc::ptr_eq(rules, self)
        {
            return Finding::Known { identity: Arc::clone(identity), cached: true };
        }
        let Some(user) = certificate.get(self.user) else {
            return refused("the client's certificate has no name of the kind that counts", "no_name");
        };
        let fields = CertificateField::ALL.into_iter();
        let mut claims: Map<String, Value> =
            fields.filter_map(|field| Some((field.name().to_owned(), certificate.get(field)?.into()))).collect();
        claims.insert("sub".into(), user.into());
        let Some(header_lines) = headers::lines(&self.headers, &claims) else {
            return refused("the client's certificate says too much", "too_long");
        };
        let identity = Arc::new(Identity {
            method: Method::ClientCertificate,
            user: Some(user.into()),
            roles: self.roles.get(user).cloned().unwrap_or_default(),
            scopes: Vec::new(),
            claims,
            header_lines,
            expires_at: Some(certificate.not_after),
            token_id: None,
        });
        *known = Some((Arc::clone(self), Arc::clone(&identity)));
        Finding::Known { identity, cached: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::ClaimPath;

    fn certificate() -> ClientCertificate {
        ClientCertificate {
            subject: "CN=alice,O=Shop".into(),
            common_name: Some("alice".into()),
            fingerprint: "ab".into(),
            serial: "01".into(),
            not_after: 1000,
            ..ClientCertificate::default()
        }
    }

    fn rules(user: CertificateField) -> Arc<CertificateRules> {
        let header = ClaimHeader { name: "x-client".into(), claim: ClaimPath::parse("sub").unwrap() };
        let roles = HashMap::from([("alice".into(), vec!["admin".into()])]);
        Arc::new(CertificateRules { user, roles, headers: vec![header] })
    }

    fn known(finding: Finding) -> (Arc<Identity>, bool) {
        match finding {
            Finding::Known { identity, cached } => (identity, cached),
            other => panic!("{other:?}"),
        }
    }

    fn flaw(finding: Finding) -> &'static str {
        match finding {
            Finding::Refused(flaw) => flaw.reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_owner_has_a_name_roles_and_claims() {
        let (certificate, rules) = (certificate(), rules(CertificateField::CommonName));
        let (first, cached) = known(rules.identify(&certificate, 10));
        assert!(!cached && first.has_role("admin"));
        assert_eq!((first.user.as_deref(), &*first.header_lines), (Some("alice"), &b"x-client: alice\r\n"[..]));
        assert_eq!(first.claims["subject"], "CN=alice,O=Shop");
        assert!(!first.claims.contains_key("san_uri"));
        let (again, cached) = known(rules.identify(&certificate, 11));
        assert!(cached && Arc::ptr_eq(&first, &again));
        let others = Arc::new(CertificateRules { user: CertificateField::Subject, ..(*rules).clone() });
        let (other, cached) = known(others.identify(&certificate, 11));
        assert!(!cached && other.roles.is_empty() && other.user.as_deref() == Some("CN=alice,O=Shop"));
    }

    #[test]
    fn a_name_must_be_there_and_time_must_not_have_passed() {
        let certificate = certificate();
        assert_eq!(flaw(rules(CertificateField::SanUri).identify(&certificate, 10)), "no_name");
        let rules = rules(CertificateField::Fingerprint);
        known(rules.identify(&certificate, 999));
        assert_eq!(flaw(rules.identify(&certificate, 1000)), "expired", "also where it was known");
        let nobody = ClientCertificate { subject: "".into(), ..certificate };
        assert_eq!(nobody.get(CertificateField::Subject), None);
    }
}
