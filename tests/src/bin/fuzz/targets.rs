//! What is fuzzed: readers of records, of what tasks send each other and keep, and of what users write.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kafka_protocol::records::{Compression, Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};
use leat_compile::program::Program;
use leat_runtime::batch::SourceBatch;
use leat_runtime::codecs::decoder::Decoder;
use leat_runtime::codecs::framing::Framing;
use leat_runtime::codecs::kpl;
use leat_runtime::connectors::kafka::records;
use leat_runtime::operators::keyed::KeyedChain;
use leat_runtime::operators::saved::Saved;
use leat_runtime::operators::source::{Leaving, SourceChain};
use leat_runtime::operators::stream;
use leat_runtime_core::key::{HashRange, hash, partition_hash};
use leat_runtime_core::message::{self, Message};
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::row::{KeyedRow, OpenFile, Origin, Part, PipelineRow, Snapshot, SourceRow, Staged, Status};
use leat_runtime_core::rules::Rules;
use leat_runtime_core::watermark::Watermark;

/// Reads an input; answers how it ended, or what is wrong with that.
pub type Run = Box<dyn FnMut(&[u8]) -> Result<String, String>>;

/// Something that reads bytes.
pub struct Target {
    pub name: &'static str,
    pub make: fn() -> Run,
    /// Valid inputs.
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// Makes a changed input look whole.
    pub seal: fn(Vec<u8>) -> Vec<u8>,
}

/// All of them.
pub const TARGETS: [Target; 12] = [
    Target { name: "json", make: json, corpus: json_events, seal: |input| input },
    Target { name: "csv", make: csv, corpus: csv_events, seal: |input| input },
    Target { name: "framing", make: framing, corpus: csv_events, seal: |input| input },
    Target { name: "staged", make: staged_rows, corpus: staged_corpus, seal: sealed },
    Target { name: "kpl", make: kpl_records, corpus: kpl_messages, seal: |input| input },
    Target { name: "kafka", make: kafka, corpus: kafka_batches, seal: with_checksums },
    Target { name: "message", make: messages, corpus: message_records, seal: sealed },
    Target { name: "source", make: source_state, corpus: || states().0, seal: sealed },
    Target { name: "keyed", make: keyed_state, corpus: || states().1, seal: sealed },
    Target { name: "rows", make: rows, corpus: row_bodies, seal: |input| input },
    Target { name: "manifest", make: manifest, corpus: manifests, seal: |input| input },
    Target { name: "job", make: job, corpus: jobs, seal: |input| input },
];

/// Without files in the tasks of sources: rows that wait for them stand in the state as Arrow IPC, whose reader panics on bytes that
/// nobody has written. They are behind a seal.
const SPEC: &str = r#"
apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: fuzz, namespace: tests}
spec:
  streams: [{name: events, kinesis: {streamName: events, shards: {initial: 1}}}]
  sources:
    - {name: events, stream: events, format: FORMAT, partitionedBy: [user], eventTime: {field: ts}, CSV
       columns: {id: BIGINT, user: TEXT, campaign: TEXT, ts: TIMESTAMP, spend: "DECIMAL(18,4)", ratio: DOUBLE, ok: BOOLEAN, day: DATE}}
  steps:
    - {name: unique, from: [events], deduplicate: {by: [id], keyedWith: [user], within: 1h}}
    - {name: sums, from: [unique], window: {tumbling: 1m}, groupBy: [campaign], aggregate: {rows: "count(*)", s: "sum(spend)", a: "min(user)", m: "avg(spend)"}}
    - {name: once, from: [unique], deduplicate: {by: [id], keyedWith: [campaign], within: 1h}}
    - {name: visits, from: [unique], sessionize: {by: [user], gap: 2m, aggregate: {s: "sum(spend)"}}}
    - {name: pairs, from: [unique], join: {kind: Interval, type: Left, with: unique, keys: {campaign: campaign}, within: {after: 10m}}}
    - {name: newest, from: [unique], join: {kind: Temporal, with: unique, keys: {user: user}}}
  sinks:
    - {name: all, from: [once], s3: {location: "s3://lake/once/", format: Parquet}}
    - {name: sums, from: [sums], s3: {location: "s3://lake/sums/", format: Parquet}}
    - {name: visits, from: [visits], s3: {location: "s3://lake/visits/", format: Parquet}}
    - {name: pairs, from: [pairs], s3: {location: "s3://lake/pairs/", format: Parquet}}
    - {name: newest, from: [newest], s3: {location: "s3://lake/newest/", format: Parquet}}
