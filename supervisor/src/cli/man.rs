//! `iii-super man`: manual pages, made from what `--help` is made from.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _};
use clap_mangen::Man;

use super::arguments::Arguments;
use super::say::{print, say};
use super::{FAILED, REFUSED};

#[derive(Debug, Args)]
pub(super) struct ManArguments {
    /// The command; none: the page of iii-super itself
    #[arg(value_name = "COMMAND")]
    command: Option<String>,
    /// Write all pages into this directory, which is made
    #[arg(short, long, value_name = "DIR", conflicts_with = "command")]
    out: Option<PathBuf>,
}

pub(super) fn run(arguments: &ManArguments) -> u8 {
    let pages = pages();
    let Some(directory) = &arguments.out else {
        let name = match &arguments.command {
            None => String::from("iii-super.1"),
            Some(command) => format!("iii-super-{command}.1"),
        };
        return match pages.iter().find(|(page, _)| *page == name) {
            Some((_, text)) => print(text),
            None => {
                let known: Vec<&str> = pages
                    .iter()
                    .filter_map(|(page, _)| page.strip_prefix("iii-super-")?.strip_suffix(".1"))
                    .collect();
                say(format_args!(
                    "failed to find the page {name}: there is none\n    pages: {}",
                    known.join(", ")
                ));
                REFUSED
            }
        };
    };
    match write(directory, &pages) {
        Ok(()) => print(&format!(
            "{} pages in {}\n",
            pages.len(),
            directory.display()
        )),
        Err(error) => {
            say(format_args!(
                "failed to write pages to {}: {error}; name another directory with --out",
                directory.display()
            ));
            FAILED
        }
    }
}

fn write(directory: &Path, pages: &[(String, String)]) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (name, text) in pages {
        std::fs::write(directory.join(name), text)?;
    }
    Ok(())
}

/// A page for the program and each of its commands, with its file's name.
fn pages() -> Vec<(String, String)> {
    let mut program = Arguments::command().disable_help_subcommand(true);
    program.build();
    let mut pages = vec![page(&program)];
    pages.extend(program.get_subcommands().map(page));
    pages
}

fn page(command: &clap::Command) -> (String, String) {
    // The name with the program's before it, and a dash between: how man pages are called.
    let name = command.get_display_name().unwrap_or(command.get_name());
    let source = concat!("iii-super ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).title(name).source(source);
    let mut text = Vec::new();
    // Memory takes what is written to it.
    man.render(&mut text).expect("a page is written to memory");
    (
        format!("{name}.1"),
        String::from_utf8_lossy(&text).into_owned(),
    )
}
