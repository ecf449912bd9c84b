//! `iii-super firmware`.

use iii_firmware::digest::Digest;
use iii_firmware::platform;
use iii_firmware::{Embedded, Firmware, FirmwareOptions, FirmwareStatus};
use iii_vmm::helpers::{self, Origin};
use serde::Serialize;

use super::arguments::{FirmwareAction, FirmwareArguments};
use super::progress::StderrProgress;
use super::say::{print, say};
use super::{FAILED, REFUSED};
use crate::embedded;

pub(super) fn run(args: &FirmwareArguments) -> u8 {
    let options = match embedded::firmware_options() {
        Ok(options) => options,
        Err(error) => {
            say(error);
            return REFUSED;
        }
    };
    match args.action {
        FirmwareAction::Status => status(&options, args.json),
        FirmwareAction::Fetch => fetch(&options, args.json),
        FirmwareAction::Path => path(options, args.json),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    // Plain data with text keys: serialising it cannot fail.
    serde_json::to_string_pretty(value).expect("plain data is JSON") + "\n"
}

/// What is there. Fails if `fetch` would fail without trying to download.
fn status(options: &FirmwareOptions, as_json: bool) -> u8 {
    let status = FirmwareStatus::of(options);
    let sound = status.error.is_none() && status.init_error.is_none();
    let helpers = helpers(options);
    let text = if as_json {
        json(&Status {
            firmware: &status,
            helpers: &helpers,
            embedded: embedded::all().map(Inside::of).collect(),
        })
    } else {
        let inside: String = embedded::all()
            .map(|file| {
                format!(
                    "inside  {}: {} bytes, packed {}\n",
                    file.name,
                    file.size,
                    file.packed.len()
                )
            })
            .collect();
        describe(&status) + &describe_helpers(&helpers) + &inside
    };
    let printed = print(&text);
    if sound { printed } else { FAILED }
}

/// All that VMs are started with on this host.
#[derive(Serialize)]
struct Status<'a> {
    #[serde(flatten)]
    firmware: &'a FirmwareStatus,
    helpers: &'a [Helper],
    /// What travels inside this program, vm-init apart.
    embedded: Vec<Inside>,
}

/// A file inside this program.
#[derive(Serialize)]
struct Inside {
    name: &'static str,
    sha256: Digest,
    bytes: u64,
    packed_bytes: usize,
}

impl Inside {
    fn of(file: &Embedded) -> Self {
        Self {
            name: file.name,
            sha256: file.sha256,
            bytes: file.size,
            packed_bytes: file.packed.len(),
        }
    }
}

/// A program that iii-super starts.
#[derive(Serialize)]
struct Helper {
    name: &'static str,
    /// `directory`, `III_HELPER_DIR`, `beside` or `embedded`.
    origin: Option<String>,
    path: Option<std::path::PathBuf>,
    error: Option<String>,
}

fn names(options: &FirmwareOptions) -> &'static [&'static str] {
    platform::row(&options.os, &options.arch).map_or(&[], |host| host.helpers)
}

fn helpers(options: &FirmwareOptions) -> Vec<Helper> {
    let places = embedded::places(None, &options.home);
    let look = |name: &&'static str| {
        let found = helpers::look(name, &places);
        let error = found.as_ref().err().map(ToString::to_string);
        let found = found.ok();
        Helper {
            name,
            origin: found.as_ref().map(|found| found.origin.to_string()),
            path: found.map(|found| found.path),
            error,
        }
    };
    names(options).iter().map(look).collect()
}

fn describe_helpers(helpers: &[Helper]) -> String {
    let mut text = String::new();
    for helper in helpers {
        text += &match (&helper.origin, &helper.path, &helper.error) {
            (Some(origin), Some(path), _) => {
                format!("helper  {}: {origin}: {}\n", helper.name, path.display())
            }
            (_, _, error) => format!(
                "helper  {}: {}\n",
                helper.name,
                error.as_deref().unwrap_or_default()
            ),
        };
    }
    text
}

/// Lays what is embedded and is not there yet.
fn lay(options: &FirmwareOptions) -> Result<(), helpers::HelperError> {
    let places = embedded::places(None, &options.home);
    for name in names(options) {
        if helpers::look(name, &places).is_ok_and(|found| found.origin == Origin::Embedded) {
            helpers::find(name, &places)?;
        }
    }
    Ok(())
}

fn describe(status: &FirmwareStatus) -> String {
    let mut text = format!(
        "host    {}\ncache   {}\n",
        status.host,
        status.home.display()
    );
    let mut title = "looked  ";
    for (n, look) in status.looked.iter().enumerate() {
        let mark = if Some(n) == status.used { "✓" } else { " " };
        text += &format!("{title}{mark} {look}\n");
        title = "        ";
    }
    text += &match (&status.kernel, &status.kernel_release) {
        (Some(path), Some(release)) => format!("kernel  Linux {release}, {}\n", path.display()),
        _ => String::from("kernel  not made yet: the first run does that\n"),
    };
    text += &match &status.init {
        Some(path) => format!("init    {}\n", path.display()),
        None => String::from("init    embedded\n"),
    };
    let errors = status.error.iter().chain(&status.init_error);
    for error in errors {
        text += &format!("error   {error}\n");
    }
    if status.error.is_none() && status.used.is_none() {
        text += "next    iii-super firmware fetch, or the first run, downloads it\n";
    }
    text
}

fn fetch(options: &FirmwareOptions, as_json: bool) -> u8 {
    let progress = StderrProgress::new();
    let located = Firmware::locate(options, &progress);
    progress.finish();
    let firmware = match located {
        Ok(firmware) => firmware,
        Err(error) => {
            say(error);
            return FAILED;
        }
    };
    match lay(options) {
        Ok(()) => print(&located_text(&firmware, as_json)),
        Err(error) => {
            say(error);
            FAILED
        }
    }
}

fn path(mut options: FirmwareOptions, as_json: bool) -> u8 {
    options.download = false;
    match Firmware::locate(&options, &()) {
        Ok(firmware) if as_json => print(&located_text(&firmware, true)),
        Ok(firmware) => print(&format!("{}\n", firmware.kernel().display())),
        Err(error) => {
            say(error);
            FAILED
        }
    }
}

fn located_text(firmware: &Firmware, as_json: bool) -> String {
    if as_json {
        return json(&serde_json::json!({
            "library": firmware.library(),
            "sha256": firmware.digest(),
            "version": firmware.version(),
            "source": firmware.source(),
            "kernel": firmware.kernel(),
            "kernel_release": firmware.kernel_release(),
        }));
    }
    format!(
        "libkrunfw {} from {} ({}), guest Linux {}\n",
        firmware.version().unwrap_or("of unknown version"),
        firmware.library().display(),
        firmware.source(),
        firmware.kernel_release(),
    )
}
