//! Certificates by ACME (RFC 8555): one task orders them, keeps them in a directory or in Redis, renews them, and shows the
//! workers what to present. A worker never waits for it, and a certificate that is there stays until a better one is.

mod http;
mod order;
mod page;
mod redis_store;
mod schedule;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use instant_acme::{CertificateIdentifier, Error};
use ringway_config::Hub;
use ringway_config::acme::{Acme, Challenge, Managed, Status};
use ringway_config::snapshot::Redis as Settings;
use ringway_config::tls::Pair;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use self::order::{Authority, Fault, Issued};
pub(crate) use self::page::page;
use self::store::{Item, Lock, Store};
use crate::process::unix_ms;
use crate::redis::random_instance;

/// How often challenges of other gateways are looked for, and a lock that another has is tried again.
const TICK: Duration = Duration::from_secs(1);
/// An order that takes longer is given up.
const ORDER_TIME_MAX: Duration = Duration::from_secs(300);
/// After a failed question for the authority's advice.
const ASK_AFTER_FAILURE: Duration = Duration::from_secs(3600);
/// Between two orders that an authority's advice leads to.
const ADVISED_APART: Duration = Duration::from_secs(3600);

/// The task that orders. Dropped: it ends.
#[derive(Debug)]
pub(crate) struct Keeper {
    /// This process among those that share a storage.
    instance: Arc<str>,
    task: Option<AbortHandle>,
}

impl Keeper {
    pub(crate) fn new() -> Self {
        Self { instance: random_instance(), task: None }
    }

    /// Goes on with the certificates of the configuration that was published. An order that is under way begins again.
    pub(crate) fn follow(&mut self, handle: &Handle, hub: &Arc<Hub>) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        let snapshot = hub.published().snapshot.clone();
        let Some(acme) = snapshot.acme.clone().filter(|acme| !acme.certificates.is_empty()) else { return };
        let task = run(acme, snapshot.redis.clone(), self.instance.clone(), hub.clone());
        self.task = Some(handle.spawn(task).abort_handle());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn run(acme: Acme, redis: Option<Settings>, instance: Arc<str>, hub: Arc<Hub>) {
    let Some(store) = Store::new(&acme, redis.as_ref(), &instance) else { return };
    let mut by_names: BTreeMap<Vec<String>, Vec<Arc<Managed>>> = BTreeMap::new();
    for managed in &acme.certificates {
        by_names.entry(managed.names.clone()).or_default().push(managed.clone());
    }
    let authority = Authority::new(&acme, &store);
    let mut task = Task { acme: &acme, store: &store, authority, hub, answered: Vec::new() };
    let mut kept: Vec<Kept> = by_names.into_iter().map(|(names, shown)| Kept::new(names, shown)).collect();
    for kept in &mut kept {
        task.begin(kept).await;
    }
    loop {
        task.answer_for_others().await;
        for kept in &mut kept {
            if now_ms() >= kept.ask_ms {
                task.ask(kept).await;
            }
            if now_ms() >= kept.due_ms {
                task.renew(kept).await;
            }
        }
        sleep(TICK).await;
    }
}

fn now_ms() -> u64 {
    unix_ms(SystemTime::now())
}

fn after(wait: Duration) -> u64 {
    now_ms().saturating_add(wait.as_millis() as u64)
}

/// A certificate and when something is to be done for it, in Unix time in milliseconds.
struct Kept {
    names: Vec<String>,
    /// Where it is shown; not empty.
    shown: Vec<Arc<Managed>>,
    pair: Option<Arc<Pair>>,
    /// Of the next order, or the next try.
    due_ms: u64,
    /// Of the next question for the authority's advice.
    ask_ms: u64,
    /// Where in the time that is left to it this gateway has its turn.
    place: f64,
    /// The window that the authority advises, in seconds of Unix time.
    advised: Option<(i64, i64)>,
    /// No order on the authority's advice before: it may go on advising the past.
    advised_from_ms: u64,
    /// In a row.
    failures: u32,
}

impl Kept {
    fn new(names: Vec<String>, shown: Vec<Arc<Managed>>) -> Self {
        let pair = shown.iter().find_map(|managed| managed.issued());
        let place = fastrand::f64();
        let (advised, advised_from_ms) = (None, 0);
        Self { names, shown, pair, due_ms: 0, ask_ms: u64::MAX, place, advised, advised_from_ms, failures: 0 }
    }

