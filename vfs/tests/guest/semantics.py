"""What programs expect of a file system, asked inside the guest. Run in an empty directory of a
writable export, as root, with a read-only export as the first argument."""
import errno, fcntl, mmap, os, sqlite3, stat, subprocess, sys, time

read_only = sys.argv[1]


def refused(expected, action):
    try:
        action()
    except OSError as error:
        assert error.errno == expected, (error, expected)
        return
    raise AssertionError(f"not refused: {expected}")


def exclusive_0444():
    fd = os.open("object", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o444)
    os.write(fd, b"data")
    os.close(fd)
    assert stat.S_IMODE(os.stat("object").st_mode) == 0o444
    refused(errno.EEXIST, lambda: os.open("object", os.O_CREAT | os.O_EXCL | os.O_RDWR))


def links_and_renames():
    os.makedirs("a/b"); os.makedirs("c")
    open("a/b/f", "w").write("1")
    os.link("a/b/f", "c/hard")
    assert os.stat("c/hard").st_nlink == 2
    os.rename("a/b/f", "c/f")
    os.rename("a/b", "c/b")
    assert sorted(os.listdir("c")) == ["b", "f", "hard"] and os.listdir("a") == []
    os.symlink("../c/f", "a/link")
    assert open("a/link").read() == "1"
    os.symlink("/etc/hostname", "a/absolute")
    assert os.readlink("a/absolute") == "/etc/hostname"


def open_and_unlinked():
    with open("gone", "w+") as file:
        os.unlink("gone")
        file.write("still"); file.flush(); os.fsync(file.fileno())
        file.seek(0)
        assert file.read() == "still" and os.fstat(file.fileno()).st_nlink == 0
        os.fchmod(file.fileno(), 0o600)


def shared_mapping():
    with open("mapped", "w+b") as file:
        file.truncate(8192)
        with mmap.mmap(file.fileno(), 8192) as memory:
            memory[4090:4100] = b"0123456789"
            memory.flush()
    assert open("mapped", "rb").read()[4090:4100] == b"0123456789"


def locks():
    first, second = open("lock", "w"), open("lock", "w")
    fcntl.flock(first, fcntl.LOCK_EX)
    refused(errno.EWOULDBLOCK, lambda: fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB))
    fcntl.flock(first, fcntl.LOCK_UN)
    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.lockf(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def sqlite_wal():
    one, two = sqlite3.connect("db"), sqlite3.connect("db")
    assert one.execute("pragma journal_mode=wal").fetchone() == ("wal",)
    one.execute("create table t(x)"); one.commit()
    for number in range(50):
        (one if number % 2 else two).execute("insert into t values(?)", (number,))
        one.commit(); two.commit()
    assert two.execute("select count(*), sum(x) from t").fetchone() == (50, 1225)
    assert one.execute("pragma integrity_check").fetchone() == ("ok",)


def sizes():
    fd = os.open("size", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 100_000)
    assert os.fstat(fd).st_size == 100_000
    os.ftruncate(fd, 10)
    os.pwrite(fd, b"x" * 3_000_000, 5)
    assert os.pread(fd, 4, 2_999_999) == b"xxxx" and os.fstat(fd).st_size == 3_000_005
    os.close(fd)
    with open("size", "ab") as file:
        file.write(b"end")
    assert os.stat("size").st_size == 3_000_008
    os.truncate("size", 0)
    assert os.stat("size").st_size == 0


def many_entries():
    os.mkdir("many")
    for number in range(1500):
        os.close(os.open(f"many/entry-{number}", os.O_CREAT | os.O_WRONLY))
    assert len(set(os.listdir("many"))) == 1500
    for entry in os.scandir("many"):
        assert entry.inode() == os.stat(entry.path).st_ino
        os.unlink(entry.path)
    os.rmdir("many")


def statistics():
    answer = os.statvfs(".")
    assert answer.f_blocks > 0 and answer.f_namemax == 255


def attributes():
    open("x", "w").close()
    os.setxattr("x", "user.key", b"value")
    assert os.getxattr("x", "user.key") == b"value" and os.listxattr("x") == ["user.key"]
    refused(errno.EOPNOTSUPP, lambda: os.setxattr("x", "trusted.key", b"1"))
    os.utime("x", (1, 2))
    assert (os.stat("x").st_atime, os.stat("x").st_mtime) == (1, 2)


def privileges():
    refused(errno.EPERM, lambda: os.mknod("dev", stat.S_IFCHR | 0o666, os.makedev(1, 3)))
    os.mkfifo("fifo")
    open("suid", "w").close()
    os.chmod("suid", 0o6755)
    assert stat.S_IMODE(os.stat("suid").st_mode) == 0o755
    owner = os.stat("suid").st_uid, os.stat("suid").st_gid
    assert owner == (1000, 1000), owner
    os.chown("suid", 1000, 1000)
    refused(errno.EPERM, lambda: os.chown("suid", 0, 0))


def changes_of_a_read_only_export():
    path = os.path.join(read_only, "file")
    assert open(path).read() == "host"
    for action in (
        lambda: open(path, "w"),
        lambda: open(path, "a"),
        lambda: os.truncate(path, 0),
        lambda: os.unlink(path),
        lambda: os.mkdir(path + "d"),
        lambda: os.chmod(path, 0o777),
        lambda: os.rename(path, path + "2"),
        lambda: os.utime(path),
    ):
        refused(errno.EROFS, action)
    assert not os.access(path, os.W_OK) or os.getuid() == 0


def host_edits():
    """The host rewrites `edited` and makes `late` once it sees `ready`."""
    assert open("edited").read() == "before" and not os.path.exists("late")
    open("ready", "w").close()
    deadline = time.monotonic() + 60
    while not (open("edited").read() == "after!" and os.path.exists("late")):
        assert time.monotonic() < deadline, "the host's edits are not seen"
        time.sleep(0.05)


def git():
    """As the workload's user: git refuses a repository of another owner."""
    environment = dict(os.environ, HOME=os.getcwd(), GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b")
    environment.update(GIT_COMMITTER_NAME="a", GIT_COMMITTER_EMAIL="a@b")
    run = lambda *command: subprocess.run(
        command, check=True, env=environment, user=1000, group=1000, extra_groups=[])
    run("git", "init", "-q", "repo")
    run("sh", "-c", "echo content > repo/file")
    run("git", "-C", "repo", "add", ".")
    run("git", "-C", "repo", "commit", "-q", "-m", "m")
    run("git", "clone", "-q", "repo", "copy")
    run("git", "-C", "copy", "fsck", "--strict")
    run("git", "-C", "copy", "gc", "-q")
    assert open("copy/file").read() == "content\n"


checks = (exclusive_0444, links_and_renames, open_and_unlinked, shared_mapping, locks, sqlite_wal,
          sizes, many_entries, statistics, attributes, privileges,
          changes_of_a_read_only_export, host_edits, git)
failed = 0
for check in checks:
    try:
        check()
        print("ok", check.__name__, flush=True)
    except BaseException as error:
        failed += 1
        print("FAILED", check.__name__, repr(error), "line", error.__traceback__.tb_next.tb_lineno, flush=True)
os.sync()
sys.exit(failed)
