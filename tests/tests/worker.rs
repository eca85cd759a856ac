//! A worker where the world is not as it should be: its job has not arrived, its lease table answers nothing clear, rows of
//! others lie in it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use leat_compile::program::Program;
use leat_runtime::connectors::clock::SystemClock;
use leat_runtime::connectors::local::folder::{LocalFiles, LocalObjects};
use leat_runtime::connectors::local::shard::Record;
use leat_runtime::connectors::local::store::Store;
use leat_runtime::connectors::local::streams::{LocalLog, LocalSource, LocalStream};
use leat_runtime::connectors::local::written::LocalStreams;
use leat_runtime::engine::coordinator::{self, Begins};
use leat_runtime::engine::looks::Looks;
use leat_runtime::engine::ports::{Call, Place, PortError, Ports, Read, Rows, Shard, Source, StoredRow};
use leat_runtime::engine::task::{Settings, decode};
use leat_runtime::engine::worker::Worker;
use leat_runtime_core::begin::Known;
use leat_runtime_core::path;
use leat_runtime_core::position::Lineage;
use leat_runtime_core::row::{Expect, Fence, SourceRow};
use leat_runtime_core::rules::Rules;
use leat_tests::process::{Program as Process, free_port, until};
use leat_tests::program;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

fn compiled(name: &str) -> Program {
    with_source(name, "")
}

/// The same, with more said of its source.
fn with_source(name: &str, more: &str) -> Program {
    with_sources(name, more, "")
}

/// The same, with another source of its stream.
fn with_sources(name: &str, more: &str, another: &str) -> Program {
    let text = format!(
        "apiVersion: leat.dev/v1alpha1\nkind: StreamingPipeline\nmetadata: {{name: {name}, namespace: analytics}}\nspec:\n  \
         storage: {{location: \"s3://example-leat/\"}}\n  streams:\n    - {{name: s, kinesis: {{streamName: {name}-s, shards: {{initial: 2}}}}}}\n  \
         sources:\n    - {{name: events, stream: s, {more}format: Json, columns: {{id: VARCHAR}}}}\n{another}  sinks:\n    \
         - {{name: out, from: [events], s3: {{location: \"s3://example-lake/{name}/\", format: Parquet}}}}\n  \
         deadLetter: {{s3: {{location: \"s3://example-lake/{name}-dead/\"}}}}\n"
    );
    let documents = leat::manifest::documents("pipeline.yaml", &text).expect("YAML");
    leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline").program
}

/// The job's folder shows this program, as a ConfigMap's volume does when it is brought up to date.
fn show(folder: &Path, program: &Program) {
    for (name, text) in [("revision", "1".to_owned()), ("job.json", serde_json::to_string(&program.document).expect("JSON"))] {
        let written = folder.join("written");
        std::fs::write(&written, text).expect("a file");
        std::fs::rename(written, folder.join(name)).expect("a file");
    }
}

#[tokio::test]
async fn the_job_that_a_worker_was_made_for_is_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let job = folder.path().join("job");
    std::fs::create_dir(&job).expect("a folder");
    let (before, wanted) = (compiled("before"), compiled("wanted"));
    show(&job, &before);
    let (port, nobody) = (free_port(), free_port());
    let mut command = program("leat-worker");
    command.arg("--job").arg(&job).args(["--listen", &format!("127.0.0.1:{port}")]);
    command.env("LEAT_JOB_HASH", leat_compile::job_hash(&wanted.document)).env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{nobody}"));
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test").env("AWS_REGION", "us-east-1");
    let mut worker = Process::start("worker", folder.path(), &mut command);
    until("the worker to be alive", PATIENCE, async || {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| e.to_string())
    })
    .await;
    show(&job, &wanted);
    // Its first call names the table of the job that it runs; nobody answers it.
    let said = until("the worker to call", PATIENCE, async || {
        let said = worker.output();
        if said.contains("waits for AWS") { Ok(said) } else { Err(said) }
    })
    .await;
    assert!(said.contains("leat.analytics.wanted.leases") && !said.contains("leat.analytics.before.leases"), "{said}");
    worker.signal("TERM");
    assert!(worker.ended(PATIENCE).await, "{}", worker.output());
}

