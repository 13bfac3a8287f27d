//! Headers of answers that tell browsers to be careful.

use super::Seen;

/// A header that this sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityHeader {
    /// RFC 6797: only over TLS, unless told otherwise.
    StrictTransportSecurity,
    ContentSecurityPolicy,
    XFrameOptions,
    XContentTypeOptions,
    ReferrerPolicy,
    PermissionsPolicy,
    CrossOriginOpenerPolicy,
    CrossOriginEmbedderPolicy,
    CrossOriginResourcePolicy,
}

impl SecurityHeader {
    pub const ALL: [Self; 9] = [
        Self::StrictTransportSecurity,
        Self::ContentSecurityPolicy,
        Self::XFrameOptions,
        Self::XContentTypeOptions,
        Self::ReferrerPolicy,
        Self::PermissionsPolicy,
        Self::CrossOriginOpenerPolicy,
        Self::CrossOriginEmbedderPolicy,
        Self::CrossOriginResourcePolicy,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::StrictTransportSecurity => "Strict-Transport-Security",
            Self::ContentSecurityPolicy => "Content-Security-Policy",
            Self::XFrameOptions => "X-Frame-Options",
            Self::XContentTypeOptions => "X-Content-Type-Options",
            Self::ReferrerPolicy => "Referrer-Policy",
            Self::PermissionsPolicy => "Permissions-Policy",
            Self::CrossOriginOpenerPolicy => "Cross-Origin-Opener-Policy",
            Self::CrossOriginEmbedderPolicy => "Cross-Origin-Embedder-Policy",
            Self::CrossOriginResourcePolicy => "Cross-Origin-Resource-Policy",
        }
    }
}

/// A set of values to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    /// Nothing.
    Off,
    /// What no site misses.
    Basic,
    /// For sites that load nothing from elsewhere and are embedded nowhere.
    Strict,
    /// For answers that are no pages: what a browser makes of them may load and embed nothing.
    Api,
}

impl Preset {
    /// The header's value in the preset.
    pub const fn value(self, header: SecurityHeader) -> Option<&'static str> {
        use SecurityHeader as H;
        match (self, header) {
            (Self::Off, _) => None,
            (_, H::XContentTypeOptions) => Some("nosniff"),
            (Self::Basic, H::StrictTransportSecurity) => Some("max-age=31536000"),
            (Self::Basic, H::XFrameOptions) => Some("SAMEORIGIN"),
            (Self::Basic, H::ReferrerPolicy) => Some("strict-origin-when-cross-origin"),
            (Self::Basic, _) => None,
            (Self::Strict | Self::Api, H::StrictTransportSecurity) => Some("max-age=63072000; includeSubDomains"),
            (Self::Strict | Self::Api, H::XFrameOptions) => Some("DENY"),
            (Self::Strict | Self::Api, H::ReferrerPolicy) => Some("no-referrer"),
            (Self::Strict, H::ContentSecurityPolicy) => Some(
                "default-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
            ),
            (Self::Strict, H::PermissionsPolicy) => {
                Some("camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()")
            }
            (Self::Strict, H::CrossOriginOpenerPolicy | H::CrossOriginResourcePolicy) => Some("same-origin"),
            (Self::Strict, H::CrossOriginEmbedderPolicy) => None,
            (Self::Api, H::ContentSecurityPolicy) => Some("default-src 'none'; frame-ancestors 'none'"),
            (Self::Api, H::CrossOriginResourcePolicy) => Some("same-origin"),
            (Self::Api, _) => None,
        }
    }
}

/// The security headers of a route, compiled into header lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityHeaders {
    headers: Box<[(SecurityHeader, Box<[u8]>)]>,
    /// All lines, one after the other; `Strict-Transport-Security` is the first of them, if it is there.
    lines: Box<[u8]>,
    /// Where the lines for connections without TLS begin.
    plain_from: usize,
    if_absent: bool,
}

