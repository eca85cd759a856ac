//! The watermark of a keyed task: the minimum over all lineages that count.

use std::collections::BTreeMap;

use crate::key::KeyGroup;
use crate::numbers::{Cursor, Numbers};
use crate::position::Lineage;
use crate::row::{PipelineRow, SourceRow, Status};
use crate::rules::{Rule, Rules};
use crate::watermark::Watermark;

/// What a keyed task knows of one lineage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its watermark; `None`: it has no row yet, so anything may come.
    pub watermark: Option<Watermark>,
    /// The last numbers it has assigned, per edge.
    pub numbers: BTreeMap<String, Numbers>,
    /// Its task drained, or it is retired: it assigns no more under this job.
    pub drained: bool,
}

/// Every lineage that counts, as far as the rows tell: the roots, and below each ended lineage its children.
///
/// `pipeline` must have been read before `rows`.
pub fn view(pipeline: &PipelineRow, rows: &BTreeMap<Lineage, SourceRow>, rules: Rules) -> BTreeMap<Lineage, Seen> {
    let mut seen = BTreeMap::new();
    let mut open: Vec<&Lineage> = if rules.hold(Rule::Roots) { pipeline.roots.iter().collect() } else { rows.keys().collect() };
    while let Some(lineage) = open.pop() {
        if seen.contains_key(lineage) {
            continue;
        }
        let Some(row) = rows.get(lineage) else {
            seen.insert(lineage.clone(), Seen::default());
            continue;
        };
        let mut watermark = row.watermark;
        if row.status != Status::Live {
            let children_known = row.children.iter().all(|c| rows.contains_key(c));
            if children_known || !rules.hold(Rule::Bound) {
                watermark = Watermark::MAX;
            }
            if rules.hold(Rule::Bound) || children_known {
                open.extend(&row.children);
            } else {
                open.extend(row.children.iter().filter(|c| rows.contains_key(*c)));
            }
        }
        let mut numbers = row.numbers.clone();
        if row.status != Status::Live && !rules.hold(Rule::RetNum) {
            numbers.clear();
        }
        if !rules.hold(Rule::Assigned) && !row.unsent.is_empty() {
            numbers.clear();
        }
        seen.insert(lineage.clone(), Seen { watermark: Some(watermark), numbers, drained: false });
    }
    seen
}

/// Cursors of a keyed task: per lineage and edge, per key group.
pub type Cursors = BTreeMap<(Lineage, String), BTreeMap<KeyGroup, Cursor>>;

/// The watermark of a keyed task: the minimum over all lineages, each of which counts only once its numbers were
/// consumed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merge {
    applied: BTreeMap<Lineage, Watermark>,
}

impl Merge {
    /// The watermark that may be applied now, given what the rows say and what was consumed of `mine`.
    pub fn advance(&mut self, view: &BTreeMap<Lineage, Seen>, cursors: &Cursors, mine: &dyn Fn(KeyGroup) -> bool) -> Watermark {
        let mut lowest = None;
        for (lineage, seen) in view {
            let consumed = seen.numbers.iter().all(|(edge, numbers)| {
                let of_edge = cursors.get(&(lineage.clone(), edge.clone()));
                numbers
                    .iter()
                    .filter(|(group, _)| mine(*group))
                    .all(|(group, last)| of_edge.and_then(|c| c.get(&group)).map_or(0, Cursor::seen_to) >= last)
            });
            let applied = self.applied.entry(lineage.clone()).or_insert(Watermark::MIN);
            if let Some(watermark) = seen.watermark.filter(|_| consumed) {
                *applied = watermark.max(*applied);
            }
            lowest = Some(lowest.map_or(*applied, |l: Watermark| l.min(*applied)));
        }
        lowest.unwrap_or(Watermark::MIN)
    }
}
