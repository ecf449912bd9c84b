//! What can be said on the command line.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use iii_actors::spec::{GuestArch, PublishSpec};

use iii_proto::ids::WorkerName;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::complete;
use super::doctor::DoctorArguments;
use super::edit::{AddArguments, RemoveArguments};
use super::man::ManArguments;
use crate::workers_file::{EngineKey, FILE_NAME, PLATFORMS};

mod logs;
mod running;

pub(super) use logs::LogsArguments;
pub(super) use running::{
    EventsArguments, ExecArguments, PsArguments, RestartArguments, StartArguments, StopArguments,
    TopArguments,
};

/// How `run --detach` starts the run.
pub(super) const IN_BACKGROUND: &str = "--in-background";

const EXIT_CODES: &str = "\
Exit codes:
  0    all is well
  1    a worker failed, or a command could not do what it was asked
  2    bad input, or this host cannot run it: nothing was started
  3    no supervisor runs, and the command needs one
  130  ended at once by a second Ctrl-C, or while nothing was started yet

Environment:
  III_LIBKRUNFW_PATH  the libkrunfw that holds the guest's kernel
  III_INIT_PATH       the guest's init program
                      (both for guests of another architecture: with _AARCH64 or _X86_64 behind it)
  III_HELPER_DIR      where iii-shim, iii-vfs and iii-krun are
  III_CONFINEMENT     off: a VMM may do what its user may (for a host where it does not start)
  III_CGROUPS         off: VMs get no limits of the host's; on: also where nothing shows that
                      this process's cgroup was handed to it
  III_HOME            where firmware, images, disks, output and state are kept, instead of ~/.iii
  III_URL             where workers find the iii engine, unless --engine or the file says it
  III_VMM             what runs the VMs, unless --vmm says it: auto, krun or qemu
  III_VMM_ACCEL       how: kvm tries hardware whatever is known of it, tcg never, auto by default
  III_LOG             what to log to stderr, as debug or iii_net=trace
  NO_COLOR            set to anything: no colour";

/// Runs workers, each in a microVM of its own, and keeps them running.
#[derive(Debug, Parser)]
#[command(name = "iii-super", version, after_help = EXIT_CODES, propagate_version = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) colour: Colour,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run workers in the foreground until they end or Ctrl-C
    #[command(after_help = "\
What is printed: a line per event (marked *) and per line that a workload writes (marked |). What a
workload writes is shown with its control characters escaped; its colours are kept where iii-super
itself uses colour. --json prints one object per line, with the bytes unchanged.

Ctrl-C or SIGTERM stops all workers in order, each with its stop_grace; a second one kills them.

Workers start behind those that they depend on; those are started too when only names are given.
If iii-super is killed, the next run starts the workers again, says what was lost, and goes on
counting restarts; a worker that had failed stays so until --reset-failed or a change of its
settings.

Exit codes: 0 all workers are done or were stopped; 1 a worker failed; 2 bad input or this host
cannot run it, and nothing was started; 130 ended at once by a second Ctrl-C.

Examples:
  iii-super run                        all workers of ./iii.workers.yaml
  iii-super run web queue              only these two
  iii-super run --engine ws://localhost:49134
  iii-super run -f app/workers.yaml --json | jq 'select(.event == \"log\").text'")]
    Run(RunArguments),
    /// Run the project in a directory in a VM, and restart it whenever a file is saved
    #[command(after_help = "\
What the project is and how it is started is found out by its files, and printed: package.json,
deno.json, bun.lock, pyproject.toml or requirements.txt, Cargo.toml, go.mod, main.py and the like, or
an executable. iii.worker.yaml says otherwise (scripts: {setup, install, start}, env, ports, ignore).

Dependencies are installed in the VM, on a disk of this project's own, again only when what names or
pins them has changed. The directory is /app in the VM, live and writable; its node_modules is the
disk's. A save restarts the workload inside its VM; a save of what decides the install makes a new VM.
What .gitignore, .iiiignore and iii.worker.yaml's ignore name does not count, nor do editors' own files.

A program that watches its files itself (nodemon, vite, node --watch) is told of saves and not restarted.
A failure within 5 seconds of a start waits for the next save; a later one is restarted.

