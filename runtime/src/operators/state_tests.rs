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
use super::saved::{Run, Saved};
use super::source::SourceChain;
use crate::batch::SourceBatch;

/// Ids and files in the source; a window, ids, sessions and rows of joins behind the repartition stream.
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
            {"name": "visits", "from": ["unique"], "sessionize": {"by": ["user"], "gap": "2m", "aggregate": {"spend": "sum(spend)"}}},
            {"name": "pairs", "from": ["unique"], "join": {"kind": "Interval", "type": "Left", "with": "unique", "keys": {"campaign": "campaign"}, "within": {"after": "10m"}}},
            {"name": "newest", "from": ["unique"], "join": {"kind": "Temporal", "with": "unique", "keys": {"user": "user"}}},
        ],
        "sinks": [
            {"name": "raw", "from": ["events"], "s3": {"location": "s3://lake/raw/", "format": "Raw"}},
            {"name": "sums", "from": ["sums"], "s3": {"location": "s3://lake/sums/", "format": "Parquet"}},
            {"name": "once", "from": ["once"], "s3": {"location": "s3://lake/once/", "format": "Parquet"}},
            {"name": "visits", "from": ["visits"], "s3": {"location": "s3://lake/visits/", "format": "Parquet"}},
            {"name": "pairs", "from": ["pairs"], "s3": {"location": "s3://lake/pairs/", "format": "Parquet"}},
            {"name": "newest", "from": ["newest"], "s3": {"location": "s3://lake/newest/", "format": "Parquet"}},
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
fn snapshots(program: &Arc<Program>) -> (Saved, Saved) {
    let (mut source, mut keyed) = (source(program), keyed(program));
    let rows = source.process(&events()).expect("records").into_iter().filter_map(|r| match r.what {
        super::source::Leaving::Message(message) => Some(message),
        super::source::Leaving::Record { .. } => None,
    });
    let messages: Vec<message::Message> = rows.chain(source.take_partials(&mut BTreeMap::new())).collect();
    assert!(messages.len() > 5, "{} messages", messages.len());
    let record = message::encode(&messages).into();
    keyed.take(message::decode(&record).expect("what was encoded")).expect("what was sent");
    // Some windows are closed, some are open.
    keyed.advance(Watermark(1_793_491_200_000 + 5 * 60_000)).expect("state");
    assert!(keyed.open().0 > 0);
    (saved(|name| source.snapshot(8, name)), saved(|name| keyed.snapshot(8, name).expect("state")))
}

/// A snapshot, its objects named by their numbers.
fn saved(snapshot: impl FnOnce(&mut dyn FnMut() -> String) -> Saved) -> Saved {
    let mut objects = 0;
    snapshot(&mut || {
        objects += 1;
        format!("run-{objects}")
    })
}

/// The object of a run.
fn object<'a>(saved: &'a Saved, run: &Run) -> &'a [u8] {
    saved.new.iter().find(|(name, _)| *name == run.object).map(|(_, bytes)| bytes).expect("an object that was written")
}

fn restore_source(chain: &mut SourceChain, saved: &Saved) {
    for run in chain.restore(&saved.head).expect("a snapshot") {
        chain.load(&run, object(saved, &run)).expect("a run");
    }
}

/// A program and both snapshots, made once.
fn made() -> &'static (Arc<Program>, Saved, Saved) {
    static MADE: std::sync::OnceLock<(Arc<Program>, Saved, Saved)> = std::sync::OnceLock::new();
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
    restore_source(&mut a, &of_source);
    for run in b.restore(&of_keyed.head, true).expect("a snapshot") {
        b.load(&run, object(&of_keyed, &run)).expect("a run");
    }
    assert!(of_source.new.len() >= 3 && of_keyed.new.len() >= 3, "ids stand in objects of their own");
    b.resume(Watermark(1_793_491_200_000 + 5 * 60_000)).expect("state");
    // Ids are known: the same events again are repeats, every one.
    let before = a.ledger.of("unique").deduplicated;
    a.process(&events()).expect("records");
    assert_eq!(a.ledger.of("unique").deduplicated, before + 40);
    // What resumes counts as changed, which is all that differs; ids and cursors are the same.
    let again = saved(|name| b.snapshot(8, name).expect("state"));
    assert_eq!(again.named, of_keyed.named, "what is stored is not written again");
    assert_eq!((again.head.len(), again.new.len()), (of_keyed.head.len(), 0));
}

/// Events of new ids, ten minutes after the others.
fn later() -> SourceBatch {
    let mut batch = events();
    let text = String::from_utf8(batch.data.to_vec()).expect("JSON").replace("T00:0", "T00:1").replace("\"id\":", "\"id\":9");
    let mut ends = Vec::new();
    batch.data = Vec::new().into();
    let mut data: Vec<u8> = Vec::new();
    for event in text.split_inclusive('}') {
        data.extend(event.bytes());
        ends.push(data.len());
    }
    (batch.data, batch.ends) = (data.into(), ends);
    batch
}

