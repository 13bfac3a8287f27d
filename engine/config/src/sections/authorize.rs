//! Who may ask, once it is known who does.

use ringway_core::access::Condition;
use ringway_core::access::condition::{ClaimTest, Expression, ExpressionError};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value as Json;

use super::action::JsonBody;
use super::authenticator::ClaimName;
use crate::decode::{Cx, Decode, OneOrMore, Pairs, Spanned};
use crate::scalar::{parsed, text_schema};
use crate::shape::shape;
use crate::suggest;
use crate::tree::{Node, Value};

shape! {
    /// Who may ask; 403 for others. Every key that is given must hold.
    pub(crate) struct AuthorizeSection {
        /// One of these roles.
        roles: Option<OneOrMore<Word>>,
        /// Each of these scopes.
        scopes: Option<OneOrMore<Word>>,
        /// One of these scopes.
        any_scope: Option<OneOrMore<Word>>,
        /// By claim (`tenant`, `realm_access.roles`, or a JSON pointer): its value, a list of values one of which it is, or
        /// a section of one condition.
        claims: Option<Pairs<ClaimName, ClaimCondition>>,
        /// A CEL expression over `request.method`, `.path`, `.host`, `.query`, `.headers`, `claims`, `user`, `roles`,
        /// `scopes` and `client_ip`.
        cel: Option<Spanned<String>>,
        /// One of these conditions holds.
        any: Option<OneOrMore<Spanned<AuthorizeSection>>>,
        /// Each of these conditions holds.
        all: Option<OneOrMore<Spanned<AuthorizeSection>>>,
        /// This condition does not hold.
        not: Option<Box<Spanned<AuthorizeSection>>>,
    }

    /// A condition on a claim: exactly one of these.
    struct ClaimSection {
        /// It is one of these values.
        one_of: Option<OneOrMore<JsonBody>>,
        /// It is a list with this in it, or a text of words with this among them.
        contains: Option<JsonBody>,
        /// `true`: it is there and not null. `false`: it is not.
        exists: Option<bool>,
    }
}

/// The name of a role or a scope.
#[derive(Debug, Clone)]
pub(crate) struct Word(String);

impl Decode for Word {
    fn kind() -> String {
        "a word".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        parsed(node, cx, |text| match text {
            "" => Err(None),
            text if text.contains(|c: char| c.is_whitespace() || c.is_control()) => {
                Err(Some("several are written as a list: `[a, b]`".into()))
            }
            text => Ok(Self(text.to_owned())),
        })
    }

    fn schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^\\S+$" })
    }
}

/// A test, and whether it must fail.
#[derive(Debug, Clone)]
pub(crate) struct ClaimCondition {
    test: ClaimTest,
    not: bool,
}

impl Decode for ClaimCondition {
    fn kind() -> String {
        "a value, a list of values, or one of `one_of`, `contains`, `exists`".into()
    }

    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        let is = |test| Self { test, not: false };
        if !matches!(node.value, Value::Map(_)) {
            return OneOrMore::<JsonBody>::decode(node, cx).map(|values| is(ClaimTest::OneOf(values_of(values))));
        }
        let section = ClaimSection::decode(node, cx)?;
        match (section.one_of, section.contains, section.exists) {
            (Some(values), None, None) => Some(is(ClaimTest::OneOf(values_of(values)))),
            (None, Some(value), None) => Some(is(ClaimTest::Contains(value.0))),
            (None, None, Some(exists)) => Some(Self { test: ClaimTest::Exists, not: !exists }),
            _ => {
                cx.error(node.span, "expected exactly one of `one_of`, `contains`, `exists`", None);
                None
            }
        }
    }

    fn schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [text_schema(), { "type": "array" }, ClaimSection::schema(generator)] })
    }
}

fn values_of(values: OneOrMore<JsonBody>) -> Box<[Json]> {
    values.0.into_iter().map(|value| value.0).collect()
}

impl Spanned<AuthorizeSection> {
    pub(crate) fn compile(self, cx: &mut Cx) -> Option<Condition> {
        let section = self.value;
        let words = |list: OneOrMore<Word>| list.0.into_iter().map(|word| Box::from(word.0)).collect();
        let mut all: Vec<Option<Condition>> = Vec::new();
        all.extend(section.roles.map(|roles| Some(Condition::Roles(words(roles)))));
        all.extend(section.scopes.map(|scopes| Some(Condition::AllScopes(words(scopes)))));
        all.extend(section.any_scope.map(|scopes| Some(Condition::AnyScope(words(scopes)))));
        for (name, ClaimCondition { test, not }) in section.claims.map(|claims| claims.0).unwrap_or_default() {
            let condition = Condition::Claim(name.value.0, test);
            all.push(Some(if not { Condition::Not(Box::new(condition)) } else { condition }));
        }
        all.extend(section.any.map(|any| conditions(any, cx).map(Condition::Any)));
        all.extend(section.all.map(|all| conditions(all, cx).map(Condition::All)));
        all.extend(section.not.map(|not| not.compile(cx).map(|not| Condition::Not(Box::new(not)))));
        // Last: it costs most.
        all.extend(section.cel.map(|text| expression(&text, cx)));
        if all.is_empty() {
            cx.error(self.span, "the condition asks for nothing", "such as `{ roles: [admin] }`");
            return None;
        }
        let mut all: Vec<Condition> = all.into_iter().collect::<Option<_>>()?;
        match all.len() {
            1 => all.pop(),
            _ => Some(Condition::All(all.into())),
        }
    }
}

fn conditions(list: OneOrMore<Spanned<AuthorizeSection>>, cx: &mut Cx) -> Option<Box<[Condition]>> {
    // All of them, before the first failure counts.
    let compiled: Vec<Option<Condition>> = list.0.into_iter().map(|condition| condition.compile(cx)).collect();
    compiled.into_iter().collect()
}

fn expression(text: &Spanned<String>, cx: &mut Cx) -> Option<Condition> {
    let error = match Expression::compile(&text.value) {
        Ok(expression) => return Some(Condition::Expression(Box::new(expression))),
        Err(error) => error,
    };
    let hint = match &error {
        ExpressionError::Syntax { column, .. } => Some(format!("look at character {column} of the expression")),
        ExpressionError::UnknownVariable(name) => {
            let known = ["claims", "client_ip", "request", "roles", "scopes", "user"];
            suggest::hint(name, &known, "the variables")
        }
        ExpressionError::UnknownField(name) => {
            let known = ["headers", "host", "method", "path", "query"];
            suggest::hint(name, &known, "its fields")
        }
        ExpressionError::UnknownFunction(name) => {
            let known = ["contains", "endsWith", "matches", "size", "startsWith"];
            suggest::hint(name, &known, "the functions")
        }
        ExpressionError::NestedLoop => Some("a list of values is asked with `in`, without a loop".into()),
        ExpressionError::NotBoolean => Some("compare it with something".into()),
        _ => None,
    };
    cx.sink.error(text.span, error.to_string(), hint);
    None
}
