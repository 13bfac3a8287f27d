//! What a route asks of a request besides credentials, and adds to its answers, through the real binary.

use ringway_tests::{Backend, Client, Gateway, Message, Setup};

const SECRET: &str = "authenticators: [{ name: main, jwt: { algorithms: HS256, \
    keys: { secret: \"0123456789abcdef0123456789abcdef\" } } }]\n";

fn start(backend: &Backend, route: &str) -> Gateway {
    Setup { route, sections: SECRET, ..Setup::default() }.start(backend.endpoint())
}

#[track_caller]
fn ask(client: &mut Client, line: &str, fields: &str) -> Message {
    client.ask(format!("{line} HTTP/1.1\r\nHost: test\r\n{fields}\r\n"))
}

fn all<'m>(message: &'m Message, name: &str) -> Vec<&'m str> {
    message.all(name).collect()
}

#[test]
fn an_address_is_denied_before_anything_else() {
    let backend = Backend::ok();
    let gateway = start(&backend, "ip: { deny: [127.0.0.2], allow: [127.0.0.0/8] }, authenticate: main");
    let mut denied = Client::connect_from("127.0.0.2".parse().unwrap(), gateway.address());
    let refused = denied.get("/a");
    assert_eq!((refused.status(), refused.has("www-authenticate")), (403, false));
    assert_eq!(denied.get("/a").status(), 403, "the connection goes on");
    let mut allowed = Client::connect_from("127.0.0.3".parse().unwrap(), gateway.address());
    assert_eq!(allowed.get("/a").status(), 401);
    assert_eq!(backend.requests().len(), 0);

    let yaml = Setup { route: "ip: { allow: [192.0.2.0/24] }", ..Setup::default() }.yaml(backend.endpoint());
    assert!(gateway.replace_config(&yaml));
    assert_eq!(gateway.get("/a").status(), 403);

    // Behind a proxy the client's address counts.
    let listener = "trusted_proxies: [127.0.0.1]";
    let yaml = Setup { route: "ip: { allow: [192.0.2.0/24] }", listener, ..Setup::default() }.yaml(backend.endpoint());
    let gateway = Gateway::start(&yaml);
    let mut client = gateway.connect();
    assert_eq!(ask(&mut client, "GET /a", "X-Forwarded-For: 192.0.2.7\r\n").status(), 200);
    assert_eq!(ask(&mut client, "GET /a", "X-Forwarded-For: 192.0.2.7, 198.51.100.1\r\n").status(), 403);
}

