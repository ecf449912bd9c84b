//! Images: pulled from a real registry, imported from files that other tools wrote, and booted.
//!
//! * [`registry`]: what is pulled is what was pushed, with and without logins;
//! * [`broken`]: registries and lines that are not as they should be;
//! * [`boot`]: workers on images, in VMs.

mod boot;
mod broken;
mod registry;

use std::path::Path;
use std::process::{Command, Output};

use iii_image::registry::RegistryOptions;
use iii_image::{Image, ImageStore, PullError, PullPolicy, Puller};
use iii_integration::program::program;

/// A store of this test's own.
fn puller(directory: &Path) -> Puller {
    let store = ImageStore::open(directory.join("images")).unwrap();
    Puller::new(store, RegistryOptions::default())
}

fn pull(puller: &Puller, name: &str) -> Result<(Image, bool), PullError> {
    puller.pull(&name.parse().unwrap(), &())
}

/// What is on the host, without a registry.
fn here(puller: &Puller, name: &str) -> Result<Image, PullError> {
    puller.get(&name.parse().unwrap(), PullPolicy::Never, &())
}

/// `iii-super image …` with this home.
fn image(home: &Path, args: &[&str]) -> Command {
    let mut command = program();
    command
        .arg("image")
        .args(args)
        .env("III_HOME", home)
        .env("DOCKER_CONFIG", home);
    command
}

/// What a program says, on both outputs.
fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

/// Files in a directory of the store.
fn count(puller: &Puller, directory: &str) -> usize {
    let path = puller.store.directory().join(directory);
    std::fs::read_dir(path).unwrap().count()
}
