//! The processing runtime: records in, exactly-once output out.

pub mod batch;
pub mod codecs;
pub mod connectors;
pub mod engine;
pub mod operators;
pub mod output;
#[cfg(feature = "aws")]
pub mod service;
