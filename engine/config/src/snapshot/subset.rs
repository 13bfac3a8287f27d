//! Some of a service's endpoints, by what is known of them.

use std::sync::Arc;

use super::{Endpoint, Metadata};

/// Values of one service that a header may choose by, the first ones in the order of their bytes; others count as unknown.
pub const SUBSET_VALUES_MAX: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    /// What all of them have.
    pub metadata: Metadata,
    /// A request may choose among them.
    pub by_header: Option<ByHeader>,
    /// Where none of them is usable all endpoints get the requests.
    pub falls_back: bool,
}

/// A header whose value an entry of the metadata must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByHeader {
    /// In lower case.
    pub header: Arc<str>,
    pub entry: Arc<str>,
    /// Of requests without the header; `None`: they do not choose.
    pub default: Option<Arc<str>>,
}

/// What a request has chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked<'a> {
    /// Any endpoint of the subset.
    Any,
    Value(&'a str),
    /// What no endpoint has.
    Unknown,
}

impl Subset {
    pub fn has(&self, endpoint: &Endpoint, asked: Asked<'_>) -> bool {
        let is_chosen = match asked {
            Asked::Any => true,
            Asked::Value(value) => self.value_of(endpoint) == Some(value),
            Asked::Unknown => false,
        };
        is_chosen && self.metadata.iter().all(|entry| endpoint.metadata.contains(entry))
    }

    /// What requests may choose of these endpoints: sorted, each once.
    pub fn values(&self, endpoints: &[Endpoint]) -> Vec<Arc<str>> {
        let of_subset = endpoints.iter().filter(|endpoint| self.has(endpoint, Asked::Any));
        let mut values: Vec<&str> = of_subset.filter_map(|endpoint| self.value_of(endpoint)).collect();
        values.sort_unstable();
        values.dedup();
        values.truncate(SUBSET_VALUES_MAX);
        values.into_iter().map(Arc::from).collect()
    }

    fn value_of<'e>(&self, endpoint: &'e Endpoint) -> Option<&'e str> {
        let wanted = &self.by_header.as_ref()?.entry;
        endpoint.metadata.iter().find(|(name, _)| name == wanted).map(|(_, value)| &**value)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn subset(metadata: &[(&str, &str)]) -> Subset {
        let by_header = ByHeader { header: "x-version".into(), entry: "version".into(), default: None };
        let metadata = metadata.iter().map(|(name, value)| (Arc::from(*name), Arc::from(*value))).collect();
        Subset { metadata, by_header: Some(by_header), falls_back: false }
    }

    #[test]
    fn values_are_those_of_the_endpoints_that_belong_to_it() {
        let list = "- { address: 127.0.0.1:1, metadata: { version: v2, disk: ssd } }\n\
                    - { address: 127.0.0.1:2, metadata: { version: v1, disk: ssd } }\n\
                    - { address: 127.0.0.1:3, metadata: { version: v3 } }\n\
                    - { address: 127.0.0.1:4, metadata: { disk: ssd } }\n\
                    - { address: 127.0.0.1:5, metadata: { version: v2, disk: ssd } }\n";
        let endpoints = crate::read_endpoints("list", list, None).unwrap();
        let subset = subset(&[("disk", "ssd")]);
        assert_eq!(subset.values(&endpoints).iter().map(|value| &**value).collect::<Vec<_>>(), ["v1", "v2"]);
        let has = |asked| endpoints.iter().map(|endpoint| subset.has(endpoint, asked)).collect::<Vec<_>>();
        assert_eq!(has(Asked::Any), [true, true, false, true, true]);
        assert_eq!(has(Asked::Value("v2")), [true, false, false, false, true]);
        assert_eq!(has(Asked::Value("v3")), [false; 5]);
        assert_eq!(has(Asked::Unknown), [false; 5]);
    }

    #[test]
    fn values_have_a_bound() {
        let one = |n: usize| format!("- {{ address: 127.0.0.1:{}, metadata: {{ version: v{n:03} }} }}\n", n + 1);
        let list: String = (0..300).map(one).collect();
        let values = subset(&[]).values(&crate::read_endpoints("list", &list, None).unwrap());
        assert_eq!((values.len(), &*values[0], &*values[255]), (256, "v000", "v255"));
    }
}
