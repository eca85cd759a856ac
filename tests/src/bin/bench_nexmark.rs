//! Nexmark on one machine, as far as the manifest can say it: each query as a pipeline of `leat dev`, the same by DuckDB over the
//! same files, and by Flink's SQL when it is there. Prints one table; the rows of Leat and DuckDB are compared.
//!
//! `cargo build && cargo run -p leat-tests --bin bench_nexmark -- [--events N] [--only q0,q7] [--memory SIZE] [--flink PYTHON]`. The generator
//! is our own, with the proportions and hot keys that the benchmark describes
//! (<https://datalab.cs.pdx.edu/niagara/NEXMark/>; 1 person, 3 auctions and 46 bids of 50 events).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;

/// Files of each kind of event, read side by side.
const FILES: u64 = 2;
/// Events a second of event time.
const RATE: u64 = 10_000;
/// Time of the first event.
const START: u64 = 1_793_491_200_000;

/// A query: its steps and sink in the manifest, the same in SQL, and what of it is compared.
struct Query {
    name: &'static str,
    what: &'static str,
    /// Steps, and the sink `out`.
    flow: &'static str,
    sql: &'static str,
    /// As Flink says it, where it differs.
    flink: Option<&'static str>,
    /// Columns of which the sums are compared, beside the number of rows.
    check: &'static str,
}

const FILES_SINK: &str = "  sinks: [{name: out, from: [q], s3: {location: out/, format: Parquet}}]";

