//! What a task sends to the topic of a sink, exactly once: in transactions, each with the mark of how far the task's output is
//! there. Whoever goes on asks for the mark first, and sends what lies behind it.
//!
//! A mark is made before the first cut of an owner and kept while it works, so one that is missing later was removed: marks are
//! offsets of groups without members, which brokers keep for a week. Then nobody knows what of the output in doubt is there.

use std::collections::BTreeMap;

use leat_compile::program::{Node, Op, Program};
use leat_runtime_core::mark::Mark;
use leat_runtime_core::path;
use leat_runtime_core::rules::{Rule, Rules};

use super::ports::{Begun, PortError, Ports, Transactions};
use crate::output::TopicRecord;

/// A mark is left again after so long, ms: brokers keep it for a week (`offsets.retention.minutes`), as they keep a writer that
/// does nothing (`transactional.id.expiration.ms`).
const KEPT: i64 = 12 * 3_600_000;
/// Shortest and longest pause between two tries, ms.
const FIRST_PAUSE: u64 = 5;
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
    /// When the mark was left last, ms.
    left: i64,
    /// After a try without a clear answer, how long until the next one, and when that is, ms.
    pause: u64,
    not_before: i64,
    failed: bool,
    rules: Rules,
}

/// A task's ways into topics, by the index of the sink among the program's streams.
pub type Outlets = BTreeMap<usize, Outlet>;

/// The ways into the topics of a task that runs these nodes and whose row stands at `doubt`.
pub fn outlets(program: &Program, nodes: &[Node], unique: &str, row: &str, doubt: Mark, rules: Rules) -> Outlets {
    let outlet = |index: usize| {
        let sink = program.streams.get(index).filter(|sink| sink.topic)?;
        let writer = path::writer(unique, &sink.sink, row);
        Some((
            index,
            Outlet {
                stream: sink.stream.clone(),
                writer,
                doubt,
                open: None,
                left: 0,
                pause: FIRST_PAUSE,
                not_before: i64::MIN,
                failed: false,
                rules,
            },
        ))
    };
    nodes.iter().filter_map(|node| if let Op::Stream(index) = node.op { outlet(index) } else { None }).collect()
}

/// Leaves marks again that are old; those that cannot be left now are left later.
pub async fn keep(ports: &Ports, outlets: &mut Outlets) -> Result<(), PortError> {
    for outlet in outlets.values_mut() {
        match outlet.keep(ports).await {
            Err(PortError::Unclear(_)) => {}
            clear => clear?,
        }
    }
    Ok(())
}

impl Outlet {
    /// Sends rows, in the order of their marks, as far as they are not there. Rows of one mark are sent together. For a while after
    /// a try without a clear answer, nothing is tried and there is none either.
    pub async fn send(&mut self, ports: &Ports, rows: &[Marked]) -> Result<(), PortError> {
        if self.waits(ports) {
            return Err(PortError::Unclear(format!("the stream `{}` is tried again in a moment", self.stream)));
        }
        let done = self.try_to_send(ports, rows).await;
        self.note(ports, &done);
        done
    }

    /// Whether nothing is tried just now.
    pub fn waits(&self, ports: &Ports) -> bool {
        ports.clock.now() < self.not_before
    }

    async fn try_to_send(&mut self, ports: &Ports, rows: &[Marked]) -> Result<(), PortError> {
        let (Some((first, _)), Some((last, _))) = (rows.first(), rows.last()) else { return Ok(()) };
        self.leave_again(ports).await?;
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
        self.commit(ports, &records, *last).await
    }

    /// Makes sure that there is a mark, before a cut is made. `doubtful`: there is output that the owner before may have sent.
    /// Where there is none and the job `drains`, nothing will be sent either: a topic that is out of reach must not be in the way.
    pub async fn establish(&mut self, ports: &Ports, doubtful: bool, drains: &dyn Fn() -> bool) -> Result<(), PortError> {
        loop {
            let done = self.leave_mark(ports, doubtful).await;
            self.note(ports, &done);
            match done {
                Err(PortError::Unclear(_)) if !doubtful && drains() => return Ok(()),
                Err(PortError::Unclear(_)) => ports.clock.sleep(self.pause).await,
                clear => return clear,
            }
        }
    }

    async fn leave_mark(&mut self, ports: &Ports, doubtful: bool) -> Result<(), PortError> {
        let mark = match self.begin(ports).await? {
            Some(found) => found,
            None if doubtful => return Err(self.lost()),
            None => self.doubt,
        };
        self.commit(ports, &[], mark).await
    }

    /// Whether a mark was left so long ago that it is time to leave it again.
    pub fn is_old(&self, ports: &Ports) -> bool {
        self.open.is_some() && ports.clock.now() - self.left >= KEPT
    }

    /// Whether a try has failed since this was asked last.
    pub fn has_failed(&mut self) -> bool {
        std::mem::take(&mut self.failed)
    }

    /// Leaves an old mark again, so that brokers keep it.
    pub async fn keep(&mut self, ports: &Ports) -> Result<(), PortError> {
        let done = self.leave_again(ports).await;
        self.note(ports, &done);
        done
    }

    async fn leave_again(&mut self, ports: &Ports) -> Result<(), PortError> {
        match &self.open {
            Some((_, Some(mark))) if self.is_old(ports) => {
                let mark = *mark;
                self.commit(ports, &[], mark).await
            }
            _ => Ok(()),
        }
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

    async fn commit(&mut self, ports: &Ports, records: &[TopicRecord], mark: Mark) -> Result<(), PortError> {
        let Some((writer, found)) = &mut self.open else { return Err(PortError::Unclear("no writer".to_owned())) };
        let done = writer.commit(records, &mark.to_string()).await;
        match &done {
            Ok(()) => (*found, self.left) = (Some(mark), ports.clock.now()),
            Err(_) => self.open = None,
        }
        done
    }

    /// Says why there was no clear answer, and waits with the next try.
    fn note(&mut self, ports: &Ports, done: &Result<(), PortError>) {
        match done {
            Err(PortError::Unclear(why)) => {
                ports.unclear.note(why);
                self.failed = true;
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                self.not_before = ports.clock.now() + self.pause as i64;
            }
            _ => (self.pause, self.not_before) = (FIRST_PAUSE, i64::MIN),
        }
    }

    fn lost(&self) -> PortError {
        PortError::Fatal(format!(
            "the mark of how far output was sent to the stream `{}` is gone, and there is output that may have been sent: the group {} \
             has no offset any more. To send it (again), set that group's offset of partition 0 of the topic to 0",
            self.stream, self.writer
        ))
    }
}

#[cfg(test)]
#[path = "outlet_tests.rs"]
mod tests;
