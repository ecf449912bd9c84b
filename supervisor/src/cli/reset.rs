//! `iii-super reset`: empties the disks of workers.

use iii_firmware::home::IiiHome;
use serde_json::json;

use super::arguments::ResetArguments;
use super::say::{print, say};
use super::{FAILED, OK, REFUSED, project};
use crate::disks::{DiskStore, DiskUse};
use crate::workers_file::format_size;

pub(super) fn run(args: &ResetArguments) -> u8 {
    let state = match IiiHome::from_env().map(|home| project::state_dir(&home, &args.file)) {
        Ok(Ok(directory)) => directory,
        Ok(Err(error)) => {
            say(&error);
            return REFUSED;
        }
        Err(error) => {
            say(&error);
            return REFUSED;
        }
    };
    let store = DiskStore::of(&state);
    let mut code = OK;
    for worker in &args.names {
        code = code.max(match store.reset(worker) {
            Ok(disks) => print(&report(&disks, args.json)),
            Err(error) => {
                say(&error);
                FAILED
            }
        });
    }
    code
}

fn report(disks: &[DiskUse], json: bool) -> String {
    let line = |disk: &DiskUse| {
        if json {
            return json!({
                "worker": disk.worker,
                "disk": disk.name,
                "path": disk.path,
                "freed": disk.used,
                "limit": disk.limit,
            })
            .to_string();
        }
        let what = match &disk.name {
            None => String::from("root"),
            Some(name) => format!("disk {name}"),
        };
        let (used, limit) = (format_size(disk.used), format_size(disk.limit));
        format!(
            "{}: {what} emptied, {used} of {limit} were used",
            disk.worker
        )
    };
    disks.iter().map(|disk| line(disk) + "\n").collect()
}
