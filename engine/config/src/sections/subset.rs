//! Routes that go to some of a service's endpoints.

use std::sync::Arc;

use super::metadata::Metadata;
use crate::decode::{Cx, Spanned};
use crate::scalar::choice;
use crate::shape::shape;
use crate::snapshot::Subset;

/// Different subsets of a configuration: each worker may balance each service among each.
const SUBSETS_MAX: usize = 256;

shape! {
    /// Some of a service's endpoints.
    pub(crate) struct SubsetSection {
        /// What stands in the `metadata` of those that get the requests: all of this, and whatever else.
        metadata: Spanned<Metadata>,
        /// Where none of those is there, or usable. `none`: 502 at once, after a panic among those that are there
        /// (`panic_threshold`). `any`: all endpoints of the service get the requests.
        fallback: Fallback = "none",
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fallback {
    None,
    Any,
}

choice! {
    Fallback {
        "none" => Fallback::None,
        "any" => Fallback::Any,
    }
}

impl Spanned<SubsetSection> {
    /// Its place among the subsets of the configuration, each of which is there once.
    pub(crate) fn compile(self, subsets: &mut Vec<Arc<Subset>>, cx: &mut Cx) -> Option<u32> {
        let SubsetSection { metadata, fallback } = self.value;
        if metadata.value.0.is_empty() {
            cx.error(metadata.span, "nothing is asked of the endpoints", "such as `{ version: v2 }`");
            return None;
        }
        let wanted = Subset { metadata: metadata.value.0, falls_back: fallback == Fallback::Any };
        if let Some(known) = subsets.iter().position(|known| **known == wanted) {
            return Some(known as u32);
        }
        if subsets.len() == SUBSETS_MAX {
            cx.error(self.span, format!("a configuration has {SUBSETS_MAX} different subsets at most"), None);
            return None;
        }
        subsets.push(Arc::new(wanted));
        Some(subsets.len() as u32 - 1)
    }
}
