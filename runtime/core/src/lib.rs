//! The decisions of the processing runtime, as pure functions and plain data: positions, key groups, numbers, rows of
//! tasks, watermarks, leases, the ledger. No IO, no clock, no Tokio. `runtime` executes what is decided here.
//!
//! The protocol is described in `docs/delivery.md`; each of its rules has a name in [`rules::Rule`].

pub mod begin;
pub mod coordinate;
pub mod key;
pub mod lease;
pub mod ledger;
pub mod listing;
pub mod mark;
pub mod merge;
pub mod message;
pub mod numbers;
pub mod path;
pub mod position;
pub mod row;
pub mod rules;
pub mod value;
pub mod watermark;
pub mod wire;
