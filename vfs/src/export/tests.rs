//! The rules of an export, asked of the trait as the FUSE server asks.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::AtomicBool;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64};
use fuse_backend_rs::api::filesystem::{
    DirEntry, FsOptions, GetxattrReply, ListxattrReply, SetattrValid, ZeroCopyReader,
};
use fuse_backend_rs::file_buf::FileVolatileSlice;
use fuse_backend_rs::file_traits::FileReadWriteVolatile;
use iii_proto::vfs::VfsEvent;
use vm_memory::VolatileSlice;

use super::*;
use crate::budget::Limits;
use crate::events::{EventQueue, event_queue};

const GUEST: (u32, u32) = (4242, 4343);
const CONTEXT: Context = Context {
    uid: 4242,
    gid: 4343,
    pid: 7,
};

struct Fixture {
    directory: tempfile::TempDir,
    export: Export,
    budget: Arc<Budget>,
    events: EventQueue,
}

#[derive(Clone, Copy, Default)]
struct Kind {
    read_only: bool,
    immutable: bool,
    inodes: Option<u64>,
    handles: Option<u64>,
}

impl Fixture {
    fn new(kind: Kind) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sink, events) = event_queue().unwrap();
        let inodes = kind.inodes.unwrap_or(1000);
        let limits = Limits {
            soft_inodes: inodes,
            inodes,
            handles: kind.handles.unwrap_or(1000),
            patience: Duration::ZERO,
        };
        let budget = Arc::new(Budget::new(limits, sink.clone()));
        let common = Common {
            budget: Arc::clone(&budget),
            refusals: Arc::new(Refusals::new(sink)),
            server: (
                nix::unistd::geteuid().as_raw(),
                nix::unistd::getegid().as_raw(),
            ),
            file_handles: false,
        };
        let spec = VfsExport {
            tag: "t".to_owned(),
            path: directory.path().to_owned(),
            read_only: kind.read_only,
            guest_uid: GUEST.0,
            guest_gid: GUEST.1,
            listener_fd: -1,
            immutable: kind.immutable,
            live: false,
        };
        let export = Export::open(&spec, common).unwrap();
        export.init(FsOptions::all()).unwrap();
        Self {
            directory,
            export,
            budget,
            events,
        }
    }

    fn writable() -> Self {
        Self::new(Kind::default())
    }

    fn host(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn lookup(&self, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.export.lookup(&CONTEXT, parent, name)
    }

    fn create(&self, name: &CStr, flags: i32, mode: u32) -> io::Result<(Entry, u64)> {
        let args = CreateIn {
            flags: flags as u32,
            mode,
            umask: 0,
            fuse_flags: 0,
        };
        let (entry, handle, ..) = self.export.create(&CONTEXT, ROOT_ID, name, args)?;
        Ok((entry, handle.unwrap()))
    }

    fn open(&self, inode: u64, flags: i32) -> io::Result<u64> {
        let (handle, ..) = self.export.open(&CONTEXT, inode, flags as u32, 0)?;
        Ok(handle.unwrap())
    }

    fn write(&self, inode: u64, handle: u64, bytes: &[u8]) -> io::Result<usize> {
        let size = bytes.len() as u32;
        let flags = libc::O_RDWR as u32;
        let mut bytes = Bytes(bytes.to_vec());
        self.export.write(
            &CONTEXT, inode, handle, &mut bytes, size, 0, None, false, flags, 0,
        )
    }

    fn release(&self, inode: u64, handle: u64) -> io::Result<()> {
        self.export
            .release(&CONTEXT, inode, 0, handle, false, false, None)
    }

    fn chmod(&self, inode: u64, mode: u32) -> io::Result<stat64> {
        let mut attributes = Entry::default().attr;
        attributes.st_mode = mode;
        self.setattr(inode, attributes, SetattrValid::MODE)
    }

    fn chown(&self, inode: u64, uid: u32, gid: u32) -> io::Result<stat64> {
        let mut attributes = Entry::default().attr;
        (attributes.st_uid, attributes.st_gid) = (uid, gid);
        self.setattr(inode, attributes, SetattrValid::UID | SetattrValid::GID)
    }

    fn setattr(&self, inode: u64, attributes: stat64, valid: SetattrValid) -> io::Result<stat64> {
        let (attributes, _) = self
            .export
            .setattr(&CONTEXT, inode, attributes, None, valid)?;
        Ok(attributes)
    }

    /// Inode numbers of the root's entries, by READDIR or as READDIRPLUS offers them.
    fn list(&self, plus: bool) -> HashMap<String, (u64, u64)> {
        let (handle, _) = self.export.opendir(&CONTEXT, ROOT_ID, 0).unwrap();
        let handle = handle.unwrap();
        let mut found = HashMap::new();
        let mut offset = 0;
        loop {
            let before = found.len();
            let start = offset;
            let mut add = |name: DirEntry, inode: u64| {
                offset = name.offset;
                let text = String::from_utf8(name.name.to_vec()).unwrap();
                assert!(found.insert(text, (name.ino, inode)).is_none());
                Ok(1)
            };
            let (export, root) = (&self.export, ROOT_ID);
            if plus {
                let add = &mut |name: DirEntry, entry: Entry| add(name, entry.inode);
                export.readdirplus(&CONTEXT, root, handle, 4096, start, add)
            } else {
                let add = &mut |name: DirEntry| add(name, 0);
                export.readdir(&CONTEXT, root, handle, 4096, start, add)
            }
            .unwrap();
            if found.len() == before {
                break;
            }
        }
        self.export
            .releasedir(&CONTEXT, ROOT_ID, 0, handle)
            .unwrap();
        found
    }
}

