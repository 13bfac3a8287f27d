//! Routes that go to some of a service's endpoints.

use std::sync::Arc;

use super::headers::HeaderName;
use super::metadata::{Label, Metadata, Text};
use crate::decode::{Cx, Spanned};
use crate::scalar::choice;
use crate::shape::shape;
use crate::snapshot::{ByHeader, Subset};

/// Different subsets of a configuration: each worker may balance each service among each.
const SUBSETS_MAX: usize = 256;

shape! {
    /// Some of a service's endpoints.
    pub(crate) struct SubsetSection {
        /// What stands in the `metadata` of those that get the requests: all of this, and whatever else.
        metadata: Spanned<Metadata> = "{}",
        /// Of those, the ones whose metadata has an entry with the value of a request's header.
        by_header: Option<ByHeaderSection>,
        /// Where none of those is there, or usable. `none`: 502 at once, after a panic among those that are there
        /// (`panic_threshold`). `any`: all endpoints of the service get the requests.
        fallback: Fallback = "none",
    }

    /// A choice that requests have. The values that occur in the metadata of a service's endpoints count, the first 256 of
    /// them in the order of the alphabet; another one is a choice of nobody, for which there is `fallback`.
    pub(crate) struct ByHeaderSection {
        /// The header's name. Of several fields the first one counts.
        name: HeaderName,
        /// The entry that has its value.
        metadata: Label,
        /// The value of requests without the header. Without it, those go to all that `metadata` above leaves.
        default: Option<Text>,
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
        let SubsetSection { metadata, by_header, fallback } = self.value;
        if metadata.value.0.is_empty() && by_header.is_none() {
            let hint = "such as `metadata: { version: v2 }`, or `by_header`";
            cx.error(metadata.span, "nothing is asked of the endpoints", hint);
            return None;
        }
        if let Some(by_header) = &by_header
            && metadata.value.0.iter().any(|(name, _)| *name == by_header.metadata.0)
        {
            let message = format!("`{}` is chosen by a header already", by_header.metadata.0);
            cx.error(metadata.span, message, "either a value or a header");
            return None;
        }
        let by_header = by_header.map(|section| ByHeader {
            header: section.name.0.into(),
            entry: section.metadata.0,
            default: section.default.map(|value| value.0),
        });
        let wanted = Subset { metadata: metadata.value.0, by_header, falls_back: fallback == Fallback::Any };
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
