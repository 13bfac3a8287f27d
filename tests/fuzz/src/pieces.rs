//! Splitting an input into the pieces that it may arrive in.

/// A number that depends on every byte (FNV-1a), so that an input is always treated in the same way.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Ways to split `bytes`, each the sizes of its pieces: byte by byte; two halves at any place; many of any size.
pub(crate) fn splits(bytes: &[u8]) -> [Vec<usize>; 3] {
    let length = bytes.len();
    let mut random = digest(bytes) | 1;
    let mut draw = |below: usize| {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below.max(1) as u64) as usize
    };
    let cut = draw(length + 1);
    let mut many = Vec::new();
    let mut left = length;
    while left > 0 {
        let size = (1 + draw(24)).min(left);
        many.push(size);
        left -= size;
    }
    [vec![1; length], vec![cut, length - cut], many]
}