const QUERIES: [Query; 10] = [
    Query {
        name: "q0",
        what: "pass through",
        flow: "  steps: [{name: q, from: [bids], filter: \"true\"}]\n",
        sql: "SELECT * FROM bids",
        flink: None,
        check: "sum(auction), sum(price)",
    },
    Query {
        name: "q1",
        what: "an expression",
        flow: "  steps: [{name: q, from: [bids], derive: {euro: \"price * 908 / 1000\"}}]\n",
        sql: "SELECT *, price * 908 // 1000 AS euro FROM bids",
        flink: Some("SELECT *, price * 908 / 1000 AS euro FROM bids"),
        check: "sum(auction), sum(euro)",
    },
    Query {
        name: "q2",
        what: "a filter",
        flow: "  steps: [{name: f, from: [bids], filter: \"auction % 123 = 0\"}, {name: q, from: [f], select: {auction: auction, price: price}}]\n",
        sql: "SELECT auction, price FROM bids WHERE auction % 123 = 0",
        flink: Some("SELECT auction, price FROM bids WHERE MOD(auction, 123) = 0"),
        check: "sum(auction), sum(price)",
    },
    Query {
        name: "q3",
        what: "auctions with their seller, a table as of then",
        flow: "  steps:\n    - {name: some, from: [auctions], filter: \"category = 10\"}\n    - {name: here, from: [persons], filter: \"state IN ('OR', 'ID', 'CA')\"}\n    \
               - {name: q, from: [some], join: {kind: Temporal, with: here, keys: {seller: id}, select: [name, city, state]}}\n",
        sql: "SELECT * FROM auctions a ASOF JOIN persons p ON a.seller = p.id AND p.ts <= a.ts WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')",
        flink: Some(
            "SELECT a.id, a.seller, p.name, p.city, p.state FROM auctions a JOIN persons p ON a.seller = p.id WHERE a.category = 10 AND p.state IN ('OR', 'ID', 'CA')",
        ),
        check: "sum(a_id), sum(seller)",
    },
    Query {
        name: "q5",
        what: "bids per auction in 10 s, each 2 s (without the most)",
        flow: "  steps: [{name: q, from: [bids], window: {size: 10s, slide: 2s}, groupBy: [auction], aggregate: {bids: \"count(*)\"}}]\n",
        sql: "SELECT auction, e AS w, count(*) AS bids FROM (SELECT auction, unnest(generate_series(time_bucket(INTERVAL 2 SECONDS, ts) + INTERVAL 2 SECONDS, time_bucket(INTERVAL 2 SECONDS, ts) + INTERVAL 10 SECONDS, INTERVAL 2 SECONDS)) AS e FROM bids) GROUP BY 1, 2",
        flink: Some(
            "SELECT auction, window_start, count(*) AS bids FROM TABLE(HOP(TABLE bids, DESCRIPTOR(ts), INTERVAL '2' SECONDS, INTERVAL '10' SECONDS)) GROUP BY auction, window_start, window_end",
        ),
        check: "sum(auction), sum(bids)",
    },
    Query {
        name: "q7",
        what: "highest price per 10 s (without its bids)",
        flow: "  steps: [{name: q, from: [bids], window: {tumbling: 10s}, groupBy: [], aggregate: {price: \"max(price)\", bids: \"count(*)\"}}]\n",
        sql: "SELECT time_bucket(INTERVAL 10 SECONDS, ts) AS w, max(price) AS price, count(*) AS bids FROM bids GROUP BY 1",
        flink: Some(
            "SELECT window_start, max(price) AS price, count(*) AS bids FROM TABLE(TUMBLE(TABLE bids, DESCRIPTOR(ts), INTERVAL '10' SECONDS)) GROUP BY window_start, window_end",
        ),
        check: "sum(price), sum(bids)",
    },
    Query {
        name: "q11",
        what: "sessions of bidders, gap 10 s",
        flow: "  steps: [{name: q, from: [bids], sessionize: {by: [bidder], gap: 10s, aggregate: {bids: \"count(*)\"}}}]\n",
        sql: "SELECT bidder, n, count(*) AS bids FROM (SELECT bidder, sum(new) OVER (PARTITION BY bidder ORDER BY ts) AS n FROM (SELECT bidder, ts, \
              CASE WHEN ts - lag(ts) OVER (PARTITION BY bidder ORDER BY ts) <= INTERVAL 10 SECONDS THEN 0 ELSE 1 END AS new FROM bids)) GROUP BY bidder, n",
        flink: Some(
            "SELECT bidder, window_start, count(*) AS bids FROM TABLE(SESSION(TABLE bids PARTITION BY bidder, DESCRIPTOR(ts), INTERVAL '10' SECONDS)) GROUP BY bidder, window_start, window_end",
        ),
        check: "sum(bidder), sum(bids * bids)",
    },
    Query {
        name: "q17",
        what: "statistics per auction and day",
        flow: "  steps: [{name: q, from: [bids], window: {tumbling: 1d}, groupBy: [auction], aggregate: {bids: \"count(*)\", cheap: \"count(*) FILTER (WHERE price < 10000)\", \
               dear: \"count(*) FILTER (WHERE price >= 1000000)\", low: \"min(price)\", high: \"max(price)\", total: \"sum(price)\"}}]\n",
        sql: "SELECT auction, date_trunc('day', ts) AS w, count(*) AS bids, count(*) FILTER (WHERE price < 10000) AS cheap, count(*) FILTER (WHERE price >= 1000000) AS dear, \
              min(price) AS low, max(price) AS high, sum(price) AS total FROM bids GROUP BY 1, 2",
        flink: Some(
            "SELECT auction, window_start, count(*) AS bids, count(*) FILTER (WHERE price < 10000) AS cheap, count(*) FILTER (WHERE price >= 1000000) AS dear, min(price) AS low, \
             max(price) AS high, sum(price) AS total FROM TABLE(TUMBLE(TABLE bids, DESCRIPTOR(ts), INTERVAL '1' DAY)) GROUP BY auction, window_start, window_end",
        ),
        check: "sum(auction), sum(bids), sum(cheap), sum(dear), sum(low), sum(high), sum(total)",
    },
    Query {
        name: "q18",
        what: "exactly one bid of each bidder and auction",
        flow: "  steps: [{name: q, from: [bids], deduplicate: {by: [bidder, auction], within: 1d}}]\n",
        sql: "SELECT bidder, auction FROM bids GROUP BY 1, 2",
        flink: Some(
            "SELECT bidder, auction FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY bidder, auction ORDER BY ts ASC) AS n FROM bids) WHERE n = 1",
        ),
        check: "sum(bidder), sum(auction)",
    },
    Query {
        name: "q20",
        what: "bids with their auction, within an hour",
        flow: "  steps:\n    - {name: some, from: [auctions], filter: \"category = 10\"}\n    \
               - {name: q, from: [bids], join: {kind: Interval, with: some, keys: {auction: id}, within: {before: 1h}, select: [item, seller]}}\n",
        sql: "SELECT b.*, a.item, a.seller FROM bids b JOIN auctions a ON b.auction = a.id AND a.ts BETWEEN b.ts - INTERVAL 1 HOUR AND b.ts WHERE a.category = 10",
        flink: Some(
            "SELECT b.*, a.item, a.seller FROM bids b JOIN auctions a ON b.auction = a.id AND a.ts BETWEEN b.ts - INTERVAL '1' HOUR AND b.ts WHERE a.category = 10",
        ),
        check: "sum(auction), sum(price), sum(seller)",
    },
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let events: u64 = value("--events").map_or(2_000_000, |n| n.parse().expect("a number"));
    let only: Option<Vec<&str>> = value("--only").map(|names| names.split(',').collect());
    let flink = value("--flink");
    let folder = tempfile::tempdir().expect("a folder");
    let bytes = write_events(folder.path(), events);
    println!("{events} events, {} bytes each on average; events a CPU second, and peak memory", bytes / events);
    println!("{:<4} {:<48} {:>20} {:>20} {:>20} {:>12}", "", "", "Leat", "DuckDB", "Flink", "rows");
    for query in QUERIES.iter().filter(|q| only.as_ref().is_none_or(|names| names.contains(&q.name))) {
        let ours = leat(folder.path(), query, value("--memory"));
        let theirs = python(folder.path(), query, "duckdb", DUCKDB, &leat_tests_python());
        assert_eq!(ours.answer, theirs.answer, "{}: Leat and DuckDB differ", query.name);
        let flink = flink.map(|python_| python(folder.path(), query, "flink", FLINK, Path::new(python_)));
        let show = |run: &Run| format!("{:.2} M/s {:>5.0} MB", events as f64 / run.cpu / 1e6, run.memory / 1e6);
        let rows = ours.answer[0].as_u64().unwrap_or_default();
        let flink = flink.as_ref().map_or("-".to_owned(), show);
        println!("{:<4} {:<48} {:>20} {:>20} {flink:>20} {rows:>12}", query.name, query.what, show(&ours), show(&theirs));
    }
}

