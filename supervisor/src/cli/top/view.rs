//! How it looks: a pure function of [`State`] and the size of the screen.

use iii_actors::WorkerState;
use iii_actors::event::{ActorKind, LogSource};
use iii_actors::tree::ChildState;
use ratatui::buffer::Buffer;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Clear, Paragraph, Widget};

use super::state::State;
use crate::cli::usage::{Measured, NONE, bytes, cut, guest_memory, percent, uptime};
use crate::output::{escape, words};
use crate::usage::Part;

/// Least and greatest width of the column of names.
const NAMES: (usize, usize) = (16, 32);
/// The log is left out where the screen is too low to show this much of it.
const LEAST_LOG: u16 = 4;

/// The columns behind the names: heading, width, and the width of the screen from which on it is
/// shown.
const COLUMNS: [(&str, usize, u16); 9] = [
    ("STATE", 9, 0),
    ("UP", 7, 60),
    ("RESTARTS", 13, 100),
    ("CPU", 6, 0),
    ("MEMORY", 8, 0),
    ("IN GUEST", 15, 110),
    ("IN/s", 8, 72),
    ("OUT/s", 8, 72),
    ("CONNS", 5, 120),
];

const HELP: [(&str, &str); 9] = [
    ("up, k / down, j", "select a worker"),
    ("Home, g / End, G", "the first, the last"),
    ("PgUp / PgDn", "scroll the log"),
    ("r", "restart the selected worker"),
    ("s", "stop it; start it, if it is at rest"),
    (
        "e, Enter",
        "the parts of all workers, or of the selected one",
    ),
    ("Ctrl-L", "draw the screen anew"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit; workers go on"),
];

/// Draws a frame.
pub(super) fn draw(state: &State, area: Rect, buffer: &mut Buffer) {
    let (lines, selected) = rows(state, area.width);
    let room = area.height.saturating_sub(3);
    let wanted = u16::try_from(lines.len()).unwrap_or(u16::MAX).max(1);
    // At most two thirds are the table's, if there are workers for more; and all of it, if what is
    // left would not do for a log.
    let table = match wanted.min(room * 2 / 3) {
        table if room - table < LEAST_LOG => wanted.min(room),
        table => table,
    };
    let [title, heading, body, log, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(table),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    Paragraph::new(title_line(state)).render(title, buffer);
    Paragraph::new(heading_line(state, area.width)).render(heading, buffer);
    match &state.lost {
        Some(why) => {
            Paragraph::new(Line::styled(why.clone(), tone(state, Color::Red))).render(body, buffer)
        }
        None => {
            let skip = scrolled(selected, lines.len(), usize::from(body.height));
            let shown: Vec<Line<'_>> = lines.into_iter().skip(skip).collect();
            Paragraph::new(shown).render(body, buffer);
        }
    }
    if log.height >= LEAST_LOG {
        draw_log(state, log, buffer);
    }
    Paragraph::new(last_line(state)).render(keys, buffer);
    if state.help {
        draw_help(area, buffer);
    }
}

/// All that a frame would show of workers, however many they are, as plain text.
pub(super) fn plain(state: &State, width: u16) -> String {
    let all = state.whole();
    let (rows, _) = rows(&all, width);
    let mut text = String::new();
    for line in [title_line(&all), heading_line(&all, width)]
        .into_iter()
        .chain(rows)
    {
        let line: String = line
            .spans
            .iter()
            .map(|span| span.content.as_ref())
            .collect();
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn tone(state: &State, colour: Color) -> Style {
    match state.colour {
        true => Style::new().fg(colour),
        false => Style::new(),
    }
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn title_line(state: &State) -> Line<'static> {
    let Some(greeting) = &state.greeting else {
        return Line::styled("iii-super top", bold());
    };
    let mut counts: Vec<(WorkerState, usize)> = Vec::new();
    for worker in &state.workers {
        let state = worker.worker.worker.state;
        match counts.iter_mut().find(|(known, _)| *known == state) {
            Some((_, count)) => *count += 1,
            None => counts.push((state, 1)),
        }
    }
    let counts: Vec<String> = (counts.iter())
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let file = escape::text(&greeting.file.display().to_string()).replace('\n', "?");
    let up = words::since(greeting.started_unix_ms, state.now_unix_ms);
    let rest = format!("  process {}, up {up}  {}", greeting.pid, counts.join(", "));
    Line::from(vec![Span::styled(file, bold()), Span::raw(rest)])
}

fn name_width(state: &State) -> usize {
    let longest = (state.workers.iter())
        .map(|w| w.worker.worker.name.as_str().len())
        .max();
    longest.unwrap_or(0).clamp(NAMES.0, NAMES.1)
}

fn columns(width: u16) -> impl Iterator<Item = (usize, &'static str, usize)> {
    (COLUMNS.iter().enumerate())
        .filter(move |(_, (_, _, from))| width >= *from)
        .map(|(at, (heading, wide, _))| (at, *heading, *wide))
}

fn heading_line(state: &State, width: u16) -> Line<'static> {
    let mut text = format!("{:1$}", "WORKER", name_width(state));
    for (_, heading, wide) in columns(width) {
        text += &format!("  {heading:wide$}");
    }
    let style = match state.colour {
        true => bold().add_modifier(Modifier::REVERSED),
        false => bold(),
    };
    Line::styled(format!("{text:0$}", usize::from(width)), style)
}

/// The tree, and which lines of it are the selected worker's.
fn rows(state: &State, width: u16) -> (Vec<Line<'static>>, std::ops::Range<usize>) {
    let mut lines = Vec::new();
    let mut selected = 0..0;
    let names = name_width(state);
    for measured in &state.workers {
        let info = &measured.worker.worker;
        let is_selected = state.selected.as_ref() == Some(&info.name);
        let from = lines.len();
        let line = Row::of_worker(state, measured).line(names, width);
        lines.push(match is_selected {
            true => line.patch_style(Style::new().add_modifier(Modifier::REVERSED)),
            false => line,
        });
        if is_selected || state.expanded {
            for row in parts(state, measured) {
                lines.push(row.line(names, width));
            }
        }
        if is_selected {
            selected = from..lines.len();
        }
    }
    (lines, selected)
}

/// How many lines are left out at the top so that the selected ones are seen, its first above all.
fn scrolled(selected: std::ops::Range<usize>, all: usize, room: usize) -> usize {
    let skip = selected.end.saturating_sub(room).min(selected.start);
    skip.min(all.saturating_sub(room))
}

struct Row {
    name: String,
    name_style: Style,
    state: Span<'static>,
    /// Those of [`COLUMNS`] behind the state.
    cells: [String; COLUMNS.len() - 1],
}

impl Row {
    fn of_worker(state: &State, measured: &Measured) -> Self {
        let (worker, usage) = (&measured.worker.worker, &measured.worker.usage);
        let rate = |rate: Option<u64>| bytes(rate);
        let connections = usage.network.as_ref().map(|network| network.connections);
        let colour = match worker.state {
            WorkerState::Ready | WorkerState::Done => Some(Color::Green),
            WorkerState::Failed => Some(Color::Red),
            WorkerState::Repairing | WorkerState::Replacing => Some(Color::Yellow),
            _ => None,
        };
        let style = colour.map_or(Style::new(), |colour| tone(state, colour));
        Self {
            name: worker.name.to_string(),
            name_style: bold(),
            state: Span::styled(worker.state.to_string(), style),
            cells: [
                uptime(&measured.worker, state.now_unix_ms),
                match (worker.starts.saturating_sub(1), worker.vm_restarts) {
                    (all, 0) => all.to_string(),
                    (all, vm) => format!("{all} ({vm} vm)"),
                },
                percent(measured.cpu_percent),
                bytes(usage.memory),
                guest_memory(usage),
                rate(measured.received_per_second),
                rate(measured.sent_per_second),
                connections.map_or_else(|| NONE.into(), |count| count.to_string()),
            ],
        }
    }

    fn line(self, names: usize, width: u16) -> Line<'static> {
        let name = cut(&self.name, names);
        let mut spans = vec![Span::styled(format!("{name:names$}"), self.name_style)];
        for (at, _, wide) in columns(width) {
            spans.push(Span::raw("  "));
            spans.push(match at.checked_sub(1) {
                None => {
                    let text = cut(&self.state.content, wide);
                    Span::styled(format!("{text:wide$}"), self.state.style)
                }
                Some(at) => Span::raw(format!("{:wide$}", cut(&self.cells[at], wide))),
            });
        }
        Line::from(spans)
    }
}

/// What a worker is made of, and the reason why it is as it is.
fn parts(state: &State, measured: &Measured) -> Vec<Row> {
    let (worker, usage) = (&measured.worker.worker, &measured.worker.usage);
    let mut rows: Vec<Row> = Vec::new();
    for part in &usage.parts {
        let last = part.actor == ActorKind::Vm;
        rows.push(part_row(state, part, if last { "└ " } else { "├ " }));
    }
    if let Some(pid) = worker.workload_pid {
        let mut row = empty_row(format!("  └ workload {pid}"), "runs");
        row.cells[0] = uptime(&measured.worker, state.now_unix_ms);
        row.cells[1] = worker.starts.saturating_sub(1).to_string();
        rows.push(row);
    }
    if !worker.waits_for.is_empty() {
        let names: Vec<&str> = worker.waits_for.iter().map(|name| name.as_str()).collect();
        rows.push(empty_row(format!("└ waits for {}", names.join(", ")), ""));
    }
    rows
}

fn part_row(state: &State, part: &Part, branch: &str) -> Row {
    let what = match part.actor {
        ActorKind::Dns => "resolver",
        ActorKind::NetPoll => "network",
        ActorKind::Fs => "files",
        ActorKind::Vm => "vm",
    };
    let name = match part.pid {
        Some(pid) => format!("{branch}{what} {pid}"),
        None => format!("{branch}{what}"),
    };
    let mut row = empty_row(
        name,
        match part.state {
            ChildState::Down => "down",
            ChildState::Waiting => "waiting",
            ChildState::Starting => "starting",
            ChildState::Up => "up",
            ChildState::Stopping => "stopping",
        },
    );
    row.cells[1] = part.restarts.to_string();
    if part.pid.is_some() {
        let busy = part.pid.and_then(|pid| state.busy.get(&pid).copied());
        row.cells[2] = percent(busy);
        row.cells[3] = bytes(part.memory);
    }
    row
}

fn empty_row(name: String, state: &'static str) -> Row {
    Row {
        name,
        name_style: dim(),
        state: Span::raw(state),
        cells: Default::default(),
    }
}

fn draw_log(state: &State, area: Rect, buffer: &mut Buffer) {
    let block = Block::new().borders(Borders::TOP);
    let inner = block.inner(area);
    let mut room = usize::from(inner.height);
    let mut lines = Vec::new();
    // How a worker ended stands where one looks for the reason.
    if let Some(why) = state.chosen().and_then(reason)
        && room > 1
    {
        room -= 1;
        lines.push(Line::styled(why, tone(state, Color::Red)));
    }
    state.log_room.set(room);
    // The screen may have grown since it was scrolled.
    let back = state.back.min(state.furthest());
    let title = match (&state.selected, back) {
        (None, _) => String::from(" log "),
        (Some(name), 0) => format!(" log of {name} "),
        (Some(name), 1) => format!(" log of {name}, 1 line back "),
        (Some(name), back) => format!(" log of {name}, {back} lines back "),
    };
    block.title(title).render(area, buffer);
    let end = state.log.len() - back;
    let from = end.saturating_sub(room);
    for line in state.log.range(from..end) {
        let mark = match line.stream {
            LogSource::Stdout => Span::styled(" | ", dim()),
            LogSource::Stderr => Span::styled(" ! ", tone(state, Color::Yellow)),
            LogSource::Console => Span::styled(" # ", dim()),
        };
        lines.push(Line::from(vec![
            Span::styled(line.time.clone(), dim()),
            mark,
            Span::raw(line.text.clone()),
        ]));
    }
    if lines.is_empty() && state.selected.is_some() && state.lost.is_none() {
        lines.push(Line::styled("it has written nothing yet", dim()));
    }
    Paragraph::new(lines).render(inner, buffer);
}

fn reason(measured: &Measured) -> Option<String> {
    match measured.worker.worker.outcome.as_ref()? {
        crate::Outcome::Failed(reason) => Some(format!(
            "failed: {}",
            escape::text(reason).replace('\n', " ")
        )),
        _ => None,
    }
}

fn last_line(state: &State) -> Line<'static> {
    let keys = "up/down select  r restart  s stop/start  e parts  ? help  q quit";
    match &state.notice {
        Some(Ok(notice)) => Line::from(vec![
            Span::styled(format!("{notice}  "), bold()),
            Span::styled(keys, dim()),
        ]),
        Some(Err(error)) => {
            let error = escape::text(error).replace('\n', " ");
            Line::styled(error, tone(state, Color::Red).add_modifier(Modifier::BOLD))
        }
        None => Line::styled(keys, dim()),
    }
}

fn draw_help(area: Rect, buffer: &mut Buffer) {
    let widest = HELP.iter().map(|(_, text)| text.len()).max().unwrap_or(0);
    let lines: Vec<Line<'_>> = (HELP.iter())
        .map(|(key, text)| Line::raw(format!(" {key:16}  {text} ")))
        .collect();
    let width = u16::try_from(widest + 22)
        .unwrap_or(u16::MAX)
        .min(area.width);
    let height = u16::try_from(lines.len() + 2)
        .unwrap_or(u16::MAX)
        .min(area.height);
    let window = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    Clear.render(window, buffer);
    let block = Block::bordered()
        .title(" help: any key takes it away ")
        .title_alignment(Alignment::Center);
    Paragraph::new(lines).block(block).render(window, buffer);
}
