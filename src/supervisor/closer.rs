//! Closes what came over the control socket, in a thread of its own, because a close may wait for whoever sent
//! it: for a connection that lingers over unread bytes, or for a file system that a user serves.
//!
//! The thread that serves never closes such a descriptor, nor a socket in which one may still lie.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::{io, thread};

/// Descriptors that wait to be closed, from which on none is taken any more.
const WAITING_COUNT_MAX: usize = 64;

/// The thread, as seen from the one that serves. It is made before the start's last filter: later no thread
/// may be.
#[derive(Clone)]
pub(super) struct Closer {
    queue: Sender<OwnedFd>,
    waiting: Arc<AtomicUsize>,
}

impl Closer {
    /// Starts the thread; it ends with the process.
    pub(super) fn start() -> io::Result<Self> {
        let (queue, descriptors) = channel::<OwnedFd>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&waiting);
        let run = move || {
            for descriptor in descriptors {
                drop(descriptor);
                count.fetch_sub(1, Ordering::Relaxed);
            }
        };
        thread::Builder::new().name("closer".to_owned()).spawn(run)?;
        Ok(Self { queue, waiting })
    }

    /// Whether so much waits that nothing more should be taken from anybody.
    pub(super) fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) >= WAITING_COUNT_MAX
    }

    /// Closes descriptors, soon.
    pub(super) fn close(&self, descriptors: impl IntoIterator<Item = OwnedFd>) {
        for descriptor in descriptors {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            // The thread is there as long as this end of the queue.
            let _ = self.queue.send(descriptor);
        }
    }
}
