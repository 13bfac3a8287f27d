use super::*;

fn endpoint() -> EndpointHealth {
    EndpointHealth::new(&Fleet::new("s".into()), "e".into())
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
