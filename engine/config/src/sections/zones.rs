//! Which zone's endpoints requests prefer.

use std::sync::Arc;

use crate::decode::{Cx, Spanned};
use crate::percent::Percent;
use crate::scalar::choice;
use crate::shape::shape;
use crate::snapshot;

shape! {
    /// Requests stay near.
    pub(crate) struct ZonesSection {
        /// `local`: the endpoints of the gateway's own `zone` get all requests as long as they can carry them; else others get
        /// the rest.
        prefer: Prefer = "local",
        /// What the endpoints of the own zone can carry when all are well, beside what they have to: with `140%`, requests go
        /// to other zones when fewer than 72 % of them, by weight, are usable.
        capacity: Percent<100, 250> = "140%",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefer {
    Local,
}

choice! {
    Prefer {
        "local" => Prefer::Local,
    }
}

impl Spanned<ZonesSection> {
    /// `own`: the zone of the gateway, where it has one.
    pub(crate) fn compile(self, own: Option<&Arc<str>>, cx: &mut Cx) -> Option<snapshot::Zones> {
        let ZonesSection { prefer: Prefer::Local, capacity } = self.value;
        let Some(own) = own else {
            cx.error(self.span, "the gateway does not know its own zone", "say `zone: NAME` at the top level");
            return None;
        };
        Some(snapshot::Zones { own: Arc::clone(own), capacity: capacity.0.into() })
    }
}
