//! `leat dead-letters`: what was refused, one by one, and sent again after what was wrong is mended.
//!
//! Letters lie in files of JSON Lines below the pipeline's location. What of a file was sent again is noted beside it, below
//! `_replayed/`, by step and reason, so that a second call sends nothing twice.

mod cloud;
mod laptop;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::LocalBoxFuture;
use leat_compile::plan::DEAD_LETTERS;
use leat_compile::program::{Input, Program};
use leat_runtime::engine::ports::StoredRow;

use serde::{Deserialize, Serialize};

use crate::report::{columns, thousands};

pub use self::cloud::Cloud;
pub use self::laptop::Laptop;

/// Folder of notes about what was sent again.
const NOTES: &str = "_replayed/";
/// Letters that are sent at once.
const AT_ONCE: usize = 500;

/// A record that was refused, as it was written down.
#[derive(Debug, Clone, Deserialize)]
pub struct Letter {
    /// The source or step that refused it.
    pub step: String,
    /// Why, in one word.
    pub reason: String,
    /// What exactly.
    #[serde(default)]
    pub detail: Option<String>,
    /// Where it came from: `source/incarnation/partition`.
    pub lineage: String,
    /// Where it stands there.
    pub position: String,
    /// Its partition key.
    #[serde(default)]
    pub partition_key: Option<String>,
    /// When it arrived.
    #[serde(default)]
    pub arrival: Option<String>,
    /// Its bytes, when they are a text.
    #[serde(default)]
    pub record: Option<String>,
    /// Its bytes, when they are none.
    #[serde(default)]
    pub record_base64: Option<String>,
}

impl Letter {
    /// The record's bytes; `None`: the letter has none, since it is a result and no record.
    fn bytes(&self) -> Result<Option<Vec<u8>>> {
        Ok(match (&self.record, &self.record_base64) {
            (Some(text), _) => Some(text.clone().into_bytes()),
            (None, Some(encoded)) => Some(STANDARD.decode(encoded).context("record_base64 is no base64")?),
            (None, None) => None,
        })
    }

    /// The source that it came from; `None`: it is a result of a keyed task (`keyed/00001`), and no record.
    fn source(&self) -> Option<&str> {
        let mut parts = self.lineage.split('/');
        let source = parts.next();
        parts.nth(1).and(source)
    }
}

/// A record to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its partition key.
    pub key: String,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// Where a pipeline's files and rows lie, and where records go.
pub trait Place {
    /// The rows of the pipeline's tasks whose keys begin so.
    fn rows<'a>(&'a self, prefix: &'a str) -> LocalBoxFuture<'a, Result<Vec<(String, StoredRow)>>>;
    /// The names of all objects of its tasks.
    fn objects(&self) -> LocalBoxFuture<'_, Result<BTreeSet<String>>>;
    /// Number of items of a declared table that the pipeline of this life wrote last. All items are read.
    fn items<'a>(&'a self, table: &'a str, born: i64) -> LocalBoxFuture<'a, Result<u64>>;
    /// The names of all files below a location, in order.
    fn files<'a>(&'a self, location: &'a str) -> LocalBoxFuture<'a, Result<Vec<String>>>;
    /// The bytes of a file; `None`: there is none.
    fn read<'a>(&'a self, location: &'a str, file: &'a str) -> LocalBoxFuture<'a, Result<Option<Vec<u8>>>>;
    /// Writes a file, also over another one.
    fn write<'a>(&'a self, location: &'a str, file: &'a str, bytes: Vec<u8>) -> LocalBoxFuture<'a, Result<()>>;
    /// Whether records can be sent to a declared stream.
    fn takes(&self, stream: &str) -> bool;
    /// Sends records to a declared stream, all of them. `name` and `first` tell them apart from all others.
    fn send<'a>(&'a self, stream: &'a str, records: Vec<Record>, name: &'a str, first: usize) -> LocalBoxFuture<'a, Result<()>>;
}

/// Which letters are meant.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this source or step.
    pub step: Option<String>,
    /// With this reason.
    pub reason: Option<String>,
}

impl Filter {
    fn takes(&self, letter: &Letter) -> bool {
        let step = |s: &String| *s == letter.step || letter.step.strip_suffix(" (sink)") == Some(s.as_str());
        self.step.as_ref().is_none_or(step) && self.reason.as_ref().is_none_or(|r| *r == letter.reason)
    }
}

/// Letters of one step and reason.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// The source or step.
    pub step: String,
    /// Why.
    pub reason: String,
    /// How many.
    pub letters: u64,
    /// Those that were sent again, among them.
    pub replayed: u64,
    /// Arrival of the first.
    pub first: String,
    /// Arrival of the last.
    pub last: String,
    /// What one of them says.
    pub example: String,
}

/// What became of a replay.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Replayed {
    /// Records sent now.
    pub sent: u64,
    /// Letters that were sent before.
    pub before: u64,
    /// Letters that were not sent, by why.
    pub left: BTreeMap<String, u64>,
}

