//! How endpoints are asked how they are.

use std::sync::Arc;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::decode::{Cx, Decode, OneOrMore, Spanned};
use crate::health::{CheckKind, HealthCheck, HttpCheck};
use crate::percent::Percent;
use crate::scalar::{Int, OrOff};
use crate::shape::{Fields, shape};
use crate::tree::Node;
use crate::units::{HOUR_MS, Time};

shape! {
    /// Asks each endpoint at intervals how it is; one that is not well gets no requests. Exactly one of `http`, `tcp` and
    /// `grpc`.
    pub(crate) struct HealthCheckSection {
        /// By a GET.
        http: Option<HttpCheckSection>,
        /// By a connection, over TLS where the service has it.
        tcp: Option<TcpCheckSection>,
        /// By gRPC's health protocol (`grpc.health.v1.Health/Check`). Needs `protocol: http2`.
        grpc: Option<Spanned<GrpcCheckSection>>,
        /// Between two checks of an endpoint.
        interval: Time<50, HOUR_MS> = "5s",
        /// How much shorter or longer a pause may be, by chance, so that checks do not come all together.
        jitter: Percent<0, 50> = "10%",
        /// From the connection to the end of the answer.
        timeout: Time<1, HOUR_MS> = "1s",
        /// Failed checks in a row after which an endpoint gets no requests.
        unhealthy_threshold: Int<1, 1000> = "3",
        /// Good checks in a row after which it gets requests again.
        healthy_threshold: Int<1, 1000> = "2",
        /// How long an endpoint takes after that to get its whole share again.
        slow_start: OrOff<Time<100, HOUR_MS>> = "off",
    }

    /// A GET that must be answered so.
    pub(crate) struct HttpCheckSection {
        /// What is asked for, with its query.
        path: Spanned<String> = "/",
        /// The `Host`. Without it: the endpoint's address.
        host: Option<Spanned<String>>,
        /// The statuses of those that are well.
        status: OneOrMore<Int<200, 599>> = "[200]",
        /// A text that must stand in the first 64 KiB of the body.
        body: Option<String>,
    }

    /// A question by gRPC's health protocol.
    pub(crate) struct GrpcCheckSection {
        /// The service that is asked for. Without it: the server as a whole.
        service: Option<String>,
    }
}

/// A connection that must come about: there is nothing to say of it.
#[derive(Debug)]
pub(crate) struct TcpCheckSection;

impl Decode for TcpCheckSection {
    fn kind() -> String {
        "`{}`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        Fields::of::<Self>(node, &[], cx).map(|_| Self)
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": false })
    }
}

impl Spanned<HealthCheckSection> {
    /// `is_http2`: what the service speaks.
    pub(crate) fn compile(self, is_http2: bool, cx: &mut Cx) -> Option<Arc<HealthCheck>> {
        let Self { value: section, span } = self;
        let kind = match (section.http, section.tcp, section.grpc) {
            (Some(http), None, None) => CheckKind::Http(http.compile(cx)?),
            (None, Some(_), None) => CheckKind::Tcp,
            (None, None, Some(grpc)) => {
                if !is_http2 {
                    cx.error(grpc.span, "gRPC is spoken over HTTP/2", "say `protocol: http2`, or check by `http`");
                }
                CheckKind::Grpc(grpc.value.service.unwrap_or_default().into())
            }
            _ => {
                cx.error(span, "expected exactly one of `http`, `tcp` and `grpc`", None);
                return None;
            }
        };
        Some(Arc::new(HealthCheck {
            kind,
            interval: section.interval.0,
            jitter: section.jitter.0,
            timeout: section.timeout.0,
            unhealthy: section.unhealthy_threshold.0 as u32,
            healthy: section.healthy_threshold.0 as u32,
            slow_start: section.slow_start.0.map(|time| time.0),
        }))
    }
}

impl HttpCheckSection {
    fn compile(self, cx: &mut Cx) -> Option<HttpCheck> {
        let is_visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let Spanned { value: path, span } = self.path;
        if !path.starts_with('/') || !is_visible(&path) || path.contains('#') {
            cx.error(span, format!("`{path}` is no path"), "such as `/health`; what is not ASCII is percent-encoded");
            return None;
        }
        if let Some(host) = &self.host
            && (host.value.is_empty() || !is_visible(&host.value) || host.value.contains('/'))
        {
            cx.error(host.span, format!("`{}` is no host", host.value), "`name`, or `name:port`");
            return None;
        }
        Some(HttpCheck {
            path: path.into(),
            host: self.host.map(|host| host.value.into()),
            statuses: self.status.0.iter().map(|status| status.0 as u16).collect(),
            body: self.body.map(Arc::from),
        })
    }
}
