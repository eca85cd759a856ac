//! Topics as sources and sinks against an Apache Kafka: what is read is what Kafka's own consumer reads, whatever producers,
//! brokers and operators of the cluster do; what is written, that consumer reads once; and a pipeline from topic to topic.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials as Keys;
use aws_credential_types::provider::SharedCredentialsProvider;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use leat_aws::{MskSigner, Retries, Target};
use leat_runtime::connectors::clock::SystemClock;
use leat_runtime::connectors::kafka::{Brokers, Credentials, KafkaSource, KafkaTopics, Mechanism, Sasl, Security, Tokens, Topic};
use leat_runtime::connectors::local::folder::{LocalFiles, LocalObjects};
use leat_runtime::connectors::local::store::Store;
use leat_runtime::connectors::local::streams::LocalLog;
use leat_runtime::connectors::local::written::LocalStreams;
use leat_runtime::engine::ports::{Begun, Place, PortError, Ports, Read, Source, Topics};
use leat_runtime::engine::task::Settings;
use leat_runtime::engine::worker::Worker;
use leat_runtime::output::TopicRecord;
use leat_runtime_core::begin::Known;
use leat_runtime_core::ledger::Counts;
use leat_runtime_core::position::{Lineage, Offset};
use leat_tests::duckdb;
use leat_tests::kafka::{self, Doors};
use leat_tests::process::{Program, free_port, tool, until};
use leat_tests::wires::Wires;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const ADDRESS: &str = "127.0.0.1";
/// Time of the first record that `Kafka.java` sends, ms.
const FIRST: i64 = 1_700_000_000_000;
/// Password of the user `leat`.
const PASSWORD: &str = "pass-word";

/// A broker, and Kafka's own clients.
struct Cluster {
    folder: PathBuf,
    port: u16,
    doors: Doors,
    configured: PathBuf,
    clients: Box<dyn Fn() -> Command>,
    broker: Program,
}

impl Cluster {
    async fn start(folder: &Path) -> Self {
        let (port, controller, doors) = (free_port(), free_port(), Doors::free());
        kafka::certificates(folder, ADDRESS);
        let configured = kafka::configure(folder, ADDRESS, port, controller, Some(&doors));
        let broker = kafka::run(folder, ADDRESS, port, &configured).await;
        std::fs::write(folder.join("client.properties"), format!("bootstrap.servers={ADDRESS}:{port}")).expect("a file");
        let clients = Box::new(kafka::clients(folder));
        Self { folder: folder.to_owned(), port, doors, configured, clients, broker }
    }

    /// Runs commands of `Kafka.java`, separated by `+`; answers the lines that it prints.
    fn run(&self, commands: &str) -> Vec<Value> {
        kafka::ask(&*self.clients, &self.folder, commands)
    }

    fn topic(&self, name: &str) -> Topic {
        self.topic_by(name, self.port, Security::default())
    }

    fn topic_by(&self, name: &str, port: u16, security: Security) -> Topic {
        Topic::new(vec![format!("{ADDRESS}:{port}")], security, name, Some("leat.analytics.test".to_owned()))
    }

    /// A source `s` that is a topic.
    fn source(&self, name: &str) -> KafkaSource {
        KafkaSource::new(BTreeMap::from([("s".to_owned(), self.topic(name))]))
    }

    /// The stream `w` is a topic that sinks write.
    fn sink(&self, name: &str) -> KafkaTopics {
        self.sink_by(name, self.port, Security::default())
    }

    fn sink_by(&self, name: &str, port: u16, security: Security) -> KafkaTopics {
        KafkaTopics::new(BTreeMap::from([("w".to_owned(), Brokers::new(vec![format!("{ADDRESS}:{port}")], security, name))]))
    }

    /// A folder with files of a secret.
    fn secret(&self, files: &[(&str, &str)]) -> Credentials {
        let folder = self.folder.join(format!("secret-{}", files.iter().map(|(name, _)| *name).collect::<String>()));
        std::fs::create_dir_all(&folder).expect("a folder");
        for (name, text) in files {
            std::fs::write(folder.join(name), text).expect("a file");
        }
        Credentials(Some(folder))
    }

    fn pem(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).expect("a certificate")
    }
}

/// A record: offset, time, key and value.
type Record = (u64, i64, Vec<u8>, Vec<u8>);

fn records(read: &Read) -> Vec<Record> {
    let batch = &read.batch;
    let number = |at: Offset| at.number().expect("an offset of Kafka");
    (0..batch.len())
        .map(|i| (number(batch.positions[i]), batch.arrivals[i], batch.key(i).unwrap_or_default().to_vec(), batch.record(i).to_vec()))
        .collect()
}

