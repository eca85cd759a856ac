//! An Apache Kafka of one broker, in KRaft mode.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::process::{Program, free_port, tool, until};

/// A Java program of Kafka's, with a small heap.
pub fn java() -> Command {
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"]).arg(tool("LEAT_TEST_KAFKA").join("*"));
    command
}

/// Compiles `tests/kafka/Kafka.java` into a folder; answers a command that starts it.
pub fn clients(folder: &Path) -> impl Fn() -> Command + use<> {
    let libraries = tool("LEAT_TEST_KAFKA").join("*");
    let mut compiler = Command::new("javac");
    compiler.arg("-cp").arg(&libraries).arg("-d").arg(folder).arg(crate::repository().join("tests/kafka/Kafka.java"));
    let output = compiler.output().expect("javac starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let path = format!("{}:{}", libraries.display(), folder.display());
    move || {
        let mut command = Command::new("java");
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", &path, "Kafka"]);
        command
    }
}

/// Runs commands of `Kafka.java`, separated by `+`, as `client.properties` in a folder says; answers the lines that it prints.
pub fn ask(clients: &dyn Fn() -> Command, folder: &Path, commands: &str) -> Vec<Value> {
    let mut java = clients();
    let output = java.arg(folder.join("client.properties")).args(commands.split_whitespace()).output().expect("java starts");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{commands}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The text of a record's value.
pub fn value(line: &Value) -> String {
    let bytes = STANDARD.decode(line["value"].as_str().expect("a text")).expect("base64");
    String::from_utf8(bytes).expect("a text")
}

/// Starts a broker that clients reach at `address`, which may be an address of the machine or of a cluster's node.
pub async fn start(folder: &Path, address: &str, port: u16, controller: u16) -> Program {
    let file = configure(folder, address, port, controller, None);
    run(folder, address, port, &file).await
}

/// Ports of a broker besides: to three of them clients come by TLS, with a password, with a certificate, and with a token.
pub struct Doors {
    /// By SCRAM, user `leat` with the password `pass-word`.
    pub scram: u16,
    /// By a certificate.
    pub certificate: u16,
    /// By a token, which has to be shown again every two seconds.
    pub token: u16,
    /// Without TLS, by a road to it (port of the road, port behind it).
    pub road: (u16, u16),
}

impl Doors {
    /// At ports that are free.
    pub fn free() -> Self {
        Self { scram: free_port(), certificate: free_port(), token: free_port(), road: (free_port(), free_port()) }
    }
}

/// Sets a broker up; `doors`: with these, and certificates that [`certificates`] has made in the folder.
pub fn configure(folder: &Path, address: &str, port: u16, controller: u16, doors: Option<&Doors>) -> PathBuf {
    let file = folder.join("kafka.properties");
    let (mut listeners, mut advertised, mut protocols, mut more) = (String::new(), String::new(), String::new(), Vec::new());
    if let Some(doors) = doors {
        let Doors { scram, certificate, token, road: (road, behind) } = doors;
        let by_tls = format!(",WORD://{address}:{scram},CERTIFICATE://{address}:{certificate},TOKEN://{address}:{token}");
        (listeners, advertised) = (format!("{by_tls},ROAD://{address}:{behind}"), format!("{by_tls},ROAD://{address}:{road}"));
        protocols = ",WORD:SASL_SSL,CERTIFICATE:SSL,TOKEN:SASL_SSL,ROAD:PLAINTEXT".to_owned();
        let unsecured = "org.apache.kafka.common.security.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler";
        let login = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;";
        let inline = |name: &str| std::fs::read_to_string(folder.join(name)).expect("a certificate").trim_end().replace('\n', "\\n");
        more = vec![
            "sasl.enabled.mechanisms=SCRAM-SHA-256,SCRAM-SHA-512".to_owned(),
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.certificate.chain={}", inline("broker.crt")),
            format!("ssl.keystore.key={}", inline("broker.key")),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.certificates={}", inline("ca.crt")),
            "listener.name.certificate.ssl.client.auth=required".to_owned(),
            "listener.name.token.sasl.enabled.mechanisms=OAUTHBEARER".to_owned(),
            format!("listener.name.token.oauthbearer.sasl.jaas.config={login}"),
            format!("listener.name.token.oauthbearer.sasl.server.callback.handler.class={unsecured}"),
            "listener.name.token.oauthbearer.connections.max.reauth.ms=2000".to_owned(),
        ];
        for mechanism in ["sha-256", "sha-512"] {
            let login = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
            more.push(format!("listener.name.word.scram-{mechanism}.sasl.jaas.config={login}"));
        }
    }
    let settings = [
        "process.roles=broker,controller".to_owned(),
        "node.id=1".to_owned(),
        format!("controller.quorum.voters=1@{address}:{controller}"),
        "controller.listener.names=CONTROLLER".to_owned(),
        format!("listeners=PLAINTEXT://{address}:{port},CONTROLLER://{address}:{controller}{listeners}"),
        format!("advertised.listeners=PLAINTEXT://{address}:{port}{advertised}"),
        format!("listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT{protocols}"),
        format!("log.dirs={}", folder.join("kafka").display()),
        // One broker has no other to replicate to.
        "offsets.topic.replication.factor=1".to_owned(),
        "transaction.state.log.replication.factor=1".to_owned(),
        "transaction.state.log.min.isr=1".to_owned(),
        "share.coordinator.state.topic.replication.factor=1".to_owned(),
        "share.coordinator.state.topic.min.isr=1".to_owned(),
        "group.initial.rebalance.delay.ms=0".to_owned(),
        // Records of tests are old from the start.
        "log.retention.ms=-1".to_owned(),
        // A broker that comes back is not waited for by its session of before.
        "broker.session.timeout.ms=2000".to_owned(),
        "broker.heartbeat.interval.ms=500".to_owned(),
    ];
    std::fs::write(&file, [&settings[..], &more].concat().join("\n")).expect("a file");
    let mut format = java();
    format.args(["kafka.tools.StorageTool", "format", "-t", "bGVhdC10ZXN0LWNsdXN0ZXI", "-c"]).arg(&file);
    if doors.is_some() {
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            format.args(["--add-scram", &format!("{mechanism}=[name=leat,password=pass-word]")]);
        }
    }
    let output = format.stdin(Stdio::null()).output().expect("java starts");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    file
}

/// Makes authorities and certificates for a broker at an address and for a client, as PEM.
pub fn certificates(folder: &Path, address: &str) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().expect("openssl starts");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!("req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.crt"));
    for (name, names) in
        [("broker", format!("-addext subjectAltName=IP:{address}")), ("client", "-addext extendedKeyUsage=clientAuth".to_owned())]
    {
        openssl(&format!(
            "req -x509 -CA ca.crt -CAkey ca.key {key} -subj /CN={name} {names} -addext basicConstraints=CA:FALSE -keyout {name}.key -out {name}.crt"
        ));
    }
}

/// Starts a broker that was set up.
pub async fn run(folder: &Path, address: &str, port: u16, file: &Path) -> Program {
    let broker = Program::start("kafka", folder, java().arg("kafka.Kafka").arg(file));
    until("the broker", Duration::from_secs(60), async || tokio::net::TcpStream::connect((address, port)).await.map_err(|e| e.to_string()))
        .await;
    broker
}
