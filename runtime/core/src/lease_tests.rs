//! Workers that see late and differently what the others do: 1,000 leases find their way to 50 workers, and back.

use std::collections::BTreeMap;

use super::*;

/// Workers take in turns until nobody wants anything: how many each has then, and how many were moved.
fn settle(owners: &[&str], alive: &[&str]) -> (Vec<usize>, usize) {
    let alive: Vec<String> = alive.iter().map(|s| (*s).to_owned()).collect();
    let lease = |(i, owner): (usize, &&str)| Lease { task: i.to_string(), owner: (*owner).to_owned() };
    let mut leases: Vec<Lease> = owners.iter().enumerate().map(lease).collect();
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
    assert_eq!(settle(&["a", "a"], &["b"]), (vec![2], 2));
    assert_eq!(to_take("c", &["a".to_owned()], &[]), Vec::<String>::new());
}

/// A small generator of numbers (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

/// A fleet whose workers look once in a round, each at a moment of its own. They see leases as they were up to a tenth of a
/// round before, and who is alive up to a round before. Whoever writes last has the lease, as in the table.
struct Fleet {
    random: Random,
    leases: Vec<Lease>,
    alive: Vec<String>,
    /// The table as it was, newest last.
    past: Vec<(Vec<Lease>, Vec<String>)>,
    takes: usize,
}

impl Fleet {
    fn new(seed: u64, leases: usize) -> Self {
        let leases = (0..leases).map(|i| Lease { task: format!("{i:04}"), owner: String::new() }).collect();
        Self { random: Random(seed), leases, alive: Vec::new(), past: Vec::new(), takes: 0 }
    }

    fn join(&mut self, from: usize, to: usize) {
        self.alive.extend((from..to).map(|i| format!("worker-{i:02}")));
    }

    fn round(&mut self) {
        let mut order = self.alive.clone();
        for i in (1..order.len()).rev() {
            order.swap(i, self.random.below(i + 1));
        }
        for me in order {
            self.past.push((self.leases.clone(), self.alive.clone()));
            let (round, looks) = (self.alive.len(), self.past.len());
            let leases = &self.past[looks - 1 - self.random.below(looks.min(round / 10 + 1))].0;
            let alive = &self.past[looks - 1 - self.random.below(looks.min(round))].1;
            if !alive.contains(&me) {
                continue;
            }
            let take = to_take(&me, alive, leases);
            for lease in self.leases.iter_mut().filter(|l| take.contains(&l.task)) {
                self.takes += 1;
                lease.owner.clone_from(&me);
            }
        }
        self.past.drain(..self.past.len().saturating_sub(self.alive.len()));
    }

    /// Rounds until the most loaded worker has at most `most` times the mean; and takes meanwhile.
    fn rounds_until_even(&mut self, most: f64) -> (usize, usize) {
        let before = self.takes;
        for round in 1..200 {
            self.round();
            if self.highest() <= most {
                return (round, self.takes - before);
            }
        }
        panic!("the highest load is {} times the mean", self.highest());
    }

    /// The highest load, as a multiple of the mean; infinite while somebody's lease is nobody's.
    fn highest(&self) -> f64 {
        let mut loads: BTreeMap<&str, usize> = self.alive.iter().map(|a| (a.as_str(), 0)).collect();
        for lease in &self.leases {
            match loads.get_mut(lease.owner.as_str()) {
                Some(load) => *load += 1,
                None => return f64::INFINITY,
            }
        }
        let highest = loads.values().copied().max().unwrap_or_default();
        highest as f64 * self.alive.len() as f64 / self.leases.len() as f64
    }
}

#[test]
fn fifty_workers_share_a_thousand_leases_within_seconds_and_without_a_storm() {
    for seed in 1..=5 {
        let mut fleet = Fleet::new(seed * 7_919, 1_000);
        fleet.join(0, 50);
        let (rounds, takes) = fleet.rounds_until_even(1.1);
        assert!(rounds <= 12 && takes <= 1_300, "begin: {rounds} rounds, {takes} takes");

        // A fifth of the workers dies: only what they had changes hands.
        fleet.alive.drain(..10);
        let (rounds, takes) = fleet.rounds_until_even(1.1);
        assert!(rounds <= 12 && takes <= 300, "ten die: {rounds} rounds, {takes} takes");

        // Ten more come: each takes its share, and nothing else moves.
        fleet.join(50, 60);
        let (rounds, takes) = fleet.rounds_until_even(1.1);
        assert!(rounds <= 12 && takes <= 300, "ten come: {rounds} rounds, {takes} takes");

        // Then everybody stays with what he has.
        for _ in 0..20 {
            fleet.round();
        }
        let before = fleet.takes;
        for _ in 0..50 {
            fleet.round();
        }
        assert_eq!(fleet.takes, before);
    }
}
