//! The pure functions on a request's path, each called as the data plane calls it, on input that is always the same.
//!
//! The benchmarks take their time (`benches/functions`), the guard counts their instructions (`tests/instructions.rs`).

mod access;
mod auth;
mod codec;
mod guard;
mod policy;
mod record;

use std::hint::black_box;

pub use codec::CHUNKED_BODIES;
pub use record::LINE;

/// One function and what it is called with.
pub struct Case {
    /// What the function does, in a word or two: the name of a group of benchmarks.
    pub group: &'static str,
    /// The input.
    pub name: &'static str,
    /// Bytes that one call goes through, where that is what its cost depends on.
    pub bytes: Option<usize>,
    prepare: Box<dyn Fn() -> Calls>,
}

/// Room for what a function appends.
const OUT_BYTES: usize = 8 * 1024;

/// Calls the function so many times.
pub type Calls = Box<dyn FnMut(u64)>;

impl Case {
    /// `prepare` makes the input, which is not measured, and gives back one call.
    fn new<F, R>(group: &'static str, name: &'static str, prepare: impl Fn() -> F + 'static) -> Self
    where
        F: FnMut() -> R + 'static,
    {
        let prepare = move || -> Calls {
            let mut call = prepare();
            // The loop stands in here, so that a call costs no dispatch.
            Box::new(move |times| {
                for _ in 0..times {
                    black_box(call());
                }
            })
        };
        Self { group, name, bytes: None, prepare: Box::new(prepare) }
    }

    /// A function that appends to a buffer.
    fn writes(group: &'static str, name: &'static str, write: impl Fn(&mut Vec<u8>) + Copy + 'static) -> Self {
        Self::new(group, name, move || {
            let mut out = Vec::with_capacity(OUT_BYTES);
            move || {
                out.clear();
                write(&mut out);
                out.len()
            }
        })
    }

    fn of_bytes(self, bytes: usize) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// `group/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// Makes the input.
    pub fn prepare(&self) -> Calls {
        (self.prepare)()
    }
}

/// All of them, those of a group side by side, in the order in which a request meets them.
pub fn all() -> Vec<Case> {
    let groups = [codec::cases(), policy::cases(), auth::cases(), access::cases(), guard::cases(), record::cases()];
    groups.into_iter().flatten().collect()
}

/// Bytes as they stand in a receive buffer: at the start of a cache line. Functions that look at whole words cost more or
/// less by where their input begins, and where that is must not depend on what else the binary holds.
fn received(bytes: &[u8]) -> &'static mut [u8] {
    #[repr(align(64))]
    struct Buffer([u8; 20 * 1024]);

    let buffer = &mut leak(Buffer([0; 20 * 1024])).0[..bytes.len()];
    buffer.copy_from_slice(bytes);
    buffer
}

/// Input that lives as long as the process.
fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_case_runs_and_has_a_name_of_its_own() {
        let mut ids = HashSet::new();
        for case in all() {
            case.prepare()(100);
            assert!(ids.insert(case.id()), "{} occurs twice", case.id());
            assert!(!case.id().contains(char::is_whitespace), "{}", case.id());
        }
    }
}
