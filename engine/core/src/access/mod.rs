//! What a route asks of a request, and adds to its answer, besides authentication and rate limits: IP lists, conditions
//! on who asks, CORS, security headers, notices of deprecation, validation.
//!
//! Each is compiled with the configuration and then only read. What is not configured costs a look at a `None`.

pub mod condition;
pub mod cors;
pub mod deprecation;
pub mod ip;
pub mod security_headers;
pub mod validate;

mod expression;

use std::sync::Arc;

pub use condition::{Condition, Denial, Subject};
pub use cors::{Cors, Preflight};
pub use deprecation::Deprecation;
pub use ip::IpList;
pub use security_headers::SecurityHeaders;
pub use validate::{Invalid, Validation};

/// What is configured for one route; routes may share parts of it. The default is nothing at all.
#[derive(Debug, Default)]
pub struct Access {
    /// Which client addresses may ask; 403 for others.
    pub ip: Option<Arc<IpList>>,
    /// Who may ask, once it is known who does; 403 for others.
    pub authorize: Option<Condition>,
    pub cors: Option<Arc<Cors>>,
    pub security_headers: Option<Arc<SecurityHeaders>>,
    pub deprecation: Option<Deprecation>,
    /// What the request must look like; 400 or 415 else.
    pub validation: Option<Validation>,
}

/// Which headers the service has set itself, of those that are only added where they are absent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Seen(u32);

impl Seen {
    fn add(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    fn has(self, index: usize) -> bool {
        self.0 & 1 << index != 0
    }
}

impl Access {
    /// Whether [`Access::keeps`] and [`Access::write_answer_headers`] have anything to do.
    pub fn changes_answers(&self) -> bool {
        self.cors.is_some() || self.security_headers.is_some() || self.deprecation.is_some()
    }

    /// Whether a header of the service's answer goes on to the client; if not, the gateway sets it itself. To be asked
    /// once for each header of the answer, with the same `seen`.
    pub fn keeps(&self, name: &str, seen: &mut Seen) -> bool {
        !(self.cors.as_ref().is_some_and(|cors| cors.owns(name))
            || self.deprecation.as_ref().is_some_and(|deprecation| deprecation.owns(name))
            || self.security_headers.as_ref().is_some_and(|headers| headers.drops(name, seen)))
    }

    /// Appends the header lines that an answer gets, whoever made it: a refusal of the gateway too, so that scripts
    /// of allowed origins can read it. `origin`: the request's; `tls`: whether the client came over TLS.
    ///
    /// Hot; watched by the benchmark `answer_headers`.
    pub fn write_answer_headers(&self, origin: Option<&[u8]>, tls: bool, seen: Seen, out: &mut Vec<u8>) {
        if let Some(cors) = &self.cors {
            cors.simple(origin, out);
        }
        if let Some(headers) = &self.security_headers {
            headers.write(tls, seen, out);
        }
        if let Some(deprecation) = &self.deprecation {
            out.extend_from_slice(deprecation.lines());
        }
    }
}
