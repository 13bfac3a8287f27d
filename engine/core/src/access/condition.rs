//! Conditions on who asks: roles, scopes, claims, expressions, and `any`, `all`, `not` of them.

use std::net::IpAddr;

use serde_json::{Map, Value};

pub use super::expression::{COST_MAX, EXPRESSION_BYTES_MAX, EvaluationError, Expression, ExpressionError, STEP_BYTES};
use crate::auth::ClaimPath;
use crate::router::RouteRequest;

/// Who asks, as far as authentication knows. The default is nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    pub user: Option<&'a str>,
    pub roles: &'a [Box<str>],
    pub scopes: &'a [Box<str>],
    pub claims: Option<&'a Map<String, Value>>,
}

/// A condition on who asks, and on the request.
#[derive(Debug, Clone)]
pub enum Condition {
    /// One of them holds. They are looked at in order, up to the first that holds.
    Any(Box<[Condition]>),
    /// Each of them holds.
    All(Box<[Condition]>),
    Not(Box<Condition>),
    /// One of these roles.
    Roles(Box<[Box<str>]>),
    /// One of these scopes.
    AnyScope(Box<[Box<str>]>),
    /// Each of these scopes.
    AllScopes(Box<[Box<str>]>),
    Claim(ClaimPath, ClaimTest),
    Expression(Box<Expression>),
}

/// What is asked of a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimTest {
    /// It is there, and not null.
    Exists,
    /// It is one of these.
    OneOf(Box<[Value]>),
    /// It is a list with this in it, or a text of words, separated by spaces, with this among them.
    Contains(Value),
}

impl ClaimTest {
    fn holds(&self, claim: &Value) -> bool {
        match (self, claim) {
            (Self::Exists, claim) => !claim.is_null(),
            (Self::OneOf(values), claim) => values.iter().any(|value| equal(value, claim)),
            (Self::Contains(value), Value::Array(items)) => items.iter().any(|item| equal(value, item)),
            (Self::Contains(Value::String(word)), Value::String(text)) => text.split(' ').any(|item| item == word),
            (Self::Contains(_), _) => false,
        }
    }
}

/// Numbers are the same where their values are, however they are written: `1` and `1.0`.
fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || ((a.is_f64() || b.is_f64()) && a.as_f64() == b.as_f64()),
        (a, b) => a == b,
    }
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    Role,
    /// RFC 6750 section 3.1 calls it `insufficient_scope`.
    Scope,
    Claim,
    Expression,
    /// An expression that could not be evaluated, whatever its result would have meant.
    ExpressionFailed,
    /// None of `any` held.
    Any,
    /// What `not` is about held.
    Not,
}

impl Denial {
    /// One word, for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::Scope => "scope",
            Self::Claim => "claim",
            Self::Expression => "expression",
            Self::ExpressionFailed => "expression_failed",
            Self::Any => "any",
            Self::Not => "not",
        }
    }
}

