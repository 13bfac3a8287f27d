//! What expressions look at, as CEL values that borrow from the request.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::IpAddr;

use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt};
use cel::common::value::Val;
use serde_json::Value;

use super::check::{Checked, Used};
use super::{EvaluationError, Subject};
use crate::access::validate::query_pairs;
use crate::router::RouteRequest;

type Boxed<'v> = Box<dyn Val + 'v>;

/// The variables that an expression uses, and how much there is of them.
pub(super) struct Values<'v> {
    pub(super) variables: Vec<(&'static str, Boxed<'v>)>,
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl<'v> Values<'v> {
    pub(super) fn new(
        used: &Checked,
        subject: &Subject<'v>,
        request: &RouteRequest<'v>,
        client_ip: IpAddr,
    ) -> Result<Self, EvaluationError> {
        let mut values = Self { variables: Vec::with_capacity(used.variables.len()), count: 0, bytes: 0 };
        for name in &used.variables {
            let value = match *name {
                "request" => values.request(used, request)?,
                "claims" => match subject.claims {
                    Some(claims) => {
                        values.map(claims.iter().map(|(name, value)| (Cow::Borrowed(name.as_str()), value)))
                    }
                    None => Box::new(CelMap::from(HashMap::new())),
                },
                "user" => match subject.user {
                    Some(user) => values.text(user.into()),
                    None => Box::new(CelNull),
                },
                "roles" => values.words(subject.roles),
                "scopes" => values.words(subject.scopes),
                _ => values.text(client_ip.to_canonical().to_string().into()),
            };
            values.variables.push((name, value));
        }
        Ok(values)
    }

    fn text(&mut self, text: Cow<'v, str>) -> Boxed<'v> {
        self.count += 1;
        self.bytes += text.len();
        Box::new(CelString::from(text))
    }

    fn words(&mut self, words: &'v [Box<str>]) -> Boxed<'v> {
        let words: Vec<Boxed<'v>> = words.iter().map(|word| self.text(Cow::Borrowed(word))).collect();
        Box::new(CelList::from(words))
    }

    fn map(&mut self, entries: impl Iterator<Item = (Cow<'v, str>, &'v Value)>) -> Boxed<'v> {
        let entries = entries.map(|(name, value)| {
            self.bytes += name.len();
            (CelMapKey::String(CelString::from(name)), self.json(value))
        });
        Box::new(CelMap::from(entries.collect::<HashMap<_, _>>()))
    }

    fn json(&mut self, value: &'v Value) -> Boxed<'v> {
        self.count += 1;
        match value {
            Value::Null => Box::new(CelNull),
            Value::Bool(value) => Box::new(CelBool::from(*value)),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(number), _) => Box::new(CelInt::from(number)),
                (None, Some(number)) => Box::new(CelUInt::from(number)),
                (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
            },
            Value::String(text) => self.text(Cow::Borrowed(text)),
            Value::Array(items) => {
                let items: Vec<Boxed<'v>> = items.iter().map(|item| self.json(item)).collect();
                Box::new(CelList::from(items))
            }
            Value::Object(map) => self.map(map.iter().map(|(name, value)| (Cow::Borrowed(name.as_str()), value))),
        }
    }

    fn request(&mut self, used: &Checked, request: &RouteRequest<'v>) -> Result<Boxed<'v>, EvaluationError> {
        let mut fields: HashMap<CelMapKey<'v>, Boxed<'v>> = HashMap::new();
        for (wanted, name, value) in [
            (used.method, "method", request.method),
            (used.path, "path", request.path),
            (used.host, "host", request.host),
        ] {
            if wanted {
                fields.insert(CelMapKey::from(name), self.text(String::from_utf8_lossy(value)));
            }
        }
        if !used.query.is_empty() {
            fields.insert(CelMapKey::from("query"), self.query(&used.query, request.query.unwrap_or_default())?);
        }
        if !used.headers.is_empty() {
            fields.insert(CelMapKey::from("headers"), self.headers(&used.headers, request.headers));
        }
        Ok(Box::new(CelMap::from(fields)))
    }

    /// A name that occurs twice has no one value, and who picks one may pick another than the service does.
    fn query(&mut self, used: &Used, query: &'v [u8]) -> Result<Boxed<'v>, EvaluationError> {
        let mut entries: HashMap<CelMapKey<'v>, Boxed<'v>> = HashMap::new();
        for (name, value) in query_pairs(query) {
            let name = lossy(name);
            if !used.has(&name) {
                continue;
            }
            self.bytes += name.len();
            let value = self.text(lossy(value));
            if entries.insert(CelMapKey::String(CelString::from(name)), value).is_some() {
                return Err(EvaluationError::RepeatedParameter);
            }
        }
        Ok(Box::new(CelMap::from(entries)))
    }

    /// Lines of one name are one list (RFC 9110 section 5.2).
    fn headers(&mut self, used: &Used, headers: &'v [httparse::Header<'v>]) -> Boxed<'v> {
        let mut joined: HashMap<String, Cow<'v, str>> = HashMap::new();
        for header in headers {
            let name = header.name.to_ascii_lowercase();
            if !used.has(&name) {
                continue;
            }
            let value = String::from_utf8_lossy(header.value);
            match joined.get_mut(&name) {
                Some(known) => {
                    let known = known.to_mut();
                    known.push_str(", ");
                    known.push_str(&value);
                }
                None => drop(joined.insert(name, value)),
            }
        }
        let entries = joined.into_iter().map(|(name, value)| {
            self.bytes += name.len();
            (CelMapKey::String(CelString::from(Cow::Owned(name))), self.text(value))
        });
        Box::new(CelMap::from(entries.collect::<HashMap<_, _>>()))
    }
}

fn lossy(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}
