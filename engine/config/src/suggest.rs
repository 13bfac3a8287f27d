//! "Did you mean".

/// The one of `known` that `word` was probably meant to be.
pub(crate) fn closest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let plain = |word: &str| word.to_ascii_lowercase().replace('-', "_");
    let wanted = plain(word);
    let allowed = (wanted.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&wanted, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= allowed && *distance < wanted.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// The hint for a word that is not one of `known`: the closest, else all of them.
pub(crate) fn hint(word: &str, known: &[&str], what: &str) -> Option<String> {
    if let Some(candidate) = closest(word, known.iter().copied()) {
        return Some(format!("did you mean `{candidate}`?"));
    }
    const SHOWN_MAX: usize = 20;
    match known.len() {
        0 => None,
        count => {
            let more = if count > SHOWN_MAX { ", …" } else { "" };
            Some(format!("{what}: {}{more}", quoted(known.iter().take(SHOWN_MAX).copied())))
        }
    }
}

/// `` `a`, `b`, `c` ``
pub(crate) fn quoted<'k>(words: impl IntoIterator<Item = &'k str>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_typing_errors_only() {
        let known = ["listeners", "services", "routes", "access_log"];
        assert_eq!(closest("lisener", known), Some("listeners"));
        assert_eq!(closest("access-log", known), Some("access_log"));
        assert_eq!(closest("Routes", known), Some("routes"));
        assert_eq!(closest("upstreams", known), None);
        assert_eq!(closest("x", ["y", "on", "off"]), None);
        assert_eq!(hint("zzz", &["a", "bcd"], "the keys here").unwrap(), "the keys here: `a`, `bcd`");
        assert_eq!(hint("zzz", &[], "the keys here"), None);
    }
}
