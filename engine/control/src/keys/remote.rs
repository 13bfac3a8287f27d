//! Key sets that an issuer publishes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ringway_core::auth::{HttpUrl, KIDS_MISSING_MAX, Live, Loaded, Looking, Source};
use serde::Deserialize;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::fetch::{Client, FetchError, Fetched};
use super::freshness::refresh_after;
use super::{Done, Fetching};
use crate::process::unix_ms;

pub(super) enum From {
    KeySet(HttpUrl),
    Issuer(HttpUrl),
}

/// Fetches now, then ahead of time, after failures, and when a token names a key that is not there.
pub(super) async fn keep(live: Arc<Live>, source: Source, from: From, fetching: Fetching, done: Done) {
    let asked = Arc::new(Notify::new());
    let wake = asked.clone();
    live.on_ask(Box::new(move || wake.notify_one()));
    let client = Client::new(fetching.ca.clone());
    let mut keeping = Keeping { live, source, from, fetching, client, failures: 0, missing: VecDeque::new() };
    // What the fetch is for; empty if it is due anyway.
    let mut kids: Vec<Box<str>> = Vec::new();
    loop {
        keeping.live.set_looking(Looking::Now);
        let started = Instant::now();
        let is_asked = !kids.is_empty();
        kids.extend(keeping.asked());
        let (next, is_good) = match keeping.refresh().await {
            Ok(after) => (Instant::now() + after, true),
            Err(after) => (Instant::now() + after, false),
        };
        let late: Vec<_> = keeping.asked().filter(|kid| keeping.is_missing(kid)).collect();
        if is_good {
            kids.retain(|kid| keeping.is_missing(kid));
            if !is_asked && !late.is_empty() {
                // The issuer may have answered before it had the key that was asked for meanwhile.
                keeping.note_missing(kids.into_iter());
                kids = late;
                continue;
            }
            keeping.note_missing(kids.into_iter().chain(late));
        }
        keeping.live.set_looking(Looking::No);
        done();
        kids = keeping.wait(next, started + keeping.fetching.ask_interval, &asked, &done).await;
    }
}

struct Keeping {
    live: Arc<Live>,
    source: Source,
    from: From,
    fetching: Fetching,
    client: Client,
    /// In a row.
    failures: u32,
    /// Keys that were looked for in vain, and when to look again; at most [`KIDS_MISSING_MAX`].
    missing: VecDeque<(Box<str>, Instant)>,
}

impl Keeping {
    fn asked(&self) -> impl Iterator<Item = Box<str>> + use<> {
        let live = self.live.clone();
        std::iter::from_fn(move || live.next_asked())
    }

    fn is_missing(&self, kid: &str) -> bool {
        !self.live.keys().has_kid(kid)
    }

    /// Fetches once. How long to wait until the next time, either way.
    async fn refresh(&mut self) -> Result<Duration, Duration> {
        let limit = self.fetching.timeout;
        let fetched = timeout(limit, self.fetch()).await.unwrap_or(Err(FetchError::Timeout(limit)));
        let now = SystemTime::now();
        let loaded = match fetched {
            Ok(Fetched { headers, body }) => match self.live.load(&self.source, &body, unix_ms(now) / 1000) {
                Ok(loaded) => Ok((loaded, refresh_after(&headers, now, &self.fetching))),
                Err(error) => Err(FetchError::Load(error)),
            },
            Err(error) => {
                self.live.failed();
                Err(error)
            }
        };
        let name = &self.live.name;
        match loaded {
            Ok((loaded, after)) => {
                if loaded == Loaded::Changed || self.failures > 0 {
                    let keys = self.live.keys();
                    let ignored = keys.ignored();
                    tracing::info!("authenticator `{name}`: {} keys, {ignored} more are of no use", keys.len());
                }
                self.failures = 0;
                Ok(jittered(after))
            }
            Err(error) => {
                let after = jittered(backoff(self.failures, &self.fetching));
                let what =
                    if self.live.keys().is_empty() { "there are no keys yet" } else { "the last good keys stay" };
                tracing::warn!("authenticator `{name}`: {error}; {what}, next try in {:.1} s", after.as_secs_f32());
                self.failures += 1;
                self.client.forget_trust();
                Err(after)
            }
        }
    }

    async fn fetch(&mut self) -> Result<Fetched, FetchError> {
        let client = &mut self.client;
        match &self.from {
            From::KeySet(url) => client.get(url).await,
            From::Issuer(issuer) => {
                let metadata =
                    client.get(&issuer.discovery().map_err(|_| FetchError::Metadata("has no address"))?).await?;
                client.get(&key_set_of(issuer, &metadata.body)?).await
            }
        }
    }

