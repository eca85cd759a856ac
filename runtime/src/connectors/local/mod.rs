//! A cloud in a folder: durable streams with shards, objects and files, tables, and the lease table. `leat dev` runs
//! on it, and so do tests that need no cloud.

pub mod files;
pub mod folder;
pub mod shard;
pub mod store;
pub mod streams;
pub mod written;

/// Turns a failure of the disk into a port's error: it will not go away by itself.
pub(crate) fn fatal(what: &str, error: impl std::fmt::Display) -> crate::engine::ports::PortError {
    crate::engine::ports::PortError::Fatal(format!("{what}: {error}"))
}
