//! `leat dead-letters`: what was refused, one by one, and sent again after what was wrong is mended.
//!
//! Letters lie in files of JSON Lines below the pipeline's location. What of a file was sent again is noted beside it, below
//! `replayed/`, by step and reason, so that a second call sends nothing twice.

mod cloud;
mod laptop;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::LocalBoxFuture;
use leat_compile::plan::DEAD_LETTERS;
use leat_compile::program::{Input, Program};
use leat_crds::problem::suggest;

use serde::{Deserialize, Serialize};

use crate::report::{columns, thousands};

pub use self::cloud::Cloud;
pub use self::laptop::Laptop;

/// Folder of notes about what was sent again.
const NOTES: &str = "replayed/";
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

    fn source(&self) -> &str {
        self.lineage.split('/').next().unwrap_or_default()
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

/// Where letters lie, and where records go.
pub trait Place {
    /// The names of all files below a location, in order.
    fn files<'a>(&'a self, location: &'a str) -> LocalBoxFuture<'a, Result<Vec<String>>>;
    /// The bytes of a file; `None`: there is none.
    fn read<'a>(&'a self, location: &'a str, file: &'a str) -> LocalBoxFuture<'a, Result<Option<Vec<u8>>>>;
    /// Writes a file, also over another one.
    fn write<'a>(&'a self, location: &'a str, file: &'a str, bytes: Vec<u8>) -> LocalBoxFuture<'a, Result<()>>;
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
        self.step.as_ref().is_none_or(|s| *s == letter.step) && self.reason.as_ref().is_none_or(|r| *r == letter.reason)
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
    /// Letters sent now.
    pub sent: u64,
    /// Letters that were sent before.
    pub before: u64,
    /// Letters that hold no record: results that a table refused.
    pub results: u64,
}

impl Replayed {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("{} records were sent again\n", self.sent);
        if self.before > 0 {
            text.push_str(&format!("{} had been sent before\n", self.before));
        }
        if self.results > 0 {
            text.push_str(&format!("{} are results and no records: they cannot be sent\n", self.results));
        }
        text
    }
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
        Ok(files.into_iter().filter(|f| f.ends_with(".jsonl") && !f.starts_with(NOTES)).collect())
    }

    /// The letters of a file, each with its line.
    async fn letters(&self, file: &str) -> Result<Vec<(Letter, String)>> {
        let bytes = self.place.read(self.location, file).await?.with_context(|| format!("{file} is gone"))?;
        let text = String::from_utf8(bytes).with_context(|| format!("{file} is no text"))?;
        let letter = |(i, line): (usize, &str)| {
            let letter = serde_json::from_str(line).with_context(|| format!("{file}, line {}: not a dead letter", i + 1))?;
            Ok((letter, line.to_owned()))
        };
        text.lines().enumerate().filter(|(_, line)| !line.is_empty()).map(letter).collect()
    }

    async fn notes(&self, file: &str) -> Result<Notes> {
        match self.place.read(self.location, &note(file)).await? {
            None => Ok(Notes::new()),
            Some(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("{} cannot be read", note(file))),
        }
    }

    /// Says no where nothing of this name could have refused a record.
    fn check(&self, filter: &Filter) -> Result<()> {
        let Some(step) = &filter.step else { return Ok(()) };
        let spec = &self.program.document.spec;
        let sources = spec.sources.iter().map(|s| s.name.as_str());
        let known: Vec<&str> =
            sources.chain(spec.steps.iter().map(|s| s.name.as_str())).chain(spec.sinks.iter().map(|s| s.name.as_str())).collect();
        if !known.contains(&step.as_str()) {
            bail!("there is no source, step or sink `{step}`; {}", suggest(step, known));
        }
        Ok(())
    }

    /// How many there are, by step and reason.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Group>> {
        self.check(filter)?;
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
        Ok(groups.into_values().collect())
    }

    /// The letters themselves, at most so many, as the lines that they are.
    pub async fn show(&self, filter: &Filter, most: usize, line: &mut dyn FnMut(&str) -> Result<()>) -> Result<usize> {
        self.check(filter)?;
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
        Ok(shown)
    }

    /// Sends records again to the streams that they came from. What was sent before is not, unless `again`.
    pub async fn replay(&self, filter: &Filter, again: bool) -> Result<Replayed> {
        self.check(filter)?;
        let mut done = Replayed::default();
        for file in self.files().await? {
            let mut notes = self.notes(&file).await?;
            let mut groups: BTreeMap<(String, String), Vec<Letter>> = BTreeMap::new();
            for (letter, _) in self.letters(&file).await?.into_iter().filter(|(l, _)| filter.takes(l)) {
                groups.entry((letter.step.clone(), letter.reason.clone())).or_default().push(letter);
            }
            for (group, letters) in groups {
                if notes.contains(&group) && !again {
                    done.before += letters.len() as u64;
                    continue;
                }
                let sent = self.send(&file, &group, &letters, again).await?;
                done.sent += sent;
                done.results += letters.len() as u64 - sent;
                notes.insert(group);
                self.place.write(self.location, &note(&file), serde_json::to_vec(&notes)?).await?;
            }
        }
        Ok(done)
    }

    /// Sends the letters of a file, step and reason; answers how many were records.
    async fn send(&self, file: &str, group: &(String, String), letters: &[Letter], again: bool) -> Result<u64> {
        let mut by_stream: BTreeMap<&str, Vec<Record>> = BTreeMap::new();
        for letter in letters {
            let Some(data) = letter.bytes()? else { continue };
            let source = self.program.sources.iter().find(|s| s.name == letter.source());
            let source = source.with_context(|| format!("{file}: the manifest has no source `{}`", letter.source()))?;
            let Input::Stream(stream) = &source.input else {
                bail!("{file}: `{}` reads files, to which nothing can be sent: mend the file", source.name);
            };
            // Any key will do for a record that came without one: its place in the stream is new in any case.
            let key = letter.partition_key.clone().filter(|k| !k.is_empty()).unwrap_or_else(|| letter.position.clone());
            by_stream.entry(stream).or_default().push(Record { key, data });
        }
        let mut sent = 0;
        for (stream, records) in by_stream {
            let time = if again { format!("/{}", crate::feed::now()) } else { String::new() };
            let name = format!("replay/{file}/{}/{}{time}", group.0, group.1);
            for (i, chunk) in records.chunks(AT_ONCE).enumerate() {
                self.place.send(stream, chunk.to_vec(), &name, i * AT_ONCE).await?;
                sent += chunk.len() as u64;
            }
        }
        Ok(sent)
    }
}

fn note(file: &str) -> String {
    format!("{NOTES}{file}.json")
}