"#;

fn program(format: &str) -> Arc<Program> {
    let csv = if format == "Csv" { "csv: {header: [id, user, campaign, ts, spend, ratio, ok, day]}," } else { "" };
    let text = SPEC.replace("FORMAT", format).replace("CSV", csv);
    let documents = leat::manifest::documents("fuzz.yaml", &text).unwrap_or_else(|p| panic!("{p:?}"));
    Arc::new(leat::manifest::pipeline(&documents, Default::default()).unwrap_or_else(|p| panic!("{p:?}")).program)
}

fn batch(record: &[u8]) -> SourceBatch {
    SourceBatch {
        data: Bytes::copy_from_slice(record),
        ends: vec![record.len()],
        positions: vec![Offset::new(1)],
        arrivals: vec![1_793_491_200_000],
        ..SourceBatch::default()
    }
}

fn decode(decoder: &mut Decoder, record: &[u8]) -> Result<Option<String>, String> {
    let decoded = decoder.decode(&batch(record));
    match (decoded.rows.num_rows(), decoded.rejects.as_slice()) {
        (1, []) => Ok(None),
        // Numbers in what is said are no other way to end.
        (0, [reject]) => Ok(Some(format!("{} {}", reject.reason, reject.detail.replace(|c: char| c.is_ascii_digit(), "")))),
        (rows, rejects) => Err(format!("one record became {rows} rows and {} rejects", rejects.len())),
    }
}

/// The decoder takes what another one takes for JSON, and nothing else.
fn json() -> Run {
    let program = program("Json");
    let mut decoder = Decoder::new(&program.sources[0].decode);
    Box::new(move |input| {
        let theirs = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(input);
        match (decode(&mut decoder, input)?, theirs) {
            // By the grammar a text that nobody reads may hold halves of characters, and a number may be too large for a float.
            (None, Err(why)) if ["surrogate", "hex escape", "out of range"].iter().any(|fine| why.to_string().contains(fine)) => {
                Ok(String::new())
            }
            (None, Err(why)) => Err(format!("it is no JSON and was taken: {why}")),
            // A field that is there twice, or deeper than either follows.
            (Some(way), Ok(_)) if way.starts_with("malformed") && !way.contains("twice") && !way.contains("deep") => {
                Err(format!("it is JSON and was refused: {way}"))
            }
            (way, _) => Ok(way.unwrap_or_default()),
        }
    })
}

