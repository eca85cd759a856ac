//! Tasks over ports: what `leat-runtime-core` decides is executed here. The tasks know no clock, network or store but
//! through [`ports`], so that a simulation can drive them.

pub mod coordinator;
pub mod file;
pub mod keyed;
pub mod looks;
pub mod outlet;
pub mod ports;
pub mod source;
pub mod task;
pub mod worker;
