//! The sources of libkrunfw, their order, and what is refused; with made-up libraries that the
//! user vouches for, so that no test needs the network.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use iii_firmware::digest::Digest;
use iii_firmware::home::IiiHome;
use iii_firmware::{
    Embedded, Finding, Firmware, FirmwareError, FirmwareOptions, FirmwareStatus, GuestInit,
    InitError, KernelFormat, Source,
};
use object::write::{Object, StandardSection, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SymbolFlags, SymbolKind, SymbolScope};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// The smallest image that passes for a kernel.
const IMAGE: usize = 1 << 20;

/// A file that holds a kernel as libkrunfw does.
fn library(architecture: Architecture, release: &str) -> Vec<u8> {
    let mut image = vec![0x90; IMAGE];
    let banner = format!("Linux version {release} (root@test) (gcc)");
    image[0x100..0x100 + banner.len()].copy_from_slice(banner.as_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    let note: Vec<u8> = [4_u32, 8, 18, u32::from_le_bytes(*b"Xen\0"), 0x100_0000, 0]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect();
    image[0x2000..0x2000 + note.len()].copy_from_slice(&note);
    // The NUL that ends the string literal which libkrunfw is made of.
    image.push(0);

    let mut object = Object::new(BinaryFormat::Elf, architecture, Endianness::Little);
    let section = object.section_id(StandardSection::Data);
    let symbol = object.add_symbol(Symbol {
        name: b"KERNEL_BUNDLE".to_vec(),
        value: 0,
        size: 0,
        kind: SymbolKind::Data,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Undefined,
        flags: SymbolFlags::None,
    });
    object.add_symbol_data(symbol, section, &image, 4096);
    object.write().expect("sound")
}

struct World {
    dir: tempfile::TempDir,
    options: FirmwareOptions,
}

impl World {
    /// An empty cache, an empty system, no network, and one library that is trusted.
    fn new() -> (Self, Vec<u8>) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let library = library(Architecture::X86_64, "6.12.99");
        let home = IiiHome::at(dir.path().join("home/.iii")).expect("absolute");
        let options = FirmwareOptions {
            system_dirs: vec![dir.path().join("system")],
            download: false,
            trusted: Some(Digest::of(&library)),
            os: "linux".to_owned(),
            ..FirmwareOptions::new(home)
        };
        (Self { dir, options }, library)
    }

    fn put(&self, path: impl AsRef<Path>, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("made");
        fs::write(&path, bytes).expect("written");
        path
    }

    fn locate(&self) -> Result<Firmware, FirmwareError> {
        Firmware::locate(&self.options, &())
    }
}

const CACHED: &str = "home/.iii/lib/libkrunfw.so.5.6.1";

#[test]
fn the_order_is_override_cache_system() {
    let (mut world, library) = World::new();
    let system = world.put("system/libkrunfw.so.5", &library);
    let found = world.locate().expect("in the system");
    assert_eq!(
        (found.source(), found.library()),
        (Source::System, &*system)
    );

    let cached = world.put(CACHED, &library);
    let found = world.locate().expect("in the cache");
    assert_eq!((found.source(), found.library()), (Source::Cache, &*cached));

    let named = world.put("named.so", &library);
    world.options.library = Some(named.clone());
    let found = world.locate().expect("named");
    assert_eq!(
        (found.source(), found.library()),
        (Source::Override, &*named)
    );
    assert_eq!(found.digest(), Digest::of(&library));
    assert_eq!(found.version(), None);
}

#[test]
fn the_kernel_is_made_once_and_made_anew_when_it_was_changed() {
    let (world, library) = World::new();
    world.put(CACHED, &library);
    let first = world.locate().expect("in the cache");
    assert_eq!(first.kernel_release(), "6.12.99");
    assert_eq!(first.kernel_format(), KernelFormat::PvhElf);
    let made = fs::read(first.kernel()).expect("there");
    assert_eq!(made.len(), 0x1000 + IMAGE);
    assert_eq!(&made[..4], b"\x7fELF");
    assert_eq!(made[0x1000..], library[made_at(&library)..][..IMAGE]);

    let inode = || fs::metadata(first.kernel()).expect("there").ino();
    let before = inode();
    world.locate().expect("in the cache");
    assert_eq!(inode(), before);

    fs::write(first.kernel(), b"damaged").expect("written");
    world.locate().expect("made anew");
    assert_eq!(fs::read(first.kernel()).expect("there"), made);

    // A restored backup has the bytes and not the inode; it is taken as it is.
    let aside = first.kernel().with_extension("aside");
    fs::copy(first.kernel(), &aside).expect("copied");
    fs::rename(&aside, first.kernel()).expect("renamed");
    let restored = inode();
    world.locate().expect("in the cache");
    assert_eq!(inode(), restored);

    fs::remove_file(first.kernel().with_file_name("kernel.json")).expect("removed");
    world.locate().expect("made anew");
    assert_eq!(fs::read(first.kernel()).expect("there"), made);
}

