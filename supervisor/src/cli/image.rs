//! `iii-super image`: images on this host.

use std::io::{IsTerminal as _, Read as _};
use std::time::{Duration, SystemTime};

use iii_firmware::home::IiiHome;
use iii_image::oci::{Platform, Reference};
use iii_image::registry::{Credentials, Login, RegistryOptions};
use iii_image::store::Record;
use iii_image::{ImageStore, Importer, PullError, Puller};
use serde_json::{Value, json};

use super::arguments::{
    ImageArguments, ImageCommand, ImportArguments, LoginArguments, PullArguments,
};
use super::progress::StderrProgress;
use super::say::{print, say};
use super::{FAILED, OK, REFUSED};

/// Most bytes of a password.
const MAX_PASSWORD: u64 = 1 << 16;

pub(super) fn run(args: &ImageArguments) -> u8 {
    let platform = crate::images::platform(args.platform);
    let store = IiiHome::from_env()
        .map_err(|error| error.to_string())
        .and_then(|home| {
            ImageStore::of_platform(&home.images_dir(), &platform).map_err(|e| e.to_string())
        });
    let store = match store {
        Ok(store) => store,
        Err(error) => {
            say(error);
            return REFUSED;
        }
    };
    match &args.command {
        ImageCommand::Pull(args) => pull(store, platform, args),
        ImageCommand::Ls { json } => list(&store, *json),
        ImageCommand::Rm { names, json } => remove(&store, names, *json),
        ImageCommand::Prune { json } => prune(&store, *json),
        ImageCommand::Import(args) => import(store, platform, args),
    }
}

/// What goes wrong is said; the names that are none are told together.
fn references(names: &[String]) -> Option<Vec<Reference>> {
    let parsed: Vec<_> = names.iter().map(|name| name.parse::<Reference>()).collect();
    for error in parsed.iter().filter_map(|name| name.as_ref().err()) {
        say(error);
    }
    parsed.into_iter().collect::<Result<_, _>>().ok()
}

fn pull(store: ImageStore, platform: Platform, args: &PullArguments) -> u8 {
    let Some(names) = references(&args.names) else {
        return REFUSED;
    };
    let credentials = match credentials(&args.login) {
        Ok(credentials) => credentials,
        Err(error) => {
            say(error);
            return REFUSED;
        }
    };
    let insecure = names.iter().filter(|_| args.insecure);
    let puller = Puller {
        store,
        registry: RegistryOptions {
            credentials,
            insecure: insecure.map(|name| name.registry().to_owned()).collect(),
        },
        platform,
    };
    let progress = StderrProgress::new();
    let mut code = OK;
    for name in &names {
        let pulled = puller.pull(name, &progress);
        progress.finish();
        code = code.max(match pulled {
            Ok((image, changed)) => shown(&puller.store, image.record(), Some(changed), args.json),
            Err(error) => failed(&error),
        });
    }
    code
}

fn failed(error: &PullError) -> u8 {
    say(error);
    FAILED
}

fn credentials(args: &LoginArguments) -> Result<Credentials, String> {
    let Some(username) = &args.username else {
        return Ok(Credentials::from_env());
    };
    if std::io::stdin().is_terminal() {
        say("the password, then Ctrl-D:");
    }
    let mut password = String::new();
    std::io::stdin()
        .take(MAX_PASSWORD)
        .read_to_string(&mut password)
        .map_err(|error| format!("failed to read the password from stdin: {error}"))?;
    Ok(Credentials::given(Login::Password {
        username: username.clone(),
        password: password.trim_end_matches(['\r', '\n']).to_owned(),
    }))
}

fn import(store: ImageStore, platform: Platform, args: &ImportArguments) -> u8 {
    let name = match args
        .name
        .as_deref()
        .map(str::parse::<Reference>)
        .transpose()
    {
        Ok(name) => name,
        Err(error) => {
            say(error);
            return REFUSED;
        }
    };
    let puller = Puller {
        store,
        registry: RegistryOptions::default(),
        platform,
    };
    let progress = StderrProgress::new();
    let imported = Importer::open(&puller, &args.file, &progress)
        .and_then(|importer| importer.import(name.as_ref()));
    progress.finish();
    match imported {
        Ok(records) => (records.iter())
            .map(|record| shown(&puller.store, record, None, args.json))
            .fold(OK, u8::max),
        Err(error) => {
            say(error);
            FAILED
        }
    }
}

