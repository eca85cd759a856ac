//! Bytes to Arrow.

pub mod archive;
pub mod column;
pub mod csv;
pub mod decoder;
pub mod framing;
pub mod json;
pub mod kpl;
pub mod number;
pub mod record;
pub mod time;
