//! The right answer: a plain batch computation over the shards, compared with everything that was committed.
//!
//! It takes from the run only what no batch can know: where idle lineages raised their watermark, where a late root was
//! born, and at which record the job changed.

use std::collections::{BTreeMap, BTreeSet};

use leat_compile::program::RECORD_ID;
use leat_runtime::output::StreamRecord;
use leat_runtime_core::position::Offset;
use leat_runtime_core::row::{Origin, Status};
use leat_runtime_core::rules::Rule;
use leat_runtime_core::watermark::Watermark;

use crate::pipeline::{DISORDER, LATENESS, SLIDING, WINDOW, WITHIN};
use crate::ports::text;
use crate::world::World;

/// The ids seen with the times at which they were taken.
type Ids = BTreeMap<(String, u64), Vec<i64>>;

#[derive(Default)]
struct Expected {
    windows: BTreeMap<(String, i64), (u64, i64)>,
    sliding: BTreeMap<(String, i64), (u64, i64)>,
    unique: Vec<u64>,
    distinct: BTreeSet<u64>,
    ledger: BTreeMap<&'static str, u64>,
    /// Per user the time of the newest event, and the events that have it.
    latest: BTreeMap<String, (i64, Vec<u64>)>,
}

/// Everything that is wrong with what the run has committed.
pub fn judge(world: &World) -> Vec<String> {
    let expected = expected(world);
    let mut wrong = Vec::new();
    for table in ["finals", "updates"] {
        let got: BTreeMap<(String, String), (String, String)> = world
            .items
            .iter()
            .filter(|((t, _), _)| t == table)
            .map(|(_, (item, _))| {
                let attribute = |name: &str| item.attributes.get(name).map(text).unwrap_or_default();
                ((text(&item.key[0].1), text(&item.key[1].1)), (attribute("n"), attribute("total")))
            })
            .collect();
        let want = expected
            .windows
            .iter()
            .map(|((c, start), (n, total))| ((c.clone(), stamp(*start)), (n.to_string(), total.to_string())))
            .collect();
        compare(&format!("table {table}"), &got, &want, &mut wrong);
    }
    let got: BTreeMap<String, (i64, u64)> = world
        .items
        .iter()
        .filter(|((t, _), _)| t == "latest")
        .map(|(_, (item, _))| {
            let number = |name: &str| item.attributes.get(name).and_then(|a| text(a).parse::<u64>().ok()).unwrap_or_default();
            (text(&item.key[0].1), (item.version, number("id")))
        })
        .collect();
    for (user, (time, ids)) in &expected.latest {
        if !got.get(user).is_some_and(|(t, id)| t == time && ids.contains(id)) {
            wrong.push(format!("table latest: {user} is {:?} instead of {time} {ids:?}", got.get(user)));
        }
    }
    if got.len() != expected.latest.len() {
        wrong.push(format!("table latest: {} items instead of {}", got.len(), expected.latest.len()));
    }
    let mut unique = expected.unique.clone();
    unique.sort_unstable();
    let forwarded = records(world, "forwarded", &mut wrong);
    multiset("forwarded records", forwarded.iter().filter_map(|r| r["id"].as_u64()).collect(), unique.clone(), &mut wrong);
    multiset("records of a topic", topic(world, "once").iter().filter_map(|r| r["id"].as_u64()).collect(), unique.clone(), &mut wrong);
    let totals = records(world, "totals", &mut wrong);
    let windows = [
        ("totals", totals, &expected.windows),
        ("sums", topic(world, "sums"), &expected.windows),
        ("windows that slide", lines(world, "slid/").collect(), &expected.sliding),
    ];
    for (what, rows, want) in windows {
        let mut sums: BTreeMap<(String, String), (String, String)> = BTreeMap::new();
        for row in rows {
            let of = |name: &str| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned);
            // Arrow writes no fraction that is zero.
            let start = of("window_start");
            let key = (of("campaign"), if start.contains('.') { start } else { format!("{start}.000") });
            if sums.insert(key.clone(), (of("n"), of("total"))).is_some() {
                wrong.push(format!("{what}: {key:?} is there twice"));
            }
        }
        let want = want.iter().map(|((c, start), (n, total))| ((c.clone(), stamp(*start)), (n.to_string(), total.to_string())));
        compare(what, &sums, &want.collect(), &mut wrong);
    }
    multiset("curated files", ids(world, "curated/"), unique, &mut wrong);
    multiset("distinct files", ids(world, "distinct/"), expected.distinct.into_iter().collect(), &mut wrong);
    let mut ledger: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, row) in world.sources().into_values() {
        if let Some(gap) = row.ledger.gap() {
            wrong.push(format!("the ledger of {gap} does not add up"));
        }
        let of = |name: &str| row.ledger.0.get(name).cloned().unwrap_or_default();
        *ledger.entry("taken").or_default() += of("clicks").taken;
        *ledger.entry("rejected").or_default() += of("valid").rejects();
        *ledger.entry("deduplicated").or_default() += of("unique").deduplicated;
        *ledger.entry("behind").or_default() += of("unique").late;
        *ledger.entry("filtered").or_default() += of("paid").filtered;
        *ledger.entry("late").or_default() += of("finals").late;
        *ledger.entry("absorbed").or_default() += of("finals").absorbed;
    }
    compare("ledger", &ledger.into_iter().filter(|(_, n)| *n > 0).collect(), &expected.ledger, &mut wrong);
    wrong
}

