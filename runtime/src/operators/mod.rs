//! The steps: batches in, batches out. State is owned here and is a function of the records that went through.

pub mod cells;
pub mod cold;
pub mod deduplicate;
pub mod evaluate;
pub mod files;
pub mod ids;
pub mod keyed;
pub mod memory;
pub mod rows;
pub mod saved;
pub mod source;
pub mod stream;
pub mod table;
pub mod versions;
pub mod window;

#[cfg(test)]
mod state_tests;
