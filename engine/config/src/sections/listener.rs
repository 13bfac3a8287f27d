//! Where clients connect.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use ringway_core::path::{DotSegments, DoubleSlash, EncodedSlash, PathPolicy};
use ringway_core::router::Router;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::tls::TlsSection;
use crate::decode::{Cx, Decode, Spanned};
use crate::scalar::{Int, Name, OrOff, choice, is_token};
use crate::shape::shape;
use crate::snapshot::{self, TraceStart};
use crate::tree::Node;
use crate::units::{KIB, MIB, Size, Timeout};

shape! {
    /// Where clients connect.
    pub(crate) struct Listener {
        /// Names it in routes, logs and metrics. Unique.
        name: Name,
        /// Where it listens. Unique.
        address: Spanned<SocketAddr>,
        /// Connections that wait in the kernel to be accepted, of each worker.
        backlog: Int<1, 65_535> = "4096",
        /// Limits of its connections and requests.
        limits: ListenerLimits = "{}",
        /// HTTP/2 of clients. Without TLS they begin with it at once (prior knowledge).
        http2: Http2 = "{}",
        /// How long clients may take.
        timeouts: ListenerTimeouts = "{}",
        /// Peers whose `X-Request-ID`, `X-Forwarded-*`, `X-Real-IP` and `Forwarded` headers are believed. Of others they are
        /// replaced.
        trusted_proxies: Vec<IpNet> = "[]",
        /// Which forwarding headers services get.
        forwarded: Forwarded = "{}",
        /// The gateway's name in `Via` (RFC 9110 section 7.6.3).
        via: Pseudonym = "ringway",
        /// The trace context that is started when a client sent none. What it sent is passed on in any case.
        trace: TraceStart = "w3c",
        /// Add `Proxy-Status` (RFC 9209) to answers that the gateway makes.
        proxy_status: bool = "false",
        /// Add `Server-Timing` with the service's share.
        server_timing: bool = "false",
        /// How paths are normalized before anything looks at them.
        path: PathSection = "{}",
        /// TLS. Without it: in the clear.
        tls: Option<Spanned<TlsSection>>,
    }

    /// Limits of a listener's connections and requests.
    pub(crate) struct ListenerLimits {
        /// Request line and headers; 431 above (414 when the target alone is longer).
        head: Size<{ KIB }, { MIB }> = "32KiB",
        /// Header fields of a request; 431 above.
        headers: Int<1, 512> = "100",
        /// Requests on one connection before it is closed.
        requests_per_connection: OrOff<Int<1, 1_000_000_000>> = "off",
        /// Requests that may follow each other without waiting for the answers.
        pipelined: Int<1, 1024> = "16",
    }

    /// HTTP/2 of clients (RFC 9113).
    pub(crate) struct Http2 {
        /// Whether it is spoken; over TLS it is offered by ALPN.
        enabled: bool = "true",
        /// Requests at a time on one connection; others are refused and may be sent again.
        max_concurrent_streams: Int<1, 10_000> = "100",
        /// Streams of a connection that the client may open and reset at once; a third of them come back each second. Also
        /// streams that it makes the gateway reset by breaking the protocol, in all. Above, the connection is ended
        /// (ENHANCE_YOUR_CALM).
        max_reset_streams: Int<1, 100_000> = "100",
    }

    /// How long clients may take.
    pub(crate) struct ListenerTimeouts {
        /// From a request's first byte to the end of its head; 408 above.
        head: Timeout = "10s",
        /// A connection without a request; closed above.
        idle: Timeout = "60s",
        /// Between two reads of a request body; 408 above.
        body: Timeout = "30s",
        /// Bytes per second that a request body must keep up once it has had `body` of time; 408 below.
        body_rate: OrOff<Size<1, { 1024 * MIB }>> = "1KiB",
        /// Between two writes of an answer that the client does not take; closed above.
        write: Timeout = "30s",
        /// How old a connection may become, and up to a tenth more, so that not all end together. Then the next answer is
        /// its last (HTTP/1), or it ends after the streams that are open (HTTP/2: GOAWAY).
        connection_age: OrOff<Timeout> = "off",
    }

    /// Which forwarding headers services get.
    pub(crate) struct Forwarded {
        /// `X-Forwarded-For`, `-Proto` and `-Host`.
        x_forwarded: bool = "true",
        /// `Forwarded` (RFC 7239).
        forwarded: bool = "false",
    }

    /// How paths are normalized before anything looks at them.
    pub(crate) struct PathSection {
        /// `.` and `..` segments, also when written as `%2e`. `resolve`: removed (RFC 3986 section 5.2.4), above the
        /// root 400. `reject`: 400.
        dot_segments: DotSegments = "resolve",
        /// `%2F` and `%5C`, which services decode differently. `reject`: 400. `keep`: data, never a separator.
        /// `decode`: `%2F` is a separator (`%5C` stays).
        encoded_slash: EncodedSlash = "reject",
        /// Empty segments (`//`). `merge`: one slash. `keep`: left as they are. `reject`: 400.
        double_slash: DoubleSlash = "merge",
    }
}

