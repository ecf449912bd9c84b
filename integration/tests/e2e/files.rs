//! Host directories as guests see them, and what guests cannot do to them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use iii_actors::spec::UserSpec;
use iii_integration::agent::{Agent, AgentHost, mount};
use iii_integration::program::as_user;
use iii_integration::{Bench, PATIENCE, binaries};
use nix::unistd::{Gid, Uid, chown};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

/// An ordinary user, whom tests that run as root become or work for.
const ORDINARY: u32 = 65534;

/// Attempts whose outcome is a word; runs in the guest.
const SHARED: &str = r#"
import errno, os, stat, subprocess

def outcome(action):
    try:
        action()
        return "done"
    except OSError as error:
        return errno.errorcode.get(error.errno, repr(error))

def write(path, text="text"):
    with open(path, "w") as file:
        file.write(text)

def read(path):
    with open(path) as file:
        return file.read()

def owner(path):
    status = os.lstat(path)
    return [status.st_uid, status.st_gid]

def sh(script):
    done = subprocess.run(["/bin/sh", "-ec", script], capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout.strip()
"#;

/// Whose the test's directories are: an ordinary user's.
fn owner() -> (u32, u32) {
    if Uid::effective().is_root() {
        (ORDINARY, ORDINARY)
    } else {
        (Uid::effective().as_raw(), Gid::effective().as_raw())
    }
}

/// Gives a file to [`owner`]; only root has to.
fn give(path: &Path) {
    if Uid::effective().is_root() {
        let (uid, gid) = owner();
        chown(path, Some(uid.into()), Some(gid.into())).expect("root may do that");
    }
}

struct Scene {
    bench: Bench,
    agent: Agent,
    /// `/data` of the guest.
    data: TempDir,
    /// `/shared` of the guest, read-only.
    _shared: TempDir,
    /// Files that the guest is not shown.
    secret: TempDir,
}

impl Scene {
    async fn open(name: &str, user: Option<UserSpec>) -> Self {
        let agents = AgentHost::bind().await;
        let [data, shared, secret] = [0; 3].map(|_| tempfile::tempdir().expect("there is room"));
        fs::write(shared.path().join("given"), "given").expect("there is room");
        fs::write(secret.path().join("secret"), "secret").expect("there is room");
        for path in [agents.directory(), data.path(), shared.path()] {
            give(path);
        }
        let mut spec = agents.spec(name);
        spec.user = user;
        spec.mounts.push(mount(data.path(), "/data", false));
        spec.mounts.push(mount(shared.path(), "/shared", true));
        let mut bench = Bench::start(vec![spec]).await;
        let mut agent = agents.accept(&mut bench).await;
        agent.run(SHARED).await;
        Self {
            bench,
            agent,
            data,
            _shared: shared,
            secret,
        }
    }

    async fn expect(&mut self, expression: &str, wanted: Value) {
        let got = self.agent.run(&format!("result = {expression}")).await;
        assert_eq!(got, wanted, "{expression}");
    }

    fn host(&self, name: &str) -> PathBuf {
        self.data.path().join(name)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_project_is_the_users_on_the_host_and_the_workloads_in_the_guest() {
    let mut scene = Scene::open("writer", None).await;
    let (uid, gid) = owner();
    fs::write(scene.host("given"), "from the host").expect("there is room");
    give(&scene.host("given"));
    scene
        .expect("read('/data/given')", json!("from the host"))
        .await;
    scene
        .expect("owner('/data/given')", json!([1000, 1000]))
        .await;
    scene.expect("owner('/data')", json!([1000, 1000])).await;
    scene
        .expect(
            "outcome(lambda: write('/data/made', 'by the guest'))",
            json!("done"),
        )
        .await;
    scene
        .expect("owner('/data/made')", json!([1000, 1000]))
        .await;
    scene
        .expect(
            "outcome(lambda: os.chown('/data/made', 1000, 1000))",
            json!("done"),
        )
        .await;
    let made = fs::metadata(scene.host("made")).expect("the guest has made it");
    assert_eq!((made.uid(), made.gid()), (uid, gid));
    let text = fs::read_to_string(scene.host("made")).expect("it is a file");
    assert_eq!(text, "by the guest");

    scene.expect("read('/shared/given')", json!("given")).await;
    for attempt in [
        "write('/shared/given')",
        "write('/shared/new')",
        "os.mkdir('/shared/new')",
        "os.unlink('/shared/given')",
        "os.rename('/shared/given', '/shared/new')",
        "os.chmod('/shared/given', 0o777)",
        "os.utime('/shared/given')",
        "os.symlink('a', '/shared/new')",
    ] {
        scene
            .expect(&format!("outcome(lambda: {attempt})"), json!("EROFS"))
            .await;
    }

    // Symlinks mean what they mean in the guest.
    let secret = scene.secret.path().join("secret");
    let above = Path::new("..")
        .join(scene.secret.path().file_name().expect("it has a name"))
        .join("secret");
    symlink(&secret, scene.host("absolute")).expect("there is room");
    symlink(&above, scene.host("above")).expect("there is room");
    symlink(scene.secret.path(), scene.host("directory")).expect("there is room");
    symlink("/etc/hostname", scene.host("hostname")).expect("there is room");
    for path in ["absolute", "above", "directory/secret"] {
        scene
            .expect(
                &format!("outcome(lambda: read('/data/{path}'))"),
                json!("ENOENT"),
            )
            .await;
    }
    scene
        .expect("os.readlink('/data/absolute')", json!(secret.to_str()))
        .await;
    scene
        .expect(
            "read('/data/hostname') == read('/etc/hostname')",
            json!(true),
        )
        .await;
    scene
        .expect("read('/data/hostname').strip()", json!("writer"))
        .await;
    scene.bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn git_and_sqlite_work_in_a_mounted_directory() {
    let mut scene = Scene::open("tools", None).await;
    let commit = "cd /data\n\
        /usr/bin/git init --quiet --initial-branch=main repository\n\
        cd repository\n\
        git config user.name worker\n\
        git config user.email worker@example.com\n\
        echo one > file; git add file; git commit --quiet -m first\n\
        echo two > file; git commit --quiet -am second\n\
        git gc --quiet\n\
        git fsck --strict\n\
        git status --porcelain\n\
        git log --format=%s";
    let said = scene.agent.text(&format!("result = sh({commit:?})")).await;
    assert_eq!(said, "second\nfirst");
    let file = scene.host("repository/file");
    assert_eq!(fs::read_to_string(file).expect("it is a file"), "two\n");

    // Several processes, so that locks and the shared memory of the WAL are put to use.
    let database = r#"
import sqlite3, sys

WRITER = '''
import sqlite3, sys
base = sqlite3.connect("/data/base.sqlite", timeout=240)
for number in range(50):
    with base:
        base.execute("INSERT INTO counts VALUES (?, ?)", (sys.argv[1], number))
'''

base = sqlite3.connect("/data/base.sqlite", timeout=240)
mode = base.execute("PRAGMA journal_mode=WAL").fetchone()[0]
with base:
    base.execute("CREATE TABLE counts (writer TEXT, number INTEGER)")
writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(n)]) for n in range(3)]
codes = [writer.wait() for writer in writers]
counted = base.execute("SELECT count(*), count(DISTINCT writer) FROM counts").fetchone()
whole = base.execute("PRAGMA integrity_check").fetchone()[0]
shared = os.path.exists("/data/base.sqlite-shm")
base.close()
result = [mode, codes, counted, whole, shared]
"#;
    let told = scene.agent.run(database).await;
    assert_eq!(told, json!(["wal", [0, 0, 0], [150, 3], "ok", true]));
    // The host reads what the guest has written.
    let count = "import sqlite3, sys\n\
        base = sqlite3.connect(f'file:{sys.argv[1]}?immutable=1', uri=True)\n\
        print(base.execute('SELECT count(*) FROM counts').fetchone()[0])";
    let output = Command::new("/usr/bin/python3")
        .args(["-c", count])
        .arg(scene.host("base.sqlite"))
        .output()
        .await
        .expect("python3 is installed");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "150\n",
        "{output:?}"
    );
    scene.bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_of_the_guest_is_nobody_special_on_the_host() {
    let root = UserSpec::Ids { uid: 0, gid: 0 };
    let mut scene = Scene::open("superuser", Some(root)).await;
    let (uid, gid) = owner();
    scene.expect("os.getuid()", json!(0)).await;
    scene
        .expect("outcome(lambda: write('/data/file'))", json!("done"))
        .await;
    let file = scene.host("file");
    let metadata = fs::metadata(&file).expect("the guest has made it");
    assert_eq!((metadata.uid(), metadata.gid()), (uid, gid));

    for device in ["S_IFCHR", "S_IFBLK"] {
        let attempt = format!(
            "outcome(lambda: os.mknod('/data/device', stat.{device} | 0o666, os.makedev(1, 3)))"
        );
        scene.expect(&attempt, json!("EPERM")).await;
    }
    assert!(!scene.host("device").exists());

    // The bits may be asked for; they do not arrive.
    scene
        .agent
        .run(
            "outcome(lambda: os.chmod('/data/file', 0o6755))\n\
             outcome(lambda: os.close(os.open('/data/set-id', os.O_CREAT | os.O_WRONLY, 0o6755)))\n\
             outcome(lambda: os.mknod('/data/set-id-2', stat.S_IFREG | 0o6755))",
        )
        .await;
    for entry in fs::read_dir(scene.data.path()).expect("it is a directory") {
        let entry = entry.expect("it can be listed");
        let mode = entry.metadata().expect("it is there").permissions().mode();
        assert_eq!(
            mode & 0o6000,
            0,
            "{:?} has mode {mode:o}",
            entry.file_name()
        );
    }

    // A capability must be well-formed (capability.h, revision 2), or the guest's own kernel
    // refuses it.
    let capability = "b'\\1\\0\\0\\2' + b'\\xff\\xff\\0\\0' + bytes(12)";
    for (name, value) in [
        ("trusted.overlay.opaque", "b'y'"),
        ("security.capability", capability),
        ("security.other", "b'y'"),
    ] {
        let attempt = format!("os.setxattr('/data/file', '{name}', {value})");
        let attempt = format!("result = outcome(lambda: {attempt})");
        let got = scene.agent.text(&attempt).await;
        assert!(["EOPNOTSUPP", "ENOTSUP"].contains(&&*got), "{name}: {got}");
    }
    let list = "import os, sys; print(os.listxattr(sys.argv[1]))";
    let output = Command::new("/usr/bin/python3")
        .args(["-c", list])
        .arg(&file)
        .output()
        .await
        .expect("python3 is installed");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "[]\n",
        "{output:?}"
    );

    for attempt in [
        "os.chown('/data/file', 1, 1)",
        "os.chown('/data/file', -1, 1)",
    ] {
        scene
            .expect(&format!("outcome(lambda: {attempt})"), json!("EPERM"))
            .await;
    }
    let metadata = fs::metadata(&file).expect("the guest has made it");
    assert_eq!((metadata.uid(), metadata.gid()), (uid, gid));

    // The guest may make its mount writable; the server does not.
    scene
        .agent
        .run("subprocess.run(['/usr/bin/mount', '-o', 'remount,rw', '/shared'], check=True)")
        .await;
    for attempt in ["write('/shared/given')", "os.mkdir('/shared/new')"] {
        scene
            .expect(&format!("outcome(lambda: {attempt})"), json!("EROFS"))
            .await;
    }
    scene.bench.stop().await;
}

