//! The API of Leat: what a user writes ([`spec`]), the values inside it ([`values`]), and the job document that the
//! operator hands to a worker ([`job`]). Types only, no IO.

pub mod crd;
pub mod job;
pub mod names;
pub mod problem;
pub mod schema;
pub mod spec;
pub mod status;
pub mod values;

/// API group of every kind.
pub const GROUP: &str = "leat.dev";
/// Version of every kind.
pub const VERSION: &str = "v1alpha1";
