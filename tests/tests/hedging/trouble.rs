//! Hedges where tries fail, time is up, clients leave, breakers open, or the gateway changes meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringway_tests::failing::Origin;
use ringway_tests::http2::{CANCEL, Http2, RST_STREAM};
use ringway_tests::{Backend, Gateway, PATIENCE, eventually, settles_at};
use rustix::process::Signal;

use super::*;

/// Breaks the connection after this time.
fn breaking(after: Duration) -> Backend {
    Backend::start(move |conn| {
        if conn.next_request().is_some() && conn.stays_silent(after) {
            conn.reset();
        }
    })
}

/// Answers once it is told to.
fn waiting() -> (Backend, Arc<AtomicBool>) {
    let may = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&may);
    let backend = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            while !told.load(Ordering::Acquire) {
                if !conn.stays_silent(millis(5)) {
                    return;
                }
            }
            conn.send(answer(200, "told"));
        }
    });
    (backend, may)
}

/// A client whose request is at both endpoints, which have so many then.
#[track_caller]
fn asked_both(gateway: &Gateway, backends: &[&Backend], requests: usize) -> ringway_tests::Client {
    let mut client = gateway.connect();
    client.send(GET);
    settles_at(vec![requests; 2], || backends.iter().map(|backend| backend.requests().len()).collect());
    client
}

#[test]
fn a_try_that_breaks_leaves_the_word_to_the_other_one() {
    let route = "retries: { attempts: 1, on: reset, hedge: { after: 30ms } }";
    for (first, second) in [
        (breaking(millis(100)), answering(millis(400), 200, "slow")),
        (answering(millis(400), 200, "slow"), breaking(millis(100))),
    ] {
        let gateway = before(&[&first, &second], "", route);
        assert_eq!(gateway.get("/").text(), "slow");
        assert_eq!((first.requests().len(), second.requests().len(), gateway.backend_errors("reset")), (1, 1, 1.0));
        let line = gateway.log_line(1);
        let won = hedges(&gateway)[0] == 1.0;
        assert_eq!(
            (line["attempts"].as_u64(), line["hedge"].as_str()),
            (Some(2), Some(if won { "won" } else { "failed" }))
        );
        expect_nothing_left(&gateway, &[&first, &second]);
    }
}

#[test]
fn an_answer_to_try_again_waits_for_a_better_one() {
    let route = "retries: { attempts: 1, on: 503, hedge: { after: 30ms } }";
    let (first, second) = (answering(millis(300), 503, "busy"), answering(millis(900), 200, "good"));
    let gateway = before(&[&first, &second], "", route);
    let mut client = gateway.connect();
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "good"));
    }
    assert_eq!(hedges(&gateway), [1.0, 0.0, 1.0]);
    expect_nothing_left(&gateway, &[&first, &second]);
    assert_eq!((first.connections(), second.connections()), (1, 1), "both are used again");

    // One that comes while nothing else is awaited is tried again at once, as without hedges.
    let (first, second) = (answering(Duration::ZERO, 503, "busy"), quick());
    let gateway = before(&[&first, &second], "", &route.replace("30ms", "5s"));
    (0..4).for_each(|_| assert_eq!(gateway.get("/").text(), "quick"));
    assert_eq!((first.requests().len(), hedges(&gateway)), (2, [0.0; 3]));
}

