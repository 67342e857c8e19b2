//! Amounts as the kubelet writes them: a Kubernetes quantity (`100Mi`, `1.5G`, `1e9`) or a percentage (`5%`).

/// An eviction threshold's amount.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// In the signal's own unit.
    Absolute(f64),
    /// Of the capacity; 0 to 100.
    Percent(f64),
}

/// The amount of this signal. The error says what is wrong with it; the kubelet does not start with one that is wrong.
pub(super) fn amount(signal: &str, text: &str) -> Result<Amount, String> {
    let wrong = || format!("the kubelet's {signal} is `{text}`, which is no amount");
    if let Some(percent) = text.strip_suffix('%') {
        let percent = number(percent).filter(|percent| (0.0..=100.0).contains(percent)).ok_or_else(wrong)?;
        return Ok(Amount::Percent(percent));
    }
    // A threshold must be positive: `0` is refused by the kubelet too.
    quantity(text).filter(|bytes| *bytes > 0.0).map(Amount::Absolute).ok_or_else(wrong)
}

/// apimachinery/pkg/api/resource/quantity.go: a number, then a binary or a decimal suffix or an exponent.
fn quantity(text: &str) -> Option<f64> {
    let split = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (digits, suffix) = text.split_at(split);
    let scale = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            10f64.powi(Some(power).filter(|power| power.abs() <= 18)?)
        }
    };
    Some(number(digits)? * scale)
}

/// Digits with at most one dot: no sign, no `inf`, no `nan`.
fn number(text: &str) -> Option<f64> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let short = text.len() <= 32 && text.bytes().any(|byte| byte.is_ascii_digit());
    if plain && short { text.parse().ok() } else { None }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let text = crate::fuzz::text(bytes);
    crate::fuzz::done(amount("memory.available", &text));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts() {
        for (text, bytes) in [
            ("100Mi", 104_857_600.0),
            ("1.5Gi", 1_610_612_736.0),
            ("500M", 5e8),
            ("1e9", 1e9),
            ("2E", 2e18),
            ("1048576", 1_048_576.0),
            ("100000000000m", 1e8),
        ] {
            assert_eq!(amount("memory.available", text), Ok(Amount::Absolute(bytes)), "{text}");
        }
        assert_eq!(amount("memory.available", "5%"), Ok(Amount::Percent(5.0)));
        assert_eq!(amount("memory.available", "2.5%"), Ok(Amount::Percent(2.5)));
        for wrong in [
            "", "Mi", "-1Gi", "+1Gi", "0", "0Mi", "101%", "-5%", "%", "1.2.3", "1 Gi", "100mb", "inf", "1e99",
        ] {
            assert!(amount("memory.available", wrong).unwrap_err().contains("memory.available"), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_positive_or_an_error(text in "[-+0-9.eEKMGimu%é ]{0,12}") {
            match amount("memory.available", &text) {
                Ok(Amount::Absolute(bytes)) => prop_assert!(bytes > 0.0 && bytes.is_finite()),
                Ok(Amount::Percent(percent)) => prop_assert!((0.0..=100.0).contains(&percent)),
                Err(_) => {}
            }
        }
    }
}
