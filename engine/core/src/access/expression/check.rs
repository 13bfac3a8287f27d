//! What an expression uses and what it may cost, from its syntax.

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SelectExpr, operators};
use regex::{Regex, RegexBuilder};

use super::{ExpressionError, STEP_BYTES};

/// Most levels within each other: evaluation is recursive.
const DEPTH_MAX: usize = 48;
/// Most bytes of a compiled pattern.
const PATTERN_BYTES_MAX: usize = 64 * 1024;

const VARIABLES: [&str; 6] = ["request", "claims", "user", "roles", "scopes", "client_ip"];
const FUNCTIONS: [&str; 12] =
    ["size", "contains", "startsWith", "endsWith", "matches", "int", "uint", "double", "string", "bool", "type", "dyn"];

/// Which entries of a map an expression looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Used {
    /// These.
    Names(Vec<Box<str>>),
    /// Any.
    All,
}

impl Used {
    fn add(&mut self, name: &str) {
        if let Self::Names(names) = self
            && !names.iter().any(|known| **known == *name)
        {
            names.push(name.into());
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.iter().any(|known| **known == *name),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }
}

/// What is known of an expression once it is compiled.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    /// Of [`VARIABLES`], those that it uses.
    pub(super) variables: Vec<&'static str>,
    pub(super) method: bool,
    pub(super) path: bool,
    pub(super) host: bool,
    pub(super) query: Used,
    pub(super) headers: Used,
    /// Steps outside of loops, and within.
    once: usize,
    looped: usize,
    /// Additions and literals, which make lists longer than those that come from outside.
    growing: usize,
}

impl Checked {
    /// Steps of an evaluation with so many values, of so much text.
    pub(super) fn cost(&self, values: usize, bytes: usize) -> usize {
        let turns = values.saturating_add(self.once).saturating_mul(self.growing.saturating_add(1));
        let steps = self.once.saturating_add(self.looped.saturating_mul(turns));
        steps.saturating_mul(1 + (bytes.saturating_add(values.saturating_mul(16))) / STEP_BYTES)
    }
}

/// A pattern by its text.
pub(super) type NamedPattern = (Box<str>, Regex);

pub(super) struct Checker<'e> {
    found: Checked,
    patterns: Vec<NamedPattern>,
    /// Names that loops give to their items.
    local: Vec<&'e str>,
}

type Step = Result<(), ExpressionError>;

impl<'e> Checker<'e> {
    pub(super) fn check(root: &'e IdedExpr) -> Result<(Checked, Vec<NamedPattern>), ExpressionError> {
        let none = || Used::Names(Vec::new());
        let found = Checked {
            variables: Vec::new(),
            method: false,
            path: false,
            host: false,
            query: none(),
            headers: none(),
            once: 0,
            looped: 0,
            growing: 0,
        };
        let mut checker = Self { found, patterns: Vec::new(), local: Vec::new() };
        checker.visit(&root.expr, 0, false)?;
        if never_boolean(&root.expr) {
            return Err(ExpressionError::NotBoolean);
        }
        Ok((checker.found, checker.patterns))
    }

