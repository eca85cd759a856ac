//! Watermarks.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// No event older than this is still expected: milliseconds since the epoch, or one of the two ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watermark(pub i64);

impl Watermark {
    /// Before any event.
    pub const MIN: Watermark = Watermark(i64::MIN);
    /// After every event: the input ended.
    pub const MAX: Watermark = Watermark(i64::MAX);

    /// Whether something that ended at `end` and waits for `lateness` more is closed.
    pub fn closes(self, end: i64, lateness: i64) -> bool {
        end.saturating_add(lateness) <= self.0
    }
}

impl fmt::Display for Watermark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Watermark::MIN => f.write_str("min"),
            Watermark::MAX => f.write_str("max"),
            Watermark(ms) => write!(f, "{ms}"),
        }
    }
}

impl Serialize for Watermark {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Watermark {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match String::deserialize(d)?.as_str() {
            "min" => Ok(Watermark::MIN),
            "max" => Ok(Watermark::MAX),
            ms => ms.parse().map(Watermark).map_err(serde::de::Error::custom),
        }
    }
}
