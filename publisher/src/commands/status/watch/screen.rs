//! The terminal: its other screen, its keys, its size. It is left as it was found.

use std::io::{self, IsTerminal as _, Write as _};

use crossterm::event::{self, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{cursor, execute, queue};
use tokio::sync::mpsc;

use super::view::Scroll;
use crate::console::terminal_size;

/// What somebody asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Key {
    /// To leave.
    Quit,
    /// Ctrl-C.
    Interrupt,
    /// Other machines.
    Scroll(Scroll),
    /// The terminal has another size.
    Redraw,
}

/// The terminal while it shows the view.
pub(super) struct Screen {
    is_raw: bool,
}

impl Screen {
    /// Takes the terminal's other screen. Keys come where stdin is a terminal too.
    pub(super) fn open() -> io::Result<(Self, mpsc::UnboundedReceiver<Key>)> {
        let is_raw = io::stdin().is_terminal();
        let (sender, receiver) = mpsc::unbounded_channel();
        // From here on it is given back, whatever happens.
        let screen = Self { is_raw };
        if is_raw {
            enable_raw_mode()?;
            std::thread::Builder::new()
                .name("keys".to_owned())
                .spawn(move || read(&sender))?;
        }
        execute!(io::stdout(), EnterAlternateScreen, cursor::Hide)?;
        Ok((screen, receiver))
    }

    /// Puts these lines in the place of those before, in one go.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let mut picture = Vec::new();
        queue!(picture, BeginSynchronizedUpdate)?;
        for (row, line) in (0..).zip(lines) {
            queue!(picture, cursor::MoveTo(0, row))?;
            picture.extend_from_slice(line.as_bytes());
            queue!(picture, Clear(ClearType::UntilNewLine))?;
        }
        let below = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        if below < terminal_size().1 {
            queue!(
                picture,
                cursor::MoveTo(0, below),
                Clear(ClearType::FromCursorDown)
            )?;
        }
        queue!(picture, EndSynchronizedUpdate)?;
        let mut out = io::stdout().lock();
        out.write_all(&picture)?;
        out.flush()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let shown = execute!(io::stdout(), LeaveAlternateScreen, cursor::Show);
        let cooked = if self.is_raw {
            disable_raw_mode()
        } else {
            Ok(())
        };
        if let Err(error) = shown.and(cooked) {
            tracing::warn!(%error, "the terminal cannot be set back; `reset` does it");
        }
    }
}

/// Reads keys until nobody listens any more.
fn read(keys: &mpsc::UnboundedSender<Key>) {
    loop {
        let key = match event::read() {
            Ok(event::Event::Key(key)) if key.kind != KeyEventKind::Release => meaning(key),
            Ok(event::Event::Resize(..)) => Some(Key::Redraw),
            Ok(_) => None,
            Err(error) => {
                tracing::debug!(%error, "no keys can be read");
                return;
            }
        };
        if key.is_some_and(|key| keys.send(key).is_err()) {
            return;
        }
    }
}

fn meaning(key: KeyEvent) -> Option<Key> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(key.code, KeyCode::Char('c' | 'd')).then_some(Key::Interrupt);
    }
    Some(match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Up | KeyCode::Char('k') => Key::Scroll(Scroll::Up),
        KeyCode::Down | KeyCode::Char('j') => Key::Scroll(Scroll::Down),
        KeyCode::PageUp | KeyCode::Char('b') => Key::Scroll(Scroll::PageUp),
        KeyCode::PageDown | KeyCode::Char(' ' | 'f') => Key::Scroll(Scroll::PageDown),
        KeyCode::Home | KeyCode::Char('g') => Key::Scroll(Scroll::First),
        KeyCode::End | KeyCode::Char('G') => Key::Scroll(Scroll::Last),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_they_mean_elsewhere() {
        let pressed = |code, modifiers| meaning(KeyEvent::new(code, modifiers));
        let none = KeyModifiers::NONE;
        assert_eq!(pressed(KeyCode::Char('q'), none), Some(Key::Quit));
        assert_eq!(
            pressed(KeyCode::Char('c'), KeyModifiers::CONTROL),
            Some(Key::Interrupt)
        );
        assert_eq!(
            pressed(KeyCode::PageDown, none),
            Some(Key::Scroll(Scroll::PageDown))
        );
        assert_eq!(pressed(KeyCode::Char('x'), none), None);
        assert_eq!(pressed(KeyCode::Char('q'), KeyModifiers::CONTROL), None);
    }
}
