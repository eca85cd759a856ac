//! How far a task's output stands in a topic: it is put there together with the output, so that after a crash it tells what
//! need not be sent again.

use std::fmt;
use std::str::FromStr;

use crate::position::Offset;

/// All output of a task up to here is in the topic. Marks of one task are ordered as its output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// None of it.
    Nothing,
    /// What its lineage's records up to this one have become.
    Record(Offset),
    /// What was staged with the cuts before this one, and the first rows of this. Cuts are counted anew where a job makes the task's
    /// row again.
    Cut {
        /// Number of the job.
        job: u64,
        /// Number of the cut.
        cut: u64,
        /// So many of its rows.
        rows: u64,
    },
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Record(offset) => write!(f, "record {offset}"),
            Self::Cut { job, cut, rows } => write!(f, "job {job} cut {cut} rows {rows}"),
        }
    }
}

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a mark of this program");
        let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["nothing"] => Ok(Self::Nothing),
            ["record", offset] => offset.parse().map(Self::Record).map_err(|_| wrong()),
            ["job", job, "cut", cut, "rows", rows] => Ok(Self::Cut { job: number(job)?, cut: number(cut)?, rows: number(rows)? }),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_texts_and_have_an_order() {
        let offset = |text: &str| text.parse().expect("an offset");
        let marks = [
            Mark::Nothing,
            Mark::Record(offset("9")),
            Mark::Record(offset("49590338271490256608559692538361571095921575989136588898")),
            Mark::Record(offset("49590338271490256608559692538361571095921575989136588898.7")),
            Mark::Cut { job: 1, cut: 10, rows: 7 },
            Mark::Cut { job: 2, cut: 9, rows: 7 },
            Mark::Cut { job: 2, cut: 9, rows: u64::MAX },
            Mark::Cut { job: 2, cut: 10, rows: 1 },
        ];
        assert!(marks.is_sorted());
        for mark in marks {
            assert_eq!(mark.to_string().parse(), Ok(mark));
        }
        for wrong in ["", "record", "record x", "job 1", "job 1 cut 1", "job 1 cut 1 rows -1", "nothing 1"] {
            assert!(wrong.parse::<Mark>().is_err(), "{wrong}");
        }
    }
}
