//! The PROXY protocol: whom a proxy before the gateway speaks for, and whom the gateway speaks for.

use ipnet::IpNet;
use ringway_core::proxy_protocol::{Version, Versions};

use crate::decode::{Cx, OneOrMore, Spanned};
use crate::scalar::choice;
use crate::shape::shape;
use crate::snapshot;
use crate::units::Time;

shape! {
    /// Proxies before the gateway that tell the client's address with the PROXY protocol.
    pub(crate) struct ProxyProtocolSection {
        /// Addresses of the proxies. They must send a header; one from anybody else is never believed.
        trusted: Spanned<Vec<IpNet>>,
        /// Whether others are refused. `false`: they are served as themselves, and send no header.
        required: bool = "true",
        /// Which versions of the header are read.
        versions: OneOrMore<Version> = "[v1, v2]",
        /// From the connection to the end of the header; closed above.
        timeout: Time<10, 120_000> = "5s",
    }
}

choice! {
    Version {
        "v1" => Version::V1,
        "v2" => Version::V2,
    }
}

impl ProxyProtocolSection {
    pub(crate) fn compile(self, cx: &mut Cx) -> snapshot::ProxyProtocol {
        if self.trusted.value.is_empty() {
            cx.error(self.trusted.span, "no proxy is trusted", "`[10.0.0.0/8]`: the addresses of the proxies");
        }
        let reads = |version| self.versions.0.contains(&version);
        snapshot::ProxyProtocol {
            versions: Versions { v1: reads(Version::V1), v2: reads(Version::V2) },
            trusted: self.trusted.value,
            required: self.required,
            timeout: self.timeout.0,
        }
    }
}
