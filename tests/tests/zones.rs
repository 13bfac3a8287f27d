//! Requests stay in the gateway's own zone as long as that can carry them; priorities of more than two levels.

use ringway_tests::failing::{Fickle, Mood};
use ringway_tests::{Gateway, PATIENCE, eventually, settles_at};
use serde_json::Value;

const CHECK: &str =
    "health_check: { http: { path: /health }, interval: 50ms, unhealthy_threshold: 2, healthy_threshold: 2 }";
const SHARE: &str = "gateway_service_local_share{service=\"app\"}";

fn start(top: &str, endpoints: &[String], service: &str) -> Gateway {
    Gateway::start(&format!(
        "{top}services: [{{ name: app, endpoints: [{}], balance: round_robin, {CHECK}, {service} }}]\n\
         routes: [{{ name: all, service: app }}]\n",
        endpoints.join(", ")
    ))
}

/// How many requests each has served of so many more.
fn shares(gateway: &Gateway, all: &[Fickle], requests: usize) -> Vec<usize> {
    let before: Vec<usize> = all.iter().map(Fickle::served).collect();
    let mut client = gateway.connect();
    (0..requests).for_each(|_| assert_eq!(client.get("/").status(), 200));
    all.iter().zip(before).map(|(one, before)| one.served() - before).collect()
}

#[test]
fn the_own_zone_gets_all_it_can_carry_and_others_the_rest() {
    let all = ["a", "b", "c", "d", "e", "f"].map(Fickle::new);
    let zone = |index: usize| if index < 4 { "eu-1" } else { "eu-2" };
    let endpoints: Vec<String> = all
        .iter()
        .enumerate()
        .map(|(index, one)| format!("{{ address: \"{}\", zone: {} }}", one.endpoint(), zone(index)))
        .collect();
    let gateway = start(
        "zone: \"${env:RINGWAY_TEST_NO_SUCH_ZONE:-eu-1}\"\n",
        &endpoints,
        "panic_threshold: 0%, zones: { prefer: local }",
    );
    assert_eq!(shares(&gateway, &all, 200), [50, 50, 50, 50, 0, 0]);
    assert_eq!(gateway.metric(SHARE), 1.0);

    // One of four is missed by nobody: the others can carry it.
    all[0].set(Mood::Broken);
    let unhealthy = |index: usize| {
        let sample = format!("gateway_endpoint_healthy{{service=\"app\",endpoint=\"{}\"}}", all[index].endpoint());
        eventually(PATIENCE, || gateway.metric(&sample) == 0.0);
    };
    unhealthy(0);
    assert_eq!(shares(&gateway, &all, 90), [0, 30, 30, 30, 0, 0]);

    // Two of four carry 70 %.
    all[1].set(Mood::Broken);
    unhealthy(1);
    assert!((gateway.metric(SHARE) - 0.7).abs() < 1e-9);
    let page: Value = serde_json::from_str(&gateway.admin("/services").1).expect("JSON");
    assert_eq!((&page[0]["localShare"], &page[0]["zone"]), (&Value::from(70.0), &Value::from("eu-1")));
    assert_eq!(page[0]["priority"], Value::Null, "there is one only");
    assert_eq!(page[0]["endpoints"][4]["inUse"], true);
    let served = shares(&gateway, &all, 2_000);
    let local = served[2] + served[3];
    assert!((1_300..=1_500).contains(&local), "70 % of 2000 within five deviations: {served:?}");
    assert_eq!(served[..2], [0, 0]);
    assert!(served[2].abs_diff(served[3]) <= 2 && served[4].abs_diff(served[5]) <= 2, "{served:?}");

    // Nobody is left here.
    for index in [2, 3] {
        all[index].set(Mood::Broken);
        unhealthy(index);
    }
    assert_eq!(shares(&gateway, &all, 60), [0, 0, 0, 0, 30, 30]);
    assert_eq!(gateway.metric(SHARE), 0.0);

    all.iter().for_each(|one| one.set(Mood::Good));
    settles_at(1.0, || {
        let seen = serde_json::from_str::<Value>(&gateway.admin("/services").1).expect("JSON");
        let is_whole = (0..6).all(|index| seen[0]["endpoints"][index]["state"] == "healthy");
        if is_whole { gateway.metric(SHARE) } else { 0.0 }
    });
    assert_eq!(shares(&gateway, &all, 200), [50, 50, 50, 50, 0, 0]);
}

#[test]
fn a_gateway_of_another_zone_has_no_preference() {
    let all = ["a", "b"].map(Fickle::new);
    let endpoints = all.each_ref().map(|one| format!("{{ address: \"{}\", zone: eu-1 }}", one.endpoint()));
    let gateway = start("zone: us-1\n", &endpoints, "zones: {}");
    assert_eq!(shares(&gateway, &all, 40), [20, 20]);
    assert_eq!(gateway.metric(SHARE), 0.0);
}

#[test]
fn priorities_are_gone_through_in_order() {
    let all = ["a", "b", "c"].map(Fickle::new);
    let priority = ["priority: 0", "backup: true", "priority: 7"];
    let endpoints: Vec<String> =
        all.iter().zip(priority).map(|(one, said)| format!("{{ address: \"{}\", {said} }}", one.endpoint())).collect();
    let gateway = start("", &endpoints, "panic_threshold: 50%");
    assert_eq!(shares(&gateway, &all, 10), [10, 0, 0]);
    let in_use = || -> Vec<bool> {
        let page: Value = serde_json::from_str(&gateway.admin("/services").1).expect("JSON");
        (0..3).map(|index| page[0]["endpoints"][index]["inUse"] == true).collect()
    };
    let priority = || {
        let page: Value = serde_json::from_str(&gateway.admin("/services").1).expect("JSON");
        (page[0]["priority"].as_u64(), gateway.metric("gateway_service_priority{service=\"app\"}"))
    };
    assert_eq!(priority(), (Some(0), 0.0));
    all[0].set(Mood::Broken);
    settles_at(vec![false, true, false], in_use);
    assert_eq!(priority(), (Some(1), 1.0));
    assert_eq!(shares(&gateway, &all, 10), [0, 10, 0]);
    all[1].set(Mood::Broken);
    settles_at(vec![false, false, true], in_use);
    assert_eq!(priority(), (Some(7), 7.0));
    assert_eq!(shares(&gateway, &all, 10), [0, 0, 10]);
    all[0].set(Mood::Good);
    settles_at(vec![true, false, false], in_use);
    assert_eq!(priority(), (Some(0), 0.0));
    assert_eq!(shares(&gateway, &all, 10), [10, 0, 0]);
}