#[test]
fn where_all_are_bad_it_goes_on_as_without() {
    // Both fail, and what they fail with is tried again.
    let failing_first = |name: &'static str| {
        let seen = AtomicUsize::new(0);
        Backend::start(move |conn| {
            while conn.next_request().is_some() && conn.stays_silent(millis(80)) {
                let status = if seen.fetch_add(1, Ordering::AcqRel) == 0 { 503 } else { 200 };
                conn.send(answer(status, name));
            }
        })
    };
    let backends = [failing_first("one"), failing_first("two")];
    let route = "retries: { attempts: 1, on: 503, hedge: { after: 20ms } }";
    let gateway = before(&[&backends[0], &backends[1]], "", route);
    let answer = gateway.get("/");
    assert_eq!((answer.status(), hedges(&gateway)), (200, [0.0, 0.0, 1.0]));
    settles_at(1.0, || gateway.metric("gateway_retries_total{service=\"app\",outcome=\"success\"}"));
    assert_eq!(gateway.log_line(1)["attempts"], 3);
    expect_nothing_left(&gateway, &[&backends[0], &backends[1]]);

    // No try is left: the client gets the last answer, or the failure.
    let backends = [answering(millis(60), 503, "one"), answering(millis(60), 503, "two")];
    let gateway =
        before(&[&backends[0], &backends[1]], "", &route.replace("attempts: 1", "attempts: 1, backoff: { base: 0s }"));
    let answer = gateway.get("/");
    assert!(answer.status() == 503 && ["one", "two"].contains(&answer.text().as_str()), "{answer:?}");
    let backends = [breaking(millis(100)), breaking(millis(60))];
    let gateway = before(&[&backends[0], &backends[1]], "", &hedge("20ms"));
    assert_eq!(
        (gateway.get("/").status(), gateway.backend_errors("reset"), hedges(&gateway)),
        (502, 2.0, [0.0, 0.0, 1.0])
    );
    expect_nothing_left(&gateway, &[&backends[0], &backends[1]]);
    // One has an answer, if a bad one, and the other none.
    let backends = [answering(millis(60), 503, "busy"), breaking(millis(150))];
    let gateway = before(&[&backends[0], &backends[1]], "", route);
    let status = gateway.get("/").status();
    assert!([502, 503].contains(&status) && gateway.log_line(1)["attempts"] == 3, "{status}");
}

#[test]
fn the_deadline_of_the_request_is_for_all_of_them() {
    let backends = [silent(), silent()];
    let route = format!("timeouts: {{ request: 300ms }}, {}", hedge("50ms"));
    let gateway = before(&[&backends[0], &backends[1]], "", &route);
    let begun = Instant::now();
    assert_eq!(gateway.get("/").status(), 504);
    assert!((300..1_500).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    assert_eq!(backends.each_ref().map(|backend| backend.requests().len()), [1, 1]);
    assert_eq!((hedges(&gateway), gateway.log_line(1)["attempts"].as_u64()), ([0.0, 0.0, 1.0], Some(2)));
    backends.iter().for_each(Backend::expect_all_closed);
    expect_nothing_left(&gateway, &[&backends[0], &backends[1]]);
}

#[test]
fn one_try_has_its_own_time() {
    let backends = [silent(), answering(millis(250), 200, "slow")];
    let route = "retries: { attempts: 1, on: connect_failure, per_try_timeout: 1s, hedge: { after: 850ms } }";
    let gateway = before(&[&backends[0], &backends[1]], "", route);
    // At the silent one it is over before the answer comes, a quarter of a second is within the other one's.
    let took = [(); 2].map(|()| {
        let begun = Instant::now();
        assert_eq!(gateway.get("/").text(), "slow");
        begun.elapsed()
    });
    assert!(took.iter().any(|took| *took >= millis(1_100)), "{took:?}");
    assert_eq!((gateway.backend_errors("answer_timeout"), hedges(&gateway)), (1.0, [1.0, 0.0, 0.0]));
}

#[test]
fn a_client_that_leaves_ends_all_of_them() {
    let backends = [silent(), silent()];
    let gateway = before(&[&backends[0], &backends[1]], "", &hedge("30ms"));
    asked_both(&gateway, &[&backends[0], &backends[1]], 1).reset();
    backends.iter().for_each(Backend::expect_all_closed);
    expect_nothing_left(&gateway, &[&backends[0], &backends[1]]);
    assert_eq!((gateway.log_line(1)["statusCode"].as_u64(), hedges(&gateway)), (Some(499), [0.0, 1.0, 0.0]));

    // One of the two is over by then, the first try or the other one.
    let (breaking, silent) = (breaking(millis(500)), silent());
    let gateway = before(&[&breaking, &silent], "", &hedge("30ms"));
    for client in 1..=2 {
        let asked = asked_both(&gateway, &[&breaking, &silent], client);
        eventually(PATIENCE, || gateway.backend_errors("reset") == client as f64);
        asked.reset();
        silent.expect_all_closed();
        expect_nothing_left(&gateway, &[&breaking, &silent]);
        assert_eq!(gateway.log_line(client)["statusCode"], 499);
    }
    assert_eq!(hedges(&gateway), [0.0, 1.0, 1.0]);
    gateway.expect_idle();
}

#[test]
fn a_stream_that_is_reset_ends_all_of_them() {
    let backends = [silent(), silent()];
    let text = yaml(&[&backends[0], &backends[1]], "", &hedge("30ms"));
    let listener = "listeners: [{ name: web, address: LISTEN, http2: { enabled: true } }]\n";
    let gateway = Gateway::start(&format!("{listener}{text}"));
    let mut client = Http2::connect(gateway.address());
    client.get(1, "/");
    backends.iter().for_each(|backend| eventually(PATIENCE, || backend.requests().len() == 1));
    client.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes());
    backends.iter().for_each(Backend::expect_all_closed);
    expect_nothing_left(&gateway, &[&backends[0], &backends[1]]);
}

