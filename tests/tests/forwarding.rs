//! What a service learns of a request, and what the client learns of the service.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_tests::{Backend, Client, Gateway, Head, PATIENCE, Setup, eventually, settles_at};

/// Sends one GET with these fields through a listener with this setup; gives back what the service got.
#[track_caller]
fn seen_by_service(listener: &str, fields: &str) -> Head {
    let backend = Backend::ok();
    let gateway = Setup { listener, ..Setup::default() }.start(backend.endpoint());
    let answer = gateway.connect().ask(format!("GET /a?b=c HTTP/1.1\r\nHost: site.test:8080\r\n{fields}\r\n"));
    assert_eq!(answer.status(), 200, "{}", answer.text());
    backend.request()
}

const TRUSTED: &str = "trusted_proxies: [127.0.0.1]";

fn is_uuid_7(id: &str) -> bool {
    let groups: Vec<&str> = id.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups[2].starts_with('7')
        && groups.concat().bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[test]
fn a_stranger_is_not_believed() {
    let fields = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\n\
                  Forwarded: for=6.6.6.6\r\nX-Request-ID: mine\r\n";
    let seen = seen_by_service("via: edge", fields);
    assert_eq!(seen.all("x-forwarded-for").collect::<Vec<_>>(), ["127.0.0.1"]);
    assert_eq!(seen.all("x-forwarded-proto").collect::<Vec<_>>(), ["http"]);
    assert_eq!(seen.all("x-forwarded-host").collect::<Vec<_>>(), ["site.test:8080"]);
    assert_eq!(seen.all("forwarded").count(), 0);
    assert_eq!(seen.all("x-request-id").count(), 1);
    assert!(is_uuid_7(seen.get("x-request-id").expect("X-Request-ID")), "{seen:?}");
    assert_eq!(seen.get("via"), Some("1.1 edge"));
    assert_eq!(seen.get("host"), Some("site.test:8080"));
    assert_eq!(seen.target(), "/a?b=c");
}

#[test]
fn fields_that_a_service_could_take_for_the_gateways_are_dropped() {
    let fields = "X_Forwarded_For: 6.6.6.6\r\nX_Request_Id: mine\r\nContent_Length: 9\r\nX-Real-IP: 6.6.6.6\r\n\
                  X-Forwarded-Port: 1\r\nx_custom: stays\r\n";
    let seen = seen_by_service("", fields);
    for name in ["x_forwarded_for", "x_request_id", "content_length", "x-real-ip", "x-forwarded-port"] {
        assert!(!seen.has(name), "{name}: {seen:?}");
    }
    assert_eq!(seen.get("x_custom"), Some("stays"));
    let seen = seen_by_service(TRUSTED, fields);
    assert_eq!((seen.get("x-real-ip"), seen.get("x-forwarded-port")), (Some("6.6.6.6"), Some("1")));
    assert!(!seen.has("x_forwarded_for"), "{seen:?}");
}

#[test]
fn a_trusted_proxy_is_believed_and_goes_on_the_list() {
    let fields = "X-Forwarded-For: 6.6.6.6, 192.0.2.7\r\nX-Forwarded-For: 10.0.0.9\r\nX-Forwarded-Proto: https\r\n\
                  X-Forwarded-Host: shop.test\r\nX-Request-ID: abc-1\r\nVia: 1.0 cdn\r\n";
    let seen = seen_by_service("trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]", fields);
    assert_eq!(seen.all("x-forwarded-for").collect::<Vec<_>>(), ["6.6.6.6, 192.0.2.7, 10.0.0.9, 127.0.0.1"]);
    assert_eq!(seen.all("x-forwarded-proto").collect::<Vec<_>>(), ["https"]);
    assert_eq!(seen.all("x-forwarded-host").collect::<Vec<_>>(), ["shop.test"]);
    assert_eq!(seen.all("x-request-id").collect::<Vec<_>>(), ["abc-1"]);
    assert_eq!(seen.all("via").collect::<Vec<_>>(), ["1.0 cdn", "1.1 ringway"]);
}

#[test]
fn the_nearest_hop_that_is_not_trusted_is_the_client() {
    let backend = Backend::ok();
    let setup = Setup { listener: "trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let fields = "X-Forwarded-For: 6.6.6.6, 192.0.2.7, 10.0.0.9";
    gateway.connect().ask(format!("GET / HTTP/1.1\r\nHost: a\r\nUser-Agent: test/1\r\n{fields}\r\n\r\n"));
    let line = gateway.log_line(1);
    assert_eq!((line["clientIp"].as_str(), line["userAgent"].as_str()), (Some("192.0.2.7"), Some("test/1")));
}

#[test]
fn an_insane_request_id_is_replaced_even_if_it_is_trusted() {
    for id in ["a b", "", "a\"b", &"x".repeat(65), "<script>"] {
        let seen = seen_by_service(TRUSTED, &format!("X-Request-ID: {id}\r\n"));
        assert!(is_uuid_7(seen.get("x-request-id").expect("X-Request-ID")), "{id:?}: {seen:?}");
        assert_eq!(seen.all("x-request-id").count(), 1);
    }
}

#[test]
fn the_request_id_is_the_same_everywhere() {
    let backend = Backend::fixed("HTTP/1.1 200 OK\r\nX-Request-ID: of-the-service\r\nContent-Length: 0\r\n\r\n");
    let gateway = Gateway::to(backend.endpoint());
    let answer = gateway.get("/");
    let ids: Vec<&str> = answer.all("x-request-id").collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_eq!(backend.request().get("x-request-id"), Some(ids[0]));
    assert_eq!(gateway.log_line(1)["requestId"], ids[0]);
}

#[test]
fn forwarded_where_it_is_asked_for() {
    let listener = "forwarded: { x_forwarded: false, forwarded: true }";
    let seen = seen_by_service(listener, "Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\n");
    assert_eq!(seen.all("forwarded").collect::<Vec<_>>(), ["for=127.0.0.1;host=\"site.test:8080\";proto=http"]);
    assert!(!seen.has("x-forwarded-for"));
    let listener = format!("{listener}, {TRUSTED}");
    let seen = seen_by_service(&listener, "Forwarded: for=192.0.2.7\r\n");
    let all: Vec<&str> = seen.all("forwarded").collect();
    assert_eq!(all, ["for=192.0.2.7", "for=127.0.0.1;host=\"site.test:8080\";proto=http"]);
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[test]
fn a_sane_trace_is_passed_on_as_it_is() {
    let fields = format!("traceparent: {PARENT}\r\ntracestate: a=1,b=2\r\n");
    let seen = seen_by_service("", &fields);
    assert_eq!(seen.all("traceparent").collect::<Vec<_>>(), [PARENT]);
    assert_eq!(seen.get("tracestate"), Some("a=1,b=2"));

    let seen = seen_by_service("", "b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1\r\n");
    assert_eq!(seen.get("b3"), Some("80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"));
    assert!(!seen.has("traceparent"), "one trace is enough: {seen:?}");

    let multi =
        "X-B3-TraceId: 80f198ee56343ba864fe8b2a57d3eff7\r\nX-B3-SpanId: e457b5a2e4d86bd1\r\nX-B3-Sampled: 1\r\n";
    let seen = seen_by_service("", multi);
    assert_eq!(seen.get("x-b3-spanid"), Some("e457b5a2e4d86bd1"));
    assert_eq!(seen.get("x-b3-sampled"), Some("1"));
    assert!(!seen.has("traceparent"));
}

#[test]
fn a_broken_trace_is_replaced() {
    for broken in [
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "garbage",
    ] {
        let seen = seen_by_service("", &format!("traceparent: {broken}\r\ntracestate: a=1\r\n"));
        let parents: Vec<&str> = seen.all("traceparent").collect();
        assert_eq!(parents.len(), 1, "{parents:?}");
        assert!(parents[0] != broken && parents[0].len() == 55, "{parents:?}");
        assert!(!seen.has("tracestate"), "it belongs to the broken one");
    }
    let twice = format!("traceparent: {PARENT}\r\ntraceparent: {PARENT}\r\n");
    assert_eq!(seen_by_service("", &twice).all("traceparent").count(), 1);
}

#[test]
fn a_trace_is_started_as_configured() {
    let seen = seen_by_service("trace: w3c", "");
    let parent = seen.get("traceparent").expect("a trace");
    assert!(parent.starts_with("00-") && parent.len() == 55 && parent.ends_with("-00"), "{parent}");
    let seen = seen_by_service("trace: b3", "");
    assert_eq!((seen.get("b3").map(str::len), seen.has("traceparent")), (Some(49), false));
    let seen = seen_by_service("trace: b3multi", "");
    assert_eq!(seen.get("x-b3-traceid").map(str::len), Some(32));
    assert_eq!(seen.get("x-b3-spanid").map(str::len), Some(16));
    assert!(!seen.has("x-b3-sampled"), "the decision is the service's");
    let seen = seen_by_service("trace: off", "");
    assert!(!seen.has("traceparent") && !seen.has("b3") && !seen.has("x-b3-traceid"));
}

#[test]
fn headers_are_changed_on_the_way_to_the_service() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: {} }}]\n\
         routes:\n\
         - name: item\n  \
           match: {{ path: \"/items/{{id}}\" }}\n  \
           service: app\n  \
           request_headers:\n    \
             remove: [cookie, X-Gone]\n    \
             set: {{ x-set: \"${{path.id}} ${{request.method}} ${{route}} ${{service}} ${{request.query}}\", user-agent: gw }}\n    \
             add: {{ x-add: [one, \"${{client.ip}} ${{header.x-in}} $$\"] }}\n",
        backend.endpoint()
    ));
    let answer = gateway.connect().ask(
        "GET /items/a%20b?q=1 HTTP/1.1\r\nHost: a\r\nCookie: c=1\r\nx-gone: 1\r\nX-Set: old\r\nX-Set: older\r\n\
         X-Add: zero\r\nX-In: in\r\nUser-Agent: test\r\n\r\n",
    );
    assert_eq!(answer.status(), 200);
    let seen = backend.request();
    assert!(!seen.has("cookie") && !seen.has("x-gone"));
    let set: Vec<&str> = seen.all("x-set").collect();
    assert!(set == ["a%20b GET item app q=1"] || set == ["a b GET item app q=1"], "{set:?}");
    assert_eq!(seen.all("x-add").collect::<Vec<_>>(), ["zero", "one", "127.0.0.1 in $"]);
    assert_eq!(seen.all("user-agent").collect::<Vec<_>>(), ["gw"]);
    assert_eq!(gateway.log_line(1)["userAgent"], "test", "the log has the client's own");
}

