//! Elections against a small model: candidates whose clocks differ, calls that are slow, fail, or succeed unseen.

use proptest::prelude::*;

use super::*;

/// One step of a candidate: who, how long before it looks, and how its write ends.
#[derive(Debug, Clone)]
struct Step {
    who: usize,
    pause: u64,
    /// How long its look takes.
    look: u64,
    /// Time between its look and the moment when the server has its write.
    slow: u64,
    /// The write reaches the server.
    arrives: bool,
    /// The answer reaches the candidate.
    answered: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let look = prop_oneof![4 => Just(0_u64), 1 => 0..12_000_u64];
    (
        0..3_usize,
        0..4_000_u64,
        look,
        prop_oneof![4 => Just(0_u64), 1 => 0..12_000_u64],
        prop::bool::weighted(0.8),
        prop::bool::weighted(0.9),
    )
        .prop_map(|(who, pause, look, slow, arrives, answered)| Step { who, pause, look, slow, arrives, answered })
}

proptest! {
    #[test]
    fn at_most_one_leads(steps in prop::collection::vec(step(), 1..200), starts in prop::array::uniform3(0..1_000_000_u64)) {
        let mut candidates = ["a", "b", "c"].map(Candidate::new);
        let (mut record, mut version, mut now) = (None::<Record>, 0_u64, 0_u64);
        let mut terms = 0;
        for step in steps {
            now += step.pause;
            // Each has a clock of its own that began some other time.
            let of = |i: usize, at: u64| starts[i] + at;
            let looked = record.clone();
            let begun = of(step.who, now);
            now += step.look;
            let candidate = &mut candidates[step.who];
            let next = candidate.decide(looked.as_ref(), of(step.who, now));
            now += step.slow;
            if next == Move::Wait {
                candidate.lost();
            } else if step.arrives {
                // The server takes a write only onto the version that was looked at.
                let same = record.as_ref().map(|r| r.version.clone()) == looked.as_ref().map(|r| r.version.clone());
                if same {
                    version += 1;
                    terms += usize::from(next != Move::Renew);
                    record = Some(Record { holder: candidate.id().to_owned(), duration: LEASE, version: version.to_string() });
                }
                // Refused, or not known: the next look shows.
                if same && step.answered {
                    candidate.wrote(begun);
                }
            }
            let leaders: Vec<usize> = (0..3).filter(|i| candidates[*i].leads(of(*i, now))).collect();
            prop_assert!(leaders.len() <= 1, "{leaders:?} lead at {now}");
        }
        prop_assert!(terms > 0 || record.is_none());
    }
}

#[test]
fn who_releases_is_followed_at_once_and_who_dies_after_its_lease() {
    let mut other = Candidate::new("b");
    let held = Record { holder: "a".to_owned(), duration: LEASE, version: "1".to_owned() };
    assert_eq!(other.decide(Some(&held), 100), Move::Wait);
    assert_eq!(other.decide(Some(&held), 100 + LEASE - 1), Move::Wait);
    assert_eq!(other.decide(Some(&held), 100 + LEASE), Move::Take);
    let renewed = Record { version: "2".to_owned(), ..held };
    assert_eq!(other.decide(Some(&renewed), 200 + LEASE), Move::Wait);
    let released = Record { holder: String::new(), version: "3".to_owned(), ..renewed };
    assert_eq!(other.decide(Some(&released), 201 + LEASE), Move::Take);
    assert_eq!(other.decide(None, 0), Move::Create);
}
