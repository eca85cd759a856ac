//! Sources, sinks and stores of the world outside.

pub mod local;