impl Replayed {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("{} sent again\n", records(self.sent));
        if self.before > 0 {
            text.push_str(&format!("{} sent before\n", records(self.before)));
        }
        for (why, letters) in &self.left {
            text.push_str(&format!("{} not sent: {why}\n", records(*letters)));
        }
        text
    }
}

fn records(n: u64) -> String {
    if n == 1 { "1 record was".to_owned() } else { format!("{} records were", thousands(n)) }
}

/// Groups for people.
pub fn text(groups: &[Group]) -> String {
    if groups.is_empty() {
        return "there are no dead letters\n".to_owned();
    }
    let row = |g: &Group| {
        let (example, letters, replayed) = (g.example.chars().take(80).collect(), thousands(g.letters), thousands(g.replayed));
        vec![g.step.clone(), g.reason.clone(), g.first.clone(), g.last.clone(), example, letters, replayed]
    };
    let mut text = String::new();
    let rows: Vec<Vec<String>> = groups.iter().map(row).collect();
    columns(&mut text, &["refused by", "reason", "first", "last", "for example", "letters", "sent again"], &rows, 5);
    text
}

/// The dead letters of a pipeline.
pub struct DeadLetters<'a> {
    program: &'a Program,
    place: &'a dyn Place,
    location: &'a str,
}

/// Steps and reasons of a file that were sent again.
type Notes = BTreeSet<(String, String)>;

impl<'a> DeadLetters<'a> {
    /// Those of a program.
    pub fn new(program: &'a Program, place: &'a dyn Place) -> Result<Self> {
        let files = program.files.iter().find(|f| f.name == DEAD_LETTERS).context("the pipeline has no dead letters")?;
        Ok(Self { program, place, location: &files.location })
    }

    async fn files(&self) -> Result<Vec<String>> {
        let files = self.place.files(self.location).await?;
        Ok(files.into_iter().filter(|f| !f.starts_with(NOTES) && self.is_ours(f)).collect())
    }

    /// Whether a file is one of this pipeline's, by its name (`path::file`): several may share a location.
    fn is_ours(&self, file: &str) -> bool {
        let document = &self.program.document;
        let name = file.rsplit('/').next().unwrap_or_default();
        let rest = name.strip_prefix(&format!("{}-{}-", document.namespace, document.name));
        let life = rest.and_then(|rest| rest.split_once('-'));
        name.ends_with(".jsonl")
            && life.is_some_and(|(born, task)| {
                let hexadecimal = !born.is_empty() && born.bytes().all(|b| b.is_ascii_hexdigit());
                hexadecimal && (task.starts_with("source-") || task.starts_with("keyed-"))
            })
    }

    /// The letters of a file, each with its line; what is none is said.
    async fn letters(&self, file: &str) -> Result<Vec<(Letter, String)>> {
        let bytes = self.place.read(self.location, file).await?.with_context(|| format!("{file} is gone"))?;
        let mut letters = Vec::new();
        for (i, line) in String::from_utf8_lossy(&bytes).lines().enumerate().filter(|(_, line)| !line.is_empty()) {
            match serde_json::from_str(line) {
                Ok(letter) => letters.push((letter, line.to_owned())),
                Err(why) => eprintln!("{file}, line {}: no dead letter: {why}", i + 1),
            }
        }
        Ok(letters)
    }

    async fn notes(&self, file: &str) -> Result<Notes> {
        match self.place.read(self.location, &note(file)).await? {
            None => Ok(Notes::new()),
            Some(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", note(file))),
        }
    }

    /// Says what there is where nothing is meant.
    async fn nothing(&self, filter: &Filter) -> Result<()> {
        if filter.step.is_none() && filter.reason.is_none() {
            return Ok(());
        }
        let mut there = BTreeSet::new();
        for file in self.files().await? {
            there.extend(self.letters(&file).await?.into_iter().map(|(l, _)| format!("--step \"{}\" --reason {}", l.step, l.reason)));
        }
        if there.is_empty() {
            return Ok(());
        }
        bail!("no dead letter is meant by this; there are\n  {}", there.into_iter().collect::<Vec<_>>().join("\n  "));
    }

    /// How many there are, by step and reason.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Group>> {
        let mut groups: BTreeMap<(String, String), Group> = BTreeMap::new();
        for file in self.files().await? {
            let notes = self.notes(&file).await?;
            for (letter, _) in self.letters(&file).await?.into_iter().filter(|(l, _)| filter.takes(l)) {
                let key = (letter.step.clone(), letter.reason.clone());
                let replayed = notes.contains(&key);
                let group = groups.entry(key).or_insert_with(|| Group { step: letter.step, reason: letter.reason, ..Group::default() });
                group.letters += 1;
                group.replayed += u64::from(replayed);
                let arrival = letter.arrival.unwrap_or_default();
                if group.first.is_empty() || arrival < group.first {
                    group.first.clone_from(&arrival);
                }
                group.last = arrival.max(std::mem::take(&mut group.last));
                if let Some(detail) = letter.detail.filter(|_| group.example.is_empty()) {
                    group.example = detail;
                }
            }
        }
        if groups.is_empty() {
            self.nothing(filter).await?;
        }
        Ok(groups.into_values().collect())
    }

