//! `iii-super run --reload`: the running supervisor reads its workers file again.

use super::super::arguments::RunArguments;
use super::super::contact::{Failure, Project};
use super::super::say::print;
use super::super::{FAILED, REFUSED};
use crate::control::client::ClientError;
use crate::control::protocol::{RefusalKind, ReloadRequest, Reloaded, Reply, Request};

pub(super) async fn run(args: &RunArguments) -> Result<u8, Failure> {
    let names = &args.file.names;
    let request = Request::Reload(ReloadRequest {
        names: (!names.is_empty()).then(|| names.clone()),
    });
    let mut answer = Project::of(&args.file.file)?.ask(request).await?;
    let mut reloaded = Reloaded::default();
    loop {
        match answer.next().await {
            Ok(None) => break,
            Ok(Some(Reply::Reloaded(changes))) => reloaded = changes,
            Ok(Some(_)) => {}
            Err(ClientError::Refused(refusal)) if refusal.kind == RefusalKind::Faults => {
                return Err(Failure::new(REFUSED, refusal));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let text = if args.file.json {
        let text = serde_json::to_string_pretty(&reloaded);
        text.map_err(|error| Failure::new(FAILED, error))? + "\n"
    } else {
        human(&reloaded)
    };
    Ok(print(&text))
}

fn human(reloaded: &Reloaded) -> String {
    let mut text = String::new();
    for (what, names) in [
        ("started", &reloaded.started),
        ("restarted", &reloaded.restarted),
        ("removed", &reloaded.removed),
        ("unchanged", &reloaded.unchanged),
    ] {
        for name in names {
            text += &format!("{name}: {what}\n");
        }
    }
    text
}
