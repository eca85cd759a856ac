//! A cloud in a folder: durable streams with shards, objects and files, tables, and the lease table. `leat dev` runs
//! on it, and so do tests that need no cloud.

use std::io::{self, ErrorKind};

use crate::engine::ports::PortError;

pub mod files;
pub mod folder;
pub mod shard;
pub mod store;
pub mod streams;
pub mod written;

/// Turns a failure of the disk into a port's error: it will not go away by itself.
pub(crate) fn fatal(what: &str, error: impl std::fmt::Display) -> PortError {
    PortError::Fatal(format!("{what}: {error}"))
}

/// Why a call to the disk failed. A full one may have room again, so the same call is made again: none leaves half of its work
/// to be found.
pub(crate) fn failed(what: &str, error: &io::Error) -> PortError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => PortError::Unclear(format!("the disk is full: {what}: {error}")),
        _ => fatal(what, error),
    }
}
