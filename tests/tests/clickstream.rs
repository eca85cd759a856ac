//! The clickstream manifest on the laptop: exact counts, against the generator's known answer and against DuckDB; with
//! and without a kill.

use std::process::Stdio;
use std::time::{Duration, Instant};

use leat::feed::SEED;
use leat::generate::{self, Fate};
use leat_tests::{duckdb, leat};
use serde_json::Value;

const EVENTS: u64 = 60_000;

/// Rows of curated files and dead letters as DuckDB reads them, and counters computed by it from the raw archive.
const QUERY: &str = r#"
import duckdb, json, sys
root = sys.argv[1] + "/analytics/clickstream/s3/example-lake/clickstream"
db = duckdb.connect()
db.execute("SET TimeZone='UTC'; SET enable_progress_bar=false")
one = lambda q: db.execute(q).fetchone()
raw = f"read_parquet('{root}/raw/**/*.parquet', hive_partitioning=false)"
curated = f"read_parquet('{root}/curated/**/*.parquet', hive_partitioning=false)"
dead = f"read_json('{root}/dead-letters/**/*.jsonl', format='newline_delimited', hive_partitioning=false)"
db.execute(f"""CREATE TABLE events AS SELECT * FROM (
  SELECT lineage, position::UBIGINT AS position, json_extract_string(j, '$.event_id') AS event_id, json_extract_string(j, '$.campaign_id') AS campaign,
         json_extract_string(j, '$.type') AS type, json_extract_string(j, '$.spend')::DECIMAL(18,4) AS spend,
         json_extract_string(j, '$.ts')::TIMESTAMP AS ts, json_type(j, '$.cookie_id') AS cookie_type
  FROM (SELECT lineage, position, decode(data) AS j FROM {raw} WHERE try(json_valid(decode(data)))) 
) WHERE cookie_type = 'VARCHAR' AND year(ts) < 10000""")
# The first of each id in its shard's order; then what is not late (20 minutes and more behind is).
db.execute("""CREATE TABLE firsts AS SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY event_id ORDER BY lineage, position) AS n FROM events
  WHERE spend >= 0 AND type IN ('view','click','purchase')) WHERE n = 1""")
counters = db.execute("""SELECT campaign, strftime(date_trunc('minute', ts), '%Y-%m-%dT%H:%M'), count(*) FILTER (WHERE type = 'click'), sum(spend)::VARCHAR
  FROM firsts WHERE campaign IS NOT NULL GROUP BY 1, 2 ORDER BY 1, 2""").fetchall()
print(json.dumps({
  "raw": one(f"SELECT count(*), count(DISTINCT (lineage, position)) FROM {raw}"),
  "curated": one(f"SELECT count(*), count(DISTINCT event_id), sum(spend)::VARCHAR FROM {curated}"),
  "firsts": one("SELECT count(*), count(DISTINCT event_id), sum(spend)::VARCHAR FROM firsts"),
  "dead": dict(db.execute(f"SELECT reason, count(*) FROM {dead} GROUP BY 1").fetchall()),
  "dead_records": one(f"SELECT count(DISTINCT (lineage, position)) FROM {dead}")[0],
  "counters": counters,
}))
"#;

fn dev(state: &std::path::Path) -> std::process::Command {
    let mut command = leat();
    command.args([
        "dev",
        "-f",
        "manifests/pipelines/clickstream.yaml",
        "--generate",
        &format!("events={EVENTS}"),
        "--until-done",
        "--output",
        "json",
        "--state",
    ]);
    command.arg(state);
    command
}

