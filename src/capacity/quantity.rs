//! Kubernetes quantities: `4Gi`, `512M`, `1e9`, `1.5Gi`, `128974848000m`.

/// The bytes of a quantity, a fraction rounded up as Kubernetes does; `None` where it is none,
/// is negative, or does not fit.
pub fn parse(text: &str) -> Option<u64> {
    u64::try_from(in_parts(text, 1)?).ok()
}

/// The thousandths of a quantity, as CPU is counted; else as [`parse`].
pub fn milli(text: &str) -> Option<u128> {
    in_parts(text, 1000)
}

/// In parts of which `scale` are a whole, rounded up.
fn in_parts(text: &str, scale: u128) -> Option<u128> {
    let text = text.trim();
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !digits(fraction) || number.len() > 30 {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let digits: u128 = match format!("{whole}{fraction}").as_str() {
        "" => 0,
        text => text.parse().ok()?,
    };
    let mut above = 1u128;
    let mut below = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    match unit(suffix)? {
        Unit::Binary(power) => above = 1 << (10 * power),
        Unit::Decimal(power @ 0..) => above = 10u128.checked_pow(power.unsigned_abs())?,
        Unit::Decimal(power) => {
            below = below.checked_mul(10u128.checked_pow(power.unsigned_abs())?)?;
        }
    }
    let parts = digits.checked_mul(above)?.checked_mul(scale)?;
    Some(parts.div_ceil(below))
}

enum Unit {
    /// A power of 1024.
    Binary(u32),
    /// A power of 10.
    Decimal(i32),
}

fn unit(suffix: &str) -> Option<Unit> {
    Some(match suffix {
        "" => Unit::Decimal(0),
        "n" => Unit::Decimal(-9),
        "u" => Unit::Decimal(-6),
        "m" => Unit::Decimal(-3),
        "k" => Unit::Decimal(3),
        "M" => Unit::Decimal(6),
        "G" => Unit::Decimal(9),
        "T" => Unit::Decimal(12),
        "P" => Unit::Decimal(15),
        "E" => Unit::Decimal(18),
        "Ki" => Unit::Binary(1),
        "Mi" => Unit::Binary(2),
        "Gi" => Unit::Binary(3),
        "Ti" => Unit::Binary(4),
        "Pi" => Unit::Binary(5),
        "Ei" => Unit::Binary(6),
        _ => {
            let power = suffix.strip_prefix(['e', 'E'])?;
            Unit::Decimal(power.parse().ok().filter(|p| (-18..=18).contains(p))?)
        }
    })
}

/// Bytes as a person would write them; exact below 10 KiB.
pub fn shown(n: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("Ti", 1 << 40),
        ("Gi", 1 << 30),
        ("Mi", 1 << 20),
        ("Ki", 1 << 10),
    ];
    match UNITS.iter().find(|(_, size)| n >= 10 * 1024 && n >= *size) {
        Some((unit, size)) => format!("{:.1}{unit}", n as f64 / *size as f64),
        None => format!("{n} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1073741824", Some(1 << 30)),
            ("4Gi", Some(4 << 30)),
            ("512M", Some(512_000_000)),
            ("512Mi", Some(512 << 20)),
            ("1e9", Some(1_000_000_000)),
            ("1E9", Some(1_000_000_000)),
            ("2E", Some(2_000_000_000_000_000_000)),
            ("1.5Gi", Some(3 << 29)),
            (".5k", Some(500)),
            ("5.", Some(5)),
            ("+7", Some(7)),
            ("128974848000m", Some(128_974_848)),
            ("1m", Some(1)),
            ("0.1", Some(1)),
            ("15Ei", Some(15 << 60)),
            ("16Ei", None),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("1e19", None),
            ("-1", None),
            ("", None),
            (".", None),
            ("Gi", None),
            ("4 Gi", None),
            ("4GiB", None),
            ("4gi", None),
            ("1.2.3", None),
            ("1e", None),
            ("٤", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9.eE+KMGTPikmnu-]{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn plain_numbers_are_themselves(bytes: u64) {
            prop_assert_eq!(parse(&bytes.to_string()), Some(bytes));
        }
    }
}