/// All that is there behind a place.
async fn read_all(source: &dyn Source, lineage: &Lineage, mut from: Place) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let read = source.read(lineage, from).await.expect("records");
        assert!(!read.end && read.children.is_empty(), "a partition has no end");
        all.extend(records(&read));
        match read.scanned.map(Place::After).filter(|place| *place != from) {
            None => return all,
            Some(next) => from = next,
        }
    }
}

/// All that a source begun at a time reads of a partition; `None`: now.
async fn read_since(source: &KafkaSource, lineage: &Lineage, time: Option<i64>) -> Vec<Record> {
    let known: BTreeMap<String, Known> = source.at_time("s", time).await.expect("offsets").into_iter().collect();
    match known[lineage.partition()] {
        Known::Behind(at) => read_all(source, lineage, Place::Inside(at)).await,
        _ => read_all(source, lineage, Place::Oldest).await,
    }
}

/// What Kafka's own consumer says is in a partition.
fn said(lines: &[Value], partition: &str) -> Vec<Record> {
    let bytes = |line: &Value, name: &str| STANDARD.decode(line[name].as_str().expect("a text")).expect("base64");
    lines
        .iter()
        .filter(|line| line["partition"].as_u64() == partition.parse().ok())
        .map(|l| (l["offset"].as_u64().expect("an offset"), l["time"].as_i64().expect("a time"), bytes(l, "key"), bytes(l, "value")))
        .collect()
}

async fn lineages(source: &dyn Source) -> Vec<Lineage> {
    source.shards("s").await.expect("partitions").into_iter().map(|shard| shard.lineage).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_is_read_as_kafka_s_own_consumer_reads_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::start(folder.path()).await;
    part("every record", every_record(&cluster)).await;
    part("any place", any_place(&cluster)).await;
    part("a group", a_group(&cluster)).await;
    part("by tls", by_tls(&cluster)).await;
    part("by token", by_token(&cluster)).await;
    part("another topic", another_topic(&cluster)).await;
    part("records gone", records_gone(&cluster)).await;
    part("transactions", transactions(&cluster)).await;
    part("marks", marks(&cluster)).await;
    part("a pipeline", a_pipeline(&mut cluster)).await;
}

/// Says how long a part took.
async fn part(name: &str, part: impl Future<Output = ()>) {
    let started = std::time::Instant::now();
    part.await;
    println!("{:6.1} s  {name}", started.elapsed().as_secs_f64());
}

/// All codecs, transactions that overlap, tombstones, times that the broker gives, batches that are larger than an answer.
async fn every_record(cluster: &Cluster) {
    let lines = cluster.run(
        "topic every 3 cleanup.policy=compact + send every 0 200 none + send every 0 200 gzip + send every 0 200 snappy + send every 0 200 lz4 \
         + send every 0 200 zstd + mix every 0 + mix every 1 + gone every 1 + send every 1 2000 zstd + read every",
    );
    let by_broker = cluster.run("topic appended 1 message.timestamp.type=LogAppendTime + send appended 0 50 gzip + read appended");
    for (name, lines) in [("every", &lines), ("appended", &by_broker)] {
        let source = cluster.source(name);
        // Answers of some bytes, which most batches exceed.
        let small = KafkaSource::new(BTreeMap::from([("s".to_owned(), cluster.topic(name).with_fetch_bytes(6_000))]));
        for lineage in lineages(&source).await {
            let expected = said(lines, lineage.partition());
            assert_eq!(read_all(&small, &lineage, Place::Oldest).await, expected, "{lineage}, in small answers");
            let all = read_all(&source, &lineage, Place::Oldest).await;
            assert_eq!(all.len(), expected.len(), "{lineage}");
            assert_eq!(all, expected, "{lineage}");
            assert!(source.read(&lineage, Place::Oldest).await.expect("records").batch.len() >= all.len().min(1), "it is read again");
        }
    }
    let mixed = said(&lines, "1");
    assert_eq!(mixed.len(), 10 * 7 + 1 + 2_000, "what was aborted is not there");
    assert!(mixed.windows(2).any(|w| w[0].0 + 1 < w[1].0), "offsets have gaps");
    assert!(mixed.iter().any(|(.., value)| value.is_empty()) && said(&lines, "2").is_empty());
}

