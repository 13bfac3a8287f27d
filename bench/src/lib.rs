//! What the benchmarks and the instruction counts measure: the same calls on the same input.

pub mod cases;
pub mod messages;
