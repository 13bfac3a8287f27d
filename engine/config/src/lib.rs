//! The only door into a running gateway: YAML file shapes are read, checked as a whole and compiled into an immutable
//! [`Snapshot`].
//!
//! Text becomes a tree with places (`tree`), variables are put in (`expand`), the tree becomes typed sections
//! (`decode`, `shape`, `sections`), the sections a snapshot ([`compile()`]). Each step reports all it finds and goes on.
#![forbid(unsafe_code)]

pub mod acme;
pub mod health;
pub mod hub;
pub mod resilience;
pub mod snapshot;
pub mod sticky;

mod compile;
mod decode;
mod discovered;
mod emit;
mod error;
mod expand;
mod load;
mod percent;
mod scalar;
mod schema;
mod sections;
mod service_tls;
mod shape;
mod suggest;
pub mod tls;
mod tree;
mod units;

pub use compile::{Source, compile, compile_with};
pub use discovered::{DiscoveryStats, SoFar};
pub use error::{ConfigError, ERRORS_MAX, Errors};
pub use hub::Hub;
pub use load::{FILE_BYTES_MAX, load};
pub use schema::schema;
pub use sections::{INSTANCE_BYTES_MAX, Instance, Lookup, is_redis_key, read_endpoints};
pub use snapshot::Snapshot;
