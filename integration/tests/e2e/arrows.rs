//! The architecture's arrows: who may depend on whom, and where actix may be named.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Direct dependencies that each crate of the workspace may have on others of it.
const ARROWS: &[(&str, &[&str])] = &[
    ("iii-proto", &[]),
    ("iii-net", &["iii-proto"]),
    ("iii-vfs", &["iii-proto"]),
    ("iii-firmware", &["iii-proto"]),
    ("iii-image", &["iii-proto"]),
    ("iii-vmm", &["iii-proto"]),
    // A program, which nobody links.
    ("iii-krun", &["iii-proto"]),
    ("vm-init", &["iii-proto"]),
    (
        "iii-actors",
        &[
            "iii-vmm",
            "iii-net",
            "iii-vfs",
            "iii-firmware",
            "iii-image",
            "iii-proto",
        ],
    ),
    (
        "iii-supervisor",
        &[
            "iii-actors",
            "iii-vmm",
            "iii-net",
            "iii-vfs",
            "iii-firmware",
            "iii-image",
            "iii-proto",
        ],
    ),
    // An example shows what any program can do: with the library alone.
    ("embed", &["iii-supervisor"]),
];

#[test]
fn dependencies_point_down_only() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--no-deps",
            "--offline",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs this test");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let members: BTreeSet<&str> = packages
        .iter()
        .map(|p| p["name"].as_str().unwrap())
        .collect();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut faults = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        // The tests of everything may use everything.
        if name == "iii-integration" {
            continue;
        }
        let Some(may) = allowed.get(name) else {
            faults.push(format!("{name} is new: say what it may depend on"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let on = dependency["name"].as_str().unwrap();
            let development = dependency["kind"] == "dev";
            if members.contains(on) && !may.contains(&on) && !development {
                faults.push(format!("{name} must not depend on {on}"));
            }
            if on.starts_with("actix") && name != "iii-actors" {
                faults.push(format!("{name} must not know actix ({on})"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
