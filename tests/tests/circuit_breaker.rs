//! Services that fail are left alone: what opens a breaker, what clients hear meanwhile, what closes it, who sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ringway_tests::{Backend, Gateway, Message, Nobody, PATIENCE, Setup, eventually, settles_at};
use serde_json::Value;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BAD: &str = "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 3\r\n\r\nbad";

/// Answers `bad` while the switch is on, else 200.
fn switched(bad: &'static str) -> (Backend, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&fails);
    let backend = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            conn.send(if switch.load(Ordering::Acquire) { bad } else { OK });
        }
    });
    (backend, fails)
}

fn state(gateway: &Gateway) -> f64 {
    gateway.metric("gateway_circuit_breaker_state{service=\"app\"}")
}

fn rejected(gateway: &Gateway) -> f64 {
    gateway.metric("gateway_circuit_breaker_rejected_total{service=\"app\"}")
}

fn transitions(gateway: &Gateway) -> [f64; 3] {
    ["open", "half_open", "closed"]
        .map(|to| gateway.metric(&format!("gateway_circuit_breaker_transitions_total{{service=\"app\",to=\"{to}\"}}")))
}

fn service(gateway: &Gateway) -> Value {
    let (status, page) = gateway.admin("/services");
    assert_eq!(status, 200);
    serde_json::from_str::<Value>(&page).unwrap()[0].clone()
}

/// Asks so often, on one connection.
fn statuses(gateway: &Gateway, requests: usize) -> Vec<u16> {
    let mut client = gateway.connect();
    (0..requests).map(|_| client.get("/").status()).collect()
}

fn retry_after(answer: &Message) -> u64 {
    answer.get("retry-after").expect("Retry-After").parse().expect("seconds")
}

/// Four requests are enough for a share, half of them to open it.
fn breaker(more: &str) -> String {
    format!("circuit_breaker: {{ min_requests: 4, consecutive_failures: off, {more} }}")
}

#[test]
fn a_failing_service_is_left_alone_until_probes_go_well() {
    let (backend, fails) = switched(BAD);
    let service_keys = breaker("open: 1s, half_open_probes: 2");
    let gateway = Setup { service: &service_keys, ..Setup::default() }.start(backend.endpoint());
    assert_eq!(state(&gateway), 0.0);
    assert_eq!(service(&gateway)["circuitBreaker"]["state"], "closed");
    assert_eq!(statuses(&gateway, 4), [500; 4], "below the minimum it is asked");

    let answer = gateway.get("/");
    assert_eq!(answer.status(), 503);
    assert!((1..=4).contains(&retry_after(&answer)), "{answer:?}");
    assert_eq!(answer.json()["error"], "Service temporarily unavailable");
    assert_eq!((backend.requests().len(), state(&gateway), rejected(&gateway)), (4, 2.0, 1.0));
    let line = gateway.log_line(5);
    assert_eq!((&line["circuitBreaker"], &line["statusCode"]), (&"open".into(), &503.into()));
    assert_eq!((&line["backendService"], &line["backendLatencyMs"]), (&"app".into(), &Value::Null));
    let seen = &service(&gateway)["circuitBreaker"];
    assert_eq!((&seen["state"], &seen["opened"]), (&"open".into(), &1.into()));
    assert!(seen["openForMs"].as_u64().unwrap() <= 1200, "{seen}");
    let stderr = gateway.stderr();
    let told = stderr.lines().filter(|line| line.contains("service `app`: circuit breaker open for 1."));
    assert_eq!(told.filter(|line| line.ends_with("4 of 4 requests failed")).count(), 1, "{stderr}");

    // It still fails: a probe opens it again.
    eventually(PATIENCE, || gateway.get("/").status() == 500);
    assert_eq!((state(&gateway), backend.requests().len()), (2.0, 5));
    fails.store(false, Ordering::Release);
    eventually(PATIENCE, || gateway.get("/").status() == 200);
    assert_eq!(state(&gateway), 1.0, "one of two probes");
    assert_eq!(statuses(&gateway, 4), [200; 4]);
    assert_eq!((state(&gateway), transitions(&gateway)), (0.0, [2.0, 2.0, 1.0]));
    assert!(gateway.stderr().contains("circuit breaker closed: 2 probes went well"), "{}", gateway.stderr());
}

