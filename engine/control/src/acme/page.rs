//! `/certificates` of the admin listener: all certificates, from files and by ACME.

use ringway_config::hub::Published;
use ringway_config::tls::{Entry, Pair};
use ringway_core::timestamp;
use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Page {
    certificates: Vec<Certificate>,
}

#[derive(Serialize)]
struct Certificate {
    listener: String,
    names: Vec<String>,
    source: &'static str,
    /// Whether it is an authority's, or from a file; else a self-signed one stands in.
    issued: bool,
    not_before: Option<String>,
    not_after: Option<String>,
    /// Of the next order, or the next try.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_order: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

pub(crate) fn page(published: &Published) -> Page {
    let mut certificates = Vec::new();
    for listener in &published.snapshot.listeners {
        for entry in listener.tls.iter().flat_map(|tls| tls.certificates.entries()) {
            let pair = entry.pair();
            let (source, names, status) = match entry {
                Entry::Files(pair) => ("file", pair.names(), None),
                Entry::Managed(managed) => ("acme", managed.names.as_slice(), Some(managed.status())),
            };
            let of_pair = |of: fn(&Pair) -> i64| pair.as_deref().map(|pair| date(of(pair)));
            certificates.push(Certificate {
                listener: listener.name.to_string(),
                names: names.to_vec(),
                source,
                issued: pair.is_some(),
                not_before: of_pair(|pair| pair.not_before),
                not_after: of_pair(|pair| pair.not_after),
                next_order: status.as_ref().and_then(|status| status.next_order).map(date),
                last_error: status.and_then(|status| status.last_error),
            });
        }
    }
    Page { certificates }
}

/// RFC 3339, UTC.
fn date(unix_s: i64) -> String {
    let mut text = Vec::new();
    timestamp::rfc3339_millis(unix_s.max(0).unsigned_abs() * 1000, &mut text);
    // Digits and punctuation.
    String::from_utf8(text).unwrap_or_default()
}
