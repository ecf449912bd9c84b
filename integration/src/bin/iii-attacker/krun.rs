//! In iii-krun's place: what libkrun serves to its guest itself.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use iii_proto::codec::decode_spec;
use iii_proto::krun::{KrunExport, KrunLaunch};

use crate::Tell;
use crate::attacks::{Outcome, file_of_others, said};
use crate::sys;

/// In an export: paths, a line each, of what is another worker's or the supervisor's.
const TARGETS: &str = "iii-attack-targets";

/// The launch description, and the VM's console, opened as libkrun opens it.
pub(crate) fn launch(number: &str) -> Option<(File, KrunLaunch)> {
    let mut bytes = Vec::new();
    let description = sys::inherited(number.parse().ok()?).ok()?;
    File::from(description).read_to_end(&mut bytes).ok()?;
    let launch: KrunLaunch = decode_spec(&bytes).ok()?;
    let console = File::create(format!("/proc/self/fd/{}", launch.console_fd)).ok()?;
    Some((console, launch))
}

/// Does in each export what its guest may, and tries what it may not.
pub(crate) fn attack_exports(launch: &KrunLaunch, tell: &mut Tell<'_>) -> bool {
    let mut targets = String::new();
    for export in &launch.exports {
        targets += &fs::read_to_string(export.path.join(TARGETS)).unwrap_or_default();
        targets.push('\n');
        let tag = &export.tag;
        // What is wanted of a VMM is told like an attack: it must get through.
        let served = match export.read_only {
            true => {
                tell(&format!("list {tag}"), list(&export.path))
                    && tell(&format!("change {tag}"), change(export))
            }
            false => {
                tell(&format!("serve {tag}"), serve(export))
                    && tell(&format!("set-id {tag}"), set_id(export))
            }
        };
        if !served {
            return false;
        }
    }
    for (index, path) in targets.split_whitespace().enumerate() {
        if !tell(&format!("target {index}"), file_of_others(path)) {
            return false;
        }
    }
    launch.disks.iter().all(|disk| {
        let path = format!("/proc/self/fd/{}", disk.fd);
        let opened = File::options().read(true).write(!disk.read_only).open(path);
        let outcome = opened.map(|_| disk.serial.clone());
        tell("disk", outcome.map_err(|error| error.to_string()))
    })
}

fn list(directory: &Path) -> Outcome {
    let entries = fs::read_dir(directory).map_err(|error| error.to_string())?;
    Ok(format!("{} entries", entries.count()))
}

/// Opens what is there anew by `/proc`, as libkrun's file server does.
fn reopened(path: &Path) -> std::io::Result<File> {
    use std::os::fd::AsRawFd;
    let by_path = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)?;
    File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", by_path.as_raw_fd()))
}

/// What a guest does in a directory that it may write.
fn serve(export: &KrunExport) -> Outcome {
    let served = || -> std::io::Result<String> {
        let given = fs::read_to_string(export.path.join("given"))?;
        let (made, directory) = (export.path.join("made"), export.path.join("directory"));
        fs::write(&made, given.to_uppercase())?;
        reopened(&made)?.write_all(b"X")?;
        fs::create_dir(&directory)?;
        fs::rename(&made, directory.join("moved"))?;
        fs::set_permissions(directory.join("moved"), fs::Permissions::from_mode(0o640))?;
        fs::remove_file(export.path.join("given"))?;
        Ok(given)
    };
    served().map_err(|error| error.to_string())
}

fn change(export: &KrunExport) -> Outcome {
    let (known, new) = (
        export.path.join("given"),
        export.path.join("iii-attack-new"),
    );
    let text = |error: std::io::Error| error.to_string();
    let made = File::create_new(&new).map(drop);
    if made.is_ok() {
        // The host, its /usr among the exports, is ours to clean.
        fs::remove_file(&new).unwrap_or(());
    }
    said([
        ("make".into(), made.map_err(text)),
        (
            "append".into(),
            File::options()
                .append(true)
                .open(&known)
                .map(drop)
                .map_err(text),
        ),
        ("reopen".into(), reopened(&known).map(drop).map_err(text)),
        (
            "mode".into(),
            fs::set_permissions(&known, fs::Permissions::from_mode(0o777)).map_err(text),
        ),
        ("remove".into(), fs::remove_file(&known).map_err(text)),
    ])
}

/// A program that would run as this user for whoever starts it, left behind on the host.
fn set_id(export: &KrunExport) -> Outcome {
    let text = |error: std::io::Error| error.to_string();
    let (later, at_once) = (export.path.join("later"), export.path.join("at-once"));
    let later = fs::write(&later, "x")
        .and_then(|()| fs::set_permissions(&later, fs::Permissions::from_mode(0o4755)));
    let at_once = File::options()
        .write(true)
        .create_new(true)
        .mode(0o6755)
        .open(at_once);
    said([
        ("chmod".into(), later.map_err(text)),
        ("open".into(), at_once.map(drop).map_err(text)),
    ])
}
