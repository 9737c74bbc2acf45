//! Working memory that calls borrow and give back, and the queue that shares work among threads.
//!
//! Fresh pages cost about a microsecond for each 16 KiB; at high sparsity that is as much as the arithmetic. So
//! buffers go back to a pool of bounded size, and a steady sequence of calls allocates nothing large.

use std::sync::{Mutex, PoisonError};

/// Values of a cache line.
const LINE: usize = 16;

/// Values the pool keeps at most (128 MiB).
const KEPT: usize = 32 << 20;

static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// A borrowed buffer, aligned to a cache line; its values are whatever the last user left.
pub(crate) struct Scratch {
    buffer: Vec<f32>,
    start: usize,
    len: usize,
}

impl Scratch {
    /// A buffer of `len` values.
    pub(crate) fn take(len: usize) -> Self {
        let wanted = len + LINE;
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = (0..pool.len()).filter(|&i| pool[i].len() >= wanted).min_by_key(|&i| pool[i].len());
        let found = fitting.map(|index| pool.swap_remove(index));
        drop(pool);
        let buffer = found.unwrap_or_else(|| vec![0.0; wanted]);
        let start = buffer.as_ptr().align_offset(LINE * size_of::<f32>());
        Scratch { start: if start < LINE { start } else { 0 }, buffer, len }
    }

    /// Its values.
    pub(crate) fn values(&self) -> &[f32] {
        &self.buffer[self.start..self.start + self.len]
    }

    /// Its values, to write.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        pool.push(buffer);
        let mut kept: usize = pool.iter().map(Vec::len).sum();
        // The smallest go first: they are the cheapest to make again.
        while kept > KEPT {
            let Some(smallest) = (0..pool.len()).min_by_key(|&i| pool[i].len()) else { break };
            kept -= pool.swap_remove(smallest).len();
        }
    }
}

/// Does `work` for every item, on the threads of the current pool; items are taken in order, one at a time.
///
/// A parallel iterator would halve the list and leave each half to one thread, which undoes "longest first".
pub(crate) fn share<I: Send, W>(items: Vec<I>, worker: impl Fn() -> W + Sync, work: impl Fn(&mut W, I) + Sync) {
    let threads = rayon::current_num_threads().min(items.len());
    let queue = Mutex::new(items.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let Some(first) = next() else { return };
        let mut state = worker();
        work(&mut state, first);
        while let Some(item) = next() {
            work(&mut state, item);
        }
    };
    if threads <= 1 {
        run();
    } else {
        rayon::scope(|scope| (0..threads).for_each(|_| scope.spawn(|_| run())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let mut first = Scratch::take(1_000_003);
        first.values_mut().fill(7.0);
        assert_eq!((first.values().len(), first.values().as_ptr().addr() % 64), (1_000_003, 0));
        drop(first);
        assert!(Scratch::take(900_000).values().len() == 900_000);
    }

    #[test]
    fn every_item_is_done_once() {
        let done = Mutex::new(vec![0; 100]);
        share((0..100).collect(), || (), |(), item: usize| done.lock().unwrap()[item] += 1);
        assert_eq!(done.into_inner().unwrap(), vec![1; 100]);
    }
}
