//! Sources, sinks and stores of the world outside.

#[cfg(feature = "aws")]
pub mod aws;
pub mod clock;
pub mod local;