struct Bytes(Vec<u8>);

impl io::Read for Bytes {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.as_slice().read(buffer)
    }
}

impl ZeroCopyReader for Bytes {
    fn read_to(
        &mut self,
        file: &mut dyn FileReadWriteVolatile,
        count: usize,
        offset: u64,
    ) -> io::Result<usize> {
        let count = count.min(self.0.len());
        let slice = VolatileSlice::from(&mut self.0[..count]);
        file.write_at_volatile(FileVolatileSlice::from_volatile_slice(&slice), offset)
    }
}

fn errno<T>(answer: io::Result<T>) -> i32 {
    match answer {
        Ok(_) => 0,
        Err(cause) => cause.raw_os_error().unwrap(),
    }
}

fn read_only() -> Kind {
    Kind {
        read_only: true,
        ..Kind::default()
    }
}

#[test]
fn a_read_only_export_refuses_every_change() {
    let fixture = Fixture::new(read_only());
    fs::write(fixture.host("file"), "x").unwrap();
    let export = &fixture.export;
    let file = fixture.lookup(ROOT_ID, c"file").unwrap().inode;
    let attributes = Entry::default().attr;

    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_RDONLY | libc::O_TRUNC,
        libc::O_RDONLY | libc::O_CREAT,
    ] {
        assert_eq!(errno(fixture.open(file, flags)), libc::EROFS, "{flags:o}");
    }
    let handle = fixture.open(file, libc::O_RDONLY).unwrap();
    let changes = [
        errno(fixture.create(c"new", libc::O_RDONLY, 0o644)),
        errno(fixture.write(file, handle, b"y")),
        errno(export.mkdir(&CONTEXT, ROOT_ID, c"new", 0o755, 0)),
        errno(export.mknod(&CONTEXT, ROOT_ID, c"new", libc::S_IFREG, 0, 0)),
        errno(export.symlink(&CONTEXT, c"x", ROOT_ID, c"new")),
        errno(export.link(&CONTEXT, file, ROOT_ID, c"new")),
        errno(export.unlink(&CONTEXT, ROOT_ID, c"file")),
        errno(export.rmdir(&CONTEXT, ROOT_ID, c"file")),
        errno(export.rename(&CONTEXT, ROOT_ID, c"file", ROOT_ID, c"new", 0)),
        errno(fixture.chmod(file, 0o777)),
        errno(fixture.chown(file, GUEST.0, GUEST.1)),
        errno(fixture.setattr(file, attributes, SetattrValid::SIZE)),
        errno(fixture.setattr(file, attributes, SetattrValid::MTIME)),
        errno(export.fallocate(&CONTEXT, file, handle, 0, 0, 10)),
        errno(export.setxattr(&CONTEXT, file, c"user.a", b"1", 0)),
        errno(export.removexattr(&CONTEXT, file, c"user.a")),
        errno(export.access(&CONTEXT, file, libc::W_OK as u32)),
    ];
    assert_eq!(changes, [libc::EROFS; 17]);
    assert_eq!(errno(export.access(&CONTEXT, file, libc::R_OK as u32)), 0);
    assert_eq!(fs::read(fixture.host("file")).unwrap(), b"x");
    assert_eq!(fs::read_dir(fixture.directory.path()).unwrap().count(), 1);
}

