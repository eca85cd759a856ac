//! One value of a row, outside of Arrow: group keys and partial results that are kept in state or travel.

use crate::key::KeyWriter;
use crate::wire::{Damaged, Reader, Writer};

/// A value; its column's type says the rest (scale, unit).
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, PartialOrd)]
pub enum Value {
    Null,
    Boolean(bool),
    Integer(i64),
    Double(f64),
    Decimal(i128),
    Text(String),
    /// Microseconds since the epoch.
    Timestamp(i64),
    /// Days since the epoch.
    Date(i32),
}

impl Value {
    /// Adds the value to a key; `scale` is that of the column's decimals.
    pub fn write_key(&self, scale: i8, key: &mut KeyWriter) {
        match self {
            Value::Null => key.null(),
            Value::Boolean(v) => key.boolean(*v),
            Value::Integer(v) => key.integer(i128::from(*v)),
            Value::Double(v) => key.double(*v),
            Value::Decimal(v) => key.decimal(*v, scale),
            Value::Text(v) => key.text(v.as_bytes()),
            Value::Timestamp(v) => key.timestamp(*v),
            Value::Date(v) => key.integer(i128::from(*v)),
        }
    }

    /// Writes the value.
    pub fn write(&self, out: &mut Writer) {
        match self {
            Value::Null => out.byte(0),
            Value::Boolean(v) => {
                out.byte(1);
                out.byte(u8::from(*v));
            }
            Value::Integer(v) => {
                out.byte(2);
                out.signed(*v);
            }
            Value::Double(v) => {
                out.byte(3);
                out.number(v.to_bits());
            }
            Value::Decimal(v) => {
                out.byte(4);
                out.wide(*v as u128);
            }
            Value::Text(v) => {
                out.byte(5);
                out.blob(v.as_bytes());
            }
            Value::Timestamp(v) => {
                out.byte(6);
                out.signed(*v);
            }
            Value::Date(v) => {
                out.byte(7);
                out.signed(i64::from(*v));
            }
        }
    }

    /// Reads a value.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Ok(match from.byte()? {
            0 => Value::Null,
            1 => Value::Boolean(from.byte()? != 0),
            2 => Value::Integer(from.signed()?),
            3 => Value::Double(f64::from_bits(from.number()?)),
            4 => Value::Decimal(from.wide()? as i128),
            5 => Value::Text(from.text()?.to_owned()),
            6 => Value::Timestamp(from.signed()?),
            7 => Value::Date(i32::try_from(from.signed()?).map_err(|_| Damaged("a date is out of range"))?),
            _ => return Err(Damaged("a value has an unknown type")),
        })
    }

    /// Order for MIN and MAX: numbers by size, a NaN above all, text by bytes.
    pub fn order(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Value::Double(a), Value::Double(b)) => a.total_cmp(b),
            _ => self.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal),
        }
    }
}
