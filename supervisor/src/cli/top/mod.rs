//! `iii-super top`: the supervision tree on a screen.
//!
//! * [`state`] is what is shown and what becomes of it, [`view`] how it looks: both are pure;
//! * [`feed`] asks the supervisor, [`screen`] has the terminal; this file puts them together.

mod feed;
mod screen;
mod state;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal as _};

use super::arguments::{Colour, TopArguments};
use super::contact::{Failure, Project, block_on};
use super::say::print;
use super::signals::Signals;
use super::usage::{INTERVAL, Measured};
use super::{FAILED, OK, REFUSED};
use crate::output::json::escape_c1;
use feed::Feed;
use screen::{Said, Screen};
use state::{Input, Order, State};

/// What a shell adds to the number of a signal.
const BY_SIGNAL: u8 = 128;
/// The width of what is printed where no terminal says another.
const WIDTH: u16 = 120;
/// Inputs that are taken before the next frame.
const BATCH: usize = 256;

pub(super) fn run(args: &TopArguments, colour: &Colour) -> u8 {
    let colour = colour.of_stdout();
    block_on(async {
        let project = Project::of(&args.file)?;
        if args.once || args.json {
            return once(&project, args.json).await;
        }
        if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
            return Err(Failure::new(
                REFUSED,
                "failed to show the screen: standard input and output are no terminal; \
                 `iii-super top --once` prints one frame as text, `iii-super top --json` for programs",
            ));
        }
        // So that what stands against it is told before the screen is taken.
        let first = feed::once(&project).await?;
        let failed = |error: io::Error| {
            Failure::new(FAILED, format_args!("failed to use the terminal: {error}"))
        };
        let signals = Signals::install().map_err(failed)?;
        let mut state = State::new(colour);
        let orders = state.on(first);
        show(state, orders, project, signals).await.map_err(failed)
    })
}

/// One frame, or one object for each worker.
async fn once(project: &Project, as_json: bool) -> Result<u8, Failure> {
    let mut state = State::new(false);
    state.on(feed::once(project).await?);
    tokio::time::sleep(INTERVAL).await;
    state.on(feed::once(project).await?);
    if !as_json {
        let width = ratatui::crossterm::terminal::size().map_or(WIDTH, |(width, _)| width);
        let width = if io::stdout().is_terminal() {
            width
        } else {
            WIDTH
        };
        return Ok(print(&view::plain(&state, width)));
    }
    let mut text = String::new();
    for worker in &state.workers {
        let line: Result<String, _> = serde_json::to_string::<Measured>(worker);
        text += &escape_c1(line.map_err(|error| Failure::new(FAILED, error))?);
        text.push('\n');
    }
    Ok(print(&text))
}

/// Shows the screen until somebody has enough of it.
async fn show(
    mut state: State,
    orders: Vec<Order>,
    project: Project,
    mut signals: Signals,
) -> io::Result<u8> {
    let mut screen = Screen::open()?;
    let mut said = screen::listen();
    let (mut feed, mut inputs) = Feed::start(project);
    let mut orders = orders;
    loop {
        for order in std::mem::take(&mut orders) {
            match order {
                Order::Quit => return Ok(OK),
                Order::Suspend => screen.suspend()?,
                Order::Redraw => screen.forget()?,
                Order::Follow(worker) => feed.follow(worker),
                Order::Restart(_) | Order::Stop(_) | Order::Start(_) => feed.order(order),
            }
        }
        screen.draw(&state)?;
        tokio::select! {
            // Keys first: a flood of output must not hide them.
            biased;
            name = signals.next() => return Ok(BY_SIGNAL + match name {
                "SIGHUP" => 1,
                "SIGTERM" => 15,
                _ => 2,
            }),
            heard = said.recv() => match heard {
                Some(Said::Key(key)) => orders = state.on(Input::Key(key)),
                Some(Said::Resized) => {}
                // The terminal is gone.
                None => return Ok(BY_SIGNAL + 1),
            },
            error = feed.failed() => return Err(error),
            input = inputs.recv() => {
                let Some(input) = input else { return Ok(FAILED) };
                orders = state.on(input);
                for _ in 1..BATCH {
                    let Ok(input) = inputs.try_recv() else { break };
                    orders.extend(state.on(input));
                }
            }
        }
    }
}
