//! What a parameter's value must look like.

use std::borrow::Cow;
use std::fmt;

use regex::{Regex, RegexBuilder};

/// Most bytes of a compiled pattern.
pub const PATTERN_BYTES_MAX: usize = 256 * 1024;

/// A regular expression that a whole value must match (crate `regex`: its time is linear in the value's length).
#[derive(Clone)]
pub struct Pattern {
    text: Box<str>,
    regex: Regex,
}

impl Pattern {
    /// # Errors
    /// What is wrong with it, in a few words.
    pub fn compile(text: &str) -> Result<Self, String> {
        let build = |text: &str| {
            let built = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).build();
            built.map_err(|error| pattern_error(&error))
        };
        // Alone first, so that it cannot end the group around it.
        build(text)?;
        Ok(Self { text: text.into(), regex: build(&format!("^(?:{text})$"))? })
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.text).finish()
    }
}

/// A regular expression's error in one line.
pub(in crate::access) fn pattern_error(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(bytes) => format!("it is larger than {bytes} bytes when compiled"),
        error => {
            let text = error.to_string();
            let last = text.lines().next_back().unwrap_or("it cannot be read");
            last.strip_prefix("error: ").unwrap_or(last).to_owned()
        }
    }
}

/// What a value must look like.
#[derive(Debug, Clone)]
pub enum Shape {
    /// Digits, with or without a `-`; bounds included.
    Integer {
        min: i64,
        max: i64,
    },
    /// Digits, perhaps with a point and an exponent; bounds included.
    Number {
        min: f64,
        max: f64,
    },
    /// `true` or `false`.
    Boolean,
    /// RFC 9562 section 4, any version.
    Uuid,
    OneOf(Box<[Box<str>]>),
    /// UTF-8, its length in characters, bounds included.
    Text {
        chars_min: usize,
        chars_max: usize,
        pattern: Option<Pattern>,
    },
}

impl Shape {
    /// # Errors
    /// What is wrong with the value, which is not repeated.
    pub(super) fn check(&self, value: &[u8]) -> Result<(), Cow<'static, str>> {
        let Ok(text) = std::str::from_utf8(value) else { return Err("must be UTF-8".into()) };
        match self {
            Self::Integer { min, max } => match integer(text) {
                Some(number) if (*min..=*max).contains(&number) => Ok(()),
                _ => Err(match (*min, *max) {
                    (i64::MIN, i64::MAX) => "must be a whole number".into(),
                    (min, i64::MAX) => format!("must be a whole number, {min} or more").into(),
                    (i64::MIN, max) => format!("must be a whole number, {max} or less").into(),
                    (min, max) => format!("must be a whole number from {min} to {max}").into(),
                }),
            },
            Self::Number { min, max } => match number(text) {
                Some(number) if (*min..=*max).contains(&number) => Ok(()),
                _ => Err(match (*min, *max) {
                    (f64::NEG_INFINITY, f64::INFINITY) => "must be a number".into(),
                    (min, f64::INFINITY) => format!("must be a number, {min} or more").into(),
                    (f64::NEG_INFINITY, max) => format!("must be a number, {max} or less").into(),
                    (min, max) => format!("must be a number from {min} to {max}").into(),
                }),
            },
            Self::Boolean if matches!(text, "true" | "false") => Ok(()),
            Self::Boolean => Err("must be `true` or `false`".into()),
            Self::Uuid if is_uuid(value) => Ok(()),
            Self::Uuid => Err("must be a UUID".into()),
            Self::OneOf(words) if words.iter().any(|word| **word == *text) => Ok(()),
            Self::OneOf(words) => Err(format!("must be one of {}", words.join(", ")).into()),
            Self::Text { chars_min, chars_max, pattern } => {
                // Bytes are never fewer than characters.
                let too_long = text.len() > *chars_max && text.chars().nth(*chars_max).is_some();
                let too_short = *chars_min > 0 && text.chars().nth(chars_min - 1).is_none();
                if too_long {
                    Err(format!("must have a length of {chars_max} or less").into())
                } else if too_short {
                    Err(format!("must have a length of {chars_min} or more").into())
                } else if pattern.as_ref().is_some_and(|pattern| !pattern.regex.is_match(text)) {
                    Err("does not match its pattern".into())
                } else {
                    Ok(())
                }
            }
        }
    }
}

fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Not all that Rust reads as a number: `inf`, `nan`, `+1`, `.5`, `5.`.
fn number(text: &str) -> Option<f64> {
    let allowed = |byte: u8| byte.is_ascii_digit() || b"+-.eE".contains(&byte);
    let digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let unsigned = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let point = unsigned.iter().position(|byte| *byte == b'.');
    let whole = point.is_none_or(|at| digit(unsigned.get(at + 1)));
    let shaped = text.bytes().all(allowed) && digit(unsigned.first()) && whole;
    shaped.then(|| text.parse().ok()).flatten().filter(|number: &f64| number.is_finite())
}

fn is_uuid(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(shape: &Shape, good: &[&str], bad: &[&str], problem: &str) {
        for value in good {
            assert_eq!(shape.check(value.as_bytes()), Ok(()), "{value}");
        }
        for value in bad {
            assert_eq!(shape.check(value.as_bytes()).unwrap_err(), problem, "{value}");
        }
        assert_eq!(shape.check(b"\xff").unwrap_err(), "must be UTF-8");
    }

    #[test]
    fn shapes_tell_good_values_from_bad_ones() {
        check(
            &Shape::Integer { min: 1, max: 100 },
            &["1", "100", "007"],
            &["0", "101", "-1", "+1", "1.0", "1e1", "", "-", " 1", "x", "99999999999999999999"],
            "must be a whole number from 1 to 100",
        );
        check(
            &Shape::Integer { min: i64::MIN, max: i64::MAX },
            &["-9223372036854775808"],
            &["--1"],
            "must be a whole number",
        );
        check(&Shape::Integer { min: 0, max: i64::MAX }, &["0", "-0"], &["-1"], "must be a whole number, 0 or more");
        check(
            &Shape::Number { min: f64::NEG_INFINITY, max: f64::INFINITY },
            &["1", "-1.5", "1e3", "1.5E-3"],
            &["inf", "nan", ".5", "5.", "+1", "1e", "", "-", "1e999", "1_0", "0x1", "1.e5"],
            "must be a number",
        );
        check(&Shape::Number { min: 0.5, max: 1.0 }, &["0.5", "1"], &["0.4", "1.1"], "must be a number from 0.5 to 1");
        check(&Shape::Boolean, &["true", "false"], &["True", "1", ""], "must be `true` or `false`");
        check(
            &Shape::Uuid,
            &["f81d4fae-7dec-11d0-a765-00a0c91e6bf6", "00000000-0000-0000-0000-000000000000"],
            &["f81d4fae7dec11d0a76500a0c91e6bf6", "f81d4fae-7dec-11d0-a765-00a0c91e6bfg", ""],
            "must be a UUID",
        );
        check(&Shape::OneOf(["asc".into(), "desc".into()].into()), &["asc"], &["ASC", ""], "must be one of asc, desc");
        let text = |chars_min, chars_max, pattern: Option<&str>| Shape::Text {
            chars_min,
            chars_max,
            pattern: pattern.map(|pattern| Pattern::compile(pattern).unwrap()),
        };
        check(&text(2, 3, None), &["äö", "abc"], &["äöüß"], "must have a length of 3 or less");
        check(&text(2, 3, None), &["ab"], &["ä", ""], "must have a length of 2 or more");
        check(&text(0, 9, Some("a|b")), &["a", "b"], &["ab", "ac", "xa", "a\n"], "does not match its pattern");
    }

    #[test]
    fn patterns_that_cannot_be_used_are_refused() {
        for (bad, said) in [
            ("(", "unclosed group"),
            ("a)(?:b", "unopened group"),
            ("(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
            ("(a{500}){500}", "it is larger than 262144 bytes when compiled"),
        ] {
            assert_eq!(Pattern::compile(bad).unwrap_err(), said, "{bad}");
        }
        assert!(Pattern::compile("(?x) a # b").is_err());
    }
}
