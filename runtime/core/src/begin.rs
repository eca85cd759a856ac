//! Where the lineages of a source are begun whose positions somebody knows: an application of the Kinesis Client Library by
//! its lease table, or the manifest; and which files a source has. Decided once, when the source becomes a part of the pipeline, and never again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::listing::Listing;
use crate::position::Offset;

/// How far a shard was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nothing of it was.
    Nothing,
    /// Up to this record, which was.
    Behind(Offset),
    /// All of it.
    Ended,
    /// Nothing is said but where it would have been begun: the checkpoint.
    Unsaid(String),
}

impl Known {
    /// What a lease of the Kinesis Client Library says by its attributes `checkpoint` and `checkpointSubSequenceNumber`
    /// (`ExtendedSequenceNumber` and `SentinelCheckpoint` of the library).
    pub fn of_lease(checkpoint: &str, sub: u64) -> Result<Self, String> {
        match checkpoint {
            "SHARD_END" => Ok(Self::Ended),
            "TRIM_HORIZON" => Ok(Self::Nothing),
            "LATEST" | "AT_TIMESTAMP" => Ok(Self::Unsaid(checkpoint.to_owned())),
            number => {
                let sub = u32::try_from(sub).map_err(|_| format!("`{sub}` is no number of a record within another"))?;
                let offset: Offset = number.parse().map_err(|e| format!("{e}"))?;
                Ok(Self::Behind(offset.inside(sub)))
            }
        }
    }
}

/// Where the lineages of a source are begun: with their oldest record, but for these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Partitions that were read to their end: they are no part of the pipeline.
    pub ended: BTreeSet<String>,
    /// Partitions that are begun behind a record.
    pub behind: BTreeMap<String, Offset>,
    /// The files of a source that reads files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Listing>,
}

/// A shard of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listed {
    /// Where it comes from.
    pub parents: Vec<String>,
    /// No more records come.
    pub closed: bool,
}

/// Decides for the shards of a stream. One of which nothing is known but a descendant is was read to its end, unless a shard
/// before it was not; others of which nothing is known are begun with their oldest record, so that nothing is lost.
pub fn decide(shards: &BTreeMap<String, Listed>, known: &BTreeMap<String, Known>) -> Result<Begin, String> {
    let here: BTreeMap<&String, &Known> = known.iter().filter(|(shard, _)| shards.contains_key(*shard)).collect();
    if here.is_empty() {
        return Err("it knows none of the shards that the stream has".to_owned());
    }
    let mut begin = Begin::default();
    for (shard, known) in &here {
        let before = ancestors(shards, shard);
        let unfinished = before.iter().find(|a| here.get(**a).is_some_and(|k| **k != Known::Ended));
        match known {
            Known::Unsaid(checkpoint) => {
                let help = "let the application take a record of each shard before it is stopped, or say `positions`";
                return Err(format!("the checkpoint of {shard} is {checkpoint}, which is no position: {help}"));
            }
            Known::Ended if !shards[*shard].closed => {
                return Err(format!("{shard} was read to its end, it says, but the shard is open: is it about another stream?"));
            }
            Known::Ended | Known::Behind(_) if unfinished.is_some() => {
                let before = unfinished.map(|a| a.as_str()).unwrap_or_default();
                return Err(format!("records of {shard} were taken, it says, but not all of {before}, which ended before: leave one out"));
            }
            Known::Ended => drop(begin.ended.insert((*shard).clone())),
            Known::Behind(record) => drop(begin.behind.insert((*shard).clone(), *record)),
            Known::Nothing => {}
        }
        if unfinished.is_none() {
            begin.ended.extend(before.into_iter().filter(|a| !here.contains_key(*a)).cloned());
        }
    }
    Ok(begin)
}

