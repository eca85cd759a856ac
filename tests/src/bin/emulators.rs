//! `emulators`: the emulators of AWS, and Kafka, for a cluster on this machine. Writes where they are to
//! `endpoints.json` in its folder when all of them answer, and runs until it is told to stop.

use std::collections::BTreeMap;
use std::path::PathBuf;

use leat_tests::clouds::{Clouds, Kinesis};
use leat_tests::kafka;

/// Ports of Kafka: the broker's and the controller's.
const KAFKA: (u16, u16) = (9092, 9093);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1)).cloned();
    let (Some(address), Some(folder)) = (value("--address"), value("--folder").map(PathBuf::from)) else {
        eprintln!("emulators --address ADDRESS --folder FOLDER [--kafka]");
        std::process::exit(2);
    };
    let broker = async {
        if arguments.iter().any(|a| a == "--kafka") { Some(kafka::start(&folder, &address, KAFKA.0, KAFKA.1).await) } else { None }
    };
    let (clouds, broker) = tokio::join!(Clouds::start(&folder, Kinesis::Ferrokinesis, &address), broker);
    let mut endpoints: BTreeMap<&str, String> = clouds.endpoints.clone();
    if broker.is_some() {
        endpoints.insert("KAFKA_BOOTSTRAP_SERVERS", format!("{address}:{}", KAFKA.0));
    }
    // Whole or not at all: somebody waits for the file.
    let file = folder.join("endpoints.json");
    std::fs::write(file.with_extension("new"), serde_json::json!(endpoints).to_string()).expect("a file");
    std::fs::rename(file.with_extension("new"), file).expect("a file");
    tokio::signal::ctrl_c().await.expect("a signal");
}