#[test]
fn a_file_of_mode_0444_can_be_created_and_written_through_its_handle() {
    // git writes its objects so.
    let fixture = Fixture::writable();
    for (name, flags) in [
        (c"a", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL),
        (c"b", libc::O_WRONLY | libc::O_CREAT),
    ] {
        let (entry, handle) = fixture.create(name, flags, libc::S_IFREG | 0o444).unwrap();
        assert_eq!(fixture.write(entry.inode, handle, b"object").unwrap(), 6);
        fixture.release(entry.inode, handle).unwrap();
    }
    let metadata = fs::metadata(fixture.host("a")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o444);
    assert_eq!(metadata.len(), 6);
    let again = fixture.create(c"a", libc::O_RDWR | libc::O_EXCL, 0o444);
    assert_eq!(errno(again), libc::EEXIST);
}

#[test]
fn creating_what_exists_opens_it() {
    let fixture = Fixture::writable();
    fs::write(fixture.host("file"), "old").unwrap();
    let (entry, handle) = fixture.create(c"file", libc::O_RDWR, 0o644).unwrap();
    assert_eq!(fixture.write(entry.inode, handle, b"new").unwrap(), 3);
    assert_eq!(fs::read(fixture.host("file")).unwrap(), b"new");
    assert_eq!((fixture.budget.inodes(), fixture.budget.handles()), (1, 1));
    fixture.release(entry.inode, handle).unwrap();
    fixture.export.forget(&CONTEXT, entry.inode, 1);
    assert_eq!((fixture.budget.inodes(), fixture.budget.handles()), (0, 0));
}

#[test]
fn nothing_is_held_after_failed_operations() {
    let fixture = Fixture::writable();
    symlink("/etc/passwd", fixture.host("link")).unwrap();
    fs::create_dir(fixture.host("dir")).unwrap();
    let export = &fixture.export;
    // A create on what cannot be opened for writing.
    assert_ne!(errno(fixture.create(c"link", libc::O_RDWR, 0o644)), 0);
    assert_ne!(errno(fixture.create(c"dir", libc::O_RDWR, 0o644)), 0);
    assert_eq!(errno(fixture.lookup(ROOT_ID, c"missing")), libc::ENOENT);
    assert_eq!(errno(fixture.lookup(999, c"dir")), libc::EBADF);
    assert_ne!(errno(fixture.open(999, libc::O_RDONLY)), 0);
    assert_ne!(errno(export.opendir(&CONTEXT, 999, 0)), 0);
    assert_ne!(errno(export.link(&CONTEXT, 999, ROOT_ID, c"new")), 0);
    let kind = libc::S_IFCHR;
    assert_ne!(
        errno(export.mknod(&CONTEXT, ROOT_ID, c"dev", kind, 0, 0)),
        0
    );
    // Handles that were never given out.
    assert_eq!(errno(fixture.release(ROOT_ID, 77)), libc::EBADF);
    assert_eq!(
        errno(export.releasedir(&CONTEXT, ROOT_ID, 0, 77)),
        libc::EBADF
    );
    export.forget(&CONTEXT, 999, 5);
    assert_eq!((fixture.budget.inodes(), fixture.budget.handles()), (0, 0));
}