fn made_at(library: &[u8]) -> usize {
    (0..library.len())
        .find(|at| library[*at..].starts_with(&[0x90; 32]))
        .expect("holds the image")
}

#[test]
fn an_arm_kernel_is_kept_as_it_is() {
    let (mut world, _) = World::new();
    let library = library(Architecture::Aarch64, "6.12.7");
    world.options.trusted = Some(Digest::of(&library));
    world.put(CACHED, &library);
    let found = world.locate().expect("in the cache");
    assert_eq!(found.kernel_format(), KernelFormat::Arm64Image);
    assert_eq!(
        fs::metadata(found.kernel()).expect("there").len(),
        IMAGE as u64
    );

    let riscv = self::library(Architecture::Riscv64, "6.12.7");
    world.options.trusted = Some(Digest::of(&riscv));
    world.put(CACHED, &riscv);
    let error = world.locate().expect_err("no VMM boots it");
    assert!(matches!(error, FirmwareError::Kernel { .. }), "{error}");
    assert!(error.to_string().contains(CACHED), "{error}");
}

/// The built-in vm-init, made to look as if it were for `machine` (ELF's `e_machine`).
fn init_for(machine: u16) -> Vec<u8> {
    let mut init = GuestInit::embedded().bytes().to_vec();
    init[18..20].copy_from_slice(&machine.to_le_bytes());
    init
}

#[test]
fn guests_of_another_architecture_have_files_of_their_own() {
    let (mut world, library) = World::new();
    let (arch, machine) = match std::env::consts::ARCH {
        "aarch64" => ("x86_64", 62),
        _ => ("aarch64", 183),
    };
    // Those of both are called the same.
    let of_host = world.put(CACHED, &library);
    world.options.system_dirs = vec![of_host.parent().expect("has one").to_owned()];
    let mut other = (world.options.for_guests_by(arch, |_| None)).expect("sound");
    assert!(matches!(
        Firmware::locate(&other, &()),
        Err(FirmwareError::Init(InitError::Missing { .. }))
    ));
    other.init = Some(world.put("vm-init", &init_for(machine)));
    let error = Firmware::locate(&other, &()).expect_err("there is the host's alone");
    let FirmwareError::Missing { looked } = &error else {
        panic!("{error}")
    };
    let in_cache = |look: &iii_firmware::Look| look.source == Source::Cache;
    assert!(looked.iter().all(in_cache), "{error}");

    let own = self::library(Architecture::Aarch64, "6.12.7");
    other.trusted = Some(Digest::of(&own));
    let path = world.put(format!("home/.iii/lib/{arch}/libkrunfw.so.5.6.1"), &own);
    let found = Firmware::locate(&other, &()).expect("it is there now");
    assert_eq!(found.library(), path);
    assert_eq!(found.kernel_release(), "6.12.7");
    let of_host = world.locate().expect("in the cache");
    assert_eq!(of_host.kernel_release(), "6.12.99");
}

#[test]
fn a_named_file_that_is_no_good_is_an_error_and_nothing_takes_its_place() {
    let (mut world, library) = World::new();
    world.put(CACHED, &library);
    let named = world.put("named.so", b"damaged");
    world.options.library = Some(named.clone());
    let error = world.locate().expect_err("damaged");
    let text = error.to_string();
    let found = Digest::of(b"damaged").to_string();
    for part in [
        "III_LIBKRUNFW_PATH",
        "named.so",
        &found,
        &format!("III_LIBKRUNFW_SHA256={found}"),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!world.dir.path().join("home/.iii/cache/kernel").exists());

    for bad in [
        world.dir.path().join("missing.so"),
        world.dir.path().to_owned(),
    ] {
        world.options.library = Some(bad);
        assert!(matches!(
            world.locate(),
            Err(FirmwareError::Override { .. })
        ));
    }
}

#[test]
fn a_damaged_cache_is_passed_over_with_the_reason_kept() {
    let (world, library) = World::new();
    world.put(CACHED, &library[..library.len() - 1]);
    let error = world.locate().expect_err("nothing else there");
    let FirmwareError::Missing { looked } = &error else {
        panic!("{error}")
    };
    assert_eq!(looked.len(), 4);
    assert!(matches!(looked[0].finding, Finding::Refused { .. }));
    assert!(
        looked[1..]
            .iter()
            .all(|look| look.finding == Finding::Missing)
    );
    let text = error.to_string();
    for part in [
        "libkrunfw.so.5.6.1: refused",
        "system/libkrunfw.so.5: not there",
        "iii-super firmware",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }

    world.put("system/libkrunfw.so.5.6.1", &library);
    assert_eq!(
        world.locate().expect("in the system").source(),
        Source::System
    );
}

