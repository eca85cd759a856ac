//! An Apache Kafka of one broker, in KRaft mode.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{Program, tool, until};

/// A Java program of Kafka's, with a small heap.
pub fn java() -> Command {
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]).arg(tool("LEAT_TEST_KAFKA").join("*"));
    command
}

/// Starts a broker that clients reach at `address`, which may be an address of the machine or of a cluster's node.
pub async fn start(folder: &Path, address: &str, port: u16, controller: u16) -> Program {
    let file = folder.join("kafka.properties");
    let settings = [
        "process.roles=broker,controller".to_owned(),
        "node.id=1".to_owned(),
        format!("controller.quorum.voters=1@{address}:{controller}"),
        "controller.listener.names=CONTROLLER".to_owned(),
        format!("listeners=PLAINTEXT://{address}:{port},CONTROLLER://{address}:{controller}"),
        format!("advertised.listeners=PLAINTEXT://{address}:{port}"),
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT".to_owned(),
        format!("log.dirs={}", folder.join("kafka").display()),
        // One broker has no other to replicate to.
        "offsets.topic.replication.factor=1".to_owned(),
        "transaction.state.log.replication.factor=1".to_owned(),
        "transaction.state.log.min.isr=1".to_owned(),
        "share.coordinator.state.topic.replication.factor=1".to_owned(),
        "share.coordinator.state.topic.min.isr=1".to_owned(),
        "group.initial.rebalance.delay.ms=0".to_owned(),
    ];
    std::fs::write(&file, settings.join("\n")).expect("a file");
    let mut format = java();
    format.args(["kafka.tools.StorageTool", "format", "-t", "bGVhdC10ZXN0LWNsdXN0ZXI", "-c"]).arg(&file);
    let output = format.stdin(Stdio::null()).output().expect("java starts");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let broker = Program::start("kafka", folder, java().arg("kafka.Kafka").arg(&file));
    until("the broker", Duration::from_secs(60), async || tokio::net::TcpStream::connect((address, port)).await.map_err(|e| e.to_string()))
        .await;
    broker
}