fn stamp(ms: i64) -> String {
    leat_runtime::codecs::time::format_millis(ms).trim_end_matches('Z').to_owned()
}

/// Says where two tables differ.
pub fn compare<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    got: &BTreeMap<K, V>,
    want: &BTreeMap<K, V>,
    wrong: &mut Vec<String>,
) {
    let differs: Vec<String> = want
        .keys()
        .chain(got.keys())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter(|k| got.get(*k) != want.get(*k))
        .map(|k| format!("{k:?}: {:?} instead of {:?}", got.get(k), want.get(k)))
        .collect();
    if !differs.is_empty() {
        wrong.push(format!("{what}: {} differ: {}", differs.len(), differs.iter().take(3).cloned().collect::<Vec<_>>().join("; ")));
    }
}

/// The records of a stream without repeats; one id never stands for two records.
fn records(world: &World, stream: &str, wrong: &mut Vec<String>) -> Vec<serde_json::Value> {
    let mut by_id: BTreeMap<String, &StreamRecord> = BTreeMap::new();
    let mut out = Vec::new();
    for record in world.streams.get(stream).into_iter().flatten() {
        let value: serde_json::Value = serde_json::from_slice(&record.data).unwrap_or_default();
        let id = value[RECORD_ID].as_str().unwrap_or_default().to_owned();
        match by_id.insert(id.clone(), record) {
            None => out.push(value),
            Some(before) if before == record => {}
            Some(_) => wrong.push(format!("stream {stream}: two records have the id {id}")),
        }
    }
    out
}

/// The records of a topic.
fn topic(world: &World, stream: &str) -> Vec<serde_json::Value> {
    let records = world.topics.get(stream).into_iter().flatten();
    records.map(|record| serde_json::from_slice(&record.value).unwrap_or_default()).collect()
}

fn multiset(what: &str, mut got: Vec<u64>, want: Vec<u64>, wrong: &mut Vec<String>) {
    got.sort_unstable();
    if got != want {
        let missing: Vec<&u64> =
            want.iter().filter(|w| got.iter().filter(|g| g == w).count() < want.iter().filter(|x| x == w).count()).take(4).collect();
        let extra: Vec<&u64> =
            got.iter().filter(|g| got.iter().filter(|x| x == g).count() > want.iter().filter(|w| w == g).count()).take(4).collect();
        wrong.push(format!("{what}: {} rows instead of {}; missing {missing:?}, too many {extra:?}", got.len(), want.len()));
    }
}

fn ids(world: &World, prefix: &str) -> Vec<u64> {
    lines(world, prefix).map(|row| row["id"].as_u64().unwrap_or(u64::MAX)).collect()
}

/// The rows of files.
pub fn lines(world: &World, prefix: &str) -> impl Iterator<Item = serde_json::Value> {
    let files = world.files.iter().filter(move |(name, _)| name.starts_with(prefix));
    let lines = files.flat_map(|(_, parts)| parts).flat_map(|part| part.split(|b| *b == b'\n')).filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).unwrap_or_default())
}

