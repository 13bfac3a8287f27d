//! What is counted of how connections of clients begin.

use std::sync::Arc;

use crossbeam::utils::CachePadded;

use super::Counter;

/// Versions and suites that are spoken, as the log names them.
const SUITES: [(&str, &str); 9] = [
    ("TLSv1.3", "TLS_AES_128_GCM_SHA256"),
    ("TLSv1.3", "TLS_AES_256_GCM_SHA384"),
    ("TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256"),
    ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    ("TLSv1.2", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    ("TLSv1.2", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
];

/// How a TLS handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Handshake {
    Done,
    /// The client did not speak TLS as it must, or had no version or suite in common.
    Failed,
    /// The client's certificate was missing or not valid.
    ClientCertificate,
    Timeout,
    /// The client went away.
    Closed,
    PlainHttp,
    NotTls,
    /// Too many at a time.
    Refused,
    /// The challenge of an authority was answered (RFC 8737).
    Acme,
}

/// What one worker counts of how a listener's connections begin.
#[derive(Debug, Default)]
pub struct TlsCell {
    handshakes: [Counter; TlsCell::RESULTS.len()],
    connections: [Counter; SUITES.len()],
    /// Connections that were closed for want of a good PROXY header.
    pub proxy_protocol_errors: Counter,
}

impl TlsCell {
    const RESULTS: [&str; 9] =
        ["ok", "failed", "client_certificate", "timeout", "closed", "plain_http", "not_tls", "refused", "acme"];

    pub fn record(&self, ended: Handshake) {
        if let Some(counter) = self.handshakes.get(ended as usize) {
            counter.add(1);
        }
    }

    /// Counts a connection that was secured with this suite, as IANA calls it.
    pub fn record_connection(&self, cipher: &str) {
        let place = SUITES.iter().position(|(_, known)| *known == cipher);
        if let Some(counter) = place.and_then(|place| self.connections.get(place)) {
            counter.add(1);
        }
    }

    /// By version and suite.
    pub fn connections(&self) -> impl Iterator<Item = ((&'static str, &'static str), u64)> {
        SUITES.into_iter().zip(self.connections.iter().map(Counter::get))
    }

    /// By result.
    pub fn handshakes(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::RESULTS.into_iter().zip(self.handshakes.iter().map(Counter::get))
    }
}

/// The handshakes of a listener.
#[derive(Debug)]
pub struct TlsStats {
    pub listener: Arc<str>,
    pub workers: Box<[CachePadded<TlsCell>]>,
}

impl TlsStats {
    pub fn new(listener: Arc<str>, workers: usize) -> Self {
        Self { listener, workers: (0..workers).map(|_| CachePadded::new(TlsCell::default())).collect() }
    }
}
