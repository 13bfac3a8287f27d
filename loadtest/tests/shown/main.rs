//! What people see of a run and of a plan, through the real binary.

mod page;
mod plan;
mod results;
mod support;
