//! What is stored of open windows and sessions (`docs/adr/0021`). Results under way merge in any order, so what came since the last
//! snapshot is stored as it came. Against that it grows, one part of the groups after the other is stored whole, about as many
//! bytes as came: a snapshot costs what came since the last one, and what is stored is at most about twice what there is.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use crate::operators::saved::{Run, Saving};

/// Parts of all groups, by the hash of their keys.
pub const PARTS: usize = 64;
/// Version of the encoding of objects.
const VERSION: u8 = 1;
/// Bytes of an id, by which [`Saving::least`] counts.
const ID: usize = 16;

/// The part to which a key belongs by its hash. It is persisted.
pub fn part(hash: u64) -> usize {
    (hash >> 32) as usize % PARTS
}

/// An object.
#[derive(Debug, Clone)]
struct Stored {
    object: String,
    number: u64,
}

/// Which of the groups in an object count.
#[derive(Debug, Clone)]
struct Counts {
    number: u64,
    since: Arc<[u64]>,
}

/// An object that is being written, and what holds once it is.
#[derive(Debug, Clone)]
struct Pending {
    object: String,
    runs: Vec<Stored>,
    since: Arc<[u64]>,
    turn: usize,
    owed: usize,
    /// So many bytes of `fresh` are in it.
    upto: usize,
    /// All parts are in it.
    whole: bool,
}

/// What is stored of the groups of one step.
#[derive(Debug, Clone)]
pub struct Journal {
    /// What came since the last object; `None`: nobody knows, all parts are to be stored.
    fresh: Option<Vec<u8>>,
    /// Objects, in the order of their numbers. None: the snapshot says all of it.
    runs: Vec<Stored>,
    /// Of each part the number of the first object of which what came counts: the one before has the part as a whole.
    since: Arc<[u64]>,
    /// The part that is stored next.
    turn: usize,
    /// Bytes that came, for which no part was stored yet.
    owed: usize,
    /// Bytes of all groups when they were last written.
    whole: usize,
    pending: Option<Pending>,
    /// Objects to be loaded.
    loading: HashMap<String, Counts>,
}

impl Default for Journal {
    fn default() -> Self {
        Self {
            fresh: None,
            runs: Vec::new(),
            since: Arc::new([0; PARTS]),
            turn: 0,
            owed: 0,
            whole: 0,
            pending: None,
            loading: HashMap::new(),
        }
    }
}

impl Journal {
    /// Memory, bytes.
    pub fn memory(&self) -> usize {
        self.fresh.as_ref().map_or(0, Vec::capacity)
    }

    /// A partial result came, as these bytes.
    pub fn note(&mut self, group: KeyGroup, bytes: &[u8]) {
        let Some(fresh) = &mut self.fresh else { return };
        // All parts are fewer bytes.
        if fresh.len() > self.whole {
            self.fresh = None;
            return;
        }
        let mut out = Writer::from(std::mem::take(fresh));
        out.number(u64::from(group.0));
        out.raw(bytes);
        *fresh = out.finish();
    }

    /// Writes what a snapshot says of the groups. `whole`: bytes of all of them, about; `groups` writes those of some parts.
    pub fn write(
        &mut self,
        out: &mut Writer,
        saving: &mut Saving<'_>,
        whole: usize,
        groups: impl FnOnce(&dyn Fn(usize) -> bool, &mut Writer),
    ) {
        let least = saving.least.saturating_mul(ID);
        // Another snapshot overtook the one before: what it would have stored is not.
        if self.pending.take().is_some_and(|pending| pending.whole) {
            self.fresh = None;
        }
        if whole < if self.runs.is_empty() { least } else { least / 2 } {
            *self = Self { loading: std::mem::take(&mut self.loading), ..Self::default() };
            let mut all = Writer::default();
            groups(&|_| true, &mut all);
            head(out, &[], &self.since, all.bytes());
            return;
        }
        self.whole = whole;
        if let Some(fresh) = self.fresh.as_ref().filter(|fresh| fresh.len() < least) {
            saving.named.extend(self.runs.iter().map(|run| run.object.clone()));
            head(out, &self.runs, &self.since, fresh);
            return;
        }
        let number = self.runs.last().map_or(0, |run| run.number.saturating_add(1));
        let came = self.fresh.as_deref().unwrap_or_default();
        let step = (whole / PARTS).max(1);
        let (count, owed) = match self.fresh {
            Some(_) => (((self.owed + came.len()) / step).min(PARTS), (self.owed + came.len()) % step),
            None => (PARTS, 0),
        };
        let mut bytes = Writer::default();
        bytes.byte(VERSION);
        // Where all parts are stored, what came is in them.
        bytes.blob(if count < PARTS { came } else { &[] });
        let mut since = self.since.to_vec();
        let stored = |part: usize| (part + PARTS - self.turn) % PARTS < count;
        groups(&stored, &mut bytes);
        (0..PARTS).filter(|part| stored(*part)).for_each(|part| since[part] = number.saturating_add(1));
        let object = saving.add(Bytes::from(bytes.sealed()));
        let needed = since.iter().min().copied().unwrap_or_default();
        let mut runs = self.runs.clone();
        runs.retain(|run| run.number.saturating_add(1) >= needed);
        saving.named.extend(runs.iter().map(|run| run.object.clone()));
        runs.push(Stored { object: object.clone(), number });
        head(out, &runs, &since, &[]);
        let turn = (self.turn + count) % PARTS;
        self.pending = Some(Pending { object, runs, since: since.into(), turn, owed, upto: came.len(), whole: count == PARTS });
        self.fresh.get_or_insert_default();
    }

