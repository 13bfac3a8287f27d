//! Auth services: what they are asked, what their answers do, and what happens while they are down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway_tests::{Backend, Client, Gateway, Message, Nobody, PATIENCE, eventually, settles_at};

/// A gateway whose only route asks `auth`, which is told `keys` besides.
fn yaml(app: &str, auth: &str, keys: &str, route: &str) -> String {
    format!(
        "services: [{{ name: app, endpoints: [\"{app}\"] }}, {{ name: auth-service, endpoints: [\"{auth}\"] }}]\n\
         authenticators: [{{ name: sessions, {keys} }}]\n\
         routes: [{{ name: all, service: app, {route} }}]\n"
    )
}

fn start(app: &Backend, auth: &str, keys: &str) -> Gateway {
    let keys = format!("auth_service: {{ service: auth-service, path: /validate, {keys} }}");
    Gateway::start(&yaml(app.endpoint(), auth, &keys, "authenticate: sessions"))
}

/// Lets pass who has the token `good`, as user `u1` with the role `admin`.
fn guard() -> Backend {
    Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            match request.get("authorization") {
                Some("Bearer good") => conn.send(
                    "HTTP/1.1 200 OK\r\nX-User-Id: u1\r\nX-User-Roles: admin, user\r\nX-Secret: s\r\nContent-Length: 0\r\n\r\n",
                ),
                _ => conn.send(
                    "HTTP/1.1 403 No\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nServer: guard\r\n\
                     Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n4\r\n way\r\n0\r\n\r\n",
                ),
            };
        }
    })
}

#[track_caller]
fn ask(client: &mut Client, token: &str) -> Message {
    client.ask(format!("GET /a?b=c HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\nX-User-Id: root\r\n\r\n"))
}

#[test]
fn its_answer_decides_and_says_who_it_is() {
    let (app, auth) = (Backend::ok(), guard());
    let gateway = start(&app, auth.endpoint(), "answer_headers: [X-User-Id]");
    let mut client = gateway.connect();
    let passed = ask(&mut client, "good");
    assert_eq!((passed.status(), passed.text().as_str()), (200, "ok"));
    let question = auth.request();
    assert_eq!(question.start, "GET /validate HTTP/1.1");
    let told = [
        ("Host", "auth-service"),
        ("Authorization", "Bearer good"),
        ("X-Forwarded-Method", "GET"),
        ("X-Forwarded-Uri", "/a?b=c"),
        ("X-Forwarded-Host", "test"),
        ("X-Forwarded-For", "127.0.0.1"),
        ("X-Forwarded-Proto", "http"),
        ("X-Request-ID", passed.get("x-request-id").unwrap()),
    ];
    let fields: Vec<_> = question.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(fields, told);
    let seen = app.request();
    assert_eq!(seen.all("x-user-id").collect::<Vec<_>>(), ["u1"], "the client's own is gone");
    assert!(!seen.has("x-secret") && !seen.has("x-user-roles") && !seen.has("x-forwarded-uri"));
    assert_eq!(gateway.log_line(1)["userId"], "u1");

    let refused = ask(&mut client, "bad");
    assert_eq!((refused.status(), refused.text().as_str()), (403, "no way"));
    assert_eq!(refused.all("set-cookie").collect::<Vec<_>>(), ["a=1", "b=2"]);
    assert_eq!((refused.get("content-type"), refused.has("server")), (Some("text/plain"), false));
    assert!(refused.has("x-request-id"));
    assert_eq!(app.requests().len(), 1);

    // Remembered; refusals are not.
    assert_eq!((ask(&mut client, "good").status(), ask(&mut client, "bad").status()), (200, 403));
    assert_eq!(auth.requests().len(), 3);
    assert_eq!(auth.connections(), 1, "over a connection that is kept");
}

#[test]
fn a_body_waits_for_the_answer_and_arrives_whole() {
    let (app, auth) = (Backend::echo(), guard());
    let gateway = start(&app, auth.endpoint(), "cache: { ttl: off }");
    let body = "x".repeat(100_000);
    for token in ["good", "good"] {
        let mut client = gateway.connect();
        let head = format!(
            "POST /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\nContent-Length: 100000\r\n\r\n"
        );
        let answer = client.ask([head.as_bytes(), body.as_bytes()].concat());
        assert_eq!((answer.status(), answer.body.len()), (200, 100_000));
    }
    assert!(auth.requests().iter().all(|question| !question.has("content-length")));
    let refused = "POST /a HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello";
    let mut client = gateway.connect();
    assert_eq!((client.ask(refused).status(), client.ask(refused).status()), (403, 403), "the connection goes on");
}

