//! The right answer for sessions and joins: a plain batch computation over the records that were not late.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::oracle::{compare, lineages, lines};
use crate::pipeline::{AROUND, BEHIND, GAP};
use crate::world::{Record, World};

/// A record that is not late for a join: its lineage and number there, which say what is newer of one time.
struct Row<'a> {
    record: &'a Record,
    place: (usize, usize),
    second: bool,
}

impl Row<'_> {
    fn is_view(&self) -> bool {
        self.record.kind == "view" && !(self.second && self.record.spend == 5)
    }

    fn age(&self) -> (i64, (usize, usize)) {
        (self.record.time, self.place)
    }
}

/// Everything that is wrong with what the run has committed.
pub fn judge(world: &World) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = world.shards.iter().zip(lineages(world)).enumerate().flat_map(|(shard, (s, lineage))| {
        s.records.iter().zip(lineage).enumerate().map(move |(n, (record, (watermark, second)))| (record, (shard, n), watermark, second))
    });
    let rows: Vec<Row<'_>> = all
        .filter(|(record, _, watermark, _)| record.valid && record.time + BEHIND >= *watermark)
        .map(|(record, place, _, second)| Row { record, place, second })
        .collect();
    compare("sessions", &count(lines(world, "sessions/").map(|row| session_of(&row))), &count(sessions(&rows)), &mut wrong);
    let pair = |row: Value| (row["id"].as_u64(), row["clicked_id"].as_u64());
    let views = || rows.iter().filter(|row| row.is_view());
    let clicks = || rows.iter().filter(|row| row.record.kind == "click");
    let near = |view: &Row<'_>, click: &Row<'_>| (view.record.time - AROUND.0..=view.record.time + AROUND.1).contains(&click.record.time);
    let mut pairs = Vec::new();
    let mut inner = Vec::new();
    let mut newest = Vec::new();
    for view in views() {
        let id = Some(view.record.id);
        let met = clicks().filter(|click| near(view, click));
        let campaign = met.clone().filter(|click| view.record.campaign.is_some() && view.record.campaign == click.record.campaign);
        let found: Vec<_> = campaign.map(|click| (id, Some(click.record.id))).collect();
        pairs.extend(if found.is_empty() { vec![(id, None)] } else { found });
        inner.extend(met.filter(|click| view.record.user == click.record.user).map(|click| (id, Some(click.record.id))));
        let known = clicks().filter(|click| view.record.user == click.record.user && click.record.time <= view.record.time);
        newest.push((id, known.max_by_key(|click| click.age()).map(|click| click.record.id)));
    }
    compare("pairs", &count(lines(world, "pairs/").map(pair)), &count(pairs), &mut wrong);
    compare("inner pairs", &count(lines(world, "inner/").map(pair)), &count(inner), &mut wrong);
    compare("newest", &count(lines(world, "newest/").map(pair)), &count(newest), &mut wrong);
    for (_, row) in world.sources().into_values() {
        wrong.extend(row.ledger.gap().map(|gap| format!("the ledger of {gap} does not add up")));
    }
    let absorbed = |name: &str| world.sources().values().map(|(_, row)| row.ledger.0.get(name).map_or(0, |c| c.absorbed)).sum::<u64>();
    let counted = BTreeMap::from(["sessions", "pairs", "pairs.with"].map(|name| (name, absorbed(name))));
    let wanted = BTreeMap::from([("sessions", rows.len()), ("pairs", views().count()), ("pairs.with", clicks().count())]);
    compare("ledger", &counted, &wanted.into_iter().map(|(name, n)| (name, n as u64)).collect(), &mut wrong);
    wrong
}

/// User, start and end, number and sum.
type Session = (String, String, String, u64, String);

fn session_of(row: &Value) -> Session {
    let text = |name: &str| row[name].as_str().map_or_else(|| row[name].to_string(), str::to_owned);
    (text("user"), text("session_start"), text("session_end"), row["n"].as_u64().unwrap_or_default(), text("total"))
}

fn sessions(rows: &[Row<'_>]) -> Vec<Session> {
    let mut by_user: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    rows.iter().for_each(|row| by_user.entry(&row.record.user).or_default().push(row.record));
    let mut out = Vec::new();
    for (user, mut records) in by_user {
        records.sort_by_key(|r| r.time);
        for one in records.chunk_by(|a, b| b.time - a.time <= GAP) {
            let time = |record: Option<&&Record>| stamp(record.map_or(0, |r| r.time));
            let total: i64 = one.iter().map(|r| r.spend).sum();
            out.push((user.to_owned(), time(one.first()), time(one.last()), one.len() as u64, total.to_string()));
        }
    }
    out
}

/// As Arrow writes it: no fraction that is zero.
fn stamp(ms: i64) -> String {
    let text = leat_runtime::codecs::time::format_millis(ms).trim_end_matches('Z').to_owned();
    text.trim_end_matches(".000").to_owned()
}

fn count<T: Ord>(rows: impl IntoIterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    rows.into_iter().for_each(|row| *counts.entry(row).or_default() += 1);
    counts
}
