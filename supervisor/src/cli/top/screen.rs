//! The terminal while the screen is shown.

use std::io;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

use super::state::{Key, State};
use super::view;

/// What the terminal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Key(Key),
    /// It has another size.
    Resized,
}

/// The screen. The drop puts the terminal back as it was: at the end, at an error; a panic puts it
/// back before it is told.
pub(super) struct Screen {
    terminal: Option<DefaultTerminal>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let terminal = match ratatui::try_init() {
            Ok(terminal) => terminal,
            Err(error) => {
                ratatui::restore();
                return Err(error);
            }
        };
        Ok(Self {
            terminal: Some(terminal),
        })
    }

    pub(super) fn draw(&mut self, state: &State) -> io::Result<()> {
        let Some(terminal) = &mut self.terminal else {
            return Ok(());
        };
        terminal.draw(|frame| view::draw(state, frame.area(), frame.buffer_mut()))?;
        Ok(())
    }

    /// Forgets what is on the screen: the next frame is drawn whole.
    pub(super) fn forget(&mut self) -> io::Result<()> {
        match &mut self.terminal {
            Some(terminal) => terminal.clear(),
            None => Ok(()),
        }
    }

    /// Gives the terminal back to the shell, as Ctrl-Z does, until we are in the foreground again.
    pub(super) fn suspend(&mut self) -> io::Result<()> {
        self.close();
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP)?;
        *self = Self::open()?;
        Ok(())
    }

    fn close(&mut self) {
        // Its drop shows the cursor.
        drop(self.terminal.take());
        ratatui::restore();
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.terminal.is_some() {
            self.close();
        }
    }
}

/// Reads what the terminal says, on a thread of its own: a read of a terminal cannot be given up,
/// and the program does not wait for it when it ends.
pub(super) fn listen() -> mpsc::Receiver<Said> {
    let (tell, said) = mpsc::channel(64);
    std::thread::spawn(move || {
        // An error is the end of the terminal, of which SIGHUP tells.
        while let Ok(event) = event::read() {
            let heard = match event {
                Event::Key(key) => key_of(key).map(Said::Key),
                Event::Resize(..) => Some(Said::Resized),
                _ => None,
            };
            if let Some(heard) = heard
                && tell.blocking_send(heard).is_err()
            {
                return;
            }
        }
    });
    said
}

fn key_of(key: KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c' | 'd') => Some(Key::Quit),
            KeyCode::Char('z') => Some(Key::Suspend),
            KeyCode::Char('l') => Some(Key::Redraw),
            _ => None,
        };
    }
    match key.code {
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Up),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Down),
        KeyCode::Home | KeyCode::Char('g') => Some(Key::First),
        KeyCode::End | KeyCode::Char('G') => Some(Key::Last),
        KeyCode::PageUp => Some(Key::LogUp),
        KeyCode::PageDown => Some(Key::LogDown),
        KeyCode::Char('r') => Some(Key::Restart),
        KeyCode::Char('s') => Some(Key::StopOrStart),
        KeyCode::Enter | KeyCode::Char('e') => Some(Key::Expand),
        KeyCode::Char('?' | 'h') => Some(Key::Help),
        KeyCode::Esc | KeyCode::Char('q') => Some(Key::Quit),
        _ => None,
    }
}
