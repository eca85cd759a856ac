//! The watermark of a keyed task: the minimum over all lineages that count.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::key::KeyGroup;
use crate::numbers::{Cursor, Numbers};
use crate::position::Lineage;
use crate::row::{Fence, PipelineRow, SourceRow, Status};
use crate::rules::{Rule, Rules};
use crate::watermark::Watermark;

/// What a keyed task knows of one lineage.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its watermark; `None`: it has no row yet, so anything may come.
    pub watermark: Option<Watermark>,
    /// Its row, which has the last numbers it has assigned; `None`: none count.
    row: Option<Arc<SourceRow>>,
    /// Its task drained, or it is retired, or it has none yet: it assigns no more under this job.
    pub drained: bool,
    /// Number of its last cut.
    pub cut: u64,
}

impl Seen {
    /// The last numbers it has assigned, per edge.
    pub fn numbers(&self) -> impl Iterator<Item = (&String, &Numbers)> {
        self.row.iter().flat_map(|row| &row.numbers)
    }
}

/// Every lineage that counts, as far as the rows tell: the roots, and below each ended lineage its children.
///
/// `pipeline` must have been read before `rows`.
pub fn view(pipeline: &PipelineRow, rows: &BTreeMap<Lineage, (Fence, Arc<SourceRow>)>, rules: Rules) -> BTreeMap<Lineage, Seen> {
    let mut seen = BTreeMap::new();
    let mut open: Vec<&Lineage> = if rules.hold(Rule::Roots) { pipeline.roots.iter().collect() } else { rows.keys().collect() };
    while let Some(lineage) = open.pop() {
        if seen.contains_key(lineage) {
            continue;
        }
        let Some((fence, row)) = rows.get(lineage) else {
            seen.insert(lineage.clone(), Seen { drained: true, ..Seen::default() });
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
        let forgotten =
            (row.status != Status::Live && !rules.hold(Rule::RetNum)) || (!row.unsent.is_empty() && !rules.hold(Rule::Assigned));
        let numbers = (!forgotten).then(|| Arc::clone(row));
        let drained = fence.drained || row.status == Status::Retired;
        seen.insert(lineage.clone(), Seen { watermark: Some(watermark), row: numbers, drained, cut: fence.cut });
    }
    seen
}

/// Cursors of a keyed task: per lineage and edge, per key group.
pub type Cursors = BTreeMap<Lineage, BTreeMap<String, BTreeMap<KeyGroup, Cursor>>>;

/// The watermark of a keyed task: the minimum over all lineages, each of which counts only once its numbers were
/// consumed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Merge {
    applied: BTreeMap<Lineage, Watermark>,
    /// The last look, and the lineages of it whose numbers were not all consumed yet.
    view: Arc<BTreeMap<Lineage, Seen>>,
    waiting: BTreeSet<Lineage>,
    /// The lowest watermark applied of all lineages; `None`: it has to be found again.
    lowest: Option<Watermark>,
}

impl Merge {
    /// A newer look.
    pub fn see(&mut self, view: Arc<BTreeMap<Lineage, Seen>>) {
        self.waiting = view.keys().cloned().collect();
        self.view = view;
        self.lowest = None;
    }

    /// The last look.
    pub fn view(&self) -> &BTreeMap<Lineage, Seen> {
        &self.view
    }

    /// The watermark that may be applied now, given what the rows say and what was consumed of `mine`; `None`: nothing is known.
    pub fn advance(&mut self, cursors: &Cursors, mine: &dyn Fn(KeyGroup) -> bool) -> Option<Watermark> {
        let (view, applied, before) = (&self.view, &mut self.applied, self.waiting.len());
        self.waiting.retain(|lineage| {
            let Some(seen) = view.get(lineage) else { return false };
            let consumed = seen.numbers().all(|(edge, numbers)| {
                let of_edge = cursors.get(lineage).and_then(|edges| edges.get(edge));
                let seen_to = |group| of_edge.and_then(|c| c.get(&group)).map_or(0, Cursor::seen_to);
                numbers.iter().filter(|(group, _)| mine(*group)).all(|(group, last)| seen_to(group) >= last)
            });
            let applied = applied.entry(lineage.clone()).or_insert(Watermark::MIN);
            if let Some(watermark) = seen.watermark.filter(|_| consumed) {
                *applied = watermark.max(*applied);
            }
            !consumed
        });
        if self.waiting.len() < before || self.lowest.is_none() {
            self.lowest = self.view.keys().map(|lineage| self.applied.get(lineage).copied().unwrap_or(Watermark::MIN)).min();
        }
        self.lowest
    }

    /// Whether everything that a lineage has assigned was consumed, as of the last [`Merge::advance`].
    pub fn consumed(&self, lineage: &Lineage) -> bool {
        !self.waiting.contains(lineage)
    }
}
