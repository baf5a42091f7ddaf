//! The threads of TLS handshakes.
//!
//! A handshake costs a hundred times what a message does, and strangers can ask for as many as they like. So they
//! have threads of their own, which the kernel runs less often than those of the sessions when both want to.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// How much less often: at 5 a busy thread gets a third of what one at 0 gets (sched(7)).
#[cfg(target_os = "linux")]
const NICE: i32 = 5;

/// Runs handshakes. They end when it is dropped.
pub(super) struct Pool(Option<Runtime>);

impl Pool {
    /// One thread for each processor.
    pub(super) fn start() -> io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("handshakes")
            .on_thread_start(give_way)
            .enable_all()
            .build()?;
        Ok(Self(Some(runtime)))
    }

    /// Where to spawn them.
    pub(super) fn handle(&self) -> Option<Handle> {
        self.0.as_ref().map(|runtime| runtime.handle().clone())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // Dropped among the sessions' tasks, where nothing may wait.
            runtime.shutdown_background();
        }
    }
}

#[cfg(target_os = "linux")]
fn give_way() {
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), NICE) {
        tracing::debug!(%error, "the threads of handshakes are as important as others");
    }
}

/// Elsewhere a priority belongs to the whole process.
#[cfg(not(target_os = "linux"))]
fn give_way() {}
