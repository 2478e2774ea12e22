//! Amounts as people read them. Knows no command.

use std::time::Duration;

/// `17 B`, `1.5 kB`, `20.0 MB`: three digits at most, decimal prefixes.
pub(crate) fn bytes(bytes: u64) -> String {
    const PREFIXES: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // Integers only: the remainder of the last division gives the one decimal.
    let (mut whole, mut rest, mut prefix) = (bytes / 1000, bytes % 1000, 0);
    while whole >= 1000 {
        rest = whole % 1000;
        whole /= 1000;
        prefix += 1;
    }
    if whole < 100 {
        format!("{whole}.{} {}", rest / 100, PREFIXES[prefix])
    } else {
        format!("{whole} {}", PREFIXES[prefix])
    }
}

/// `5 s`, `3 m 12 s`, `2 h 5 m`, `4 d 3 h`: the two largest units.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} m {} s", seconds % 60),
        (0, ..) => format!("{hours} h {} m", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_at_most() {
        let shown = [0, 999, 1_000, 1_550, 99_999, 123_456, 20_000_000, u64::MAX].map(bytes);
        assert_eq!(
            shown,
            [
                "0 B", "999 B", "1.0 kB", "1.5 kB", "99.9 kB", "123 kB", "20.0 MB", "18.4 EB"
            ]
        );
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let shown = [0, 59, 192, 7_500, 356_400].map(|s| duration(Duration::from_secs(s)));
        assert_eq!(shown, ["0 s", "59 s", "3 m 12 s", "2 h 5 m", "4 d 3 h"]);
    }
}
