//! The suite that every source of streams passes: where records are, that they stay there, splits, merges, and what was made anew.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::LocalBoxFuture;
use leat_runtime::engine::ports::{Place, PortError, Source};
use leat_runtime_core::key::{HashRange, partition_hash};
use leat_runtime_core::position::{Lineage, Offset};

use crate::process::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// What a source's suite needs besides the port.
pub struct Feed<'a> {
    /// Puts records with their keys.
    pub send: &'a dyn Fn(Vec<(String, Vec<u8>)>) -> LocalBoxFuture<'a, ()>,
    /// Splits the first shard.
    pub split: &'a dyn Fn() -> LocalBoxFuture<'a, ()>,
    /// Merges the children of that split; `None`: shards are never merged.
    pub merge: Option<&'a dyn Fn() -> LocalBoxFuture<'a, ()>>,
}

/// Records of a shard behind a position, so many or more: position, key, data.
pub async fn read_shard(
    source: &dyn Source,
    lineage: &Lineage,
    mut after: Option<Offset>,
    count: usize,
) -> Vec<(Offset, Vec<u8>, Vec<u8>)> {
    let mut all = Vec::new();
    while all.len() < count {
        let read = until("records", PATIENCE, async || match source.read(lineage, Place::behind(after)).await {
            // A source may ask for patience, as where a subscription can be had once in five seconds.
            Err(PortError::Unclear(why)) => Err(why),
            clear => Ok(clear.expect("records")),
        })
        .await;
        for i in 0..read.batch.len() {
            all.push((read.batch.positions[i], read.batch.key(i).unwrap_or_default().to_vec(), read.batch.record(i).to_vec()));
        }
        assert!(read.batch.arrivals.iter().all(|a| *a > 1_700_000_000_000));
        after = all.last().map(|(o, ..)| *o).or(after);
    }
    all
}

/// Reads a lineage to its end; answers those that go on.
async fn children_of(source: &dyn Source, lineage: &Lineage) -> BTreeSet<Lineage> {
    let mut position = None;
    let ended = until("the end of a shard", PATIENCE, async || {
        let read = source.read(lineage, Place::behind(position)).await.map_err(|e| e.to_string())?;
        position = read.batch.positions.last().copied().or(position);
        if read.end { Ok(read) } else { Err("it goes on".to_owned()) }
    })
    .await;
    ended.children.into_iter().collect()
}

/// The suite of sources, over a source `s` of two shards.
pub async fn source(source: &dyn Source, feed: Feed<'_>) {
    let shards = source.shards("s").await.expect("shards");
    assert_eq!(shards.len(), 2);
    assert!(shards.iter().all(|s| s.parents.is_empty() && s.lineage.source() == "s" && !s.lineage.incarnation().is_empty()));
    let mut ranges: Vec<HashRange> = shards.iter().map(|s| s.range).collect();
    ranges.sort_by_key(|r| r.first);
    assert!(ranges[0].first == 0 && ranges[0].last + 1 == ranges[1].first && ranges[1].last == u128::MAX);
    // A record is where its key puts it, and stays there; with its bytes, whatever they are.
    let records: Vec<(String, Vec<u8>)> = (0..400u32)
        .map(|n| {
            (
                format!("key-{n}"),
                match n % 3 {
                    0 => vec![0xff, 0x00, n as u8],
                    1 => Vec::from(format!("event {n}")),
                    _ => vec![b'x'; 3_000],
                },
            )
        })
        .collect();
    (feed.send)(records.clone()).await;
    let mut seen = BTreeSet::new();
    for shard in &shards {
        let expected: Vec<&(String, Vec<u8>)> =
            records.iter().filter(|(k, _)| (shard.range.first..=shard.range.last).contains(&partition_hash(k.as_bytes()))).collect();
        let all = read_shard(source, &shard.lineage, None, expected.len()).await;
        assert!(all.iter().map(|(_, k, d)| (k.as_slice(), d.as_slice())).eq(expected.iter().map(|(k, d)| (k.as_bytes(), d.as_slice()))));
        assert!(all.windows(2).all(|w| w[0].0 < w[1].0));
        let again = read_shard(source, &shard.lineage, Some(all[9].0), all.len() - 10).await;
        assert!(again[..] == all[10..], "reading after an offset gives the same records");
        seen.extend(all.into_iter().map(|(_, k, _)| k));
    }
    assert_eq!(seen.len(), records.len());
    // A split: the parent ends after its last record and names its children, which share its range.
    (feed.split)().await;
    let after = until("the children", PATIENCE, async || {
        let shards = source.shards("s").await.map_err(|e| e.to_string())?;
        if shards.len() == 4 { Ok(shards) } else { Err(format!("{} shards", shards.len())) }
    })
    .await;
    let children: Vec<_> = after.iter().filter(|s| !s.parents.is_empty()).collect();
    assert_eq!(children.len(), 2);
    let parent = after.iter().find(|s| s.lineage == children[0].parents[0]).expect("the parent");
    assert!(children.iter().all(|c| c.parents == [parent.lineage.clone()]));
    let mut halves: Vec<HashRange> = children.iter().map(|c| c.range).collect();
    halves.sort_by_key(|r| r.first);
    assert!(halves[0].first == parent.range.first && halves[0].last + 1 == halves[1].first && halves[1].last == parent.range.last);
    let named = children_of(source, &parent.lineage).await;
    assert_eq!(named, children.iter().map(|c| c.lineage.clone()).collect());
    // A merge: both end and name the one that goes on with their keys.
    if let Some(merge) = feed.merge {
        (feed.send)(records.clone()).await;
        merge().await;
        let merged = until("the merged shard", PATIENCE, async || {
            let shards = source.shards("s").await.map_err(|e| e.to_string())?;
            shards.into_iter().find(|s| s.parents.len() == 2).ok_or_else(|| "it is not there".to_owned())
        })
        .await;
        assert_eq!(merged.parents.iter().collect::<BTreeSet<_>>(), children.iter().map(|c| &c.lineage).collect());
        assert_eq!(merged.range, parent.range);
        for child in &children {
            assert_eq!(children_of(source, &child.lineage).await, BTreeSet::from([merged.lineage.clone()]));
        }
        (feed.send)(records.clone()).await;
        let of_it = records.iter().filter(|(k, _)| (merged.range.first..=merged.range.last).contains(&partition_hash(k.as_bytes())));
        let all = read_shard(source, &merged.lineage, None, of_it.clone().count()).await;
        assert!(all.iter().map(|(_, k, _)| k.as_slice()).eq(of_it.map(|(k, _)| k.as_bytes())));
    }
    // Another incarnation is another source.
    let stranger = Lineage::new("s", "1", parent.lineage.partition());
    assert!(matches!(source.read(&stranger, Place::Oldest).await, Err(PortError::Fatal(_))));
}
