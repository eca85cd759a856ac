//! Sessions and joins on the laptop, against DuckDB: the manifest of docs/how-to/joins.md over events that are out of order and
//! late, killed again and again on the way.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leat_tests::{duckdb, leat};
use serde_json::{Value, json};

/// Impressions; each second one was clicked or nearly so.
const SHOWN: u64 = 24_000;
/// Records that are hours late, at the end of each stream.
const LATE: u64 = 40;

/// What the files hold, and what a batch over the events would hold.
const QUERY: &str = r#"
import duckdb, json, sys
root, events = sys.argv[1] + "/marketing/ads/s3/example-lake/ads", sys.argv[2]
db = duckdb.connect()
db.execute("SET TimeZone='UTC'; SET enable_progress_bar=false")
for name in ("impressions", "clicks", "campaigns"):
    db.execute(f"CREATE TABLE {name} AS SELECT * REPLACE (ts::TIMESTAMP AS ts) FROM read_json('{events}/{name}.ndjson', format='newline_delimited', sample_size=-1) WHERE NOT late")
files = lambda name: f"read_parquet('{root}/{name}/**/*.parquet', hive_partitioning=false)"
differ = lambda a, b: db.execute(f"SELECT count(*) FROM (({a}) EXCEPT ALL ({b})) UNION ALL SELECT count(*) FROM (({b}) EXCEPT ALL ({a}))").fetchall()
one = lambda q: db.execute(q).fetchone()[0]
attributed = """SELECT i.impression_id, i.user_id, i.campaign_id::BIGINT AS campaign_id, i.ts::TIMESTAMP AS ts, c.ts::TIMESTAMP AS clicked_ts
  FROM impressions i LEFT JOIN clicks c ON c.impression_id = i.impression_id AND c.ts BETWEEN i.ts AND i.ts + INTERVAL 30 MINUTE"""
priced = """SELECT i.impression_id, i.user_id, i.campaign_id::BIGINT, i.ts::TIMESTAMP, c.price::DECIMAL(18,4)
  FROM impressions i ASOF LEFT JOIN campaigns c ON c.id = i.campaign_id AND c.ts <= i.ts"""
visits = """SELECT user_id, min(ts)::TIMESTAMP AS session_start, max(ts)::TIMESTAMP AS session_end, count(*) AS clicks, min(impression_id) AS first
  FROM (SELECT *, sum(new) OVER (PARTITION BY user_id ORDER BY ts) AS n
        FROM (SELECT *, CASE WHEN ts - lag(ts) OVER (PARTITION BY user_id ORDER BY ts) <= INTERVAL 30 MINUTE THEN 0 ELSE 1 END AS new FROM clicks))
  GROUP BY user_id, n"""
busy = """SELECT campaign_id::BIGINT AS campaign_id, e - INTERVAL 10 MINUTE AS window_start, e AS window_end, count(*) AS impressions, min(user_id) AS users_from
  FROM (SELECT *, unnest(generate_series(time_bucket(INTERVAL 1 MINUTE, ts) + INTERVAL 1 MINUTE, time_bucket(INTERVAL 1 MINUTE, ts) + INTERVAL 10 MINUTE, INTERVAL 1 MINUTE)) AS e
        FROM impressions) GROUP BY 1, e"""
print(json.dumps({
  "attributed": differ(f"SELECT impression_id, user_id, campaign_id, ts, clicked_ts FROM {files('attributed')}", attributed),
  "priced": differ(f"SELECT impression_id, user_id, campaign_id, ts, price FROM {files('priced')}", priced),
  "visits": differ(f"SELECT user_id, session_start, session_end, clicks, first FROM {files('visits')}", visits),
  "busy": differ(f"SELECT campaign_id, window_start, window_end, impressions, users_from FROM {files('busy')}", busy),
  "counts": [one(f"SELECT count(*) FROM ({q})") for q in (attributed, priced, visits, busy)],
  "clicked": one(f"SELECT count(clicked_ts) FROM ({attributed})"),
  "worth": one(f"SELECT count(*) FROM read_json('{root}/worth/**/*.jsonl', format='newline_delimited')"),
  "ids": one(f"SELECT count(DISTINCT session_id) FROM {files('visits')}"),
  "unpriced": one(f"SELECT count(*) FROM ({priced}) AS p(a, b, c, d, price) WHERE price IS NULL"),
  "late": db.execute(f"SELECT step, count(*) FROM read_json('{root}/late/**/*.jsonl', format='newline_delimited') GROUP BY 1 ORDER BY 1").fetchall(),
}))
"#;

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Writes the three streams, each out of order by less than ten seconds.
fn write_events(folder: &Path) {
    let mut random = Random(7);
    let start = 1_793_491_200_000_u64;
    let (mut impressions, mut clicks, mut campaigns) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..SHOWN {
        let at = start + n * 1_500;
        let user = format!("user-{}", random.below(400));
        let (id, campaign) = (format!("imp-{n:06}"), random.below(30));
        impressions.push((at, json!({"impression_id": id, "user_id": user, "campaign_id": campaign, "ts": stamp(at), "late": false})));
        // Some come too late for the interval, some twice, one just at its end.
        for _ in 0..random.below(3) {
            let after = if random.below(50) == 0 { 1_800_000 } else { random.below(2_400_000) };
            let at = at + after;
            clicks.push((at, json!({"impression_id": id, "user_id": user, "ts": stamp(at), "late": false})));
        }
        if n % 40 == 0 {
            let price = format!("{}.{:04}", random.below(9), random.below(10_000));
            // No two prices of one campaign have the same time.
            campaigns.push((at, json!({"id": random.below(25), "price": price, "ts": stamp(at), "late": false})));
        }
    }
    for (name, mut events) in [("impressions", impressions), ("clicks", clicks), ("campaigns", campaigns)] {
        let mut shuffled: Vec<(u64, Value)> = events.drain(..).map(|(at, event)| (at + random.below(9_000), event)).collect();
        shuffled.sort_by_key(|(at, _)| *at);
        let late = (0..if name == "campaigns" { 0 } else { LATE }).map(
            |n| json!({"impression_id": format!("imp-{n:06}"), "user_id": "user-1", "campaign_id": 1, "ts": stamp(start), "late": true}),
        );
        let lines: Vec<String> = shuffled.into_iter().map(|(_, event)| event).chain(late).map(|event| event.to_string()).collect();
        std::fs::write(folder.join(format!("{name}.ndjson")), lines.join("\n")).expect("events");
    }
}

