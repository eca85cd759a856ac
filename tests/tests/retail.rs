//! A pipeline over data that nobody here made: hourly counts, repeated lines and sums of money, as another tool has
//! computed them. Needs the external data sets (`LEAT_TEST_DATA`).

use leat_tests::{data, duckdb, leat};
use serde_json::Value;

const QUERY: &str = r#"
import duckdb, json, sys
out, data = sys.argv[1] + "/tests/retail/s3/example-retail", sys.argv[2] + "/retail-events/expected"
db = duckdb.connect()
db.execute("SET TimeZone='UTC'; SET enable_progress_bar=false")
db.execute(f"CREATE TABLE got AS SELECT window_start::TIMESTAMP AS window_start, event, events FROM read_json('{out}/hourly/*.jsonl', format='newline_delimited')")
db.execute(f"CREATE TABLE want AS SELECT window_start::TIMESTAMP AS window_start, event, events FROM read_csv('{data}/a_events_per_type_per_hour.csv.gz')")
one = lambda q: db.execute(q).fetchone()[0]
months = db.execute(f"SELECT month, sum(amount)::DECIMAL(38,4)::VARCHAR FROM read_parquet('{out}/revenue/*.parquet') GROUP BY 1 ORDER BY 1").fetchall()
print(json.dumps({
  "hours": one("SELECT count(*) FROM got"),
  "missing": one("SELECT count(*) FROM (SELECT * FROM want EXCEPT ALL SELECT * FROM got)"),
  "extra": one("SELECT count(*) FROM (SELECT * FROM got EXCEPT ALL SELECT * FROM want)"),
  "months": dict(months),
  "once": one(f"SELECT count(*) FROM read_parquet('{out}/once/*.parquet')"),
  "distinct": one(f"SELECT count(*) FROM (SELECT DISTINCT CustomerID, StockCode, event, InvoiceDate FROM read_parquet('{out}/once/*.parquet'))"),
}))
"#;

#[test]
fn real_orders_give_the_stored_answers_to_the_last_digit() {
    let Some(data) = data() else {
        println!("left out: LEAT_TEST_DATA is not set");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let orders = data.join("retail-events/online-retail-2010-12_2011-06.csv.zst");
    let mut command = leat();
    command.args(["dev", "-f", "tests/fixtures/retail-events.yaml", "--until-done", "--output", "json"]);
    command.arg("--input").arg(format!("orders={}", orders.display())).arg("--state").arg(folder.path());
    let output = command.output().expect("leat starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
    let expected: Value =
        serde_json::from_slice(&std::fs::read(data.join("retail-events/expected/summary.json")).expect("the answers")).expect("JSON");

    assert_eq!(report["taken"], expected["rows"]);
    let once = report["ledger"].as_array().expect("a ledger").iter().find(|e| e[0] == "once (keyed)").expect("the step");
    assert_eq!(once[1]["deduplicated"], expected["c_duplicates_visitor_not_null"]["surplus_rows"]);
    let got = duckdb(QUERY, &[folder.path().to_str().expect("a path"), data.to_str().expect("a path")]).expect("DuckDB answers");
    assert_eq!((&got["hours"], &got["missing"], &got["extra"]), (&expected["a_rows"], &Value::from(0), &Value::from(0)));
    assert_eq!(got["months"], expected["revenue_by_month"]);
    let visitors = expected["rows_with_visitor"].as_u64().expect("a count") - 3_630;
    assert_eq!((got["once"].as_u64(), got["distinct"].as_u64()), (Some(visitors), Some(visitors)));
}
