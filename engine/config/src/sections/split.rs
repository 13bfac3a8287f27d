//! Which service a route's requests go to, where that is one of several.

use std::collections::HashMap;
use std::sync::Arc;

use ringway_core::split::Shares;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::headers::HeaderName;
use super::route::ServiceRef;
use crate::decode::{Cx, Decode, Spanned};
use crate::error::Span;
use crate::scalar::Int;
use crate::shape::shape;
use crate::snapshot::{HashOn, Split, Target};
use crate::tree::{Node, Value};

/// Most services that share a route's requests: each request draws a lot for each of them.
const SIDES_MAX: usize = 16;

shape! {
    /// Several services that share a route's requests.
    pub(crate) struct SplitSection {
        /// The services, 2 to 16.
        split: Spanned<Vec<SideSection>>,
        /// Which requests always go to the same service: those with the same `cookie NAME`, which the gateway gives to
        /// clients that have none, or of the same `user`, `client_ip`, or with the same `header NAME`. Requests without it,
        /// and all without `sticky`, go by chance.
        sticky: Option<HashOn>,
        /// Lets clients choose.
        r#override: Option<OverrideSection>,
    }

    /// A service and its share.
    pub(crate) struct SideSection {
        /// The service.
        service: Spanned<ServiceRef>,
        /// Its share, in parts of the sum of all. 0: it gets requests only by `override`.
        weight: Int<0, 1_000_000>,
    }

    /// Lets clients choose.
    pub(crate) struct OverrideSection {
        /// The header whose value names one of the services. Any other value does not count.
        header: HeaderName,
    }
}

/// The name of a service, or several that share requests.
#[derive(Debug)]
pub(crate) enum ServiceChoice {
    One(ServiceRef),
    Split(SplitSection),
}

impl Decode for ServiceChoice {
    fn kind() -> String {
        format!("{}, or a section of `split`", ServiceRef::kind())
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Map(_) => SplitSection::decode(node, cx).map(Self::Split),
            _ => ServiceRef::decode(node, cx).map(Self::One),
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [ServiceRef::schema(generator), SplitSection::schema(generator)] })
    }
}

impl ServiceChoice {
    /// `None` after an error, which is reported.
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<Target> {
        match self {
            Self::One(service) => Some(Target::Service(service.0)),
            Self::Split(section) => section.compile(cx).map(|split| Target::Split(Box::new(split))),
        }
    }
}

impl SplitSection {
    fn compile(self, cx: &mut Cx) -> Option<Split> {
        let Spanned { value: sides, span } = self.split;
        if !(2..=SIDES_MAX).contains(&sides.len()) {
            let message = format!("a split has 2 to {SIDES_MAX} services: it has {}", sides.len());
            cx.error(span, message, "`service: NAME` for a single one");
            return None;
        }
        let mut first: HashMap<usize, Span> = HashMap::new();
        for side in &sides {
            match first.get(&side.service.value.0) {
                Some(at) => {
                    let message = format!("the service occurs twice, first at {}", cx.sink.place(*at));
                    cx.error(side.service.span, message, "give it a greater `weight` instead");
                }
                None => {
                    first.insert(side.service.value.0, side.service.span);
                }
            }
        }
        if sides.iter().all(|side| side.weight.0 == 0) {
            cx.error(span, "no service of the split has a weight above 0", None);
        }
        let names: HashMap<usize, &str> =
            cx.names.services.iter().map(|(name, index)| (*index, name.as_str())).collect();
        let share =
            |side: &SideSection| (names.get(&side.service.value.0).copied().unwrap_or(""), side.weight.0 as u32);
        Some(Split {
            shares: Shares::new(sides.iter().map(share)),
            services: sides.iter().map(|side| side.service.value.0).collect(),
            sticky: self.sticky,
            override_header: self.r#override.map(|section| Arc::from(section.header.0)),
        })
    }
}
