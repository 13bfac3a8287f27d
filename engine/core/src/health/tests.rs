use proptest::prelude::*;

use super::*;

fn endpoint() -> EndpointHealth {
    EndpointHealth::new(&Fleet::new("s".into()), "e".into())
}

fn candidates(text: &str) -> Vec<Candidate> {
    // u: usable, x: not, U and X: backups, d: drained.
    let of = |letter: char| Candidate {
        weight: u32::from(letter != 'd'),
        is_usable: matches!(letter, 'u' | 'U' | 'd'),
        is_backup: letter.is_ascii_uppercase(),
    };
    text.chars().map(of).collect()
}

#[test]
fn a_new_endpoint_is_healthy_and_each_change_is_a_new_epoch() {
    let endpoint = endpoint();
    assert!(endpoint.is_usable() && endpoint.is_healthy() && !endpoint.is_drained());
    let mut epoch = endpoint.fleet().epoch();
    let mut is_new = |change: bool| {
        let before = std::mem::replace(&mut epoch, endpoint.fleet().epoch());
        assert_eq!(change, before != epoch);
        change
    };
    assert!(is_new(endpoint.set_healthy(false)) && !endpoint.is_usable());
    assert!(!is_new(endpoint.set_healthy(false)));
    assert!(is_new(endpoint.set_healthy(true)) && endpoint.is_usable());
    assert!(is_new(endpoint.set_drained(true)) && endpoint.is_usable());
    assert_eq!(endpoint.weight(3), 0);
    assert!(is_new(endpoint.set_drained(false)));
    endpoint.set_ramp(10);
    assert!(is_new(true));
    assert_eq!(endpoint.weight(3), 30);
    endpoint.set_weight(Some(7));
    assert!(is_new(true));
    assert_eq!((endpoint.weight(3), endpoint.own_weight()), (70, Some(7)));
    endpoint.set_weight(Some(0));
    assert_eq!(endpoint.weight(3), 0);
    endpoint.set_weight(None);
    endpoint.set_ramp(100);
    assert_eq!(endpoint.weight(3), 300);
}

#[test]
fn states_do_not_touch_each_other() {
    let endpoint = endpoint();
    endpoint.fleet().set_cap(1);
    endpoint.set_healthy(false);
    assert_eq!(endpoint.eject(Reason::Latency, 5, |repeats| u64::from(repeats) * 10), Some(10));
    assert_eq!(endpoint.ejection(), Some((15, Reason::Latency)));
    endpoint.set_healthy(true);
    assert!(!endpoint.is_usable() && endpoint.is_healthy());
    assert!(endpoint.reinstate() && endpoint.is_usable());
    assert_eq!(endpoint.ejection(), None);
}

#[test]
fn checks_are_counted_and_the_last_complaint_is_kept() {
    let endpoint = endpoint();
    endpoint.count_check(Err("refused".into()));
    assert_eq!((endpoint.checks(), endpoint.complaint().as_str()), ([0, 1], "refused"));
    endpoint.count_check(Ok(()));
    assert_eq!((endpoint.checks(), endpoint.complaint().as_str()), ([1, 1], ""));
}

#[test]
fn results_in_a_row_make_a_difference() {
    let mut checked = Checked::new(true);
    let results = [false, false, true, false, false, false, false, true, false, true, true, true];
    let changes = results.map(|passed| checked.judge(passed, 3, 2));
    let mut expected = [None; 12];
    (expected[5], expected[10]) = (Some(false), Some(true));
    assert_eq!(changes, expected);
    assert_eq!(Checked::new(true).judge(false, 1, 1), Some(false));
}

#[test]
fn the_usable_are_chosen_then_backups_and_all_in_a_panic() {
    let cases: [(&str, u8, &[usize], bool); 18] = [
        ("", 50, &[], false),
        ("u", 50, &[0], false),
        ("x", 50, &[0], true),
        ("x", 0, &[], false),
        ("uux", 50, &[0, 1], false),
        ("uxx", 50, &[0, 1, 2], true),
        ("uxx", 33, &[0], false),
        ("uxx", 0, &[0], false),
        ("ux", 50, &[0], false),
        ("d", 50, &[], false),
        ("du", 50, &[1], false),
        ("dxu", 100, &[1, 2], true),
        ("uuU", 50, &[0, 1], false),
        ("uxxU", 50, &[0, 3], false),
        ("xxU", 50, &[2], false),
        ("xxX", 50, &[0, 1], true),
        ("X", 50, &[0], true),
        ("dU", 50, &[1], false),
    ];
    for (text, threshold, members, is_panic) in cases {
        let chosen = choose(&candidates(text), threshold);
        assert_eq!(chosen, Chosen { members: members.to_vec(), is_panic }, "{text} {threshold}");
    }
}

proptest! {
    #[test]
    fn the_drained_are_never_chosen_and_somebody_is_where_there_is_somebody(text in "[uxUXd]{0,12}", threshold in 0..=100u8) {
        let candidates = candidates(&text);
        let chosen = choose(&candidates, threshold);
        prop_assert!(chosen.members.iter().all(|index| candidates[*index].weight > 0));
        prop_assert!(chosen.members.windows(2).all(|pair| pair[0] < pair[1]));
        let any = |wanted: &str| text.contains(|letter| wanted.contains(letter));
        prop_assert_eq!(chosen.members.is_empty(), !any(if threshold == 0 { "uU" } else { "uxUX" }));
        let has_unusable = chosen.members.iter().any(|index| !candidates[*index].is_usable);
        prop_assert!(chosen.is_panic || !has_unusable);
        // No backup without need.
        let usable = text.matches('u').count();
        let enough = usable * 100 >= text.matches(['u', 'x']).count() * usize::from(threshold);
        if usable > 0 && enough {
            prop_assert!(chosen.members.iter().all(|index| !candidates[*index].is_backup));
        }
    }
}