#[test]
fn headers_are_changed_on_the_way_to_the_client() {
    let backend =
        Backend::fixed("HTTP/1.1 200 OK\r\nServer: app/1\r\nX-Set: old\r\nX-Add: zero\r\nContent-Length: 2\r\n\r\nok");
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: {} }}]\n\
         routes:\n\
         - name: item\n  \
           match: {{ path: \"/items/{{id}}\" }}\n  \
           service: app\n  \
           response_headers:\n    \
             remove: [server]\n    \
             set: {{ x-set: \"${{path.id}} ${{request.path}} ${{request.id}}\", strict-transport-security: max-age=1 }}\n    \
             add: {{ x-add: one }}\n",
        backend.endpoint()
    ));
    let mut client = gateway.connect();
    for id in ["a", "b"] {
        let answer = client.get(&format!("/items/./{id}"));
        assert!(!answer.has("server"));
        let request_id = answer.get("x-request-id").expect("X-Request-ID");
        assert_eq!(answer.all("x-set").collect::<Vec<_>>(), [format!("{id} /items/{id} {request_id}")]);
        assert_eq!(answer.all("x-add").collect::<Vec<_>>(), ["zero", "one"]);
        assert_eq!(answer.get("strict-transport-security"), Some("max-age=1"));
        assert_eq!(answer.text(), "ok");
    }
}

