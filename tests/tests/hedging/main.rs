//! A second try at another endpoint while the first one is still awaited: who answers, what becomes of the others, and when there
//! is none.

mod trouble;

use std::time::{Duration, Instant};

use ringway_tests::steady::{Steady, percentile};
use ringway_tests::{Backend, Gateway, PATIENCE, Setup, eventually, settles_at};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn answer(status: u16, body: &str) -> String {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Answers every request after this time, unless the gateway gives it up.
fn answering(after: Duration, status: u16, body: &'static str) -> Backend {
    Backend::start(move |conn| {
        while conn.next_request().is_some() && (after.is_zero() || conn.stays_silent(after)) {
            conn.send(answer(status, body));
        }
    })
}

fn quick() -> Backend {
    answering(Duration::ZERO, 200, "quick")
}

/// Never answers.
fn silent() -> Backend {
    Backend::start(|conn| {
        if conn.next_request().is_some() {
            conn.stall();
        }
    })
}

/// A service with these endpoints, which take turns, and a route with this hedge.
fn yaml(backends: &[&Backend], service: &str, route: &str) -> String {
    let endpoints: Vec<String> = backends.iter().map(|backend| format!("\"{}\"", backend.endpoint())).collect();
    format!(
        "services: [{{ name: app, endpoints: [{}], balance: round_robin, {service} }}]\n\
         routes: [{{ name: hedged, service: app, {route} }}]\n",
        endpoints.join(", ")
    )
}

fn before(backends: &[&Backend], service: &str, route: &str) -> Gateway {
    Gateway::start(&yaml(backends, service, route))
}

/// A route that tries again what nobody has seen, and hedges.
fn hedge(after: &str) -> String {
    format!("retries: {{ attempts: 1, on: connect_failure, hedge: {{ after: {after} }} }}")
}

/// Hedges that have won, lost and failed.
fn hedges(gateway: &Gateway) -> [f64; 3] {
    ["won", "lost", "failed"]
        .map(|outcome| gateway.metric(&format!("gateway_hedges_total{{service=\"app\",outcome=\"{outcome}\"}}")))
}

fn denied(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("gateway_hedges_denied_total{{service=\"app\",reason=\"{reason}\"}}"))
}

