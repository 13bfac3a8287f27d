//! The only door into a running gateway: YAML file shapes are read, checked as a whole and compiled into an immutable
//! [`Snapshot`].
#![forbid(unsafe_code)]

pub mod hub;
pub mod snapshot;

pub use hub::Hub;
pub use snapshot::Snapshot;
