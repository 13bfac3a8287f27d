//! Sets of bytes, made by the compiler: one load tells whether a byte belongs.

pub(crate) struct ByteSet([bool; 256]);

impl ByteSet {
    /// ASCII letters and digits, and the bytes of `more`.
    #[allow(clippy::indexing_slicing)] // evaluated by the compiler: an index out of bounds does not build
    pub(crate) const fn alphanumeric_and(more: &[u8]) -> Self {
        let mut set = [false; 256];
        let mut byte = 0;
        while byte < set.len() {
            set[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let mut at = 0;
        while at < more.len() {
            set[more[at] as usize] = true;
            at += 1;
        }
        Self(set)
    }

    #[inline]
    pub(crate) fn contains(&self, byte: u8) -> bool {
        self.0.get(usize::from(byte)).copied().unwrap_or(false)
    }

    #[inline]
    pub(crate) fn contains_all(&self, bytes: &[u8]) -> bool {
        // Without an early end: good bytes are the rule, and a branch for each would cost more.
        bytes.iter().fold(true, |all, byte| all & self.contains(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_it_was_made_of() {
        static SET: ByteSet = ByteSet::alphanumeric_and(b"-_\xff");
        for byte in 0..=u8::MAX {
            assert_eq!(SET.contains(byte), byte.is_ascii_alphanumeric() || b"-_\xff".contains(&byte), "{byte}");
        }
        assert!(SET.contains_all(b"") && SET.contains_all(b"a-1") && !SET.contains_all(b"a b"));
    }
}
