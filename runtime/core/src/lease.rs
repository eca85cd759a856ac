//! Which leases a worker takes: balanced by the work in them. Any lease may be taken at any time without harm; this only
//! decides when it is wise.
//!
//! Every worker computes the same assignment from what it sees, so two that see the same never want the same lease. What
//! they see is never quite the same: that costs a lost write now and then, and nothing else.

use std::cmp::Ordering;
use std::collections::BTreeMap;

/// Leases that one worker takes in one round at most: when many begin at once, the first one does not take all.
const FREE_AT_ONCE: usize = 32;
/// Leases that one worker takes from another in one round at most; each has to be recovered.
const MOVED_AT_ONCE: usize = 4;
/// Time between two measurements of a task's work, ms.
const LOOK: i64 = 5_000;
/// A lease is moved only if that brings two workers closer by at least this part of an average lease, and by this part of
/// an even share: less is not worth a recovery.
const WORTH: (f64, f64) = (0.5, 0.1);

/// A task as the lease table shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    /// Key of the row.
    pub task: String,
    /// Session that holds it; empty: nobody.
    pub owner: String,
    /// Work in it: records a second, or any other measure that is the same for all leases.
    pub rate: f64,
}

/// How fast the work of each task grows, from what its row says at different times.
#[derive(Debug, Default)]
pub struct Rates(BTreeMap<String, Rate>);

#[derive(Debug)]
struct Rate {
    work: u64,
    at: i64,
    rate: f64,
}

impl Rates {
    /// Looks at the work that tasks have done by now, ms; those that are not there any more are forgotten.
    pub fn look<'a>(&mut self, now: i64, tasks: impl Iterator<Item = (&'a str, u64)>) {
        let mut before = std::mem::take(&mut self.0);
        for (task, work) in tasks {
            let mut rate = before.remove(task).unwrap_or(Rate { work, at: now, rate: 0.0 });
            let passed = now.saturating_sub(rate.at);
            if passed >= LOOK {
                let newest = work.saturating_sub(rate.work) as f64 * 1_000.0 / passed as f64;
                rate = Rate { work, at: now, rate: (rate.rate + newest) / 2.0 };
            }
            self.0.insert(task.to_owned(), rate);
        }
    }

    /// Work a second; 0 for a task that is not known yet.
    pub fn of(&self, task: &str) -> f64 {
        self.0.get(task).map_or(0.0, |rate| rate.rate)
    }
}

/// Tasks that `me` should take now, given the sessions that are alive (mine among them).
pub fn to_take(me: &str, alive: &[String], leases: &[Lease]) -> Vec<String> {
    let mean = leases.iter().map(|l| l.rate).sum::<f64>() / leases.len().max(1) as f64;
    // To hold a lease is work too, also one without records.
    let weight = |lease: &Lease| if mean > 0.0 { 1.0 + lease.rate / mean } else { 1.0 };
    let average = if mean > 0.0 { 2.0 } else { 1.0 };
    let mut loads: BTreeMap<&str, f64> = alive.iter().map(|session| (session.as_str(), 0.0)).collect();
    let mut free: Vec<&Lease> = Vec::new();
    for lease in leases {
        match loads.get_mut(lease.owner.as_str()) {
            Some(load) => *load += weight(lease),
            None => free.push(lease),
        }
    }
    if free.is_empty() {
        return moved(me, &loads, leases, weight, average);
    }
    // The heaviest first, each to whoever has least.
    free.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then_with(|| a.task.cmp(&b.task)));
    let mut mine = Vec::new();
    for lease in free {
        let Some((session, load)) = loads.iter_mut().min_by(|a, b| by_load((a.0, *a.1), (b.0, *b.1))) else { return mine };
        *load += weight(lease);
        if *session == me && mine.len() < FREE_AT_ONCE {
            mine.push(lease.task.clone());
        }
    }
    mine
}

/// Who has less comes first; of two that have the same, one is always the first.
fn by_load(a: (&str, f64), b: (&str, f64)) -> Ordering {
    a.1.total_cmp(&b.1).then_with(|| a.0.cmp(b.0))
}

/// The poorest takes from the richest, the second poorest from the second richest, and so on: nobody loses to two.
fn moved(me: &str, loads: &BTreeMap<&str, f64>, leases: &[Lease], weight: impl Fn(&Lease) -> f64, average: f64) -> Vec<String> {
    let mut workers: Vec<(&str, f64)> = loads.iter().map(|(session, load)| (*session, *load)).collect();
    workers.sort_by(|a, b| by_load(*a, *b));
    let Some(place) = workers.iter().position(|(session, _)| *session == me) else { return Vec::new() };
    let (rich, rich_load) = workers[workers.len() - 1 - place];
    let mut gap = rich_load - workers[place].1;
    let mut theirs: Vec<&Lease> = leases.iter().filter(|l| l.owner == rich).collect();
    theirs.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then_with(|| a.task.cmp(&b.task)));
    let worth = (WORTH.0 * average).max(WORTH.1 * loads.values().sum::<f64>() / loads.len() as f64);
    let mut take = Vec::new();
    for lease in theirs {
        let after = gap - 2.0 * weight(lease);
        if take.len() < MOVED_AT_ONCE && gap - after.abs() >= worth {
            gap = after;
            take.push(lease.task.clone());
        }
    }
    take
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