    fn label(&self) -> &str {
        self.names.first().map_or("unnamed", String::as_str)
    }

    /// Shows the certificate and plans the next one.
    fn take(&mut self, pair: Arc<Pair>, acme: &Acme) {
        self.shown.iter().for_each(|managed| managed.publish(pair.clone()));
        self.pair = Some(pair);
        self.failures = 0;
        self.advised = None;
        self.ask_ms = if acme.ari { 0 } else { u64::MAX };
        self.plan(acme);
        self.tell(None);
    }

    fn plan(&mut self, acme: &Acme) {
        let Some(pair) = &self.pair else { return };
        let by_age = schedule::renewal_ms((pair.not_before, pair.not_after), acme.renew_before, self.place);
        self.due_ms = match self.advised {
            Some(window) => {
                let advised = schedule::suggested_ms(window, self.place).max(self.advised_from_ms);
                if acme.renew_before.is_some() { advised.min(by_age) } else { advised }
            }
            None => by_age,
        };
    }

    fn tell(&self, last_error: Option<String>) {
        let status = Status { next_order: Some((self.due_ms / 1000) as i64), last_error };
        self.shown.iter().for_each(|managed| managed.set_status(status.clone()));
    }
}

/// How a try ended.
enum Tried {
    Issued(Issued),
    /// Another gateway has ordered it.
    Found(Arc<Pair>),
    /// Another gateway is ordering.
    Busy,
}

struct Task<'a> {
    acme: &'a Acme,
    store: &'a Store,
    authority: Authority<'a>,
    hub: Arc<Hub>,
    /// Challenges of other gateways that are answered now.
    answered: Vec<Challenge>,
}

