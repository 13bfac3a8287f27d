//! Which scripts of other origins may read the answers.

use std::sync::Arc;

use ringway_core::access::Cors;
use ringway_core::access::cors::{CorsError, CorsSpec, Names, OriginList, Origins};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::headers::HeaderName;
use super::matching::Method;
use crate::decode::{Cx, Decode, OneOrMore, Spanned};
use crate::scalar::{Or, Word, parsed};
use crate::shape::shape;
use crate::tree::Node;
use crate::units::{DAY_MS, Time};

shape! {
    /// Which scripts of other origins may read the answers. The gateway answers preflights itself.
    pub(crate) struct CorsSection {
        /// Origins as a browser writes them, `https://shop.example`; `https://*.shop.example` for one or more labels in
        /// front; `"null"` for documents without one; or `"*"`, all.
        origins: Or<Star, OneOrMore<Origin>>,
        /// Whether browsers may send cookies and other credentials, and show the answer to the script.
        credentials: Spanned<bool> = "false",
        /// Methods, or `"*"`: those of the route.
        methods: Or<Star, OneOrMore<Spanned<Method>>> = "*",
        /// Headers of the request, or `"*"`: any.
        headers: Or<Star, OneOrMore<Spanned<HeaderName>>> = "*",
        /// Headers of the answer that scripts may read, besides the few that they always may.
        expose: Option<Or<Star, OneOrMore<Spanned<HeaderName>>>>,
        /// How long a browser may remember the answer to a preflight.
        max_age: Time<0, DAY_MS> = "10m",
        /// Whether public sites may ask where the gateway stands in a private network.
        private_network: bool = "false",
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Star;

impl Word for Star {
    const WORD: &'static str = "*";
}

/// An origin, or all that end alike.
#[derive(Debug, Clone)]
pub(crate) struct Origin(String);

impl Decode for Origin {
    fn kind() -> String {
        "an origin".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match OriginList::new([text]) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) if text == "*" => Err(Some("all origins are `origins: \"*\"`, not one of a list".into())),
            Err((_, error)) => Err(Some(error.to_string())),
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

impl Spanned<CorsSection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<Arc<Cors>> {
        let section = self.value;
        let origins = match section.origins.0 {
            None => Origins::Any,
            // Each has been checked.
            Some(list) => {
                let list = OriginList::new(list.0.iter().map(|origin| origin.0.as_str()));
                Origins::These(list.unwrap_or_default())
            }
        };
        let methods = section.methods.0.map(|list| spanned(list.0, |method| method.0));
        let headers = section.headers.0.map(|list| spanned(list.0, |name| name.0));
        let expose = match section.expose {
            Some(expose) => expose.0.map(|list| spanned(list.0, |name| name.0)),
            None => Some(Vec::new()),
        };
        let spec = CorsSpec {
            credentials: section.credentials.value,
            methods: names(methods, cx),
            headers: names(headers, cx),
            expose: names(expose, cx),
            max_age_secs: u32::try_from(section.max_age.0.as_secs()).unwrap_or(u32::MAX),
            private_network: section.private_network,
            origins,
        };
        match Cors::new(spec) {
            Ok(cors) => Some(Arc::new(cors)),
            Err(error) => {
                let hint = match error {
                    CorsError::CredentialsForAll => "name the origins, or leave `credentials` out",
                    CorsError::ExposeAllWithCredentials => "name the headers of `expose`, or leave `credentials` out",
                };
                cx.error(section.credentials.span, error.to_string(), hint);
                None
            }
        }
    }
}

fn spanned<T>(list: Vec<Spanned<T>>, text: fn(T) -> String) -> Vec<Spanned<String>> {
    list.into_iter().map(|item| Spanned { value: text(item.value), span: item.span }).collect()
}

fn names(list: Option<Vec<Spanned<String>>>, cx: &mut Cx) -> Names {
    let Some(list) = list else { return Names::Any };
    for name in list.iter().filter(|name| name.value == "*") {
        cx.error(name.span, "a `*` stands alone, not in a list", "write `\"*\"` in place of the list");
    }
    Names::These(list.into_iter().map(|name| Box::from(name.value)).collect())
}
