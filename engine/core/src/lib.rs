//! The policy of Ringway, pure: no sockets, no runtime, no clock and no randomness of its own.
//!
//! Everything here takes bytes, times and random numbers as arguments and answers with values, so that it can be
//! tested, fuzzed and simulated without a gateway around it. `data` turns the answers into I/O.
#![forbid(unsafe_code)]
#![deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

pub mod access;
pub mod adaptive;
pub mod answer;
pub mod audit_line;
pub mod auth;
pub mod auth_service;
pub mod balance;
pub mod breaker;
pub mod bulkhead;
mod byte_set;
pub mod ejection;
pub mod ewma;
pub mod failure;
pub mod filter;
pub mod forwarded;
pub mod grpc;
pub mod health;
mod hex;
pub mod http;
pub mod http2_meter;
pub mod https_redirect;
mod json;
pub mod keepalive;
pub mod limit;
pub mod log_line;
pub mod log_queue;
pub mod maglev;
pub mod members;
pub mod overload;
pub mod path;
pub mod priorities;
pub mod proxy_protocol;
pub mod random;
pub mod registry;
pub mod request_id;
pub mod retry_budget;
pub mod router;
pub mod split;
pub mod stats;
pub mod sticky;
pub mod strict_json;
pub mod template;
pub mod timestamp;
pub mod trace;