/// Behind each record, in the middle of batches and at the end; by time.
async fn any_place(cluster: &Cluster) {
    let all = said(&cluster.run("topic places 1 + send places 0 300 lz4 + mix places 0 + read places"), "0");
    let source = cluster.source("places");
    let lineage = lineages(&source).await.remove(0);
    for at in [0, 1, 7, 150, 299, 300, 301, all.len() - 2, all.len() - 1] {
        // One that has just read elsewhere, and a fresh one.
        for reader in [&source, &cluster.source("places")] {
            let behind = read_all(reader, &lineage, Place::After(Offset::new(all[at].0))).await;
            assert_eq!(behind, all[at + 1..], "behind {at}");
        }
    }
    // The end of a transaction has a time too, so this is a topic without.
    let timed = said(&cluster.run("topic timed 1 + send timed 0 300 lz4 10 + read timed"), "0");
    let by_time = cluster.source("timed");
    let of_it = lineages(&by_time).await.remove(0);
    for (time, first) in [(0, 0), (FIRST, 0), (FIRST + 995, 100), (FIRST + 2_990, 299), (FIRST + 100_000, 300)] {
        let since = read_since(&by_time, &of_it, Some(time)).await;
        assert_eq!(since, timed[first..], "since {time}");
    }
    assert!(read_since(&by_time, &of_it, None).await.is_empty());
    let ahead = by_time.at_time("s", Some(FIRST * 2)).await;
    assert!(matches!(&ahead, Err(PortError::Fatal(why)) if why.contains("lies ahead")), "{ahead:?}");
    // What comes later is found by whoever waits for it.
    let last = Offset::new(all[all.len() - 1].0);
    assert!(source.read(&lineage, Place::After(last)).await.expect("an answer").batch.is_empty());
    cluster.run("send places 0 5 none");
    let more = until("the records that came", PATIENCE, async || {
        let more = records(&source.read(&lineage, Place::After(last)).await.expect("an answer"));
        if more.is_empty() { Err("none".to_owned()) } else { Ok(more) }
    })
    .await;
    assert_eq!(more.first().map(|r| r.2.clone()), Some(b"none0".to_vec()));
}

/// Where a group of other consumers stands, and where tools see that this one does.
async fn a_group(cluster: &Cluster) {
    cluster.run(
        "topic grouped 3 + send grouped 0 40 none + send grouped 1 40 none + send grouped 2 40 none + commit grouped theirs 0 17 \
         + commit grouped theirs 1 0",
    );
    let source = cluster.source("grouped");
    let known: BTreeMap<String, Known> = source.standing("s", "theirs").await.expect("offsets").into_iter().collect();
    let expected = [("0".to_owned(), Known::Behind(Offset::new(16))), ("1".to_owned(), Known::Nothing)];
    assert_eq!(known, BTreeMap::from(expected));
    let nobody = source.standing("s", "nobody").await;
    assert!(matches!(&nobody, Err(PortError::Fatal(why)) if why.contains("nobody has committed no offset")), "{nobody:?}");
    let lineage = lineages(&source).await.remove(0);
    assert_eq!(source.probe(&lineage, Place::Inside(Offset::new(16))).await, Ok(()));
    let beyond = source.probe(&lineage, Place::Inside(Offset::new(100))).await;
    assert!(matches!(&beyond, Err(PortError::Fatal(why)) if why.contains("the records 0 to 39")), "{beyond:?}");
    source.show_cut(&lineage, Offset::new(25)).await.expect("committed");
    let committed = cluster.run("committed grouped leat.analytics.test");
    assert_eq!(committed, [serde_json::json!({"partition": 0, "offset": 26})]);
    // A partition more is one more lineage.
    cluster.run("grow grouped 4");
    let grown = cluster.source("grouped");
    let four = until("the new partition", PATIENCE, async || {
        let found = lineages(&grown).await;
        if found.len() == 4 { Ok(found) } else { Err(format!("{found:?}")) }
    });
    let names: BTreeSet<String> = four.await.iter().map(|l| l.partition().to_owned()).collect();
    assert_eq!(names, ["0", "1", "2", "3"].map(str::to_owned).into());
}