#[test]
fn roles_of_an_answer_count_and_a_login_page_reaches_the_client() {
    let app = Backend::ok();
    let auth = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            match request.get("cookie") {
                Some(_) => conn.send("HTTP/1.1 204 No Content\r\nX-User-Id: u1\r\nX-User-Roles: user\r\n\r\n"),
                None => conn.send("HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"),
            };
        }
    });
    let keys = "auth_service: { service: auth-service, path: /auth, append_path: true, method: client }";
    let route = "authenticate: sessions, authorize: { roles: [admin] }";
    let gateway = Gateway::start(&yaml(app.endpoint(), auth.endpoint(), keys, route));
    let mut client = gateway.connect();
    let login = client.ask("POST /a/./b?c HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((login.status(), login.get("location")), (302, Some("/login")));
    let question = auth.request();
    assert_eq!((question.start.as_str(), question.get("content-length")), ("POST /auth/a/b?c HTTP/1.1", Some("0")));
    assert_eq!(client.ask("GET /a HTTP/1.1\r\nHost: test\r\nCookie: s=1\r\n\r\n").status(), 403);

    let anonymous = yaml(app.endpoint(), auth.endpoint(), keys, "authenticate: [sessions, anonymous]");
    assert!(gateway.replace_config(&anonymous));
    let asked = auth.requests().len();
    assert_eq!(client.get("/a").status(), 200);
    assert_eq!(auth.requests().len(), asked, "nobody is asked about nobody");
}

#[test]
fn the_same_question_is_asked_once_at_a_time() {
    let app = Backend::ok();
    let auth = Backend::start(|conn| {
        while conn.next_request().is_some() {
            thread::sleep(Duration::from_millis(300));
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let gateway = start(&app, auth.endpoint(), "");
    let mut clients: Vec<_> = (0..8).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer good\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.read_response().status(), 200);
    }
    assert_eq!(auth.requests().len(), 1);
}

#[test]
fn down_is_closed_or_stale_and_never_open() {
    let app = Backend::ok();
    let up = Arc::new(AtomicBool::new(true));
    let is_up = Arc::clone(&up);
    let auth = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            match is_up.load(Ordering::Acquire) {
                true => conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
                false => conn.send("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"),
            };
        }
    });
    for (when_down, known) in [("closed", 503), ("{ stale: 1h }", 200)] {
        up.store(true, Ordering::Release);
        let gateway = start(&app, auth.endpoint(), &format!("when_down: {when_down}, cache: {{ ttl: off }}"));
        let mut client = gateway.connect();
        assert_eq!(ask(&mut client, "good").status(), 200);
        up.store(false, Ordering::Release);
        assert_eq!(ask(&mut client, "good").status(), known, "{when_down}");
        let unknown = ask(&mut client, "new");
        assert_eq!(unknown.status(), 503);
        assert!(unknown.has("retry-after"));
        // Five failures in a row: then it is left alone.
        for _ in 0..4 {
            assert_eq!(ask(&mut client, "new").status(), 503);
        }
        let asked = auth.requests().len();
        assert_eq!((ask(&mut client, "good").status(), ask(&mut client, "new").status()), (known, 503));
        assert_eq!(auth.requests().len(), asked);
        assert!(gateway.stderr().contains("the auth service `auth-service` is down"), "{}", gateway.stderr());
    }
}

#[test]
fn a_service_that_comes_back_is_asked_again() {
    let app = Backend::ok();
    let up = Arc::new(AtomicBool::new(false));
    let is_up = Arc::clone(&up);
    let auth = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            if !is_up.load(Ordering::Acquire) {
                return;
            }
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let gateway = start(&app, auth.endpoint(), "breaker: { failures: 1, open: 100ms }");
    let mut client = gateway.connect();
    let open = || gateway.metric("gateway_auth_service_breaker_open{authenticator=\"sessions\"}");
    assert_eq!(open(), 0.0);
    assert_eq!(ask(&mut client, "good").status(), 503);
    assert_eq!(open(), 1.0);
    up.store(true, Ordering::Release);
    eventually(PATIENCE, || ask(&mut client, "good").status() == 200);
    assert_eq!(open(), 0.0);
}