#[test]
fn the_servers_own_files_belong_to_the_workload() {
    let fixture = Fixture::writable();
    let (entry, _) = fixture.create(c"file", libc::O_RDWR, 0o644).unwrap();
    let owner = |attributes: &stat64| (attributes.st_uid, attributes.st_gid);
    assert_eq!(owner(&entry.attr), GUEST);
    let (attributes, _) = fixture.export.getattr(&CONTEXT, entry.inode, None).unwrap();
    assert_eq!(owner(&attributes), GUEST);
    let export = &fixture.export;
    let mut made = vec![
        export.mkdir(&CONTEXT, ROOT_ID, c"d", 0o755, 0).unwrap(),
        export.symlink(&CONTEXT, c"x", ROOT_ID, c"s").unwrap(),
        export.link(&CONTEXT, entry.inode, ROOT_ID, c"l").unwrap(),
        export
            .mknod(&CONTEXT, ROOT_ID, c"p", libc::S_IFIFO | 0o600, 0, 0)
            .unwrap(),
    ];
    made.push(fixture.lookup(ROOT_ID, c"file").unwrap());
    assert!(made.iter().all(|entry| owner(&entry.attr) == GUEST));
    let server = (
        nix::unistd::geteuid().as_raw(),
        nix::unistd::getegid().as_raw(),
    );
    let host = fs::metadata(fixture.host("d")).unwrap();
    assert_eq!((host.uid(), host.gid()), server);
    let answer = fixture.chown(entry.inode, GUEST.0, GUEST.1).unwrap();
    assert_eq!(owner(&answer), GUEST);
    assert_eq!(errno(fixture.chown(entry.inode, 1, GUEST.1)), libc::EPERM);
    assert_eq!(
        errno(fixture.chown(entry.inode, server.0, server.1)),
        libc::EPERM
    );
    assert_eq!(fs::metadata(fixture.host("file")).unwrap().uid(), server.0);
}

#[test]
fn an_immutable_export_shows_the_hosts_owners_and_is_cached_for_long() {
    let fixture = Fixture::new(Kind {
        read_only: true,
        immutable: true,
        ..Kind::default()
    });
    fs::write(fixture.host("file"), "").unwrap();
    let entry = fixture.lookup(ROOT_ID, c"file").unwrap();
    assert_eq!(entry.attr.st_uid, nix::unistd::geteuid().as_raw());
    assert_eq!(
        (entry.entry_timeout, entry.attr_timeout),
        (IMMUTABLE, IMMUTABLE)
    );
    let missing = fixture.lookup(ROOT_ID, c"missing").unwrap();
    assert_eq!((missing.inode, missing.entry_timeout), (0, IMMUTABLE));
    assert_eq!(fixture.budget.inodes(), 1);
}

#[test]
fn an_edit_on_the_host_is_seen_within_a_second() {
    let fixture = Fixture::writable();
    assert_eq!(errno(fixture.lookup(ROOT_ID, c"file")), libc::ENOENT);
    fs::write(fixture.host("file"), "12").unwrap();
    let entry = fixture.lookup(ROOT_ID, c"file").unwrap();
    assert!(entry.entry_timeout <= CHANGING && entry.attr_timeout <= CHANGING);
    fs::write(fixture.host("file"), "1234").unwrap();
    let (attributes, validity) = fixture.export.getattr(&CONTEXT, entry.inode, None).unwrap();
    assert_eq!(attributes.st_size, 4);
    assert!(validity <= CHANGING);
}