/// Encrypted; by user name and password; by certificate. Whoever is not let in is told why.
async fn by_tls(cluster: &Cluster) {
    let lines = cluster.run("topic closed 1 + send closed 0 30 zstd + read closed");
    let (ca, word) = (cluster.pem("ca.crt"), [("username", "leat"), ("password", PASSWORD)]);
    let tls = || Some(cluster.secret(&[("ca.crt", &ca)]));
    let read = async |port, security| {
        let source = KafkaSource::new(BTreeMap::from([("s".to_owned(), cluster.topic_by("closed", port, security))]));
        let lineage = source.shards("s").await?.remove(0).lineage;
        Ok::<_, PortError>(records(&source.read(&lineage, Place::Oldest).await?))
    };
    for mechanism in [Mechanism::Sha256, Mechanism::Sha512] {
        let security = Security { tls: tls(), sasl: Some(Sasl::Scram(mechanism, cluster.secret(&word))) };
        assert_eq!(read(cluster.doors.scram, security).await, Ok(said(&lines, "0")), "{mechanism:?}");
    }
    let (chain, key) = (cluster.pem("client.crt"), cluster.pem("client.key"));
    let shown = || cluster.secret(&[("ca.crt", &ca), ("tls.crt", &chain), ("tls.key", &key)]);
    assert_eq!(read(cluster.doors.certificate, Security { tls: Some(shown()), sasl: None }).await, Ok(said(&lines, "0")));

    let wrong = [("username", "leat"), ("password", "wrong")];
    let refused =
        read(cluster.doors.scram, Security { tls: tls(), sasl: Some(Sasl::Scram(Mechanism::Sha512, cluster.secret(&wrong))) }).await;
    assert!(matches!(&refused, Err(PortError::Fatal(why)) if why.contains("does not let this worker in")), "{refused:?}");
    let stranger = Security { tls: Some(Credentials::default()), sasl: Some(Sasl::Scram(Mechanism::Sha512, cluster.secret(&word))) };
    let stranger = read(cluster.doors.scram, stranger).await;
    assert!(matches!(&stranger, Err(PortError::Unclear(why)) if why.contains("no TLS")), "{stranger:?}");
    let nobody = read(cluster.doors.certificate, Security { tls: tls(), sasl: None }).await;
    assert!(matches!(&nobody, Err(PortError::Unclear(_))), "{nobody:?}");
    let missing = Security { tls: tls(), sasl: Some(Sasl::Scram(Mechanism::Sha512, cluster.secret(&[("username", "leat")]))) };
    let missing = read(cluster.doors.scram, missing).await;
    assert!(matches!(&missing, Err(PortError::Fatal(why)) if why.contains("has no `password`")), "{missing:?}");
}

/// Tokens as a broker takes them that is told to take those of nobody: JSON Web Tokens without a signature.
#[derive(Debug, Default)]
struct Unsigned {
    given: AtomicUsize,
    /// How long before now they ended, s.
    old: u64,
}

impl Tokens for Unsigned {
    fn token(&self) -> BoxFuture<'_, Result<String, PortError>> {
        self.given.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time").as_secs();
        let end = if self.old == 0 { now + 600 } else { now - self.old };
        let part = |json: Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let claims = serde_json::json!({"sub": "leat", "iat": end - 600, "exp": end});
        let token = format!("{}.{}.", part(serde_json::json!({"alg": "none"})), part(claims));
        Box::pin(async { Ok(token) })
    }
}

/// By tokens, again and again on one connection; one that has ended is refused.
async fn by_token(cluster: &Cluster) {
    let lines = cluster.run("topic shown 1 + send shown 0 30 zstd + read shown");
    let ca = cluster.pem("ca.crt");
    let source = |tokens: Arc<dyn Tokens>| {
        let security = Security { tls: Some(cluster.secret(&[("ca.crt", &ca)])), sasl: Some(Sasl::Bearer(tokens)) };
        KafkaSource::new(BTreeMap::from([("s".to_owned(), cluster.topic_by("shown", cluster.doors.token, security))]))
    };
    let tokens = Arc::new(Unsigned::default());
    let fresh = source(Arc::clone(&tokens) as Arc<dyn Tokens>);
    let lineage = lineages(&fresh).await.remove(0);
    let read = fresh.read(&lineage, Place::Oldest).await.expect("records");
    assert_eq!(records(&read), said(&lines, "0"));
    // The broker ends connections that have not said for two seconds who they are; each of these waits for half a second.
    let (place, given) = (Place::After(*read.batch.positions.last().expect("a record")), tokens.given.load(Ordering::Relaxed));
    for _ in 0..12 {
        assert!(fresh.read(&lineage, place).await.expect("no records").batch.is_empty());
    }
    assert!(tokens.given.load(Ordering::Relaxed) >= given + 2);
    let refused = source(Arc::new(Unsigned { old: 3_600, ..Unsigned::default() })).shards("s").await;
    assert!(matches!(&refused, Err(PortError::Fatal(why)) if why.contains("the token was refused")), "{refused:?}");
}

