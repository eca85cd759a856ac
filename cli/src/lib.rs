//! The command line as a library: manifests with their line numbers, the laptop, and the generator of events.

pub mod audit;
pub mod dead_letters;
pub mod dev;
pub mod feed;
pub mod generate;
pub mod manifest;
pub mod plan;
pub mod report;
pub mod sample;
pub mod stand_ins;

pub use leat_runtime::codecs::time::format_millis;