    /// The letters themselves, at most so many, as the lines that they are.
    pub async fn show(&self, filter: &Filter, most: usize, line: &mut dyn FnMut(&str) -> Result<()>) -> Result<usize> {
        let mut shown = 0;
        for file in self.files().await? {
            for (_, text) in self.letters(&file).await?.into_iter().filter(|(l, _)| filter.takes(l)) {
                if shown == most {
                    return Ok(shown);
                }
                line(&text)?;
                shown += 1;
            }
        }
        if shown == 0 {
            self.nothing(filter).await?;
        }
        Ok(shown)
    }

    /// Sends records again to the streams that they came from, each once, also where several steps refused it. What was sent
    /// before is not, unless `again`.
    pub async fn replay(&self, filter: &Filter, again: bool) -> Result<Replayed> {
        let (mut done, mut sent) = (Replayed::default(), BTreeSet::new());
        let mut any = false;
        for file in self.files().await? {
            let mut notes = self.notes(&file).await?;
            let mut groups: BTreeMap<(String, String), Vec<Letter>> = BTreeMap::new();
            for (letter, _) in self.letters(&file).await?.into_iter().filter(|(l, _)| filter.takes(l)) {
                groups.entry((letter.step.clone(), letter.reason.clone())).or_default().push(letter);
            }
            any |= !groups.is_empty();
            for (group, letters) in groups {
                if notes.contains(&group) && !again {
                    done.before += letters.len() as u64;
                    continue;
                }
                // Whoever may not note it down finds out before anything is sent.
                self.place.write(self.location, &note(&file), serde_json::to_vec(&notes)?).await?;
                let records = match self.send(&file, &group, letters, again, &mut sent, &mut done).await {
                    Ok(records) => records,
                    Err(error) => {
                        eprint!("{}", done.text());
                        return Err(error);
                    }
                };
                // Also where another step's letter has just sent them: the next call must not.
                if records {
                    notes.insert(group);
                    self.place.write(self.location, &note(&file), serde_json::to_vec(&notes)?).await?;
                }
            }
        }
        if !any {
            self.nothing(filter).await?;
        }
        Ok(done)
    }

    /// The stream that a letter's record goes to; else why it cannot go anywhere.
    fn stream_of(&self, letter: &Letter) -> Result<&str, String> {
        let name = letter.source().ok_or("results, and no records")?;
        let source = self.program.sources.iter().find(|s| s.name == name);
        let source = source.ok_or_else(|| format!("the manifest has no source `{name}` any more"))?;
        match &source.input {
            Input::Files { .. } => {
                Err(format!("`{name}` reads files, each as it was when it began; another source can read mended records"))
            }
            Input::Stream(stream) if self.place.takes(stream) => Ok(stream),
            Input::Stream(stream) => {
                Err(format!("`{stream}` is a topic of Kafka, to which nothing can be sent yet; `show` prints its letters"))
            }
        }
    }

    /// Sends the letters of a file, step and reason; answers whether any of them is a record that goes somewhere.
    async fn send(
        &self,
        file: &str,
        group: &(String, String),
        letters: Vec<Letter>,
        again: bool,
        sent: &mut BTreeSet<(String, String)>,
        done: &mut Replayed,
    ) -> Result<bool> {
        let mut records_in_it = false;
        let mut by_stream: BTreeMap<&str, Vec<Record>> = BTreeMap::new();
        for letter in letters {
            let stream = match (self.stream_of(&letter), letter.bytes()) {
                (Ok(stream), Ok(Some(data))) => Ok((stream, data)),
                (Err(why), _) => Err(why),
                (_, Ok(None)) => Err("there is no record in it".to_owned()),
                (_, Err(why)) => Err(format!("{why:#}")),
            };
            match stream {
                Err(why) => *done.left.entry(why).or_default() += 1,
                Ok((stream, data)) => {
                    records_in_it = true;
                    // Any key will do for a record that came without one: its place in the stream is new in any case.
                    let key = letter.partition_key.filter(|k| !k.is_empty()).unwrap_or_else(|| letter.position.clone());
                    if sent.insert((letter.lineage, letter.position)) {
                        by_stream.entry(stream).or_default().push(Record { key, data });
                    }
                }
            }
        }
        for (stream, records) in by_stream {
            let time = if again { format!("/{}", crate::feed::now()) } else { String::new() };
            let name = format!("replay/{file}/{}/{}{time}", group.0, group.1);
            for (i, chunk) in records.chunks(AT_ONCE).enumerate() {
                self.place.send(stream, chunk.to_vec(), &name, i * AT_ONCE).await?;
                done.sent += chunk.len() as u64;
            }
        }
        Ok(records_in_it)
    }
}

fn note(file: &str) -> String {
    format!("{NOTES}{file}.json")
}
