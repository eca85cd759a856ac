//! Columns under construction: one typed vector and its nulls.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::DataType;

/// A decoded value; texts are ranges of the record or of unescaped bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scalar {
    /// NULL.
    Null,
    /// A boolean.
    Boolean(bool),
    /// An integer, microseconds, or days.
    Integer(i64),
    /// A double.
    Double(f64),
    /// A decimal of the column's scale.
    Decimal(i128),
    /// A range of the record.
    Text(usize, usize),
    /// A range of the unescaped bytes.
    Scratch(usize, usize),
}

/// A column under construction.
pub struct Column {
    data_type: DataType,
    values: Values,
    valid: Vec<bool>,
    any_null: bool,
}

enum Values {
    Boolean(Vec<bool>),
    Integer(Vec<i64>),
    Double(Vec<f64>),
    Decimal(Vec<i128>),
    Text(Vec<u8>, Vec<i32>),
}

impl Column {
    /// An empty column with room for `rows`.
    pub fn new(data_type: &DataType, rows: usize) -> Self {
        let values = match data_type {
            DataType::Boolean => Values::Boolean(Vec::with_capacity(rows)),
            DataType::Float64 => Values::Double(Vec::with_capacity(rows)),
            DataType::Decimal128(..) => Values::Decimal(Vec::with_capacity(rows)),
            DataType::Utf8 => {
                let mut offsets = Vec::with_capacity(rows + 1);
                offsets.push(0);
                Values::Text(Vec::with_capacity(rows * 16), offsets)
            }
            _ => Values::Integer(Vec::with_capacity(rows)),
        };
        Self { data_type: data_type.clone(), values, valid: Vec::with_capacity(rows), any_null: false }
    }

    /// Appends a value of the column's type, or NULL.
    pub fn push(&mut self, value: Scalar, record: &[u8], scratch: &[u8]) {
        let mut null = value == Scalar::Null;
        match (&mut self.values, value) {
            (Values::Boolean(v), Scalar::Boolean(x)) => v.push(x),
            (Values::Integer(v), Scalar::Integer(x)) => v.push(x),
            (Values::Double(v), Scalar::Double(x)) => v.push(x),
            (Values::Decimal(v), Scalar::Decimal(x)) => v.push(x),
            (Values::Text(bytes, offsets), value) => {
                match value {
                    Scalar::Text(start, end) => bytes.extend_from_slice(&record[start..end]),
                    Scalar::Scratch(start, end) => bytes.extend_from_slice(&scratch[start..end]),
                    _ => null = true,
                }
                offsets.push(bytes.len() as i32);
            }
            (values, _) => {
                null = true;
                match values {
                    Values::Boolean(v) => v.push(false),
                    Values::Integer(v) => v.push(0),
                    Values::Double(v) => v.push(0.0),
                    Values::Decimal(v) => v.push(0),
                    Values::Text(..) => {}
                }
            }
        }
        self.any_null |= null;
        self.valid.push(!null);
    }

    /// The column as an Arrow array.
    pub fn finish(self) -> ArrayRef {
        let nulls = self.any_null.then(|| NullBuffer::from(self.valid));
        match self.values {
            Values::Boolean(v) => Arc::new(BooleanArray::new(v.into(), nulls)),
            Values::Double(v) => Arc::new(Float64Array::new(v.into(), nulls)),
            Values::Decimal(v) => Arc::new(Decimal128Array::new(v.into(), nulls).with_data_type(self.data_type)),
            Values::Text(bytes, offsets) => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                Arc::new(StringArray::new(offsets, Buffer::from_vec(bytes), nulls))
            }
            Values::Integer(v) => match self.data_type {
                DataType::Timestamp(..) => Arc::new(TimestampMicrosecondArray::new(v.into(), nulls)),
                DataType::Date32 => Arc::new(Date32Array::new(v.into_iter().map(|d| d as i32).collect::<Vec<i32>>().into(), nulls)),
                _ => Arc::new(Int64Array::new(v.into(), nulls)),
            },
        }
    }
}
