//! The order in which workers can be launched: each behind those that it depends on.

use std::collections::BTreeSet;

use iii_proto::ids::WorkerName;

/// A circle of dependencies, its first member repeated at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cycle(pub(crate) Vec<WorkerName>);

impl std::fmt::Display for Cycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.0.iter().map(WorkerName::as_str).collect();
        f.write_str(&names.join(" \u{2192} "))
    }
}

/// Positions of `workers`, each behind those that it names, otherwise as they were. Names of none
/// of them count as there already.
pub(crate) fn launch_order(workers: &[(WorkerName, Vec<WorkerName>)]) -> Result<Vec<usize>, Cycle> {
    let mut order = Vec::new();
    let mut done = BTreeSet::new();
    for at in 0..workers.len() {
        visit(workers, at, &mut Vec::new(), &mut done, &mut order)?;
    }
    Ok(order)
}

fn visit(
    workers: &[(WorkerName, Vec<WorkerName>)],
    at: usize,
    path: &mut Vec<usize>,
    done: &mut BTreeSet<usize>,
    order: &mut Vec<usize>,
) -> Result<(), Cycle> {
    if done.contains(&at) {
        return Ok(());
    }
    path.push(at);
    if let Some(begin) = path[..path.len() - 1].iter().position(|p| *p == at) {
        let circle = &path[begin..];
        return Err(Cycle(
            circle.iter().map(|p| workers[*p].0.clone()).collect(),
        ));
    }
    for name in &workers[at].1 {
        if let Some(next) = workers.iter().position(|(other, _)| other == name) {
            visit(workers, next, path, done, order)?;
        }
    }
    path.pop();
    done.insert(at);
    order.push(at);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(workers: &[(&str, &[&str])]) -> Result<Vec<usize>, String> {
        let name = |text: &str| WorkerName::new(text).unwrap();
        let workers: Vec<(WorkerName, Vec<WorkerName>)> = workers
            .iter()
            .map(|(w, on)| (name(w), on.iter().map(|o| name(o)).collect()))
            .collect();
        launch_order(&workers).map_err(|cycle| cycle.to_string())
    }

    #[test]
    fn each_comes_behind_those_that_it_names() {
        assert_eq!(
            order(&[
                ("web", &["api"]),
                ("x", &[]),
                ("api", &["db", "there"]),
                ("db", &[])
            ]),
            Ok(vec![3, 2, 0, 1])
        );
    }

    #[test]
    fn a_circle_is_named() {
        let circle = order(&[("x", &["a"]), ("a", &["b"]), ("b", &["c"]), ("c", &["a"])]);
        assert_eq!(circle, Err("a \u{2192} b \u{2192} c \u{2192} a".into()));
        assert_eq!(order(&[("a", &["a"])]), Err("a \u{2192} a".into()));
    }
}