#[test]
fn a_snapshot_costs_what_came_since_the_last_one() {
    let program = program();
    let mut first = source(&program);
    first.process(&events()).expect("records");
    let mut number = 0;
    let mut name = || {
        number += 1;
        format!("object-{number}")
    };
    let one = first.snapshot(8, &mut name);
    assert!(one.new.len() == 5 && one.named.len() == 5, "40 ids of an event and its user: {:?}", one.named);
    // It was overtaken before it was written: the next one holds all of it again.
    let two = first.snapshot(8, &mut name);
    assert!(two.new.len() == 5 && !two.named.iter().any(|n| one.named.contains(n)), "{:?}", two.named);
    first.stored(&one.named);
    first.stored(&two.named);
    first.process(&later()).expect("records");
    let three = first.snapshot(8, &mut name);
    assert!(three.named.starts_with(&two.named) && three.new.len() == 5, "{:?}", three.named);
    first.stored(&three.named);

    // Whoever takes over knows every id, and goes on with the same objects.
    let all = Saved { new: [two.new.clone(), three.new.clone()].concat(), ..three.clone() };
    let mut second = source(&program);
    restore_source(&mut second, &all);
    let known = second.ledger.of("unique").deduplicated;
    second.process(&events()).expect("records");
    second.process(&later()).expect("records");
    assert_eq!(second.ledger.of("unique").deduplicated, known + 80);
    let four = second.snapshot(8, &mut name);
    assert_eq!((&four.named, four.new.len()), (&three.named, 0));

    // Two heirs share the ids, which stay where they are: nothing is written again, and nothing of it is theirs to remove.
    let halves = HashRange::split_evenly(2);
    let mut found = 0;
    for half in halves {
        let mut heir = SourceChain::new(&program, 0, &Lineage::new("events", "1", "shard-1"), half, 1, Rules::all());
        for run in heir.inherit(&all.head, half).expect("a snapshot") {
            heir.load(&run, object(&all, &run)).expect("a run");
        }
        let own = heir.snapshot(8, &mut name);
        assert!(own.named.is_empty() && own.new.is_empty(), "{:?}", own.named);
        // Nor for whoever takes over from it.
        let mut heir = SourceChain::new(&program, 0, &Lineage::new("events", "1", "shard-1"), half, 1, Rules::all());
        for run in heir.restore(&own.head).expect("a snapshot") {
            assert!(!run.own);
            heir.load(&run, object(&all, &run)).expect("a run");
        }
        heir.process(&events()).expect("records");
        heir.process(&later()).expect("records");
        found += heir.ledger.of("unique").deduplicated;
    }
    assert_eq!(found, 80, "each id has one heir");

    // An hour and more later nothing of it is needed: its objects are named no more.
    second.watermark += 2 * 3_600_000;
    let five = second.snapshot(8, &mut name);
    assert_eq!((five.named.len(), five.new.len()), (0, 0));
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
        if let Some(bytes) = damage(&of_source.head) {
            prop_assert!(source(program).restore(&bytes).is_err());
            prop_assert!(source(program).inherit(&bytes, HashRange::ALL).is_err());
        }
        if let Some(bytes) = damage(&of_keyed.head) {
            prop_assert!(keyed(program).restore(&bytes, true).is_err());
        }
        let mut chain = source(program);
        let run = &chain.restore(&of_source.head).expect("a snapshot")[0];
        if let Some(bytes) = damage(object(of_source, run)) {
            prop_assert!(chain.load(run, &bytes).is_err());
        }
        let mut chain = keyed(program);
        let runs = chain.restore(&of_keyed.head, true).expect("a snapshot");
        let run = at.get(&runs);
        if let Some(bytes) = damage(object(of_keyed, run)) {
            prop_assert!(chain.load(run, &bytes).is_err());
        }
    }

    /// Whoever writes into a repartition stream of ours may seal what he likes: it is refused or taken, without a panic.
    #[test]
    fn any_body_of_a_message_is_survived(
        edge in 0..made().0.keyed.edges.len(), group in any::<u16>(), number in 1..9_u64, body in proptest::collection::vec(any::<u8>(), 0..300)
    ) {
        let (program, ..) = made();
        let edge = program.keyed.edges[edge].name.as_str().into();
        let lineage = Lineage::new("events", "1", "shard-0");
        let group = leat_runtime_core::key::KeyGroup(group % program.document.key_groups);
        let message = message::Message { edge, lineage, group, number, job: 1, body: body.into() };
        let decoded = message::decode(&message::encode(&[message]).into()).expect("what was encoded");
        drop(keyed(program).take(decoded));
    }
}