On a terminal: r restarts, c clears the screen, q or Ctrl-C quits.

Exit codes: 0 ended by the user, 1 the project can no longer be watched, 2 bad input or this host
cannot run it, and nothing was started; 130 ended at once by a second Ctrl-C.

Examples:
  iii-super dev                        the project in this directory
  iii-super dev ./api --port 8080:3000
  iii-super dev ./api --fresh          with nothing installed yet
  iii-super dev ./tool.py --json | jq 'select(.event == \"log\").text'")]
    Dev(DevArguments),
    /// Show how the workers of a running supervisor are
    #[command(after_help = "\
FOR is how long a worker has been in its state, PID the host's process above its VM, PORTS what the
host publishes: its address and the guest's port. HEALTH is what the worker's probe says.

With --stats: UPTIME of the workload's process; CPU of one core, over half a second, and MEMORY of this
host that the VM and its file server take; IN GUEST what of the VM's memory is used, as its kernel says;
what was RECEIVED and SENT since the supervisor's start, and open connections.

With --size: what is used of each disk and how much it can hold, and what output and image take.

Exit codes: 0 shown; 1 the supervisor does not answer; 2 bad input; 3 no supervisor runs.

Examples:
  iii-super ps                         the workers of ./iii.workers.yaml
  iii-super ps --all-projects          every supervisor of this user
  iii-super ps --stats                 what they use; iii-super top goes on showing it
  iii-super ps --size                  what they take of the disk
  iii-super ps --json | jq -r '.workers[] | select(.state != \"ready\").name'")]
    Ps(PsArguments),
    /// Show on a screen what the workers of a running supervisor are doing, as it changes
    #[command(after_help = "\
Each worker with its parts, what it uses (as iii-super ps --stats says), and what the selected one
writes.

Keys: up and down select a worker, r restarts it, s stops or starts it, e shows the parts of all,
PgUp and PgDn scroll the log, ? helps, q quits; workers go on. If the supervisor ends, the next one of
this workers file is shown when it runs.

Exit codes: 0 quit, or shown; 1 the supervisor does not answer; 2 bad input, or no terminal; 3 no
supervisor runs; 128 and the number of the signal that ended it.

Examples:
  iii-super top                        of ./iii.workers.yaml
  iii-super top --once                 one frame, as plain text
  iii-super top --json | jq -c '[.name, .cpu_percent, .usage.memory]'")]
    Top(TopArguments),
    /// Show what has happened to the workers of a running supervisor, and what happens
    #[command(after_help = "\
The supervisor keeps some thousand events; a worker's own lines are not among them. --json prints
the objects that run --json prints.

Exit codes: 0 shown; 1 the supervisor does not answer, or ended while it was followed; 2 bad input;
3 no supervisor runs.

Examples:
  iii-super events                     what is kept
  iii-super events -f web              of web, what is kept and what comes
  iii-super events --since 10m --json | jq 'select(.event == \"vm-crashed\")'")]
    Events(EventsArguments),
    /// Start workers of a running supervisor
    #[command(after_help = "\
A start of what runs changes nothing. What a worker waits for is started as well. Counters of a
worker that had failed begin anew.

Exit codes: 0 ordered, or with --wait ready or complete; 1 with --wait: one is neither, or the
supervisor does not take it; 2 bad input; 3 no supervisor runs; 124 not within --timeout.

Examples:
  iii-super start web                  what `iii-super stop web` has stopped
  iii-super start --wait -t 1m         all, and return when all are ready")]
    Start(StartArguments),
    /// Stop workers of a running supervisor, or all and the supervisor with them
    #[command(after_help = "\
Each workload gets its stop_grace, those first that depend on others. With names the supervisor
goes on, and `iii-super start` starts them again. Without names everything ends, as after Ctrl-C in
`iii-super run`, and the command returns when nothing is left.

Exit codes: 0 stopped; 1 the supervisor does not do it; 2 bad input; 3 no supervisor runs.

Examples:
  iii-super stop web                   web alone
  iii-super stop                       everything
  iii-super stop -t 5s                 everything; what still runs after 5 s is killed")]
    Stop(StopArguments),
    /// Restart workers of a running supervisor, or parts of them
    #[command(after_help = "\
