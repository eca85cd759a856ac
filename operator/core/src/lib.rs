//! What a pipeline needs, and what has to change for it: pure, the same for the cloud and for the laptop.

pub mod children;
pub mod desired;
pub mod election;
pub mod plan;
pub mod pod;
pub mod report;
pub mod resource;
pub mod validate;
