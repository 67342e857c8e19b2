//! Instants and durations for people. All in UTC, as the cluster's own logs are.

use jiff::{SignedDuration, Timestamp};

/// `03:14:42`; with the date (`11-20 23:58:01`) where it is not `now`'s day.
pub fn clock(at: Timestamp, now: Timestamp) -> String {
    let same_day = at.strftime("%Y-%m-%d").to_string() == now.strftime("%Y-%m-%d").to_string();
    let format = if same_day { "%H:%M:%S" } else { "%m-%d %H:%M:%S" };
    at.strftime(format).to_string()
}

/// The time that passed: `0.4 s`, `51s`, `4m12s`, `2h05m`, `12d3h`. Never negative: a clock that was stepped back
/// gives `0s`.
pub fn lasted(from: Timestamp, to: Timestamp) -> String {
    age(to.duration_since(from))
}

/// A duration as [`lasted`] writes it.
pub fn age(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours}h"),
    }
}

/// A short stretch with its tenths: `0.4 s`, `44 s`, `2m03s`.
pub fn seconds(duration: SignedDuration) -> String {
    let seconds = duration.as_secs_f64().max(0.0);
    if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else if seconds < 100.0 {
        format!("{seconds:.0} s")
    } else {
        age(duration)
    }
}

/// `00:07`, `02:41`, `3h05m`, `12d3h`: minutes and seconds in a column of five.
pub fn column(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    if seconds < 3600 { format!("{:02}:{:02}", seconds / 60, seconds % 60) } else { age(duration) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_read_as_people_say_them() {
        let of = SignedDuration::from_secs;
        assert_eq!(age(of(51)), "51s");
        assert_eq!(age(of(252)), "4m12s");
        assert_eq!(age(of(7_500)), "2h05m");
        assert_eq!(age(of(12 * 86_400 + 3 * 3600)), "12d3h");
        assert_eq!(age(of(-4)), "0s");
        assert_eq!(seconds(SignedDuration::from_millis(412)), "0.4 s");
        assert_eq!(seconds(of(44)), "44 s");
        assert_eq!(seconds(of(123)), "2m03s");
        assert_eq!(column(of(161)), "02:41");
    }

    #[test]
    fn another_day_is_said() {
        let now: Timestamp = "2026-11-21T03:17:54Z".parse().unwrap();
        assert_eq!(clock("2026-11-21T03:14:42Z".parse().unwrap(), now), "03:14:42");
        assert_eq!(clock("2026-11-20T23:58:01Z".parse().unwrap(), now), "11-20 23:58:01");
    }
}