#[test]
fn header_values_cannot_be_used_to_inject_lines() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: {} }}]\n\
         routes: [{{ match: {{ path: \"/{{id}}\" }}, service: app, \
         request_headers: {{ set: {{ x-id: \"${{path.id}}\", x-q: \"${{request.query}}\" }} }} }}]\n",
        backend.endpoint()
    ));
    let answer = gateway.get("/a%0d%0aX-Evil:1");
    assert_eq!(answer.status(), 400);
    let answer = gateway.get("/a?q=%0d%0aX-Evil:1");
    assert_eq!(answer.status(), 200);
    assert!(!backend.request().has("x-evil"));
}

#[test]
fn paths_are_normalized_once() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    let mut client = gateway.connect();
    for (sent, seen) in [
        ("/a/./b/../c", "/a/c"),
        ("/a//b", "/a/b"),
        ("/%61/%7euser", "/a/~user"),
        ("/a/%2e%2e/b", "/b"),
        ("/a%c3%a4", "/a%C3%A4"),
        ("/a?x=%2e%2e//..", "/a?x=%2e%2e//.."),
        ("/a/", "/a/"),
        ("/", "/"),
        ("/?", "/?"),
    ] {
        assert_eq!(client.get(sent).status(), 200, "{sent}");
        assert_eq!(backend.requests().last().expect("a request").target(), seen, "{sent}");
    }
}

#[test]
fn a_path_cannot_walk_out_of_its_route() {
    let backend = Backend::ok();
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: {} }}]\nroutes: [{{ match: {{ prefix: /public }}, service: app }}]\n",
        backend.endpoint()
    ));
    let mut client = gateway.connect();
    for path in
        ["/public/../private", "/public/%2e%2e/private", "/public/.%2e/private", "/publicity", "/public/../../private"]
    {
        assert!(matches!(client.get(path).status(), 400 | 404), "{path}");
    }
    assert_eq!(backend.connections(), 0);
    assert_eq!(client.get("/private/../public/x").status(), 200);
    assert_eq!(backend.request().target(), "/public/x");
}