/// A lease table that answers nothing clear to some writes of sessions: they have no effect.
struct Unsure {
    rows: Arc<dyn Rows>,
    unclear: AtomicU64,
}

impl Rows for Unsure {
    fn get<'a>(&'a self, key: &'a str) -> Call<'a, Option<StoredRow>> {
        self.rows.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Call<'a, Vec<(String, StoredRow)>> {
        self.rows.list(prefix)
    }

    fn put<'a>(&'a self, key: &'a str, row: StoredRow, expect: Expect) -> Call<'a, bool> {
        let unsure = key.starts_with(path::SESSIONS)
            && self.unclear.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if unsure {
            return Box::pin(async { Err(PortError::Unclear("answered by the test".to_owned())) });
        }
        self.rows.put(key, row, expect)
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Fence) -> Call<'a, bool> {
        self.rows.delete(key, expect)
    }
}

fn ports(folder: &Path, rows: Arc<dyn Rows>, stream: &Arc<LocalStream>) -> Ports {
    let store = Arc::new(Store::open(&folder.join("tables.redb")).expect("a store"));
    let stream = Arc::clone(stream);
    let written = Arc::new(LocalStreams::new(&folder.join("written")));
    Ports {
        rows,
        objects: Arc::new(LocalObjects::new(&folder.join("objects"))),
        files: Arc::new(LocalFiles::new(&folder.join("s3"), &folder.join("uploads"), "one")),
        log: Arc::new(LocalLog::open(&folder.join("log"), 1).expect("a log")),
        source: Arc::new(LocalSource {
            streams: ["events", "again"].map(|s| (s.to_owned(), Arc::clone(&stream))).into(),
            files: BTreeMap::new(),
        }),
        tables: store,
        streams: Arc::clone(&written) as _,
        topics: written,
        clock: Arc::new(SystemClock),
        unclear: Arc::default(),
        memory: Arc::default(),
    }
}

fn stream(folder: &Path) -> Arc<LocalStream> {
    Arc::new(LocalStream::open(&folder.join("stream"), 2, 1).expect("a stream"))
}

