//! What a task sends to the topic of a sink, exactly once: in transactions, each with the mark of how far the task's output is
//! there. Whoever goes on asks for the mark first, and sends what lies behind it.
//!
//! A mark is made before the first cut of an owner, so one that is missing later was removed: marks are offsets of groups
//! without members, which brokers keep for a week. Then nobody knows what of the output in doubt is there.

use std::collections::BTreeMap;

use leat_compile::program::{Program, StreamSpec};
use leat_runtime_core::mark::Mark;
use leat_runtime_core::rules::{Rule, Rules};

use super::ports::{Begun, PortError, Ports, Transactions};
use crate::output::TopicRecord;

/// Longest pause between two tries, ms.
const LONGEST_PAUSE: u64 = 2_000;

/// A row on its way into a topic; when it is there with those before it, all of the task's output up to the mark is, or all
/// but rows behind it of the same mark.
pub type Marked = (Mark, TopicRecord);

/// A task's way into the topic of a sink.
pub struct Outlet {
    stream: String,
    writer: String,
    /// Output up to here may have been sent, by the owner before or by a try without a clear answer.
    doubt: Mark,
    open: Option<(Box<dyn Transactions>, Option<Mark>)>,
    rules: Rules,
}

/// A task's ways into topics, by the index of the sink among the program's streams.
pub type Outlets = BTreeMap<usize, Outlet>;

/// The ways into the topics of a program for the task of a row that stands at `doubt`.
pub fn outlets(program: &Program, unique: &str, row: &str, doubt: Mark, rules: Rules) -> Outlets {
    let outlet = |sink: &StreamSpec| {
        let writer = format!("leat.{unique}.{}.{row}", sink.name);
        Outlet { stream: sink.stream.clone(), writer, doubt, open: None, rules }
    };
    program.streams.iter().enumerate().filter(|(_, sink)| sink.topic).map(|(index, sink)| (index, outlet(sink))).collect()
}

impl Outlet {
    /// Sends rows, in the order of their marks, as far as they are not there. Rows of one mark are sent together.
    pub async fn send(&mut self, ports: &Ports, rows: &[Marked]) -> Result<(), PortError> {
        let (Some((first, _)), Some((last, _))) = (rows.first(), rows.last()) else { return Ok(()) };
        let found = self.begin(ports).await?;
        if found.is_none() && *first <= self.doubt {
            return Err(self.lost());
        }
        let there = rows.partition_point(|(mark, _)| self.rules.hold(Rule::Marks) && Some(*mark) <= found);
        if there == rows.len() {
            return Ok(());
        }
        let records: Vec<TopicRecord> = rows[there..].iter().map(|(_, record)| record.clone()).collect();
        self.doubt = self.doubt.max(*last);
        self.commit(&records, *last).await
    }

    /// The same until it is known that they are there.
    pub async fn insist(&mut self, ports: &Ports, rows: &[Marked]) -> Result<(), PortError> {
        let mut pause = 10;
        loop {
            match self.send(ports, rows).await {
                Err(PortError::Unclear(why)) => put_off(ports, &why, &mut pause).await,
                clear => return clear,
            }
        }
    }

    /// Makes sure that there is a mark, before a cut is made. `doubtful`: there is output that the owner before may have sent.
    pub async fn establish(&mut self, ports: &Ports, doubtful: bool) -> Result<(), PortError> {
        let mut pause = 10;
        loop {
            match self.leave_mark(ports, doubtful).await {
                Err(PortError::Unclear(why)) => put_off(ports, &why, &mut pause).await,
                clear => return clear,
            }
        }
    }

    /// A mark that is there is left again: it is kept for a week from now on.
    async fn leave_mark(&mut self, ports: &Ports, doubtful: bool) -> Result<(), PortError> {
        let mark = match self.begin(ports).await? {
            Some(found) => found,
            None if doubtful => return Err(self.lost()),
            None => self.doubt,
        };
        self.commit(&[], mark).await
    }

    async fn begin(&mut self, ports: &Ports) -> Result<Option<Mark>, PortError> {
        if let Some((_, mark)) = &self.open {
            return Ok(*mark);
        }
        let Begun { mark, writer } = ports.topics.begin(&self.stream, &self.writer).await?;
        let mark = mark.map(|mark| mark.parse()).transpose();
        let mark = mark.map_err(|why| PortError::Fatal(format!("the mark of {}: {why}", self.writer)))?;
        self.open = Some((writer, mark));
        Ok(mark)
    }

    async fn commit(&mut self, records: &[TopicRecord], mark: Mark) -> Result<(), PortError> {
        let Some((writer, found)) = &mut self.open else { return Err(PortError::Unclear("no writer".to_owned())) };
        let done = writer.commit(records, &mark.to_string()).await;
        match &done {
            Ok(()) => *found = Some(mark),
            Err(_) => self.open = None,
        }
        done
    }

    fn lost(&self) -> PortError {
        PortError::Fatal(format!(
            "the mark of how far output was sent to the stream `{}` is gone, and there is output that may have been sent: the group {} \
             has no offset any more. To send it (again), set that group's offset of partition 0 of the topic to 0",
            self.stream, self.writer
        ))
    }
}

async fn put_off(ports: &Ports, why: &str, pause: &mut u64) {
    ports.unclear.note(why);
    ports.clock.sleep(*pause).await;
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}