#[test]
fn paths_and_hosts_are_rewritten() {
    let backend = Backend::ok();
    let endpoint = backend.endpoint();
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: {endpoint} }}]\n\
         routes:\n\
         - {{ match: {{ prefix: /legacy }}, service: app, rewrite: {{ strip_prefix: /legacy }}, host: endpoint }}\n\
         - {{ match: {{ path: \"/items/{{id}}/{{part}}\" }}, service: app, \
              rewrite: {{ path: \"/i/{{part}}/{{id}}\" }}, host: inner.test }}\n"
    ));
    let mut client = gateway.connect();
    for (sent, target, host) in [
        ("/legacy/a/b?c=d", "/a/b?c=d", endpoint),
        ("/legacy", "/", endpoint),
        ("/legacy/", "/", endpoint),
        ("/legacy?x", "/?x", endpoint),
        ("/items/7/price?c=d", "/i/price/7?c=d", "inner.test"),
    ] {
        assert_eq!(client.get(sent).status(), 200, "{sent}");
        let seen = backend.requests().pop().expect("a request");
        assert_eq!((seen.target(), seen.get("host")), (target, Some(host)), "{sent}");
        assert_eq!(seen.get("x-forwarded-host"), Some("test"));
    }
    let line = gateway.log_line(5);
    assert_eq!(line["path"], "/items/7/price", "the log has the client's path");
}

#[test]
fn redirects_and_fixed_answers() {
    let gateway = Gateway::start(
        "routes:\n\
         - { match: { path: /old }, redirect: { to: \"https://${request.host}/new\", status: 301 } }\n\
         - { match: { path: /json }, respond: { status: 201, json: { a: [1, true] } } }\n\
         - { match: { path: /text }, respond: { text: hello }, response_headers: { set: { cache-control: no-store } } }\n\
         - { match: { path: /none }, respond: { status: 204 } }\n",
    );
    let mut client = gateway.connect();
    let answer = client.get("/old");
    assert_eq!((answer.status(), answer.get("location")), (301, Some("https://test/new")));
    assert_eq!((answer.get("content-length"), answer.has("x-request-id")), (Some("0"), true));
    let answer = client.get("/json");
    assert_eq!((answer.status(), answer.text().as_str()), (201, "{\"a\":[1,true]}"));
    assert_eq!(answer.get("content-type"), Some("application/json"));
    let answer = client.get("/text");
    assert_eq!((answer.text().as_str(), answer.get("cache-control")), ("hello", Some("no-store")));
    let answer = client.get("/none");
    assert_eq!((answer.status(), answer.has("content-length")), (204, false));
    client.send("HEAD /text HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.read_response_to_head().get("content-length"), Some("5"));
    assert_eq!(client.get("/text").text(), "hello");
}

#[test]
fn server_timing_where_it_is_asked_for() {
    let backend = Backend::ok();
    let setup = Setup { listener: "server_timing: true", ..Setup::default() };
    let answer = setup.start(backend.endpoint()).get("/");
    let timing = answer.get("server-timing").expect("Server-Timing");
    let spent: f64 = timing.strip_prefix("service;dur=").and_then(|ms| ms.parse().ok()).expect("a duration");
    assert!((0.0..20_000.0).contains(&spent), "{timing}");
    assert!(!Gateway::to(backend.endpoint()).get("/").has("server-timing"));
}

#[test]
fn an_answer_without_date_gets_one() {
    let backend = Backend::ok();
    assert!(Gateway::to(backend.endpoint()).get("/").get("date").is_some_and(|date| date.ends_with(" GMT")));
    let backend = Backend::fixed("HTTP/1.1 200 OK\r\nDate: yesterday\r\nContent-Length: 0\r\n\r\n");
    let answer = Gateway::to(backend.endpoint()).get("/");
    assert_eq!(answer.all("date").collect::<Vec<_>>(), ["yesterday"]);
}

#[test]
fn unusual_statuses_and_reasons_are_passed_on() {
    for start in ["HTTP/1.1 299 Custom Thing", "HTTP/1.1 599 ", "HTTP/1.1 418 I'm a teapot"] {
        let backend = Backend::fixed(format!("{start}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(Gateway::to(backend.endpoint()).get("/").start, start);
    }
}

#[test]
fn a_unix_socket_is_an_endpoint() {
    let directory = tempfile::tempdir().expect("a directory");
    let backend = Backend::start_unix(&directory.path().join("app.sock"), |conn| {
        while let Some(request) = conn.next_request() {
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}", request.body.len(), request.text()));
        }
    });
    let setup = Setup { route: "host: endpoint", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    for _ in 0..3 {
        assert_eq!(client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").text(), "hi");
    }
    assert_eq!(backend.connections(), 1);
    assert_eq!(backend.requests()[0].get("host"), Some("localhost"));
}

#[test]
fn round_robin_follows_the_weights() {
    let backends = [Backend::ok(), Backend::ok()];
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, balance: round_robin, endpoints: [{{ address: \"{}\", weight: 3 }}, \"{}\"] }}]\n\
         routes: [{{ service: app }}]\n",
        backends[0].endpoint(),
        backends[1].endpoint()
    ));
    let mut client = gateway.connect();
    for _ in 0..40 {
        client.get("/");
    }
    assert_eq!(backends.each_ref().map(|backend| backend.requests().len()), [30, 10]);
}

#[test]
fn the_least_loaded_endpoint_gets_the_next_request() {
    // One of the two never answers: what goes to it stays there, so that the other gets nearly all.
    let go = Arc::new(AtomicBool::new(false));
    let may_go = Arc::clone(&go);
    let slow = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            eventually(PATIENCE, || may_go.load(Ordering::Acquire));
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
        }
    });
    let fast = Backend::fixed("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfast");
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, balance: least_loaded, endpoints: [\"{}\", \"{}\"] }}]\nroutes: [{{ service: app }}]\n",
        slow.endpoint(),
        fast.endpoint()
    ));
    // Until one request is held there.
    let mut held: Vec<Client> = Vec::new();
    while slow.requests().is_empty() {
        assert!(held.len() < 100, "nothing goes to one of the endpoints");
        let mut client = gateway.connect();
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        let total = held.len() + 1;
        eventually(PATIENCE, || slow.requests().len() + fast.requests().len() == total);
        held.push(client);
    }
    let before = slow.requests().len();
    let mut client = gateway.connect();
    for _ in 0..50 {
        assert_eq!(client.get("/").text(), "fast");
    }
    assert_eq!(slow.requests().len(), before);
    go.store(true, Ordering::Release);
    let mut answers: HashMap<String, usize> = HashMap::new();
    for client in &mut held {
        *answers.entry(client.read_response().text()).or_default() += 1;
    }
    assert_eq!(answers["slow"], before);
}

#[test]
fn idle_endpoints_share_the_load() {
    let backends = [Backend::ok(), Backend::ok()];
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: [\"{}\", \"{}\"] }}]\nroutes: [{{ service: app }}]\n",
        backends[0].endpoint(),
        backends[1].endpoint()
    ));
    let mut client = gateway.connect();
    for _ in 0..200 {
        client.get("/");
    }
    let shares = backends.each_ref().map(|backend| backend.requests().len());
    assert!(shares.iter().all(|share| *share > 50), "{shares:?}");
    settles_at(1, || usize::from(gateway.metric("gateway_active_connections") == 1.0));
}