#[test]
fn device_nodes_and_whiteouts_are_refused_and_counted() {
    let fixture = Fixture::writable();
    let export = &fixture.export;
    for kind in [libc::S_IFCHR, libc::S_IFBLK, libc::S_IFDIR, libc::S_IFLNK] {
        let answer = export.mknod(&CONTEXT, ROOT_ID, c"n", kind | 0o666, 0, 0);
        assert_eq!(errno(answer), libc::EPERM);
    }
    fs::write(fixture.host("a"), "").unwrap();
    let whiteout = libc::RENAME_WHITEOUT;
    let answer = export.rename(&CONTEXT, ROOT_ID, c"a", ROOT_ID, c"b", whiteout);
    assert_eq!(errno(answer), libc::EINVAL);
    for (name, kind) in [(c"fifo", libc::S_IFIFO), (c"sock", libc::S_IFSOCK)] {
        let answer = export.mknod(&CONTEXT, ROOT_ID, name, kind | 0o600, 0, 0);
        assert_eq!(errno(answer), 0);
    }
    let kind = fs::metadata(fixture.host("fifo")).unwrap().file_type();
    assert!(kind.is_fifo());
    assert!(fixture.events.take().contains(&VfsEvent::Refused {
        kind: "device-node".to_owned(),
        count: 1
    }));
}

