//! Which leases a worker takes: balanced by their number. Any lease may be taken at any time without harm; this only
//! decides when it is wise.
//!
//! Every worker computes the same assignment from what it sees, so two that see the same never want the same lease. What
//! they see is never quite the same: that costs a lost write now and then, and nothing else.
//! Nothing may decide here that one worker alone remembers, such as a rate that it has measured: two that remember differently
//! disagree for ever, and the lease that each leaves to the other is nobody's.

use std::collections::BTreeMap;

/// Leases that one worker takes in one round at most: when many begin at once, the first one does not take all.
pub const FREE_AT_ONCE: usize = 32;
/// Leases that one worker takes from another in one round at most; each has to be recovered.
const MOVED_AT_ONCE: usize = 4;
/// A lease is moved only between workers whose numbers differ by more than this part of an even share, and by more than
/// one: less is not worth a recovery.
const UNEVEN: f64 = 0.1;

/// A task as the lease table shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Key of the row.
    pub task: String,
    /// Session that holds it; empty: nobody.
    pub owner: String,
}

/// Tasks that `me` should take now, given the sessions that are alive (mine among them).
pub fn to_take(me: &str, alive: &[String], leases: &[Lease]) -> Vec<String> {
    let mut loads: BTreeMap<&str, usize> = alive.iter().map(|session| (session.as_str(), 0)).collect();
    let mut free: Vec<&Lease> = Vec::new();
    for lease in leases {
        match loads.get_mut(lease.owner.as_str()) {
            Some(load) => *load += 1,
            None => free.push(lease),
        }
    }
    if free.is_empty() {
        return moved(me, &loads, leases);
    }
    // Each to whoever has least; of two that have the same, one is always the first.
    let mut mine = Vec::new();
    for lease in free {
        let Some((session, load)) = loads.iter_mut().min_by_key(|(session, load)| (**load, **session)) else { return mine };
        *load += 1;
        if *session == me && mine.len() < FREE_AT_ONCE {
            mine.push(lease.task.clone());
        }
    }
    mine
}

/// The poorest takes from the richest, the second poorest from the second richest, and so on: nobody loses to two.
fn moved(me: &str, loads: &BTreeMap<&str, usize>, leases: &[Lease]) -> Vec<String> {
    let mut workers: Vec<(usize, &str)> = loads.iter().map(|(session, load)| (*load, *session)).collect();
    workers.sort_unstable();
    let Some(place) = workers.iter().position(|(_, session)| *session == me) else { return Vec::new() };
    let (load, rich) = workers[workers.len() - 1 - place];
    let gap = load.saturating_sub(workers[place].0);
    let share = leases.len() as f64 / workers.len() as f64;
    if gap < 2 || (gap as f64) <= UNEVEN * share {
        return Vec::new();
    }
    leases.iter().filter(|l| l.owner == rich).take((gap / 2).min(MOVED_AT_ONCE)).map(|l| l.task.clone()).collect()
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