A restart by request is in order and counts towards no limit. A worker at rest is started; a part
of it cannot be restarted.

Exit codes: 0 ordered, or with --wait ready again or complete; 1 with --wait: one is neither, or the
supervisor does not do it; 2 bad input; 3 no supervisor runs; 124 not within --timeout.

Examples:
  iii-super restart --wait web         with a new VM, and return when it is ready again
  iii-super restart -s workload web    the process alone, in its VM, in milliseconds")]
    Restart(RestartArguments),
    /// Run a command in a running worker's guest
    #[command(after_help = "\
It runs as the workload's user, with its environment, in its directory, unless told otherwise.
Signals go to the command; the third Ctrl-C ends it whatever it does. With -it keys go to the
command as they are pressed. What it started ends with it.

Exit codes: the command's own; 128 and the number of the signal that ended it; 124 its time was up;
125 it was not run, or its end is not known; 126 it cannot be executed; 127 there is none of that
name.

Examples:
  iii-super exec web -- ls -l /app
  iii-super exec -it web -- bash
  tar c src | iii-super exec -i web -- tar x -C /tmp
  iii-super exec --timeout 10s -e LANG=C -u root web -- id
  iii-super exec --json web -- ls | jq -r 'select(.stream == \"stdout\").text'")]
    Exec(ExecArguments),
    /// Show what workers wrote, whether they run or not
    #[command(after_help = "\
What `run` stores is shown: a line per line that a workload wrote, marked |, and the end of the
console of a VM that crashed, marked #. Several workers are shown as one sequence, by the time at
which each line arrived. `logs` in the workers file says how much is kept.

--json prints one object per line, as `run --json` does, with the bytes unchanged.

Exit codes: 0 all was shown, or nobody reads any more; 1 what is stored cannot be read; 2 bad input;
130 ended by Ctrl-C.

Examples:
  iii-super logs                       all that is kept of all workers
  iii-super logs -f web                what web wrote and will write
  iii-super logs -n 20 --stream stderr the last 20 lines of each worker's standard error
  iii-super logs --since 10m           of the last ten minutes
  iii-super logs --since 2026-01-31T18:30 --until 2026-01-31T18:45 --timestamps")]
    Logs(LogsArguments),
    /// List the workers of the workers file, and how those of them are that run
    #[command(
        visible_alias = "ls",
        after_help = "\
It needs no supervisor: STATE is - where none runs. ROOT is the host's own /usr, or an image.

Exit codes: 0 listed; 1 the supervisor does not answer; 2 the file has faults.

Examples:
  iii-super list                       of ./iii.workers.yaml
  iii-super list --json | jq -r '.[].name'"
    )]
    List(FileArguments),
    /// Show what a workers file means, with secrets masked; start nothing
    #[command(after_help = "\
Exit codes: 0 it is sound, 2 it has faults or cannot be read.

Examples:
  iii-super config                     is ./iii.workers.yaml sound, and what does it say?
  iii-super config --json | jq .workers.web.command")]
    Config(FileArguments),
    /// Add a worker to the workers file, which is made if there is none
    #[command(after_help = "\
Everything else in the file stays as it is, comments and order included. The result is checked as by
iii-super config before it takes the file's place. Two at once wait for each other, and a crash
leaves the old file or the new one. Paths start in the current directory. ${NAME} in a value stands
for the host's variable at each run.

Exit codes: 0 added; 1 the file could not be written; 2 refused. But for 0 nothing has changed.

Examples:
  iii-super add web --path . --port 8000 -- python3 -m http.server 8000
  iii-super add api --path ./api --command 'node server.js' --port 8080:3000 --health http:3000/health
  iii-super add job --restart never --depends-on api -e 'LEVEL=${LEVEL:-info}' -- ./job --once
  iii-super add api --replace --memory 512MiB --command 'node server.js' --dry-run")]
    Add(Box<AddArguments>),
    /// Remove workers from the workers file
    #[command(after_help = "\
Everything else in the file stays as it is. A comment directly above a worker goes with it, but not
one above the first. A worker that others depend on is not removed without them.

Exit codes: 0 removed; 1 the file could not be written; 2 refused. But for 0 nothing has changed.

