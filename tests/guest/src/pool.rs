//! Threads made beforehand: on a node without pids no thread can be made when it is needed.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use crate::call::lock;

/// Small, since all of it is locked in memory.
const STACK_BYTES: usize = 192 * 1024;

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct Pool {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
}

impl Pool {
    /// So many threads wait for work.
    pub(crate) fn new(threads: usize) -> io::Result<Arc<Pool>> {
        let pool = Arc::new(Pool { queue: Mutex::default(), wake: Condvar::new() });
        for _ in 0..threads {
            pool.grow()?;
        }
        Ok(pool)
    }

    /// Does it in a thread that waits; in a new one where all are busy.
    ///
    /// # Errors
    /// All are busy, and the kernel gives no more.
    pub(crate) fn run(self: &Arc<Pool>, job: Job) -> io::Result<()> {
        if lock(&self.queue).idle == 0 {
            self.grow()?;
        }
        let mut queue = lock(&self.queue);
        queue.idle -= 1;
        queue.jobs.push_back(job);
        drop(queue);
        self.wake.notify_one();
        Ok(())
    }

    fn grow(self: &Arc<Pool>) -> io::Result<()> {
        let pool = self.clone();
        thread::Builder::new().name("call".to_owned()).stack_size(STACK_BYTES).spawn(move || pool.work())?;
        lock(&self.queue).idle += 1;
        Ok(())
    }

    fn work(&self) {
        loop {
            let mut queue = lock(&self.queue);
            let job = loop {
                match queue.jobs.pop_front() {
                    Some(job) => break job,
                    None => queue = self.wake.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner()),
                }
            };
            drop(queue);
            job();
            lock(&self.queue).idle += 1;
        }
    }
}
