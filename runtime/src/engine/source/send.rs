//! What a source task sends, and how: messages to keyed tasks, records to streams and topics.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use futures::stream::FuturesUnordered;
#[cfg(feature = "ablation")]
use leat_compile::program::Program;
use leat_runtime_core::mark::Mark;
use leat_runtime_core::message::{self, Message};
use leat_runtime_core::rules::Rule;

use super::{Event, SourceJob, SourceTask};
use crate::engine::outlet::{Marked, Outlets, keep};
use crate::engine::ports::{PortError, Ports};
use crate::engine::task::{Control, Tries};
use crate::operators::source::{Leaving, Replayable};

/// Least time between two cuts that others are shown, ms.
const SHOW_INTERVAL: i64 = 5_000;
/// Messages in one record of the repartition stream, and records in one append, at most.
pub(super) const BUNDLE: usize = 500;
/// Rows that are sent together, at most.
const TOGETHER: usize = 8 * BUNDLE;
/// The same where topics are among what takes them: a transaction takes a while, however small it is.
const TRANSACTION: usize = 64 * BUNDLE;
/// Bytes of one record of the repartition stream, about: Kinesis takes 1 MiB.
const BUNDLE_BYTES: usize = 700 << 10;
/// What a message is longer than its body, at most about.
const MESSAGE_BYTES: usize = 256;

/// What waits to be sent without being staged.
#[derive(Default)]
pub(super) struct Queue {
    pub waiting: VecDeque<Replayable>,
    pub bytes: usize,
    pub tries: Tries,
}

impl Queue {
    pub fn extend(&mut self, more: Vec<Replayable>) {
        self.bytes += more.iter().map(|r| r.what.bytes()).sum::<usize>();
        self.waiting.extend(more);
    }

    /// The first ones that a cut covers; all that a record has become, or none of it.
    pub fn take(&mut self, outlets: &Outlets, covered: impl Fn(&Replayable) -> bool) -> Vec<Replayable> {
        let most = if outlets.is_empty() { TOGETHER } else { TRANSACTION };
        let mut free = self.waiting.iter().take(most).take_while(|r| covered(r)).count();
        // What a record has become goes into one transaction, whose mark is the record.
        let last = free.checked_sub(1).and_then(|last| self.waiting.get(last)).map(|r| r.position);
        free += self.waiting.iter().skip(free).take_while(|r| Some(r.position) == last && covered(r)).count();
        let taken: Vec<Replayable> = self.waiting.drain(..free).collect();
        self.bytes -= taken.iter().map(|r| r.what.bytes()).sum::<usize>();
        self.tries.with(taken.len());
        taken
    }

    /// What was not accepted goes first the next time.
    pub fn again(&mut self, failed: Vec<Replayable>) {
        self.tries.left(failed.len());
        self.bytes += failed.iter().map(|r| r.what.bytes()).sum::<usize>();
        failed.into_iter().rev().for_each(|r| self.waiting.push_front(r));
    }
}

