//! The FUSE operations of an export: check, hand on, map the answer.
//!
//! What is answered with ENOSYS, and thereby switched off in the guest for good, is only what
//! should be off: FLUSH and extended attributes of read-only exports (a round trip per close and
//! per lookup below an overlay, for nothing), and POLL (regular files are always ready, which is
//! what the guest assumes then).

use std::ffi::CStr;
use std::io;
use std::time::Duration;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, stat64, statvfs64};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileLock, FileSystem, FsOptions, GetxattrReply, ListxattrReply,
    OpenOptions, SetattrValid, ZeroCopyReader, ZeroCopyWriter,
};

use super::{Export, IMMUTABLE, error};
use crate::checks;
use crate::events::Refusal;
use crate::ownership::Chown;

/// The longest value or list that Linux stores; a guest that asks for more would make the server
/// allocate it.
const XATTR_SIZE_MAX: u32 = 65536;

impl FileSystem for Export {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        // A guest that says INIT again starts over: otherwise the counts and what is held differ.
        self.destroy();
        let mut options = self.inner.init(capable)?
            | FsOptions::ASYNC_READ
            | FsOptions::BIG_WRITES
            | FsOptions::MAX_PAGES
            | FsOptions::PARALLEL_DIROPS
            | FsOptions::ATOMIC_O_TRUNC
            | FsOptions::ASYNC_DIO
            | FsOptions::INIT_EXT;
        options.remove(FsOptions::PERFILE_DAX);
        options |= if self.immutable {
            FsOptions::CACHE_SYMLINKS
        } else {
            FsOptions::AUTO_INVAL_DATA
        };
        Ok(options)
    }

    fn destroy(&self) {
        self.inner.destroy();
        self.inodes.clear();
        let open = self.handles.swap(0, std::sync::atomic::Ordering::Relaxed);
        self.common.budget.release_handles(open);
    }

    fn lookup(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.component(name)?;
        match self.inner.lookup(&Self::context(), parent, name) {
            Ok(entry) => self.admit(entry),
            // Inode 0 with a validity is FUSE's word for "not there, and do not ask again".
            Err(cause) if self.immutable && cause.raw_os_error() == Some(libc::ENOENT) => {
                Ok(Entry {
                    entry_timeout: IMMUTABLE,
                    ..Entry::default()
                })
            }
            Err(cause) => Err(cause),
        }
    }

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.inner.forget(&Self::context(), inode, count);
        self.inodes.forget(inode, count);
    }

    fn batch_forget(&self, context: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.forget(context, inode, count);
        }
    }

    fn getattr(
        &self,
        _: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(stat64, Duration)> {
        let (mut attributes, validity) = self.inner.getattr(&Self::context(), inode, handle)?;
        self.ownership.map_attributes(&mut attributes);
        Ok((attributes, validity))
    }

    fn setattr(
        &self,
        _: &Context,
        inode: u64,
        mut requested: stat64,
        handle: Option<u64>,
        mut valid: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        self.writable()?;
        let context = Self::context();
        let owner = SetattrValid::UID | SetattrValid::GID;
        if valid.intersects(SetattrValid::MODE | owner) {
            let (current, _) = self.inner.getattr(&context, inode, None)?;
            requested.st_mode = checks::chmod_mode(current.st_mode, requested.st_mode);
            if valid.intersects(owner) {
                match self.ownership.chown(&current, &requested, valid) {
                    Chown::Nothing => valid.remove(owner),
                    Chown::Group(gid) => {
                        valid.remove(SetattrValid::UID);
                        requested.st_gid = gid;
                    }
                    Chown::Refused => return Err(error(libc::EPERM)),
                }
            }
        }
        let (mut attributes, validity) = self
            .inner
            .setattr(&context, inode, requested, handle, valid)?;
        self.ownership.map_attributes(&mut attributes);
        Ok((attributes, validity))
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        self.inner.readlink(&Self::context(), inode)
    }

    fn symlink(&self, _: &Context, target: &CStr, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.writable()?;
        self.component(name)?;
        self.admit(self.inner.symlink(&Self::context(), target, parent, name)?)
    }

    fn mknod(
        &self,
        _: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        _rdev: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        self.component(name)?;
        match mode & libc::S_IFMT {
            0 | libc::S_IFREG | libc::S_IFIFO | libc::S_IFSOCK => {}
            _ => return Err(self.refuse(Refusal::DeviceNode, libc::EPERM)),
        }
        let mode = mode & !checks::SET_ID;
        self.admit(
            self.inner
                .mknod(&Self::context(), parent, name, mode, 0, umask)?,
        )
    }

    fn mkdir(
        &self,
        _: &Context,
        parent: u64,
        name: &CStr,
        mode: u32,
        umask: u32,
    ) -> io::Result<Entry> {
        self.writable()?;
        self.component(name)?;
        let mode = mode & !checks::SET_ID;
        self.admit(
            self.inner
                .mkdir(&Self::context(), parent, name, mode, umask)?,
        )
    }

    fn unlink(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.writable()?;
        self.component(name)?;
        self.inner.unlink(&Self::context(), parent, name)
    }

    fn rmdir(&self, _: &Context, parent: u64, name: &CStr) -> io::Result<()> {
        self.writable()?;
        self.component(name)?;
        self.inner.rmdir(&Self::context(), parent, name)
    }

    fn rename(
        &self,
        _: &Context,
        old_parent: u64,
        old_name: &CStr,
        new_parent: u64,
        new_name: &CStr,
        flags: u32,
    ) -> io::Result<()> {
        self.writable()?;
        self.component(old_name)?;
        self.component(new_name)?;
        if flags & libc::RENAME_WHITEOUT != 0 {
            return Err(self.refuse(Refusal::DeviceNode, libc::EINVAL));
        }
        let context = Self::context();
        self.inner
            .rename(&context, old_parent, old_name, new_parent, new_name, flags)
    }

    fn link(&self, _: &Context, inode: u64, parent: u64, name: &CStr) -> io::Result<Entry> {
        self.writable()?;
        self.component(name)?;
        let context = Self::context();
        let entry = match self.inner.link(&context, inode, parent, name) {
            Err(cause) if cause.raw_os_error() == Some(libc::ENOENT) => {
                self.link_through_proc(inode, parent, name)?;
                self.inner.lookup(&context, parent, name)?
            }
            answer => answer?,
        };
        self.admit(entry)
    }

    fn open(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        if self.read_only && checks::writes(flags) {
            return Err(error(libc::EROFS));
        }
        let flags = self.open_flags(flags)?;
        let permit = self.admit_handle()?;
        let opened = self
            .inner
            .open(&Self::context(), inode, flags, fuse_flags)?;
        permit.keep();
        Ok(opened)
    }

    fn create(
        &self,
        context: &Context,
        parent: u64,
        name: &CStr,
        args: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        self.writable()?;
        self.component(name)?;
        let flags = self.open_flags(args.flags)?;
        let permit = self.admit_handle()?;
        let created = self.inner.create(
            &Self::context(),
            parent,
            name,
            CreateIn {
                // PassthroughFs forgets to give back the entry of an existing file that it
                // cannot open; with O_EXCL it never gets there.
                flags: flags | libc::O_EXCL as u32,
                mode: args.mode & !checks::SET_ID,
                ..args
            },
        );
        match created {
            Ok((entry, Some(handle), options, passthrough)) => {
                let inode = entry.inode;
                match self.admit(entry) {
                    Ok(entry) => {
                        permit.keep();
                        Ok((entry, Some(handle), options, passthrough))
                    }
                    Err(cause) => {
                        let context = Self::context();
                        self.inner
                            .release(&context, inode, 0, handle, false, false, None)?;
                        Err(cause)
                    }
                }
            }
            // no_open is off, so there always is a handle.
            Ok((_, None, ..)) => Err(error(libc::EIO)),
            Err(cause)
                if cause.raw_os_error() == Some(libc::EEXIST)
                    && args.flags as i32 & libc::O_EXCL == 0 =>
            {
                drop(permit);
                let entry = self.lookup(context, parent, name)?;
                match self.open(context, entry.inode, flags, args.fuse_flags) {
                    Ok((handle, options, passthrough)) => Ok((entry, handle, options, passthrough)),
                    Err(cause) => {
                        self.take_back(entry.inode);
                        Err(cause)
                    }
                }
            }
            Err(cause) => Err(cause),
        }
    }

    fn read(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        writer: &mut dyn ZeroCopyWriter,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        let flags = checks::status_flags(flags);
        let context = Self::context();
        self.inner.read(
            &context, inode, handle, writer, size, offset, lock_owner, flags,
        )
    }

    fn write(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        reader: &mut dyn ZeroCopyReader,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed: bool,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<usize> {
        self.writable()?;
        let flags = checks::status_flags(flags);
        let context = Self::context();
        self.inner.write(
            &context, inode, handle, reader, size, offset, lock_owner, delayed, flags, fuse_flags,
        )
    }

    fn flush(&self, _: &Context, inode: u64, handle: u64, lock_owner: u64) -> io::Result<()> {
        if self.read_only {
            return Err(error(libc::ENOSYS));
        }
        self.inner
            .flush(&Self::context(), inode, handle, lock_owner)
    }

    fn fsync(&self, _: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.inner.fsync(&Self::context(), inode, datasync, handle)
    }

    fn fallocate(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        mode: u32,
        offset: u64,
        length: u64,
    ) -> io::Result<()> {
        self.writable()?;
        self.inner
            .fallocate(&Self::context(), inode, handle, mode, offset, length)
    }

    fn release(
        &self,
        _: &Context,
        inode: u64,
        flags: u32,
        handle: u64,
        flush: bool,
        flock_release: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        let context = Self::context();
        self.inner.release(
            &context,
            inode,
            flags,
            handle,
            flush,
            flock_release,
            lock_owner,
        )?;
        self.release_handle();
        Ok(())
    }

    fn statfs(&self, _: &Context, inode: u64) -> io::Result<statvfs64> {
        self.inner.statfs(&Self::context(), inode)
    }

    fn setxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> io::Result<()> {
        self.writable()?;
        if !checks::attribute_name(name) {
            return Err(error(libc::EOPNOTSUPP));
        }
        self.inner
            .setxattr(&Self::context(), inode, name, value, flags)
    }

    fn getxattr(
        &self,
        _: &Context,
        inode: u64,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        if self.read_only {
            return Err(error(libc::ENOSYS));
        }
        if !checks::attribute_name(name) {
            return Err(error(libc::EOPNOTSUPP));
        }
        let size = size.min(XATTR_SIZE_MAX);
        self.inner.getxattr(&Self::context(), inode, name, size)
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        if self.read_only {
            return Err(error(libc::ENOSYS));
        }
        // The whole list, since its length counts only after the filter.
        let ListxattrReply::Names(names) =
            self.inner
                .listxattr(&Self::context(), inode, XATTR_SIZE_MAX)?
        else {
            return Err(error(libc::EIO));
        };
        let names = checks::attribute_list(&names);
        // A list of at most XATTR_SIZE_MAX bytes fits.
        match size {
            0 => Ok(ListxattrReply::Count(names.len() as u32)),
            size if names.len() as u32 > size => Err(error(libc::ERANGE)),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn removexattr(&self, _: &Context, inode: u64, name: &CStr) -> io::Result<()> {
        self.writable()?;
        if !checks::attribute_name(name) {
            return Err(error(libc::EOPNOTSUPP));
        }
        self.inner.removexattr(&Self::context(), inode, name)
    }

    fn opendir(
        &self,
        _: &Context,
        inode: u64,
        _flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions)> {
        let permit = self.admit_handle()?;
        let opened = self
            .inner
            .opendir(&Self::context(), inode, libc::O_RDONLY as u32)?;
        permit.keep();
        Ok(opened)
    }

    fn readdir(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry) -> io::Result<usize>,
    ) -> io::Result<()> {
        // PassthroughFs' own readdir reports its internal inode numbers; its readdirplus reports
        // those that stat shows.
        let context = Self::context();
        self.inner
            .readdirplus(&context, inode, handle, size, offset, &mut |name, entry| {
                let added = add_entry(name);
                if !matches!(added, Ok(0)) {
                    self.inner.forget(&context, entry.inode, 1);
                }
                added
            })
    }

    fn readdirplus(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        let context = Self::context();
        self.inner.readdirplus(
            &context,
            inode,
            handle,
            size,
            offset,
            &mut |name, mut entry| {
                let inode = entry.inode;
                // Inode 0 says "no attributes": the guest looks the name up if it wants it.
                if !self.inodes.offer(inode) {
                    let added = add_entry(name, Entry::default());
                    if !matches!(added, Ok(0)) {
                        self.inner.forget(&context, inode, 1);
                    }
                    return added;
                }
                self.ownership.map_attributes(&mut entry.attr);
                let added = add_entry(name, entry);
                match added {
                    // PassthroughFs takes back its own part of an entry that did not fit.
                    Ok(0) => self.inodes.forget(inode, 1),
                    Ok(_) => {}
                    Err(_) => self.take_back(inode),
                }
                added
            },
        )
    }

    fn fsyncdir(&self, _: &Context, inode: u64, datasync: bool, handle: u64) -> io::Result<()> {
        self.inner
            .fsyncdir(&Self::context(), inode, datasync, handle)
    }

    fn releasedir(&self, _: &Context, inode: u64, flags: u32, handle: u64) -> io::Result<()> {
        self.inner
            .releasedir(&Self::context(), inode, flags, handle)?;
        self.release_handle();
        Ok(())
    }

    fn access(&self, _: &Context, inode: u64, mask: u32) -> io::Result<()> {
        if mask as i32 & libc::W_OK != 0 {
            self.writable()?;
        }
        let (uid, gid) = self.server;
        let server = Context { uid, gid, pid: 0 };
        self.inner.access(&server, inode, mask)
    }

    fn lseek(
        &self,
        _: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        whence: u32,
    ) -> io::Result<u64> {
        // The guest keeps file positions itself and asks only for holes.
        if !matches!(whence as i32, libc::SEEK_DATA | libc::SEEK_HOLE) {
            return Err(error(libc::EINVAL));
        }
        self.inner
            .lseek(&Self::context(), inode, handle, offset, whence)
    }

    // Locks are not negotiated, so the guest keeps them among its own processes and asks nothing;
    // the answers are for a guest that asks all the same.

    fn getlk(
        &self,
        _: &Context,
        _inode: u64,
        _handle: u64,
        _owner: u64,
        _lock: FileLock,
        _flags: u32,
    ) -> io::Result<FileLock> {
        Err(error(libc::EOPNOTSUPP))
    }

    fn setlk(
        &self,
        _: &Context,
        _inode: u64,
        _handle: u64,
        _owner: u64,
        _lock: FileLock,
        _flags: u32,
    ) -> io::Result<()> {
        Err(error(libc::EOPNOTSUPP))
    }

    fn bmap(&self, _: &Context, _inode: u64, _block: u64, _size: u32) -> io::Result<u64> {
        Err(error(libc::EOPNOTSUPP))
    }
}