const TOKEN: &str = "
import json, sys, urllib.parse, base64
from aws_msk_iam_sasl_signer import MSKAuthTokenProvider
token, expires = MSKAuthTokenProvider.generate_auth_token(sys.argv[1])
print(json.dumps([token, expires]))
";

/// A token is that of AWS's own library for the same time and key; only who asks has another name.
#[tokio::test]
async fn tokens_for_amazon_msk_are_those_of_its_own_library() {
    let parts = |token: &str| {
        let url = String::from_utf8(URL_SAFE_NO_PAD.decode(token).expect("base64")).expect("a text");
        let (host, query) = url.split_once('?').expect("a query");
        let fields = query.split('&').map(|field| field.split_once('=').expect("a field"));
        (host.to_owned(), fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect::<BTreeMap<_, _>>())
    };
    for (region, session) in [("eu-central-1", None), ("us-east-1", Some("a/session+token=="))] {
        let credentials = Keys::new("AKIDEXAMPLE", "a-secret/of+nobody", session.map(str::to_owned), None, "test");
        let mut environment = vec![("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "a-secret/of+nobody")];
        environment.extend(session.map(|session| ("AWS_SESSION_TOKEN", session)));
        let mut python = Command::new(tool("LEAT_TEST_PYTHON"));
        let output = python.args(["-c", TOKEN, region]).envs(environment).output().expect("Python starts");
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        let (theirs, ends) = (parts(said[0].as_str().expect("a token")), said[1].as_u64().expect("a time"));
        // It was made a quarter of an hour before its end.
        let made = SystemTime::UNIX_EPOCH + Duration::from_millis(ends) - Duration::from_secs(900);
        let target = Target { region: Some(region.to_owned()), ..Target::default() };
        let config = leat_aws::connect(&target, Retries::Caller).await.into_builder();
        let config = config.credentials_provider(SharedCredentialsProvider::new(credentials)).build();
        let ours = parts(&MskSigner::of(&config).token(made).await.expect("a token"));
        let name = "User-Agent";
        assert!(theirs.1[name].starts_with("aws-msk-iam-sasl-signer-python") && ours.1[name].starts_with("leat%2F"), "{ours:?}");
        let signed = |(host, mut fields): (String, BTreeMap<String, String>)| (host, fields.remove(name), fields);
        let (ours, theirs) = (signed(ours), signed(theirs));
        assert_eq!((&ours.0, &ours.2), (&theirs.0, &theirs.2));
        assert_eq!(ours.2.contains_key("X-Amz-Security-Token"), session.is_some());
        assert_eq!(ours.2["X-Amz-Signature"].len(), 64);
    }
}

/// A topic that was deleted and made again is another one, for who is reading it and for who begins.
async fn another_topic(cluster: &Cluster) {
    cluster.run("topic again 1 + send again 0 20 none");
    let source = cluster.source("again");
    let before = lineages(&source).await.remove(0);
    let last = Place::After(Offset::new(9));
    assert_eq!(records(&source.read(&before, last).await.expect("records")).len(), 10);
    cluster.run("remove again + topic again 1 + send again 0 40 none");
    for reader in [&source, &cluster.source("again")] {
        let refused =
            until("the topic to be another", PATIENCE, async || match reader.read(&before, Place::After(Offset::new(19))).await {
                Err(PortError::Fatal(why)) => Ok(why),
                other => Err(format!("{other:?}")),
            });
        assert!(refused.await.contains("deleted and made again"));
    }
    let fresh = cluster.source("again");
    let after = lineages(&fresh).await.remove(0);
    assert_ne!(before, after);
    assert_eq!(read_all(&fresh, &after, Place::Oldest).await.len(), 40);
}

/// Records that were kept for less long than nobody read them are not skipped in silence.
async fn records_gone(cluster: &Cluster) {
    cluster.run("topic trimmed 1 + send trimmed 0 100 none + trim trimmed 0 60");
    let source = cluster.source("trimmed");
    let lineage = lineages(&source).await.remove(0);
    let gone = source.read(&lineage, Place::After(Offset::new(9))).await;
    assert!(matches!(&gone, Err(PortError::Fatal(why)) if why.contains("the records 10 to 59 are gone")), "{gone:?}");
    assert_eq!(records(&source.read(&lineage, Place::After(Offset::new(59))).await.expect("records")).len(), 40);
    assert_eq!(read_all(&source, &lineage, Place::Oldest).await.first().map(|r| r.0), Some(60));
    // The end of a transaction is no record: that it is gone too is nobody's loss.
    let all = said(&cluster.run("topic marked 1 + mix marked 0 + read marked"), "0");
    let source = cluster.source("marked");
    let marked = lineages(&source).await.remove(0);
    let last = all[all.len() - 1].0;
    let read = source.read(&marked, Place::After(Offset::new(last - 1))).await.expect("records");
    let scanned = read.scanned.expect("it says how far it looked");
    assert!(scanned > Offset::new(last), "{scanned}");
    cluster.run(&format!("mix marked 0 + trim marked 0 {}", scanned.number().expect("an offset") + 1));
    for reader in [&source, &cluster.source("marked")] {
        assert_eq!(reader.read(&marked, Place::After(scanned)).await.map(|r| r.batch.is_empty()), Ok(false), "behind the marker");
    }
    let source = cluster.source("trimmed");
    let beyond = source.read(&lineage, Place::After(Offset::new(500))).await;
    assert!(matches!(&beyond, Err(PortError::Fatal(why)) if why.contains("was cut back")), "{beyond:?}");
}

/// The ids in Parquet files, sorted as texts in quotes are.
const IDS: &str = "
import sys, json, duckdb
rows = duckdb.sql(f\"select id from read_parquet('{sys.argv[1]}')\").fetchall()
print(json.dumps(sorted((r[0] for r in rows), key=lambda id: json.dumps(id))))
";

fn record(key: Option<&str>, value: String) -> TopicRecord {
    TopicRecord { key: key.map(|key| key.to_owned().into()), value: value.into() }
}

/// Keys and values as Kafka's own consumer reads them.
fn pairs(cluster: &Cluster, topic: &str) -> Vec<(u64, String, String)> {
    let lines = cluster.run(&format!("read {topic}"));
    let text =
        |line: &Value, name: &str| STANDARD.decode(line[name].as_str().expect("a text")).map(|b| String::from_utf8_lossy(&b).into_owned());
    lines
        .iter()
        .map(|l| (l["partition"].as_u64().expect("a number"), text(l, "key").expect("a key"), text(l, "value").expect("a value")))
        .collect()
}

/// Records of a transaction are there together, where Kafka's own producer would put them; who begins later keeps out who began
/// before.
async fn transactions(cluster: &Cluster) {
    cluster.run("topic written 5 + topic spread 5 + spread spread 300 + topic large 1");
    let sink = cluster.sink("written");
    let Begun { mark, writer: mut first } = sink.begin("w", "leat.test.first").await.expect("it begins");
    assert_eq!(mark, None);
    first.commit(&[], "nothing").await.expect("a mark");
    let keyed: Vec<TopicRecord> = (0..300).map(|i| record(Some(&format!("key-{i}")), format!("value {i}"))).collect();
    first.commit(&keyed[..100], "record 1").await.expect("committed");
    first.commit(&keyed[100..], "record 2").await.expect("committed");
    let (mut here, mut there) = (pairs(cluster, "written"), pairs(cluster, "spread"));
    assert_eq!(here.len(), 300);
    let order = |rows: &[(u64, String, String)], partition| -> Vec<String> {
        rows.iter().filter(|r| r.0 == partition).map(|r| r.2.clone()).collect()
    };
    for partition in 0..5 {
        let numbers: Vec<u32> = order(&here, partition).iter().map(|v| v[6..].parse().expect("a number")).collect();
        assert!(!numbers.is_empty() && numbers.is_sorted(), "records of a partition are in their order");
    }
    here.sort();
    there.sort();
    assert_eq!(here, there, "each where Kafka's own producer puts it");

    let Begun { mark, writer: mut second } = sink.begin("w", "leat.test.first").await.expect("it begins");
    assert_eq!(mark.as_deref(), Some("record 2"));
    let late = first.commit(&[record(None, "a zombie".to_owned())], "record 9").await;
    assert!(matches!(&late, Err(PortError::Unclear(why)) if why.contains("Epoch") || why.contains("Fenced")), "{late:?}");
    // Many, and large ones: several batches in one transaction. One without a key is anywhere.
    let many: Vec<TopicRecord> = (0..3_000).map(|i| record((i % 2 == 0).then_some("k"), format!("{i:08}{}", "x".repeat(1_000)))).collect();
    second.commit(&many, "record 3").await.expect("committed");
    second.commit(&[record(Some("k"), "y".repeat(1_000_000))], "record 4").await.expect("committed");
    let all = pairs(cluster, "written");
    assert_eq!(all.len(), 300 + 3_000 + 1, "nothing of the zombie's");
    let halves: Vec<u32> = all.iter().filter(|r| r.1 == "k" && r.2.starts_with('0')).map(|r| r.2[..8].parse().expect("a number")).collect();
    assert_eq!(halves, (0..3_000).step_by(2).collect::<Vec<u32>>());
    // Bytes that no codec makes smaller.
    let mut state = 1u64;
    let noise: String = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b' ' + (state >> 57) as u8 % 95)
    })
    .take(3_000_000)
    .collect();
    let Begun { writer: mut large, .. } = cluster.sink("large").begin("w", "leat.test.large").await.expect("it begins");
    let refused = large.commit(&[record(None, noise)], "record 1").await;
    assert!(matches!(&refused, Err(PortError::Fatal(why)) if why.contains("max.message.bytes")), "{refused:?}");
    let missing = cluster.sink("missing").begin("w", "leat.test.missing").await.err();
    assert!(matches!(&missing, Some(PortError::Unclear(why)) if why.contains("missing")), "{missing:?}");
}