struct Run {
    cpu: f64,
    memory: f64,
    answer: Value,
}

fn leat_tests_python() -> PathBuf {
    std::env::var_os("LEAT_TEST_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from)
}

fn manifest(query: &Query) -> String {
    let mut text = "apiVersion: leat.dev/v1alpha1\nkind: StreamingPipeline\nmetadata: {name: nexmark, namespace: bench}\nspec:\n  \
                    storage: {location: \"s3://bench/\"}\n  sources:\n"
        .to_owned();
    let uses = |kind: &str| query.sql.contains(kind);
    let columns = [
        ("persons", "{id: BIGINT, name: TEXT, email: TEXT, city: TEXT, state: TEXT, ts: TIMESTAMP}"),
        ("auctions", "{id: BIGINT, item: TEXT, initial_bid: BIGINT, seller: BIGINT, category: BIGINT, ts: TIMESTAMP}"),
        ("bids", "{auction: BIGINT, bidder: BIGINT, price: BIGINT, channel: TEXT, url: TEXT, ts: TIMESTAMP}"),
    ];
    for (kind, columns) in columns.into_iter().filter(|(kind, _)| uses(kind)) {
        let _ = writeln!(text, "    - {{name: {kind}, files: {{path: {kind}/}}, columns: {columns}, eventTime: {{field: ts}}}}");
    }
    text + query.flow + FILES_SINK
}

fn leat(folder: &Path, query: &Query, memory: Option<&String>) -> Run {
    let leat = std::env::current_exe().expect("myself").parent().expect("a folder").join("leat");
    let state = folder.join("state");
    drop(std::fs::remove_dir_all(&state));
    std::fs::write(folder.join("nexmark.yaml"), manifest(query)).expect("a manifest");
    let mut command = Command::new(leat);
    command.args(["dev", "--until-done", "--output", "json", "-f"]).arg(folder.join("nexmark.yaml")).arg("--state").arg(&state);
    command.args(memory.iter().flat_map(|size| ["--memory", size]));
    let output = command.stdin(Stdio::null()).output().expect("leat starts: run `cargo build` first");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let number = |name: &str| report[name].as_f64().expect("a number");
    let check = query.check.replace("a_id", "id");
    let files = state.join("bench/nexmark/s3/bench/out/**/*.parquet");
    let ask = format!(
        "import duckdb, json, sys\nprint(json.dumps([int(x or 0) for x in duckdb.sql(\"SELECT count(*), {check} FROM read_parquet('{}')\").fetchone()]))",
        files.display()
    );
    let answer = leat_tests::duckdb(&ask, &[]).expect("DuckDB reads the files");
    Run { cpu: number("cpuSeconds"), memory: number("peakMemory"), answer }
}

/// Runs a program of Python over the files; it prints CPU seconds, bytes and an answer.
fn python(folder: &Path, query: &Query, name: &str, program: &str, python: &Path) -> Run {
    let sql = if name == "flink" { query.flink.unwrap_or(query.sql) } else { query.sql };
    let check = query.check.replace("a_id", "id");
    let started = Instant::now();
    let output = Command::new(python).arg("-c").arg(program).arg(folder).arg(sql).arg(check).output().expect("Python starts");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let value: Value = serde_json::from_str(text.lines().last().unwrap_or_default()).expect("numbers");
    assert!(started.elapsed().as_secs_f64() > 0.0);
    Run { cpu: value["cpu"].as_f64().expect("seconds"), memory: value["memory"].as_f64().expect("bytes"), answer: value["answer"].clone() }
}

/// The query's rows into a Parquet file, and what is compared of them.
const DUCKDB: &str = r#"
import duckdb, json, resource, sys
folder, sql, check = sys.argv[1:4]
db = duckdb.connect()
db.execute("SET TimeZone='UTC'; SET enable_progress_bar=false; SET threads=2")
for kind, columns in {
  "persons": "{id: 'BIGINT', name: 'VARCHAR', email: 'VARCHAR', city: 'VARCHAR', state: 'VARCHAR', ts: 'TIMESTAMP'}",
  "auctions": "{id: 'BIGINT', item: 'VARCHAR', initial_bid: 'BIGINT', seller: 'BIGINT', category: 'BIGINT', ts: 'TIMESTAMP'}",
  "bids": "{auction: 'BIGINT', bidder: 'BIGINT', price: 'BIGINT', channel: 'VARCHAR', url: 'VARCHAR', ts: 'TIMESTAMP'}",
}.items():
  db.execute(f"CREATE VIEW {kind} AS SELECT * FROM read_json('{folder}/{kind}/*', format='newline_delimited', columns={columns})")
db.execute(f"COPY ({sql}) TO '{folder}/duckdb.parquet' (FORMAT parquet, COMPRESSION zstd)")
used = resource.getrusage(resource.RUSAGE_SELF)
answer = db.execute(f"SELECT count(*), {check} FROM '{folder}/duckdb.parquet'").fetchone()
print(json.dumps({"cpu": used.ru_utime + used.ru_stime, "memory": used.ru_maxrss * 1024, "answer": [int(x or 0) for x in answer]}))
"#;

/// The query's rows into nothing: Flink has less to do than the others.
const FLINK: &str = r#"
import json, os, sys
from pyflink.table import EnvironmentSettings, TableEnvironment
folder, sql = sys.argv[1:3]
env = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
env.get_config().set("parallelism.default", "2")
for kind, columns in {
  "persons": "id BIGINT, name STRING, email STRING, city STRING, state STRING",
  "auctions": "id BIGINT, item STRING, initial_bid BIGINT, seller BIGINT, category BIGINT",
  "bids": "auction BIGINT, bidder BIGINT, price BIGINT, channel STRING, url STRING",
}.items():
  env.execute_sql(f"CREATE TABLE {kind} ({columns}, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('connector' = 'filesystem', "
                  f"'path' = 'file://{folder}/{kind}', 'format' = 'json', 'json.timestamp-format.standard' = 'ISO-8601')")
env.execute_sql(f"CREATE TABLE nothing WITH ('connector' = 'blackhole') AS {sql}").wait()
from pyflink.java_gateway import get_gateway
pid = get_gateway().jvm.java.lang.ProcessHandle.current().pid()
# User and system time in clock ticks (proc_pid_stat(5)).
cpu = sum(int(n) for n in open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[11:13]) / os.sysconf("SC_CLK_TCK")
peak = [int(l.split()[1]) * 1024 for l in open(f"/proc/{pid}/status") if l.startswith("VmHWM")][0]
print(json.dumps({"cpu": cpu, "memory": peak, "answer": []}))
"#;

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Writes the files; answers how many bytes.
fn write_events(folder: &Path, events: u64) -> u64 {
    let mut random = Random(42);
    let mut files: Vec<Vec<String>> = vec![vec![String::new(); FILES as usize]; 3];
    let (mut persons, mut auctions, mut counts) = (0_u64, 0_u64, [0_u64; 3]);
    let states = ["AZ", "CA", "ID", "OR", "WA", "WY"];
    let cities = ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"];
    for n in 0..events {
        let at = leat::format_millis((START + n * 1000 / RATE) as i64);
        let at = at.trim_end_matches('Z');
        let kind = match n % 50 {
            0 => 0,
            1..=3 => 1,
            _ => 2,
        };
        let out = &mut files[kind][(counts[kind] % FILES) as usize];
        counts[kind] += 1;
        let _ = match kind {
            0 => {
                persons += 1;
                let (city, state) = (random.one(&cities), random.one(&states));
                writeln!(
                    out,
                    "{{\"id\":{persons},\"name\":\"Person {persons}\",\"email\":\"p{persons}@example.com\",\"city\":\"{city}\",\"state\":\"{state}\",\"ts\":\"{at}\"}}"
                )
            }
            1 => {
                auctions += 1;
                // Three of four auctions are of a hot seller.
                let seller = if random.below(4) > 0 { (persons / 100 * 100).max(1) } else { 1 + random.below(persons) };
                let (initial, category) = (1 + random.below(100_000), 10 + random.below(5));
                writeln!(
                    out,
                    "{{\"id\":{auctions},\"item\":\"item {auctions}\",\"initial_bid\":{initial},\"seller\":{seller},\"category\":{category},\"ts\":\"{at}\"}}"
                )
            }
            _ => {
                // One of two bids is for a hot auction, three of four are of a hot bidder.
                let auction =
                    if random.below(2) > 0 { (auctions / 100 * 100).max(1) } else { auctions.saturating_sub(random.below(100)).max(1) };
                let bidder =
                    if random.below(4) > 0 { (persons / 100 * 100).max(1) } else { persons.saturating_sub(random.below(1_000)).max(1) };
                let price = 100 * 10_u64.pow(random.below(6) as u32) + random.below(10_000);
                let (channel, page) = (random.one(&["Google", "Facebook", "Baidu", "Apple", "channel-17"]), random.below(100_000));
                writeln!(
                    out,
                    "{{\"auction\":{auction},\"bidder\":{bidder},\"price\":{price},\"channel\":\"{channel}\",\"url\":\"https://www.nexmark.com/item.htm?query={page}\",\"ts\":\"{at}\"}}"
                )
            }
        };
    }
    let mut bytes = 0;
    for (kind, files) in ["persons", "auctions", "bids"].into_iter().zip(files) {
        std::fs::create_dir_all(folder.join(kind)).expect("a folder");
        for (i, text) in files.into_iter().enumerate() {
            bytes += text.len() as u64;
            std::fs::write(folder.join(kind).join(format!("{i}.ndjson")), text).expect("the events");
        }
    }
    bytes
}
