//! Archives that others wrote, and archives that nobody should.

use super::*;
use proptest::prelude::*;

/// A header as POSIX.1-1988 has it.
fn header(name: &[u8], kind: u8, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; RECORD];
    bytes[..name.len()].copy_from_slice(name);
    bytes[100..108].copy_from_slice(b"0004755\0");
    bytes[108..116].copy_from_slice(b"0001747\0");
    bytes[116..124].copy_from_slice(b"0001750\0");
    bytes[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    bytes[136..148].copy_from_slice(b"14524770400\0");
    bytes[156] = kind;
    bytes[257..265].copy_from_slice(b"ustar\x0000");
    summed(bytes)
}

fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[148..156].copy_from_slice(b"        ");
    let sum: u64 = bytes.iter().map(|byte| u64::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(RECORD), 0);
    bytes
}

fn member(name: &[u8], kind: u8, content: &[u8]) -> Vec<u8> {
    let size = content.len() as u64;
    [header(name, kind, size), padded(content.to_vec())].concat()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let length = (1..)
            .find(|length: &usize| length.to_string().len() + rest.len() == *length)
            .unwrap();
        body.extend([length.to_string().as_bytes(), &rest].concat());
    }
    member(b"PaxHeaders/x", b'x', &body)
}

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut archive = Archive::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = archive.next_entry()? {
        let mut content = Vec::new();
        archive.read_to_end(&mut content)?;
        all.push((entry, content));
    }
    Ok(all)
}

fn one(bytes: &[u8]) -> Entry {
    let mut all = read(bytes).unwrap();
    assert_eq!(all.len(), 1);
    all.remove(0).0
}

#[test]
fn golden_header() {
    let all = read(&member(b"usr/bin/sudo", b'0', b"program")).unwrap();
    let expected = Entry {
        path: b"usr/bin/sudo".to_vec(),
        kind: EntryKind::File,
        mode: 0o4755,
        uid: 999,
        gid: 1000,
        mtime: 1_700_000_000,
        size: 7,
        xattrs: Vec::new(),
    };
    assert_eq!(all, [(expected, b"program".to_vec())]);
}

#[test]
fn every_kind_of_entry() {
    let mut bytes = header(b"l", b'1', 0);
    bytes[157..163].copy_from_slice(b"target");
    let bytes = summed(bytes);
    assert_eq!(one(&bytes).kind, EntryKind::HardLink(b"target".to_vec()));
    let mut symlink = bytes.clone();
    symlink[156] = b'2';
    assert_eq!(
        one(&summed(symlink)).kind,
        EntryKind::Symlink(b"target".to_vec())
    );
    let mut device = header(b"d", b'3', 0);
    device[329..337].copy_from_slice(b"0000005\0");
    device[337..345].copy_from_slice(b"0000001\0");
    let (major, minor) = (5, 1);
    assert_eq!(
        one(&summed(device.clone())).kind,
        EntryKind::CharacterDevice { major, minor }
    );
    device[156] = b'4';
    assert_eq!(
        one(&summed(device)).kind,
        EntryKind::BlockDevice { major, minor }
    );
    assert_eq!(one(&header(b"p", b'6', 0)).kind, EntryKind::Fifo);
    // A directory's size is none of content.
    assert_eq!(one(&header(b"d/", b'5', 4096)).kind, EntryKind::Directory);
    assert_eq!(one(&header(b"old/", 0, 0)).kind, EntryKind::Directory);
    assert_eq!(one(&header(b"old", 0, 0)).kind, EntryKind::File);
}

