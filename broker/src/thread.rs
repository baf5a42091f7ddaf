//! Threads that the broker cannot do without: when one panics the process ends, for its supervisor to start it again.

use std::io;

use tokio::sync::oneshot;

/// A thread, from outside.
#[derive(Debug)]
pub(crate) struct Thread {
    name: &'static str,
    /// Told at its end; closed untold when it panics.
    ended: oneshot::Receiver<()>,
}

impl Thread {
    /// Starts one. The kernel knows 15 bytes of its name.
    pub(crate) fn start(
        name: &'static str,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (done, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                work();
                // The receiver is gone only when nobody wants to know.
                done.send(()).ok();
            })?;
        Ok(Self { name, ended })
    }

    /// Waits until it has panicked, and returns its name. Waits for ever when it ends in order.
    pub(crate) async fn panicked(self) -> &'static str {
        if self.ended.await.is_ok() {
            std::future::pending::<()>().await;
        }
        self.name
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_told_and_an_end_in_order_is_not() {
        let good = Thread::start("good", || {}).unwrap();
        let bad = Thread::start("bad", || panic!("as it has to")).unwrap();
        let mut good = std::pin::pin!(good.panicked());
        assert_eq!(bad.panicked().await, "bad");
        std::future::poll_fn(|context| {
            assert!(good.as_mut().poll(context).is_pending());
            Poll::Ready(())
        })
        .await;
    }
}
