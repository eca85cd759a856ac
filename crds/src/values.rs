//! Values that a manifest writes as text: durations, sizes and times. Each is parsed once, here.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A span of time in milliseconds, written as Go does plus `d` for 24 hours: `250ms`, `1m30s`, `7d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(i64);

impl Duration {
    /// A span of `ms` milliseconds.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms)
    }

    /// The span in milliseconds.
    pub const fn millis(self) -> i64 {
        self.0
    }

    /// Parses `text`; the error says what a duration looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a duration; write for example 250ms, 30s, 5m, 24h or 7d");
        let mut rest = text;
        let mut total: f64 = 0.0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(wrong)?;
            let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let scale = match &rest[..unit] {
                "ms" => 1.0,
                "s" => 1_000.0,
                "m" => 60_000.0,
                "h" => 3_600_000.0,
                "d" => 86_400_000.0,
                _ => return Err(wrong()),
            };
            total += number * scale;
            rest = &rest[unit..];
        }
        if total.fract() != 0.0 || total > 1e15 {
            return Err(format!("`{text}` is not a whole number of milliseconds below 30,000 years"));
        }
        Ok(Self(total as i64))
    }
}

impl std::fmt::Display for Duration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut left = self.0;
        for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if left >= size {
                write!(f, "{}{unit}", left / size)?;
                left %= size;
            }
        }
        Ok(())
    }
}

/// A number of bytes, written as a Kubernetes quantity: `512`, `64Ki`, `128Mi`, `5G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// A size of `bytes`.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Parses `text`; the error says what a size looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write for example 64Ki, 128Mi or 1Gi");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let scale: u64 = match &text[digits..] {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(scale).map(Self).ok_or_else(wrong)
    }
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (unit, shift) in [("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A moment, to the millisecond, written as RFC 3339 has it: `2026-11-01T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(jiff::Timestamp);

impl Time {
    /// Milliseconds since the epoch.
    pub fn millis(self) -> i64 {
        self.0.as_millisecond()
    }

    /// Parses `text`; the error says what a time looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let time = text.parse::<jiff::Timestamp>().map_err(|_| ());
        let time = time.and_then(|t| jiff::Timestamp::from_millisecond(t.as_millisecond()).map_err(|_| ()));
        time.map(Self).map_err(|()| format!("`{text}` is not a time; write for example 2026-11-01T00:00:00Z"))
    }
}

impl std::fmt::Display for Time {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

const TIME_PATTERN: &str = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,3})?(Z|[+-][0-9]{2}:[0-9]{2})$";
/// The place of a record in a shard, `NUMBER`, or of one within an aggregated record, `NUMBER.SUB`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceNumber(String);

impl SequenceNumber {
    /// Parses `text`; the error says what a sequence number looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (number, sub) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |t: &str, most: usize| (1..=most).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
        // Below 2¹⁹² and 2³², whatever the digits are.
        if digits(number, 57) && digits(sub, 9) {
            return Ok(Self(text.to_owned()));
        }
        Err(format!("`{text}` is not a sequence number; write its digits, and `.3` behind them for the fourth record of an aggregated one"))
    }
}

impl std::fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

const SEQUENCE_NUMBER_PATTERN: &str = r"^[0-9]{1,57}([.][0-9]{1,9})?$";
const DURATION_PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$";
const SIZE_PATTERN: &str = r"^[0-9]+(k|M|G|T|Ki|Mi|Gi|Ti)?$";
/// What AWS allows in the names of streams and tables.
pub(crate) const AWS_NAME_PATTERN: &str = r"^[a-zA-Z0-9_.-]+$";

/// What is wrong with a text for which the schema has this pattern.
pub(crate) fn mismatch(pattern: &str, text: &str) -> Option<String> {
    match pattern {
        DURATION_PATTERN => Duration::parse(text).err(),
        SIZE_PATTERN => Size::parse(text).err(),
        TIME_PATTERN => Time::parse(text).err(),
        SEQUENCE_NUMBER_PATTERN => SequenceNumber::parse(text).err(),
        AWS_NAME_PATTERN => {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            let wrong = !text.chars().all(fits) || text.chars().all(|c| c == '.');
            wrong.then(|| format!("`{text}` is no name in AWS; letters, digits, `_`, `.` and `-` are"))
        }
        _ => None,
    }
}

macro_rules! text_value {
    ($type:ident, $pattern:expr, $longest:expr, $about:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(d)?;
                $type::parse(&text).map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "pattern": $pattern, "maxLength": $longest, "description": $about})
            }
        }
    };
}

text_value!(Duration, DURATION_PATTERN, 32, "A duration: 250ms, 30s, 5m, 24h, 7d.");
text_value!(Size, SIZE_PATTERN, 32, "A size in bytes: 64Ki, 128Mi, 1Gi.");
text_value!(Time, TIME_PATTERN, 32, "A time (RFC 3339): 2026-11-01T00:00:00Z.");
text_value!(SequenceNumber, SEQUENCE_NUMBER_PATTERN, 67, "A sequence number of Kinesis, with `.SUB` a record within an aggregated one.");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        for (text, ms) in [("250ms", 250), ("1m30s", 90_000), ("7d", 604_800_000), ("1.5h", 5_400_000)] {
            assert_eq!(Duration::parse(text).map(Duration::millis), Ok(ms), "{text}");
        }
        for text in ["", "5", "m", "5 m", "-1s", "1.5ms", "5y"] {
            assert!(Duration::parse(text).is_err(), "{text}");
        }
        assert_eq!(Duration::from_millis(90_061_001).to_string(), "1d1h1m1s1ms");
    }

    #[test]
    fn times_read_as_rfc_3339_writes_them() {
        for (text, ms) in [("1970-01-01T00:00:01Z", 1_000), ("2026-11-01T01:00:00.250+01:00", 1_793_491_200_250)] {
            assert_eq!(Time::parse(text).map(Time::millis), Ok(ms), "{text}");
        }
        assert_eq!(Time::parse("2026-11-01T01:00:00+01:00").map(|t| t.to_string()).as_deref(), Ok("2026-11-01T00:00:00Z"));
        for text in ["", "2026-11-01", "2026-11-01T00:00:00", "2026-13-01T00:00:00Z", "now"] {
            assert!(Time::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sequence_numbers_are_digits() {
        for text in
            ["0", "49590338271490256608559692538361571095921575989136588898", "49590338271490256608559692538361571095921575989136588898.17"]
        {
            assert_eq!(SequenceNumber::parse(text).map(|n| n.to_string()).as_deref(), Ok(text));
        }
        for text in ["", "1.", ".1", "-1", "1.2.3", "LATEST", "1.1234567890", &"9".repeat(58)] {
            assert!(SequenceNumber::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_as_kubernetes_writes_them() {
        assert_eq!(Size::parse("128Mi").map(Size::bytes), Ok(134_217_728));
        assert_eq!(Size::parse("5k").map(Size::bytes), Ok(5_000));
        assert!(Size::parse("128MB").is_err());
        assert_eq!(Size::from_bytes(134_217_728).to_string(), "128Mi");
    }
}
