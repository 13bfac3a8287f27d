//! Expressions in the Common Expression Language (<https://cel.dev>), for what lists cannot say.
//!
//! # Cost
//! An expression is checked when it is compiled: known variables and functions only, patterns of `matches` given as
//! text and compiled then, one loop (`exists`, `all`, `filter`, `map`) not within another. So its cost is known before it
//! is evaluated, from its size and that of the values: above [`COST_MAX`] it is not evaluated, and fails.

mod check;
mod values;

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use cel::common::types::CelBool;
use cel::extractors::This;
use cel::{Context, Env, ExecutionError, Program};

use super::condition::Subject;
use crate::router::RouteRequest;
use check::{Checked, Checker, NamedPattern};

/// Longest text of an expression.
pub const EXPRESSION_BYTES_MAX: usize = 1024;

/// Most steps of one evaluation; a step looks at one value, or at up to [`STEP_BYTES`] of text. About a millisecond.
pub const COST_MAX: usize = 20_000;

/// How much text one step may look at.
pub const STEP_BYTES: usize = 4096;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// A compiled expression.
#[derive(Clone)]
pub struct Expression {
    text: Box<str>,
    program: Arc<Program>,
    checked: Checked,
    /// The patterns of `matches`, by their text.
    patterns: Arc<[NamedPattern]>,
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Expression").field(&self.text).finish()
    }
}

/// Why a text is no expression that can be used here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    #[error("an expression has at most {EXPRESSION_BYTES_MAX} bytes")]
    TooLong,
    #[error("not a CEL expression: {message}")]
    Syntax {
        message: String,
        /// In characters, from 1.
        column: usize,
    },
    #[error("there is no variable `{0}` in expressions")]
    UnknownVariable(String),
    #[error("there is no `request.{0}` in expressions")]
    UnknownField(String),
    #[error("there is no function `{0}` in expressions")]
    UnknownFunction(String),
    #[error("names of headers are in lower case in expressions: `{0}`")]
    UpperCaseHeader(String),
    #[error("a loop within a loop costs too much")]
    NestedLoop,
    #[error("an expression with too many levels within each other")]
    TooDeep,
    #[error("the pattern of `matches` must be a text in the expression itself")]
    PatternNotLiteral,
    #[error("not a pattern: {0}")]
    BadPattern(String),
    #[error("an expression answers `true` or `false`, this one never does")]
    NotBoolean,
    #[error("`{0}` is not supported in expressions")]
    Unsupported(&'static str),
}

/// Why an expression gave no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvaluationError {
    #[error("the values are too large")]
    TooCostly,
    #[error("a query parameter occurs more than once")]
    RepeatedParameter,
    #[error("a value is missing or has another type")]
    Failed,
    #[error("the result is neither true nor false")]
    NotBoolean,
}

impl Expression {
    /// # Errors
    /// What is wrong with it, before any request is there.
    pub fn compile(text: &str) -> Result<Self, ExpressionError> {
        if text.len() > EXPRESSION_BYTES_MAX {
            return Err(ExpressionError::TooLong);
        }
        let program = Program::compile(text).map_err(|errors| syntax(&errors))?;
        let (checked, patterns) = Checker::check(program.expression())?;
        Ok(Self { text: text.into(), program: Arc::new(program), checked, patterns: patterns.into() })
    }

    /// Evaluates the expression. Allocates.
    ///
    /// # Errors
    /// Where there is no answer; the caller refuses.
    pub fn holds(
        &self,
        subject: &Subject<'_>,
        request: &RouteRequest<'_>,
        client_ip: IpAddr,
    ) -> Result<bool, EvaluationError> {
        let values = values::Values::new(&self.checked, subject, request, client_ip)?;
        if self.checked.cost(values.count, values.bytes) > COST_MAX {
            return Err(EvaluationError::TooCostly);
        }
        let mut context = Context::with_env(ENV.clone());
        for (name, value) in values.variables {
            context.add_variable_as_val(name, value);
        }
        if !self.patterns.is_empty() {
            let patterns = self.patterns.clone();
            let matches = move |This(text): This<Arc<String>>, pattern: Arc<String>| {
                let known = patterns.iter().find(|(known, _)| **known == **pattern);
                known
                    .map(|(_, regex)| regex.is_match(&text))
                    .ok_or_else(|| ExecutionError::function_error("matches", "not a pattern that was compiled"))
            };
            context.add_function("matches", matches).map_err(|_| EvaluationError::Failed)?;
        }
        let result = cel::Value::resolve_val(self.program.expression(), &context);
        let value = result.map_err(|_| EvaluationError::Failed)?;
        value.downcast_ref::<CelBool>().map(|answer| *answer.inner()).ok_or(EvaluationError::NotBoolean)
    }
}

