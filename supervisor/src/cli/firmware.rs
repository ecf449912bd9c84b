//! `iii-super firmware`.

use iii_firmware::{Firmware, FirmwareOptions, FirmwareStatus};

use super::arguments::{FirmwareAction, FirmwareArguments};
use super::progress::StderrProgress;
use super::say::{print, say};
use super::{FAILED, REFUSED};

pub(super) fn run(args: &FirmwareArguments) -> u8 {
    let options = match FirmwareOptions::from_env() {
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
    let text = if as_json {
        json(&status)
    } else {
        describe(&status)
    };
    let printed = print(&text);
    if sound { printed } else { FAILED }
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
    match located {
        Ok(firmware) => print(&located_text(&firmware, as_json)),
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
