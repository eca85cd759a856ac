//! Files that a source reads: those that were there when it became a part of the pipeline, whatever comes later. They are
//! dealt out to lanes in the order of their names, and a lane is one lineage, which has its files one after the other: so
//! many small files are no more tasks than few large ones, and lanes go through time side by side.

use serde::{Deserialize, Serialize};

use crate::key;
use crate::position::{Lineage, Offset};

/// Records of a file are counted below this.
const RECORDS: u64 = 1_000_000_000_000;

/// A file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name below the source's location.
    pub name: String,
    /// What the store says of its content: another one has another.
    pub tag: String,
    /// Bytes.
    pub size: u64,
    /// When it was written, ms: its records arrived then.
    pub modified: i64,
}

/// The files of a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// Where they are.
    pub location: String,
    /// How they are read: other records would have other numbers.
    pub contents: String,
    /// Tells this listing from others.
    incarnation: String,
    /// How many lanes there are.
    pub lanes: u64,
    /// In the order of their names.
    pub files: Vec<File>,
}

impl Listing {
    /// Of the files of a location, in `lanes` lanes unless there are fewer files.
    pub fn new(location: &str, contents: &str, lanes: u64, mut files: Vec<File>) -> Self {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let lanes = lanes.clamp(1, (files.len() as u64).max(1));
        let said = files.iter().flat_map(|f| [&f.name, "\0", &f.tag, "\0"]).collect::<String>();
        let incarnation = key::name(format!("{lanes}\0{contents}\0{said}").as_bytes());
        Self { location: location.to_owned(), contents: contents.to_owned(), incarnation, lanes, files }
    }

    /// The lineages of a source that has these files.
    pub fn lineages(&self, source: &str) -> Vec<Lineage> {
        (0..self.lanes).map(|lane| Lineage::new(source, &self.incarnation, &format!("lane-{lane:03}"))).collect()
    }

    /// The `nth` file of a lineage, from 0; `None`: it has no more.
    pub fn file(&self, lineage: &Lineage, nth: u64) -> Option<&File> {
        let lane: u64 = lineage.partition().strip_prefix("lane-")?.parse().ok()?;
        let at = nth.checked_mul(self.lanes)?.checked_add(lane)?;
        self.files.get(usize::try_from(at).ok()?).filter(|_| lane < self.lanes)
    }
}

/// The offset of a record in a lane: by the number of its file there, from 0, and its own in the file, from 1. In decimal the
/// last twelve digits are the record's. `None`: there are too many.
pub fn offset(file: u64, record: u64) -> Option<Offset> {
    let in_file = (record < RECORDS).then_some(record)?;
    Some(Offset::new(file.checked_mul(RECORDS)?.checked_add(in_file)?))
}

/// File and record of an offset.
pub fn place(offset: Offset) -> Option<(u64, u64)> {
    let number = offset.number()?;
    Some((number / RECORDS, number % RECORDS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: u64, lanes: u64) -> Listing {
        let file = |n| File { name: format!("{n:05}.jsonl"), tag: format!("tag-{n}"), size: n, modified: 0 };
        Listing::new("s3://bucket/in/", "lines", lanes, (0..files).rev().map(file).collect())
    }

    #[test]
    fn each_file_is_in_one_lane_and_lanes_go_through_names_side_by_side() {
        for (files, lanes) in [(1, 8), (8, 8), (9, 8), (100, 7), (5, 1)] {
            let listing = listing(files, lanes);
            let lineages = listing.lineages("s");
            assert_eq!(lineages.len() as u64, lanes.min(files));
            let mut seen = Vec::new();
            for nth in 0..files {
                seen.extend(lineages.iter().filter_map(|lineage| Some(listing.file(lineage, nth)?.name.clone())));
            }
            assert_eq!(seen, listing.files.iter().map(|f| f.name.clone()).collect::<Vec<_>>(), "{files} files, {lanes} lanes");
            assert_eq!(listing.file(&Lineage::new("s", "x", "lane-999"), 0), None);
        }
        assert_ne!(listing(3, 2).lineages("s"), listing(4, 2).lineages("s"));
        assert_ne!(listing(4, 2).lineages("s")[0], listing(4, 3).lineages("s")[0], "other lanes have other files");
    }

    #[test]
    fn offsets_of_a_lane_are_in_the_order_of_its_records() {
        let places = [(0, 1), (0, 2), (0, RECORDS - 1), (1, 0), (1, 1), (17, 42)];
        let offsets: Vec<Offset> = places.iter().map(|(file, record)| offset(*file, *record).expect("an offset")).collect();
        assert!(offsets.is_sorted());
        assert_eq!(offsets.iter().map(|o| place(*o).expect("a place")).collect::<Vec<_>>(), places);
        assert_eq!(offsets[5].to_string(), "17000000000042");
        assert_eq!((offset(0, RECORDS), offset(u64::MAX, 1)), (None, None));
    }
}
