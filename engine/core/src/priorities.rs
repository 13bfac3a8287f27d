//! How much a request matters by who sends it: a claim whose values are put before or behind others.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::auth::ClaimPath;
use crate::overload::Criticality;

/// Which values of a claim say how much a request matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Priorities {
    claim: ClaimPath,
    values: HashMap<Box<str>, Criticality>,
}

impl Priorities {
    pub fn new(claim: ClaimPath, values: impl IntoIterator<Item = (Box<str>, Criticality)>) -> Self {
        Self { claim, values: values.into_iter().collect() }
    }

    /// What the claim says, if it has one of the values; of a list the one that matters most. The claims must have been verified.
    pub fn of(&self, claims: &Map<String, Value>) -> Option<Criticality> {
        let known = |text: &str| self.values.get(text).copied();
        match self.claim.find(claims)? {
            Value::String(text) => known(text),
            Value::Number(number) => known(&number.to_string()),
            Value::Array(items) => items.iter().filter_map(|item| known(item.as_str()?)).max(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(claims: &str) -> Option<Criticality> {
        let values = [("gold", Criticality::Critical), ("free", Criticality::Low), ("3", Criticality::Normal)];
        let priorities = Priorities::new(
            ClaimPath::parse("plan.tier").unwrap(),
            values.map(|(value, criticality)| (value.into(), criticality)),
        );
        priorities.of(&serde_json::from_str(claims).unwrap())
    }

    #[test]
    fn a_value_says_how_much_it_matters_and_of_a_list_the_best() {
        for (value, expected) in [
            (r#""gold""#, Some(Criticality::Critical)),
            ("3", Some(Criticality::Normal)),
            (r#"["free", "other", "gold", 3]"#, Some(Criticality::Critical)),
            (r#"["free", ["gold"]]"#, Some(Criticality::Low)),
            (r#""Gold""#, None),
            ("true", None),
            ("[]", None),
            (r#"{"gold": 1}"#, None),
        ] {
            assert_eq!(of(&format!(r#"{{"plan": {{"tier": {value}}}}}"#)), expected, "{value}");
        }
        assert_eq!(of(r#"{"tier": "gold"}"#), None);
    }

    proptest! {
        #[test]
        fn nothing_but_the_values_matters(text: String) {
            let claims = serde_json::json!({ "plan": { "tier": text } }).to_string();
            prop_assert_eq!(of(&claims).is_some(), ["gold", "free", "3"].contains(&&*text));
        }
    }
}