impl SecurityHeaders {
    /// `headers`: each at most once, with a value that fits in a header line. `if_absent`: what the service has set
    /// stays; else it is replaced. `hsts_without_tls`: also where the client did not come over TLS, as behind a proxy
    /// that ends it.
    pub fn new(
        headers: impl IntoIterator<Item = (SecurityHeader, String)>,
        if_absent: bool,
        hsts_without_tls: bool,
    ) -> Self {
        let line = |(header, value): (SecurityHeader, String)| {
            (header, Box::from(format!("{}: {value}\r\n", header.name()).as_bytes()))
        };
        let mut headers: Box<[(SecurityHeader, Box<[u8]>)]> = headers.into_iter().map(line).collect();
        headers.sort_by_key(|(header, _)| *header != SecurityHeader::StrictTransportSecurity);
        let plain_from = match headers.first() {
            Some((SecurityHeader::StrictTransportSecurity, line)) if !hsts_without_tls => line.len(),
            _ => 0,
        };
        let lines = headers.iter().flat_map(|(_, line)| line.iter().copied()).collect();
        Self { headers, lines, plain_from, if_absent }
    }

    /// Whether a header of the service's answer is dropped, since the gateway sets it; if it is kept, `seen` remembers
    /// that it was there.
    pub fn drops(&self, name: &str, seen: &mut Seen) -> bool {
        match self.headers.iter().position(|(header, _)| header.name().eq_ignore_ascii_case(name)) {
            Some(index) if self.if_absent => {
                seen.add(index);
                false
            }
            index => index.is_some(),
        }
    }

    /// Appends the lines, but for those of headers that were kept.
    pub fn write(&self, tls: bool, seen: Seen, out: &mut Vec<u8>) {
        let from = if tls { 0 } else { self.plain_from };
        if seen == Seen::default() {
            return out.extend_from_slice(self.lines.get(from..).unwrap_or_default());
        }
        let skipped = usize::from(from > 0);
        for (index, (_, line)) in self.headers.iter().enumerate().skip(skipped) {
            if !seen.has(index) {
                out.extend_from_slice(line);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SecurityHeader as H;

    fn preset(preset: Preset, if_absent: bool, hsts_without_tls: bool) -> SecurityHeaders {
        let values = H::ALL.into_iter().filter_map(|header| Some((header, preset.value(header)?.to_owned())));
        SecurityHeaders::new(values, if_absent, hsts_without_tls)
    }

    fn written(headers: &SecurityHeaders, tls: bool, seen: Seen) -> String {
        let mut out = Vec::new();
        headers.write(tls, seen, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn hsts_needs_tls_or_a_word() {
        let basic = preset(Preset::Basic, false, false);
        let plain = "X-Frame-Options: SAMEORIGIN\r\nX-Content-Type-Options: nosniff\r\n\
                     Referrer-Policy: strict-origin-when-cross-origin\r\n";
        assert_eq!(written(&basic, false, Seen::default()), plain);
        let all = format!("Strict-Transport-Security: max-age=31536000\r\n{plain}");
        assert_eq!(written(&basic, true, Seen::default()), all);
        assert_eq!(written(&preset(Preset::Basic, false, true), false, Seen::default()), all);
    }

    #[test]
    fn the_services_value_is_replaced_or_kept() {
        let mut seen = Seen::default();
        let replaced = preset(Preset::Api, false, false);
        assert!(replaced.drops("x-frame-options", &mut seen) && replaced.drops("strict-transport-security", &mut seen));
        assert!(!replaced.drops("permissions-policy", &mut seen) && !replaced.drops("Content-Type", &mut seen));
        assert_eq!(seen, Seen::default());

        let kept = preset(Preset::Api, true, false);
        assert!(!kept.drops("X-FRAME-OPTIONS", &mut seen) && !kept.drops("strict-transport-security", &mut seen));
        for tls in [false, true] {
            let lines = written(&kept, tls, seen);
            let names: Vec<_> = lines.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
            let expected = [
                "Content-Security-Policy",
                "X-Content-Type-Options",
                "Referrer-Policy",
                "Cross-Origin-Resource-Policy",
            ];
            assert_eq!(names, expected);
        }
    }

    #[test]
    fn presets_have_what_they_promise() {
        assert_eq!(written(&preset(Preset::Off, false, true), true, Seen::default()), "");
        let strict = written(&preset(Preset::Strict, false, false), true, Seen::default());
        assert_eq!(strict.lines().count(), 8);
        assert!(strict.contains("Content-Security-Policy: default-src 'self'; base-uri 'self';"), "{strict}");
        for header in H::ALL {
            assert!(header.name().is_ascii());
        }
    }
}
