//! Sizes as people read them, in units of 1,024: `12 MiB`, `1.2 GiB`.

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// Shows a number of bytes: two digits below ten of a unit, whole numbers above.
#[must_use]
pub fn show_size(bytes: u64) -> String {
    let mut unit = 0;
    // In tenths of the unit, so that nothing is lost to floating point.
    let mut tenths = u128::from(bytes) * 10;
    // From 999.5 on it would be shown as 1000.
    while tenths >= 9_995 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1_024;
        unit += 1;
    }
    let name = UNITS[unit];
    if unit > 0 && tenths < 100 {
        return format!("{}.{} {name}", tenths / 10, tenths % 10);
    }
    format!("{} {name}", (tenths + 5) / 10)
}

/// Shows by how much something became larger or smaller: `+12 MiB`, `-3.0 KiB`, `±0 B`.
#[must_use]
pub fn show_size_difference(bytes: i64) -> String {
    let sign = match bytes {
        0 => "±",
        1.. => "+",
        _ => "-",
    };
    format!("{sign}{}", show_size(bytes.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_two_or_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 KiB"),
            (1_536, "1.5 KiB"),
            (12 << 20, "12 MiB"),
            (1_300_000_000, "1.2 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(show_size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn a_difference_has_its_sign() {
        assert_eq!(show_size_difference(12 << 20), "+12 MiB");
        assert_eq!(show_size_difference(-3_072), "-3.0 KiB");
        assert_eq!(show_size_difference(0), "±0 B");
        assert_eq!(show_size_difference(i64::MIN), "-8388608 TiB");
    }
}