/// One line on what is here now.
fn shown(store: &ImageStore, record: &Record, changed: Option<bool>, as_json: bool) -> u8 {
    if as_json {
        let mut value = described(store, record);
        if let Some(changed) = changed {
            value["changed"] = json!(changed);
        }
        return print(&format!("{value}\n"));
    }
    let state = match changed {
        Some(false) => "is up to date",
        Some(true) => "pulled",
        None => "imported",
    };
    print(&format!(
        "{} {state} ({}, {})\n",
        record.reference.familiar(),
        record.config.short(),
        size(record.size)
    ))
}

fn described(store: &ImageStore, record: &Record) -> Value {
    json!({
        "name": record.reference.familiar(),
        "reference": record.reference,
        "id": record.config,
        "digest": record.digest,
        "size": record.size,
        "added": record.added,
        "origin": record.origin,
        // Not knowing counts as being in use.
        "in_use": store.is_in_use(record).unwrap_or(true),
    })
}

fn list(store: &ImageStore, as_json: bool) -> u8 {
    let records = match store.records() {
        Ok(records) => records,
        Err(error) => {
            say(error);
            return FAILED;
        }
    };
    if as_json {
        let all: Vec<Value> = records.iter().map(|r| described(store, r)).collect();
        return print(&format!("{}\n", json!(all)));
    }
    if records.is_empty() {
        say("there are no images; `iii-super image pull NAME` brings one in");
        return OK;
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let rows: Vec<[String; 5]> = records
        .iter()
        .map(|record| {
            let used = store.is_in_use(record).unwrap_or(true);
            [
                record.reference.familiar(),
                record.config.short(),
                size(record.size),
                ago(Duration::from_secs(now.saturating_sub(record.added))),
                if used { "in use" } else { "" }.to_owned(),
            ]
        })
        .collect();
    print(&table(&["NAME", "ID", "SIZE", "ADDED", ""], &rows))
}

/// As programs that list images have it: `74.8 MB`.
fn size(bytes: u64) -> String {
    let kb = bytes as f64 / 1e3;
    let (number, unit) = match bytes {
        0..1_000_000 => (kb, "kB"),
        1_000_000..1_000_000_000 => (kb / 1e3, "MB"),
        _ => (kb / 1e6, "GB"),
    };
    format!("{number:.1} {unit}")
}

/// `3 hours ago`.
fn ago(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "minute"),
        3600..86_400 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural} ago")
}

fn table<const N: usize>(head: &[&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let head = head.map(str::to_owned);
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let cells = row.iter().zip(widths);
        let line: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text += line.join("  ").trim_end();
        text.push('\n');
    }
    text
}

fn remove(store: &ImageStore, names: &[String], as_json: bool) -> u8 {
    let Some(names) = references(names) else {
        return REFUSED;
    };
    let mut code = OK;
    for name in &names {
        code = code.max(match store.remove(name) {
            Ok(freed) if as_json => {
                let value = json!({"name": name.familiar(), "freed": freed.bytes});
                print(&format!("{value}\n"))
            }
            Ok(freed) => print(&format!(
                "{} removed ({} freed)\n",
                name.familiar(),
                size(freed.bytes)
            )),
            Err(error) => {
                say(error);
                FAILED
            }
        });
    }
    code
}

fn prune(store: &ImageStore, as_json: bool) -> u8 {
    match store.collect() {
        Ok(found) if as_json => {
            let (files, freed, in_use) = (found.files, found.bytes, found.in_use);
            let value = json!({"files": files, "freed": freed, "in_use": in_use});
            print(&format!("{value}\n"))
        }
        Ok(found) => {
            let kept = match found.in_use {
                0 => String::new(),
                n => format!("; {n} without a name stay while workers run on them"),
            };
            print(&format!("{} freed{kept}\n", size(found.bytes)))
        }
        Err(error) => {
            say(error);
            FAILED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_words() {
        for (seconds, words) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (7200, "2 hours ago"),
            (86_400 * 3, "3 days ago"),
        ] {
            assert_eq!(ago(Duration::from_secs(seconds)), words);
        }
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, words) in [
            (0, "0.0 kB"),
            (999_999, "1000.0 kB"),
            (74_812_345, "74.8 MB"),
            (1_234_567_890, "1.2 GB"),
        ] {
            assert_eq!(size(bytes), words);
        }
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [
            ["long name".to_owned(), "x".to_owned()],
            ["é".to_owned(), String::new()],
        ];
        let text = table(&["NAME", "ID"], &rows);
        assert_eq!(text, "NAME       ID\nlong name  x\né\n");
    }
}
