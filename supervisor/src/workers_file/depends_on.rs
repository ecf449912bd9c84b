//! `depends_on:`: a name, a list of names, or a map of names to what is demanded of them.

use iii_actors::spec::{Condition, Dependency};
use iii_proto::ids::WorkerName;

use super::node::Position;
use super::reader::{Reader, Setting, did_you_mean};
use crate::order::launch_order;

/// Keys of a dependency that is written as a map.
pub(crate) const KEYS: &[&str] = &["condition", "restart"];

const CONDITIONS: [(&str, Condition); 3] = [
    ("started", Condition::Started),
    ("ready", Condition::Ready),
    ("done", Condition::Done),
];

/// Circles that are told. Few references make more of them than anybody reads.
const MOST_CIRCLES: usize = 16;

/// Where one worker names another.
pub(crate) struct Reference {
    from: WorkerName,
    to: WorkerName,
    at: Position,
    path: String,
}

/// The dependencies of `from`. Whether those named exist shows when all workers are read.
pub(crate) fn depends_on(
    reader: &mut Reader<'_>,
    from: &WorkerName,
    setting: &Setting<'_>,
    references: &mut Vec<Reference>,
) -> Vec<Dependency> {
    let mut found: Vec<Dependency> = Vec::new();
    let mut note = |reader: &mut Reader<'_>, at, path: &str, dependency: Dependency| {
        if found.iter().any(|d| d.worker == dependency.worker) {
            reader.fault_at(at, path, format!("{} is named twice", dependency.worker));
            return;
        }
        references.push(Reference {
            from: from.clone(),
            to: dependency.worker.clone(),
            at,
            path: path.to_owned(),
        });
        found.push(dependency);
    };
    if setting.is_map() {
        for (name, at, child) in reader.entries(setting, "a map").unwrap_or_default() {
            let Some(worker) = name_of(reader, at, &child.path, name) else {
                continue;
            };
            if let Some((condition, restart)) = demand(reader, &child) {
                let dependency = Dependency {
                    worker,
                    condition,
                    restart,
                };
                note(reader, at, &child.path, dependency);
            }
        }
    } else {
        for item in reader.items_or_one(setting) {
            let Some(text) = reader.text(&item) else {
                continue;
            };
            if let Some(worker) = name_of(reader, item.at(), &item.path, text) {
                note(reader, item.at(), &item.path, Dependency::ready(worker));
            }
        }
    }
    found
}

fn name_of(reader: &mut Reader<'_>, at: Position, path: &str, text: &str) -> Option<WorkerName> {
    match WorkerName::new(text) {
        Ok(name) => Some(name),
        Err(error) => {
            reader.fault_at(at, path, error);
            None
        }
    }
}

fn demand(reader: &mut Reader<'_>, setting: &Setting<'_>) -> Option<(Condition, bool)> {
    if !setting.is_map() {
        return Some((reader.word(setting, &CONDITIONS)?, false));
    }
    let fields = reader.fields(setting, KEYS)?;
    let condition = match fields.get("condition") {
        Some(s) => reader.word(&s, &CONDITIONS)?,
        None => Condition::default(),
    };
    let restart = match fields.get("restart") {
        Some(s) => reader.word(&s, &[("true", true), ("false", false)])?,
        None => false,
    };
    if restart && condition == Condition::Done {
        reader.fault(
            setting,
            "`restart: true` has no meaning with `condition: done`: a worker that is done is not \
             restarted",
        );
        return None;
    }
    Some((condition, restart))
}

/// Finds names of no worker, and circles.
pub(crate) fn check(reader: &mut Reader<'_>, workers: &[WorkerName], references: &[Reference]) {
    for reference in references.iter().filter(|r| !workers.contains(&r.to)) {
        let known = workers.iter().map(WorkerName::as_str);
        let meant = did_you_mean(reference.to.as_str(), known)
            .map_or(String::new(), |meant| format!(", did you mean `{meant}`?"));
        reader.fault_at(
            reference.at,
            &reference.path,
            format!("there is no worker `{}`{meant}", reference.to),
        );
    }
    let mut edges: Vec<(WorkerName, Vec<WorkerName>)> = workers
        .iter()
        .map(|from| {
            let to = references.iter().filter(|r| r.from == *from);
            (from.clone(), to.map(|r| r.to.clone()).collect())
        })
        .collect();
    for _ in 0..MOST_CIRCLES {
        let Err(cycle) = launch_order(&edges) else {
            return;
        };
        let [from, to, ..] = &cycle.0[..] else {
            return;
        };
        if let Some(reference) = references.iter().find(|r| r.from == *from && r.to == *to) {
            reader.fault_at(
                reference.at,
                &reference.path,
                format!("is a circle: {cycle}; none of them could ever start"),
            );
        }
        // Without this reference the circle is none, and the next one shows.
        for (_, on) in edges.iter_mut().filter(|(name, _)| name == from) {
            on.retain(|name| name != to);
        }
    }
}
