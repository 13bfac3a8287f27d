//! One order from its beginning to the certificate (RFC 8555 section 7.4).

use std::sync::Arc;
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, CertificateIdentifier, ChallengeType, Error, ExternalAccountKey,
    Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use ringway_config::acme::{Acme, Challenge, ChallengeKind};
use ringway_config::tls::Pair;
use tokio::time::sleep;

use super::http::Http;
use super::store::{Item, Store, StoreError};

/// How long an authority may take to look at the challenges, and to issue.
const POLL_TIME_MAX: Duration = Duration::from_secs(120);
/// Between a challenge that is shared and the word to the authority: all gateways have taken it over by then.
const SHARE_TIME: Duration = Duration::from_millis(2_500);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Authority(#[from] Error),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Refused(String),
    #[error("not done within {0:?}")]
    Late(Duration),
    #[error("the lock went to another gateway meanwhile")]
    LockLost,
}

/// A certificate, and how it is stored: key and chain as PEM.
pub(super) struct Issued {
    pub(super) pair: Arc<Pair>,
    pub(super) pem: Vec<u8>,
}

/// The authority, as the account of this gateway sees it.
pub(super) struct Authority<'a> {
    acme: &'a Acme,
    store: &'a Store,
    pub(super) http: Http,
    account: Option<Account>,
}

impl<'a> Authority<'a> {
    pub(super) fn new(acme: &'a Acme, store: &'a Store) -> Self {
        Self { acme, store, http: Http::new(acme.ca.clone()), account: None }
    }

    /// The account that is in the storage; `None` before the first order.
    pub(super) async fn known_account(&mut self) -> Result<Option<Account>, Fault> {
        if self.account.is_none() {
            let Some(json) = self.store.read(Item::Account).await? else { return Ok(None) };
            let credentials: AccountCredentials = serde_json::from_slice(&json).map_err(Error::from)?;
            let builder = Account::builder_with_http(Box::new(self.http.clone()));
            self.account = Some(builder.from_credentials(credentials).await?);
        }
        Ok(self.account.clone())
    }

    /// The same, or a new one. Whoever calls it has the lock.
    async fn account(&mut self) -> Result<Account, Fault> {
        if let Some(account) = self.known_account().await? {
            return Ok(account);
        }
        let contact: Vec<&str> = self.acme.contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let external = self.acme.external_account.as_ref();
        let external = external.map(|external| ExternalAccountKey::new(external.id.clone(), &external.key));
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        let directory = self.acme.directory.as_str().to_owned();
        let (account, credentials) = builder.create(&new, directory, external.as_ref()).await?;
        self.store.write(Item::Account, serde_json::to_vec(&credentials).map_err(Error::from)?).await?;
        tracing::info!("ACME: new account {}", account.id());
        Ok(self.account.insert(account).clone())
    }

    /// Orders a certificate. Whoever calls it has the lock. `replaces`: the one that it takes the place of, where the authority
    /// wants to know (RFC 9773 section 5).
    pub(super) async fn order(&mut self, names: &[String], replaces: Option<&Pair>) -> Result<Issued, Fault> {
        let account = self.account().await?;
        let ordered = self.order_with(&account, names, replaces).await;
        // Nobody is asked for a challenge any more, however it ended.
        let _ = self.acme.challenges.set(&[]);
        let unshared = self.store.share(&[]).await;
        if let Err(Fault::Authority(Error::Api(problem))) = &ordered
            && problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
        {
            // The authority has lost it, or taken it away: the next try makes another one.
            self.account = None;
            self.store.forget(Item::Account).await?;
        }
        let issued = ordered?;
        unshared?;
        Ok(issued)
    }

