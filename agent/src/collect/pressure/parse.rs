//! The text of a pressure file. `procfs` has a parser, which panics on some malformed files and refuses a CPU file
//! with only a `some` line.

use super::{Stall, Stalls};

/// Which lines a file must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// `some`; `full` where the kernel has it (the CPU's).
    Some,
    /// Both.
    Both,
    /// `full` alone (interrupts).
    Full,
}

/// Parses `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`. The error says what is wrong, in words.
pub(crate) fn stalls(text: &str, wanted: Wanted) -> Result<Stalls, String> {
    let mut stalls = Stalls { some: None, full: None };
    for line in text.split_inclusive('\n') {
        // A line that was cut has a total that is too small by powers of ten.
        let Some(line) = line.strip_suffix('\n') else { return Err(format!("the line `{line}` was cut")) };
        let (kind, fields) =
            line.split_once(' ').ok_or_else(|| format!("the line `{line}` has no fields"))?;
        let place = match kind {
            "some" => &mut stalls.some,
            "full" => &mut stalls.full,
            _ => return Err(format!("the line `{line}` begins with neither `some` nor `full`")),
        };
        if place.replace(stall(fields)?).is_some() {
            return Err(format!("there are two lines `{kind}`"));
        }
    }
    let missing = match wanted {
        Wanted::Some | Wanted::Both if stalls.some.is_none() => Some("some"),
        Wanted::Full | Wanted::Both if stalls.full.is_none() => Some("full"),
        _ => None,
    };
    match missing {
        Some(line) => Err(format!("there is no line `{line}`")),
        None => Ok(stalls),
    }
}

fn stall(fields: &str) -> Result<Stall, String> {
    let mut words = fields.split(' ');
    let mut next = |key: &str| {
        words
            .next()
            .and_then(|word| word.strip_prefix(key)?.strip_prefix('='))
            .ok_or_else(|| format!("`{key}=` is missing in `{fields}`"))
    };
    let averages = [percent(next("avg10")?)?, percent(next("avg60")?)?, percent(next("avg300")?)?];
    let [avg10, avg60, avg300] = averages;
    let total = next("total")?;
    let micros: u64 = Some(total)
        .filter(|total| total.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|total| total.parse().ok())
        .ok_or_else(|| format!("`total={total}` is no number of microseconds"))?;
    if words.next().is_some() {
        return Err(format!("there is more than expected in `{fields}`"));
    }
    // Exact to the microsecond for 285 years of stalls.
    Ok(Stall { avg10, avg60, avg300, total_seconds: micros as f64 / 1e6 })
}

/// The kernel prints whole percents, a dot, two digits.
fn percent(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is no percentage");
    let (whole, hundredths) = text.split_once('.').ok_or_else(wrong)?;
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(hundredths) || hundredths.len() != 2 {
        return Err(wrong());
    }
    text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.1.192, Debian 12, in a node under memory pressure.
    const MEMORY: &str = include_str!("../../../fixtures/pressure/linux-6.1.192-memory.txt");

    #[test]
    fn the_recorded_file() {
        let stalls = stalls(MEMORY, Wanted::Both).unwrap();
        let some = Stall { avg10: 0.07, avg60: 0.29, avg300: 0.09, total_seconds: 1.295_654 };
        let full = Stall { avg10: 0.06, avg60: 0.23, avg300: 0.07, total_seconds: 1.001_962 };
        assert_eq!(stalls, Stalls { some: Some(some), full: Some(full) });
    }

    #[test]
    fn a_cpu_file_up_to_linux_5_10_has_no_full_line() {
        let some = MEMORY.split_inclusive('\n').next().unwrap();
        assert_eq!(stalls(some, Wanted::Some).unwrap().full, None);
        assert!(stalls(some, Wanted::Both).unwrap_err().contains("full"));
        assert!(stalls(some, Wanted::Full).is_err());
        assert!(stalls("", Wanted::Some).is_err());
    }

    proptest! {
        #[test]
        fn a_cut_file_is_an_error(cut in 0..MEMORY.len()) {
            prop_assert!(stalls(&MEMORY[..cut], Wanted::Both).is_err());
        }

        #[test]
        fn a_flipped_byte_gives_a_value_or_an_error(at in 0..MEMORY.len(), byte: u8) {
            let mut bytes = MEMORY.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes)
                && let Ok(stalls) = stalls(&text, Wanted::Both)
            {
                for stall in [stalls.some.unwrap(), stalls.full.unwrap()] {
                    // Never a false zero: each figure of the recording has at least two digits that are not 0.
                    prop_assert!(stall.total_seconds > 0.0);
                    prop_assert!((0.0..=100.0).contains(&stall.avg10));
                }
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "(some|full)? ?(avg10=)?[0-9.a-z= ]{0,60}\n?") {
            for wanted in [Wanted::Some, Wanted::Both, Wanted::Full] {
                stalls(&text, wanted).ok();
            }
        }
    }
}