impl Task<'_> {
    /// Shows what is in the storage.
    async fn begin(&mut self, kept: &mut Kept) {
        match self.stored(kept).await {
            Ok(Some(pair)) => kept.take(pair, self.acme),
            Ok(None) if kept.pair.is_none() => {
                tracing::warn!("ACME: there is no certificate for `{}` yet, a self-signed one stands in", kept.label());
            }
            // That of the configuration before, from another storage or authority.
            Ok(None) => {}
            Err(error) => tracing::warn!("ACME: `{}`: {error}", kept.label()),
        }
    }

    async fn stored(&self, kept: &Kept) -> Result<Option<Arc<Pair>>, Fault> {
        let Some(pem) = self.store.read(Item::Certificate(&kept.names)).await? else { return Ok(None) };
        match order::read(&kept.names, &pem) {
            Ok(pair) => Ok(Some(Arc::new(pair))),
            Err(problem) => {
                tracing::warn!("ACME: the certificate for `{}` in the storage is of no use: {problem}", kept.label());
                Ok(None)
            }
        }
    }

    async fn answer_for_others(&mut self) {
        // While the storage is out of reach, what was asked for before stays.
        if let Ok(Some(shared)) = self.store.shared().await
            && shared != self.answered
        {
            if let Err(problem) = self.acme.challenges.set(&shared) {
                tracing::warn!("ACME: a challenge of another gateway: {problem}");
            }
            self.answered = shared;
        }
    }

    /// Asks the authority when to renew (RFC 9773).
    async fn ask(&mut self, kept: &mut Kept) {
        let wait = match self.advice(kept).await {
            Ok(wait) => wait,
            Err(fault) => {
                tracing::debug!("ACME: no advice when to renew `{}`: {fault}", kept.label());
                ASK_AFTER_FAILURE
            }
        };
        kept.ask_ms = after(wait);
    }

    async fn advice(&mut self, kept: &mut Kept) -> Result<Duration, Fault> {
        const NEVER: Duration = Duration::from_secs(24 * 3600);
        let Some(pair) = kept.pair.clone() else { return Ok(NEVER) };
        let Some(id) = pair.certificate().and_then(|der| CertificateIdentifier::try_from(der).ok()) else {
            return Ok(NEVER);
        };
        let Some(account) = self.authority.known_account().await? else { return Ok(NEVER) };
        let (info, again) = match account.renewal_info(&id).await {
            Ok(advice) => advice,
            Err(Error::Unsupported(_)) => return Ok(NEVER),
            Err(error) => return Err(error.into()),
        };
        let window = (info.suggested_window.start.unix_timestamp(), info.suggested_window.end.unix_timestamp());
        if kept.advised != Some(window) && kept.failures == 0 {
            kept.advised = Some(window);
            kept.plan(self.acme);
            kept.tell(None);
        }
        Ok(schedule::ask_again(again))
    }

    /// Orders, or takes what another gateway has ordered.
    async fn renew(&mut self, kept: &mut Kept) {
        match self.try_renew(kept).await {
            Ok(Tried::Busy) => {}
            Ok(Tried::Found(pair)) => {
                tracing::info!("ACME: another gateway has a new certificate for `{}`", kept.label());
                kept.take(pair, self.acme);
            }
            Ok(Tried::Issued(issued)) => {
                self.hub.acme_orders.succeeded.fetch_add(1, Ordering::Relaxed);
                if kept.advised.is_some() {
                    kept.advised_from_ms = after(ADVISED_APART);
                }
                kept.take(issued.pair, self.acme);
                let days = kept.pair.as_ref().map_or(0, |pair| pair.not_after - (now_ms() / 1000) as i64) / 86_400;
                tracing::info!("ACME: a new certificate for `{}`, for {days} days", kept.names.join("`, `"));
            }
            Err(fault) => {
                kept.failures = kept.failures.saturating_add(1);
                let told = self.authority.http.take_retry_after();
                let wait = schedule::back_off(kept.failures, self.acme.back_off, fastrand::f64(), told);
                kept.due_ms = after(wait);
                kept.tell(Some(fault.to_string()));
                let stays = if kept.pair.is_some() { "the old one stays" } else { "a self-signed one stands in" };
                let seconds = wait.as_secs_f32();
                tracing::warn!(
                    "ACME: no certificate for `{}`: {fault}; {stays}, next try in {seconds:.1} s",
                    kept.label()
                );
            }
        }
    }

    async fn try_renew(&mut self, kept: &Kept) -> Result<Tried, Fault> {
        let lock = self.store.lock().await?;
        // Another gateway may have been quicker.
        let found = self.stored(kept).await?;
        let is_newer = |pair: &Arc<Pair>| kept.pair.as_ref().is_none_or(|known| known.not_after < pair.not_after);
        if let Some(pair) = found.filter(is_newer).filter(|pair| pair.not_after > (now_ms() / 1000) as i64) {
            if let Some(lock) = lock {
                self.store.release(lock).await;
            }
            return Ok(Tried::Found(pair));
        }
        let Some(lock) = lock else { return Ok(Tried::Busy) };
        let ordered = self.order(kept, &lock).await;
        self.store.release(lock).await;
        if ordered.is_err() {
            self.hub.acme_orders.failed.fetch_add(1, Ordering::Relaxed);
        }
        ordered.map(Tried::Issued)
    }

    async fn order(&mut self, kept: &Kept, lock: &Lock) -> Result<Issued, Fault> {
        let replaced = kept.pair.as_deref().filter(|_| kept.advised.is_some() && kept.failures == 0);
        let store = self.store;
        let order = async {
            let issued = self.authority.order(&kept.names, replaced).await?;
            store.write(Item::Certificate(&kept.names), issued.pem.clone()).await?;
            Ok(issued)
        };
        let ordered = tokio::select! {
            ordered = timeout(ORDER_TIME_MAX, order) => ordered.unwrap_or(Err(Fault::Late(ORDER_TIME_MAX))),
            () = store.hold(lock) => Err(Fault::LockLost),
        };
        // Also where the order was broken off.
        let _ = self.acme.challenges.set(&[]);
        self.answered.clear();
        ordered
    }
}
