//! `mounts:` and `path:`.

use iii_actors::spec::MountSpec;

use super::paths;
use super::reader::{Reader, Setting};

/// Where `path:` is shown in the guest, and the working directory it sets.
pub(crate) const PROJECT: &str = "/app";

/// All mounts of a worker, the project first.
pub(crate) fn mounts(
    reader: &mut Reader<'_>,
    project: Option<&Setting<'_>>,
    mounts: Option<&Setting<'_>>,
) -> Vec<MountSpec> {
    let mut all: Vec<MountSpec> = Vec::new();
    if let Some(setting) = project
        && let Some(host) = paths::resolve(reader, setting)
        && paths::directory_exists(reader, setting, &host)
    {
        all.push(MountSpec {
            host,
            guest: PROJECT.to_owned(),
            read_only: false,
        });
    }
    for item in mounts.map(|s| reader.items(s)).unwrap_or_default() {
        let Some((host, guest, read_only)) = reader.parsed_expanded(&item, split) else {
            continue;
        };
        let host = match paths::absolute(reader, &host) {
            Ok(host) => host,
            Err(message) => {
                reader.fault(&item, message);
                continue;
            }
        };
        if !paths::directory_exists(reader, &item, &host) {
            continue;
        }
        if all.iter().any(|mount| mount.guest == guest) {
            reader.fault(
                &item,
                format!("{guest} of the guest is taken by another mount (`path:` takes {PROJECT})"),
            );
            continue;
        }
        all.push(MountSpec {
            host,
            guest,
            read_only,
        });
    }
    all
}

/// `HOST:GUEST[:ro|rw]`.
fn split(text: &str) -> Result<(String, String, bool), String> {
    let mut parts = text.split(':');
    let (Some(host), Some(guest), mode, None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(String::from(
            "is not a mount: write it HOST:GUEST or HOST:GUEST:ro, as ./data:/data:ro",
        ));
    };
    let read_only = match mode {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(String::from("ends in a mode that is neither `ro` nor `rw`")),
    };
    Ok((host.to_owned(), paths::guest(guest)?, read_only))
}
