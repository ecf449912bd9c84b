//! Opens what libkrun 1.19 opens, in the way in which it does (its crates `krun-devices`, virtio fs and
//! block, and `krun-vmm`): exports by path and without following a link, what is in them anew through
//! `/proc/self/fd`, disks and initramfs by the paths that they were given.

use std::fs::{File, OpenOptions, read_dir};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::{record, vm};

const O_NOFOLLOW: i32 = 0o400_000;
const O_PATH: i32 = 0o10_000_000;

pub(crate) fn all() {
    let vm = vm().take().unwrap_or_default();
    let initramfs = std::fs::read(&vm.initramfs).expect("the initramfs can be read");
    record(&format!(
        "saw initramfs {:?}",
        String::from_utf8_lossy(&initramfs)
    ));
    let mut console = File::create(&vm.console).expect("the console can be opened");
    console
        .write_all(b"from the console\n")
        .expect("the console can be written");
    for (id, path, read_only) in &vm.disks {
        let opened = OpenOptions::new().read(true).write(!read_only).open(path);
        let mut disk = opened.expect("the disk can be opened");
        let mut contents = Vec::new();
        disk.read_to_end(&mut contents)
            .expect("the disk can be read");
        record(&format!("saw disk {id} {}", contents.len()));
        match disk.write_all(b"more") {
            Ok(()) => record(&format!("disk {id}: written")),
            Err(error) => record(&format!("disk {id}: {error}")),
        }
    }
    for (tag, path) in &vm.exports {
        match serve(Path::new(path)) {
            Ok(served) => record(&format!("export {tag}: {served}")),
            Err(error) => record(&format!("export {tag}: failed: {error}")),
        }
    }
}

fn by_path(path: &Path) -> io::Result<File> {
    let flags = O_PATH | O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

fn anew(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn serve(export: &Path) -> io::Result<String> {
    let root = by_path(export)?;
    let root = anew(&root);
    let entries = read_dir(&root)?.count();
    let given = by_path(&Path::new(&root).join("given"))?;
    let mut text = String::new();
    File::open(anew(&given))?.read_to_string(&mut text)?;
    let made = File::create(Path::new(&root).join("made"));
    let made = made.and_then(|mut made| made.write_all(b"by the guest"));
    let made = match made {
        Ok(()) => "made".to_owned(),
        Err(error) => format!("refused {}", error.raw_os_error().unwrap_or(0)),
    };
    Ok(format!("read {text:?}, {entries} entries, {made}"))
}
