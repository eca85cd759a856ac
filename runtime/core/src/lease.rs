//! Which leases a worker takes: balanced by count. Any lease may be taken at any time without harm; this only decides
//! when it is wise.

use std::collections::BTreeMap;

/// A task as the lease table shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Key of the row.
    pub task: String,
    /// Session that holds it; empty: nobody.
    pub owner: String,
}

/// Tasks that `me` should take now, given the sessions that are alive (mine among them).
///
/// Every worker computes the same share: the tasks of dead sessions and unowned tasks are taken up to an even share;
/// when none is free, one lease at a time is taken from a worker that has at least two more than its share allows.
pub fn to_take(me: &str, alive: &[String], leases: &[Lease]) -> Vec<String> {
    let workers = alive.len().max(1);
    let share = leases.len().div_ceil(workers);
    let mine = leases.iter().filter(|l| l.owner == me).count();
    let mut wanted = share.saturating_sub(mine);
    let free: Vec<&Lease> = leases.iter().filter(|l| !alive.contains(&l.owner)).collect();
    let mut take: Vec<String> = free.iter().take(wanted).map(|l| l.task.clone()).collect();
    wanted -= take.len();
    if take.is_empty() && wanted > 0 {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for lease in leases {
            *counts.entry(&lease.owner).or_default() += 1;
        }
        let richest = counts.into_iter().filter(|(owner, _)| *owner != me).max_by_key(|(_, n)| *n);
        if let Some((owner, _)) = richest.filter(|(_, n)| *n > mine + 1) {
            take.extend(leases.iter().find(|l| l.owner == owner).map(|l| l.task.clone()));
        }
    }
    take
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers take in turns until nobody wants anything: how many each has then, and how many were moved.
    fn settle(owners: &[&str], alive: &[&str]) -> (Vec<usize>, usize) {
        let alive: Vec<String> = alive.iter().map(|s| (*s).to_owned()).collect();
        let mut leases: Vec<Lease> =
            owners.iter().enumerate().map(|(i, o)| Lease { task: i.to_string(), owner: (*o).to_owned() }).collect();
        let mut moved = 0;
        loop {
            let before = moved;
            for me in &alive {
                for task in to_take(me, &alive, &leases) {
                    leases.iter_mut().filter(|l| l.task == task).for_each(|l| l.owner.clone_from(me));
                    moved += 1;
                }
            }
            if moved == before {
                break;
            }
        }
        (alive.iter().map(|me| leases.iter().filter(|l| l.owner == *me).count()).collect(), moved)
    }

    #[test]
    fn shares_are_even_and_nothing_moves_without_need() {
        assert_eq!(settle(&["", "", "", "", ""], &["a", "b"]), (vec![3, 2], 5));
        assert_eq!(settle(&["a", "a", "a", "a"], &["a", "b"]), (vec![2, 2], 2));
        assert_eq!(settle(&["a", "a", "b"], &["a", "b"]), (vec![2, 1], 0));
        assert_eq!(settle(&["dead", "a", "b", "dead"], &["a", "b"]), (vec![2, 2], 2));
    }
}
