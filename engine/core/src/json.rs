//! JSON strings from bytes of the network (RFC 8259 section 7).

/// Appends `bytes` as the inside of a JSON string (without the quotes), at most `bytes_max` bytes of it as written; what
/// does not fit is cut off between two characters. Bytes that are not UTF-8 become U+FFFD, controls `\u00XX`.
/// Clean ASCII, the usual case, costs one scan and one copy.
#[inline]
pub(crate) fn escape(bytes: &[u8], bytes_max: usize, out: &mut Vec<u8>) {
    let bytes = bytes.get(..bytes_max).unwrap_or(bytes);
    if is_clean(bytes) {
        out.extend_from_slice(bytes);
    } else {
        escape_dirty(bytes, bytes_max, out);
    }
}

/// Whether a JSON string may hold `bytes` as they are, and all of them are ASCII.
#[inline]
fn is_clean(bytes: &[u8]) -> bool {
    // Whole words, the last one overlapping its neighbour, so that there is no loop over single bytes at the end.
    match bytes.last_chunk() {
        Some(last) => bytes.as_chunks().0.iter().fold(dirt(last), |all, word| all | dirt(word)) == 0,
        None => bytes.iter().all(|byte| matches!(byte, b' '..=b'\x7f') && !matches!(byte, b'"' | b'\\')),
    }
}

/// Zero if no byte of the word is a control, a quote, a backslash or not ASCII.
#[inline]
fn dirt(word: &[u8; 8]) -> u64 {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // A byte's top bit stays or becomes 1 where it is not ASCII, or too small for what is subtracted. Borrows reach
    // the next byte only from one that is dirty itself.
    let word = u64::from_ne_bytes(*word);
    let controls = word.wrapping_sub(each(b' '));
    let quotes = (word ^ each(b'"')).wrapping_sub(each(1));
    let backslashes = (word ^ each(b'\\')).wrapping_sub(each(1));
    (word | controls | quotes | backslashes) & each(0x80)
}

#[cold]
#[inline(never)]
fn escape_dirty(bytes: &[u8], bytes_max: usize, out: &mut Vec<u8>) {
    let end = out.len().saturating_add(bytes_max);
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if !push(character, end, out) {
                return;
            }
        }
        if !chunk.invalid().is_empty() && !push_within(b"\\ufffd", end, out) {
            return;
        }
    }
}

fn push(character: char, end: usize, out: &mut Vec<u8>) -> bool {
    match character {
        '"' => push_within(b"\\\"", end, out),
        '\\' => push_within(b"\\\\", end, out),
        '\0'..='\x1f' => {
            let mut escape = *b"\\u0000";
            let [.., high, low] = crate::hex::digits(u64::from(u32::from(character)));
            escape[4..6].copy_from_slice(&[high, low]);
            push_within(&escape, end, out)
        }
        _ => push_within(character.encode_utf8(&mut [0; 4]).as_bytes(), end, out),
    }
}

/// Appends `piece` unless `out` would grow beyond `end`.
fn push_within(piece: &[u8], end: usize, out: &mut Vec<u8>) -> bool {
    let fits = out.len() + piece.len() <= end;
    if fits {
        out.extend_from_slice(piece);
    }
    fits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(bytes: &[u8], bytes_max: usize) -> String {
        let mut out = Vec::new();
        escape(bytes, bytes_max, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_json_forbids_is_escaped() {
        assert_eq!(escaped(b"GET", 100), "GET");
        assert_eq!(escaped(b"a\"b\\c", 100), r#"a\"b\\c"#);
        assert_eq!(escaped(b"\0\t\r\n\x1f\x7f", 100), "\\u0000\\u0009\\u000d\\u000a\\u001f\x7f");
        assert_eq!(escaped("grüße 日本 🦀".as_bytes(), 100), "grüße 日本 🦀");
        assert_eq!(escaped(b"a\xffb\xe6\x97", 100), r"a\ufffdb\ufffd");
    }

    #[test]
    fn a_cut_never_splits_a_character_or_an_escape() {
        assert_eq!(escaped(b"abcdef", 4), "abcd");
        assert_eq!(escaped("aaü".as_bytes(), 3), "aa");
        assert_eq!(escaped("aaü".as_bytes(), 4), "aaü");
        assert_eq!(escaped(b"\x01\x02", 11), "\\u0001");
        assert_eq!(escaped(b"aaa\"", 4), "aaa");
        assert_eq!(escaped(b"\"", 0), "");
    }

    #[test]
    fn a_dirty_byte_is_found_wherever_it_stands() {
        for len in 1..50 {
            for at in 0..len {
                for dirty in [b'"', b'\\', 0, 0x1f, 0x80, 0xff] {
                    let mut bytes = vec![b'x'; len];
                    assert!(is_clean(&bytes));
                    bytes[at] = dirty;
                    assert!(!is_clean(&bytes), "{dirty} at {at} of {len}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_json_parser_reads_what_the_lossy_decoding_says(bytes: Vec<u8>) {
            let text = escaped(&bytes, usize::MAX);
            prop_assert!(text.len() <= bytes.len() * 6);
            let parsed: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
            prop_assert_eq!(parsed, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn a_cut_is_the_start_of_the_whole(bytes: Vec<u8>, bytes_max in 0..200usize) {
            let cut = escaped(&bytes, bytes_max);
            prop_assert!(cut.len() <= bytes_max);
            let parsed: String = serde_json::from_str(&format!("\"{cut}\"")).unwrap();
            let whole = String::from_utf8_lossy(&bytes);
            prop_assert!(whole.starts_with(&parsed));
            prop_assert!(parsed == whole || cut.len() + 6 > bytes_max);
        }
    }
}