fn syntax(errors: &cel::ParseErrors) -> ExpressionError {
    const MESSAGE_CHARS_MAX: usize = 120;
    let first = errors.errors.first();
    let line = first.and_then(|error| error.msg.lines().next()).unwrap_or("it cannot be read");
    ExpressionError::Syntax {
        message: line.chars().take(MESSAGE_CHARS_MAX).collect(),
        column: first.map_or(1, |error| usize::try_from(error.pos.1).unwrap_or(0).saturating_add(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn holds(text: &str) -> Result<bool, EvaluationError> {
        let claims = json!({ "tenant": "acme", "level": 3, "big": u64::MAX, "ratio": 0.5, "groups": ["staff", "ops"],
            "nested": { "on": true }, "none": null });
        let (roles, scopes): (Vec<Box<str>>, Vec<Box<str>>) = (vec!["user".into()], vec!["read".into()]);
        let subject = Subject { user: Some("u1"), roles: &roles, scopes: &scopes, claims: claims.as_object() };
        let headers = [
            httparse::Header { name: "X-Plan", value: b"pro" },
            httparse::Header { name: "Accept", value: b"a" },
            httparse::Header { name: "accept", value: b"b" },
        ];
        let request = RouteRequest {
            host: b"api.example.com",
            method: b"POST",
            path: b"/orders/7",
            query: Some(b"page=2&q=a%20b+c&flag&tag=x&tag=y"),
            headers: &headers,
        };
        Expression::compile(text).unwrap_or_else(|error| panic!("{text}: {error}")).holds(
            &subject,
            &request,
            "192.0.2.7".parse().unwrap(),
        )
    }

    #[test]
    fn expressions_see_the_request_and_who_asks() {
        for text in [
            "true",
            "request.method == 'POST' && request.path.startsWith('/orders/')",
            "request.host.endsWith('.example.com')",
            "request.query.page == '2' && request.query.q == 'a b c' && request.query['flag'] == ''",
            "'page' in request.query && !('nope' in request.query) && has(request.query.page)",
            "request.headers['x-plan'] == 'pro' && request.headers.accept == 'a, b'",
            "!has(request.headers.authorization)",
            "'user' in roles && scopes == ['read'] && user == 'u1'",
            "roles.exists(role, role == 'user') && !roles.all(role, role.contains('x'))",
            "claims.tenant in ['acme', 'other'] && claims.level >= 3 && claims.nested.on && claims.none == null",
            "claims.ratio < 0.6 && size(claims.groups) == 2 && claims.groups.exists_one(g, g == 'ops')",
            "claims.groups.filter(g, g.startsWith('s')) == ['staff']",
            "claims.big > 5u",
            "client_ip == '192.0.2.7'",
            "request.path.matches('^/orders/[0-9]+$')",
            "claims.tenant == 'nope' ? false : claims.groups.map(g, g + '!')[0] == 'staff!'",
        ] {
            assert_eq!(holds(text), Ok(true), "{text}");
        }
        assert_eq!(holds("request.method == 'GET'"), Ok(false));
    }

    #[test]
    fn what_has_no_answer_fails() {
        for (text, error) in [
            ("claims.missing == 1", EvaluationError::Failed),
            ("request.headers.authorization == 'x'", EvaluationError::Failed),
            ("claims.tenant > 1", EvaluationError::Failed),
            ("claims.level / 0 == 1", EvaluationError::Failed),
            ("claims.tenant", EvaluationError::NotBoolean),
            ("request.query.tag == 'x'", EvaluationError::RepeatedParameter),
            ("request.query.exists(name, name == 'page')", EvaluationError::RepeatedParameter),
        ] {
            assert_eq!(holds(text), Err(error), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_told_when_it_is_compiled() {
        use ExpressionError::*;
        let said = |text: &str| Expression::compile(text).unwrap_err();
        assert_eq!(said("request.methd == 'GET'"), UnknownField("methd".into()));
        assert_eq!(said("clams.x == 1"), UnknownVariable("clams".into()));
        assert_eq!(said("lower(user) == 'x'"), UnknownFunction("lower".into()));
        assert_eq!(said("user.lower() == 'x'"), UnknownFunction("lower".into()));
        assert_eq!(said("request.headers['X-A'] == 'x'"), UpperCaseHeader("X-A".into()));
        assert_eq!(said("request.path.matches(claims.pattern)"), PatternNotLiteral);
        assert!(matches!(said("request.path.matches('(')"), BadPattern(_)));
        assert!(matches!(said("request.path.matches('(a{1000}){1000}')"), BadPattern(_)));
        assert_eq!(said("roles.exists(a, scopes.exists(b, a == b))"), NestedLoop);
        assert_eq!(
            said("roles.filter(a, a == 'x').exists(b, b == 'x') || [1].exists(c, [2].exists(d, c == d))"),
            NestedLoop
        );
        assert_eq!(said("'yes'"), NotBoolean);
        assert_eq!(said("[true]"), NotBoolean);
        assert_eq!(said("1 + 1"), NotBoolean);
        assert_eq!(said("Foo{a: 1} == 2"), Unsupported("a message"));
        assert_eq!(said(&"x".repeat(2000)), TooLong);
        let Syntax { column, message } = said("user == ") else { panic!() };
        assert!(column > 1 && !message.is_empty());
    }

    #[test]
    fn the_cost_is_bounded() {
        let claims = json!({ "many": (0..3000).collect::<Vec<_>>(), "long": "x".repeat(300_000) });
        let subject = Subject { claims: claims.as_object(), ..Subject::default() };
        let request = RouteRequest { host: b"", method: b"GET", path: b"/", query: None, headers: &[] };
        let check = |text: &str| Expression::compile(text).unwrap().holds(&subject, &request, "::1".parse().unwrap());
        assert_eq!(check("claims.many.exists(n, n == 7)"), Err(EvaluationError::TooCostly));
        assert_eq!(check("7 in claims.many"), Ok(true));
        assert_eq!(check("request.method == 'GET'"), Ok(true));
    }

    #[test]
    fn deep_texts_end_well() {
        let n = EXPRESSION_BYTES_MAX;
        for text in [
            format!("1{}", "+1".repeat(n / 2 - 1)),
            format!("user{}", ".b".repeat(n / 2 - 4)),
            "!".repeat(n),
            "-".repeat(n),
            "(".repeat(n),
            "[".repeat(n),
            "{".repeat(n),
            format!("{}user{}", "(".repeat(500), ")".repeat(500)),
            format!("{}user{}", "[".repeat(500), "]".repeat(500)),
            "user?".repeat(n / 5),
            "user?user:".repeat(n / 10),
            format!("true{}", "&&true".repeat(n / 6 - 1)),
            "user[".repeat(n / 5),
            "size(".repeat(n / 5),
            format!("user{}", "[0]".repeat(n / 3 - 2)),
        ] {
            let _ = Expression::compile(&text);
        }
        assert!(Expression::compile(&format!("true{}", "&&true".repeat(30))).is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_text_is_read_or_refused(pieces in prop::collection::vec(prop::sample::select(vec![
            "request", ".", "query", "headers", "['x']", "claims", "user", "roles", " in ", "==", "!", "&&", "||", "?", ":",
            "(", ")", "[", "]", "{", "}", "1", "'a'", "\"", "size(", ".exists(x, x", ".map(x,", "has(", "matches(", "+", "-",
            ",", "null", "true", "\\", "\u{e9}", "b'\\xff'", "1u", "1e400", "99999999999999999999", "r'", "//", "@", "#", "`",
        ]), 0..14)) {
            let text = pieces.concat();
            if let Ok(expression) = Expression::compile(&text) {
                let request = RouteRequest { host: b"\xff", method: b"GET", path: b"/%ff", query: Some(b"x=%ff"), headers: &[] };
                let _ = expression.holds(&Subject::default(), &request, "::1".parse().unwrap());
            }
        }
    }
}