/// Waits until nothing is under way to any of them, and the losers' connections are gone.
#[track_caller]
fn expect_nothing_left(gateway: &Gateway, backends: &[&Backend]) {
    for backend in backends {
        let of = |name: &str| format!("gateway_endpoint_{name}{{service=\"app\",endpoint=\"{}\"}}", backend.endpoint());
        settles_at(0.0, || gateway.metric(&of("in_flight")));
        settles_at(0.0, || gateway.metric(&of("open_connections")) - gateway.metric(&of("idle_connections")));
    }
    settles_at(0.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
}

#[test]
fn a_silent_endpoint_is_answered_for_by_another_one() {
    let (silent, quick) = (silent(), quick());
    let gateway = before(&[&silent, &quick], "bulkhead: { requests: 1 }", &hedge("50ms"));
    let mut client = gateway.connect();
    let mut hedged = 0;
    for _ in 0..10 {
        let begun = Instant::now();
        assert_eq!(client.get("/").text(), "quick");
        let took = begun.elapsed();
        assert!(took < millis(2_000), "{took:?}");
        hedged += u32::from(took >= millis(50));
    }
    assert_eq!((hedged, silent.requests().len(), quick.requests().len()), (5, 5, 10));
    assert_eq!(hedges(&gateway), [5.0, 0.0, 0.0]);
    silent.expect_all_closed();
    expect_nothing_left(&gateway, &[&silent, &quick]);
    // It is no failure, and no retry.
    for kind in ["reset", "answer_timeout", "body"] {
        assert_eq!(gateway.backend_errors(kind), 0.0);
    }
    assert_eq!(gateway.metric("gateway_retries_total{service=\"app\",outcome=\"success\"}"), 0.0);
    gateway.log_line(10);
    for line in gateway.log_lines() {
        assert!(line["backendLatencyMs"].as_f64().unwrap() <= line["latencyMs"].as_f64().unwrap());
        match line.get("attempts") {
            Some(attempts) => assert_eq!((attempts.as_u64(), line["hedge"].as_str()), (Some(2), Some("won"))),
            None => assert!(line.get("hedge").is_none(), "{line}"),
        }
    }
    let tried_twice = gateway.log_lines().iter().filter(|line| line["attempts"] == 2).count();
    assert_eq!((tried_twice, gateway.metric("gateway_bulkhead_requests{service=\"app\"}")), (5, 0.0));
}

#[test]
fn the_first_try_may_still_be_the_quicker_one() {
    let (slow, silent) = (answering(millis(200), 200, "slow"), silent());
    let gateway = before(&[&slow, &silent], "", &hedge("50ms"));
    let mut client = gateway.connect();
    (0..2).for_each(|_| assert_eq!(client.get("/").text(), "slow"));
    silent.expect_all_closed();
    assert_eq!((slow.requests().len(), silent.requests().len(), hedges(&gateway)), (2, 2, [1.0, 1.0, 0.0]));
    gateway.log_line(2);
    let mut told: Vec<_> = gateway.log_lines().iter().map(|line| line["hedge"].to_string()).collect();
    told.sort();
    assert_eq!((told, slow.connections()), (vec!["\"lost\"".into(), "\"won\"".into()], 1));
    expect_nothing_left(&gateway, &[&slow, &silent]);
}

#[test]
fn there_is_one_answer_when_both_are_slow() {
    let backends = [answering(millis(150), 200, "one"), answering(millis(150), 200, "two")];
    let gateway = before(&[&backends[0], &backends[1]], "", &hedge("20ms"));
    let mut client = gateway.connect();
    for _ in 0..6 {
        let text = client.get("/").text();
        assert!(text == "one" || text == "two", "{text}");
    }
    assert!(client.stays_silent(millis(300)));
    assert_eq!(backends.each_ref().map(|backend| backend.requests().len()), [6, 6]);
    assert_eq!(hedges(&gateway).iter().sum::<f64>(), 6.0);
    expect_nothing_left(&gateway, &[&backends[0], &backends[1]]);
}

#[test]
fn what_nearly_all_requests_take_is_what_they_take() {
    let slow_at_times = || {
        let seen = std::sync::atomic::AtomicUsize::new(0);
        Backend::start(move |conn| {
            while conn.next_request().is_some() {
                let is_slow = seen.fetch_add(1, std::sync::atomic::Ordering::AcqRel) % 25 == 24;
                if is_slow && !conn.stays_silent(millis(800)) {
                    return;
                }
                conn.send(answer(200, "ok"));
            }
        })
    };
    let p99 = |route: &str| {
        let backends = [slow_at_times(), slow_at_times()];
        let gateway = before(&[&backends[0], &backends[1]], "", route);
        let load = Steady::start(gateway.address(), 16, 100);
        load.go_on(Duration::from_secs(4));
        let samples = load.between(Duration::ZERO, Duration::from_secs(4));
        assert_eq!(load.failures(), 0);
        percentile(&samples, 990)
    };
    let without = p99("");
    assert!(without >= millis(800), "{without:?}");
    // A busy machine makes some wait as well, but not each time.
    let is_low = |_| {
        let with = p99(&hedge("60ms"));
        eprintln!("p99 with hedges {with:?}, without {without:?}");
        with < millis(400)
    };
    assert!((0..3).any(is_low));
}

#[test]
fn only_what_does_no_harm_twice_and_is_whole_is_hedged() {
    let backends = [answering(millis(200), 200, "one"), answering(millis(200), 200, "two")];
    let gateway = before(&[&backends[0], &backends[1]], "", &hedge("20ms"));
    let seen = || backends.iter().map(|backend| backend.requests().len()).sum::<usize>();
    for method in ["POST", "PATCH"] {
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(gateway.connect().ask(request).status(), 200);
    }
    let mut client = gateway.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nhe");
    eventually(PATIENCE, || seen() == 3);
    assert!(client.stays_silent(millis(100)));
    assert_eq!(client.send("y!").read_response().status(), 200);
    // A tunnel that is refused.
    assert_eq!(gateway.connect().ask(ringway_tests::websocket::handshake("/", "")).status(), 200);
    assert_eq!((seen(), hedges(&gateway)), (4, [0.0; 3]));
    let mut client = gateway.connect();
    assert_eq!(client.ask("PUT /x HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nhey!").status(), 200);
    assert_eq!((seen(), hedges(&gateway).iter().sum::<f64>()), (6, 1.0));
    for backend in &backends {
        let last = backend.requests().pop().unwrap();
        assert_eq!((last.start.as_str(), last.get("content-length")), ("PUT /x HTTP/1.1", Some("4")));
    }
}

#[test]
fn bodies_go_with_every_try() {
    let slow_echo = || {
        Backend::start(|conn| {
            while let Some(request) = conn.next_request() {
                if conn.stays_silent(millis(150)) {
                    conn.send(answer(200, &request.text()));
                }
            }
        })
    };
    let backends = [slow_echo(), slow_echo()];
    let gateway = before(&[&backends[0], &backends[1]], "", &hedge("20ms"));
    for request in [
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ] {
        assert_eq!(gateway.connect().ask(request).text(), "hello");
    }
    let head = gateway.connect().send("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").read_response_to_head();
    assert_eq!(head.status(), 200);
    assert_eq!(backends.each_ref().map(|backend| backend.requests().len()), [3, 3]);
}

#[test]
fn nothing_is_sent_where_there_is_no_other_endpoint() {
    let slow = answering(millis(150), 200, "slow");
    let gateway = Setup { route: &hedge("20ms"), ..Setup::default() }.start(slow.endpoint());
    assert_eq!(gateway.get("/").text(), "slow");
    assert_eq!((slow.requests().len(), hedges(&gateway), denied(&gateway, "endpoint")), (1, [0.0; 3], 1.0));
    assert!(gateway.log_line(1).get("hedge").is_none());
}

#[test]
fn the_budget_bounds_them() {
    let backends = [answering(millis(200), 200, "one"), answering(millis(200), 200, "two")];
    let service = "retries: { budget: { share: 10%, min_per_second: 2 } }";
    let gateway = before(&[&backends[0], &backends[1]], service, &hedge("10ms"));
    let begun = Instant::now();
    let asked: usize = std::thread::scope(|scope| {
        let clients = [(); 20].map(|()| {
            scope.spawn(|| {
                let mut client = gateway.connect();
                (0..5).map(|_| assert_eq!(client.get("/").status(), 200)).count()
            })
        });
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let seconds = begun.elapsed().as_secs_f64().ceil() as usize + 1;
    let seen: usize = backends.iter().map(|backend| backend.requests().len()).sum();
    let sent = hedges(&gateway).iter().sum::<f64>();
    assert!(seen <= asked + asked / 10 + 2 * seconds, "{asked} requests became {seen} in {seconds} s");
    assert_eq!(((seen - asked) as f64, asked as f64 - sent), (sent, denied(&gateway, "budget")));
    assert!(sent >= 2.0, "{sent}");
    expect_nothing_left(&gateway, &[&backends[0], &backends[1]]);
}

#[test]
fn several_one_after_the_other() {
    let (first, second, quick) = (silent(), silent(), quick());
    let route = "retries: { attempts: 1, hedge: { after: 60ms, max: 2 } }";
    let gateway = before(&[&first, &second, &quick], "", route);
    for _ in 0..6 {
        let begun = Instant::now();
        assert_eq!(gateway.get("/").text(), "quick");
        assert!(begun.elapsed() < millis(2_000));
    }
    assert_eq!(quick.requests().len(), 6);
    // Two of three begin at a silent one; some of those meet the other one before the quick one.
    let [won, lost, failed] = hedges(&gateway);
    assert_eq!((won, failed), (4.0, 0.0));
    assert_eq!((first.requests().len() + second.requests().len()) as f64, 4.0 + lost);
    first.expect_all_closed();
    second.expect_all_closed();
    expect_nothing_left(&gateway, &[&first, &second, &quick]);
}

#[test]
fn each_endpoint_is_told_its_name_and_what_time_is_left() {
    let (silent, quick) = (silent(), quick());
    let route = format!("host: endpoint, timeouts: {{ request: 5s }}, {}", hedge("200ms"));
    let gateway = before(&[&silent, &quick], "deadline_header: X-Left-Ms", &route);
    (0..2).for_each(|_| assert_eq!(gateway.get("/a?b").text(), "quick"));
    let left = |backend: &Backend| -> Vec<u64> {
        let heads = backend.requests();
        heads.iter().for_each(|head| assert_eq!((head.target(), head.get("host")), ("/a?b", Some(backend.endpoint()))));
        heads.iter().map(|head| head.get("x-left-ms").unwrap().parse().unwrap()).collect()
    };
    let (whole, mut both) = (left(&silent), left(&quick));
    both.sort_unstable();
    assert!(whole[0] > 4_900 && both[0] <= 4_800 && both[1] > 4_900, "{whole:?} {both:?}");
    let id = |head: &ringway_tests::Head| head.get("x-request-id").map(str::to_owned);
    let same = quick.requests().iter().filter(|head| id(head) == id(&silent.request())).count();
    assert_eq!(same, 1);
}

#[test]
fn a_session_stays_where_it_is() {
    let backends = [answering(millis(150), 200, "one"), answering(millis(150), 200, "two")];
    let gateway = before(&[&backends[0], &backends[1]], "sticky: { cookie: stay }", &hedge("20ms"));
    let answer = gateway.get("/");
    // One that begins may begin anywhere.
    assert_eq!(hedges(&gateway).iter().sum::<f64>(), 1.0);
    let pair = answer.get("set-cookie").and_then(|line| line.split(';').next()).expect("a cookie").to_owned();
    for _ in 0..4 {
        let kept = gateway.connect().ask(format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {pair}\r\n\r\n"));
        assert_eq!(kept.text(), answer.text());
    }
    assert_eq!(hedges(&gateway).iter().sum::<f64>(), 1.0);
}

#[test]
fn the_balance_learns_that_who_was_given_up_is_slow() {
    let (silent, quick) = (silent(), quick());
    let gateway = before(&[&silent, &quick], "", &hedge("50ms"));
    let yaml = yaml(&[&silent, &quick], "", &hedge("50ms")).replace("round_robin", "peak_ewma");
    assert!(gateway.replace_config(&yaml));
    let mut client = gateway.connect();
    (0..30).for_each(|_| assert_eq!(client.get("/").text(), "quick"));
    assert!((1..=3).contains(&silent.requests().len()), "{}", silent.requests().len());
}
