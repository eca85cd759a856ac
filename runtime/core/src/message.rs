//! A record of a repartition stream: messages of one lineage for key groups of one partition.

use std::sync::Arc;

use bytes::Bytes;

use crate::key::KeyGroup;
use crate::position::Lineage;
use crate::wire::{Damaged, Reader, Writer};

/// Version of the encoding. 2: what messages that follow each other have in common stands once.
const VERSION: u8 = 2;

/// What travels to a keyed task: one number of one (lineage, edge, key group).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Name of the keyed step.
    pub edge: Arc<str>,
    /// Who sends.
    pub lineage: Lineage,
    /// For whom.
    pub group: KeyGroup,
    /// Which; dense per (lineage, edge, group).
    pub number: u64,
    /// Number of the job that made it.
    pub job: u64,
    /// Rows or partial results.
    pub body: Bytes,
}

impl Message {
    /// Whether another one is of the same edge, lineage and job.
    pub fn is_like(&self, other: &Self) -> bool {
        let same_edge = Arc::ptr_eq(&self.edge, &other.edge) || self.edge == other.edge;
        same_edge && self.job == other.job && self.lineage == other.lineage
    }
}

/// Several messages as one record.
pub fn encode(messages: &[Message]) -> Vec<u8> {
    let mut out = Writer::default();
    out.byte(VERSION);
    for alike in messages.chunk_by(Message::is_like) {
        let Some(first) = alike.first() else { continue };
        out.blob(first.edge.as_bytes());
        out.blob(first.lineage.as_str().as_bytes());
        out.number(first.job);
        out.number(alike.len() as u64);
        for message in alike {
            out.number(u64::from(message.group.0));
            out.number(message.number);
            out.blob(&message.body);
        }
    }
    out.sealed()
}

/// The messages of a record; their bodies are parts of it.
pub fn decode(record: &Bytes) -> Result<Vec<Message>, Damaged> {
    let mut from = Reader::sealed(record)?;
    if from.byte()? != VERSION {
        return Err(Damaged("a message has an unknown version"));
    }
    let mut messages = Vec::new();
    while !from.is_empty() {
        let edge: Arc<str> = from.text()?.into();
        let lineage = Lineage::parse(from.text()?).ok_or(Damaged("a lineage is cut off"))?;
        let job = from.number()?;
        for _ in 0..from.number()? {
            let group = KeyGroup(u16::try_from(from.number()?).map_err(|_| Damaged("a key group is out of range"))?);
            let (number, body) = (from.number()?, record.slice_ref(from.blob()?));
            messages.push(Message { edge: Arc::clone(&edge), lineage: lineage.clone(), group, number, job, body });
        }
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
            body: vec![7; 200].into(),
        };
        let other = Message { lineage: Lineage::new("clicks", "1", "shard-1"), ..message.clone() };
        let all = [message.clone(), message, other];
        let bytes = Bytes::from(encode(&all));
        assert_eq!(decode(&bytes).as_deref(), Ok(&all[..]));
        let whole = (0..bytes.len()).filter(|n| decode(&bytes.slice(..*n)).is_ok()).count();
        assert_eq!(whole, 0, "no part of a record is a record");
    }
}
