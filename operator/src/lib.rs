//! The operator: what a pipeline needs is made real and kept true. Decisions are made in `leat-operator-core`; here are
//! the calls to AWS and to Kubernetes, and the loop that makes them.

pub mod clouds;
pub mod controller;
pub mod election;
pub mod events;
pub mod pass;
pub mod providers;
pub mod web;
pub mod workers;
