//! From a manifest to what runs: names, SQL, types, edge types, repartition, and whether state survives a change.
//!
//! Pure: no IO, no clock. Used by the operator, the workers and the command line, so that all three agree.

pub mod definition;
pub mod plan;
pub mod program;
pub mod sql;
pub mod state;

pub use plan::{References, compile, compile_document, digest, job_hash};
