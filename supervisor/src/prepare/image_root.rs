//! Workers whose root is an image: what the image says, as far as the worker does not.

use iii_actors::plan::{DiskImage, PlanDisk};
use iii_actors::spec::{ImageSpec, UserSpec, WorkerSpec};
use iii_image::image_root::{Account, ImageCommandLookup};
use iii_image::oci::RunConfig;
use iii_image::{Image, MountView};
use iii_proto::guest::{GuestUser, Lower};

use super::{Base, Owner, Preparation, PrepareFault, SIGTERM};

/// By which the guest finds the image.
const SERIAL: &str = "image";
/// vm-init's, for images that name none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Who runs what, where neither worker nor image says: what images are built for.
const ROOT_USER: &str = "0";

impl Preparation<'_> {
    /// Gets the image and finds out what the worker comes to with it. Faults that do not stand
    /// against the rest are collected.
    pub(super) fn on_image(
        &mut self,
        spec: &WorkerSpec,
        wanted: &ImageSpec,
        faults: &mut Vec<PrepareFault>,
    ) -> Result<Base, PrepareFault> {
        let foreign = self.guests.foreign(wanted.platform).map_err(Box::new)?;
        let guest = foreign.as_ref().map(|guests| guests.arch);
        let puller = self.images.puller(guest).map_err(Box::new)?;
        let image = puller
            .get(&wanted.reference, wanted.pull, &self.images.progress())
            .map_err(Box::new)?;
        let run = image.run();
        let env = environment(run, spec);
        let user = user(run, spec);
        let account = image.account(&user).unwrap_or_else(|error| {
            faults.push(error.into());
            Account {
                uid: 0,
                gid: 0,
                home: "/".into(),
            }
        });
        let cwd = working_directory(run, spec);
        let command = image.command(wanted.entrypoint.as_deref(), &spec.command);
        if let Err(fault) = check_command(&image, &command, &env, &cwd, spec) {
            faults.push(fault);
        }
        Ok(Base {
            initramfs: self.bare_medium(foreign.as_deref())?,
            lowers: vec![Lower::Disk {
                serial: SERIAL.into(),
            }],
            skeleton: false,
            exports: Vec::new(),
            user: GuestUser::Named(user),
            owner: Owner {
                uid: account.uid,
                gid: account.gid,
            },
            cwd,
            stop_signal: run.stop_signal.unwrap_or(SIGTERM),
            command,
            env,
            disks: vec![PlanDisk {
                serial: SERIAL.into(),
                image: DiskImage::ReadOnly(image.into_root()),
            }],
            foreign,
        })
    }
}

/// The image's variables, then the worker's, which win.
fn environment(run: &RunConfig, spec: &WorkerSpec) -> Vec<(String, String)> {
    let own = |name: &String| spec.env.iter().any(|(known, _)| known == name);
    let images = run.env.iter().filter(|(name, _)| !own(name));
    images.chain(&spec.env).cloned().collect()
}

fn user(run: &RunConfig, spec: &WorkerSpec) -> String {
    match &spec.user {
        Some(UserSpec::Named(name)) => name.clone(),
        Some(UserSpec::Ids { uid, gid }) => format!("{uid}:{gid}"),
        None if run.user.is_empty() => ROOT_USER.to_owned(),
        None => run.user.clone(),
    }
}

fn working_directory(run: &RunConfig, spec: &WorkerSpec) -> String {
    match &spec.cwd {
        Some(own) => own.clone(),
        None if run.working_dir.is_empty() => "/".to_owned(),
        None => run.working_dir.clone(),
    }
}

fn check_command(
    image: &Image,
    command: &[String],
    env: &[(String, String)],
    cwd: &str,
    spec: &WorkerSpec,
) -> Result<(), PrepareFault> {
    let mounts: Vec<MountView> = super::views(spec);
    let path = env.iter().find(|(name, _)| name == "PATH");
    let lookup = ImageCommandLookup {
        path: path.map_or(DEFAULT_PATH, |(_, value)| value),
        cwd,
        mounts: &mounts,
    };
    let program = command.first().map(String::as_str);
    Ok(image.check_command(program, &lookup).map_err(Box::new)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iii_proto::ids::WorkerName;

    fn run() -> RunConfig {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        RunConfig {
            env: vec![pair("PATH", "/opt/bin"), pair("MODE", "image")],
            working_dir: "/srv".into(),
            user: "postgres".into(),
            ..RunConfig::default()
        }
    }

    fn spec() -> WorkerSpec {
        WorkerSpec::new(WorkerName::new("w").unwrap(), Vec::new())
    }

    #[test]
    fn the_worker_wins_over_the_image_and_the_image_over_defaults() {
        let mut own = spec();
        assert_eq!(user(&run(), &own), "postgres");
        assert_eq!(working_directory(&run(), &own), "/srv");
        assert_eq!(environment(&run(), &own), run().env);
        assert_eq!(user(&RunConfig::default(), &own), "0");
        assert_eq!(working_directory(&RunConfig::default(), &own), "/");

        own.user = Some(UserSpec::Ids { uid: 7, gid: 8 });
        own.cwd = Some("/app".into());
        own.env = vec![("MODE".into(), "own".into()), ("X".into(), "1".into())];
        assert_eq!(user(&run(), &own), "7:8");
        assert_eq!(working_directory(&run(), &own), "/app");
        let env = environment(&run(), &own);
        let shown: Vec<String> = env.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(shown, ["PATH=/opt/bin", "MODE=own", "X=1"]);
        own.user = Some(UserSpec::Named("node:staff".into()));
        assert_eq!(user(&run(), &own), "node:staff");
    }
}