    fn visit(&mut self, expr: &'e Expr, depth: usize, looped: bool) -> Step {
        if depth > DEPTH_MAX {
            return Err(ExpressionError::TooDeep);
        }
        if looped {
            self.found.looped += 1;
        } else {
            self.found.once += 1;
        }
        let depth = depth + 1;
        match expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => self.ident(name),
            Expr::Select(select) => self.select(select, depth, looped),
            Expr::Call(call) => self.call(call, depth, looped),
            Expr::List(list) => list.elements.iter().try_for_each(|item| self.visit(&item.expr, depth, looped)),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.visit(&entry.key.expr, depth, looped)?;
                    self.visit(&entry.value.expr, depth, looped)
                }
                EntryExpr::StructField(_) => Err(ExpressionError::Unsupported("a message")),
            }),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, depth, looped),
            Expr::Struct(_) => Err(ExpressionError::Unsupported("a message")),
            Expr::Unspecified => Err(ExpressionError::Unsupported("an empty part")),
        }
    }

    /// A variable as a whole.
    fn ident(&mut self, name: &str) -> Step {
        if name.starts_with('@') || self.local.contains(&name) {
            return Ok(());
        }
        let Some(known) = VARIABLES.into_iter().find(|known| *known == name) else {
            return Err(ExpressionError::UnknownVariable(name.to_owned()));
        };
        if known == "request" {
            let found = &mut self.found;
            (found.method, found.path, found.host) = (true, true, true);
            (found.query, found.headers) = (Used::All, Used::All);
        }
        self.uses(known);
        Ok(())
    }

    fn uses(&mut self, variable: &'static str) {
        if !self.found.variables.contains(&variable) {
            self.found.variables.push(variable);
        }
    }

    fn is_request(&self, expr: &Expr) -> bool {
        matches!(expr, Expr::Ident(name) if name == "request") && !self.local.contains(&"request")
    }

    /// `request.query` or `request.headers`.
    fn request_map<'f>(&self, expr: &'f Expr) -> Option<&'f str> {
        match expr {
            Expr::Select(select) if self.is_request(&select.operand.expr) && !select.test => {
                Some(select.field.as_str()).filter(|field| matches!(*field, "query" | "headers"))
            }
            _ => None,
        }
    }

    fn entry(&mut self, map: &str, name: &str) -> Step {
        self.uses("request");
        if map == "query" {
            self.found.query.add(name);
            return Ok(());
        }
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ExpressionError::UpperCaseHeader(name.to_owned()));
        }
        self.found.headers.add(name);
        Ok(())
    }

    fn select(&mut self, select: &'e SelectExpr, depth: usize, looped: bool) -> Step {
        if let Some(map) = self.request_map(&select.operand.expr) {
            return self.entry(map, &select.field);
        }
        if !self.is_request(&select.operand.expr) {
            return self.visit(&select.operand.expr, depth, looped);
        }
        self.uses("request");
        match select.field.as_str() {
            "method" => self.found.method = true,
            "path" => self.found.path = true,
            "host" => self.found.host = true,
            "query" => self.found.query = Used::All,
            "headers" => self.found.headers = Used::All,
            other => return Err(ExpressionError::UnknownField(other.to_owned())),
        }
        Ok(())
    }

    fn call(&mut self, call: &'e CallExpr, depth: usize, looped: bool) -> Step {
        let name = call.func_name.as_str();
        let is_operator = name.starts_with(['_', '@', '!', '-']);
        if !is_operator && !FUNCTIONS.contains(&name) {
            return Err(ExpressionError::UnknownFunction(name.to_owned()));
        }
        if name == operators::ADD {
            self.found.growing += 1;
        }
        // `request.headers['x-a']` and `'page' in request.query`.
        match (name, call.args.as_slice()) {
            (operators::INDEX, [map, key]) | (operators::IN, [key, map]) => {
                if let (Some(map), Expr::Literal(LiteralValue::String(key))) = (self.request_map(&map.expr), &key.expr)
                {
                    return self.entry(map, key.inner());
                }
            }
            ("matches", args) => match args.last().map(|arg| &arg.expr) {
                Some(Expr::Literal(LiteralValue::String(pattern))) => self.pattern(pattern.inner())?,
                _ => return Err(ExpressionError::PatternNotLiteral),
            },
            _ => {}
        }
        if let Some(target) = &call.target {
            self.visit(&target.expr, depth, looped)?;
        }
        call.args.iter().try_for_each(|arg| self.visit(&arg.expr, depth, looped))
    }

    fn pattern(&mut self, text: &str) -> Step {
        if self.patterns.iter().any(|(known, _)| **known == *text) {
            return Ok(());
        }
        let built = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).build();
        let regex =
            built.map_err(|error| ExpressionError::BadPattern(super::super::validate::pattern_error(&error)))?;
        self.patterns.push((text.into(), regex));
        Ok(())
    }

    fn comprehension(&mut self, loops: &'e ComprehensionExpr, depth: usize, looped: bool) -> Step {
        if looped {
            return Err(ExpressionError::NestedLoop);
        }
        self.visit(&loops.iter_range.expr, depth, false)?;
        self.visit(&loops.accu_init.expr, depth, false)?;
        let before = self.local.len();
        self.local.push(&loops.iter_var);
        self.local.extend(loops.iter_var2.as_deref());
        self.visit(&loops.loop_cond.expr, depth, true)?;
        self.visit(&loops.loop_step.expr, depth, true)?;
        self.local.truncate(before);
        self.visit(&loops.result.expr, depth, false)
    }
}

/// Whether an expression surely has another type than a boolean.
fn never_boolean(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(literal) => !matches!(literal, LiteralValue::Boolean(_)),
        Expr::List(_) | Expr::Map(_) => true,
        Expr::Call(call) => matches!(
            call.func_name.as_str(),
            operators::ADD
                | operators::SUBSTRACT
                | operators::MULTIPLY
                | operators::DIVIDE
                | operators::MODULO
                | operators::NEGATE
                | "size"
                | "int"
                | "uint"
                | "double"
                | "string"
                | "type"
        ),
        _ => false,
    }
}
