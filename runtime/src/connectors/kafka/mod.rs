//! Kafka: topics that a pipeline reads and writes. The messages of the protocol come from `kafka-protocol`, which is generated from
//! Kafka's own definitions; connections are ours, because records have to be asked for by the topic's id (KIP-516): a topic
//! that was deleted and made again is another one. Needs Kafka 3.1.

mod brokers;
mod connection;
pub mod records;
mod scram;
mod sink;
mod source;

pub use brokers::Brokers;
pub use connection::{Credentials, Sasl, Security, Tokens};
pub use scram::Mechanism;
pub use sink::KafkaTopics;
pub use source::{KafkaSource, Topic};
