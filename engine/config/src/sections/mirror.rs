//! Copies of a route's requests for another service.

use super::route::ServiceRef;
use crate::decode::{Cx, Spanned};
use crate::percent::Percent;
use crate::scalar::Int;
use crate::shape::shape;
use crate::snapshot::{Mirror, Target};
use crate::units::{MIB, Size, Timeout};

shape! {
    /// Copies of requests for another service, whose answers are dropped.
    pub(crate) struct MirrorSection {
        /// The service that gets them, each with `X-Mirrored: true`. Not one that the route forwards to.
        service: Spanned<ServiceRef>,
        /// How many of the requests are copied, by chance.
        share: Percent<0, 100> = "100%",
        /// The body of a copy, as it is sent; requests with a longer one are not copied.
        body_max: Size<0, MIB> = "64KiB",
        /// Copies at a time, over all workers; what comes meanwhile is not copied.
        in_flight: Int<1, 100_000> = "100",
        /// From its last byte at hand to the end of its answer; a copy that takes longer is given up.
        timeout: Timeout = "15s",
    }
}

impl MirrorSection {
    pub(crate) fn compile(self, target: &Target, cx: &mut Cx) -> Mirror {
        let service = self.service.value.0;
        if target.services().contains(&service) {
            let message = "the route forwards to this service: it would get requests twice";
            cx.error(self.service.span, message, "mirror to another one");
        }
        Mirror {
            service,
            share: self.share.0,
            body_bytes_max: self.body_max.0 as usize,
            in_flight: self.in_flight.0 as usize,
            timeout: self.timeout.0,
        }
    }
}
