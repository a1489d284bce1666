//! The same work for many items, a few at a time.

use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::Result;

/// How many at a time: the compiler, ptxas and the packing of a large kernel take some hundred megabytes each.
const JOBS: usize = 2;

/// Results in the order of the items, or the first error in that order.
pub(crate) fn map<I: Sync, T: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let queue = Mutex::new(items.iter().enumerate());
    let done: Mutex<Vec<Option<Result<T>>>> = Mutex::new(items.iter().map(|_| None).collect());
    thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                loop {
                    let job = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                    let Some((index, item)) = job else { break };
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn results_keep_their_order_and_the_first_error_counts() {
        let items: Vec<usize> = (0..100).collect();
        let doubled = map(&items, |i| Ok(2 * i)).unwrap_or_default();
        assert_eq!(doubled, (0..100).map(|i| 2 * i).collect::<Vec<_>>());
        let failed = map(&items, |i| match i {
            0..=16 => Ok(()),
            _ => Err(Error::archive(i.to_string())),
        });
        assert_eq!(failed.err().map(|e| e.to_string()), Some("17".to_owned()));
    }
}
