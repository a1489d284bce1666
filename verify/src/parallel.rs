//! Work on several threads whose results come in order.

use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

/// Does `work` on each item, on one thread for each worker, and reports the results on this thread, in
/// the order of the items, until a report breaks off.
///
/// The threads are plain ones. On rayon's, a worker that waits for its emulator's blocks would take up
/// another item meanwhile, whose allocation waits for that very launch to end.
pub fn in_order<W: Sync, T: Sync, R: Send>(
    workers: &[W],
    items: &[T],
    work: impl Fn(&W, &T) -> R + Sync,
    mut report: impl FnMut(usize, R) -> ControlFlow<()>,
) {
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for worker in workers {
            let (sender, next, stop, work) = (sender.clone(), &next, &stop, &work);
            scope.spawn(move || {
                while !stop.load(Relaxed) {
                    let at = next.fetch_add(1, Relaxed);
                    let Some(item) = items.get(at) else { break };
                    if sender.send((at, work(worker, item))).is_err() {
                        break;
                    }
                }
            });
        }
        // The channel ends when the last worker does.
        drop(sender);
        let (mut early, mut due) = (BTreeMap::new(), 0);
        for (at, result) in receiver {
            early.insert(at, result);
            while let Some(result) = early.remove(&due) {
                if report(due, result).is_break() {
                    stop.store(true, Relaxed);
                    return;
                }
                due += 1;
            }
        }
    });
}

/// Cores of this machine.
pub fn cores() -> usize {
    thread::available_parallelism().map_or(1, |n| n.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_once_each() {
        let items: Vec<usize> = (0..200).collect();
        let mut seen = Vec::new();
        in_order(
            &[(); 4],
            &items,
            |(), &item| {
                // The first ones take longest.
                thread::sleep(std::time::Duration::from_micros(200 - item as u64));
                item * 2
            },
            |at, result| {
                seen.push((at, result));
                ControlFlow::Continue(())
            },
        );
        let expected: Vec<_> = items.iter().map(|&item| (item, item * 2)).collect();
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_report_can_break_off() {
        let items: Vec<usize> = (0..1000).collect();
        let (done, mut reports) = (AtomicUsize::new(0), 0);
        let work = |(): &(), _: &usize| {
            done.fetch_add(1, Relaxed);
            thread::sleep(std::time::Duration::from_millis(1));
        };
        in_order(&[(); 2], &items, work, |at, ()| {
            reports += 1;
            match at {
                3 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        assert_eq!(reports, 4);
        assert!(done.load(Relaxed) < 1000);
    }
}
