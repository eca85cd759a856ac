//! A seeded simulation of the delivery protocol: the real engine over simulated time, storage, log and network.
//!
//! One seed decides everything: which calls are lost, doubled or delayed, which tasks are killed, paused or robbed of
//! their lease, when shards split and merge, when the job changes. Afterwards what was committed is compared with a
//! plain batch computation over the same records.

pub mod joins;
pub mod oracle;
pub mod pipeline;
pub mod ports;
pub mod run;
pub mod world;