/// All shards that a shard comes from.
fn ancestors<'a>(shards: &'a BTreeMap<String, Listed>, shard: &str) -> BTreeSet<&'a String> {
    let (mut found, mut next) = (BTreeSet::new(), vec![shard]);
    while let Some(shard) = next.pop() {
        for parent in shards.get(shard).into_iter().flat_map(|s| &s.parents) {
            if found.insert(parent) {
                next.push(parent);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 0 was split into 1 and 2, then 1 and 2 merged to 3; 4 stands alone.
    fn shards() -> BTreeMap<String, Listed> {
        let shard = |id: &str, parents: &[&str], closed: bool| {
            (id.to_owned(), Listed { parents: parents.iter().map(|p| (*p).to_owned()).collect(), closed })
        };
        let (first, last) = ([shard("0", &[], true), shard("1", &["0"], true), shard("2", &["0"], true)], shard("3", &["1", "2"], false));
        first.into_iter().chain([last, shard("4", &[], false)]).collect()
    }

    fn begun(known: &[(&str, &str, u64)]) -> Result<Begin, String> {
        let known = known.iter().map(|(shard, checkpoint, sub)| Ok(((*shard).to_owned(), Known::of_lease(checkpoint, *sub)?)));
        decide(&shards(), &known.collect::<Result<_, String>>()?)
    }

    fn says(begin: Result<Begin, String>) -> (Vec<String>, Vec<(String, String)>) {
        let begin = begin.expect("a decision");
        (begin.ended.into_iter().collect(), begin.behind.into_iter().map(|(s, o)| (s, o.to_string())).collect())
    }

    #[test]
    fn what_is_known_of_a_shard_says_what_became_of_those_before_it() {
        let behind = |shard: &str, at: &str| (shard.to_owned(), at.to_owned());
        // The library forgets leases of shards that ended once their children are read.
        assert_eq!(says(begun(&[("3", "77", 2)])), (vec!["0".into(), "1".into(), "2".into()], vec![behind("3", "77.2")]));
        // In the middle of a merge: one parent has ended, the other has not, the child waits.
        let merging = begun(&[("1", "SHARD_END", 0), ("2", "50", 0), ("3", "TRIM_HORIZON", 0)]);
        assert_eq!(says(merging), (vec!["0".into(), "1".into()], vec![behind("2", "50")]));
        // The application has made the rows of children, and not begun them: those between are no less there.
        assert_eq!(says(begun(&[("0", "9", 0), ("3", "TRIM_HORIZON", 0)])), (vec![], vec![behind("0", "9")]));
        // 4 is unknown, and no ancestor of what is: it is read whole.
        assert_eq!(says(begun(&[("0", "9", 0)])), (vec![], vec![behind("0", "9")]));
        // A lease of a shard that is gone from the stream says nothing any more.
        assert_eq!(says(begun(&[("-1", "SHARD_END", 0), ("0", "TRIM_HORIZON", 0)])), (vec![], vec![]));
    }

    #[test]
    fn what_is_no_position_is_refused() {
        let none = "it knows none of the shards that the stream has";
        assert_eq!(begun(&[]), Err(none.to_owned()));
        assert_eq!(begun(&[("another", "5", 0)]), Err(none.to_owned()));
        for checkpoint in ["LATEST", "AT_TIMESTAMP"] {
            let refused = begun(&[("4", checkpoint, 0)]).expect_err("no position");
            assert!(refused.starts_with(&format!("the checkpoint of 4 is {checkpoint}, which is no position")), "{refused}");
        }
        let refused = begun(&[("4", "SHARD_END", 0)]).expect_err("it is open");
        assert!(refused.contains("4 was read to its end, it says, but the shard is open"), "{refused}");
        for later in [("1", "5", 0), ("1", "SHARD_END", 0), ("3", "5", 0)] {
            let refused = begun(&[("0", "3", 0), later]).expect_err("its parent was not read to its end");
            assert!(refused.contains("but not all of 0, which ended before"), "{refused}");
        }
        assert!(begun(&[("4", "TRIM_HORIZONT", 0)]).is_err() && begun(&[("4", "5", u64::MAX)]).is_err());
    }
}