Examples:
  iii-super remove api
  iii-super remove api job --dry-run   what would change")]
    Remove(RemoveArguments),
    /// Tell what this host can run, and why
    #[command(after_help = "\
Exit codes: 0 a worker can run here, and did with --boot; 1 it cannot.

Examples:
  iii-super doctor
  iii-super doctor --boot              a boot, stage by stage
  iii-super doctor --json | jq '.checks[] | select(.verdict != \"ok\")'")]
    Doctor(DoctorArguments),
    /// Show, fetch or locate what VMs boot from
    #[command(after_help = "\
Exit codes: 0 all is there, or was fetched; 1 something is missing, or could not be fetched; 2 bad
input.

Examples:
  iii-super firmware                   what is there, and where it was looked for
  iii-super firmware fetch             download what is missing now, not at the first run
  iii-super firmware path              the kernel's path, for scripts")]
    Firmware(FirmwareArguments),
    /// Empty the disks of workers that do not run: what they kept between runs is gone
    #[command(after_help = "\
The disk that keeps a worker's root (`root: {persist: 2GiB}`) and its other disks become as they were
before the first run. Refused while the worker runs. A worker that is no longer in the file may be
named too.

Exit codes: 0 emptied, 1 a worker has no disk or runs, 2 bad input.

Examples:
  iii-super reset db
  iii-super reset db -f app/workers.yaml")]
    Reset(ResetArguments),
    /// Remove what is kept of projects that are gone: their output, caches and counters
    #[command(after_help = "\
A project is gone when its workers file, or the directory that was developed, is there no more. Disks
of workers (`root: {persist: 2GiB}`, `disk` mounts) are somebody's work and stay, unless --disks is
said: the file may be on a drive that is not mounted now.

Exit codes: 0 done, 1 something could not be removed, 2 bad input.

Examples:
  iii-super prune --dry-run
  iii-super prune --disks")]
    Prune(PruneArguments),
    /// Pull, import, list and remove images that workers run on
    #[command(after_help = "\
Images are kept in ~/.iii/images, once for all workers: as one file each, which guests see
read-only as their root. `run` pulls what is missing by itself.

Exit codes: 0 done, 1 an image could not be had, listed or removed, 2 bad input.

Examples:
  iii-super image pull node:22-slim
  iii-super image import app.tar --name app:1      what `docker save` wrote
  iii-super image ls --json | jq '.[].name'
  iii-super image rm node:22-slim
  iii-super image prune                            what no name stands for any more")]
    Image(ImageArguments),
    /// Print the JSON Schema of the workers file, for editors
    #[command(after_help = "\
Exit codes: 0 printed, 2 bad input.

Example, for an editor with a YAML language server:
  iii-super schema > iii.workers.schema.json
  # first line of iii.workers.yaml:
  # yaml-language-server: $schema=./iii.workers.schema.json")]
    Schema,
    /// Print a script that completes iii-super's arguments in a shell
    #[command(after_help = "\
Exit codes: 0 printed, 2 bad input.

Example:
  iii-super completions bash > ~/.local/share/bash-completion/completions/iii-super

To complete the names of workers too, let the shell ask iii-super itself. In ~/.bashrc (or ~/.zshrc
with zsh in place of bash):
  source <(III_SUPER_COMPLETE=bash iii-super)")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print or write manual pages
    #[command(after_help = "\
Exit codes: 0 printed, or written; 1 the pages could not be written; 2 bad input, or no such page.