#[test]
fn breakers_hear_nothing_of_tries_that_were_given_up() {
    let (silent, quick) = (silent(), quick());
    let breaker = "circuit_breaker: { per: both, error_share: off, consecutive_failures: 2, slow_call: 20ms }";
    let gateway = before(&[&silent, &quick], breaker, &hedge("50ms"));
    (0..10).for_each(|_| assert_eq!(gateway.get("/").text(), "quick"));
    assert_eq!(hedges(&gateway), [5.0, 0.0, 0.0]);
    let page: serde_json::Value = serde_json::from_str(&gateway.admin("/services").1).unwrap();
    for backend in [&silent, &quick] {
        let seen = page[0]["endpoints"].as_array().unwrap();
        let seen = seen.iter().find(|seen| seen["address"] == backend.endpoint()).expect("an endpoint");
        let requests = if backend.endpoint() == quick.endpoint() { 10 } else { 0 };
        let breaker = &seen["circuitBreaker"];
        assert_eq!((&breaker["state"], breaker["requests"].as_u64()), (&"closed".into(), Some(requests)), "{seen}");
    }
}

#[test]
fn a_probe_that_was_given_up_gives_its_place_back() {
    /// What the endpoint does with a request.
    const FAILS: usize = 0;
    const STALLS: usize = 1;
    const ANSWERS: usize = 2;
    let mood = Arc::new(AtomicUsize::new(FAILS));
    let of_backend = Arc::clone(&mood);
    let probed = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            match of_backend.load(Ordering::Acquire) {
                FAILS => _ = conn.send(answer(500, "bad")),
                STALLS => {
                    conn.stall();
                    return;
                }
                _ => _ = conn.send(answer(200, "well")),
            }
        }
    });
    let quick = quick();
    // A probe that is not heard of keeps its place for three seconds.
    let breaker =
        "circuit_breaker: { per: endpoint, error_share: off, consecutive_failures: 1, open: 3s, half_open_probes: 1 }";
    let gateway = before(&[&probed, &quick], breaker, &hedge("50ms"));
    let state = || {
        let of = format!("{{service=\"app\",endpoint=\"{}\"}}", probed.endpoint());
        gateway.metric(&format!("gateway_circuit_breaker_state{of}"))
    };
    eventually(PATIENCE, || gateway.get("/").status() == 500);
    assert_eq!(state(), 2.0);
    mood.store(STALLS, Ordering::Release);
    eventually(PATIENCE, || {
        assert_eq!(gateway.get("/").text(), "quick");
        probed.requests().len() == 2
    });
    mood.store(ANSWERS, Ordering::Release);
    let begun = Instant::now();
    eventually(PATIENCE, || gateway.get("/").text() == "well");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    settles_at(0.0, state);
}

#[test]
fn an_open_breaker_lets_none_pass() {
    // The other endpoint's breaker is open.
    let (bad, slow) = (answering(Duration::ZERO, 500, "bad"), answering(millis(150), 200, "slow"));
    let breaker = "circuit_breaker: { per: endpoint, error_share: off, consecutive_failures: 1, open: 1m }";
    let gateway = before(&[&bad, &slow], breaker, &hedge("20ms"));
    eventually(PATIENCE, || gateway.get("/").status() == 500);
    let (before, sent) = (bad.requests().len(), hedges(&gateway));
    (0..3).for_each(|_| assert_eq!(gateway.get("/").text(), "slow"));
    assert_eq!((bad.requests().len(), hedges(&gateway)), (before, sent));
    assert_eq!(denied(&gateway, "breaker") + denied(&gateway, "endpoint"), 3.0);
}