    async fn order_with(&self, account: &Account, names: &[String], replaces: Option<&Pair>) -> Result<Issued, Fault> {
        let identifiers: Vec<Identifier> = names.iter().cloned().map(Identifier::Dns).collect();
        let mut new = NewOrder::new(&identifiers);
        if let Some(id) = replaces.and_then(Pair::certificate).and_then(|der| CertificateIdentifier::try_from(der).ok())
        {
            new = new.replaces(id.into_owned());
        }
        let mut order = account.new_order(&new).await?;
        let challenges = self.challenges(&mut order).await?;
        if !challenges.is_empty() {
            self.acme.challenges.set(&challenges).map_err(Fault::Refused)?;
            self.store.share(&challenges).await?;
            if self.store.is_shared() {
                sleep(SHARE_TIME).await;
            }
            self.tell_ready(&mut order).await?;
        }
        let polling = RetryPolicy::new().backoff(1.5).timeout(POLL_TIME_MAX);
        let ready = order.poll_ready(&polling).await;
        match ready {
            Ok(OrderStatus::Ready) => {}
            Ok(_) | Err(Error::Api(_)) => {
                let reason = self.reason(&mut order).await?;
                // Without one, what the authority said of the order as a whole.
                let nothing = "the authority gave the order up and does not say why";
                let reason = reason.or_else(|| ready.err().map(|error| error.to_string()));
                return Err(Fault::Refused(reason.unwrap_or_else(|| nothing.into())));
            }
            Err(error) => return Err(error.into()),
        }
        let say = |error: rcgen::Error| Fault::Refused(error.to_string());
        let key = KeyPair::generate().map_err(say)?;
        let mut params = CertificateParams::new(names).map_err(say)?;
        params.distinguished_name = DistinguishedName::new();
        order.finalize_csr(params.serialize_request(&key).map_err(say)?.der()).await?;
        let chain = order.poll_certificate(&polling).await?;
        let pem = [key.serialize_pem(), chain].concat().into_bytes();
        let pair = Arc::new(read(names, &pem).map_err(Fault::Refused)?);
        Ok(Issued { pair, pem })
    }

    fn kind(&self) -> ChallengeType {
        match self.acme.challenge {
            ChallengeKind::Http01 => ChallengeType::Http01,
            ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
        }
    }

    /// What is to be answered; nothing for hosts that the authority has looked at lately.
    async fn challenges(&self, order: &mut Order) -> Result<Vec<Challenge>, Fault> {
        let mut challenges = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let name = authorization.identifier().to_string();
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                status => return Err(Fault::Refused(format!("the authorization of `{name}` is {status:?}"))),
            }
            let Some(challenge) = authorization.challenge(self.kind()) else {
                let message = format!("the authority does not offer {:?} for `{name}`", self.acme.challenge);
                return Err(Fault::Refused(message));
            };
            challenges.push(Challenge {
                kind: self.acme.challenge,
                name,
                token: challenge.token.clone(),
                key_authorization: challenge.key_authorization().as_str().to_owned(),
            });
        }
        Ok(challenges)
    }

    async fn tell_ready(&self, order: &mut Order) -> Result<(), Fault> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Pending
                && let Some(mut challenge) = authorization.challenge(self.kind())
            {
                challenge.set_ready().await?;
            }
        }
        Ok(())
    }

    /// What the authority did not like.
    async fn reason(&self, order: &mut Order) -> Result<Option<String>, Fault> {
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            let name = authorization.identifier().to_string();
            let state = authorization.refresh().await?;
            if let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref()) {
                return Ok(Some(format!("`{name}` was not validated: {problem}")));
            }
        }
        Ok(None)
    }
}

/// A certificate as it is stored.
///
/// # Errors
/// In one line, where it is none, or not for all of these names.
pub(super) fn read(names: &[String], pem: &[u8]) -> Result<Pair, String> {
    let pair = Pair::new(pem, pem, None)?;
    match names.iter().find(|name| !pair.names().contains(name)) {
        Some(name) => Err(format!("the certificate is not for `{name}`")),
        None => Ok(pair),
    }
}