#[test]
fn long_names_in_all_notations() {
    let mut prefixed = header(b"name", b'0', 0);
    prefixed[345..348].copy_from_slice(b"a/b");
    assert_eq!(one(&summed(prefixed)).path, b"a/b/name");
    let long = vec![b'n'; 3000];
    let gnu = [
        member(b"././@LongLink", b'K', &[&long[..], b"\0"].concat()),
        member(
            b"././@LongLink",
            b'L',
            &[b"dir/", &long[..], b"\0"].concat(),
        ),
        header(b"short", b'2', 0),
    ]
    .concat();
    let entry = one(&gnu);
    assert_eq!(entry.path, [b"dir/", &long[..]].concat());
    assert_eq!(entry.kind, EntryKind::Symlink(long.clone()));
    let extended = [
        member(
            b"pax_global_header",
            b'g',
            b"52 comment=0123456789012345678901234567890123456789\n",
        ),
        pax(&[
            ("path", &long),
            ("uid", b"4000000000"),
            ("gid", b"70000"),
            ("mtime", b"1.5"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02"),
        ]),
        header(b"short", b'0', 0),
    ]
    .concat();
    let entry = one(&extended);
    assert_eq!(
        (entry.path, entry.uid, entry.gid, entry.mtime),
        (long, 4_000_000_000, 70_000, 1)
    );
    assert_eq!(
        entry.xattrs,
        [(b"security.capability".to_vec(), b"\x01\0\0\x02".to_vec())]
    );
}

#[test]
fn a_size_is_taken_from_one_place() {
    // The header says 0 and the record 600: readers that skip by the former read content as
    // headers, which is how one archive becomes two.
    let smuggled = header(b"smuggled", b'0', 0);
    let mut content = smuggled.clone();
    content.resize(600, b'x');
    let bytes = [
        pax(&[("size", b"600")]),
        header(b"real", b'0', 0),
        padded(content.clone()),
        header(b"next", b'0', 0),
    ]
    .concat();
    let all = read(&bytes).unwrap();
    let names: Vec<&[u8]> = all.iter().map(|(entry, _)| &entry.path[..]).collect();
    assert_eq!(names, [&b"real"[..], b"next"]);
    assert_eq!(all[0].1, content);
}

#[test]
fn extensions_are_bounded_before_they_are_read() {
    for kind in [b'x', b'L', b'K'] {
        let error = read(&header(b"x", kind, MAX_EXTENSION + 1)).unwrap_err();
        assert!(
            matches!(error, TarError::ExtensionSize { at: 0, .. }),
            "{error}"
        );
        let error = read(&header(b"x", kind, MAX_EXTENSION)).unwrap_err();
        assert!(matches!(error, TarError::Truncated(_)), "{error}");
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    let sound = member(b"file", b'0', &[7; 700]);
    for cut in [1, 511, 513, 1024, 1500] {
        assert!(read(&sound[..cut]).is_err(), "{cut}");
    }
    assert!(matches!(
        read(&[b'a'; 600]),
        Err(TarError::Header { at: 0, .. })
    ));
    let mut wrong = sound.clone();
    wrong[0] ^= 1;
    let error = read(&wrong).unwrap_err();
    assert!(
        error.to_string().contains("is this a tar archive?"),
        "{error}"
    );
    for (kind, what) in [(b'S', "sparse"), (b'M', "type"), (b'V', "type")] {
        let error = read(&header(b"x", kind, 0)).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    let sparse = [pax(&[("GNU.sparse.major", b"1")]), header(b"x", b'0', 0)].concat();
    assert!(matches!(read(&sparse), Err(TarError::Unsupported { .. })));
    let mut huge = header(b"x", b'0', 0);
    huge[124..136].copy_from_slice(&[
        0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ]);
    assert!(matches!(read(&summed(huge)), Err(TarError::Header { .. })));
}

#[test]
fn the_end_is_the_end_and_the_rest_is_passed_over() {
    let bytes = [
        member(b"a", b'0', b"x"),
        vec![0; 1024],
        member(b"behind", b'0', b"y"),
    ]
    .concat();
    assert_eq!(one(&bytes).path, b"a");
    let rest = Archive::new(&bytes[..]).finish().unwrap();
    assert!(rest.is_empty(), "a digest covers all of it");
    assert!(read(b"").unwrap().is_empty());
}

/// What the `tar` crate writes is read as it was meant.
fn written(files: &[(String, Vec<u8>, u32, u64)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (path, content, mode, owner) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_uid(*owner);
        header.set_gid(*owner / 2);
        header.set_mtime(*owner);
        builder
            .append_data(&mut header, path, &content[..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

proptest! {
    #[test]
    fn what_others_write_is_read(
        files in prop::collection::vec(
            (
                "[a-z]{1,80}(/[a-z]{1,80}){0,3}",
                prop::collection::vec(any::<u8>(), 0..1500),
                0u32..0o10000,
                0u64..u64::from(u32::MAX),
            ),
            0..12,
        ),
    ) {
        let all = read(&written(&files)).unwrap();
        prop_assert_eq!(all.len(), files.len());
        for ((entry, content), (path, expected, mode, owner)) in all.iter().zip(&files) {
            prop_assert_eq!(&entry.path, path.as_bytes());
            prop_assert_eq!(content, expected);
            prop_assert_eq!(u32::from(entry.mode), *mode);
            prop_assert_eq!(u64::from(entry.uid), *owner);
            prop_assert_eq!(entry.mtime, *owner);
        }
    }

    #[test]
    fn any_bytes_are_survived(
        start in prop::collection::vec(any::<u8>(), 0..2000),
        kind in any::<u8>(),
        size in any::<u64>(),
    ) {
        drop(read(&start));
        let bytes = [header(b"x", kind, size & 0x1_ffff_ffff), start].concat();
        drop(read(&bytes));
    }

    #[test]
    fn a_flipped_bit_is_survived(at in 0usize..3000, bit in 0u8..8) {
        let files = [("a/b".to_owned(), vec![1; 700], 0o644, 5), ("n".repeat(200), vec![2; 5], 0, 0)];
        let mut bytes = written(&files);
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        drop(read(&bytes));
    }
}
