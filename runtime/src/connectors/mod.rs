//! Sources, sinks and stores of the world outside.

#[cfg(feature = "aws")]
pub mod aws;
pub mod clock;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod local;
#[cfg(feature = "aws")]
pub mod redis;
pub mod sources;
#[cfg(feature = "aws")]
pub mod tables;
