//! A record of a repartition stream: messages of one lineage for key groups of one partition.

use crate::key::KeyGroup;
use crate::position::Lineage;
use crate::wire::{Damaged, Reader, Writer};

/// Version of the encoding.
const VERSION: u8 = 1;

/// What travels to a keyed task: one number of one (lineage, edge, key group).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Name of the keyed step.
    pub edge: String,
    /// Who sends.
    pub lineage: Lineage,
    /// For whom.
    pub group: KeyGroup,
    /// Which; dense per (lineage, edge, group).
    pub number: u64,
    /// Number of the job that made it.
    pub job: u64,
    /// Rows or partial results.
    pub body: Vec<u8>,
}

/// Several messages as one record.
pub fn encode(messages: &[Message]) -> Vec<u8> {
    let mut out = Writer::default();
    out.byte(VERSION);
    for message in messages {
        out.blob(message.edge.as_bytes());
        out.blob(message.lineage.as_str().as_bytes());
        out.number(u64::from(message.group.0));
        out.number(message.number);
        out.number(message.job);
        out.blob(&message.body);
    }
    out.sealed()
}

/// The messages of a record.
pub fn decode(record: &[u8]) -> Result<Vec<Message>, Damaged> {
    let mut from = Reader::sealed(record)?;
    if from.byte()? != VERSION {
        return Err(Damaged("a message has an unknown version"));
    }
    let mut messages = Vec::new();
    while !from.is_empty() {
        let edge = from.text()?.to_owned();
        let text = from.text()?;
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().ok_or(Damaged("a lineage is cut off"));
        let lineage = Lineage::new(part()?, part()?, part()?);
        let group = KeyGroup(u16::try_from(from.number()?).map_err(|_| Damaged("a key group is out of range"))?);
        messages.push(Message { edge, lineage, group, number: from.number()?, job: from.number()?, body: from.blob()?.to_vec() });
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_is_an_error() {
        let message = Message {
            edge: "per_minute".into(),
            lineage: Lineage::new("clicks", "1", "shard-0"),
            group: KeyGroup(1000),
            number: 300,
            job: 2,
            body: vec![7; 200],
        };
        let bytes = encode(&[message.clone(), message.clone()]);
        assert_eq!(decode(&bytes), Ok(vec![message.clone(), message]));
        let whole = (0..bytes.len()).filter(|n| decode(&bytes[..*n]).is_ok()).count();
        assert_eq!(whole, 0, "no part of a record is a record");
    }
}
