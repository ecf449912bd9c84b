//! What a VMM's process may reach besides its descriptors: the program, the libraries it is linked
//! with, its read-only data (firmware, option ROMs), the guest's kernel, and `/dev/kvm` where it
//! uses that. Everything that belongs to a worker comes by descriptor, but for the directories that a
//! VMM shows to its guest itself, and the disks that it insists on opening by path ([`Needs`]).
//!
//! The shim enforces it ([`iii_proto::shim::Confinement`]).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use iii_proto::shim::{Confinement, Isolation, Namespace, Reopen};
use rustix::process::{Resource, getrlimit};

use crate::helpers::{self, HelperPlaces};
use crate::process::{ChildExit, ChildSpec, ResourceLimit, SHIM, SpawnError, Spawner};

/// Where the system's libraries and a VMM's data are, over the distributions. `/lib` and the like
/// are links to some of them on most, and directories of their own on the others.
const SYSTEM: &[&str] = &[
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/local/share/qemu",
    "/lib",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
];

/// Of a program that is installed elsewhere, what lies beside it.
const BESIDE: &[&str] = &["lib", "lib64", "share/qemu"];

/// Devices that every program may expect.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/urandom"];

/// Switches confinement off, for a host on which it keeps a VMM from running.
pub const VARIABLE: &str = "III_CONFINEMENT";

/// Whether VMMs are to be confined: always, but where [`VARIABLE`] is `off`.
pub fn is_wanted() -> bool {
    std::env::var_os(VARIABLE).is_none_or(|value| value != "off")
}

/// What one VMM needs for one VM, beside its program.
#[derive(Clone, Debug, Default)]
pub struct Needs {
    /// Files that it reads.
    pub files: Vec<PathBuf>,
    /// Devices that it uses.
    pub devices: Vec<&'static str>,
    /// Directories that it shows to its guest, and whether the guest may change what is in them.
    pub exports: Vec<(PathBuf, bool)>,
    /// Files among its descriptors that it opens anew by path.
    pub reopened: Vec<Reopen>,
    /// Virtual CPUs, each of which is a thread.
    pub cpus: u32,
}

/// Threads of a VMM beside its virtual CPUs: QEMU's pool for files has up to 64, libkrun has a few per
/// device.
const THREADS: u64 = 192;

/// Descriptors of a VMM that serves no files: two dozen ends of a VM, an event or two for each device
/// and virtual CPU.
const DESCRIPTORS: u64 = 4096;

/// Memory that a VMM may lock, in bytes: as much as an ordinary user has been given on all systems.
/// None has its guest's memory locked.
const LOCKED_BYTES: u64 = 64 << 10;

fn limits(needs: &Needs) -> [ResourceLimit; 2] {
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let most = match needs.exports.is_empty() {
        true => DESCRIPTORS.min(hard),
        // It has a descriptor for each file that its guest knows.
        false => hard,
    };
    [
        ResourceLimit::both(libc::RLIMIT_NOFILE, most),
        ResourceLimit::both(libc::RLIMIT_MEMLOCK, LOCKED_BYTES),
    ]
}

/// For this program.
fn of_program(program: &Path, needs: Needs) -> Confinement {
    let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
    let mut read: Vec<Vec<u8>> = SYSTEM.iter().map(|path| path.as_bytes().to_vec()).collect();
    read.extend(needs.files.iter().map(|path| bytes(path)));
    if let Some(prefix) = prefix_of(program) {
        read.extend(BESIDE.iter().map(|beside| bytes(&prefix.join(beside))));
    }
    let mut write = Vec::new();
    for (directory, writable) in &needs.exports {
        match writable {
            true => write.push(bytes(directory)),
            false => read.push(bytes(directory)),
        }
    }
    let mut execute = vec![bytes(program)];
    match interpreter_of(program) {
        Ok(Some(interpreter)) => execute.push(bytes(&interpreter)),
        Ok(None) => {}
        Err(error) => {
            tracing::debug!(program = %program.display(), %error, "its interpreter is not known");
        }
    }
    Confinement {
        read,
        write,
        execute,
        devices: DEVICES
            .iter()
            .chain(&needs.devices)
            .map(|path| path.as_bytes().to_vec())
            .collect(),
        reopen: needs.reopened,
        threads: THREADS + u64::from(needs.cpus),
    }
}

/// What this host gives of a VMM's confinement: the shim starts itself under it, as it starts a VMM.
pub fn probe(spawner: &Spawner, places: &HelperPlaces) -> Result<Isolation, SpawnError> {
    let shim = helpers::find(SHIM, places)?;
    let mut spec = ChildSpec::new(&shim, "confinement probe");
    spec.arg("--version");
    confine(&mut spec, Needs::default());
    let (ended, end) = std::sync::mpsc::channel();
    let handle = spawner.spawn(spec, places, move |exit| {
        // The receiver waits below.
        ended.send(exit).unwrap_or(());
    })?;
    match end.recv() {
        Ok(ChildExit::Code(0)) => Ok(handle.isolation().clone()),
        Ok(exit) => Err(SpawnError::ShimDied {
            label: handle.label().to_owned(),
            exit,
        }),
        Err(_) => Err(SpawnError::Thread(io::ErrorKind::BrokenPipe.into())),
    }
}

