//! State on its way to objects and back: a head that says everything but what is large, and the objects that it names.

use bytes::Bytes;

/// A snapshot being written.
pub struct Saving<'a> {
    name: &'a mut dyn FnMut() -> String,
    /// Ids that go into an object of their own, at least.
    pub least: usize,
    /// Objects of this task that exist and that the head names.
    pub named: Vec<String>,
    new: Vec<(String, Bytes)>,
}

impl<'a> Saving<'a> {
    /// Begins one; `name` makes the names of objects.
    pub fn new(least: usize, name: &'a mut dyn FnMut() -> String) -> Self {
        Self { name, least, named: Vec::new(), new: Vec::new() }
    }

    /// Adds an object; answers its name.
    pub fn add(&mut self, bytes: Bytes) -> String {
        let name = (self.name)();
        self.new.push((name.clone(), bytes));
        name
    }

    /// The whole, with its head.
    pub fn finish(self, head: Vec<u8>) -> Saved {
        let mut named = self.named;
        named.extend(self.new.iter().map(|(name, _)| name.clone()));
        Saved { head: head.into(), new: self.new, named }
    }
}

/// State as bytes.
#[derive(Debug, Clone)]
pub struct Saved {
    /// The head.
    pub head: Bytes,
    /// Objects to be written before anybody counts on the head.
    pub new: Vec<(String, Bytes)>,
    /// All objects of this task that the head names, the new ones among them.
    pub named: Vec<String>,
}

impl Saved {
    /// Bytes to be written.
    pub fn size(&self) -> u64 {
        (self.head.len() + self.new.iter().map(|(_, bytes)| bytes.len()).sum::<usize>()) as u64
    }
}

/// An object that a head names, to be loaded into the step that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Index of the step.
    pub step: usize,
    /// Name of the object.
    pub object: String,
    /// This task wrote it, and removes it when it is needed no more.
    pub own: bool,
    /// What is older is needed no more, ms.
    pub horizon: i64,
}