/// What was begun and not committed is not there; marks outlast who made them, and tools can take them back.
async fn marks(cluster: &Cluster) {
    cluster.run("topic noted 2");
    let security = || {
        let files = [("ca.crt", cluster.pem("ca.crt")), ("username", "leat".to_owned()), ("password", PASSWORD.to_owned())];
        let secret = cluster.secret(&files.each_ref().map(|(name, text)| (*name, text.as_str())));
        Security { tls: Some(secret.clone()), sasl: Some(Sasl::Scram(Mechanism::Sha512, secret)) }
    };
    for (n, mark) in
        ["record 1", "job 2 cut 3", "record 49590338271490256608559692538361571095921575989136588898.7"].into_iter().enumerate()
    {
        let Begun { mut writer, mark: before } =
            cluster.sink_by("noted", cluster.doors.scram, security()).begin("w", "leat.test.marks").await.expect("it begins");
        assert_eq!(before.is_some(), n > 0);
        writer.commit(&[record(Some("k"), format!("value {n}"))], mark).await.expect("committed");
        let begun = cluster.sink("noted").begin("w", "leat.test.marks").await.expect("it begins");
        assert_eq!(begun.mark.as_deref(), Some(mark));
        let other = cluster.sink("noted").begin("w", &format!("leat.test.others.{n}")).await.expect("it begins");
        assert_eq!(other.mark, None, "another writer has marks of its own");
    }
    assert_eq!(pairs(cluster, "noted").len(), 3);
    cluster.run("commit noted leat.test.marks 0 0");
    assert_eq!(cluster.sink("noted").begin("w", "leat.test.marks").await.expect("it begins").mark.as_deref(), Some("nothing"));
    cluster.run("forget noted leat.test.marks");
    assert_eq!(cluster.sink("noted").begin("w", "leat.test.marks").await.expect("it begins").mark, None);
}

