//! What Ringway promises about bytes from outside, as fuzz targets.
//!
//! A target takes any bytes and panics where a promise is broken: not only "does not panic", but "is read in one way
//! only, however it is split", "is the same again once written and read", "agrees with a naive reading of the RFC".
//! `tests/run.rs` runs them over the corpus and over mutations of it on stable Rust; `cargo-fuzz/` holds the same
//! targets for libFuzzer.

pub mod api_keys;
pub mod chunked;
pub mod config;
pub mod cors;
pub mod http2_client;
pub mod http2_service;
pub mod json_body;
pub mod jwks;
pub mod path;
pub mod proxy_protocol;
pub mod request_head;
pub mod response_head;
pub mod template;
pub mod tls_record;
pub mod token;
pub mod trace;

mod frames;
mod gateway;
mod lines;
mod pieces;

/// A fuzz target: its name, which is also that of its corpus, and what to splice into inputs.
#[derive(Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    pub dictionary: &'static [&'static str],
}

pub const TARGETS: [Target; 16] = [
    Target { name: "request_head", run: request_head::target, dictionary: request_head::DICTIONARY },
    Target { name: "response_head", run: response_head::target, dictionary: response_head::DICTIONARY },
    Target { name: "chunked", run: chunked::target, dictionary: chunked::DICTIONARY },
    Target { name: "path", run: path::target, dictionary: path::DICTIONARY },
    Target { name: "config", run: config::target, dictionary: config::DICTIONARY },
    Target { name: "template", run: template::target, dictionary: template::DICTIONARY },
    Target { name: "trace", run: trace::target, dictionary: trace::DICTIONARY },
    Target { name: "cors", run: cors::target, dictionary: cors::DICTIONARY },
    Target { name: "json_body", run: json_body::target, dictionary: json_body::DICTIONARY },
    Target { name: "token", run: token::target, dictionary: token::DICTIONARY },
    Target { name: "jwks", run: jwks::target, dictionary: jwks::DICTIONARY },
    Target { name: "api_keys", run: api_keys::target, dictionary: api_keys::DICTIONARY },
    Target { name: "proxy_protocol", run: proxy_protocol::target, dictionary: proxy_protocol::DICTIONARY },
    Target { name: "tls_record", run: tls_record::target, dictionary: tls_record::DICTIONARY },
    Target { name: "http2_client", run: http2_client::target, dictionary: http2_client::DICTIONARY },
    Target { name: "http2_service", run: http2_service::target, dictionary: http2_service::DICTIONARY },
];
