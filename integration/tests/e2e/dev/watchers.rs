//! Those who watch files in the guest see what the host has changed.

use super::Project;

/// Says what Node's own watcher says.
const NODE: &str = "
const fs = require('fs');
fs.mkdirSync('/app/sub', {recursive: true});
for (const name of ['/app', '/app/sub'])
  fs.watch(name, (type, file) => console.log('dir', name, type, file));
fs.watch('/app/sub/file.txt', (type) => console.log('file', type, fs.readFileSync('/app/sub/file.txt', 'utf8')));
console.log('watching');
";

#[test]
fn watchers_of_node_see_files_that_change_come_and_go() {
    let project = Project::new("watched", &[("index.js", NODE), ("sub/file.txt", "old")]);
    let mut dev = project.dev(&["--no-restart"]);
    let at = dev.line(0, "watching");
    project.write("sub/file.txt", "new content");
    dev.line(at, "file change new content");
    dev.line(at, "dir /app/sub change file.txt");
    // A file that is new is named by its directory's watcher.
    project.write("sub/came.txt", "x");
    dev.line(at, "dir /app/sub change came.txt");
    // Of one that is gone, its directory is told of, which Node calls a rename.
    std::fs::remove_file(project.path("sub/came.txt")).unwrap();
    dev.line(at, "dir /app/sub rename sub");
    dev.quit();
    assert!(dev.count("workload-started") == 1, "{}", dev.story());
    let told = dev.event(0, "source-changed");
    assert_eq!(dev.told[told]["action"], "told");
}

#[test]
fn a_program_that_watches_by_itself_is_left_to_do_so() {
    let package = r#"{"scripts": {"dev": "node --watch index.js"}}"#;
    let index = "console.log('version 1'); setInterval(() => {}, 1e6)\n";
    let project = Project::new("itself", &[("package.json", package), ("index.js", index)]);
    let mut dev = project.dev(&[]);
    let found = dev.event(0, "project-found");
    assert_eq!(dev.told[found]["watches_itself"], "node");
    assert_eq!(dev.told[found]["restarts"], false);
    let first = dev.line(0, "version 1");
    // In its place: Node watches the file itself, not its name.
    project.write("index.js", &index.replace("version 1", "version 2"));
    let second = dev.line(first, "version 2");
    assert_eq!(dev.count("workload-started"), 1, "{}", dev.story());
    // A new file under its name: nothing that Node could see.
    project.save("index.js", &index.replace("version 1", "version 3"));
    dev.line(second, "version 3");
    dev.quit();
    assert_eq!(dev.count("workload-started"), 2, "{}", dev.story());
}

/// inotify(7) without a library, as Python's watchdog uses it.
const PYTHON: &str = "
import ctypes, os, struct
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
IN_MODIFY, IN_ATTRIB, IN_CREATE, IN_DELETE = 2, 4, 0x100, 0x200
libc.inotify_add_watch(fd, b'/app', IN_MODIFY | IN_ATTRIB | IN_CREATE | IN_DELETE)
print('watching', flush=True)
while True:
    data = os.read(fd, 4096)
    while data:
        _, mask, _, length = struct.unpack('iIII', data[:16])
        print('mask', hex(mask), data[16:16 + length].rstrip(b'\\0').decode(), flush=True)
        data = data[16 + length:]
";

#[test]
fn watchers_of_inotify_see_an_attribute_that_changes() {
    let project = Project::new("inotify", &[("main.py", PYTHON), ("data.txt", "old")]);
    let mut dev = project.dev(&["--no-restart"]);
    let at = dev.line(0, "watching");
    project.save("data.txt", "new");
    dev.line(at, "mask 0x4 data.txt");
    dev.quit();
}