/// A pipeline from topic to topic: workers are stopped, the broker is killed, partitions come; each record is delivered once.
async fn a_pipeline(cluster: &mut Cluster) {
    const MANIFEST: &str = "apiVersion: leat.dev/v1alpha1\nkind: StreamingPipeline\nmetadata: {name: topic, namespace: analytics}\nspec:\n  \
         storage: {location: \"s3://example-leat/\"}\n  streams:\n    \
         - {name: t, management: ObserveOnly, kafka: {cluster: {bootstrapServers: [\"localhost:9092\"]}, topic: piped}}\n    \
         - {name: w, management: ObserveOnly, kafka: {cluster: {bootstrapServers: [\"localhost:9092\"]}, topic: copied}}\n  \
         sources:\n    - {name: events, stream: t, format: Json, columns: {id: VARCHAR}}\n  sinks:\n    \
         - {name: out, from: [events], s3: {location: \"s3://example-lake/topic/\", format: Parquet, roll: {interval: 1s}}}\n    \
         - {name: copy, from: [events], stream: {name: w, partitionBy: id}}\n  \
         deadLetter: {s3: {location: \"s3://example-lake/topic-dead/\"}}\n";
    let documents = leat::manifest::documents("pipeline.yaml", MANIFEST).expect("YAML");
    let program = Arc::new(leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline").program);
    cluster.run("topic copied 3 + topic piped 2 + send piped 0 500 zstd + mix piped 0 + gone piped 0 + send piped 1 500 none");
    let folder = cluster.folder.join("pipeline");
    std::fs::create_dir(&folder).expect("a folder");
    let store = Arc::new(Store::open(&folder.join("state.redb")).expect("a store"));
    // Its connections end in the middle of requests and answers.
    let (road, behind) = cluster.doors.road;
    let wires = Wires::to(ADDRESS, road, behind, 7, 200_000).await;
    let topic = cluster.topic_by("piped", road, Security::default());
    let ports = Ports {
        rows: Arc::clone(&store) as _,
        objects: Arc::new(LocalObjects::new(&folder.join("objects"))),
        files: Arc::new(LocalFiles::new(&folder.join("s3"), &folder.join("uploads"), "one")),
        log: Arc::new(LocalLog::open(&folder.join("log"), 1).expect("a log")),
        source: Arc::new(KafkaSource::new(BTreeMap::from([("events".to_owned(), topic)]))),
        tables: store,
        streams: Arc::new(LocalStreams::new(&folder.join("written"))),
        topics: Arc::new(cluster.sink_by("copied", road, Security::default())),
        clock: Arc::new(SystemClock),
        unclear: Arc::default(),
        memory: Arc::default(),
    };
    let worker =
        |session: &str| Worker::new(ports.clone(), Settings::default(), session.to_owned(), Arc::clone(&program), 1, 2).expect("a worker");
    let taken = |worker: &Worker| worker.shared.sources().values().map(|p| p.taken).sum::<u64>();
    let mut first = worker("one-1");
    first.register().await.expect("registered");
    until("half of the records", PATIENCE, async || {
        first.round().await.map_err(|e| e.to_string())?;
        if taken(&first) >= 300 { Ok(()) } else { Err(format!("{} taken", taken(&first))) }
    })
    .await;
    // Gone in the middle: what it had taken and not cut is read again.
    first.stop();
    let mut second = worker("two-2");
    second.round().await.expect("a round");
    cluster.broker.kill();
    second.round().await.expect("workers wait for brokers");
    cluster.broker = kafka::run(&cluster.folder, ADDRESS, cluster.port, &cluster.configured).await;
    cluster.run("grow piped 3 + send piped 2 300 gzip");
    let lines = cluster.run("read piped");
    until("all records", PATIENCE, async || {
        second.round().await.map_err(|e| e.to_string())?;
        if taken(&second) == lines.len() as u64 { Ok(()) } else { Err(format!("{} of {} taken", taken(&second), lines.len())) }
    })
    .await;
    // What it says that it has taken, tools see at the broker.
    let shown = until("the group's offsets", PATIENCE, async || {
        second.round().await.map_err(|e| e.to_string())?;
        let shown = cluster.run("committed piped leat.analytics.test");
        if shown.len() == 3 { Ok(shown) } else { Err(format!("{shown:?}")) }
    });
    assert!(shown.await.iter().all(|s| s["offset"].as_u64() > Some(0)));
    let id = |line: &Value| serde_json::from_str::<Value>(&kafka::value(line)).expect("JSON")["id"].clone();
    let mut sent: Vec<Value> = lines.iter().filter(|l| l["value"] != "").map(id).collect();
    sent.sort_by_key(ToString::to_string);
    let files = folder.join("s3/example-lake/topic/**/*.parquet").display().to_string();
    let delivered = until("all files", PATIENCE, async || {
        second.round().await.map_err(|e| e.to_string())?;
        let ids = duckdb(IDS, &[&files])?.as_array().cloned().unwrap_or_default();
        if ids.len() >= sent.len() { Ok(ids) } else { Err(format!("{} of {} are there", ids.len(), sent.len())) }
    })
    .await;
    assert_eq!(delivered.len(), sent.len(), "nothing twice");
    assert_eq!(delivered, sent);
    // Kafka's own consumer finds each row in the other topic, once.
    let copied = until("the other topic", PATIENCE, async || {
        second.round().await.map_err(|e| e.to_string())?;
        let copied = cluster.run("read copied");
        if copied.len() >= sent.len() { Ok(copied) } else { Err(format!("{} of {} are there", copied.len(), sent.len())) }
    });
    let mut copied: Vec<Value> = copied.await.iter().map(id).collect();
    copied.sort_by_key(ToString::to_string);
    assert_eq!(copied, sent);
    let rejects: u64 = second.shared.sources().values().flat_map(|p| p.ledger.0.values().map(Counts::rejects).collect::<Vec<_>>()).sum();
    assert_eq!(rejects, 1, "a record without value is no row; it is in the dead letters");
    second.leave(30_000).await.expect("it drains");
    let cut = wires.cut.load(Ordering::Relaxed);
    assert!(cut > 3, "{cut} connections ended on the way");
}