#[test]
fn what_the_gateway_answers_for_a_service_counts() {
    let nobody = Nobody::new();
    let silent = Backend::start(|conn| _ = conn.stall());
    let breaks = Backend::start(|conn| {
        conn.request();
        conn.reset();
    });
    let garbles = Backend::fixed("SIP/2.0 200 OK\r\n\r\n");
    for (endpoint, status) in
        [(nobody.endpoint(), 502), (silent.endpoint(), 504), (breaks.endpoint(), 502), (garbles.endpoint(), 502)]
    {
        let keys = format!("timeouts: {{ answer: 100ms }}, {}", breaker(""));
        let gateway = Setup { service: &keys, ..Setup::default() }.start(endpoint);
        let mut seen = statuses(&gateway, 5);
        assert_eq!((seen.pop(), seen), (Some(503), vec![status; 4]), "{endpoint}");
        assert_eq!(state(&gateway), 2.0);
    }
}

#[test]
fn an_answer_that_breaks_off_counts() {
    let backend = Backend::start(|conn| {
        conn.request();
        conn.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello");
        assert!(conn.stays_silent(Duration::from_millis(20)));
    });
    let gateway = Setup { service: &breaker(""), ..Setup::default() }.start(backend.endpoint());
    for _ in 0..4 {
        let mut client = gateway.connect();
        assert_eq!(client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").read_head().status(), 200);
        client.read_to_end();
    }
    settles_at(2.0, || state(&gateway));
}

#[test]
fn what_is_no_fault_of_the_service_does_not_count() {
    for answer in [
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nContent-Length: 0\r\n\r\n",
    ] {
        let backend = Backend::fixed(answer);
        let gateway = Setup { service: &breaker(""), ..Setup::default() }.start(backend.endpoint());
        statuses(&gateway, 10);
        assert_eq!((state(&gateway), backend.requests().len()), (0.0, 10), "{answer}");
        // Unless the configuration says so.
        let keys = breaker("count: [404, 429, 501, 503]");
        let gateway = Setup { service: &keys, ..Setup::default() }.start(backend.endpoint());
        assert_eq!(statuses(&gateway, 5).pop(), Some(503));
        assert_eq!(state(&gateway), 2.0, "{answer}");
    }
}

#[test]
fn what_the_client_causes_does_not_count_and_gives_a_probes_place_back() {
    let (holds, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (hold, count) = (Arc::clone(&holds), Arc::clone(&held));
    let backend = Backend::start(move |conn| {
        while let Some(head) = conn.next_request_head() {
            match head.target() {
                "/bad" => _ = conn.send(BAD),
                _ if hold.load(Ordering::Acquire) => {
                    count.fetch_add(1, Ordering::AcqRel);
                    conn.stall();
                    return;
                }
                _ => _ = conn.send(OK),
            }
        }
    });
    let keys = breaker("open: 1s, half_open_probes: 1");
    let setup = Setup { service: &keys, route: "limits: { body: 10B }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    for _ in 0..10 {
        let mut client = gateway.connect();
        client.send(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n01234567890123456789\r\n0\r\n\r\n",
        );
        assert_eq!(client.read_response().status(), 413);
    }
    let leave = || {
        let before = held.load(Ordering::Acquire);
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        eventually(PATIENCE, || held.load(Ordering::Acquire) > before || client.is_over());
        client.reset();
    };
    holds.store(true, Ordering::Release);
    (0..5).for_each(|_| leave());
    gateway.expect_idle();
    assert_eq!(state(&gateway), 0.0);

    let mut client = gateway.connect();
    eventually(PATIENCE, || client.get("/bad").status() == 503);
    assert_eq!(state(&gateway), 2.0);
    let mut probe = gateway.connect();
    let before = held.load(Ordering::Acquire);
    // A probe whose client goes away, as soon as one is let through.
    eventually(PATIENCE, || {
        probe = gateway.connect();
        probe.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        eventually(PATIENCE, || held.load(Ordering::Acquire) > before || !probe.stays_silent(Duration::from_millis(1)));
        held.load(Ordering::Acquire) > before
    });
    assert_eq!(state(&gateway), 1.0);
    assert_eq!(client.get("/").status(), 503, "its place is taken");
    probe.reset();
    holds.store(false, Ordering::Release);
    eventually(PATIENCE, || client.get("/").status() == 200);
    assert_eq!((state(&gateway), transitions(&gateway)), (0.0, [1.0, 1.0, 1.0]));
}

#[test]
fn failures_in_a_row_and_slow_answers_open_it_too() {
    let (backend, _) = switched(BAD);
    let keys = "circuit_breaker: { error_share: off, consecutive_failures: 3 }";
    let gateway = Setup { service: keys, ..Setup::default() }.start(backend.endpoint());
    assert_eq!(statuses(&gateway, 4), [500, 500, 500, 503]);
    assert!(gateway.stderr().contains("3 requests failed in a row"));

    let slow = Backend::start(|conn| {
        while conn.next_request().is_some() {
            assert!(conn.stays_silent(Duration::from_millis(60)));
            conn.send(OK);
        }
    });
    let keys = breaker("slow_call: 50ms, slow_share: 100%");
    let gateway = Setup { service: &keys, ..Setup::default() }.start(slow.endpoint());
    assert_eq!(statuses(&gateway, 5), [200, 200, 200, 200, 503]);
    assert!(gateway.stderr().contains("4 of 4 requests were slow"), "{}", gateway.stderr());
}

#[test]
fn a_fixed_answer_stands_in() {
    let (backend, _) = switched(BAD);
    let fallback = "fallback: { respond: { status: 200, json: { products: [] } } }";
    let gateway = Setup { service: &breaker(fallback), ..Setup::default() }.start(backend.endpoint());
    assert_eq!(statuses(&gateway, 4), [500; 4]);
    let mut client = gateway.connect();
    for _ in 0..2 {
        let answer = client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!((answer.status(), answer.text().as_str()), (200, r#"{"products":[]}"#));
        assert_eq!(answer.get("content-type"), Some("application/json"));
    }
    assert_eq!((rejected(&gateway), gateway.log_line(6)["circuitBreaker"].as_str()), (2.0, Some("fallback")));
}

#[test]
fn another_service_stands_in() {
    let (backend, _) = switched(BAD);
    let (other, other_fails) = switched("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n");
    other_fails.store(false, Ordering::Release);
    let gateway = Gateway::start(&format!(
        "services:\n\
         - {{ name: app, endpoints: \"{}\", {} }}\n\
         - {{ name: spare, endpoints: \"{}\", {} }}\n\
         routes: [{{ service: app }}]\n",
        backend.endpoint(),
        breaker("fallback: { service: spare }"),
        other.endpoint(),
        breaker("fallback: { respond: { status: 203, text: sorry } }"),
    ));
    assert_eq!(statuses(&gateway, 6), [500, 500, 500, 500, 200, 200]);
    let line = gateway.log_line(6);
    assert_eq!((&line["backendService"], &line["circuitBreaker"]), (&"spare".into(), &"fallback".into()));
    other_fails.store(true, Ordering::Release);
    assert_eq!(statuses(&gateway, 6), [500, 500, 203, 203, 203, 203]);
}

/// Prepared again when it has its place, it is refused once.
#[test]
fn who_waits_for_the_service_that_stands_in_is_counted_once() {
    let (backend, _) = switched(BAD);
    let go = Arc::new(AtomicBool::new(false));
    let goes = Arc::clone(&go);
    let spare = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            eventually(PATIENCE, || goes.load(Ordering::Acquire));
            conn.send(OK);
        }
    });
    let gateway = Gateway::start(&format!(
        "services:\n\
         - {{ name: app, endpoints: \"{}\", {} }}\n\
         - {{ name: spare, endpoints: \"{}\", bulkhead: {{ requests: 1, pending: 1, wait: 10s }} }}\n\
         routes: [{{ service: app }}]\n",
        backend.endpoint(),
        breaker("open: 1h, fallback: { service: spare }"),
        spare.endpoint(),
    ));
    assert_eq!(statuses(&gateway, 4), [500; 4]);
    let mut clients = [(); 2].map(|()| gateway.connect());
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    settles_at(1.0, || gateway.metric("gateway_bulkhead_pending_requests{service=\"spare\"}"));
    go.store(true, Ordering::Release);
    clients.iter_mut().for_each(|client| assert_eq!(client.read_response().status(), 200));
    assert_eq!(rejected(&gateway), 2.0);
    assert_eq!(gateway.log_line(6)["circuitBreaker"], "fallback");
}

#[test]
fn each_endpoint_may_have_its_own() {
    let (bad, _) = switched(BAD);
    let good = Backend::ok();
    let keys = breaker("per: endpoint");
    let yaml = format!(
        "services: [{{ name: app, endpoints: [\"{}\", \"{}\"], balance: round_robin, {keys} }}]\nroutes: [{{ service: app }}]\n",
        bad.endpoint(),
        good.endpoint()
    );
    let gateway = Gateway::start(&yaml);
    let seen = statuses(&gateway, 40);
    assert_eq!(seen.iter().filter(|status| **status == 500).count(), 4, "{seen:?}");
    assert_eq!((bad.requests().len(), good.requests().len()), (4, 36));
    let of = |endpoint: &str| {
        gateway.metric(&format!("gateway_circuit_breaker_state{{service=\"app\",endpoint=\"{endpoint}\"}}"))
    };
    assert_eq!((of(bad.endpoint()), of(good.endpoint()), rejected(&gateway)), (2.0, 0.0, 0.0));
    let page = service(&gateway);
    assert_eq!(page["endpoints"][0]["circuitBreaker"]["state"], "open", "{page}");
    assert_eq!(page["endpoints"][1]["circuitBreaker"]["state"], "closed", "{page}");
    assert!(gateway.stderr().contains(&format!("service `app`, endpoint `{}`: circuit breaker open", bad.endpoint())));

    // Where none lets it, the answer comes at once.
    let gateway = Setup { service: &keys, ..Setup::default() }.start(bad.endpoint());
    assert_eq!(statuses(&gateway, 5), [500, 500, 500, 500, 503]);
}

#[test]
fn the_state_outlives_a_reload_and_other_settings_act() {
    let (backend, fails) = switched(BAD);
    let yaml = |keys: &str| Setup { service: keys, ..Setup::default() }.yaml(backend.endpoint());
    let gateway = Gateway::start(&yaml(&breaker("open: 2s, half_open_probes: 3")));
    assert_eq!(statuses(&gateway, 5), [500, 500, 500, 500, 503]);
    assert!(gateway.replace_config(&yaml(&breaker("open: 2s, half_open_probes: 1"))));
    assert_eq!(statuses(&gateway, 2), [503; 2]);
    fails.store(false, Ordering::Release);
    eventually(PATIENCE, || gateway.get("/").status() == 200);
    assert_eq!((state(&gateway), transitions(&gateway)), (0.0, [1.0, 1.0, 1.0]), "one probe is enough now");
    assert!(gateway.replace_config(&yaml("")));
    assert!(!gateway.admin("/metrics").1.contains("gateway_circuit_breaker_state{"));
}

#[test]
fn all_cores_share_it() {
    let (backend, _) = switched(BAD);
    let yaml = Setup { service: &breaker(""), ..Setup::default() }.yaml(backend.endpoint());
    let gateway = Gateway::start(&format!("runtime: {{ workers: 4, pin: false }}\n{yaml}"));
    let seen: Vec<u16> = (0..60).map(|_| gateway.get("/").status()).collect();
    assert_eq!((seen.iter().filter(|status| **status == 500).count(), backend.requests().len()), (4, 4), "{seen:?}");
    let line = |worker| gateway.metric(&format!("gateway_connections_accepted_total{{worker=\"{worker}\"}}"));
    assert!((0..4).filter(|worker| line(*worker) > 0.0).count() > 1, "one worker took all");
}

/// A backend that holds what it is asked until so many wait, then ends all of their connections at once, and is gone.
fn dies_with(requests: usize) -> Backend {
    let waiting = Arc::new(AtomicUsize::new(0));
    Backend::start(move |conn| {
        if conn.next_request().is_some() {
            waiting.fetch_add(1, Ordering::AcqRel);
            eventually(PATIENCE, || waiting.load(Ordering::Acquire) >= requests || conn.is_over());
        }
        conn.reset();
    })
}

#[test]
fn an_endpoint_that_dies_does_not_open_the_breaker_of_a_service_whose_others_are_well() {
    let (dying, one, other) = (dies_with(12), Backend::ok(), Backend::ok());
    let endpoints = [&dying, &one, &other].map(|backend| format!("\"{}\"", backend.endpoint())).join(", ");
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: [{endpoints}], balance: round_robin, circuit_breaker: {{}}, \
         retries: {{ budget: {{ min_per_second: 1000 }} }} }}]\nroutes: [{{ name: all, service: app }}]\n"
    ));
    let mut clients: Vec<_> = (0..36).map(|_| gateway.connect()).collect();
    clients.iter_mut().for_each(|client| _ = client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.read_response().status()).collect();
    assert_eq!((statuses, transitions(&gateway)), (vec![200; 36], [0.0; 3]), "twelve broke at once");
    // It stays dead: a third of the tries fail, and no request.
    assert_eq!(self::statuses(&gateway, 60), [200; 60]);
    assert_eq!((transitions(&gateway), rejected(&gateway)), ([0.0; 3], 0.0));
    let seen = &service(&gateway)["circuitBreaker"];
    assert_eq!(seen["state"], "closed", "{seen}");
}

#[test]
fn tries_that_failed_everywhere_count_for_the_service() {
    let backends = [(); 3].map(|()| switched(BAD));
    let endpoints = backends.each_ref().map(|(backend, _)| format!("\"{}\"", backend.endpoint())).join(", ");
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: [{endpoints}], balance: round_robin, {}, \
         retries: {{ on: [500], backoff: {{ base: 0s }} }} }}]\nroutes: [{{ name: all, service: app }}]\n",
        breaker("min_requests: 6, open: 1h").replace("min_requests: 4, ", "")
    ));
    assert_eq!(statuses(&gateway, 3), [500, 500, 503], "three tries each");
    assert_eq!((state(&gateway), transitions(&gateway)), (2.0, [1.0, 0.0, 0.0]));
    assert_eq!(backends.iter().map(|(backend, _)| backend.requests().len()).sum::<usize>(), 6);
}
