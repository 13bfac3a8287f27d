//! What a request costs in the steady state, counted where no clock is needed: allocations, ring operations, system
//! calls, memory. docs/performance.md tells how to read the figures.

use std::fmt::Write;
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::http2::{DATA, END_STREAM, Http2};
use ringway_tests::tls::{Authority, TlsBackend, VERSIONS};
use ringway_tests::{Backend, Client, Gateway, Nobody, PATIENCE, Strace, confine, eventually, settles_at};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Requests that are counted.
const COUNTED: u32 = 2_000;
/// How long every pool gets to fill before that; the buffers of the access log make their round in this time.
const WARM_UP: Duration = Duration::from_secs(1);
const CONNECTIONS: usize = 4;
/// The worker writes its counters at each tick, 50 ms apart.
const TICKS: Duration = Duration::from_millis(200);

// The limits, for a request in the steady state. They stand close above what is measured, so that one more of anything
// fails a test.
const ALLOCATIONS_MAX: f64 = 0.01;
/// The polls of a connection stay armed from one request to the next.
const RING_OPERATIONS_MAX: f64 = 0.01;
/// Where io_uring is forbidden, or not asked for, each wait is one.
const EPOLL_WAITS_MAX: f64 = 2.5;
/// System calls of a request that is proxied, on one connection that waits for each answer: both sides are received
/// from once and sent to once, and the worker waits once for each.
const PROXIED_CALLS_MAX: Calls = Calls { receives: 2.0, sends: 2.0, waits: 2.0, others: 0.0 };
/// The same where the gateway answers itself.
const ANSWERED_CALLS_MAX: Calls = Calls { receives: 1.0, sends: 1.0, waits: 1.0, others: 0.0 };
/// Calls that one wait takes where io_uring is forbidden: `poll` on both sides of `epoll_wait`.
const EPOLL_CALLS_MAX: f64 = 2.0;
/// Share of the requests for which one call more passes: a segment that came in two pieces, a batch of the log.
const CALLS_SLACK: f64 = 0.03;
/// Calls that time takes and not the requests, in a second: the ticks of the worker, the other threads.
const CALLS_PER_SECOND_MAX: f64 = 200.0;
/// Memory of an idle connection.
const IDLE_BYTES_MAX: u64 = 1280;
const IDLE_HTTP2_BYTES_MAX: u64 = 24 * 1024;

const GET: &str = "GET / HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: cost/1.0\r\nAccept: */*\r\n\r\n";

#[derive(Debug)]
struct Cost {
    allocations: f64,
    ring_operations: f64,
    loop_turns: f64,
}

fn counters(gateway: &Gateway) -> [f64; 3] {
    thread::sleep(TICKS);
    ["allocations", "ring_operations", "loop_turns"]
        .map(|name| gateway.metric(&format!("gateway_worker_{name}_total{{worker=\"0\"}}")))
}

/// Asks the same again and again, on connections that stay open, one request at a time.
fn cost_of(gateway: &Gateway, ask: impl Fn(&mut Client)) -> Cost {
    let mut clients: Vec<_> = (0..CONNECTIONS).map(|_| gateway.connect()).collect();
    let mut run = |requests: u32| (0..requests as usize).for_each(|index| ask(&mut clients[index % CONNECTIONS]));
    let begun = Instant::now();
    while begun.elapsed() < WARM_UP {
        run(CONNECTIONS as u32);
    }
    let before = counters(gateway);
    run(COUNTED);
    let after = counters(gateway);
    let [allocations, ring_operations, loop_turns] =
        [0, 1, 2].map(|index| (after[index] - before[index]) / f64::from(COUNTED));
    Cost { allocations, ring_operations, loop_turns }
}

#[track_caller]
fn assert_cheap(cost: &Cost) {
    eprintln!("{cost:?}");
    assert!(cost.allocations <= ALLOCATIONS_MAX, "{cost:?}");
    // Counters that stand still would pass as well: one event for the request, one for its answer.
    if cost.loop_turns > 0.0 {
        assert!(cost.ring_operations <= RING_OPERATIONS_MAX, "{cost:?}");
        assert!((0.5..=3.0).contains(&cost.loop_turns), "{cost:?}");
    } else {
        assert!((0.5..=EPOLL_WAITS_MAX).contains(&cost.ring_operations), "{cost:?}");
    }
}