fn json_events() -> Vec<Vec<u8>> {
    [
        r#"{"id":1,"user":"u","campaign":null,"ts":"2026-11-01T00:00:00.5Z","spend":"1.25","ratio":1e-3,"ok":true,"day":"2026-11-01"}"#,
        r#"{"id":-9223372036854775808,"ts":"2026-11-01T00:00:00+01:00","spend":-0.0001,"x":{"a":[1,2.5E+7,{"b":[]}],"c":"\ud83d\ude00\u0000\n"},"user":"\"\\/é"}"#,
        r#" { "id" : 12 , "spend" : 99999999999999.9999 , "day" : "0001-01-01" , "ratio":-0.0, "ok" : false } "#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

fn csv() -> Run {
    let program = program("Csv");
    let mut decoder = Decoder::new(&program.sources[0].decode);
    Box::new(move |input| decode(&mut decoder, input).map(Option::unwrap_or_default))
}

fn csv_events() -> Vec<Vec<u8>> {
    [
        "1,u,c,2026-11-01T00:00:00Z,1.25,0.5,true,2026-11-01",
        "2,\"a \"\"quoted\"\", text\",,2026-11-01 00:00:00,,,,",
        "\"\",\"\r\n\",x,y,z,,,\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// A file as one reader takes it, and as another one that gets it in pieces: the same records, which are all of it.
fn framing() -> Run {
    Box::new(|input| {
        let mut count = 0;
        for framing in [Framing::Lines, Framing::Csv { header: false, delimiter: b',' }] {
            let (mut rest, mut whole) = (input, Vec::new());
            while framing.next(&mut rest, &mut whole).map_err(|e| e.to_string())? {
                whole.push(b'\n');
            }
            let (mut held, mut pieces, mut in_pieces) = (Vec::new(), input.chunks(7).peekable(), Vec::new());
            while let Some(piece) = pieces.next() {
                held.extend(piece);
                while let Some((record, length)) = framing.split(&held, pieces.peek().is_none()) {
                    in_pieces.extend(&held[..record]);
                    in_pieces.push(b'\n');
                    held.drain(..length);
                    count += 1;
                }
            }
            if whole != in_pieces || !held.is_empty() {
                return Err(format!("{framing:?}: in pieces it is something else, {} bytes are left", held.len()));
            }
        }
        Ok(count.min(20).to_string())
    })
}

/// Rows that wait for a stream: what is read is written so that it is read the same, and makes records.
fn staged_rows() -> Run {
    Box::new(|input| {
        let rows = match stream::decode(input) {
            Err(why) => return Ok(why.to_string()),
            Ok(rows) => rows,
        };
        let records = rows.iter().map(|row| row.record("id").data.len() + row.topic_record().value.len()).sum::<usize>();
        match stream::decode(&stream::encode(&rows)) {
            Ok(again) if again == rows => Ok(format!("{} {}", rows.len().min(9), records > 0)),
            _ => Err("what was written is read as something else".to_owned()),
        }
    })
}

fn staged_corpus() -> Vec<Vec<u8>> {
    let row = |key: Option<&str>, json: &[u8]| stream::StreamRow { key: key.map(str::to_owned), json: json.to_vec() };
    vec![stream::encode(&[row(None, b"{}"), row(Some("user-7"), br#"{"n":7,"user":"user-7"}"#)]), stream::encode(&[])]
}

/// The message of an aggregated record; what begins and ends one is put around it.
fn kpl_records() -> Run {
    Box::new(|input| {
        let whole = [&[0xF3, 0x89, 0x9A, 0xC2], input, &partition_hash(input).to_be_bytes()].concat();
        let Some(records) = kpl::take_apart(&whole) else { return Ok("none".to_owned()) };
        let size: usize = records.iter().map(|r| r.data.len()).sum();
        // A part may stand once and be used once; only keys are shared.
        if size > input.len() { Err(format!("{} bytes became {size}", input.len())) } else { Ok(format!("{}", records.len().min(20))) }
    })
}

fn kpl_messages() -> Vec<Vec<u8>> {
    let parts = b"\x0a\x01a\x0a\x01b\x12\x017\x1a\x07\x08\x00\x1a\x03one\x1a\x09\x08\x01\x10\x00\x1a\x03two";
    vec![parts.to_vec(), b"\x0a\x04user\x1a\x04\x08\x00\x1a\x00".to_vec()]
}

fn kafka() -> Run {
    Box::new(|input| match records::read(Bytes::copy_from_slice(input), 0, &[]) {
        Err(why) => Ok(why.replace(|c: char| c.is_ascii_digit(), "")),
        Ok(records) if records.batch.ends.last().is_some_and(|end| *end != records.batch.data.len()) => {
            Err("records without an end".to_owned())
        }
        Ok(records) => Ok(format!("{} {}", records.batch.len().min(9), records.next > 0)),
    })
}

/// A batch as it is, and one compressed by gzip; the names of the other codecs come by change.
fn kafka_batches() -> Vec<Vec<u8>> {
    let record = |n: i64| Record {
        transactional: false,
        control: false,
        delete_horizon: false,
        partition_leader_epoch: 3,
        producer_id: -1,
        producer_epoch: -1,
        timestamp_type: TimestampType::Creation,
        offset: n,
        sequence: -1,
        timestamp: 1_793_491_200_000 + n,
        key: (n % 2 == 0).then(|| Bytes::from_static(b"key")),
        value: (n % 3 != 0).then(|| Bytes::from_static(b"{\"id\":1}")),
        headers: Default::default(),
    };
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut out, (0..6).map(record).collect::<Vec<_>>().iter(), &options).expect("a batch");
    let plain = out.to_vec();
    // A header of 61 bytes, in which the codec is the last bits of the byte at 22 and the length behind it stands at 8.
    let mut packed = plain[..61].to_vec();
    let mut gzip = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
    gzip.write_all(&plain[61..]).and_then(|()| gzip.finish().map(drop)).expect("compressed");
    packed[22] |= 1;
    let length = (packed.len() as u32 - 12).to_be_bytes();
    packed[8..12].copy_from_slice(&length);
    let packed = with_checksums(packed);
    vec![plain.clone(), packed.clone(), [plain, packed].concat()]
}

/// Each batch with the checksum of what it holds now (CRC-32C over what stands behind it).
fn with_checksums(mut input: Vec<u8>) -> Vec<u8> {
    let mut at = 0;
    while let Some(length) = input.get(at + 8..at + 12).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes) {
        let end = at.saturating_add(12).saturating_add(length as usize);
        if end > input.len() || end < at + 21 {
            break;
        }
        let mut crc = u32::MAX;
        for byte in &input[at + 21..end] {
            crc ^= u32::from(*byte);
            (0..8).for_each(|_| crc = if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 });
        }
        input[at + 17..at + 21].copy_from_slice(&(!crc).to_be_bytes());
        at = end;
    }
    input
}

/// With the hash of what it is now at its end.
fn sealed(mut input: Vec<u8>) -> Vec<u8> {
    input.truncate(input.len().saturating_sub(8));
    let seal = hash(&input).to_le_bytes();
    input.extend(seal);
    input
}

/// Messages are read and taken by the task that they are for.
fn messages() -> Run {
    let program = program("Json");
    Box::new(move |input| {
        let messages = match message::decode(&Bytes::copy_from_slice(input)) {
            Err(why) => return Ok(why.to_string()),
            Ok(messages) => messages,
        };
        let mut chain = KeyedChain::new(&program, 0, 1, Rules::all());
        let taken = chain.take(messages);
        chain.advance(Watermark(1_793_491_200_000)).expect("state");
        chain.advance(Watermark::MAX).expect("state");
        Ok(format!("{taken:?} {}", chain.take_outputs().len()))
    })
}

fn events() -> SourceBatch {
    let (mut data, mut ends, mut keys, mut key_ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..40 {
        let user = format!("user-{}", n % 7);
        let time = format!("2026-11-01T00:{:02}:00Z", n / 4);
        let event = format!(r#"{{"id":{},"user":"{user}","campaign":"c-{}","ts":"{time}","spend":"1.25","ok":true}}"#, n % 30, n % 5);
        data.extend(event.into_bytes());
        ends.push(data.len());
        keys.extend(user.into_bytes());
        key_ends.push(keys.len());
    }
    let positions: Vec<Offset> = (1..=40).map(Offset::new).collect();
    SourceBatch {
        data: data.into(),
        ends,
        positions,
        arrivals: vec![1_793_491_200_000; 40],
        keys: keys.into(),
        key_ends,
        ..SourceBatch::default()
    }
}

fn source(program: &Arc<Program>) -> SourceChain {
    SourceChain::new(program, 0, &Lineage::new("events", "1", "shard-0"), HashRange::ALL, 1, Rules::all())
}

/// What a source task sends for the events.
fn sent(chain: &mut SourceChain) -> Vec<Message> {
    let rows = chain.process(&events()).expect("records").into_iter().filter_map(|r| match r.what {
        Leaving::Message(message) => Some(message),
        Leaving::Record { .. } => None,
    });
    rows.chain(chain.take_partials(&mut BTreeMap::new())).collect()
}

fn message_records() -> Vec<Vec<u8>> {
    sent(&mut source(&program("Json"))).chunks(9).map(message::encode).collect()
}

fn saved(snapshot: impl FnOnce(&mut dyn FnMut() -> String) -> Saved) -> Vec<Vec<u8>> {
    let mut objects = 0;
    let saved = snapshot(&mut || {
        objects += 1;
        format!("run-{objects}")
    });
    std::iter::once(saved.head.to_vec()).chain(saved.new.iter().map(|(_, bytes)| bytes.to_vec())).collect()
}

/// Snapshots of both kinds of tasks, each with its head first, then the objects that it names.
fn states() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let program = program("Json");
    let (mut source, mut keyed) = (source(&program), KeyedChain::new(&program, 0, 1, Rules::all()));
    keyed.take(sent(&mut source)).expect("what was sent");
    keyed.advance(Watermark(1_793_491_200_000 + 5 * 60_000)).expect("state");
    (saved(|name| source.snapshot(8, name)), saved(|name| keyed.snapshot(8, name).expect("state")))
}

/// An input is a head, and an object of each step.
fn source_state() -> Run {
    let program = program("Json");
    let head = states().0.swap_remove(0);
    Box::new(move |input| {
        let mut chain = source(&program);
        let restored = chain.restore(input).map(|runs| runs.len().min(9));
        let inherited = source(&program).inherit(input, HashRange::ALL).map(|runs| runs.len().min(9));
        let mut chain = source(&program);
        let runs = chain.restore(&head).expect("a snapshot");
        let loaded: Vec<_> = runs.iter().take(1).map(|run| chain.load(run, input)).collect();
        Ok(format!("{restored:?} {inherited:?} {loaded:?}"))
    })
}

fn keyed_state() -> Run {
    let program = program("Json");
    let head = states().1.swap_remove(0);
    Box::new(move |input| {
        let mut chain = KeyedChain::new(&program, 0, 1, Rules::all());
        // A row that is kept is looked at when it leaves: a damaged one ends the task then, as one that is read does.
        let leaves =
            |chain: &mut KeyedChain| chain.resume(Watermark(1_793_491_200_000 + 6 * 60_000)).and_then(|()| chain.advance(Watermark::MAX));
        let restored = chain.restore(input, true).map(|runs| runs.len().min(9));
        let left = leaves(&mut chain);
        let mut chain = KeyedChain::new(&program, 1, 3, Rules::all());
        let inherited = chain.restore(input, false).map(|runs| runs.len().min(9));
        let mut chain = KeyedChain::new(&program, 0, 1, Rules::all());
        let mut runs = chain.restore(&head, true).expect("a snapshot");
        runs.dedup_by_key(|run| run.step);
        let loaded: Vec<_> = runs.iter().map(|run| chain.load(run, input)).collect();
        let left = [left, leaves(&mut chain)];
        Ok(format!("{restored:?} {inherited:?} {loaded:?} {left:?}"))
    })
}

/// Bodies of rows: what is read is written so that it is read the same.
fn rows() -> Run {
    fn same<T: serde::Serialize + serde::de::DeserializeOwned>(input: &[u8]) -> Result<String, String> {
        let read: T = match serde_json::from_slice(input) {
            Err(why) => return Ok(why.to_string().replace(|c: char| c.is_ascii_digit(), "")),
            Ok(read) => read,
        };
        let once = serde_json::to_string(&read).map_err(|e| e.to_string())?;
        let again: T = serde_json::from_str(&once).map_err(|why| format!("what was written cannot be read: {why}"))?;
        if serde_json::to_string(&again).ok().as_ref() == Some(&once) { Ok(String::new()) } else { Err(format!("not the same: {once}")) }
    }
    Box::new(|input| Ok([same::<SourceRow>(input)?, same::<KeyedRow>(input)?, same::<PipelineRow>(input)?].join("|")))
}

fn row_bodies() -> Vec<Vec<u8>> {
    let mut chain = source(&program("Json"));
    let mut assigned = BTreeMap::new();
    chain.process(&events()).expect("records");
    drop(chain.take_partials(&mut assigned));
    let staged = Staged { to: "sums".to_owned(), object: "staged/p/source/1".to_owned(), cut: 7, rows: 3 };
    let file = OpenFile {
        sink: "raw".to_owned(),
        folder: String::new(),
        destination: "s3://lake/raw/1.parquet".to_owned(),
        upload: "1".to_owned(),
        parts: vec![Part { number: 1, tag: "t".to_owned(), size: 9 }],
        tail: Some("tails/1".to_owned()),
        rows: 5,
        opened: 1,
        covers: vec!["staged/1".to_owned()],
    };
    let snapshot = Snapshot { objects: vec!["snapshots/1".to_owned()], position: Some(Offset::new(4)), size: 3 };
    let source = SourceRow {
        origin: Origin::Parents {
            snapshots: vec![snapshot.clone()],
            watermark: Watermark(5),
            hash_range: ("0".to_owned(), "9".to_owned()),
        },
        status: Status::Live,
        idle: true,
        position: Some(Offset::new(40).inside(3)),
        taken: 40,
        watermark: Watermark(9),
        newest: 9,
        numbers: assigned,
        unsent: vec![staged.clone()],
        files: vec![file.clone()],
        complete: vec![file.clone()],
        flushed: BTreeMap::from([("raw".to_owned(), BTreeMap::from([("hour=1".to_owned(), 3)]))]),
        filed: BTreeMap::from([("raw".to_owned(), 3)]),
        raises: vec![(None, Watermark::MAX), (Some(Offset::new(3)), Watermark(2))],
        snapshot: Some(snapshot.clone()),
        end_snapshot: None,
        begins: Some(Offset::new(1)),
        continues: true,
        children: vec![Lineage::new("events", "1", "shard-1")],
        ledger: chain.ledger.clone(),
    };
    let keyed = KeyedRow {
        position: Some(Offset::new(7)),
        watermark: Watermark::MIN,
        unsent: vec![staged],
        complete: vec![file],
        snapshot: Some(snapshot.clone()),
        inherits: vec![snapshot],
        roots_version: 2,
        dirty: 1,
        open: 3,
        pressed: true,
        ledger: chain.ledger.clone(),
    };
    let json = |row: serde_json::Result<Vec<u8>>| row.expect("JSON");
    vec![json(serde_json::to_vec(&source)), json(serde_json::to_vec(&keyed)), json(serde_json::to_vec(&PipelineRow::default()))]
}

/// Manifests as users write them: whatever stands there, it is refused with a place and a sentence, or compiled.
fn manifest() -> Run {
    Box::new(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return Ok("no text".to_owned()) };
        let documents = match leat::manifest::documents("fuzz.yaml", text) {
            Err(problems) => return told(&problems),
            Ok(documents) => documents,
        };
        match leat::manifest::pipeline(&documents, Default::default()) {
            Err(problems) => told(&problems),
            Ok(_) => Ok(String::new()),
        }
    })
}

fn told<T: std::fmt::Display>(problems: &[T]) -> Result<String, String> {
    match problems.first().map(ToString::to_string) {
        None => Err("it was refused without a word".to_owned()),
        Some(first) => Ok(first.replace(|c: char| c.is_ascii_digit(), "").split_whitespace().take(8).collect::<Vec<_>>().join(" ")),
    }
}

fn manifests() -> Vec<Vec<u8>> {
    let examples = ["orders", "ads"]
        .map(|name| std::fs::read(leat_tests::repository().join(format!("manifests/pipelines/{name}.yaml"))).expect("an example"));
    examples.into_iter().chain([SPEC.replace("FORMAT", "Json").replace("CSV", "").into_bytes()]).collect()
}

/// Job documents as an operator of another version may write them.
fn job() -> Run {
    Box::new(|input| match leat_crds::job::read(input) {
        Err(why) => Ok(why.replace(|c: char| c.is_ascii_digit(), "")),
        Ok(document) => Ok(format!("{}", leat_compile::compile_document(document).is_ok())),
    })
}

fn jobs() -> Vec<Vec<u8>> {
    vec![serde_json::to_vec(&program("Json").document).expect("JSON")]
}