#[test]
fn a_browser_of_another_origin_is_told_what_it_may() {
    let backend = Backend::fixed(
        "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Origin: *\r\nVary: Accept\r\nContent-Length: 2\r\n\r\nok",
    );
    let cors = "cors: { origins: [\"https://shop.example\"], credentials: true, expose: [x-request-id], max_age: 10m }";
    let gateway = start(&backend, &format!("match: {{ path: /a, methods: GET }}, authenticate: main, {cors}"));
    let mut client = gateway.connect();
    let preflight = "Origin: https://shop.example\r\nAccess-Control-Request-Method: GET\r\n\
                     Access-Control-Request-Headers: authorization\r\n";
    let answer = ask(&mut client, "OPTIONS /a", preflight);
    assert_eq!((answer.status(), answer.body.len(), answer.has("content-length")), (204, 0, false));
    let told = [
        ("access-control-allow-origin", "https://shop.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "GET"),
        ("access-control-allow-headers", "authorization"),
        ("access-control-max-age", "600"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ];
    for (name, value) in told {
        assert_eq!(all(&answer, name), [value], "{name}");
    }
    let foreign = ask(&mut client, "OPTIONS /a", &preflight.replace("shop", "evil"));
    assert_eq!((foreign.status(), foreign.has("access-control-allow-origin")), (204, false));
    assert!(foreign.has("vary"));
    // The route has no POST: nobody answers for it.
    let post = ask(&mut client, "OPTIONS /a", &preflight.replace("Method: GET", "Method: POST"));
    assert_eq!((post.status(), post.has("access-control-allow-origin")), (405, false));
    // No preflight: it names no method.
    assert_eq!(ask(&mut client, "OPTIONS /a", "Origin: https://shop.example\r\n").status(), 405);

    // A script may read why it was refused.
    let refused = ask(&mut client, "GET /a", "Origin: https://shop.example\r\n");
    assert_eq!((refused.status(), refused.get("access-control-allow-origin")), (401, Some("https://shop.example")));
    assert_eq!(refused.get("access-control-expose-headers"), Some("x-request-id"));
    assert_eq!(backend.requests().len(), 0);

    let open = format!("match: {{ path: /a, methods: GET }}, {cors}");
    assert!(gateway.replace_config(&Setup { route: &open, ..Setup::default() }.yaml(backend.endpoint())));
    let answer = ask(&mut client, "GET /a", "Origin: https://shop.example\r\n");
    assert_eq!(answer.status(), 200);
    assert_eq!(all(&answer, "access-control-allow-origin"), ["https://shop.example"], "and not the service's own");
    assert_eq!(all(&answer, "vary"), ["Accept", "Origin"]);
    for fields in ["", "Origin: https://evil.example\r\n"] {
        let answer = ask(&mut client, "GET /a", fields);
        assert_eq!((answer.status(), answer.has("access-control-allow-origin")), (200, false));
        assert_eq!(all(&answer, "vary"), ["Accept", "Origin"], "a cache must not mix them up");
    }
}

#[test]
fn security_headers_stand_on_every_answer() {
    let backend = Backend::fixed(
        "HTTP/1.1 200 OK\r\nX-Frame-Options: ALLOWALL\r\nContent-Security-Policy: default-src *\r\n\
         Strict-Transport-Security: max-age=1\r\nContent-Length: 2\r\n\r\nok",
    );
    let gateway = start(&backend, "security_headers: strict, authenticate: [main, anonymous]");
    let mut client = gateway.connect();
    let bad_token = "Authorization: Bearer a.b.c\r\n";
    for (fields, status) in [("", 200), (bad_token, 401)] {
        let answer = ask(&mut client, "GET /a", fields);
        assert_eq!(answer.status(), status);
        for (name, value) in [
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(all(&answer, name), [value], "{status} {name}");
        }
        let policy = all(&answer, "content-security-policy");
        assert!(policy.len() == 1 && policy[0].contains("frame-ancestors 'none'"), "{policy:?}");
        let hsts = answer.get("strict-transport-security").unwrap_or_default();
        assert!(!hsts.contains("63072000"), "without TLS the gateway does not say it: {hsts}");
    }
    let route = "security_headers: { preset: strict, if_absent: true, referrer_policy: off, hsts_without_tls: true }";
    assert!(gateway.replace_config(&Setup { route, ..Setup::default() }.yaml(backend.endpoint())));
    let answer = client.get("/a");
    assert_eq!(all(&answer, "x-frame-options"), ["ALLOWALL"]);
    assert_eq!(all(&answer, "content-security-policy"), ["default-src *"]);
    assert_eq!(all(&answer, "strict-transport-security"), ["max-age=1"]);
    assert_eq!((answer.get("x-content-type-options"), answer.has("referrer-policy")), (Some("nosniff"), false));
}

#[test]
fn a_route_says_that_it_is_going_away() {
    let backend = Backend::ok();
    let deprecation = "deprecation: { since: 2026-06-30, sunset: 2027-06-30T00:00:00Z, link: \"https://docs.example/v1\", \
                       successor: /v2 }";
    let gateway = start(&backend, &format!("{deprecation}, authenticate: [main, anonymous]"));
    let mut client = gateway.connect();
    for (fields, status) in [("", 200), ("Authorization: Bearer a.b.c\r\n", 401)] {
        let answer = ask(&mut client, "GET /v1", fields);
        assert_eq!(answer.status(), status);
        assert_eq!(answer.get("deprecation"), Some("@1782777600"));
        assert_eq!(answer.get("sunset"), Some("Wed, 30 Jun 2027 00:00:00 GMT"));
        let links = all(&answer, "link").join(", ");
        assert!(links.contains("<https://docs.example/v1>; rel=\"deprecation\""), "{links}");
        assert!(links.contains("</v2>; rel=\"successor-version\""), "{links}");
    }
}

#[test]
fn what_a_request_must_look_like() {
    let backend = Backend::ok();
    let validate = "validate: { path: { id: uuid }, headers: [x-tenant], unknown_query: refuse, \
        content_types: [application/json, image/*], query: { page: { type: integer, min: 1, max: 100 }, \
        sort: { one_of: [asc, desc] }, tag: { max_length: 3, repeated: true } } }";
    let gateway = start(&backend, &format!("match: {{ path: \"/orders/{{id}}\" }}, {validate}"));
    let mut client = gateway.connect();
    let id = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6";
    let mut said = |line: &str, fields: &str, body: &str| {
        let answer = client.ask(format!("{line} HTTP/1.1\r\nHost: test\r\n{fields}\r\n{body}"));
        let error = if answer.status() == 200 { String::new() } else { answer.json()["error"].to_string() };
        (answer.status(), error.trim_matches('"').to_owned(), answer.get("accept").map(str::to_owned))
    };
    let good = format!("GET /orders/{id}?page=7&sort=asc&tag=a&tag=%62c");
    let tenant = "X-Tenant: acme\r\n";
    assert_eq!(said(&good, tenant, "").0, 200);
    for (line, fields, error) in [
        ("GET /orders/7".to_owned(), tenant, "path parameter `id`: must be a UUID"),
        (format!("GET /orders/{id}?page=0"), tenant, "query parameter `page`: must be a whole number from 1 to 100"),
        (format!("GET /orders/{id}?page=1&p%61ge=2"), tenant, "query parameter `page`: occurs more than once"),
        (format!("GET /orders/{id}?sort=up"), tenant, "query parameter `sort`: must be one of asc, desc"),
        (format!("GET /orders/{id}?tag=long"), tenant, "query parameter `tag`: must have a length of 3 or less"),
        (format!("GET /orders/{id}?debug=1"), tenant, "query parameter `debug`: is not known"),
        (good.clone(), "", "header `x-tenant`: is missing"),
    ] {
        assert_eq!(said(&line, fields, ""), (400, error.to_owned(), None), "{line}");
    }
    let accept = Some("application/json, image/*".to_owned());
    for (media, status) in [
        ("Content-Type: application/json; charset=utf-8\r\n", 200),
        ("Content-Type: image/png\r\n", 200),
        ("Content-Type: text/plain\r\n", 415),
        ("", 415),
    ] {
        // One byte of content.
        let fields = format!("{tenant}{media}Content-Length: 1\r\n");
        let (answered, error, accepted) = said(&format!("POST /orders/{id}"), &fields, "7");
        assert_eq!(answered, status, "{media}: {error}");
        assert_eq!(accepted, accept.clone().filter(|_| status == 415), "{media}");
    }
}

const ORDER: &str = "validate: { body: { max: 100KiB, schema: { type: object, required: [quantity], \
    properties: { quantity: { type: integer, minimum: 1 }, note: { type: string } } } } }";

fn post(body: &str) -> String {
    format!(
        "POST /a HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

const CHUNKED: &str =
    "POST /a HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_body_goes_on_only_where_its_schema_holds() {
    let backend = Backend::echo();
    let gateway = start(&backend, ORDER);
    let mut client = gateway.connect();
    let good = r#"{"quantity":2}"#;
    let answer = client.ask(post(good));
    assert_eq!((answer.status(), answer.text().as_str()), (200, good));
    for (body, error) in [
        (r#"{"quantity":0}"#, "/quantity: value is less than the minimum of 1"),
        (r#"{"quantity":2,"note":7}"#, "/note: value is not of type \"string\""),
        (r#"{"quantity":"#, "body: is not JSON: it ends early, line 1, column 12"),
        (r#"{"quantity":2,"quantity":3}"#, "body: has a key twice in one object at line 1 column 27"),
    ] {
        let answer = client.ask(post(body));
        assert_eq!((answer.status(), answer.json()["error"].as_str()), (400, Some(error)), "{body}");
    }
    let missing = client.ask("POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((missing.status(), missing.json()["error"].as_str()), (400, Some("body: is missing")));
    let text = client.ask("POST /a HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}");
    assert_eq!(text.status(), 415);
    assert_eq!(client.get("/a").status(), 200, "a GET needs no body");
    assert_eq!(backend.requests().len(), 2);
    let line = gateway.log_line(8);
    assert_eq!(line["statusCode"], 200);
    let refused = &gateway.log_lines()[1];
    assert_eq!((&refused["statusCode"], &refused["backendService"]), (&400.into(), &serde_json::Value::Null));
}

#[test]
fn a_long_body_comes_in_many_pieces_and_the_next_request_behind_it() {
    let backend = Backend::echo();
    let gateway = start(&backend, ORDER);
    let body = format!(r#"{{"quantity":2,"note":"{}"}}"#, "x".repeat(90_000));
    let bad = body.replace(":2", ":0");
    let next = "GET /next HTTP/1.1\r\nHost: test\r\n\r\n";
    let chunked = |body: &str, ends: &str| {
        let mut text = CHUNKED.to_owned();
        for piece in body.as_bytes().chunks(7001) {
            text += &format!("{:x};a=b\r\n{}\r\n", piece.len(), str::from_utf8(piece).unwrap());
        }
        format!("{text}0\r\n{ends}\r\n")
    };
    let mut client = gateway.connect();
    for request in [post(&body), chunked(&body, ""), chunked(&body, "X-Sum: 7\r\n")] {
        client.send(format!("{request}{next}"));
        let answer = client.read_response();
        assert_eq!((answer.status(), answer.text() == body), (200, true));
        assert_eq!((client.read_response().status(), backend.requests().last().unwrap().target()), (200, "/next"));
    }
    let seen = backend.requests();
    assert_eq!(seen.len(), 6);
    assert!(!seen[0].has("transfer-encoding") && !seen[2].has("content-length"));
    assert_eq!(seen[2].get("transfer-encoding"), Some("chunked"));
    for request in [post(&bad), chunked(&bad, "")] {
        client.send(format!("{request}{next}"));
        let answer = client.read_response();
        assert_eq!(answer.json()["error"], "/quantity: value is less than the minimum of 1");
        assert_eq!(client.read_response().status(), 200, "its end is known, so that the connection goes on");
    }
    assert_eq!(backend.requests().len(), 8);
    assert_eq!(backend.connections(), 1);
    // Small pieces, several in one packet, and an empty body.
    let small = format!("{CHUNKED}3\r\n{{\"q\r\n5\r\nuanti\r\n6\r\nty\":2}}\r\n0\r\n\r\n");
    client.send(format!("{small}{CHUNKED}0\r\n\r\n{next}"));
    let (first, second) = (client.read_response(), client.read_response());
    assert_eq!((first.status(), first.text().as_str()), (200, r#"{"quantity":2}"#));
    assert_eq!((second.status(), client.read_response().status()), (400, 200));
}

#[test]
fn trailers_of_a_body_that_was_held_reach_the_service() {
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            let told: Vec<_> = request.trailers.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let told = format!("{} {}", request.text(), told.join(","));
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{told}", told.len()));
        }
    });
    let gateway = start(&backend, ORDER);
    let mut client = gateway.connect();
    let answer = client.ask(format!("{CHUNKED}e\r\n{{\"quantity\":2}}\r\n0\r\nX-Sum: 7\r\n\r\n"));
    assert_eq!(answer.text(), r#"{"quantity":2} X-Sum=7"#);
}

#[test]
fn a_body_that_is_too_large_is_not_held() {
    let backend = Backend::echo();
    let gateway = start(&backend, ORDER);
    let large = format!(r#"{{"quantity":2,"note":"{}"}}"#, "x".repeat(100 * 1024));
    let refused = gateway.connect().ask(post(&large));
    assert_eq!((refused.status(), refused.get("connection")), (413, Some("close")));
    // By its length alone, before it is invited.
    let expects = "POST /a HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 102401\r\n\
                   Expect: 100-continue\r\n\r\n";
    assert_eq!(gateway.connect().ask(expects).status(), 413);
    // Chunked: once more has come than may. What follows is not taken for a request.
    for size in [102_401, 200_000] {
        let mut client = gateway.connect();
        let smuggled = "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n";
        let body = format!("{CHUNKED}{size:x}\r\n{}\r\n0\r\n\r\n{smuggled}", "x".repeat(size));
        assert_eq!(client.ask(body).status(), 413);
        client.expect_end();
    }
    let mut client = gateway.connect();
    assert_eq!(client.ask(format!("{CHUNKED}zz\r\nGET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n")).status(), 400);
    client.expect_end();
    assert_eq!(backend.requests().len(), 0);
    let exact = format!(r#"{{"quantity":2,"note":"{}"}}"#, "x".repeat(100 * 1024 - 24));
    assert_eq!((exact.len(), gateway.connect().ask(post(&exact)).status()), (100 * 1024, 200));
}

#[test]
fn the_gateway_invites_the_body_that_it_wants() {
    let backend = Backend::echo();
    let gateway = start(&backend, ORDER);
    for (body, status) in [(r#"{"quantity":2}"#, 200), (r#"{"quantity":0}"#, 400)] {
        let mut client = gateway.connect();
        let head = post(body).replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
        client.send(&head[..head.len() - body.len()]);
        let before = backend.requests().len();
        assert_eq!((client.read_response().status(), backend.requests().len()), (100, before));
        client.send(body);
        assert_eq!(client.read_response().status(), status);
        assert_eq!(client.get("/a").status(), 200, "the connection goes on");
        assert!(!backend.requests()[0].has("expect"), "the body comes with its head");
    }
}

#[test]
fn a_slow_or_broken_client_costs_the_service_nothing() {
    let backend = Backend::echo();
    let listener = "timeouts: { body: 300ms }";
    let gateway = Setup { route: ORDER, listener, ..Setup::default() }.start(backend.endpoint());
    let head = "POST /a HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n";
    let mut slow = gateway.connect();
    slow.send(format!("{head}{{\"quan"));
    let answer = slow.read_response();
    assert_eq!((answer.status(), answer.get("connection")), (408, Some("close")));
    slow.expect_closed();
    let mut gone = gateway.connect();
    gone.send(format!("{head}{{\"quan")).half_close();
    gone.expect_end();
    assert_eq!((backend.requests().len(), backend.connections()), (0, 0));

    // The route's own deadline holds too.
    let route = format!("{ORDER}, timeouts: {{ request: 300ms }}");
    let gateway = start(&backend, &route);
    let mut slow = gateway.connect();
    slow.send(format!("{head}{{\"quan"));
    assert_eq!(slow.read_response().status(), 504);
    slow.expect_closed();
    let mut client = gateway.connect();
    assert_eq!(client.ask(post(r#"{"quantity":2}"#)).status(), 200);
    assert_eq!(backend.requests().len(), 1);
}