const DIRECTORIES: usize = 60;
const FILES_EACH: usize = 1000;

const COUNT: &str = r#"
import os, subprocess

count = 0
for directory, _, names in os.walk("/app/many"):
    for name in names:
        assert os.stat(os.path.join(directory, name)).st_size == 0
        count += 1
print("counted", count)
for program in ("ls", "sort", "uname", "git", "sed", "tar"):
    subprocess.run(["/usr/bin/" + program, "--version"], check=True, stdout=subprocess.DEVNULL)
print("executed all", flush=True)
"#;

const WORKERS: &str = "
workers:
  counter:
    path: ./project
    command: [/usr/bin/python3, -u, count.py]
    restart: never
    vm_restart: never
    network: none
";

/// Copies what an ordinary user needs of this build to where it can be read.
async fn install(directory: &Path) -> PathBuf {
    let bin = directory.join("bin");
    fs::create_dir(&bin).expect("there is room");
    for name in ["iii-super", "iii-shim", "iii-vfs"] {
        fs::copy(binaries().join(name), bin.join(name))
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let bench = Bench::empty().await;
    let library = bench.supervisor.firmware().library();
    fs::copy(library, directory.join("libkrunfw.so")).expect("there is room");
    bench.stop().await;
    bin.join("iii-super")
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_thousand_files_under_4096_descriptors_of_an_ordinary_user() {
    let directory = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir()
        .expect("there is room");
    let program = install(directory.path()).await;
    let project = directory.path().join("project");
    fs::create_dir(&project).expect("there is room");
    fs::write(project.join("count.py"), COUNT).expect("there is room");
    fs::write(directory.path().join("iii.workers.yaml"), WORKERS).expect("there is room");
    for outer in 0..DIRECTORIES {
        let many = project.join("many").join(outer.to_string());
        fs::create_dir_all(&many).expect("there is room");
        for inner in 0..FILES_EACH {
            fs::File::create(many.join(inner.to_string())).expect("there is room");
        }
    }
    let home = directory.path().join("home");
    fs::create_dir(&home).expect("there is room");
    give(&home);

    let limited = "ulimit -n 4096 && exec \"$@\"";
    let mut command = if Uid::effective().is_root() {
        as_user(ORDINARY, &std::process::Command::new("/bin/sh")).into()
    } else {
        Command::new("/bin/sh")
    };
    command
        .args(["-c", limited, "sh"])
        .arg(&program)
        .args(["run", "-f", "iii.workers.yaml"])
        .current_dir(directory.path())
        .env("HOME", &home)
        .env("III_LIBKRUNFW_PATH", directory.path().join("libkrunfw.so"))
        .env_remove("III_HOME")
        .env_remove("III_HELPER_DIR")
        .kill_on_drop(true);
    let output = tokio::time::timeout(5 * PATIENCE, command.output())
        .await
        .expect("it ends")
        .expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    let context = format!("{}\n{said}\n{complaints}", output.status);
    let counted = format!("counted {}", DIRECTORIES * FILES_EACH);
    assert!(said.contains(&counted), "{context}");
    assert!(said.contains("executed all"), "{context}");
    assert!(output.status.success(), "{context}");
}