choice! {
    TraceStart {
        "w3c" => TraceStart::W3c,
        "b3" => TraceStart::B3,
        "b3multi" => TraceStart::B3Multi,
        "off" => TraceStart::Off,
    }
    DotSegments {
        "resolve" => DotSegments::Resolve,
        "reject" => DotSegments::Reject,
    }
    EncodedSlash {
        "reject" => EncodedSlash::Reject,
        "keep" => EncodedSlash::Keep,
        "decode" => EncodedSlash::Decode,
    }
    DoubleSlash {
        "merge" => DoubleSlash::Merge,
        "keep" => DoubleSlash::Keep,
        "reject" => DoubleSlash::Reject,
    }
}

/// A name for `Via`: a token.
#[derive(Debug, Clone)]
pub(crate) struct Pseudonym(String);

impl Decode for Pseudonym {
    fn kind() -> String {
        "a word of letters, digits and `-._`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match node.scalar() {
            Some(scalar) if !scalar.is_null() && is_token(&scalar.text) && scalar.text.len() <= 64 => {
                Some(Self(scalar.text.to_string()))
            }
            _ => {
                cx.mismatch::<Self>(node, None);
                None
            }
        }
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "maxLength": 64 })
    }
}

impl Listener {
    /// Whether clients may show certificates.
    pub(crate) fn sees_certificates(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.value.client_certificates.is_some())
    }

    pub(crate) fn compile(self, router: Router, cx: &mut Cx) -> snapshot::Listener {
        // An error is reported; what is built is then not used.
        let tls = self.tls.and_then(|tls| tls.value.compile(tls.span, self.http2.enabled, cx));
        let Self { limits, timeouts, path, .. } = self;
        snapshot::Listener {
            name: Arc::from(self.name.0),
            address: self.address.value,
            backlog: self.backlog.0 as u32,
            router,
            path: PathPolicy {
                dot_segments: path.dot_segments,
                encoded_slash: path.encoded_slash,
                double_slash: path.double_slash,
            },
            limits: snapshot::ListenerLimits {
                head_bytes: limits.head.0 as usize,
                headers: limits.headers.0 as usize,
                requests_per_connection: limits.requests_per_connection.0.map(|limit| limit.0 as u64),
                pipelined: limits.pipelined.0 as usize,
            },
            http2: snapshot::Http2 {
                enabled: self.http2.enabled,
                max_concurrent_streams: self.http2.max_concurrent_streams.0 as u32,
                max_reset_streams: self.http2.max_reset_streams.0 as usize,
            },
            timeouts: snapshot::ListenerTimeouts {
                head: timeouts.head.0,
                idle: timeouts.idle.0,
                body: timeouts.body.0,
                body_rate: timeouts.body_rate.0.map_or(0, |rate| rate.0),
                write: timeouts.write.0,
                connection_age: timeouts.connection_age.0.map(|age| age.0),
            },
            trusted_proxies: self.trusted_proxies,
            forwarded: snapshot::ForwardedHeaders {
                x_forwarded: self.forwarded.x_forwarded,
                forwarded: self.forwarded.forwarded,
            },
            via: Arc::from(self.via.0),
            trace: self.trace,
            proxy_status: self.proxy_status,
            server_timing: self.server_timing,
            tls,
        }
    }
}