    /// The objects of a snapshot are written.
    pub fn stored(&mut self, objects: &[String]) {
        // Others are those of a snapshot that another one overtook.
        let Some(pending) = self.pending.take_if(|pending| objects.contains(&pending.object)) else { return };
        if let Some(fresh) = &mut self.fresh {
            fresh.drain(..pending.upto);
            fresh.shrink_to(self.whole / 8);
        }
        (self.runs, self.since, self.turn, self.owed) = (pending.runs, pending.since, pending.turn, pending.owed);
    }

    /// Reads what [`Self::write`] wrote; answers the objects, which are to be loaded, and the groups that stand in none of them.
    /// `own`: this task wrote it, and goes on with it. What came before `horizon` is done with, ms.
    pub fn read<'a>(&mut self, step: usize, from: &mut Reader<'a>, own: bool, horizon: i64) -> Result<(Vec<Run>, &'a [u8]), Damaged> {
        let mut runs = Vec::new();
        for _ in 0..from.number()? {
            runs.push(Stored { object: from.text()?.to_owned(), number: from.number()? });
        }
        let mut since = vec![0; PARTS];
        if !runs.is_empty() {
            for part in &mut since {
                *part = from.number()?;
            }
        }
        let (since, rest): (Arc<[u64]>, _) = (since.into(), from.blob()?);
        let loads = runs.iter().map(|run| Run { step, object: run.object.clone(), own, horizon }).collect();
        self.loading.extend(runs.iter().map(|run| (run.object.clone(), Counts { number: run.number, since: Arc::clone(&since) })));
        if own && !runs.is_empty() {
            let loading = std::mem::take(&mut self.loading);
            *self = Self { fresh: Some(rest.to_vec()), runs, since, whole: usize::MAX, loading, ..Self::default() };
        } else {
            // Of what others stored nothing is gone on with: the next snapshot says the whole.
            *self = Self { loading: std::mem::take(&mut self.loading), ..Self::default() };
        }
        Ok((loads, rest))
    }

    /// Takes apart an object; `each` gets the groups that came, and then those of whole parts, and whether those of a part count.
    pub fn load(
        &mut self,
        run: &Run,
        bytes: &[u8],
        mut each: impl FnMut(Reader<'_>, &dyn Fn(usize) -> bool) -> Result<(), Damaged>,
    ) -> Result<(), Damaged> {
        let mut from = Reader::sealed(bytes)?;
        if from.byte()? != VERSION {
            return Err(Damaged("an object of groups has an unknown version"));
        }
        let Counts { number, since } = self.loading.remove(&run.object).ok_or(Damaged("an object of groups was not asked for"))?;
        each(Reader::new(from.blob()?), &|part| number >= since[part])?;
        each(from, &|part| number.saturating_add(1) == since[part])
    }
}

fn head(out: &mut Writer, runs: &[Stored], since: &[u64], rest: &[u8]) {
    out.number(runs.len() as u64);
    for run in runs {
        out.blob(run.object.as_bytes());
        out.number(run.number);
    }
    if !runs.is_empty() {
        since.iter().for_each(|number| out.number(*number));
    }
    out.blob(rest);
}