    fn note_missing(&mut self, kids: impl Iterator<Item = Box<str>>) {
        let until = Instant::now() + self.fetching.missing;
        for kid in kids {
            if self.missing.iter().any(|(other, _)| *other == kid) {
                continue;
            }
            if self.missing.len() == KIDS_MISSING_MAX {
                self.missing.pop_front();
            }
            self.missing.push_back((kid, until));
        }
        self.publish_missing();
    }

    /// Takes those out that are worth another look, and those that are there by now.
    fn publish_missing(&mut self) {
        let now = Instant::now();
        let keys = self.live.keys();
        self.missing.retain(|(kid, until)| now < *until && !keys.has_kid(kid));
        drop(keys);
        self.live.set_missing(self.missing.iter().map(|(kid, _)| kid.clone()).collect());
    }

    /// Until the next fetch is due, or keys are asked for after `open`, the end of the interval: gives those back.
    async fn wait(&mut self, next: Instant, open: Instant, asked: &Notify, done: &Done) -> Vec<Box<str>> {
        let mut is_open = false;
        loop {
            let now = Instant::now();
            if now >= next {
                return Vec::new();
            }
            if !is_open && now >= open {
                is_open = true;
                self.live.set_looking(Looking::WhenAsked);
            }
            let opens = if is_open { next } else { open };
            let forgets = self.missing.front().map_or(next, |(_, until)| *until);
            tokio::select! {
                () = asked.notified() => {
                    let kids: Vec<_> = self.asked().collect();
                    match (kids.is_empty(), is_open) {
                        (true, _) => {}
                        (false, true) => return kids,
                        // Asked when it was just too late: no fetch will come, so nobody shall wait for one.
                        (false, false) => done(),
                    }
                }
                () = sleep_until(next.min(opens).min(forgets)) => self.publish_missing(),
            }
        }
    }
}

/// The address of the key set in an issuer's metadata. `issuer` must be the same, byte for byte (OpenID Connect Discovery
/// 1.0 section 4.3), and keys of an `https` issuer come by `https`.
fn key_set_of(issuer: &HttpUrl, json: &[u8]) -> Result<HttpUrl, FetchError> {
    #[derive(Deserialize)]
    struct Metadata {
        issuer: String,
        jwks_uri: String,
    }
    let metadata: Metadata =
        serde_json::from_slice(json).map_err(|_| FetchError::Metadata("is no object with `issuer` and `jwks_uri`"))?;
    if metadata.issuer != issuer.as_str() {
        return Err(FetchError::Metadata("is of another issuer"));
    }
    let url =
        HttpUrl::parse(&metadata.jwks_uri).map_err(|_| FetchError::Metadata("has a `jwks_uri` that is no URL"))?;
    if issuer.is_https() && !url.is_https() {
        return Err(FetchError::Metadata("has a `jwks_uri` without TLS"));
    }
    Ok(url)
}

fn backoff(failures: u32, fetching: &Fetching) -> Duration {
    fetching.retry_min.saturating_mul(1 << failures.min(16)).min(fetching.retry_max.max(fetching.retry_min))
}

/// Up to a tenth less, so that gateways that started together do not go on together.
fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(1.0 - fastrand::f64() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_retried_ever_more_seldom() {
        let seconds: Vec<_> = (0..9).map(|failures| backoff(failures, &Fetching::default()).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff(u32::MAX, &Fetching::default()).as_secs(), 60);
        for _ in 0..1000 {
            let jittered = jittered(Duration::from_secs(100));
            assert!((90.0..=100.0).contains(&jittered.as_secs_f64()));
        }
    }

    #[test]
    fn metadata_is_of_the_issuer_and_as_safe() {
        let issuer = HttpUrl::parse("https://id.example").unwrap();
        let of = |json: &str| key_set_of(&issuer, json.as_bytes()).map(|url| url.to_string());
        let good = r#"{"issuer":"https://id.example","jwks_uri":"https://keys.example/jwks","x":1}"#;
        assert_eq!(of(good).unwrap(), "https://keys.example/jwks");
        for bad in [
            "",
            "[]",
            r#"{"issuer":"https://id.example"}"#,
            r#"{"issuer":"https://id.example/","jwks_uri":"https://keys.example/jwks"}"#,
            r#"{"issuer":"https://id.example","jwks_uri":"http://keys.example/jwks"}"#,
            r#"{"issuer":"https://id.example","jwks_uri":"file:///etc/passwd"}"#,
            r#"{"issuer":"https://id.example","issuer":"https://id.example","jwks_uri":"https://keys.example/jwks"}"#,
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }
}