fn stamp(ms: u64) -> String {
    leat::format_millis(ms as i64)
}

/// A run, with so little memory that rows of joins go to the disk, or with enough.
fn dev(folder: &Path, little: bool) -> Command {
    let mut command = leat();
    command.args(["dev", "-f", "manifests/pipelines/ads.yaml", "--until-done", "--output", "json", "--state"]).arg(folder.join("state"));
    command.args(["--memory", if little { "1Mi" } else { "1Gi" }]);
    for name in ["impressions", "clicks", "campaigns"] {
        command.arg("--input").arg(format!("{name}={}", folder.join(format!("{name}.ndjson")).display()));
    }
    command
}

#[test]
fn joins_and_sessions_are_those_of_a_batch_whatever_is_killed_on_the_way() {
    let folder = tempfile::tempdir().expect("a folder");
    write_events(folder.path());
    let mut killed = 0;
    for attempt in 1..30_u64 {
        let mut child = dev(folder.path(), attempt % 2 == 0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("leat starts");
        let moment = Instant::now() + Duration::from_millis(150 + attempt * 137 % 500);
        while Instant::now() < moment && child.try_wait().expect("a child").is_none() {
            std::thread::yield_now();
        }
        if child.try_wait().expect("a child").is_some() || killed == 6 {
            drop(child.kill());
            child.wait().expect("a dead child");
            break;
        }
        child.kill().expect("kill");
        child.wait().expect("a dead child");
        killed += 1;
    }
    assert!(killed >= 2, "the run ended before it could be killed often enough: {killed}");
    let output = dev(folder.path(), true).output().expect("leat starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    assert!(report["spilled"].as_u64().is_some_and(|bytes| bytes > 100_000), "{}", report["spilled"]);
    let path = |path: &Path| path.display().to_string();
    let found = duckdb(QUERY, &[&path(&folder.path().join("state")), &path(folder.path())]).expect("DuckDB answers");
    for name in ["attributed", "priced", "visits", "busy"] {
        assert_eq!(found[name], json!([[0], [0]]), "{name} differs from the batch: {found}");
    }
    let number = |value: &Value| value.as_u64().expect("a number");
    assert!(number(&found["counts"][0]) > SHOWN && number(&found["counts"][1]) == SHOWN, "{found}");
    assert!(number(&found["clicked"]) > SHOWN / 4 && found["worth"] == found["clicked"], "{found}");
    assert!(
        number(&found["unpriced"]) > 0
            && number(&found["counts"][2]) > 1_000
            && number(&found["counts"][3]) > 10_000
            && found["ids"] == found["counts"][2],
        "{found}"
    );
    // What is late is where the manifest says, once, and no dead letter.
    assert_eq!(found["late"], json!([["attributed", LATE], ["attributed.with", LATE], ["visits", LATE]]), "{found}");
    let late = |step: &str| {
        let entry = report["ledger"].as_array().expect("a ledger").iter().find(|e| e[0] == step);
        entry.map(|e| e[1]["late"].as_u64().unwrap_or_default())
    };
    assert_eq!((late("visits"), late("attributed"), late("attributed.with")), (Some(LATE), Some(LATE), Some(LATE)));
    let joined = report["ledger"].as_array().expect("a ledger").iter().find(|e| e[0] == "attributed (join)").expect("a join");
    assert_eq!(joined[1]["emitted"], found["counts"][0]);
}
