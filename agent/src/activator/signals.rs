//! An activator ends when its work is done, and not when somebody asks it to.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Makes this process a session of its own, out of reach of the terminal and of the agent's process group.
pub(super) fn leave_terminal() {
    // It fails for the leader of a group, which a shell or systemd has already put out of reach.
    rustix::process::setsid().ok();
}

/// From now on requests to end are noted on stderr, and ignored: half an activation is worse than a late
/// shutdown. Programs started later do not inherit this.
pub(super) fn outlive() {
    let listen = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let guard = runtime.enter();
        let mut term = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        drop(guard);
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    loop {
                        let name = tokio::select! {
                            _ = term.recv() => "SIGTERM",
                            _ = interrupt.recv() => "SIGINT",
                            _ = hangup.recv() => "SIGHUP",
                        };
                        eprintln!(
                            "{name}: going on until the deployment has ended one way or the other"
                        );
                    }
                });
            })?;
        Ok::<_, io::Error>(())
    };
    if let Err(error) = listen() {
        eprintln!("cannot watch for signals, so one may end this: {error}");
    }
}
