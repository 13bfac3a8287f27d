//! What a route asks of a request, and adds to its answer, besides authentication and rate limits; and what routes
//! without a word of their own get.

use std::sync::Arc;

use ringway_core::access::{Access, Cors, IpList, SecurityHeaders};

use super::cors::CorsSection;
use super::ip::IpSection;
use super::route::Route;
use super::security_headers::SecurityHeadersChoice;
use crate::decode::{Cx, Spanned};
use crate::shape::shape;

shape! {
    /// What routes get that have no such key of their own. A route's key replaces the whole; `off` is none.
    pub(crate) struct DefaultsSection {
        /// Which client addresses may ask; 403 for others.
        ip: Option<Spanned<IpSection>>,
        /// Which scripts of other origins may read the answers.
        cors: Option<Spanned<CorsSection>>,
        /// Headers that tell browsers to be careful.
        security_headers: Option<SecurityHeadersChoice>,
    }
}

/// [`DefaultsSection`], compiled.
#[derive(Debug, Default)]
pub(crate) struct Defaults {
    ip: Option<Arc<IpList>>,
    cors: Option<Arc<Cors>>,
    security_headers: Option<Arc<SecurityHeaders>>,
}

impl DefaultsSection {
    pub(crate) fn compile(self, cx: &mut Cx) -> Defaults {
        Defaults {
            ip: self.ip.and_then(|section| section.compile(cx)),
            cors: self.cors.and_then(|section| section.compile(cx)),
            security_headers: self.security_headers.and_then(|section| section.compile(cx)),
        }
    }
}

/// What the keys of `route` say, and the defaults where they say nothing. `parameters`: what its path captures. After an
/// error, which is reported, a part is missing.
pub(crate) fn compile(route: &mut Route, parameters: &[String], defaults: &Defaults, cx: &mut Cx) -> Access {
    let body_bytes_max = route.limits.body.0.map(|size| size.0);
    let forwards = route.service.is_some();
    Access {
        ip: match route.ip.take() {
            Some(own) => own.0.and_then(|section| section.compile(cx)),
            None => defaults.ip.clone(),
        },
        authorize: route.authorize.take().and_then(|section| section.compile(cx)),
        cors: match route.cors.take() {
            Some(own) => own.0.and_then(|section| section.compile(cx)),
            None => defaults.cors.clone(),
        },
        security_headers: match route.security_headers.take() {
            Some(own) => own.compile(cx),
            None => defaults.security_headers.clone(),
        },
        deprecation: route.deprecation.take().and_then(|section| section.compile(cx)),
        validation: route.validate.take().and_then(|section| section.compile(parameters, body_bytes_max, forwards, cx)),
    }
}