/// Of each record of each shard the watermark before it, and whether the second job took it.
pub fn lineages(world: &World) -> Vec<Vec<(i64, bool)>> {
    let rows = world.sources();
    let mut finals: Vec<i64> = Vec::new();
    let mut all = Vec::new();
    // Parents have lower numbers than their children.
    for shard in &world.shards {
        let merge_min = !world.rules.hold(Rule::MergeMin);
        let parents = shard.parents.iter().map(|p| finals[*p]);
        let born = rows.get(&shard.lineage).and_then(|(_, r)| if let Origin::Root(Watermark(w)) = r.origin { Some(w) } else { None });
        let mut watermark = if merge_min { parents.min() } else { parents.max() }.or(born).unwrap_or(i64::MIN);
        let raises = world.raises.get(&shard.lineage).cloned().unwrap_or_default();
        let raise = |at: Option<Offset>, watermark: &mut i64| {
            raises.iter().filter(|(p, _)| *p == at).for_each(|(_, to)| *watermark = (*watermark).max(to.0))
        };
        let row_job = rows.get(&shard.lineage).map_or(1, |(stored, _)| stored.fence.job);
        let flip = world.flips.get(&shard.lineage);
        raise(None, &mut watermark);
        let mut records = Vec::new();
        for (n, record) in shard.records.iter().enumerate() {
            let at = Some(Offset::new(n as u64 + 1));
            let second = match flip {
                Some(position) => at > *position,
                None => row_job > 1,
            };
            records.push((watermark, second));
            watermark = watermark.max(record.time - DISORDER);
            raise(at, &mut watermark);
        }
        finals.push(watermark);
        all.push(records);
    }
    all
}

fn expected(world: &World) -> Expected {
    let mut out = Expected::default();
    let mut states: Vec<Ids> = Vec::new();
    for (shard, lineage) in world.shards.iter().zip(lineages(world)) {
        let mut seen = Ids::new();
        for parent in &shard.parents {
            states[*parent].iter().for_each(|(id, times)| seen.entry(id.clone()).or_default().extend(times));
        }
        for (record, (watermark, second)) in shard.records.iter().zip(lineage) {
            let mut count = |what| *out.ledger.entry(what).or_default() += 1;
            count("taken");
            let key = (record.user.clone(), record.id);
            let known = seen.entry(key).or_default();
            let repeats = known.iter().any(|t| t.saturating_add(WITHIN) >= watermark && (record.time - t).abs() <= WITHIN);
            if !record.valid {
                count("rejected");
            } else if record.time.saturating_add(WITHIN) < watermark {
                count("behind");
            } else if repeats {
                count("deduplicated");
            } else {
                known.push(record.time);
                out.unique.push(record.id);
                let latest = out.latest.entry(record.user.clone()).or_insert((record.time, Vec::new()));
                if record.time > latest.0 {
                    *latest = (record.time, Vec::new());
                }
                if record.time == latest.0 {
                    latest.1.push(record.id);
                }
                match record.campaign {
                    Some(campaign) if !(second && record.kind == "view") => {
                        out.distinct.insert(record.id);
                        let (size, slide) = SLIDING;
                        let last = record.time.div_euclid(slide) * slide;
                        if last + slide + LATENESS > watermark {
                            for start in (last - size + slide..=last).step_by(slide as usize) {
                                let window = out.sliding.entry((campaign.to_owned(), start)).or_default();
                                window.0 += 1;
                                window.1 += record.spend;
                            }
                        }
                        let start = record.time.div_euclid(WINDOW) * WINDOW;
                        if start + WINDOW + LATENESS <= watermark {
                            count("late");
                        } else {
                            count("absorbed");
                            let window = out.windows.entry((campaign.to_owned(), start)).or_default();
                            window.0 += 1;
                            window.1 += record.spend;
                        }
                    }
                    _ => count("filtered"),
                }
            }
        }
        states.push(seen);
    }
    out
}

/// Whether the run has come to its end: everything taken, acknowledged, and every window closed.
pub fn complete(world: &World) -> bool {
    let pipeline = world.pipeline();
    let rows = world.sources();
    let retired = world.shards.iter().all(|s| rows.get(&s.lineage).is_some_and(|(_, r)| r.status == Status::Retired));
    retired
        && pipeline.draining_for.is_none()
        && pipeline.joining.is_empty()
        && world.keyed().len() >= usize::from(pipeline.partitions)
        && world.keyed().values().all(|(stored, k)| {
            stored.fence.job == pipeline.job
                && k.watermark == Watermark::MAX
                && k.unsent.is_empty()
                && k.complete.is_empty()
                && k.dirty == 0
                && k.open == 0
        })
}