impl Condition {
    /// Whether the condition holds. Allocates nothing, but in expressions.
    ///
    /// Hot; watched by the benchmark `condition`.
    ///
    /// # Errors
    /// What did not hold. An expression that fails refuses, also within `not` and `any`.
    pub fn check(&self, subject: &Subject<'_>, request: &RouteRequest<'_>, client_ip: IpAddr) -> Result<(), Denial> {
        let ok = |holds: bool, denial: Denial| if holds { Ok(()) } else { Err(denial) };
        match self {
            Self::Any(conditions) => {
                for condition in conditions {
                    match condition.check(subject, request, client_ip) {
                        Ok(()) => return Ok(()),
                        Err(Denial::ExpressionFailed) => return Err(Denial::ExpressionFailed),
                        Err(_) => {}
                    }
                }
                Err(Denial::Any)
            }
            Self::All(conditions) => {
                conditions.iter().try_for_each(|condition| condition.check(subject, request, client_ip))
            }
            Self::Not(condition) => match condition.check(subject, request, client_ip) {
                Ok(()) => Err(Denial::Not),
                Err(Denial::ExpressionFailed) => Err(Denial::ExpressionFailed),
                Err(_) => Ok(()),
            },
            Self::Roles(roles) => ok(roles.iter().any(|role| subject.roles.contains(role)), Denial::Role),
            Self::AnyScope(scopes) => ok(scopes.iter().any(|scope| subject.scopes.contains(scope)), Denial::Scope),
            Self::AllScopes(scopes) => ok(scopes.iter().all(|scope| subject.scopes.contains(scope)), Denial::Scope),
            Self::Claim(path, test) => {
                let claim = subject.claims.and_then(|claims| path.find(claims));
                ok(claim.is_some_and(|claim| test.holds(claim)), Denial::Claim)
            }
            Self::Expression(expression) => match expression.holds(subject, request, client_ip) {
                Ok(holds) => ok(holds, Denial::Expression),
                Err(_) => Err(Denial::ExpressionFailed),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::net::Ipv4Addr;

    const GET: RouteRequest<'_> =
        RouteRequest { host: b"a.example", method: b"GET", path: b"/a", query: None, headers: &[] };

    fn boxed(words: &[&str]) -> Box<[Box<str>]> {
        words.iter().map(|word| Box::from(*word)).collect()
    }

    fn check(condition: &Condition) -> Result<(), Denial> {
        let (roles, scopes) = (boxed(&["user", "editor"]), boxed(&["read", "write"]));
        let claims = json!({
            "tenant": "acme", "level": 3, "ratio": 1.0, "nothing": null, "off": false, "groups": ["staff", 7],
            "scope": "read write", "a": { "b": { "c": [10, { "d": true }] } }, "https://x.example/t": "dotted",
        });
        let subject = Subject { user: Some("u1"), roles: &roles, scopes: &scopes, claims: claims.as_object() };
        condition.check(&subject, &GET, Ipv4Addr::LOCALHOST.into())
    }

    fn claim(path: &str, test: ClaimTest) -> Condition {
        Condition::Claim(ClaimPath::parse(path).unwrap(), test)
    }

    fn cel(text: &str) -> Condition {
        Condition::Expression(Box::new(Expression::compile(text).unwrap()))
    }

    #[test]
    fn roles_and_scopes() {
        assert_eq!(check(&Condition::Roles(boxed(&["admin", "editor"]))), Ok(()));
        assert_eq!(check(&Condition::Roles(boxed(&["admin", "Editor"]))), Err(Denial::Role));
        assert_eq!(check(&Condition::AllScopes(boxed(&["read", "write"]))), Ok(()));
        assert_eq!(check(&Condition::AllScopes(boxed(&["read", "delete"]))), Err(Denial::Scope));
        assert_eq!(check(&Condition::AnyScope(boxed(&["read", "delete"]))), Ok(()));
        assert_eq!(check(&Condition::AnyScope(boxed(&["delete"]))), Err(Denial::Scope));
    }

    #[test]
    fn claims_are_found_and_tested() {
        use ClaimTest::*;
        for (path, test) in [
            ("tenant", OneOf([json!("other"), json!("acme")].into())),
            ("level", OneOf([json!(3.0)].into())),
            ("ratio", OneOf([json!(1)].into())),
            ("off", Exists),
            ("groups", Contains(json!("staff"))),
            ("groups", Contains(json!(7))),
            ("scope", Contains(json!("write"))),
            ("a.b.c.0", OneOf([json!(10)].into())),
            ("a.b.c.1.d", OneOf([json!(true)].into())),
            ("/a/b", Exists),
            ("/https:~1~1x.example~1t", OneOf([json!("dotted")].into())),
        ] {
            assert_eq!(check(&claim(path, test.clone())), Ok(()), "{path} {test:?}");
        }
        for (path, test) in [
            ("tenant", OneOf([json!("acm")].into())),
            ("level", OneOf([json!("3")].into())),
            ("nothing", Exists),
            ("missing", Exists),
            ("tenant.x", Exists),
            ("a.b.c.2", Exists),
            ("groups", Contains(json!("sta"))),
            ("tenant", Contains(json!("acm"))),
            ("level", Contains(json!(3))),
        ] {
            assert_eq!(check(&claim(path, test.clone())), Err(Denial::Claim), "{path} {test:?}");
        }
    }

    #[test]
    fn nobody_has_nothing() {
        let nobody = Subject::default();
        for condition in
            [Condition::Roles(boxed(&["user"])), Condition::AllScopes(boxed(&["a"])), claim("a", ClaimTest::Exists)]
        {
            assert!(condition.check(&nobody, &GET, Ipv4Addr::LOCALHOST.into()).is_err());
        }
    }

    #[test]
    fn combinations() {
        let (yes, no) = (|| Condition::Roles(boxed(&["user"])), || Condition::Roles(boxed(&["admin"])));
        let not = |condition| Condition::Not(Box::new(condition));
        assert_eq!(check(&Condition::Any([no(), yes()].into())), Ok(()));
        assert_eq!(check(&Condition::Any([no(), no()].into())), Err(Denial::Any));
        assert_eq!(check(&Condition::All([yes(), yes()].into())), Ok(()));
        assert_eq!(check(&Condition::All([yes(), no()].into())), Err(Denial::Role));
        assert_eq!(check(&not(no())), Ok(()));
        assert_eq!(check(&not(yes())), Err(Denial::Not));
        assert_eq!(check(&not(not(yes()))), Ok(()));
    }

    #[test]
    fn an_expression_that_fails_refuses_wherever_it_stands() {
        let fails = || cel("claims.missing == 1");
        let not = |condition| Condition::Not(Box::new(condition));
        let yes = || Condition::Roles(boxed(&["user"]));
        assert_eq!(check(&fails()), Err(Denial::ExpressionFailed));
        assert_eq!(check(&not(fails())), Err(Denial::ExpressionFailed));
        assert_eq!(check(&not(not(fails()))), Err(Denial::ExpressionFailed));
        assert_eq!(check(&Condition::Any([fails(), yes()].into())), Err(Denial::ExpressionFailed));
        assert_eq!(check(&Condition::Any([yes(), fails()].into())), Ok(()));
        assert_eq!(check(&cel("claims.level > 2 && 'editor' in roles")), Ok(()));
        assert_eq!(check(&cel("claims.level > 3")), Err(Denial::Expression));
    }
}