#[test]
fn an_unsupported_host_is_refused_unless_the_user_names_a_library() {
    let (mut world, library) = World::new();
    world.put(CACHED, &library);
    world.options.arch = "riscv64".to_owned();
    let error = world.locate().expect_err("unsupported");
    assert!(matches!(error, FirmwareError::Platform(_)));
    assert!(error.to_string().contains("III_LIBKRUNFW_PATH"), "{error}");
    let status = FirmwareStatus::of(&world.options);
    assert!(status.unsupported.is_some() && status.error.is_some());

    world.options.library = Some(world.dir.path().join(CACHED));
    assert_eq!(world.locate().expect("named").source(), Source::Override);
}

#[test]
fn many_at_once_agree() {
    let (world, library) = World::new();
    world.put(CACHED, &library);
    let kernels: Vec<PathBuf> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| world.locate().expect("found").kernel().to_owned()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    assert!(kernels.iter().all(|kernel| *kernel == kernels[0]));
    let dir = kernels[0].parent().expect("has one");
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("lists")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    assert_eq!(names, [".lock", "kernel.json", "vmlinux"]);
}

#[test]
fn a_home_that_cannot_be_written_is_named() {
    let (mut world, library) = World::new();
    let named = world.put("named.so", &library);
    let blocked = world.put("blocked", b"a file");
    world.options.library = Some(named);
    world.options.home = IiiHome::at(blocked.join(".iii")).expect("absolute");
    let error = world.locate().expect_err("no directory there");
    assert!(error.to_string().contains("blocked/.iii"), "{error}");
}

#[test]
fn the_status_tells_without_changing_anything_that_matters() {
    let (mut world, library) = World::new();
    let status = FirmwareStatus::of(&world.options);
    assert_eq!((status.used, status.looked.len()), (None, 4));
    assert_eq!(status.kernel, None);

    let system = world.put("system/libkrunfw.so.5", &library);
    world.put(CACHED, b"damaged");
    let status = FirmwareStatus::of(&world.options);
    let used = &status.looked[status.used.expect("one is good")];
    assert_eq!((used.source, &used.path), (Source::System, &system));
    assert!(matches!(status.looked[0].finding, Finding::Refused { .. }));
    assert_eq!(status.kernel_release, None);

    world.locate().expect("in the system");
    let status = FirmwareStatus::of(&world.options);
    assert_eq!(status.kernel_release.as_deref(), Some("6.12.99"));

    world.options.library = Some(world.dir.path().join("missing"));
    world.options.init = Some(world.dir.path().join("missing-init"));
    let status = FirmwareStatus::of(&world.options);
    assert!(status.error.expect("no good").contains("missing"));
    assert!(status.init_error.expect("no good").contains("missing-init"));
}

#[test]
fn a_wrong_init_is_reported_before_anything_is_fetched() {
    let (mut world, _) = World::new();
    world.options.init = Some(world.put("init", b"#!/bin/sh\n"));
    world.options.download = true;
    assert!(matches!(world.locate(), Err(FirmwareError::Init(_))));
    assert!(!world.dir.path().join("home").exists());
}

/// The library as a file inside this executable.
fn inside(library: &[u8]) -> Embedded {
    let packed = compress_to_vec(library, CompressionLevel::Fastest);
    Embedded {
        name: "libkrunfw.so.5.6.1",
        sha256: Digest::of(library),
        size: library.len() as u64,
        packed: packed.leak(),
    }
}

#[test]
fn what_is_inside_is_laid_in_the_cache_and_made_anew_when_it_was_changed() {
    let (mut world, library) = World::new();
    // It goes before what the system has.
    world.put("system/libkrunfw.so.5", &library);
    world.options.embedded = Some(inside(&library));
    let cached = world.dir.path().join(CACHED);

    let status = FirmwareStatus::of(&world.options);
    assert_eq!((status.used, status.error), (Some(0), None));
    assert_eq!(status.looked[0].source, Source::Embedded);
    assert!(!cached.exists(), "a look lays nothing");

    let found = world.locate().expect("inside");
    assert_eq!(
        (found.source(), found.library()),
        (Source::Embedded, &*cached)
    );
    assert_eq!(fs::read(&cached).expect("laid"), library);
    let link = cached.with_file_name("libkrunfw.so.5");
    assert_eq!(fs::read(link).expect("linked"), library);

    let mut changed = library.clone();
    changed[IMAGE / 2] ^= 1;
    fs::write(&cached, changed).expect("ours");
    let again = world.locate().expect("made anew");
    assert_eq!(again.source(), Source::Embedded);
    assert_eq!(fs::read(&cached).expect("laid"), library);
}

#[test]
fn what_is_inside_and_damaged_is_refused_and_what_was_named_goes_first() {
    let (mut world, library) = World::new();
    world.options.embedded = Some(Embedded {
        packed: b"rubbish",
        ..inside(&library)
    });
    let error = world.locate().expect_err("damaged").to_string();
    assert!(error.contains("install it anew"), "{error}");
    assert!(!world.dir.path().join(CACHED).exists());

    let named = world.put("named.so", &library);
    world.options.library = Some(named.clone());
    let found = world.locate().expect("named");
    assert_eq!(
        (found.source(), found.library()),
        (Source::Override, &*named)
    );
}
