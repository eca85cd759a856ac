//! What becomes of records that an aggregate brought to the wrong shard.

use leat_compile::{References, compile};
use serde_json::{Value, json};

use super::*;

/// The steps of a source of `id`s with an archive, a file and dead letters.
fn chain(kpl: Option<&str>) -> SourceChain {
    let mut spec = json!({
        "streams": [{"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 1}}}],
        "sources": [{"name": "events", "stream": "events", "format": "Json", "columns": {"id": "BIGINT"}}],
        "sinks": [
            {"name": "archive", "from": ["events"], "s3": {"location": "s3://lake/raw/", "format": "Raw"}},
            {"name": "out", "from": ["events"], "s3": {"location": "s3://lake/out/", "format": "Parquet"}},
        ],
        "deadLetter": {"s3": {"location": "s3://lake/dead/"}},
    });
    if let Some(kpl) = kpl {
        spec["sources"][0]["kpl"] = json!({"wrongShard": kpl});
    }
    let spec = serde_json::from_value(spec).expect("a spec");
    let program = compile("n", "p", spec, &References::default()).unwrap_or_else(|p| panic!("{p:?}"));
    assert_eq!(program.document.version, if kpl.is_some() { 2 } else { 1 });
    SourceChain::new(&Arc::new(program), 0, &Lineage::new("events", "1", "shard-0"), HashRange::ALL, 1, Rules::all())
}

/// Records of an aggregate; those named are strays.
fn batch(records: &[&str], strays: &[u32]) -> SourceBatch {
    let (mut data, mut ends) = (Vec::new(), Vec::new());
    for record in records {
        data.extend_from_slice(record.as_bytes());
        ends.push(data.len());
    }
    let positions = (0..records.len()).map(|sub| Offset::new(7).inside(sub as u32)).collect();
    let arrivals = vec![1_790_000_000_000; records.len()];
    SourceBatch { data: data.into(), ends, positions, arrivals, strays: strays.to_vec(), ..SourceBatch::default() }
}

/// Rows in each of the program's files.
fn rows(chain: &mut SourceChain) -> BTreeMap<String, usize> {
    let program = Arc::clone(&chain.program);
    let count = |rows: &FileRows| rows.buffers().flat_map(|(_, b)| &b.batches).map(RecordBatch::num_rows).sum();
    chain.files().map(|(i, rows)| (program.files[i].name.clone(), count(rows))).collect()
}

#[test]
fn records_in_the_wrong_shard_are_dead_letters_or_left_out_and_always_counted() {
    // The last is a stray that cannot be read either: it is told of once.
    let records = batch(&["{\"id\":1}", "{\"id\":2}", "{", "{\"id\":4}", "nothing"], &[1, 4]);
    let file =
        |archive: usize, out: usize, dead: usize| -> Value { json!({"archive (sink)": archive, "out (sink)": out, "dead letters": dead}) };
    for (kpl, dead, passed, filtered) in [(None, 3, 2, 0), (Some("DeadLetter"), 3, 2, 0), (Some("Drop"), 0, 0, 5)] {
        let mut chain = chain(kpl);
        chain.process(&records).expect("records");
        assert_eq!(
            serde_json::to_value(rows(&mut chain)).expect("JSON"),
            file(5 - filtered - if filtered == 0 { 2 } else { 0 }, passed, dead)
        );
        // An aggregate that is all the shard's own, and a plain record, are taken either way.
        let more =
            SourceBatch { positions: vec![Offset::new(8), Offset::new(8).inside(1), Offset::new(9)], ..batch(&["{\"id\":5}"; 3], &[]) };
        chain.process(&more).expect("records");
        let counts = chain.ledger.of("events").clone();
        assert!(
            counts.adds_up() && counts.taken == 8 && counts.passed == passed as u64 + 3 && counts.filtered == filtered as u64,
            "{counts:?}"
        );
        assert_eq!(counts.rejected.get("wrong-shard").copied().unwrap_or_default(), if filtered == 0 { 2 } else { 0 });
        assert_eq!(chain.ledger.gap(), None);
    }
}