#[test]
fn set_id_bits_do_not_reach_the_host() {
    let fixture = Fixture::writable();
    let export = &fixture.export;
    let (entry, _) = fixture.create(c"file", libc::O_RDWR, 0o6755).unwrap();
    export.mkdir(&CONTEXT, ROOT_ID, c"dir", 0o6755, 0).unwrap();
    export
        .mknod(&CONTEXT, ROOT_ID, c"node", libc::S_IFREG | 0o6755, 0, 0)
        .unwrap();
    fixture.chmod(entry.inode, 0o6755).unwrap();
    for name in ["file", "dir", "node"] {
        let mode = fs::metadata(fixture.host(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o755, "{name}");
    }
    // What the host has set there is the host's business.
    let shared = fs::Permissions::from_mode(0o2770);
    fs::set_permissions(fixture.host("dir"), shared).unwrap();
    let entry = fixture.lookup(ROOT_ID, c"dir").unwrap();
    fixture.chmod(entry.inode, 0o2775).unwrap();
    let mode = fs::metadata(fixture.host("dir"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o7777, 0o2775);
}

#[test]
fn modes_are_the_guests_and_no_umask_of_the_host_is_applied() {
    let fixture = Fixture::writable();
    fixture.create(c"file", libc::O_RDWR, 0o666).unwrap();
    fixture
        .export
        .mkdir(&CONTEXT, ROOT_ID, c"dir", 0o777, 0o027)
        .unwrap();
    let mode = |name| {
        fs::metadata(fixture.host(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!((mode("file"), mode("dir")), (0o666, 0o750));
}

#[test]
fn only_user_attributes_pass() {
    let fixture = Fixture::writable();
    let export = &fixture.export;
    let (entry, _) = fixture.create(c"file", libc::O_RDWR, 0o644).unwrap();
    for name in [
        c"trusted.overlay.opaque",
        c"security.capability",
        c"system.posix_acl_access",
        c"user",
    ] {
        let inode = entry.inode;
        let answers = [
            errno(export.setxattr(&CONTEXT, inode, name, b"1", 0)),
            errno(export.getxattr(&CONTEXT, inode, name, 10)),
            errno(export.removexattr(&CONTEXT, inode, name)),
        ];
        assert_eq!(answers, [libc::EOPNOTSUPP; 3], "{name:?}");
    }
    export
        .setxattr(&CONTEXT, entry.inode, c"user.a", b"value", 0)
        .unwrap();
    // A size that would make the server allocate four gigabytes is cut down.
    let GetxattrReply::Value(value) = export
        .getxattr(&CONTEXT, entry.inode, c"user.a", u32::MAX)
        .unwrap()
    else {
        panic!("no value");
    };
    assert_eq!(value, b"value");
    let ListxattrReply::Names(names) = export.listxattr(&CONTEXT, entry.inode, 100).unwrap() else {
        panic!("no names");
    };
    assert_eq!(names, b"user.a\0");
    assert!(matches!(
        export.listxattr(&CONTEXT, entry.inode, 0),
        Ok(ListxattrReply::Count(7))
    ));
    assert_eq!(
        errno(export.listxattr(&CONTEXT, entry.inode, 3)),
        libc::ERANGE
    );
}

#[test]
fn names_that_are_no_component_are_refused_everywhere() {
    let fixture = Fixture::writable();
    let export = &fixture.export;
    fs::write(fixture.host("file"), "").unwrap();
    let file = fixture.lookup(ROOT_ID, c"file").unwrap().inode;
    for bad in [c"", c".", c"..", c"a/b", c"../x", c"/etc"] {
        let answers = [
            errno(fixture.lookup(ROOT_ID, bad)),
            errno(fixture.create(bad, libc::O_RDWR, 0o644)),
            errno(export.mkdir(&CONTEXT, ROOT_ID, bad, 0o755, 0)),
            errno(export.mknod(&CONTEXT, ROOT_ID, bad, libc::S_IFREG, 0, 0)),
            errno(export.symlink(&CONTEXT, c"x", ROOT_ID, bad)),
            errno(export.link(&CONTEXT, file, ROOT_ID, bad)),
            errno(export.unlink(&CONTEXT, ROOT_ID, bad)),
            errno(export.rmdir(&CONTEXT, ROOT_ID, bad)),
            errno(export.rename(&CONTEXT, ROOT_ID, bad, ROOT_ID, c"x", 0)),
            errno(export.rename(&CONTEXT, ROOT_ID, c"file", ROOT_ID, bad, 0)),
        ];
        assert_eq!(answers, [libc::EINVAL; 10], "{bad:?}");
    }
}

#[test]
fn opens_that_mean_something_else_are_refused() {
    let fixture = Fixture::writable();
    for flags in [
        libc::O_PATH,
        libc::O_TMPFILE | libc::O_RDWR,
        libc::O_ACCMODE,
    ] {
        assert_eq!(errno(fixture.open(ROOT_ID, flags)), libc::EINVAL);
        assert_eq!(errno(fixture.create(c"x", flags, 0o644)), libc::EINVAL);
    }
    assert_eq!(fs::read_dir(fixture.directory.path()).unwrap().count(), 0);
}

#[test]
fn symlinks_are_not_followed_on_the_host() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let fixture = Fixture::writable();
    symlink(outside.path(), fixture.host("dir")).unwrap();
    symlink(outside.path().join("secret"), fixture.host("file")).unwrap();
    symlink(outside.path().join("new"), fixture.host("dangling")).unwrap();
    let export = &fixture.export;
    let directory = fixture.lookup(ROOT_ID, c"dir").unwrap();
    assert_eq!(directory.attr.st_mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(
        errno(fixture.lookup(directory.inode, c"secret")),
        libc::ENOTDIR
    );
    let mkdir = export.mkdir(&CONTEXT, directory.inode, c"x", 0o755, 0);
    assert_eq!(errno(mkdir), libc::ENOTDIR);
    let file = fixture.lookup(ROOT_ID, c"file").unwrap();
    assert_eq!(errno(fixture.open(file.inode, libc::O_RDONLY)), libc::EBADF);
    assert_ne!(errno(fixture.create(c"dangling", libc::O_RDWR, 0o644)), 0);
    assert_ne!(errno(fixture.chmod(file.inode, 0o777)), 0);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_directory_that_the_host_swaps_for_a_symlink_leads_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "s").unwrap();
    let secret = fs::metadata(outside.path().join("file")).unwrap().ino();
    let fixture = Fixture::writable();
    let (directory, aside) = (fixture.host("dir"), fixture.host("aside"));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "harmless").unwrap();
    symlink(outside.path(), &aside).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                nix::fcntl::renameat2(
                    nix::fcntl::AT_FDCWD,
                    &directory,
                    nix::fcntl::AT_FDCWD,
                    &aside,
                    nix::fcntl::RenameFlags::RENAME_EXCHANGE,
                )
                .unwrap();
            }
        });
        let mut reached = 0;
        for _ in 0..3000 {
            let Ok(entry) = fixture.lookup(ROOT_ID, c"dir") else {
                continue;
            };
            if let Ok(file) = fixture.lookup(entry.inode, c"file") {
                assert_ne!(file.attr.st_ino, secret);
                reached += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reached > 0, "the directory was never there");
    });
}

