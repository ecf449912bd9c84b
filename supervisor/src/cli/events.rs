//! `iii-super events`: what has happened, and what happens.

use super::arguments::{Colour, EventsArguments};
use super::contact::{Failure, Project, block_on};
use super::{FAILED, OK};
use crate::control::protocol::{EventsRequest, Request};
use crate::output::lines::Lines;
use crate::output::printer::Format;

pub(super) fn run(args: &EventsArguments, colour: &Colour) -> u8 {
    let colour = colour.of_stdout();
    block_on(async {
        let project = Project::of(&args.file)?;
        let format = if args.json {
            Format::Json
        } else {
            Format::Human(project.screen(colour, true).await?)
        };
        let request = Request::Events(EventsRequest {
            workers: args.names.clone(),
            since_unix_ms: args.since.map(|since| since.unix_ms()),
            last: args.last,
            follow: args.follow,
        });
        let mut answer = project.ask(request).await?;
        let mut lines = Lines::new(format);
        while let Some(reply) = answer.next().await? {
            lines.put(&reply).map_err(unprinted)?;
            let wait = !answer.has_more() || lines.is_full();
            if wait && !lines.flush().map_err(unprinted)? {
                return Ok(OK);
            }
        }
        // That nobody reads any more is no failure.
        lines.flush().map_err(unprinted)?;
        Ok(OK)
    })
}

fn unprinted(error: std::io::Error) -> Failure {
    Failure::new(FAILED, format_args!("failed to print: {error}"))
}
