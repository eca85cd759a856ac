//! Bytes to Arrow.

pub mod column;
pub mod json;
pub mod number;
pub mod time;
