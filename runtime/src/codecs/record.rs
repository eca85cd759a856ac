//! What the decoders of records share: what comes out, why a record is refused, and the text of a field to its value.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::datatypes::{DataType, SchemaRef};
use leat_compile::definition::Bounds;

use super::{number, time};
use crate::codecs::column::{Column, Scalar};

/// A record that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    /// Index of the record in its batch.
    pub record: usize,
    /// Short and stable: `malformed` or `schema`.
    pub reason: &'static str,
    /// What exactly, with the byte or the field.
    pub detail: String,
}

/// Rows decoded from a batch.
#[derive(Debug)]
pub struct Decoded {
    /// The columns in use.
    pub rows: RecordBatch,
    /// Index of the record that each row came from.
    pub origins: Vec<u32>,
    /// The records that make no row.
    pub rejects: Vec<Reject>,
}

/// Why a record is refused.
pub(super) struct Stop {
    pub reason: &'static str,
    pub detail: String,
}

pub(super) fn malformed(at: usize, what: &str) -> Stop {
    Stop { reason: "malformed", detail: format!("{what} at byte {at}") }
}

/// Columns as a batch of `rows` rows.
pub(super) fn batch(schema: &SchemaRef, columns: Vec<Column>, rows: usize) -> RecordBatch {
    let arrays: Vec<ArrayRef> = columns.into_iter().map(Column::finish).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    #[expect(clippy::expect_used, reason = "each column was made for its field and has one value per row")]
    RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options).expect("columns fit the schema")
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// In quotes: a text, a time, or a decimal.
    Text,
    /// Without quotes: a number or a word.
    Bare,
    /// Whatever its type wants: CSV has no types.
    Either,
}

/// The value of a field that is no text; `None`: it is none of this type. Numbers written as JSON writes them.
pub(super) fn scalar(data_type: &DataType, text: &[u8], form: Form) -> Option<Scalar> {
    let quoted = form != Form::Bare;
    let bare = form != Form::Text;
    let number = bare && matches!(text.first(), Some(b'-' | b'0'..=b'9'));
    let epoch_millis = || number::integer(text).and_then(|ms| ms.checked_mul(1000)).filter(|us| in_calendar(*us)).map(Scalar::Integer);
    match data_type {
        DataType::Boolean if bare => match text {
            b"true" => Some(Scalar::Boolean(true)),
            b"false" => Some(Scalar::Boolean(false)),
            _ => None,
        },
        DataType::Int64 if number => number::integer(text).map(Scalar::Integer),
        DataType::Float64 if number => {
            std::str::from_utf8(text).ok().and_then(|t| t.parse().ok()).filter(|v: &f64| v.is_finite()).map(Scalar::Double)
        }
        DataType::Decimal128(precision, scale) if number || quoted => number::decimal(text, *precision, *scale).map(Scalar::Decimal),
        DataType::Timestamp(..) => {
            let time = if quoted { time::timestamp(text).map(Scalar::Integer) } else { None };
            if number { time.or_else(epoch_millis) } else { time }
        }
        DataType::Date32 if quoted => time::date(text).map(|d| Scalar::Integer(i64::from(d))),
        _ => None,
    }
}

/// Years 0001 to 9999.
fn in_calendar(micros: i64) -> bool {
    (-62_135_596_800_000_000..253_402_300_800_000_000).contains(&micros)
}

/// What a field of this type must be, in words.
pub(super) fn wanted(data_type: &DataType) -> String {
    match data_type {
        DataType::Timestamp(..) => "a time of the years 0001 to 9999 as RFC 3339 writes it".to_owned(),
        DataType::Date32 => "a date as YYYY-MM-DD".to_owned(),
        DataType::Int64 => "an integer of 64 bits".to_owned(),
        DataType::Float64 => "a number in the range of a double".to_owned(),
        DataType::Utf8 => "a text".to_owned(),
        DataType::Boolean => "true or false".to_owned(),
        DataType::Decimal128(p, s) => {
            format!("a number of at most {} digits before and {s} after the point", i32::from(*p) - i32::from(*s))
        }
        other => other.to_string(),
    }
}

/// How a value breaks its bounds.
pub(super) fn breach(bounds: &Bounds, value: Scalar, text: &[u8]) -> Option<String> {
    if !bounds.words.is_empty() && !bounds.words.iter().any(|w| w.as_bytes() == text) {
        return Some("is none of the words that the schema lists".to_owned());
    }
    if bounds.min_length.is_some() || bounds.max_length.is_some() {
        let length = text.iter().filter(|b| (**b as i8) >= -0x40).count() as u64;
        if bounds.min_length.is_some_and(|min| length < min) {
            return Some(format!("has only {length} characters"));
        }
        if bounds.max_length.is_some_and(|max| length > max) {
            return Some(format!("has {length} characters"));
        }
    }
    let number = match value {
        Scalar::Integer(v) => v as f64,
        Scalar::Double(v) => v,
        Scalar::Decimal(_) => std::str::from_utf8(text).ok()?.parse().ok()?,
        _ => return None,
    };
    if bounds.minimum.is_some_and(|min| number < min) {
        return Some("is below the schema's minimum".to_owned());
    }
    bounds.maximum.filter(|max| number > *max).map(|_| "is above the schema's maximum".to_owned())
}
