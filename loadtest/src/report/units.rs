//! Figures with their units, as people read them. Decimal units: 1 KB is 1000 bytes.

/// `412 us`, `1.23 ms`, `12.3 s`.
pub(crate) fn time_us(us: f64) -> String {
    scaled(us, &[(1e6, "s"), (1e3, "ms"), (1.0, "us")])
}

/// `12.3 MB`.
pub(crate) fn bytes(bytes: f64) -> String {
    scaled(bytes, &[(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B")])
}

/// `160 Mbit/s`, from bytes per second.
pub(crate) fn bandwidth(bytes_per_s: f64) -> String {
    let units = [(1e12, "Tbit/s"), (1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1.0, "bit/s")];
    scaled(bytes_per_s * 8.0, &units)
}

/// `5,000/s`, `12.5/s`.
pub(crate) fn rate(per_s: f64) -> String {
    format!("{}/s", number(per_s))
}

/// `150,000`.
pub(crate) fn count(count: u64) -> String {
    grouped(&count.to_string())
}

/// Three significant digits below 1000, whole above, thousands grouped, no trailing zeros.
pub(crate) fn number(value: f64) -> String {
    if value >= 999.5 { grouped(&format!("{value:.0}")) } else { significant(value) }
}

/// `0.0067 %`. What is less than the whole is never shown as 100 %.
pub(crate) fn share(part: f64) -> String {
    let percent = part * 100.0;
    let text = if (99.0..100.0).contains(&percent) { trimmed(format!("{percent:.3}")) } else { significant(percent) };
    if part < 1.0 && text == "100" { "> 99.999 %".to_owned() } else { format!("{text} %") }
}

/// Units from the largest to the smallest.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let fits = |unit: &&(f64, &str)| value / unit.0 >= 0.9995;
    let (size, unit) = units.iter().find(fits).or(units.last()).unwrap_or(&(1.0, ""));
    format!("{} {unit}", number(value / size))
}

fn significant(value: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 9);
    trimmed(format!("{value:.*}", digits as usize))
}

fn trimmed(text: String) -> String {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_take_the_unit_that_fits() {
        for (us, shown) in [
            (0.0, "0 us"),
            (412.0, "412 us"),
            (999.0, "999 us"),
            (999.9, "1 ms"),
            (1_234.0, "1.23 ms"),
            (300_160.0, "300 ms"),
            (12_345_678.0, "12.3 s"),
            (3_600e6, "3,600 s"),
        ] {
            assert_eq!(time_us(us), shown);
        }
    }

    #[test]
    fn sizes_and_bandwidths_are_decimal() {
        assert_eq!(bytes(2_000.0), "2 KB");
        assert_eq!(bytes(16_384.0), "16.4 KB");
        assert_eq!(bandwidth(20e6), "160 Mbit/s");
        assert_eq!(bandwidth(160e6), "1.28 Gbit/s");
        assert_eq!(bandwidth(0.0), "0 bit/s");
    }

    #[test]
    fn counts_and_rates_are_grouped() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_000), "1,000");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(rate(4_999.7), "5,000/s");
        assert_eq!(rate(12.5), "12.5/s");
        assert_eq!(rate(999.7), "1,000/s");
        assert_eq!(number(0.000_012_3), "0.0000123");
    }

    #[test]
    fn less_than_the_whole_is_not_the_whole() {
        for (part, shown) in [
            (0.0, "0 %"),
            (0.000_067, "0.0067 %"),
            (0.41, "41 %"),
            (0.9998, "99.98 %"),
            (0.999_999_9, "> 99.999 %"),
            (1.0, "100 %"),
            (1.2, "120 %"),
        ] {
            assert_eq!(share(part), shown);
        }
    }
}