#[test]
fn a_slow_service_is_down_and_one_that_is_not_there_too() {
    let app = Backend::ok();
    let auth = Backend::start(|conn| {
        conn.next_request();
        conn.stall();
    });
    let gateway = start(&app, auth.endpoint(), "timeout: 200ms");
    let begun = Instant::now();
    assert_eq!(ask(&mut gateway.connect(), "good").status(), 503);
    assert!(begun.elapsed() >= Duration::from_millis(200) && begun.elapsed() < Duration::from_secs(5));
    auth.expect_all_closed();
    let errors = |kind: &str| {
        gateway.metric(&format!("gateway_backend_errors_total{{service=\"auth-service\",kind=\"{kind}\"}}"))
    };
    assert_eq!((errors("answer_timeout"), gateway.backend_errors("answer_timeout")), (1.0, 0.0));

    let nobody = Nobody::new();
    let gateway = start(&app, nobody.endpoint(), "");
    assert_eq!(ask(&mut gateway.connect(), "good").status(), 503);
    assert_eq!(app.requests().len(), 0);
}

#[test]
fn a_client_that_goes_away_leaves_nothing_behind() {
    let app = Backend::ok();
    let auth = Backend::start(|conn| {
        conn.next_request();
        conn.stall();
    });
    let gateway = start(&app, auth.endpoint(), "timeout: 60s");
    let mut client = gateway.connect();
    client.send("GET /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer good\r\n\r\n");
    eventually(PATIENCE, || auth.requests().len() == 1);
    client.reset();
    auth.expect_all_closed();
    gateway.expect_idle();
    settles_at(0.0, || {
        gateway.metric(
            "gateway_endpoint_in_flight{service=\"auth-service\",endpoint=\"ENDPOINT\"}"
                .replace("ENDPOINT", auth.endpoint())
                .as_str(),
        )
    });
    assert_eq!(gateway.log_line(1)["statusCode"], 499);
}

#[test]
fn tokens_are_looked_up() {
    let app = Backend::ok();
    let auth = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            let body = match request.text().as_str() {
                "token=good&token_type_hint=access_token" => {
                    r#"{"active":true,"sub":"u1","username":"ann","scope":"read write","roles":["admin"],"exp":4102444800}"#
                }
                "token=old&token_type_hint=access_token" => r#"{"active":true,"sub":"u1","exp":1}"#,
                "token=broken&token_type_hint=access_token" => "oh",
                _ => r#"{"active":false}"#,
            };
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let keys = "introspection: { service: auth-service, path: /introspect, client_id: gateway, client_secret: \"${env:SECRET}\", \
                headers: { X-User-Id: sub } }";
    let route = "authenticate: sessions, authorize: { roles: [admin], scopes: [read] }";
    let gateway = Gateway::start_with(&yaml(app.endpoint(), auth.endpoint(), keys, route), |command| {
        command.env("SECRET", "hunter2");
    });
    let mut client = gateway.connect();
    for _ in 0..2 {
        assert_eq!(ask(&mut client, "good").status(), 200);
    }
    let question = auth.request();
    assert_eq!(question.start, "POST /introspect HTTP/1.1");
    // gateway:hunter2
    assert_eq!(question.get("authorization"), Some("Basic Z2F0ZXdheTpodW50ZXIy"));
    assert_eq!(app.requests()[0].all("x-user-id").collect::<Vec<_>>(), ["u1"]);
    for (token, error) in [("bad", "the token is not active"), ("old", "the token has expired")] {
        let refused = ask(&mut client, token);
        assert_eq!(refused.status(), 401);
        let challenge = format!("Bearer realm=\"sessions\", error=\"invalid_token\", error_description=\"{error}\"");
        assert_eq!(refused.get("www-authenticate"), Some(challenge.as_str()));
    }
    assert_eq!(ask(&mut client, "broken").status(), 503);
    let asked = auth.requests().len();
    let missing = client.get("/a");
    assert_eq!((missing.status(), missing.get("www-authenticate")), (401, Some("Bearer realm=\"sessions\"")));
    assert_eq!(auth.requests().len(), asked, "without a token nothing is asked");
    assert!(!gateway.admin("/config").1.contains("hunter2"));
}

#[test]
fn a_reload_keeps_what_is_known_unless_the_service_has_changed() {
    let (app, auth) = (Backend::ok(), guard());
    let gateway = start(&app, auth.endpoint(), "cache: { ttl: 1h }");
    let mut client = gateway.connect();
    assert_eq!(ask(&mut client, "good").status(), 200);
    let keys = |path: &str| format!("auth_service: {{ service: auth-service, path: {path}, cache: {{ ttl: 1h }} }}");
    let with = |path: &str, route: &str| yaml(app.endpoint(), auth.endpoint(), &keys(path), route);
    assert!(gateway.replace_config(&with("/validate", "authenticate: sessions, log: false")));
    assert_eq!(ask(&mut client, "good").status(), 200);
    assert_eq!(auth.requests().len(), 1);
    assert!(gateway.replace_config(&with("/other", "authenticate: sessions")));
    assert_eq!(ask(&mut client, "good").status(), 200);
    assert_eq!(auth.requests().len(), 2);
}