fn run(state: &std::path::Path) -> Value {
    let output = dev(state).output().expect("leat starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("a report")
}

/// Items of the counters table, from the embedded database.
fn counters(state: &std::path::Path) -> Vec<(String, String, String, String)> {
    let store = leat::dev::items(&state.join("analytics/clickstream"), "counters").expect("items");
    store
        .into_iter()
        .map(|mut item| ["campaign_id", "minute", "clicks", "spend"].map(|name| item.remove(name).expect(name)).into())
        .collect()
}

/// Everything that is right about a finished run.
fn check(state: &std::path::Path, report: &Value) {
    let answer = generate::answer(SEED, EVENTS);
    let fate = |f: Fate| answer.fates.get(&f).copied().unwrap_or_default();
    assert_eq!(report["done"], true);
    for (name, counts) in report["ledger"].as_array().expect("ledger").iter().map(|e| (&e[0], &e[1])) {
        let n = |key: &str| counts[key].as_u64().unwrap_or_default();
        let rejected: u64 = counts["rejected"].as_object().into_iter().flatten().filter_map(|(_, v)| v.as_u64()).sum();
        let sum = n("passed") + n("filtered") + n("deduplicated") + n("late") + n("absorbed") + rejected;
        assert_eq!(n("in"), sum, "the ledger of {name} does not add up: {counts}");
    }
    let dead = |reason: &str| report["deadLetters"][reason].as_u64().unwrap_or_default();
    assert_eq!(dead("clicks: malformed"), fate(Fate::Malformed));
    assert_eq!(dead("clicks: schema"), fate(Fate::Schema));
    assert_eq!(dead("valid: rule:known_type"), fate(Fate::UnknownType));
    assert_eq!(dead("valid: rule:spend_not_negative"), fate(Fate::NegativeSpend));

    let money = |units: i64| format!("{}.{:04}", units / 10_000, units % 10_000);
    let minute = |ms: i64| leat_minute(ms);
    let expected: Vec<_> = answer
        .counters
        .iter()
        .map(|((c, at), (clicks, spend))| (format!("cmp-{c:04}"), minute(*at), clicks.to_string(), money(*spend)))
        .collect();
    let got = counters(state);
    assert_eq!(got.len(), expected.len());
    assert!(got == expected, "{:?}", got.iter().zip(&expected).find(|(a, b)| a != b));

    let found = duckdb(QUERY, &[state.to_str().expect("a path")]).expect("DuckDB answers");
    assert_eq!(found["raw"], serde_json::json!([EVENTS, EVENTS]), "every record is in the archive once");
    assert_eq!(found["curated"], found["firsts"], "each valid event is in the curated files once");
    assert_eq!(found["curated"][0], found["curated"][1]);
    let dead: u64 = found["dead"].as_object().expect("reasons").values().filter_map(Value::as_u64).sum();
    assert_eq!(dead, found["dead_records"].as_u64().expect("a count"), "no record is a dead letter twice");
    let by_duckdb: Vec<_> = found["counters"]
        .as_array()
        .expect("rows")
        .iter()
        .map(|r| {
            let text = |i: usize| r[i].as_str().map_or_else(|| r[i].to_string(), str::to_owned);
            (text(0), text(1), text(2), text(3))
        })
        .collect();
    assert!(got == by_duckdb, "{:?}", got.iter().zip(&by_duckdb).find(|(a, b)| a != b));
}

fn leat_minute(ms: i64) -> String {
    let text = leat_time(ms);
    text[..16].to_owned()
}

fn leat_time(ms: i64) -> String {
    leat::format_millis(ms)
}

#[test]
fn a_run_gives_the_known_answer_and_running_again_takes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = run(folder.path());
    assert_eq!(report["taken"], EVENTS);
    check(folder.path(), &report);
    let again = run(folder.path());
    assert_eq!(again["taken"], 0);
    assert_eq!((&again["ledger"], &again["tables"]), (&report["ledger"], &report["tables"]));
    check(folder.path(), &again);
}

#[test]
fn killed_at_any_moment_it_ends_with_the_same_rows() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut killed = 0;
    for attempt in 1..40u64 {
        let mut child = dev(folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("leat starts");
        // Moments spread over the run; what matters is that they differ.
        let moment = Instant::now() + Duration::from_millis(60 + attempt * 137 % 700);
        let finished = loop {
            if child.try_wait().expect("a child").is_some() {
                break true;
            }
            if Instant::now() >= moment {
                break false;
            }
            std::thread::yield_now();
        };
        if finished {
            break;
        }
        child.kill().expect("kill");
        child.wait().expect("a dead child");
        killed += 1;
        if killed == 8 {
            break;
        }
    }
    assert!(killed >= 3, "the run ended before it could be killed often enough: {killed}");
    let report = run(folder.path());
    check(folder.path(), &report);
}
