//! Numbers from their text, exactly: no decimal ever passes through a float.

/// An integer, when `text` is one (`7`, `-12`, `3.00`, `2e3`) and fits.
pub fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    if digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit) && !digits.is_empty() {
        let value = digits.iter().fold(0i64, |v, d| v * 10 + i64::from(d - b'0'));
        return Some(if negative { -value } else { value });
    }
    decimal(text, 19, 0).and_then(|v| i64::try_from(v).ok())
}

/// `text · 10^scale` as an integer of at most `precision` digits; `None` when digits would be lost.
///
/// `text` is a JSON number: sign, digits, fraction, exponent.
pub fn decimal(text: &[u8], precision: u8, scale: i8) -> Option<i128> {
    let (negative, rest) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        _ => (false, text),
    };
    let mut value: i128 = 0;
    let mut fraction: i32 = 0;
    let mut zeros: u32 = 0;
    let mut seen_point = false;
    let mut any = false;
    let mut exponent: i32 = 0;
    for (i, byte) in rest.iter().enumerate() {
        match byte {
            b'0'..=b'9' => {
                any = true;
                fraction = fraction.checked_add(i32::from(seen_point))?;
                if *byte == b'0' && value != 0 {
                    // Zeros count only when a digit follows them.
                    zeros += 1;
                } else if *byte != b'0' {
                    value = value.checked_mul(10i128.checked_pow(zeros + 1)?)?.checked_add(i128::from(byte - b'0'))?;
                    zeros = 0;
                }
            }
            b'.' if !seen_point => seen_point = true,
            b'e' | b'E' => {
                let text = std::str::from_utf8(&rest[i + 1..]).ok()?;
                exponent = text.strip_prefix('+').unwrap_or(text).parse().ok()?;
                break;
            }
            _ => return None,
        }
    }
    if !any {
        return None;
    }
    let shift = i32::from(scale).checked_sub(fraction)?.checked_add(exponent)?.checked_add(i32::try_from(zeros).ok()?)?;
    let value = if value == 0 {
        0
    } else if shift >= 0 {
        value.checked_mul(10i128.checked_pow(shift.unsigned_abs())?)?
    } else {
        let divisor = 10i128.checked_pow(shift.unsigned_abs())?;
        (value % divisor == 0).then_some(value / divisor)?
    };
    let fits = value < 10i128.checked_pow(u32::from(precision))?;
    fits.then_some(if negative { -value } else { value })
}

/// A decimal as text.
pub fn format_decimal(value: i128, scale: i8) -> String {
    let scale = usize::try_from(scale).unwrap_or_default();
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let sign = if value < 0 { "-" } else { "" };
    if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_or_refused() {
        let parse = |t: &str| decimal(t.as_bytes(), 18, 4);
        assert_eq!(parse("12.34"), Some(123_400));
        assert_eq!(parse("-0.0001"), Some(-1));
        assert_eq!(parse("1.23450000000000000000000000000000000000000000"), Some(12_345));
        assert_eq!(parse("1.00001"), None);
        assert_eq!(parse("1.5e3"), Some(15_000_000));
        assert_eq!(parse("15000000e-7"), Some(15_000));
        assert_eq!(parse("100000000000000"), None);
        assert_eq!(parse("99999999999999.9999"), Some(999_999_999_999_999_999));
        assert_eq!(parse("0e999999999"), Some(0));
        assert_eq!(parse("1e999999999999"), None);
        assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(integer(b"9223372036854775808"), None);
        assert_eq!((integer(b"3.00"), integer(b"3.5"), integer(b"2e3")), (Some(3), None, Some(2000)));
        assert_eq!((format_decimal(-5, 2), format_decimal(12_345, 0)), ("-0.05".to_owned(), "12345".to_owned()));
    }
}
