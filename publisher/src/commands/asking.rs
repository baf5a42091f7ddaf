//! Questions to whoever sits at the terminal.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

/// Whether there is somebody who sees a question and can answer it.
pub(super) fn somebody_is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks, and waits for the answer: whether it is yes. Dropped, it goes on reading, which ends with the program.
pub(super) async fn agrees(question: &str) -> io::Result<bool> {
    let question = question.to_owned();
    let (sender, answered) = tokio::sync::oneshot::channel();
    // A thread of its own: Ctrl-C ends the program while it still reads.
    let read = move || {
        let read = || {
            let mut answer = String::new();
            write!(io::stderr(), "{question} [y/N] ")?;
            io::stdin().lock().read_line(&mut answer)?;
            Ok(answer)
        };
        // Nobody listens any more when the question was interrupted.
        drop(sender.send(read()));
    };
    std::thread::Builder::new()
        .name("question".to_owned())
        .spawn(read)?;
    let answer: io::Result<String> = answered.await.map_err(io::Error::other)?;
    let answer = answer?.trim().to_lowercase();
    Ok(matches!(answer.as_str(), "y" | "yes"))
}
