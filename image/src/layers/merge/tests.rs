//! Layers as other tools write them, and layers that want out.

use std::collections::BTreeMap;

use super::*;
use crate::testing::{Layer, layer};
use ::tar::{EntryType, Header};
use proptest::prelude::*;

struct InMemory;

impl Sink for InMemory {
    type File = Vec<u8>;

    fn store(
        &mut self,
        content: &mut dyn Read,
        size: u64,
        _: &Xattrs,
    ) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; size as usize];
        content.read_exact(&mut bytes).map_err(StoreError::Read)?;
        Ok(bytes)
    }
}

fn merged(layers: &[Layer]) -> Result<Merge<Vec<u8>>, LayerError> {
    let mut merge = Merge::default();
    for layer in layers {
        merge.layer(&layer.0[..], &mut InMemory)?;
    }
    Ok(merge)
}

/// What is in the tree, in words.
fn seen(layers: &[Layer]) -> BTreeMap<String, String> {
    let tree = merged(layers).unwrap().into_tree();
    let mut all = BTreeMap::new();
    let mut pending = vec![(NodeId::ROOT, String::new())];
    while let Some((id, path)) = pending.pop() {
        for (name, child) in tree.node(id).children().into_iter().flatten() {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            let words = match &tree.node(*child).content {
                Content::Directory(_) => {
                    pending.push((*child, path.clone()));
                    "dir".to_owned()
                }
                Content::File(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                Content::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
                Content::CharacterDevice(_) | Content::BlockDevice(_) => "device".to_owned(),
                Content::Fifo => "fifo".to_owned(),
            };
            all.insert(path, words);
        }
    }
    all
}

fn expect(layers: &[Layer], expected: &[(&str, &str)]) {
    let expected: BTreeMap<String, String> = expected
        .iter()
        .map(|(path, words)| ((*path).to_owned(), (*words).to_owned()))
        .collect();
    assert_eq!(seen(layers), expected);
}

fn refused(layers: &[Layer]) -> String {
    merged(layers).unwrap_err().to_string()
}

#[test]
fn upper_layers_replace_add_and_take_away() {
    let lower = || {
        layer()
            .dir("etc/")
            .file("etc/a", "1")
            .file("etc/b", "1")
            .dir("opt/")
            .file("opt/x/y", "1")
    };
    expect(
        &[
            lower(),
            layer()
                .file("./etc/a", "2")
                .file("etc/.wh.b", "")
                .file("/new", "2"),
        ],
        &[
            ("/etc", "dir"),
            ("/etc/a", "2"),
            ("/new", "2"),
            ("/opt", "dir"),
            ("/opt/x", "dir"),
            ("/opt/x/y", "1"),
        ],
    );
    expect(
        &[lower(), layer().file(".wh.opt", "").file(".wh.etc", "")],
        &[],
    );
    // A file for a directory, a directory for a file.
    expect(
        &[
            lower(),
            layer().file("opt", "2").dir("etc/a/").file("etc/a/in", "2"),
        ],
        &[
            ("/etc", "dir"),
            ("/etc/a", "dir"),
            ("/etc/a/in", "2"),
            ("/etc/b", "1"),
            ("/opt", "2"),
        ],
    );
    // A directory's own entry changes it and keeps what is in it.
    let tree = merged(&[layer().file("d/f", "1"), layer().dir("d/")])
        .unwrap()
        .into_tree();
    let found = tree.child(NodeId::ROOT, b"d").unwrap();
    assert_eq!(tree.node(found).attributes.uid, 999);
    assert!(tree.child(found, b"f").is_some());
}

#[test]
fn whiteouts_leave_their_own_layer_alone_in_either_order() {
    let lower = || {
        layer()
            .file("d/low", "1")
            .file("d/s/low", "1")
            .file("f", "1")
    };
    for upper in [
        layer()
            .file("d/.wh..wh..opq", "")
            .file("d/s/new", "2")
            .file("d/new", "2"),
        layer()
            .file("d/new", "2")
            .file("d/s/new", "2")
            .file("d/.wh..wh..opq", ""),
        layer()
            .file("d/new", "2")
            .file(".wh.d", "")
            .file("d/s/new", "2"),
        layer()
            .dir("d/")
            .file("d/new", "2")
            .file("d/s/new", "2")
            .file(".wh.d", ""),
    ] {
        expect(
            &[lower(), upper],
            &[
                ("/d", "dir"),
                ("/d/new", "2"),
                ("/d/s", "dir"),
                ("/d/s/new", "2"),
                ("/f", "1"),
            ],
        );
    }
    for upper in [
        layer().file("f", "2").file(".wh.f", ""),
        layer().file(".wh.f", "").file("f", "2"),
    ] {
        assert_eq!(seen(&[lower(), upper])["/f"], "2");
    }
}

#[test]
fn whiteouts_of_nothing_and_of_what_cannot_be() {
    expect(
        &[layer()
            .file("a/.wh.b", "")
            .file(".wh.c", "")
            .file("x/.wh..wh..opq", "")],
        &[],
    );
    expect(
        &[layer().file(".wh..wh.plnk", "").file("d/.wh..wh.aufs", "")],
        &[],
    );
    for name in [".wh.", ".wh..", ".wh..."] {
        let error = refused(&[layer().file(name, "")]);
        assert!(error.contains("takes away no file"), "{name}: {error}");
    }
}

#[test]
fn hard_links_are_one_file_until_one_of_them_is_replaced() {
    let tree = merged(&[
        layer()
            .file("a", "1")
            .link("b", "a")
            .link("d/c", "/b")
            .symlink("s", "a")
            .link("t", "s"),
        layer().file("a", "2"),
    ])
    .unwrap()
    .into_tree();
    let at = |path: &[u8]| tree.child(NodeId::ROOT, path).unwrap();
    let c = tree.child(at(b"d"), b"c").unwrap();
    assert_eq!(at(b"b"), c);
    assert_ne!(at(b"a"), c);
    assert!(matches!(&tree.node(c).content, Content::File(bytes) if bytes == b"1"));
    // A link to a symbolic link is that link.
    assert_eq!(at(b"s"), at(b"t"));
    for (bad, expected) in [
        (layer().link("l", "missing"), "not there"),
        (layer().dir("d/").link("l", "d"), "is a directory"),
        (layer().link("l", "../../etc/shadow"), "`..`"),
        (layer().link("l", "/"), "not there"),
        (layer().link("l", ""), "not there"),
        (layer().file("f", "").link("l", "f/x"), "not there"),
    ] {
        let error = refused(&[bad]);
        assert!(
            error.contains(expected) && error.contains("\"l\""),
            "{error}"
        );
    }
}

#[test]
fn a_directory_behind_a_link_is_found_within_the_tree() {
    expect(
        &[
            layer()
                .dir("usr/bin/")
                .symlink("bin", "usr/bin")
                .symlink("out", "../../../outside"),
            layer()
                .file("bin/tool", "2")
                .file("out/f", "2")
                .file("bin/.wh.none", ""),
            layer()
                .symlink("abs", "/usr/./bin/../lib")
                .file("abs/so", "3"),
        ],
        &[
            ("/abs", "-> /usr/./bin/../lib"),
            ("/bin", "-> usr/bin"),
            ("/out", "-> ../../../outside"),
            ("/outside", "dir"),
            ("/outside/f", "2"),
            ("/usr", "dir"),
            ("/usr/bin", "dir"),
            ("/usr/bin/tool", "2"),
            ("/usr/lib", "dir"),
            ("/usr/lib/so", "3"),
        ],
    );
    // The last name is never followed: it is replaced.
    expect(
        &[
            layer().symlink("passwd", "/etc/passwd"),
            layer().file("passwd", "2"),
        ],
        &[("/passwd", "2")],
    );
    expect(
        &[
            layer().dir("usr/bin/").symlink("bin", "usr/bin"),
            layer().file(".wh.bin", ""),
        ],
        &[("/usr", "dir"), ("/usr/bin", "dir")],
    );
}

#[test]
fn what_wants_out_or_up_is_refused() {
    for path in ["../x", "a/../../x", "/..", "a/.."] {
        let error = refused(&[layer().file(path, "")]);
        assert!(error.contains("`..`") && error.contains(path), "{error}");
    }
    for (bad, expected) in [
        (
            layer().symlink("a", "b").symlink("b", "a").file("a/x", ""),
            "too many links",
        ),
        (layer().file("a", "").file("a/b", ""), "no directory"),
        (layer().symlink("a", "").file("b", ""), "target"),
        (layer().file(".", ""), "root"),
        (layer().symlink("/", "x"), "root"),
    ] {
        let error = refused(&[bad]);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn devices_are_numbers_and_attributes_are_kept_if_a_guest_may_see_them() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Char);
    header.set_path("dev/console").unwrap();
    header.set_device_major(5).unwrap();
    header.set_device_minor(1).unwrap();
    header.set_size(0);
    header.set_mode(0o600);
    header.set_cksum();
    builder
        .append_pax_extensions([
            ("SCHILY.xattr.user.note", &b"x"[..]),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .unwrap();
    builder.append(&header, &b""[..]).unwrap();
    let merge = merged(&[Layer(builder.into_inner().unwrap())]).unwrap();
    assert_eq!(merge.left_out(), 1);
    let tree = merge.into_tree();
    let dev = tree.child(NodeId::ROOT, b"dev").unwrap();
    let console = tree.node(tree.child(dev, b"console").unwrap());
    let (major, minor) = (5, 1);
    assert!(matches!(console.content, Content::CharacterDevice(d) if d == Device { major, minor }));
    assert!(console.xattrs.clone().set(b"user.note", b"x").is_ok());
}

/// One entry of a random layer.
fn step() -> impl Strategy<Value = (u8, String, String)> {
    let name = prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just(".wh.a".to_owned()),
        Just(".wh.b".to_owned()),
        Just(".wh..wh..opq".to_owned()),
        Just("..".to_owned()),
        Just("".to_owned()),
    ];
    let path = prop::collection::vec(name, 1..5).prop_map(|names| names.join("/"));
    (0u8..6, path.clone(), path)
}

fn random(steps: &[(u8, String, String)]) -> Layer {
    steps
        .iter()
        .fold(layer(), |layer, (kind, path, other)| match kind {
            0 => layer.dir(path),
            1 => layer.file(path, "x"),
            2 => layer.symlink(path, other),
            3 => layer.symlink(path, &format!("/{other}")),
            4 => layer.link(path, other),
            _ => layer.entry(path, EntryType::Fifo, "", b""),
        })
}

proptest! {
    #[test]
    fn any_layers_are_merged_or_refused(
        layers in prop::collection::vec(prop::collection::vec(step(), 0..12), 0..4),
    ) {
        // Entries one by one, so that a refused one does not hide what follows it.
        let mut merge = Merge::default();
        for steps in &layers {
            for step in steps {
                let bytes = random(std::slice::from_ref(step)).0;
                drop(merge.layer(&bytes[..], &mut InMemory));
            }
            drop(merge.layer(&random(steps).0[..], &mut InMemory));
        }
        let tree = merge.into_tree();
        let mut pending = vec![NodeId::ROOT];
        let mut seen = std::collections::HashSet::new();
        while let Some(id) = pending.pop() {
            for (name, child) in tree.node(id).children().into_iter().flatten() {
                prop_assert!(!matches!(&**name, b"" | b"." | b".."));
                if tree.node(*child).children().is_some() {
                    prop_assert!(seen.insert(*child), "a directory has one name");
                    pending.push(*child);
                }
            }
        }
    }
}