/// Messages in their order, together in records of a bounded number and size.
fn bundles(messages: &[Message]) -> Vec<&[Message]> {
    let mut bundles = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, message) in messages.iter().enumerate() {
        let size = message.body.len() + MESSAGE_BYTES;
        if i > start && (i - start == BUNDLE || bytes + size > BUNDLE_BYTES) {
            bundles.push(&messages[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    if start < messages.len() {
        bundles.push(&messages[start..]);
    }
    bundles
}

/// Appends messages, those of one partition together; answers those that failed or whose fate is unclear, after a pause.
pub(super) async fn append(
    ports: &Ports,
    messages: Vec<Message>,
    groups: u16,
    partitions: u16,
    pause: u64,
) -> Result<Vec<Message>, PortError> {
    let mut by_partition: BTreeMap<u16, Vec<Message>> = BTreeMap::new();
    for message in messages {
        by_partition.entry(message.group.partition(groups, partitions)).or_default().push(message);
    }
    let mut left = Vec::new();
    for (partition, messages) in by_partition {
        let bundles = bundles(&messages);
        let records = bundles.iter().map(|b| Bytes::from(message::encode(b))).collect();
        match ports.log.append(partition, records).await {
            Ok(failed) => failed.into_iter().filter_map(|i| bundles.get(i)).for_each(|b| left.extend_from_slice(b)),
            Err(PortError::Unclear(why)) => {
                ports.unclear.note(&why);
                left.extend(messages);
            }
            Err(fatal) => return Err(fatal),
        }
    }
    if !left.is_empty() {
        ports.clock.sleep(pause).await;
    }
    Ok(left)
}

/// Sends what was not staged; answers, in its order, what failed or whose fate is unclear, after a pause.
pub(super) async fn leave(
    ports: &Ports,
    job: &SourceJob,
    outlets: &mut Outlets,
    leaving: Vec<Replayable>,
    pause: u64,
) -> Result<Vec<Replayable>, PortError> {
    let messages = leaving.iter().filter_map(|r| if let Leaving::Message(m) = &r.what { Some(m.clone()) } else { None });
    let left = append(ports, messages.collect(), job.program.document.key_groups, job.partitions, 0).await?;
    let mut failed: BTreeSet<usize> = BTreeSet::new();
    if !left.is_empty() {
        let left: BTreeSet<(&str, u16, u64)> = left.iter().map(|m| (&*m.edge, m.group.0, m.number)).collect();
        let is_left = |r: &Replayable| matches!(&r.what, Leaving::Message(m) if left.contains(&(&*m.edge, m.group.0, m.number)));
        failed.extend(leaving.iter().enumerate().filter(|(_, r)| is_left(r)).map(|(i, _)| i));
    }
    for (index, spec) in job.program.streams.iter().enumerate().filter(|(_, spec)| !spec.topic) {
        let (mut places, mut records) = (Vec::new(), Vec::new());
        for (i, replayable) in leaving.iter().enumerate() {
            if let Leaving::Record { sink, nth, row } = &replayable.what
                && *sink == index
            {
                places.push(i);
                records.push(row.record(&format!("{}/{}/{}/{}/{nth}", job.unique, spec.name, job.lineage, replayable.position)));
            }
        }
        if records.is_empty() {
            continue;
        }
        match ports.streams.put(&spec.stream, &records).await {
            Ok(refused) => failed.extend(refused.into_iter().filter_map(|i| places.get(i))),
            Err(PortError::Unclear(why)) => {
                ports.unclear.note(&why);
                failed.extend(places);
            }
            Err(fatal) => return Err(fatal),
        }
    }
    for (index, outlet) in outlets.iter_mut() {
        let rows = leaving.iter().enumerate().filter_map(|(i, r)| match &r.what {
            Leaving::Record { sink, row, .. } if sink == index => Some((i, (Mark::Record(r.position), row.topic_record()))),
            _ => None,
        });
        if outlet.waits(ports) {
            failed.extend(rows.map(|(i, _)| i));
            continue;
        }
        let (places, rows): (Vec<usize>, Vec<Marked>) = rows.unzip();
        match outlet.send(ports, &rows).await {
            Err(PortError::Unclear(_)) => failed.extend(places),
            clear => clear?,
        }
    }
    if !failed.is_empty() {
        let waits = outlets.values().any(|outlet| outlet.waits(ports));
        ports.clock.sleep(if waits { 50 } else { pause }).await;
    }
    Ok(leaving.into_iter().enumerate().filter(|(i, _)| failed.contains(i)).map(|(_, r)| r).collect())
}

/// The wrong variant that throws staged bytes away and makes the messages again, with other borders.
#[cfg(feature = "ablation")]
pub(super) fn computed_again(program: &Program, messages: Vec<Message>) -> Vec<Message> {
    use crate::operators::window::pass;
    use leat_compile::program::EdgeKind;
    use leat_runtime_core::wire::Reader;
    let mut out = Vec::new();
    for message in messages {
        let edge = program.keyed.edges.iter().find(|e| e.name == *message.edge);
        let Some(EdgeKind::Partial(spec)) = edge.map(|e| &e.kind) else { continue };
        let mut body = Reader::new(&message.body);
        let mut number = message.number;
        while let (false, Ok(one)) = (body.is_empty(), pass(&mut body, spec)) {
            out.push(Message { number, body: one.to_vec().into(), ..message.clone() });
            number += 1;
        }
    }
    out
}

impl<C: Control> SourceTask<C> {
    /// Starts to send what was not staged and is behind a cut.
    pub(super) fn send_replayable(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) {
        if let Some(mut outlets) = self.outlets.take() {
            let (position, rules) = (self.row.position, self.rules());
            let records = self.replayable.take(&outlets, |r| Some(r.position) <= position || !rules.hold(Rule::AfterCut));
            if let Some(first) = records.first() {
                self.sending_replayable = Some(first.position);
                let (ports, job, pause) = (self.ports.clone(), self.job.clone(), self.replayable.tries.pause());
                busy.push(Box::pin(async move {
                    let left = leave(&ports, &job, &mut outlets, records, pause).await;
                    Event::SentReplayable(outlets, left)
                }));
            } else if outlets.values().any(|outlet| outlet.is_old(&self.ports) && !outlet.waits(&self.ports)) {
                let ports = self.ports.clone();
                busy.push(Box::pin(async move {
                    let kept = keep(&ports, &mut outlets).await;
                    Event::SentReplayable(outlets, kept.map(|()| Vec::new()))
                }));
            } else {
                self.outlets = Some(outlets);
            }
        }
    }

    /// Shows others how far this lineage is read.
    pub(super) fn show(&mut self, busy: &mut FuturesUnordered<LocalBoxFuture<'static, Event>>) {
        let now = self.ports.clock.now();
        let due = self.cut_unseen && !self.showing && now - self.last_shown >= SHOW_INTERVAL;
        if let Some(position) = self.row.position.filter(|_| due) {
            (self.cut_unseen, self.showing, self.last_shown) = (false, true, now);
            let (ports, lineage) = (self.ports.clone(), self.job.lineage.clone());
            busy.push(Box::pin(async move {
                let shown = ports.source.show_cut(&lineage, position).await;
                if let Err(why) = &shown {
                    ports.unclear.note(&why.to_string());
                }
                Event::Shown(shown.is_ok())
            }));
        }
    }
}
