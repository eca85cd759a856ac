//! Times from and to text: RFC 3339, years 0001 to 9999, a time without zone is UTC.

/// Days since 1970-01-01 of a date of the proleptic Gregorian calendar (H. Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", days_from_civil).
pub fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day of days since 1970-01-01 (same source, civil_from_days).
pub fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + days.div_euclid(146_097) * 400 + i64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

fn digits(text: &[u8], from: usize, count: usize) -> Option<i64> {
    let text = text.get(from..from + count)?;
    text.iter().all(u8::is_ascii_digit).then(|| text.iter().fold(0, |v, d| v * 10 + i64::from(d - b'0')))
}

/// Days since the epoch of `YYYY-MM-DD`.
pub fn date(text: &[u8]) -> Option<i32> {
    (text.len() == 10).then_some(())?;
    date_prefix(text)
}

fn date_prefix(text: &[u8]) -> Option<i32> {
    let (year, month, day) = (digits(text, 0, 4)?, digits(text, 5, 2)?, digits(text, 8, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let fits = text[4] == b'-' && text[7] == b'-' && year >= 1 && (1..=length).contains(&day);
    fits.then(|| i32::try_from(days(year, month, day)).ok()).flatten()
}

/// Microseconds since the epoch of `YYYY-MM-DD[T ]HH:MM:SS[.fraction][Z|±HH:MM]`; digits beyond microseconds are cut.
pub fn timestamp(text: &[u8]) -> Option<i64> {
    let day = i64::from(date_prefix(text)?);
    if text.len() == 10 {
        return Some(day * 86_400_000_000);
    }
    let (hour, minute, second) = (digits(text, 11, 2)?, digits(text, 14, 2)?, digits(text, 17, 2)?);
    let shape = matches!(text[10], b'T' | b't' | b' ') && text[13] == b':' && text[16] == b':';
    if !shape || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut micros = 0;
    let mut rest = &text[19..];
    if let [b'.', fraction @ ..] = rest {
        let length = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        for i in 0..6 {
            micros = micros * 10 + if i < length { i64::from(fraction[i] - b'0') } else { 0 };
        }
        rest = &fraction[length..];
    }
    let offset = match rest {
        [] | b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), zone @ ..] if zone.len() == 5 && zone[2] == b':' => {
            let (hours, minutes) = (digits(zone, 0, 2)?, digits(zone, 3, 2)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let seconds = hours * 3_600 + minutes * 60;
            if *sign == b'+' { seconds } else { -seconds }
        }
        _ => return None,
    };
    Some((day * 86_400 + hour * 3_600 + minute * 60 + second - offset) * 1_000_000 + micros)
}

/// A time as `YYYY-MM-DDTHH:MM:SS.mmmZ`.
pub fn format_millis(millis: i64) -> String {
    let (day, of_day) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    let (year, month, date) = civil(day);
    let (seconds, ms) = (of_day / 1000, of_day % 1000);
    format!("{year:04}-{month:02}-{date:02}T{:02}:{:02}:{:02}.{ms:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_rfc_3339_says() {
        assert_eq!(timestamp(b"1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(timestamp(b"2010-12-01 08:26:00"), Some(1_291_191_960_000_000));
        assert_eq!(timestamp(b"2026-11-21T15:00:00.123456789+01:30"), timestamp(b"2026-11-21T13:30:00.123456Z"));
        assert_eq!(timestamp(b"2024-02-29T00:00:00Z").map(|t| t % 86_400_000_000), Some(0));
        for wrong in [
            "2023-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T15:00:00+1",
            "2026-11-21T15:00:00.Z",
            "0000-01-01T00:00:00Z",
            "",
        ] {
            assert_eq!(timestamp(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(format_millis(1_291_191_960_007), "2010-12-01T08:26:00.007Z");
        assert!((-800_000..3_000_000).step_by(37).all(|d| {
            let (y, m, dd) = civil(d);
            days(y, m, dd) == d
        }));
    }
}