Examples:
  iii-super man run | man -l -
  iii-super man --out ~/.local/share/man/man1")]
    Man(ManArguments),
}

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    #[command(flatten)]
    pub(super) file: FileArguments,
    /// Where the workers find the iii engine, as ws://localhost:49134; none: nowhere. Default: what
    /// the file says, else III_URL, else none
    #[arg(long, value_name = "URL")]
    pub(super) engine: Option<EngineKey>,
    /// What runs the VMs; auto: the fastest that this host can really run. Default: III_VMM, else
    /// auto
    #[arg(long, value_enum)]
    pub(super) vmm: Option<Vmm>,
    /// Run in the background; return once every worker is ready
    #[arg(short, long)]
    pub(super) detach: bool,
    /// With --detach: return once the workers are being started
    #[arg(long, requires = "detach")]
    pub(super) no_wait: bool,
    /// Bring a run in the background back to this terminal
    #[arg(long, conflicts_with_all = ["detach", "names", "vmm", "reset_failed"])]
    pub(super) attach: bool,
    /// Read the workers file again: start what is new, remove what is gone, restart what has
    /// changed; with names, of these alone
    #[arg(long, conflicts_with_all = ["detach", "attach", "vmm", "reset_failed"])]
    pub(super) reload: bool,
    /// How --detach starts the run
    #[arg(long = "in-background", hide = true, conflicts_with_all = ["detach", "attach", "reload"])]
    pub(super) in_background: bool,
    /// Forget the restart counters and the failures that a supervisor which was killed has left
    #[arg(long)]
    pub(super) reset_failed: bool,
    /// Show every step, also those that matter only when something is slow or goes wrong
    #[arg(short, long)]
    pub(super) verbose: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Vmm {
    Auto,
    Krun,
    Qemu,
}

#[derive(Debug, Args)]
pub(super) struct DevArguments {
    /// The project's directory, or one program
    #[arg(value_name = "PATH", default_value = ".")]
    pub(super) path: PathBuf,
    /// Publish a port of the guest, as in the workers file: 8080:3000 is port 3000 of the guest
    #[arg(short, long, visible_alias = "publish", value_name = "HOST:GUEST", value_parser = super::dev::port)]
    pub(super) port: Vec<PublishSpec>,
    /// Variables for the worker; their values are never shown
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// The worker's name, instead of the directory's
    #[arg(long)]
    pub(super) name: Option<WorkerName>,
    /// Where it finds the iii engine, as ws://localhost:49134; none: nowhere. Default: III_URL, else
    /// none
    #[arg(long, value_name = "URL")]
    pub(super) engine: Option<EngineKey>,
    /// Leave restarts to the project: only tell those who watch files in the guest of saves
    #[arg(long)]
    pub(super) no_restart: bool,
    /// Begin with an empty cache: install everything again
    #[arg(long)]
    pub(super) fresh: bool,
    /// How long files must be quiet before a save counts
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = super::dev::duration)]
    pub(super) debounce: Duration,
    /// What runs the VM; auto: the fastest that this host can really run. Default: III_VMM, else
    /// auto
    #[arg(long, value_enum)]
    pub(super) vmm: Option<Vmm>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Show every step
    #[arg(short, long)]
    pub(super) verbose: bool,
}

/// Which workers file, and how it is to be shown.
#[derive(Debug, Args)]
pub(super) struct FileArguments {
    /// The workers file
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    pub(super) file: PathBuf,
    /// Only these workers
    #[arg(value_name = "NAME", add = complete::workers())]
    pub(super) names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImageArguments {
    #[command(subcommand)]
    pub(super) command: ImageCommand,
    /// Images for workers of this platform, linux/amd64 or linux/arm64; by default this host's
    #[arg(long, value_name = "PLATFORM", global = true, value_parser = platform)]
    pub(super) platform: Option<GuestArch>,
}

/// As the workers file has it.
fn platform(text: &str) -> Result<GuestArch, String> {
    let found = PLATFORMS.iter().find(|(word, _)| *word == text);
    found.map(|(_, arch)| *arch).ok_or_else(|| {
        let all: Vec<&str> = PLATFORMS.iter().map(|(word, _)| *word).collect();
        format!("it is not one of {}", all.join(", "))
    })
}

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// Get images from their registries, also those whose names stand for something new
    #[command(after_help = "\
Credentials are those that `docker login` keeps (~/.docker/config.json, or DOCKER_CONFIG), or given:
  printf %s \"$TOKEN\" | iii-super image pull --username me --password-stdin registry.example/app

A pull that breaks off goes on where it was when it is tried again.

Exit codes: 0 all are there, 1 one could not be had, 2 bad input.

Examples:
  iii-super image pull node:22-slim
  iii-super image pull --platform linux/arm64 node:22-slim   for workers of that platform")]
    Pull(PullArguments),
    /// List images
    #[command(
        visible_alias = "list",
        after_help = "\
Exit codes: 0 listed, 1 they cannot be read, 2 bad input.

Examples:
  iii-super image ls
  iii-super image ls --json | jq -r '.[].name'"
    )]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove names, and what only they stood for
    #[command(
        visible_alias = "remove",
        after_help = "\
Exit codes: 0 removed, 1 one is not there or could not be removed, 2 bad input.