#[track_caller]
fn assert_get_is_cheap(gateway: &Gateway, target: &str, bytes: usize) {
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: cost/1.0\r\nAccept: */*\r\n\r\n");
    assert_cheap(&cost_of(gateway, |client| {
        let answer = client.ask(&request);
        assert_eq!((answer.status(), answer.body.len()), (200, bytes));
    }));
}

fn sized(bytes: usize) -> Backend {
    Backend::fixed(format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n{}", "x".repeat(bytes)))
}

#[test]
fn a_small_answer() {
    let backend = sized(100);
    assert_get_is_cheap(&Gateway::to(backend.endpoint()), "/", 100);
}

#[test]
fn an_answer_of_16_kib() {
    let backend = sized(16 * 1024);
    assert_get_is_cheap(&Gateway::to(backend.endpoint()), "/", 16 * 1024);
}

#[test]
fn an_answer_of_16_kib_over_tls() {
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, pki_types::ServerName};
    use std::io::{Read, Write as _};

    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let files = tempfile::tempdir().unwrap();
    let [pem, key] = ["own.pem", "own.key"].map(|name| files.path().join(name));
    std::fs::write(&pem, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let backend = sized(16 * 1024);
    let tls = format!("tls: {{ certificates: {{ certificate: \"{}\", key: \"{}\" }} }}", pem.display(), key.display());
    let gateway = ringway_tests::Setup { listener: &tls, ..Default::default() }.start(backend.endpoint());

    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = std::sync::Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    let mut clients: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let name = ServerName::try_from("localhost").unwrap();
            let stream = std::net::TcpStream::connect(gateway.address()).unwrap();
            StreamOwned::new(ClientConnection::new(config.clone(), name).unwrap(), stream)
        })
        .collect();
    let mut answer = vec![0; 64 * 1024];
    let mut run = |requests: u32| {
        for index in 0..requests as usize {
            let client = &mut clients[index % CONNECTIONS];
            client.write_all(GET.as_bytes()).unwrap();
            let mut received = 0;
            let is_whole = |answer: &[u8]| {
                let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
                head.is_some_and(|head| answer.len() == head + 4 + 16 * 1024)
            };
            while !is_whole(&answer[..received]) {
                received += client.read(&mut answer[received..]).unwrap();
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 "));
        }
    };
    let begun = Instant::now();
    while begun.elapsed() < WARM_UP {
        run(CONNECTIONS as u32);
    }
    let before = counters(&gateway);
    run(COUNTED);
    let after = counters(&gateway);
    let [allocations, ring_operations, loop_turns] =
        [0, 1, 2].map(|index| (after[index] - before[index]) / f64::from(COUNTED));
    assert_cheap(&Cost { allocations, ring_operations, loop_turns });
    settles_at(0.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
}

#[test]
fn an_answer_of_a_service_whose_endpoints_are_watched() {
    let backends = [sized(100), sized(100)];
    for balance in ["peak_ewma", "{ consistent_hash: { on: header User-Agent } }"] {
        let endpoints = backends.each_ref().map(|backend| format!("\"{}\"", backend.endpoint())).join(", ");
        let gateway = Gateway::start(&format!(
            "services: [{{ name: app, endpoints: [{endpoints}], balance: {balance}, outlier_ejection: {{}}, \
             health_check: {{ tcp: {{}} }} }}]\nroutes: [{{ name: all, service: app }}]\n"
        ));
        assert_get_is_cheap(&gateway, "/", 100);
    }
}

/// Sessions, zones of which one spills over, and a subset.
#[test]
fn an_answer_of_a_service_with_sessions_zones_and_subsets() {
    let backends = [(); 4].map(|()| sized(100));
    let endpoint = |(index, backend): (usize, &Backend)| {
        let zone = if index < 2 { "here" } else { "there" };
        format!("{{ address: \"{}\", zone: {zone}, metadata: {{ version: v1 }} }}", backend.endpoint())
    };
    let mut endpoints: Vec<String> = backends.iter().enumerate().map(endpoint).collect();
    // Nobody is there: half of the own zone is unwell.
    let nobody = Nobody::new();
    endpoints
        .push(format!("{{ address: \"{}\", zone: here, weight: 2, metadata: {{ version: v1 }} }}", nobody.endpoint()));
    let gateway = Gateway::start(&format!(
        "zone: here\n\
         services: [{{ name: app, endpoints: [{}], zones: {{}}, sticky: {{ cookie: stay, indirect: true }}, \
         health_check: {{ tcp: {{}}, interval: 50ms, unhealthy_threshold: 1 }} }}]\n\
         routes: [{{ name: all, service: app, subset: {{ metadata: {{ version: v1 }}, fallback: any }} }}]\n",
        endpoints.join(", ")
    ));
    eventually(PATIENCE, || (gateway.metric("gateway_service_local_share{service=\"app\"}") - 0.7).abs() < 1e-9);
    let answer = gateway.get("/");
    let pair = answer.get("set-cookie").and_then(|line| line.split(';').next()).expect("a cookie").to_owned();
    let kept = format!("GET / HTTP/1.1\r\nHost: api.example.com\r\nCookie: cart=1; {pair}\r\n\r\n");
    assert_cheap(&cost_of(&gateway, |client| {
        let answer = client.ask(&kept);
        assert_eq!((answer.status(), answer.body.len(), answer.has("set-cookie")), (200, 100, false));
    }));
    // And where each answer sets one.
    assert_cheap(&cost_of(&gateway, |client| {
        let answer = client.ask(GET);
        assert_eq!((answer.status(), answer.body.len(), answer.has("set-cookie")), (200, 100, true));
    }));
}

#[test]
fn an_answer_of_endpoints_that_a_header_chooses() {
    let backends = [(); 4].map(|()| sized(100));
    let endpoint = |(index, backend): (usize, &Backend)| {
        format!("{{ address: \"{}\", metadata: {{ version: v{} }} }}", backend.endpoint(), index / 2)
    };
    let endpoints: Vec<String> = backends.iter().enumerate().map(endpoint).collect();
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: [{}] }}]\n\
         routes: [{{ name: all, service: app, subset: {{ by_header: {{ name: x-version, metadata: version }}, fallback: any }} }}]\n",
        endpoints.join(", ")
    ));
    for version in ["v0", "v1", "nobody"] {
        let request = format!("GET / HTTP/1.1\r\nHost: api.example.com\r\nX-Version: {version}\r\n\r\n");
        assert_cheap(&cost_of(&gateway, |client| {
            let answer = client.ask(&request);
            assert_eq!((answer.status(), answer.body.len()), (200, 100));
        }));
    }
}

#[test]
fn an_answer_of_16_kib_from_a_service_over_tls() {
    let (authority, body) = (Authority::new(), vec![b'x'; 16 * 1024]);
    for version in VERSIONS {
        let body = body.clone();
        let backend = TlsBackend::start(authority.server(version), move |peer| {
            while peer.next_request().is_some() {
                peer.answer(&body);
            }
        });
        let service = format!("tls: {{ ca: \"{}\" }}", authority.ca());
        let setup = ringway_tests::Setup { service: &service, ..Default::default() };
        let gateway = setup.start(&backend.at("127.0.0.1"));
        assert_get_is_cheap(&gateway, "/", 16 * 1024);
        settles_at(0.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
    }
}

#[test]
fn a_body_of_2_kib() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let request =
        format!("POST /orders HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 2048\r\n\r\n{}", "x".repeat(2048));
    assert_cheap(&cost_of(&gateway, |client| assert_eq!(client.ask(&request).status(), 200)));
}

#[test]
fn a_chunked_answer() {
    let chunk = format!("800\r\n{}\r\n", "x".repeat(0x800));
    let backend =
        Backend::fixed(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n"));
    assert_get_is_cheap(&Gateway::to(backend.endpoint()), "/", 3 * 0x800);
}

#[test]
fn a_route_among_ten_thousand() {
    let backend = Backend::ok();
    let mut yaml = format!("services: [{{ name: app, endpoints: \"{}\" }}]\nroutes:\n", backend.endpoint());
    for route in 0..10_000 {
        writeln!(yaml, "  - {{ match: {{ path: \"/v1/things{route}/{{id}}/parts\" }}, service: app }}").unwrap();
    }
    assert_get_is_cheap(&Gateway::start(&yaml), "/v1/things7777/42/parts", 2);
}

#[test]
fn routes_that_rewrite_and_change_headers() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: \"{}\" }}]\n\
         routes:\n\
         \x20 - match: {{ path: \"/api/products/{{id}}\" }}\n\
         \x20   service: app\n\
         \x20   rewrite: {{ path: \"/products/{{id}}\" }}\n\
         \x20   request_headers: {{ set: {{ x-id: \"${{path.id}}\", x-client: \"${{client.ip}}\" }}, remove: [cookie] }}\n\
         \x20   response_headers: {{ set: {{ x-route: \"${{route}}\", x-seen: \"${{path.id}}\" }} }}\n",
        backend.endpoint()
    ));
    assert_get_is_cheap(&gateway, "/api/products/42", 2);
    assert_eq!(backend.requests()[0].target(), "/products/42");
}

#[test]
fn a_route_with_limits() {
    let backend = sized(100);
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: \"{}\" }}]\n\
         rate_limits: [{{ name: rate, limit: 1000000/s }}]\n\
         concurrency_limits: [{{ name: own, requests: 10 }}, {{ name: all, requests: 100, key: [route, header X-Tenant] }}]\n\
         routes: [{{ service: app, rate_limit: rate, concurrency_limit: [own, all] }}]\n",
        backend.endpoint()
    ));
    assert_get_is_cheap(&gateway, "/", 100);
}

#[test]
fn a_service_with_a_bulkhead_and_an_adaptive_limit() {
    let backend = sized(100);
    let keys = "bulkhead: { requests: 100, pending: 10 }, adaptive_concurrency: { min: 10, probe_interval: 1s }";
    let setup = ringway_tests::Setup { service: keys, ..Default::default() };
    assert_get_is_cheap(&setup.start(backend.endpoint()), "/", 100);
}

/// A service with breakers, and with retries that nothing asks for.
fn resilient(endpoint: &str) -> String {
    format!(
        "services: [{{ name: app, endpoints: \"{endpoint}\", circuit_breaker: {{ per: both, slow_call: 10s }}, retries: {{}} }}]\n\
         routes: [{{ service: app }}]\n"
    )
}

#[test]
fn a_service_with_breakers_and_retries() {
    let backend = sized(100);
    assert_get_is_cheap(&Gateway::start(&resilient(backend.endpoint())), "/", 100);
}

#[test]
fn system_calls_with_breakers_and_retries() {
    let backend = sized(100);
    assert_calls(&traced(&resilient(backend.endpoint())), GET, PROXIED_CALLS_MAX);
}

/// A route whose requests are answered long before there is a hedge.
fn hedged(endpoints: [&str; 2]) -> String {
    format!(
        "services: [{{ name: app, endpoints: {endpoints:?} }}]\n\
         routes: [{{ service: app, retries: {{ hedge: {{ after: 50ms, max: 3 }} }} }}]\n"
    )
}

#[test]
fn a_route_with_hedges() {
    let backends = [sized(100), sized(100)];
    let gateway = Gateway::start(&hedged(backends.each_ref().map(Backend::endpoint)));
    assert_get_is_cheap(&gateway, "/", 100);
}

#[test]
fn system_calls_with_hedges() {
    let backends = [sized(100), sized(100)];
    assert_calls(&traced(&hedged(backends.each_ref().map(Backend::endpoint))), GET, PROXIED_CALLS_MAX);
}

#[test]
fn an_answer_of_the_gateway_itself() {
    let gateway = Gateway::start("routes: [{ match: { path: /health }, respond: { json: { status: healthy } } }]\n");
    assert_get_is_cheap(&gateway, "/health", r#"{"status":"healthy"}"#.len());
}

/// System calls by what they are for.
#[derive(Debug, Clone, Copy)]
struct Calls {
    receives: f64,
    sends: f64,
    /// On the ring, or on epoll.
    waits: f64,
    others: f64,
}

/// Asks the same again and again on one connection, while all threads of the gateway are watched.
#[track_caller]
fn assert_calls(gateway: &Gateway, request: &str, max: Calls) {
    let mut client = gateway.connect();
    let mut run = |requests: u32| (0..requests).for_each(|_| assert_eq!(client.ask(request).status(), 200));
    run(100);
    let strace = Strace::attach(gateway.pid());
    let begun = Instant::now();
    run(COUNTED);
    let seconds = begun.elapsed().as_secs_f64();
    let counted = strace.finish();

    let sum = |names: &[&str]| names.iter().filter_map(|name| counted.get(*name)).sum::<u64>() as f64;
    let receives = sum(&["recvfrom", "recvmsg", "readv"]);
    let sends = sum(&["sendto", "sendmsg", "writev"]);
    let waits = sum(&["io_uring_enter", "epoll_ctl", "epoll_pwait", "epoll_wait", "poll"]);
    let epoll = gateway.metric("gateway_worker_driver_info{worker=\"0\",driver=\"epoll\"}") == 1.0;
    let calls_of_a_wait = if epoll { EPOLL_CALLS_MAX } else { 1.0 };
    let others = counted.values().sum::<u64>() as f64 - receives - sends - waits;
    let requests = f64::from(COUNTED);
    eprintln!("calls of {COUNTED} requests in {seconds:.2} s: {counted:?}");
    let by_time = seconds * CALLS_PER_SECOND_MAX;
    for (what, calls, max, by_time) in [
        ("receives", receives, max.receives, 0.0),
        ("sends", sends, max.sends, 0.0),
        ("waits", waits, max.waits * calls_of_a_wait, by_time),
        ("other system calls", others, max.others, by_time),
    ] {
        assert!(
            calls <= requests * (max + CALLS_SLACK) + by_time,
            "{:.3} {what} a request, at most {max} are allowed: {counted:?}",
            calls / requests
        );
    }
    // A count that missed the worker would pass as well.
    assert!(receives >= requests * 0.5 && sends >= requests * 0.5, "not counted: {counted:?}");
}

fn traced(yaml: &str) -> Gateway {
    Gateway::start_with(yaml, confine::allow_tracing)
}

#[test]
fn system_calls_of_a_small_answer() {
    let backend = sized(100);
    assert_calls(&traced(&Gateway::route_to(backend.endpoint())), GET, PROXIED_CALLS_MAX);
}

#[test]
fn system_calls_of_an_answer_of_16_kib() {
    let backend = sized(16 * 1024);
    assert_calls(&traced(&Gateway::route_to(backend.endpoint())), GET, PROXIED_CALLS_MAX);
}

#[test]
fn system_calls_of_a_body_of_2_kib() {
    let backend = Backend::ok();
    let request =
        format!("POST / HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 2048\r\n\r\n{}", "x".repeat(2048));
    assert_calls(&traced(&Gateway::route_to(backend.endpoint())), &request, PROXIED_CALLS_MAX);
}

#[test]
fn system_calls_of_an_answer_of_the_gateway_itself() {
    assert_calls(&traced("routes: [{ match: { path: / }, respond: { text: hello } }]\n"), GET, ANSWERED_CALLS_MAX);
}

#[test]
fn an_idle_connection() {
    // So many that what the process itself takes meanwhile does not show.
    assert_idle(6_000, IDLE_BYTES_MAX, |gateway| gateway.connect(), |client| assert_eq!(client.get("/").status(), 200));
}

#[test]
fn an_idle_connection_of_http2() {
    let mut stream = 1;
    let connect = |gateway: &Gateway| Http2::connect(gateway.address());
    assert_idle(500, IDLE_HTTP2_BYTES_MAX, connect, |client| {
        stream += 2;
        assert_eq!(client.get(stream, "/").status(stream), 200);
        while client.next_of(DATA, stream).flags & END_STREAM == 0 {}
    });
}

/// Opens so many connections, each of which asks once before it is idle, and asserts how much memory of the gateway each
/// takes then.
fn assert_idle<C>(held: usize, bytes_max: u64, connect: impl Fn(&Gateway) -> C, mut ask: impl FnMut(&mut C)) {
    raise_descriptors(held as u64 + 1_000);
    let backend = Backend::ok();
    let yaml =
        format!("limits: {{ connections: 8000, connections_per_ip: off }}\n{}", Gateway::route_to(backend.endpoint()));
    let gateway = Gateway::start(&yaml);
    let mut open = |count: usize| -> Vec<C> {
        let mut clients: Vec<_> = (0..count).map(|_| connect(&gateway)).collect();
        clients.iter_mut().for_each(&mut ask);
        clients
    };
    let first = open(500);
    let before = resident(&gateway);
    let clients = open(held);
    settles_at((held + first.len()) as f64, || gateway.metric("gateway_active_connections"));
    let each = resident(&gateway).saturating_sub(before) / held as u64;
    eprintln!("{each} bytes for an idle connection");
    assert!(each <= bytes_max, "{each} bytes for an idle connection");
    // They are still of use.
    clients.into_iter().step_by(100).for_each(|mut client| ask(&mut client));
}

/// Resident memory once it does not move any more.
fn resident(gateway: &Gateway) -> u64 {
    let mut last = gateway.rss_bytes();
    eventually(PATIENCE, || {
        thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut last, gateway.rss_bytes());
        last.abs_diff(before) <= 16 * 1024
    });
    last
}

/// For this test's own sockets.
fn raise_descriptors(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    assert!(limit.maximum.is_none_or(|maximum| maximum >= wanted), "this test needs {wanted} open files: ulimit -Hn");
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum }).unwrap();
    }
}
