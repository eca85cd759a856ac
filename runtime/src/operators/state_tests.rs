//! State as bytes: what is written is read back the same, and bytes that are damaged are refused, never a panic.

use std::collections::BTreeMap;
use std::sync::Arc;

use leat_compile::program::Program;
use leat_compile::{References, compile};
use leat_runtime_core::key::HashRange;
use leat_runtime_core::message;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::rules::Rules;
use leat_runtime_core::watermark::Watermark;
use proptest::prelude::*;
use serde_json::json;

use super::keyed::KeyedChain;
use super::source::SourceChain;
use crate::batch::SourceBatch;

/// Ids and files in the source, a window and ids behind the repartition stream.
fn program() -> Arc<Program> {
    let spec = json!({
        "streams": [{"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 1}}}],
        "sources": [{
            "name": "events", "stream": "events", "format": "Json", "partitionedBy": ["user"],
            "columns": {"id": "BIGINT", "user": "VARCHAR", "campaign": "VARCHAR", "ts": "TIMESTAMP", "spend": "DECIMAL(18,4)"},
            "eventTime": {"field": "ts"},
        }],
        "steps": [
            {"name": "unique", "from": ["events"], "deduplicate": {"by": ["id"], "keyedWith": ["user"], "within": "1h"}},
            {"name": "sums", "from": ["unique"], "window": {"tumbling": "1m"}, "groupBy": ["campaign"],
             "aggregate": {"n": "count(*)", "spend": "sum(spend)", "first": "min(ts)", "mean": "avg(spend)"}},
            {"name": "once", "from": ["unique"], "deduplicate": {"by": ["id"], "keyedWith": ["campaign"], "within": "1h"}},
        ],
        "sinks": [
            {"name": "raw", "from": ["events"], "s3": {"location": "s3://lake/raw/", "format": "Raw"}},
            {"name": "sums", "from": ["sums"], "s3": {"location": "s3://lake/sums/", "format": "Parquet"}},
            {"name": "once", "from": ["once"], "s3": {"location": "s3://lake/once/", "format": "Parquet"}},
        ],
    });
    compile("n", "p", serde_json::from_value(spec).expect("a spec"), &References::default()).map(Arc::new).expect("a program")
}

fn source(program: &Arc<Program>) -> SourceChain {
    SourceChain::new(program, 0, &Lineage::new("events", "1", "shard-0"), HashRange::ALL, 1, Rules::all())
}

fn keyed(program: &Arc<Program>) -> KeyedChain {
    KeyedChain::new(program, 0, 1, Rules::all())
}

/// Forty events of seven users, with thirty ids.
fn events() -> SourceBatch {
    let (mut data, mut ends, mut keys, mut key_ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..40 {
        let user = format!("user-{}", n % 7);
        let event = json!({"id": n % 30, "user": user, "campaign": format!("campaign-{}", n % 5),
                           "ts": format!("2026-11-01T00:{:02}:00Z", n / 4), "spend": "1.2500"});
        data.extend(event.to_string().into_bytes());
        ends.push(data.len());
        keys.extend(user.into_bytes());
        key_ends.push(keys.len());
    }
    let positions: Vec<Offset> = (1..=40).map(Offset::new).collect();
    let arrivals = vec![1_793_491_200_000; 40];
    SourceBatch { data: data.into(), ends, positions, arrivals, keys: keys.into(), key_ends, ..SourceBatch::default() }
}

/// The state of both kinds of task after the events.
fn snapshots(program: &Arc<Program>) -> (Vec<u8>, Vec<u8>) {
    let (mut source, mut keyed) = (source(program), keyed(program));
    let rows = source.process(&events()).into_iter().filter_map(|r| match r.what {
        super::source::Leaving::Message(message) => Some(message),
        super::source::Leaving::Record { .. } => None,
    });
    let messages: Vec<message::Message> = rows.chain(source.take_partials(&mut BTreeMap::new())).collect();
    assert!(messages.len() > 5, "{} messages", messages.len());
    let record = message::encode(&messages);
    keyed.take(message::decode(&record).expect("what was encoded")).expect("what was sent");
    // Some windows are closed, some are open.
    keyed.advance(Watermark(1_793_491_200_000 + 5 * 60_000));
    assert!(keyed.open().0 > 0);
    (source.snapshot(), keyed.snapshot())
}

/// A program and both snapshots, made once.
fn made() -> &'static (Arc<Program>, Vec<u8>, Vec<u8>) {
    static MADE: std::sync::OnceLock<(Arc<Program>, Vec<u8>, Vec<u8>)> = std::sync::OnceLock::new();
    MADE.get_or_init(|| {
        let program = program();
        let (source, keyed) = snapshots(&program);
        (program, source, keyed)
    })
}

#[test]
fn state_is_read_back_as_it_was_written() {
    let program = program();
    let (of_source, of_keyed) = snapshots(&program);
    let (mut a, mut b) = (source(&program), keyed(&program));
    a.restore(&of_source).expect("a snapshot");
    b.restore(&of_keyed, true).expect("a snapshot");
    b.resume(Watermark(1_793_491_200_000 + 5 * 60_000));
    // Ids are known: the same events again are repeats, every one.
    let before = a.ledger.of("unique").deduplicated;
    drop(a.process(&events()));
    assert_eq!(a.ledger.of("unique").deduplicated, before + 40);
    // What resumes counts as changed, which is all that differs; ids and cursors are the same.
    assert_eq!(b.snapshot().len(), of_keyed.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn damaged_state_is_refused(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>()) {
        let (program, of_source, of_keyed) = made();
        let damage = |whole: &[u8]| {
            let mut bytes = whole.to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if cut {
                bytes.truncate(at);
            }
            (bytes != whole).then_some(bytes)
        };
        if let Some(bytes) = damage(of_source) {
            prop_assert!(source(program).restore(&bytes).is_err());
            prop_assert!(source(program).inherit(&bytes, HashRange::ALL).is_err());
        }
        if let Some(bytes) = damage(of_keyed) {
            prop_assert!(keyed(program).restore(&bytes, true).is_err());
        }
    }

    /// Whoever writes into a repartition stream of ours may seal what he likes: it is refused or taken, without a panic.
    #[test]
    fn any_body_of_a_message_is_survived(
        edge in 0..2_usize, group in any::<u16>(), number in 1..9_u64, body in proptest::collection::vec(any::<u8>(), 0..300)
    ) {
        let (program, ..) = made();
        let edge = program.keyed.edges[edge].name.clone();
        let lineage = Lineage::new("events", "1", "shard-0");
        let group = leat_runtime_core::key::KeyGroup(group % program.document.key_groups);
        let message = message::Message { edge, lineage, group, number, job: 1, body };
        let decoded = message::decode(&message::encode(&[message])).expect("what was encoded");
        drop(keyed(program).take(decoded));
    }
}