#[test]
fn a_directory_moved_out_of_the_export_is_no_way_out() {
    let outside = tempfile::tempdir().unwrap();
    let fixture = Fixture::writable();
    fs::create_dir(fixture.host("dir")).unwrap();
    let entry = fixture.lookup(ROOT_ID, c"dir").unwrap();
    fs::rename(fixture.host("dir"), outside.path().join("dir")).unwrap();
    assert_eq!(errno(fixture.lookup(entry.inode, c"..")), libc::EINVAL);
}

#[test]
fn at_the_cap_a_new_inode_gets_enfile_and_a_known_one_does_not() {
    let fixture = Fixture::new(Kind {
        inodes: Some(2),
        ..Kind::default()
    });
    for name in ["a", "b", "c"] {
        fs::write(fixture.host(name), "").unwrap();
    }
    let a = fixture.lookup(ROOT_ID, c"a").unwrap();
    fixture.lookup(ROOT_ID, c"b").unwrap();
    assert_eq!(errno(fixture.lookup(ROOT_ID, c"c")), libc::ENFILE);
    assert_eq!(errno(fixture.lookup(ROOT_ID, c"a")), 0);
    // A created file is on the disk but cannot be held: no handle may be left.
    assert_eq!(
        errno(fixture.create(c"d", libc::O_RDWR, 0o644)),
        libc::ENFILE
    );
    assert_eq!((fixture.budget.inodes(), fixture.budget.handles()), (2, 0));
    // READDIRPLUS offers names without inodes instead of failing.
    let listed = fixture.list(true);
    assert_eq!(listed.len(), 4);
    assert_eq!((listed["c"].1, listed["d"].1), (0, 0));
    assert_eq!(listed["a"].1, a.inode, "a known one costs nothing");
    fixture.export.forget(&CONTEXT, a.inode, 3);
    assert_eq!(errno(fixture.lookup(ROOT_ID, c"c")), 0);
    assert!(
        fixture
            .events
            .take()
            .iter()
            .any(|event| matches!(event, VfsEvent::InodesExhausted { .. }))
    );
}

#[test]
fn open_files_are_capped() {
    let fixture = Fixture::new(Kind {
        handles: Some(2),
        ..Kind::default()
    });
    let (entry, handle) = fixture.create(c"file", libc::O_RDWR, 0o644).unwrap();
    fixture.open(entry.inode, libc::O_RDONLY).unwrap();
    assert_eq!(
        errno(fixture.open(entry.inode, libc::O_RDONLY)),
        libc::ENFILE
    );
    assert_eq!(
        errno(fixture.export.opendir(&CONTEXT, ROOT_ID, 0)),
        libc::ENFILE
    );
    fixture.release(entry.inode, handle).unwrap();
    assert_eq!(errno(fixture.export.opendir(&CONTEXT, ROOT_ID, 0)), 0);
}

#[test]
fn a_long_directory_is_listed_whole_with_the_inode_numbers_of_stat() {
    let fixture = Fixture::new(Kind {
        inodes: Some(5000),
        ..Kind::default()
    });
    let names: Vec<String> = (0..2000).map(|index| format!("name-{index:05}")).collect();
    for name in &names {
        fs::write(fixture.host(name), "").unwrap();
    }
    for plus in [false, true] {
        let listed = fixture.list(plus);
        assert_eq!(listed.len(), 2000);
        for name in &names {
            let inode = fs::metadata(fixture.host(name)).unwrap().ino();
            assert_eq!(listed[name].0, inode);
        }
    }
    assert_eq!(fixture.budget.inodes(), 2000, "READDIR holds none");
    assert_eq!(fixture.budget.handles(), 0);
}

#[test]
fn hard_links_need_no_privilege() {
    let fixture = Fixture::writable();
    let (entry, _) = fixture.create(c"file", libc::O_RDWR, 0o444).unwrap();
    fixture
        .export
        .link_through_proc(entry.inode, ROOT_ID, c"by-proc")
        .unwrap();
    let linked = fixture
        .export
        .link(&CONTEXT, entry.inode, ROOT_ID, c"by-request")
        .unwrap();
    assert_eq!((linked.inode, linked.attr.st_nlink), (entry.inode, 3));
}

