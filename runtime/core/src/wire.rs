//! The bytes of what is persisted or travels: little-endian base-128 numbers, counted bytes. A reader never trusts a
//! length: what is cut off or does not fit is an error, not a panic. What is stored or sent as a whole is sealed: a hash of
//! its bytes stands behind them, so that no change of them is taken for state.

use thiserror::Error;

use crate::key::hash;

/// Bytes that are not what was written.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("persisted bytes are damaged or of another version: {0}")]
pub struct Damaged(pub &'static str);

/// Appends values to bytes.
#[derive(Debug, Default, Clone)]
pub struct Writer(Vec<u8>);

impl From<Vec<u8>> for Writer {
    /// Goes on behind these bytes.
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Writer {
    /// The bytes written.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }

    /// The bytes written, and their hash behind them.
    pub fn sealed(mut self) -> Vec<u8> {
        let seal = hash(&self.0).to_le_bytes();
        self.0.extend(seal);
        self.0
    }

    /// Takes back what was written behind the first `length` bytes.
    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// The bytes written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// One byte.
    pub fn byte(&mut self, value: u8) {
        self.0.push(value);
    }

    /// A number, 7 bits a byte.
    pub fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A number that may be negative (zigzag).
    pub fn signed(&mut self, value: i64) {
        self.number(((value << 1) ^ (value >> 63)) as u64);
    }

    /// 16 bytes.
    pub fn wide(&mut self, value: u128) {
        self.0.extend(value.to_le_bytes());
    }

    /// Bytes as they are.
    pub fn raw(&mut self, value: &[u8]) {
        self.0.extend(value);
    }

    /// Counted bytes.
    pub fn blob(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.0.extend(value);
    }
}

/// Reads what [`Writer`] wrote.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `bytes` from their start.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Reads what was sealed, if it is as it was.
    pub fn sealed(bytes: &'a [u8]) -> Result<Self, Damaged> {
        let (bytes, seal) = bytes.split_last_chunk::<8>().ok_or(Damaged("the seal is missing"))?;
        if hash(bytes).to_le_bytes() != *seal {
            return Err(Damaged("they are not those that were written"));
        }
        Ok(Self(bytes))
    }

    /// Whether everything was read.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> Result<u8, Damaged> {
        let (first, rest) = self.0.split_first().ok_or(Damaged("a byte is missing"))?;
        self.0 = rest;
        Ok(*first)
    }

    /// A number.
    pub fn number(&mut self) -> Result<u64, Damaged> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Damaged("a number is too long"))
    }

    /// A number that may be negative.
    pub fn signed(&mut self) -> Result<i64, Damaged> {
        let value = self.number()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// 16 bytes.
    pub fn wide(&mut self) -> Result<u128, Damaged> {
        let (bytes, rest) = self.0.split_first_chunk::<16>().ok_or(Damaged("16 bytes are missing"))?;
        self.0 = rest;
        Ok(u128::from_le_bytes(*bytes))
    }

    /// Counted bytes.
    pub fn blob(&mut self) -> Result<&'a [u8], Damaged> {
        let length = usize::try_from(self.number()?).map_err(|_| Damaged("a length is too long"))?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(Damaged("bytes are cut off"))?;
        self.0 = rest;
        Ok(bytes)
    }

    /// All bytes that are left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// Counted text.
    pub fn text(&mut self) -> Result<&'a str, Damaged> {
        std::str::from_utf8(self.blob()?).map_err(|_| Damaged("a text is not UTF-8"))
    }
}
