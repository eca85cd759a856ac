//! Sources, sinks and stores of the world outside.

#[cfg(feature = "aws")]
pub mod aws;
pub mod clock;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod local;
pub mod sources;