Examples:
  iii-super image rm node:22-slim
  iii-super image rm app:1 app:2"
    )]
    Rm {
        /// The images
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove what no name stands for any more; never what a worker runs on
    #[command(after_help = "\
Exit codes: 0 done, 1 something could not be removed, 2 bad input.

Examples:
  iii-super image prune
  iii-super image prune --json | jq .")]
    Prune {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take images from a file: what `docker save` writes, or an OCI image layout
    #[command(after_help = "\
The file is an archive, compressed or not, or a directory.

Exit codes: 0 imported, 1 the file holds no image that can be used, 2 bad input.

Examples:
  docker save app:1 | gzip > app.tar.gz && iii-super image import app.tar.gz
  iii-super image import ./layout --name app:1")]
    Import(ImportArguments),
}

#[derive(Debug, Args)]
pub(super) struct PullArguments {
    /// The images
    #[arg(value_name = "NAME", required = true)]
    pub(super) names: Vec<String>,
    #[command(flatten)]
    pub(super) login: LoginArguments,
    /// Speak to these registries without TLS, if they have none. Those on this host's loopback are
    /// spoken to without it in any case
    #[arg(long)]
    pub(super) insecure: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct LoginArguments {
    /// The user's name at the registry
    #[arg(short, long, value_name = "NAME", requires = "password_stdin")]
    pub(super) username: Option<String>,
    /// Read the password, or a token, from stdin
    #[arg(long, requires = "username")]
    pub(super) password_stdin: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImportArguments {
    /// The file or directory
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,
    /// What the image is to be called, instead of what the file calls it
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PruneArguments {
    /// Disks of workers too
    #[arg(long)]
    pub(super) disks: bool,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print JSON, an object per project
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ResetArguments {
    /// The workers
    #[arg(value_name = "NAME", required = true, add = complete::workers())]
    pub(super) names: Vec<WorkerName>,
    /// The workers file, which names the project
    #[arg(short, long, value_name = "FILE", default_value = FILE_NAME)]
    pub(super) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct FirmwareArguments {
    /// What to do; nothing given: status
    #[arg(value_enum, default_value_t = FirmwareAction::Status)]
    pub(super) action: FirmwareAction,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FirmwareAction {
    /// Say what is there and where it was looked for; fetch nothing
    Status,
    /// Make sure that all is there, downloading what is missing
    Fetch,
    /// Print the path of the kernel; fail if it is not there
    Path,
}

/// Whether to use colour.
#[derive(Debug, Args)]
pub(super) struct Colour {
    /// When to use colour; auto: on a terminal, unless NO_COLOR is set
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        default_missing_value = "always",
        num_args = 0..=1,
        require_equals = true
    )]
    color: When,
    /// The same as --color=never
    #[arg(long, global = true, conflicts_with = "color")]
    no_color: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum When {
    Auto,
    Always,
    Never,
}

impl Colour {
    /// Whether stdout is to be coloured.
    pub(super) fn of_stdout(&self) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        self.decide(std::io::stdout().is_terminal() && !dumb, set("NO_COLOR"))
    }

    fn decide(&self, terminal: bool, no_color_variable: bool) -> bool {
        match self.color {
            _ if self.no_color => false,
            When::Never => false,
            When::Always => true,
            When::Auto => terminal && !no_color_variable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn colour_follows_flag_then_variable_then_terminal() {
        let colour = |args: &[&str]| {
            let args = ["iii-super", "schema"].iter().chain(args);
            Arguments::try_parse_from(args).unwrap().colour
        };
        for (args, terminal, variable, expected) in [
            (&[][..], true, false, true),
            (&[], false, false, false),
            (&[], true, true, false),
            (&["--color"], false, true, true),
            (&["--color=always"], false, true, true),
            (&["--color=never"], true, false, false),
            (&["--no-color"], true, false, false),
        ] {
            assert_eq!(
                colour(args).decide(terminal, variable),
                expected,
                "{args:?}"
            );
        }
    }
}
