//! The records of a pax extended header: `LENGTH KEY=VALUE\n`, of which those that a file has are
//! kept.

/// Where writers put extended attributes.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// Of sparse files.
const SPARSE: &[u8] = b"GNU.sparse.";

/// What is said of the next entry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<u64>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: bool,
}

impl Extended {
    pub(super) fn parse(mut records: &[u8]) -> Result<Self, &'static str> {
        let mut found = Self::default();
        // Some writers pad.
        while records.first().is_some_and(|byte| *byte != 0) {
            let (key, value, rest) = record(records).ok_or("a record is malformed")?;
            records = rest;
            match key {
                b"path" => found.path = path(value)?,
                b"linkpath" => found.link_path = path(value)?,
                b"size" => {
                    let size = integer(value).filter(|size| *size <= u64::MAX / 2);
                    found.size = Some(size.ok_or("its size is no number")?);
                }
                b"uid" => found.uid = Some(id(value)?),
                b"gid" => found.gid = Some(id(value)?),
                b"mtime" => found.mtime = Some(time(value)?),
                key if key.starts_with(SPARSE) => found.sparse = true,
                key => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        found.xattrs.retain(|(known, _)| known != name);
                        found.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        Ok(found)
    }
}

/// The first record's key and value, and what follows it.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(integer(&bytes[..blank])?).ok()?;
    let record = bytes.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at(equals);
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, &value[1..], &bytes[length..]))
}

/// An empty value takes back what was said.
fn path(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    if value.contains(&0) {
        return Err("a path holds a NUL");
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn id(value: &[u8]) -> Result<u32, &'static str> {
    integer(value)
        .and_then(|number| number.try_into().ok())
        .ok_or("an owner is no number")
}

/// Whole seconds; what lies before the epoch is the epoch.
fn time(value: &[u8]) -> Result<u64, &'static str> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(value) => (true, value),
        None => (false, value),
    };
    let whole = value.split(|byte| *byte == b'.').next().unwrap_or(value);
    let seconds = integer(whole).ok_or("its time is no number")?;
    Ok(if negative { 0 } else { seconds })
}

fn integer(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0u64, |sum, digit| {
        sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_records() {
        let mut records = Vec::new();
        for (key, value) in [
            (&b"path"[..], &b"a/b"[..]),
            (b"linkpath", b"c\xff"),
            (b"size", b"42"),
            (b"uid", b"70000"),
            (b"gid", b"7"),
            (b"mtime", b"1700000000.25"),
            (b"SCHILY.xattr.user.a", b"x\n=\0"),
            (b"comment", b"nothing"),
        ] {
            records.extend(made(key, value));
        }
        let found = Extended::parse(&records).unwrap();
        let expected = Extended {
            path: Some(b"a/b".to_vec()),
            link_path: Some(b"c\xff".to_vec()),
            size: Some(42),
            uid: Some(70_000),
            gid: Some(7),
            mtime: Some(1_700_000_000),
            xattrs: vec![(b"user.a".to_vec(), b"x\n=\0".to_vec())],
            sparse: false,
        };
        assert_eq!(found, expected);
    }

    fn made(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = [b" ", key, b"=", value, b"\n"].concat();
        let length = (1..)
            .find(|length: &usize| length.to_string().len() + body.len() == *length)
            .unwrap();
        [length.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [
            &b"path=x\n"[..],
            b"99 path=x\n",
            b"5 =x\n",
            b"9 path=x!",
            b"18446744073709551616 path=x\n",
            b"7 size\n",
        ] {
            assert!(Extended::parse(bad).is_err(), "{bad:?}");
        }
        for (key, value) in [
            (&b"path"[..], &b"a\0b"[..]),
            (b"size", b"-1"),
            (b"size", b"18446744073709551615"),
            (b"uid", b"4294967296"),
            (b"mtime", b"soon"),
        ] {
            assert!(Extended::parse(&made(key, value)).is_err(), "{key:?}");
        }
        assert_eq!(
            Extended::parse(&made(b"mtime", b"-5.5")).unwrap().mtime,
            Some(0)
        );
        assert!(
            Extended::parse(&made(b"GNU.sparse.major", b"1"))
                .unwrap()
                .sparse
        );
        assert_eq!(Extended::parse(b"\0\0").unwrap(), Extended::default());
    }
}
