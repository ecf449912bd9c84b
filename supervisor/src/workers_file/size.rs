//! Sizes in bytes as people write them: `256Mi`, `1GiB`, `512MB`, `1048576`.

const UNITS: [(&str, u64); 15] = [
    ("", 1),
    ("B", 1),
    ("KB", 1_000),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("KiB", 1 << 10),
    ("Mi", 1 << 20),
    ("MiB", 1 << 20),
    ("Gi", 1 << 30),
    ("GiB", 1 << 30),
    ("Ti", 1 << 40),
    ("TiB", 1 << 40),
];

/// Parses a number with an optional unit. `M` alone is refused: to Docker it is 2^20, to
/// Kubernetes 10^6.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.replace('_', "");
    let unit = unit.trim_start();
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        let letter = unit.to_ascii_uppercase();
        if !number.is_empty() && matches!(letter.as_str(), "K" | "M" | "G" | "T") {
            return Err(format!(
                "{text:?} can mean two sizes: write {number}{letter}iB (powers of 1024) or \
                 {number}{letter}B (powers of 1000)"
            ));
        }
        return Err(not_a_size(text));
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole
            .checked_mul(*factor)
            .ok_or_else(|| format!("{text:?} is too large"));
    }
    let Ok(number) = number.parse::<f64>() else {
        return Err(not_a_size(text));
    };
    let bytes = (number * *factor as f64).round();
    // 2^53: up to here every whole number is itself in an f64.
    if bytes > 9_007_199_254_740_992.0 {
        return Err(format!("{text:?} is too large"));
    }
    Ok(bytes as u64)
}

fn not_a_size(text: &str) -> String {
    format!("{text:?} is not a size: write it like 256MiB, 1GiB, 512MB or a number of bytes")
}

/// The shortest way to write a size that [`parse`] reads back.
pub(crate) fn format(bytes: u64) -> String {
    for (unit, size) in [
        ("TiB", 1u64 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ] {
        if bytes != 0 && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn usual_ways() {
        for (text, bytes) in [
            ("256Mi", 256 << 20),
            ("1GiB", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("512MB", 512_000_000),
            ("512 MB", 512_000_000),
            ("1048576", 1 << 20),
            ("1_000", 1_000),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn faults_say_how_to_write_it() {
        for (text, part) in [
            ("512M", "512MiB (powers of 1024) or 512MB"),
            ("2g", "2GiB"),
            ("", "not a size"),
            ("lots", "not a size"),
            ("-1", "not a size"),
            ("1XB", "not a size"),
            ("99999999999TiB", "too large"),
            ("99999999999.5TiB", "too large"),
            ("1.2.3MB", "not a size"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes: u64) {
            prop_assert_eq!(parse(&format(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,20}") {
            prop_assert!(matches!(parse(&text), Ok(_) | Err(_)));
        }
    }
}
