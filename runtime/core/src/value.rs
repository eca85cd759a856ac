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

/// A value that is part of something else.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    Null,
    Boolean(bool),
    Integer(i64),
    Double(f64),
    Decimal(i128),
    Text(&'a str),
    /// Microseconds since the epoch.
    Timestamp(i64),
    /// Days since the epoch.
    Date(i32),
}

impl<'a> Cell<'a> {
    /// Adds the value to a key; `scale` is that of the column's decimals.
    pub fn write_key(self, scale: i8, key: &mut KeyWriter) {
        match self {
            Cell::Null => key.null(),
            Cell::Boolean(v) => key.boolean(v),
            Cell::Integer(v) => key.integer(i128::from(v)),
            Cell::Double(v) => key.double(v),
            Cell::Decimal(v) => key.decimal(v, scale),
            Cell::Text(v) => key.text(v.as_bytes()),
            Cell::Timestamp(v) => key.timestamp(v),
            Cell::Date(v) => key.integer(i128::from(v)),
        }
    }

    /// Writes the value.
    pub fn write(self, out: &mut Writer) {
        match self {
            Cell::Null => out.byte(0),
            Cell::Boolean(v) => {
                out.byte(1);
                out.byte(u8::from(v));
            }
            Cell::Integer(v) => {
                out.byte(2);
                out.signed(v);
            }
            Cell::Double(v) => {
                out.byte(3);
                out.number(v.to_bits());
            }
            Cell::Decimal(v) => {
                out.byte(4);
                out.wide(v as u128);
            }
            Cell::Text(v) => {
                out.byte(5);
                out.blob(v.as_bytes());
            }
            Cell::Timestamp(v) => {
                out.byte(6);
                out.signed(v);
            }
            Cell::Date(v) => {
                out.byte(7);
                out.signed(i64::from(v));
            }
        }
    }

    /// Reads a value.
    pub fn read(from: &mut Reader<'a>) -> Result<Self, Damaged> {
        Ok(match from.byte()? {
            0 => Cell::Null,
            1 => Cell::Boolean(from.byte()? != 0),
            2 => Cell::Integer(from.signed()?),
            3 => Cell::Double(f64::from_bits(from.number()?)),
            4 => Cell::Decimal(from.wide()? as i128),
            5 => Cell::Text(from.text()?),
            6 => Cell::Timestamp(from.signed()?),
            7 => Cell::Date(i32::try_from(from.signed()?).map_err(|_| Damaged("a date is out of range"))?),
            _ => return Err(Damaged("a value has an unknown type")),
        })
    }

    /// A value of its own.
    pub fn value(self) -> Value {
        match self {
            Cell::Null => Value::Null,
            Cell::Boolean(v) => Value::Boolean(v),
            Cell::Integer(v) => Value::Integer(v),
            Cell::Double(v) => Value::Double(v),
            Cell::Decimal(v) => Value::Decimal(v),
            Cell::Text(v) => Value::Text(v.to_owned()),
            Cell::Timestamp(v) => Value::Timestamp(v),
            Cell::Date(v) => Value::Date(v),
        }
    }
}

impl Value {
    /// The value as a part of this one.
    pub fn cell(&self) -> Cell<'_> {
        match self {
            Value::Null => Cell::Null,
            Value::Boolean(v) => Cell::Boolean(*v),
            Value::Integer(v) => Cell::Integer(*v),
            Value::Double(v) => Cell::Double(*v),
            Value::Decimal(v) => Cell::Decimal(*v),
            Value::Text(v) => Cell::Text(v),
            Value::Timestamp(v) => Cell::Timestamp(*v),
            Value::Date(v) => Cell::Date(*v),
        }
    }

    /// Adds the value to a key; `scale` is that of the column's decimals.
    pub fn write_key(&self, scale: i8, key: &mut KeyWriter) {
        self.cell().write_key(scale, key);
    }

    /// Writes the value.
    pub fn write(&self, out: &mut Writer) {
        self.cell().write(out);
    }

    /// Reads a value.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        Cell::read(from).map(Cell::value)
    }

    /// Order for MIN and MAX: numbers by size, a NaN above all, text by bytes.
    pub fn order(&self, other: &Self) -> std::cmp::Ordering {
        match (self, other) {
            (Value::Double(a), Value::Double(b)) => a.total_cmp(b),
            _ => self.partial_cmp(other).unwrap_or(std::cmp::Ordering::Equal),
        }
    }
}