/// Records taken, by shard.
async fn taken(rows: &dyn Rows) -> BTreeMap<String, u64> {
    let all = rows.list(path::SOURCES).await.expect("rows");
    all.iter().map(|(key, row)| (key[path::SOURCES.len()..].to_owned(), decode::<SourceRow>(&row.body).expect("a row").taken)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_is_begun_behind_the_records_that_are_named_and_only_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let stream = stream(folder.path());
    let put = |from: usize, to: usize| {
        let record = |n: usize| Record {
            key: format!("key-{n}").into_bytes(),
            data: format!("{{\"id\":\"{n}\"}}").into_bytes(),
            arrival: 1_000 + n as i64,
        };
        stream.append((from..to).map(|n| (n as u64, record(n))).collect(), None).expect("appended");
    };
    put(0, 100);
    let ends = stream.ends();
    let (first, second) = (ends["shard-0000"], ends["shard-0001"]);
    assert!(first > 10 && second > 10, "{ends:?}");
    let rows: Arc<dyn Rows> = Arc::new(Store::open(&folder.path().join("rows.redb")).expect("a store"));
    let ports = ports(folder.path(), Arc::clone(&rows), &stream);
    let run = async |program: Program, session: &str, revision: u64, wanted: BTreeMap<String, u64>| {
        let mut worker =
            Worker::new(ports.clone(), Settings::default(), session.to_owned(), Arc::new(program), revision, 1).expect("a worker");
        worker.register().await.expect("registered");
        until("the records behind those that are named", PATIENCE, async || {
            worker.round().await.map_err(|e| e.to_string())?;
            let found = taken(&*rows).await;
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
        worker.leave(10_000).await.expect("it leaves");
    };
    let of =
        |first: u64, second: u64| BTreeMap::from([("events/1/shard-0000".to_owned(), first), ("events/1/shard-0001".to_owned(), second)]);
    let named = |at: u64| with_source("one", &format!("start: {{positions: {{shard-0000: \"{at}\"}}}}, "));
    run(named(7), "one-1", 1, of(first - 7, second)).await;
    // Another manifest and another worker: what was begun goes on.
    put(100, 120);
    let more = stream.ends();
    run(named(3), "one-2", 2, of(more["shard-0000"] - 7, more["shard-0001"])).await;
}

/// Reads as Kinesis does: the record that a place lies in is looked at too.
struct Looking(Arc<dyn Source>);

impl Source for Looking {
    fn shards<'a>(&'a self, source: &'a str) -> Call<'a, Vec<Shard>> {
        self.0.shards(source)
    }

    fn standing<'a>(&'a self, source: &'a str, application: &'a str) -> Call<'a, Vec<(String, Known)>> {
        self.0.standing(source, application)
    }

    fn probe<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, ()> {
        self.0.probe(lineage, from)
    }

    fn read<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, Read> {
        Box::pin(async move {
            let read = self.0.read(lineage, from).await?;
            Ok(match from {
                Place::Inside(last) => Read { scanned: Some(last), more: read.more || read.batch.is_empty(), ..read },
                _ => read,
            })
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_begun_behind_its_last_record_goes_on_after_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let stream = stream(folder.path());
    let put = |from: usize, to: usize| {
        let record =
            |n: usize| Record { key: format!("key-{n}").into_bytes(), data: format!("{{\"id\":\"{n}\"}}").into_bytes(), arrival: 1_000 };
        stream.append((from..to).map(|n| (n as u64, record(n))).collect(), None).expect("appended");
    };
    put(0, 100);
    let before = stream.ends();
    let rows: Arc<dyn Rows> = Arc::new(Store::open(&folder.path().join("rows.redb")).expect("a store"));
    let ports = ports(folder.path(), Arc::clone(&rows), &stream);
    let ports = Ports { source: Arc::new(Looking(ports.source.clone())), ..ports };
    let at = |shard: &str| format!("{shard}: \"{}\"", before[shard]);
    let program = Arc::new(with_source("one", &format!("start: {{positions: {{{}, {}}}}}, ", at("shard-0000"), at("shard-0001"))));
    let worker = async |session: &str| {
        let worker = Worker::new(ports.clone(), Settings::default(), session.to_owned(), Arc::clone(&program), 1, 1).expect("a worker");
        worker.register().await.expect("registered");
        worker
    };
    let mut one = worker("one-1").await;
    until("cuts at the places", PATIENCE, async || {
        one.round().await.map_err(|e| e.to_string())?;
        let all = rows.list(path::SOURCES).await.map_err(|e| e.to_string())?;
        let at: Vec<_> = all.iter().filter_map(|(_, row)| decode::<SourceRow>(&row.body).expect("a row").position).collect();
        if at.len() == 2 { Ok(()) } else { Err(format!("{at:?}")) }
    })
    .await;
    assert!(taken(&*rows).await.values().all(|count| *count == 0), "nothing was there yet");
    one.stop();
    put(100, 160);
    let after = stream.ends();
    let wanted: BTreeMap<_, _> = after.iter().map(|(shard, end)| (format!("events/1/{shard}"), end - before[shard])).collect();
    let mut two = worker("two-1").await;
    until("what came while nobody was there", PATIENCE, async || {
        two.round().await.map_err(|e| e.to_string())?;
        let found = taken(&*rows).await;
        if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    two.leave(10_000).await.expect("it leaves");
}

/// A source whose records have no time, beside one with windows: these close by the time of the others, and what the rows keep of
/// it does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_source_without_time() {
    let folder = tempfile::tempdir().expect("a folder");
    let text = "apiVersion: leat.dev/v1alpha1\nkind: StreamingPipeline\nmetadata: {name: timeless, namespace: analytics}\nspec:\n  \
                storage: {location: \"s3://example-leat/\"}\n  streams:\n    - {name: s, kinesis: {streamName: s, shards: {initial: 2}}}\n  \
                sources:\n    - {name: events, stream: s, columns: {id: VARCHAR, ts: TIMESTAMP}, eventTime: {field: ts, idleTimeout: 100ms}}\n    \
                - {name: again, stream: s, columns: {id: VARCHAR}}\n  steps:\n    \
                - {name: counts, from: [events], window: {tumbling: 1s}, aggregate: {events: \"count(*)\"}}\n  sinks:\n    \
                - {name: out, from: [counts], s3: {location: \"s3://example-lake/out/\", format: Parquet}}\n    \
                - {name: all, from: [again], s3: {location: \"s3://example-lake/all/\", format: Parquet}}\n";
    let documents = leat::manifest::documents("pipeline.yaml", text).expect("YAML");
    let program = leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline").program;
    let stream = stream(folder.path());
    let put = |from: u64, to: u64| {
        let record = |n: u64| Record {
            key: format!("key-{n}").into_bytes(),
            data: format!("{{\"id\":\"{n}\",\"ts\":\"{}\"}}", leat::format_millis(1_793_491_200_000 + n as i64 * 100)).into_bytes(),
            arrival: 1_793_491_200_000,
        };
        stream.append((from..to).map(|n| (n, record(n))).collect(), None).expect("appended");
    };
    let rows: Arc<dyn Rows> = Arc::new(Store::open(&folder.path().join("rows.redb")).expect("a store"));
    let ports = Ports {
        log: Arc::new(LocalLog::open(&folder.path().join("partitions"), program.document.repartition_partitions).expect("a log")),
        ..ports(folder.path(), Arc::clone(&rows), &stream)
    };
    let mut worker = Worker::new(ports, Settings::default(), "one-1".to_owned(), Arc::new(program), 1, 1).expect("a worker");
    worker.register().await.expect("registered");
    for part in 1..=8_u64 {
        put((part - 1) * 100, part * 100);
        until("windows of ten seconds more, but the last", PATIENCE, async || {
            worker.round().await.map_err(|e| e.to_string())?;
            let keyed = worker.shared.keyed().into_values();
            let emitted: u64 = keyed.map(|k| k.ledger.0.get("counts (windows)").map_or(0, |c| c.emitted)).sum();
            if emitted >= part * 10 - 1 { Ok(()) } else { Err(format!("{emitted} windows")) }
        })
        .await;
    }
    for (key, row) in rows.list(path::SOURCES).await.expect("rows") {
        let row = decode::<SourceRow>(&row.body).expect("a row");
        let positions: std::collections::BTreeSet<_> = row.raises.iter().map(|(position, _)| *position).collect();
        assert_eq!(positions.len(), row.raises.len(), "{key}: {:?}", row.raises);
    }
    worker.leave(10_000).await.expect("it leaves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_of_the_job_before_begins_a_new_source_where_it_is_to_be_begun() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows: Arc<dyn Rows> = Arc::new(Store::open(&folder.path().join("rows.redb")).expect("a store"));
    let ports = ports(folder.path(), Arc::clone(&rows), &stream(folder.path()));
    let again = "    - {name: again, stream: s, start: {positions: {shard-0001: \"5\"}}, format: Json, columns: {id: VARCHAR}}\n";
    let program = |another: &str| Arc::new(with_sources("one", "", another));
    let mut before = Worker::new(ports.clone(), Settings::default(), "one-1".to_owned(), program(""), 1, 1).expect("a worker");
    before.register().await.expect("registered");
    before.round().await.expect("a round");
    // A worker of the next job takes one step at a time; the one of the job before does what is left to do each time.
    let after = program(again);
    let document = Bytes::from(serde_json::to_vec(&after.document).expect("JSON"));
    let hash = leat_compile::job_hash(&after.document);
    ports.objects.put(&path::job(&hash), document).await.expect("registered");
    let (desired, mut begins) = (coordinator::desired(&after, &hash, 2, 1), Begins::new("one-2"));
    let made = until("rows of the new source", PATIENCE, async || {
        coordinator::pass(&ports, &after, &desired, &mut begins, &Looks::default(), Rules::all()).await.map_err(|e| e.to_string())?;
        before.round().await.map_err(|e| e.to_string())?;
        let all = rows.list(path::SOURCES).await.map_err(|e| e.to_string())?;
        let of: Vec<SourceRow> =
            all.iter().filter(|(key, _)| key.contains("again")).map(|(_, row)| decode(&row.body).expect("a row")).collect();
        if of.len() == 2 { Ok(of) } else { Err(format!("{all:?}")) }
    })
    .await;
    let begins: Vec<Option<String>> = made.iter().map(|row| row.begins.map(|at| at.inside(0).to_string())).collect();
    assert_eq!(begins, [None, Some("5".to_owned())]);
    before.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_beginning_that_means_nothing_ends_the_worker_with_a_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows: Arc<dyn Rows> = Arc::new(Store::open(&folder.path().join("rows.redb")).expect("a store"));
    let ports = ports(folder.path(), Arc::clone(&rows), &stream(folder.path()));
    let program = Arc::new(with_source("one", "start: {positions: {shardId-000000000000: \"7\"}}, "));
    let mut worker = Worker::new(ports, Settings::default(), "one-1".to_owned(), program, 1, 1).expect("a worker");
    let why = worker.round().await.expect_err("no such shard").to_string();
    let wanted = "the source `events` cannot be begun where `positions` says: the stream has no shard shardId-000000000000";
    assert_eq!(why, wanted);
    assert_eq!(rows.get(path::PIPELINE).await, Ok(None), "nothing was begun");
    worker.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_told_until_it_is_written_and_rows_of_others_are_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let rows: Arc<dyn Rows> = Arc::new(Store::open(&folder.path().join("rows.redb")).expect("a store"));
    let unsure = Arc::new(Unsure { rows: Arc::clone(&rows), unclear: AtomicU64::new(0) });
    let ports = ports(folder.path(), Arc::clone(&unsure) as Arc<dyn Rows>, &stream(folder.path()));
    let settings = Settings::default();
    let program = Arc::new(compiled("one"));
    let mut worker = Worker::new(ports.clone(), settings, "one-1".to_owned(), program, 1, 1).expect("a worker");
    worker.register().await.expect("registered");
    // A row of a source that the manifest does not list any more lies there as it was left.
    worker.round().await.expect("a round");
    let mine = rows.list(path::SOURCES).await.expect("rows");
    assert_eq!(mine.len(), 2, "{mine:?}");
    let other = path::source_row(&Lineage::new("gone", "1", "shard-0000"));
    let free = StoredRow { fence: Fence { job: 1, ..Fence::default() }, body: mine[0].1.body.clone() };
    assert_eq!(rows.put(&other, free.clone(), Expect::Absent { job: 1 }).await, Ok(true));
    until("the worker to hold its leases", PATIENCE, async || {
        worker.round().await.map_err(|e| e.to_string())?;
        let all = rows.list(path::SOURCES).await.map_err(|e| e.to_string())?;
        let held = all.iter().filter(|(_, row)| row.fence.owner == "one-1").count();
        if held == 2 { Ok(()) } else { Err(format!("{all:?}")) }
    })
    .await;
    for _ in 0..3 {
        worker.round().await.expect("a round");
    }
    assert_eq!(rows.get(&other).await, Ok(Some(free)), "it is nobody's");

    // The word that the session is over gets no clear answer, three times.
    unsure.unclear.store(3, Ordering::Relaxed);
    worker.leave(10_000).await.expect("it leaves");
    let session = rows.get(&path::session_row("one-1")).await.expect("an answer").expect("a row");
    let session: Value = serde_json::from_slice(&session.body).expect("JSON");
    assert_eq!(session["left"], true, "others need not wait for its silence");
    assert_eq!(ports.unclear.seen(), (3, "answered by the test".to_owned()));
}
