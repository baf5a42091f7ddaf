//! Durations as people read them.

use std::time::Duration;

/// Shows a duration in its one or two largest units: `5m 3s`, `2h 1m`, `90d`. Below a second: `120ms`.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        return format!("{}ms", duration.subsec_millis());
    }
    let units = [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)];
    let first = units
        .iter()
        .position(|(_, size)| seconds >= *size)
        .unwrap_or(units.len() - 1);
    let (name, size) = units[first];
    let rest = units
        .get(first + 1)
        .map(|(name, of)| (seconds % size / of, name))
        .filter(|(count, _)| *count > 0)
        .map_or_else(String::new, |(count, name)| format!(" {count}{name}"));
    format!("{}{name}{rest}", seconds / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_shown_in_its_largest_units() {
        for (ms, text) in [
            (120, "120ms"),
            (1_900, "1s"),
            (303_000, "5m 3s"),
            (300_000, "5m"),
            (7_260_000, "2h 1m"),
            (7_205_000, "2h"),
            (90 * 86_400_000, "90d"),
        ] {
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
    }
}
