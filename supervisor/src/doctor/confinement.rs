//! What a VMM's process is held to on this host: seen by starting a harmless program the same way.

use std::io;

use iii_vmm::confinement;
use iii_vmm::helpers::HelperPlaces;
use iii_vmm::process::{Isolation, Layer, Namespace, SpawnError, Spawner};

use super::Check;

const ID: &str = "confinement";
const TITLE: &str = "confinement";

pub(super) fn check(places: &HelperPlaces) -> Check {
    if !confinement::is_wanted() {
        return Check::warning(
            ID,
            TITLE,
            format!("switched off ({} = off)", confinement::VARIABLE),
            format!(
                "unset {}, unless a VMM does not start with it",
                confinement::VARIABLE
            ),
        );
    }
    let probed = Spawner::global().and_then(|spawner| confinement::probe(&spawner, places));
    judge(&probed)
}

fn judge(probed: &Result<Isolation, SpawnError>) -> Check {
    let isolation = match probed {
        Ok(isolation) => isolation,
        Err(error) => {
            return Check::warning(
                ID,
                TITLE,
                error.to_string(),
                "see what is said of iii-shim above",
            );
        }
    };
    let (mut given, mut refused) = (Vec::new(), Vec::new());
    let own: Vec<&str> = isolation
        .namespaces
        .iter()
        .map(|namespace| match namespace {
            Namespace::Pid => "pid",
            Namespace::Ipc => "ipc",
            Namespace::Network => "network",
        })
        .collect();
    if !own.is_empty() {
        given.push(format!("{} namespaces", own.join(", ")));
    }
    let cause = |errno| io::Error::from_raw_os_error(errno).to_string();
    if let Some(errno) = isolation.refused {
        refused.push(format!("namespaces: {}", cause(errno)));
    }
    for (name, layer) in isolation.layers.iter().flat_map(|layers| layers.named()) {
        match layer {
            Layer::Applied => given.push(name.to_owned()),
            Layer::Partial => given.push(format!("{name} (of an older kernel)")),
            Layer::Refused(errno) => refused.push(format!("{name}: {}", cause(errno))),
        }
    }
    let given = given.join(", ");
    if refused.is_empty() {
        return Check::ok(ID, TITLE, format!("VMMs have {given}"));
    }
    Check::warning(
        ID,
        TITLE,
        format!("VMMs have {given}; not given here: {}", refused.join(", ")),
        "workers run; to have all layers: Linux 5.13 or newer with Landlock, and user namespaces \
         for ordinary users",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use iii_vmm::process::Layers;

    #[test]
    fn what_is_refused_is_told_with_its_reason() {
        let mut isolation = Isolation {
            namespaces: vec![Namespace::Pid, Namespace::Network],
            user_namespace: true,
            refused: None,
            layers: Some(Layers {
                root: Layer::Applied,
                landlock: Layer::Applied,
                system_calls: Layer::Applied,
            }),
            cgroup: None,
        };
        let check = judge(&Ok(isolation.clone()));
        assert_eq!(check.verdict, Verdict::Ok);
        assert_eq!(
            check.found,
            "VMMs have pid, network namespaces, private root, Landlock, system call filter"
        );

        isolation.namespaces.clear();
        isolation.refused = Some(libc_eperm());
        if let Some(layers) = &mut isolation.layers {
            layers.root = Layer::Refused(libc_eperm());
            layers.landlock = Layer::Partial;
        }
        let check = judge(&Ok(isolation));
        assert_eq!(check.verdict, Verdict::Warning);
        assert!(check.found.contains("namespaces: Operation not permitted"));
        assert!(
            check
                .found
                .contains("private root: Operation not permitted")
        );
        assert!(check.found.contains("Landlock (of an older kernel)"));
    }

    fn libc_eperm() -> i32 {
        nix::errno::Errno::EPERM as i32
    }
}