#[test]
fn renames_across_directories_and_replacements_work() {
    let fixture = Fixture::writable();
    let export = &fixture.export;
    let a = export.mkdir(&CONTEXT, ROOT_ID, c"a", 0o755, 0).unwrap();
    let b = export.mkdir(&CONTEXT, ROOT_ID, c"b", 0o755, 0).unwrap();
    fs::write(fixture.host("a/file"), "1").unwrap();
    fs::write(fixture.host("b/file"), "2").unwrap();
    let rename = |flags| export.rename(&CONTEXT, a.inode, c"file", b.inode, c"file", flags);
    assert_eq!(errno(rename(libc::RENAME_NOREPLACE)), libc::EEXIST);
    rename(libc::RENAME_EXCHANGE).unwrap();
    assert_eq!(fs::read(fixture.host("a/file")).unwrap(), b"2");
    rename(0).unwrap();
    assert_eq!(fs::read(fixture.host("b/file")).unwrap(), b"2");
    assert!(!fixture.host("a/file").exists());
}

#[test]
fn truncate_allocate_and_times() {
    let fixture = Fixture::writable();
    let (entry, handle) = fixture.create(c"file", libc::O_RDWR, 0o644).unwrap();
    fixture
        .export
        .fallocate(&CONTEXT, entry.inode, handle, 0, 0, 10_000)
        .unwrap();
    assert_eq!(fs::metadata(fixture.host("file")).unwrap().len(), 10_000);
    let mut attributes = Entry::default().attr;
    attributes.st_size = 5;
    attributes.st_mtime = 1_000_000;
    let valid = SetattrValid::SIZE | SetattrValid::MTIME;
    let answer = fixture.setattr(entry.inode, attributes, valid).unwrap();
    assert_eq!((answer.st_size, answer.st_mtime), (5, 1_000_000));
    for datasync in [false, true] {
        fixture
            .export
            .fsync(&CONTEXT, entry.inode, datasync, handle)
            .unwrap();
    }
    fixture.export.sync().unwrap();
}

#[test]
fn statfs_is_the_hosts() {
    let fixture = Fixture::writable();
    let answer = fixture.export.statfs(&CONTEXT, ROOT_ID).unwrap();
    let host = nix::sys::statvfs::statvfs(fixture.directory.path()).unwrap();
    assert_eq!(answer.f_blocks, host.blocks());
    assert_eq!(answer.f_namemax, host.name_max());
}

#[test]
fn a_guest_that_starts_over_holds_nothing() {
    let fixture = Fixture::writable();
    let (entry, _) = fixture.create(c"file", libc::O_RDWR, 0o644).unwrap();
    assert_eq!((fixture.budget.inodes(), fixture.budget.handles()), (1, 1));
    fixture.export.init(FsOptions::all()).unwrap();
    assert_eq!((fixture.budget.inodes(), fixture.budget.handles()), (0, 0));
    assert_eq!(
        errno(fixture.open(entry.inode, libc::O_RDONLY)),
        libc::EBADF
    );
    fixture.lookup(ROOT_ID, c"file").unwrap();
    drop(fixture.export);
    assert_eq!(fixture.budget.inodes(), 0);
}

#[test]
fn an_immutable_export_must_be_read_only_and_a_missing_one_is_named() {
    let fixture = Fixture::writable();
    let common = || fixture.export.common.clone();
    let mut spec = VfsExport {
        tag: "t".to_owned(),
        path: fixture.directory.path().to_owned(),
        read_only: false,
        guest_uid: 0,
        guest_gid: 0,
        listener_fd: -1,
        immutable: true,
        live: false,
    };
    let error = Export::open(&spec, common()).unwrap_err();
    assert!(matches!(error, ExportError::ImmutableWritable(_)));
    spec.immutable = false;
    spec.path = fixture.host("missing");
    let error = Export::open(&spec, common()).unwrap_err();
    assert!(error.to_string().contains("missing"));
}
