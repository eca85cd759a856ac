//! The tables of a pipeline, each of its own kind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::stream::{self, StreamExt};

use crate::engine::ports::{Call, Guard, PortError, Tables};
use crate::output::Item;

/// Writes items one by one, so many at a time; answers the indexes of those that may not have been written. When as many as that
/// have got no clear answer, no more are begun, and they come last: so a table that takes few takes others next time, none twice, one
/// that is gone is known soon, and one item that is not taken holds up no other.
pub async fn one_by_one(
    writes: impl ExactSizeIterator<Item = impl Future<Output = Result<(), PortError>>>,
    at_once: usize,
) -> Result<Vec<usize>, PortError> {
    let (count, failed) = (writes.len(), AtomicUsize::new(0));
    let (mut left, mut unclear, mut why) = (Vec::new(), Vec::new(), None);
    let tried = writes.enumerate().map(|(index, write)| {
        let failed = &failed;
        async move {
            if failed.load(Ordering::Relaxed) >= at_once {
                return (index, None);
            }
            let outcome = write.await;
            failed.fetch_add(usize::from(outcome.is_err()), Ordering::Relaxed);
            (index, Some(outcome))
        }
    });
    let mut tried = std::pin::pin!(stream::iter(tried).buffer_unordered(at_once));
    while let Some((index, outcome)) = tried.next().await {
        match outcome {
            Some(Ok(())) => {}
            Some(Err(PortError::Unclear(reason))) => {
                why.get_or_insert(reason);
                unclear.push(index);
            }
            Some(Err(fatal)) => return Err(fatal),
            None => left.push(index),
        }
    }
    left.append(&mut unclear);
    match why {
        Some(reason) if left.len() == count => Err(PortError::Unclear(reason)),
        _ => Ok(left),
    }
}

/// Tables by their names.
pub struct TablesByName(BTreeMap<String, Arc<dyn Tables>>);

impl TablesByName {
    /// These tables.
    pub fn new(tables: BTreeMap<String, Arc<dyn Tables>>) -> Self {
        Self(tables)
    }
}

impl Tables for TablesByName {
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, Vec<usize>> {
        Box::pin(async move {
            let found = self.0.get(table).ok_or_else(|| PortError::Fatal(format!("there is no table `{table}`")))?;
            found.put(table, items, guard).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// A table that takes `takes` items between two pauses, never the one whose number is `never`.
    async fn put(items: &[usize], takes: usize, never: usize, written: &Mutex<Vec<usize>>) -> Result<Vec<usize>, PortError> {
        let taken = Mutex::new(0);
        let writes = items.iter().map(async |item| {
            let mut taken = taken.lock().expect("a lock");
            if *taken >= takes || *item == never {
                return Err(PortError::Unclear("throttled".to_owned()));
            }
            *taken += 1;
            written.lock().expect("a lock").push(*item);
            Ok(())
        });
        one_by_one(writes, 4).await
    }

    #[tokio::test]
    async fn what_a_table_took_is_not_written_again_and_what_it_never_takes_holds_nothing_up() {
        let (mut left, written) = ((0..100).collect::<Vec<usize>>(), Mutex::new(Vec::new()));
        let mut rounds = 0;
        while left.len() > 1 {
            rounds += 1;
            let failed = put(&left, 7, 3, &written).await.expect("some were written");
            left = failed.into_iter().map(|index| left[index]).collect();
        }
        assert!(rounds < 20, "{rounds} rounds");
        assert_eq!(left, [3]);
        let mut written = written.into_inner().expect("a lock");
        written.sort_unstable();
        assert_eq!(written, (0..100).filter(|item| *item != 3).collect::<Vec<_>>());
        let none = put(&[3, 3], 7, 3, &Mutex::default()).await;
        assert_eq!(none, Err(PortError::Unclear("throttled".to_owned())));
        assert_eq!(put(&[], 7, 3, &Mutex::default()).await, Ok(Vec::new()));
    }
}
