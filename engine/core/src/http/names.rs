//! The header fields that a gateway must know.

/// A header field that means something to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Name {
    Other,
    Accept,
    B3,
    /// `Client-Cert` and `Client-Cert-Chain` (RFC 9440).
    ClientCert,
    Connection,
    ContentLength,
    Date,
    Expect,
    Forwarded,
    Host,
    KeepAlive,
    MaxForwards,
    ProxyAuthenticate,
    ProxyAuthorization,
    ProxyConnection,
    ProxyStatus,
    Te,
    Traceparent,
    Tracestate,
    Trailer,
    TransferEncoding,
    Upgrade,
    UserAgent,
    Via,
    XB3,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XRequestId,
}

impl Name {
    /// Which one it is, by length first: most names are done after one comparison.
    #[inline]
    pub fn of(name: &str) -> Self {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        match name.len() {
            2 if is("te") => Self::Te,
            2 if is("b3") => Self::B3,
            3 if is("via") => Self::Via,
            4 if is("host") => Self::Host,
            4 if is("date") => Self::Date,
            6 if is("accept") => Self::Accept,
            6 if is("expect") => Self::Expect,
            7 if is("upgrade") => Self::Upgrade,
            7 if is("trailer") => Self::Trailer,
            9 if is("forwarded") => Self::Forwarded,
            10 if is("user-agent") => Self::UserAgent,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::KeepAlive,
            10 if is("tracestate") => Self::Tracestate,
            10 if is("x-b3-flags") => Self::XB3,
            11 if is("traceparent") => Self::Traceparent,
            11 if is("x-b3-spanid") => Self::XB3,
            11 if is("client-cert") => Self::ClientCert,
            12 if is("x-request-id") => Self::XRequestId,
            12 if is("max-forwards") => Self::MaxForwards,
            12 if is("proxy-status") => Self::ProxyStatus,
            12 if is("x-b3-traceid") || is("x-b3-sampled") => Self::XB3,
            14 if is("content-length") => Self::ContentLength,
            15 if is("x-forwarded-for") => Self::XForwardedFor,
            16 if is("x-forwarded-host") => Self::XForwardedHost,
            16 if is("proxy-connection") => Self::ProxyConnection,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            17 if is("x-forwarded-proto") => Self::XForwardedProto,
            17 if is("x-b3-parentspanid") => Self::XB3,
            17 if is("client-cert-chain") => Self::ClientCert,
            18 if is("proxy-authenticate") => Self::ProxyAuthenticate,
            19 if is("proxy-authorization") => Self::ProxyAuthorization,
            _ => Self::Other,
        }
    }

    /// Whether it concerns one connection only and is never passed on (RFC 9110 section 7.6.1).
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyAuthenticate
                | Self::ProxyAuthorization
                | Self::ProxyConnection
                | Self::Te
                | Self::TransferEncoding
                | Self::Upgrade
        )
    }

    /// Whether it must not stand in a trailer section (RFC 9110 section 6.5.1): framing, routing, and what the gateway
    /// vouches for.
    pub const fn is_forbidden_in_trailers(self) -> bool {
        self.is_hop_by_hop()
            || matches!(
                self,
                Self::ClientCert
                    | Self::ContentLength
                    | Self::Expect
                    | Self::Forwarded
                    | Self::Host
                    | Self::MaxForwards
                    | Self::Trailer
                    | Self::Via
                    | Self::XForwardedFor
                    | Self::XForwardedHost
                    | Self::XForwardedProto
                    | Self::XRequestId
            )
    }
}

/// Whether a field claims to know a hop before the gateway, besides those that have a [`Name`]: only trusted proxies may.
#[inline]
pub fn claims_a_hop(field: &str) -> bool {
    let starts = |prefix: &str| field.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    starts("x-") && (starts("x-forwarded-") || field.eq_ignore_ascii_case("x-real-ip"))
}

/// Whether a service that turns `-` into `_` (CGI, WSGI, PHP) would take this field for one that the gateway judges or
/// vouches for: `X_Forwarded_For`, `Content_Length`. Such fields are never passed on.
#[inline]
pub fn is_look_alike(field: &str) -> bool {
    if memchr::memchr(b'_', field.as_bytes()).is_none() {
        return false;
    }
    let dashed = field.replace('_', "-");
    Name::of(&dashed) != Name::Other || claims_a_hop(&dashed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case() {
        assert_eq!(Name::of("Transfer-ENCODING"), Name::TransferEncoding);
        assert_eq!(Name::of("x-b3-spanid"), Name::XB3);
        assert_eq!(Name::of("Client-Cert"), Name::ClientCert);
        assert_eq!(Name::of("client-cert-CHAIN"), Name::ClientCert);
        assert_eq!(Name::of("X-B3-ParentSpanId"), Name::XB3);
        assert_eq!(Name::of("content-lengtH"), Name::ContentLength);
        assert_eq!(Name::of("content_length"), Name::Other);
        assert_eq!(Name::of(""), Name::Other);
    }

    #[test]
    fn fields_that_services_could_take_for_others() {
        for field in
            ["X_Forwarded_For", "x_real-ip", "Content_Length", "x_request_id", "X-FORWARDED_Port", "Client_Cert"]
        {
            assert!(is_look_alike(field), "{field}");
        }
        assert!(!is_look_alike("x_custom") && !is_look_alike("X-Forwarded-For") && !is_look_alike(""));
        assert!(claims_a_hop("X-Real-IP") && claims_a_hop("x-forwarded-prefix") && !claims_a_hop("x-forward"));
    }
}
