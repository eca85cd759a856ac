//! What is wrong with a manifest, as a value: where, what, and what would be right.

use std::fmt;

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Path in the manifest, for example `spec.steps[2].filter`.
    pub path: String,
    /// What is wrong, lower-case, naming the thing.
    pub message: String,
    /// What would be right; empty when the message says it all.
    pub hint: String,
}

impl Problem {
    /// A problem at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// The word of `known` that was probably meant by `word`, if one is near enough.
pub fn did_you_mean<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = |k: &&str| distance(&word.to_lowercase(), &k.to_lowercase());
    known.into_iter().filter(|k| near(k) <= 1 + word.len().min(k.len()) / 4).min_by_key(near)
}

/// A hint that names the nearest of `known`, or lists all of them when none is near.
pub fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    known.dedup();
    match did_you_mean(word, known.iter().copied()) {
        Some(k) => format!("did you mean `{k}`?"),
        None if known.is_empty() => "none is declared".to_owned(),
        None => format!("known here: {}", known.iter().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")),
    }
}

/// Edit distance with transpositions of neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let first = |i: usize| {
        (0..=b.len())
            .map(|j| {
                if i == 0 {
                    j
                } else if j == 0 {
                    i
                } else {
                    0
                }
            })
            .collect::<Vec<_>>()
    };
    let mut rows: Vec<Vec<usize>> = (0..=a.len()).map(first).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_nearest_word() {
        assert_eq!(did_you_mean("clicsk", ["clicks", "valid"]), Some("clicks"));
        assert_eq!(did_you_mean("Events", ["events"]), Some("events"));
        assert_eq!(did_you_mean("zebra", ["clicks", "valid"]), None);
        assert_eq!(suggest("zebra", ["valid", "clicks"]), "known here: `clicks`, `valid`");
    }
}