#[test]
fn a_frozen_endpoint_is_hardly_noticed() {
    let (frozen, good) = (Origin::start(), Origin::start());
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: [\"{}\", \"{}\"], balance: round_robin, retries: {{ budget: {{ share: 100% }} }} }}]\n\
         routes: [{{ name: hedged, service: app, {} }}]\n",
        frozen.endpoint(),
        good.endpoint(),
        hedge("50ms"),
    ));
    let mut client = gateway.connect();
    (0..10).for_each(|_| assert_eq!(client.get("/").status(), 200));
    let mut before = hedges(&gateway)[0];
    frozen.signal(Signal::STOP);
    // It may still answer a few until all of it has stopped.
    eventually(PATIENCE, || {
        assert_eq!(client.get("/").status(), 200);
        hedges(&gateway)[0] > before
    });
    before = hedges(&gateway)[0];
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(client.get("/").status(), 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    assert_eq!(hedges(&gateway)[0] - before, 10.0);
    frozen.signal(Signal::CONT);
    let before = hedges(&gateway).iter().sum::<f64>();
    eventually(PATIENCE, || {
        (0..10).for_each(|_| assert_eq!(client.get("/").status(), 200));
        hedges(&gateway).iter().sum::<f64>() - before < 10.0
    });
    for endpoint in [frozen.endpoint(), good.endpoint()] {
        let in_flight = format!("gateway_endpoint_in_flight{{service=\"app\",endpoint=\"{endpoint}\"}}");
        settles_at(0.0, || gateway.metric(&in_flight));
    }
}

/// Services and clients that do as they like.
#[test]
fn nothing_is_left_whatever_happens() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    eprintln!("SEED={seed}");
    let fickle = |index: u64| {
        let seeds = AtomicUsize::new(0);
        Backend::start(move |conn| {
            let connection = seeds.fetch_add(1, Ordering::AcqRel) as u64;
            let mut rng = fastrand::Rng::with_seed(seed ^ index << 32 ^ connection);
            while conn.next_request().is_some() {
                if rng.bool() && !conn.stays_silent(millis(rng.u64(1..60))) {
                    return;
                }
                let (text, goes_on) = match rng.u32(..10) {
                    0 => return conn.reset(),
                    1 => ("HTTP/1.1 20".into(), false),
                    2 => (answer(503, "busy"), true),
                    3 => (format!("HTTP/1.1 103 Early Hints\r\n\r\n{}", answer(200, "good")), true),
                    4 => ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ngo".into(), false),
                    _ => (answer(200, "good"), true),
                };
                if conn.try_send(text).is_err() || !goes_on {
                    return;
                }
            }
        })
    };
    let backends = [0, 1, 2].map(fickle);
    let service = "circuit_breaker: { per: both, error_share: off, consecutive_failures: 20, open: 100ms }, \
                   bulkhead: { requests: 30 }, balance: peak_ewma, retries: { budget: { share: 100% } }";
    let route = "timeouts: { request: 2s }, retries: { attempts: 2, hedge: { after: 5ms, max: 3 } }";
    let all = backends.each_ref();
    let gateway = Gateway::start(&yaml(&all, service, route).replace("balance: round_robin, ", ""));
    std::thread::scope(|scope| {
        for client in 0..8 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed.wrapping_add(client));
                for _ in 0..60 {
                    let mut client = gateway.connect();
                    client.send(GET);
                    match rng.u32(..4) {
                        0 if client.stays_silent(millis(rng.u64(1..30))) => client.reset(),
                        _ => {
                            // Interim answers may come first, and one may break off.
                            while let Ok(head) = client.next_head() {
                                assert!([103, 200, 502, 503].contains(&head.status()), "{head:?}");
                                if head.status() != 103 {
                                    break;
                                }
                            }
                        }
                    }
                }
            });
        }
    });
    gateway.expect_idle();
    expect_nothing_left(&gateway, &all);
    let [won, lost, failed] = hedges(&gateway);
    assert!(won > 0.0 && lost > 0.0 && failed > 0.0, "{won} {lost} {failed}");
    assert_eq!(gateway.metric("gateway_bulkhead_requests{service=\"app\"}"), 0.0);
}

#[test]
fn a_reload_and_a_drain_leave_them_alone() {
    let (silent, (waiting, may)) = (silent(), waiting());
    let mut gateway = before(&[&silent, &waiting], "", &hedge("30ms"));
    let mut client = asked_both(&gateway, &[&silent, &waiting], 1);
    // The new configuration has neither the hedge nor that endpoint.
    assert!(gateway.replace_config(&yaml(&[&waiting], "", "")));
    gateway.terminate();
    may.store(true, Ordering::Release);
    let answer = client.read_response();
    assert_eq!((answer.text().as_str(), silent.requests().len()), ("told", 1));
    silent.expect_all_closed();
    drop(client);
    assert!(gateway.wait_exit(PATIENCE).success());
}
