//! Who of several operators reconciles: the decision, as Kubernetes' own components make it (client-go,
//! `tools/leaderelection`). Pure: times are milliseconds of the candidate's own steady clock.
//!
//! Guarantees: at most one leads, as long as every clock runs at about the same speed; clocks are never compared, since a
//! candidate counts from when it saw the record change. Who cannot renew stops before others may take over, by the
//! difference between [`LEASE`] and [`DEADLINE`].

/// How long a leader is believed without a renewal, ms.
pub const LEASE: u64 = 15_000;
/// A leader that could not renew for so long stops, ms.
pub const DEADLINE: u64 = 10_000;
/// Time between two looks, ms.
pub const RETRY: u64 = 2_000;

/// The record that candidates share.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Who leads; empty: nobody.
    pub holder: String,
    /// How long the holder asked to be believed, ms.
    pub duration: u64,
    /// Changes with every write.
    pub version: String,
}

/// One of several operators.
#[derive(Debug, Clone)]
pub struct Candidate {
    id: String,
    /// The record as it was last seen to change, and when.
    seen: Option<(Record, u64)>,
    /// When the last renewal that succeeded was begun.
    renewed: Option<u64>,
}

/// What a candidate does next. Each write is conditional on the version of the record that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// There is no record: it writes the first.
    Create,
    /// It takes over.
    Take,
    /// It goes on leading.
    Renew,
    /// Somebody else leads.
    Wait,
}

impl Candidate {
    /// One that has not looked yet. No two have the same id.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), seen: None, renewed: None }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What to do about a record that was looked at now.
    pub fn decide(&mut self, record: Option<&Record>, now: u64) -> Move {
        let Some(record) = record else { return Move::Create };
        if self.seen.as_ref().is_none_or(|(seen, _)| seen.version != record.version) {
            self.seen = Some((record.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        if record.holder == self.id {
            Move::Renew
        } else if record.holder.is_empty() || now.saturating_sub(since) >= record.duration {
            Move::Take
        } else {
            Move::Wait
        }
    }

    /// A write that was begun at `begun` succeeded.
    pub fn wrote(&mut self, begun: u64) {
        self.renewed = Some(begun);
    }

    /// Somebody else has the record.
    pub fn lost(&mut self) {
        self.renewed = None;
    }

    /// When the last renewal that succeeded was begun.
    pub fn renewed(&self) -> Option<u64> {
        self.renewed
    }

    /// Whether it leads.
    pub fn leads(&self, now: u64) -> bool {
        self.renewed.is_some_and(|renewed| now.saturating_sub(renewed) < DEADLINE)
    }
}

#[cfg(test)]
#[path = "election_tests.rs"]
mod tests;