/// Confines a child that is a VMM, with namespaces that have nothing in them.
pub fn confine(spec: &mut ChildSpec, needs: Needs) {
    spec.namespaces = vec![Namespace::Pid, Namespace::Ipc, Namespace::Network];
    spec.allow_user_namespace = true;
    spec.rlimits.extend(limits(&needs));
    spec.confinement = Some(of_program(&spec.program, needs));
}

/// Where the program was installed: above its `bin`.
fn prefix_of(program: &Path) -> Option<&Path> {
    let directory = program.parent()?;
    let is_bin = directory.file_name().is_some_and(|name| name == "bin");
    // Directly below the root it would be the whole system.
    let prefix = directory
        .parent()
        .filter(|prefix| *prefix != Path::new("/"));
    prefix.filter(|_| is_bin)
}

/// Lengths of the headers of a 64-bit ELF file (ELF-64 object file format, version 1.5, figures 3
/// and 6).
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_INTERP: u32 = 3;
/// A program header that is further behind, or a longer name, is none of a compiler's making.
const MAX_PROGRAM_HEADERS: u16 = 128;
const MAX_INTERPRETER: u64 = 4096;

/// The dynamic linker that an ELF program asks the kernel for. A script's is not looked for: a VMM
/// is none.
fn interpreter_of(program: &Path) -> io::Result<Option<PathBuf>> {
    let mut file = File::open(program)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header)?;
    let is_elf64_little_endian = header.starts_with(b"\x7fELF\x02\x01");
    let entry_bytes = u16_at(&header, 54);
    if !is_elf64_little_endian || usize::from(entry_bytes) != PROGRAM_HEADER_BYTES {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(u64_at(&header, 32)))?;
    for _ in 0..u16_at(&header, 56).min(MAX_PROGRAM_HEADERS) {
        let mut entry = [0; PROGRAM_HEADER_BYTES];
        file.read_exact(&mut entry)?;
        let kind = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]);
        if kind != PT_INTERP {
            continue;
        }
        let (offset, length) = (u64_at(&entry, 8), u64_at(&entry, 32));
        let mut name = Vec::new();
        file.seek(SeekFrom::Start(offset))?;
        file.take(length.min(MAX_INTERPRETER))
            .read_to_end(&mut name)?;
        while name.last() == Some(&0) {
            name.pop();
        }
        let name = PathBuf::from(std::ffi::OsString::from(
            String::from_utf8(name).map_err(|_| io::ErrorKind::InvalidData)?,
        ));
        return Ok(name.is_absolute().then_some(name));
    }
    Ok(None)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_is_the_one_that_the_kernel_loads() {
        let own = std::env::current_exe().unwrap();
        let interpreter = interpreter_of(&own).unwrap().unwrap();
        // The kernel has mapped it into this very process.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let file = interpreter.canonicalize().unwrap();
        assert!(maps.contains(file.to_str().unwrap()), "{file:?}");
    }

    #[test]
    fn what_is_no_elf_program_has_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for bytes in [vec![b'#'; 64], vec![b'#'; 100]] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(interpreter_of(&path).unwrap(), None);
        }
        for length in 0..64 {
            std::fs::write(&path, &b"\x7fELF\x02\x01".repeat(11)[..length]).unwrap();
            assert!(interpreter_of(&path).is_err());
        }
    }

    #[test]
    fn a_program_of_an_own_prefix_brings_its_libraries_and_one_of_the_root_does_not() {
        let read = |program: &str| of_program(Path::new(program), Needs::default()).read;
        assert!(read("/opt/qemu/bin/qemu").contains(&b"/opt/qemu/share/qemu".to_vec()));
        assert_eq!(prefix_of(Path::new("/bin/qemu")), None);
        assert_eq!(prefix_of(Path::new("/home/me/qemu")), None);
    }

    #[test]
    fn exports_are_reached_as_the_guest_may_and_need_a_descriptor_per_file() {
        let needs = Needs {
            exports: vec![("/usr".into(), false), ("/home/me/project".into(), true)],
            ..Needs::default()
        };
        let [files, _] = limits(&needs);
        let [few, locked] = limits(&Needs::default());
        assert!(files.hard >= few.hard);
        assert!(few.hard <= DESCRIPTORS);
        assert_eq!(locked.soft, LOCKED_BYTES);
        let confinement = of_program(Path::new("/opt/krun/bin/iii-krun"), needs);
        assert!(confinement.read.contains(&b"/usr".to_vec()));
        assert_eq!(confinement.write, [b"/home/me/project".to_vec()]);
    }
}
