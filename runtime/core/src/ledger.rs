//! The ledger: where every record went. Kept with the cut, so it is as exact as the output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a step or sink did with the rows that came in. `taken` always equals the sum of the others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Counts {
    /// Rows that came in.
    #[serde(rename = "in", skip_serializing_if = "is_zero")]
    pub taken: u64,
    /// Rows that went on.
    #[serde(skip_serializing_if = "is_zero")]
    pub passed: u64,
    /// Rows for which a filter was not TRUE.
    #[serde(skip_serializing_if = "is_zero")]
    pub filtered: u64,
    /// Rows that could not be decoded or failed a rule, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rejected: BTreeMap<String, u64>,
    /// Rows that repeat an earlier one.
    #[serde(skip_serializing_if = "is_zero")]
    pub deduplicated: u64,
    /// Rows that came after their window, or behind the horizon, was closed.
    #[serde(skip_serializing_if = "is_zero")]
    pub late: u64,
    /// Rows that went into a window or a file.
    #[serde(skip_serializing_if = "is_zero")]
    pub absorbed: u64,
    /// Rows that a step made of what it absorbed; not part of the sum.
    #[serde(skip_serializing_if = "is_zero")]
    pub emitted: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Counts {
    /// All rejects.
    pub fn rejects(&self) -> u64 {
        self.rejected.values().sum()
    }

    /// Whether every row that came in is accounted for.
    pub fn adds_up(&self) -> bool {
        self.taken == self.passed + self.filtered + self.rejects() + self.deduplicated + self.late + self.absorbed
    }

    /// Counts `n` rejects for `reason`.
    pub fn reject(&mut self, reason: &str, n: u64) {
        if n > 0 {
            match self.rejected.get_mut(reason) {
                Some(count) => *count += n,
                None => drop(self.rejected.insert(reason.to_owned(), n)),
            }
        }
    }

    /// Adds another task's counts.
    pub fn add(&mut self, other: &Counts) {
        self.taken += other.taken;
        self.passed += other.passed;
        self.filtered += other.filtered;
        self.deduplicated += other.deduplicated;
        self.late += other.late;
        self.absorbed += other.absorbed;
        self.emitted += other.emitted;
        for (reason, n) in &other.rejected {
            self.reject(reason, *n);
        }
    }
}

/// Counts by the name of the source, step or sink.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger(pub BTreeMap<String, Counts>);

impl Ledger {
    /// The counts of `name`.
    pub fn of(&mut self, name: &str) -> &mut Counts {
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), Counts::default());
        }
        self.0.entry(name.to_owned()).or_default()
    }

    /// Adds another task's ledger.
    pub fn add(&mut self, other: &Ledger) {
        for (name, counts) in &other.0 {
            self.of(name).add(counts);
        }
    }

    /// The first name whose rows are not all accounted for.
    pub fn gap(&self) -> Option<&str> {
        self.0.iter().find(|(_, c)| !c.adds_up()).map(|(name, _)| name.as_str())
    }
}
