//! Lower-case hexadecimal digits, eight at a time in one register: no table, no branch.

/// The sixteen digits of `value`.
#[inline]
pub(crate) fn digits(value: u64) -> [u8; 16] {
    let (high, low) = (eight((value >> 32) as u32), eight(value as u32));
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

/// Whether all of `bytes` are lower-case digits.
#[inline]
pub(crate) fn is_hex(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |all, byte| all & (byte.is_ascii_digit() | matches!(byte, b'a'..=b'f')))
}

/// The digits of `value` in the bytes of the result, most significant first.
#[inline]
fn eight(value: u32) -> u64 {
    let mut x = u64::from(value);
    x = (x << 16 | x) & 0x0000_ffff_0000_ffff;
    x = (x << 8 | x) & 0x00ff_00ff_00ff_00ff;
    x = (x << 4 | x) & 0x0f0f_0f0f_0f0f_0f0f;
    // One in each byte that holds 10 or more: what a letter needs to be lifted by.
    let letters = (x + 0x0606_0606_0606_0606) >> 4 & 0x0101_0101_0101_0101;
    x + 0x3030_3030_3030_3030 + letters * u64::from(b'a' - b'9' - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn digits_are_those_of_the_standard_library(value: u64) {
            prop_assert_eq!(digits(value).escape_ascii().to_string(), format!("{value:016x}"));
            prop_assert!(is_hex(&digits(value)));
        }
    }

    #[test]
    fn only_lower_case_digits_are_hex() {
        for byte in 0..=u8::MAX {
            let expected = b"0123456789abcdef".contains(&byte);
            assert_eq!(is_hex(&[b'0', byte]), expected, "{byte}");
        }
    }
}
