//! Who may pass: tokens, API keys, roles, and what is refused, through the real binary.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use ringway_tests::{Backend, Client, PATIENCE, Setup, eventually};
use serde_json::{Value, json};

const SECRET: &str = "0123456789abcdef0123456789abcdef";
const MAIN: &str = "authenticators: [{ name: main, jwt: { issuer: \"https://id.example\", audience: api, algorithms: HS256, \
    keys: { secret: \"0123456789abcdef0123456789abcdef\" }, headers: { x-user-id: sub, x-tenant: tenant } } }]\n";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn token(changes: Value) -> String {
    let mut claims = json!({
        "iss": "https://id.example", "aud": "api", "sub": "usr_abc123", "exp": now() + 60, "roles": ["user"],
        "tenant": "acme",
    });
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).unwrap()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

#[track_caller]
fn ask(client: &mut Client, fields: &str) -> ringway_tests::Message {
    client.ask(format!("GET /a HTTP/1.1\r\nHost: test\r\n{fields}\r\n"))
}

#[test]
fn a_token_is_asked_for_and_its_claims_go_to_the_service() {
    let backend = Backend::ok();
    let gateway = Setup { route: "authenticate: main", sections: MAIN, ..Setup::default() }.start(backend.endpoint());
    let mut client = gateway.connect();

    let missing = ask(&mut client, "");
    assert_eq!(missing.status(), 401);
    assert_eq!(missing.get("www-authenticate"), Some("Bearer realm=\"main\""));
    assert_eq!(missing.json()["error"], "Missing authorization token");
    assert_eq!(missing.json()["requestId"], missing.get("x-request-id").unwrap());

    let expired = ask(&mut client, &bearer(&token(json!({ "exp": now() - 120 }))));
    assert_eq!((expired.status(), &expired.json()["error"]), (401, &json!("Invalid token")));
    let challenge = "Bearer realm=\"main\", error=\"invalid_token\", error_description=\"the token has expired\"";
    assert_eq!(expired.get("www-authenticate"), Some(challenge));

    for bad in [json!({ "iss": "https://evil.example" }), json!({ "aud": "other" }), json!({ "nbf": now() + 600 })] {
        assert_eq!(ask(&mut client, &bearer(&token(bad.clone()))).status(), 401, "{bad}");
    }
    let none = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.";
    assert_eq!(ask(&mut client, &bearer(none)).status(), 401);
    assert_eq!(backend.requests().len(), 0, "nothing of it reaches the service");

    let good = token(json!({}));
    let fields = format!("{}X-User-Id: root\r\nX_Tenant: evil\r\n", bearer(&good));
    for _ in 0..2 {
        assert_eq!(ask(&mut client, &fields).status(), 200);
    }
    assert_eq!(backend.requests().len(), 2);
    let seen = &backend.requests()[1];
    assert_eq!(seen.all("x-user-id").collect::<Vec<_>>(), ["usr_abc123"]);
    assert_eq!((seen.get("x-tenant"), seen.has("x_tenant")), (Some("acme"), false));
    assert!(seen.has("authorization"), "the service may look at the token too");

    let line = gateway.log_line(8);
    assert_eq!((&line["userId"], &line["statusCode"]), (&json!("usr_abc123"), &json!(200)));
    let count = |outcome: &str| {
        gateway.metric(&format!("gateway_authentications_total{{authenticator=\"main\",outcome=\"{outcome}\"}}"))
    };
    eventually(PATIENCE, || count("cached") == 1.0);
    assert_eq!((count("missing"), count("refused"), count("verified")), (1.0, 5.0, 1.0));
}

#[test]
fn a_claim_is_named_in_one_way_everywhere() {
    let backend = Backend::ok();
    let sections = MAIN
        .replace("x-tenant: tenant", "x-tenant: \"https://id.example/tenant\"")
        .replace("algorithms: HS256", "algorithms: HS256, roles: realm_access.roles");
    let route = "authenticate: main, authorize: { roles: [admin], claims: { realm_access.roles.0: admin } }";
    let gateway = Setup { route, sections: &sections, ..Setup::default() }.start(backend.endpoint());
    let mut client = gateway.connect();
    let nested = json!({ "realm_access": { "roles": ["admin"] }, "https://id.example/tenant": "acme" });
    assert_eq!(ask(&mut client, &bearer(&token(nested))).status(), 200);
    assert_eq!(backend.requests()[0].get("x-tenant"), Some("acme"));
    assert_eq!(ask(&mut client, &bearer(&token(json!({ "realm_access.roles": ["admin"] })))).status(), 403);
}

#[test]
fn roles_decide_and_an_audit_record_says_why() {
    let backend = Backend::ok();
    let sections = format!("{MAIN}audit_log: {{ file: \"${{env:AUDIT}}\" }}\n");
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let yaml =
        Setup { route: "authenticate: main, authorize: { roles: [admin] }", sections: &sections, ..Setup::default() }
            .yaml(backend.endpoint());
    let gateway = ringway_tests::Gateway::start_with(&yaml, |command| {
        command.env("AUDIT", &path);
    });
    let mut client = gateway.connect();
    let user = token(json!({}));
    let refused = ask(&mut client, &bearer(&user));
    assert_eq!((refused.status(), &refused.json()["error"]), (403, &json!("Insufficient permissions")));
    assert!(!refused.has("www-authenticate"));
    assert_eq!(ask(&mut client, "").status(), 401);
    assert_eq!(ask(&mut client, &bearer(&token(json!({ "roles": ["user", "admin"] })))).status(), 200);

    let records = || -> Vec<Value> {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    eventually(PATIENCE, || records().len() == 2);
    let records = records();
    assert_eq!(records[0]["requestId"], refused.get("x-request-id").unwrap());
    let fields = ["kind", "reason", "user", "policy", "route", "status", "clientIp", "path"];
    let of = |record: &Value| fields.map(|field| record[field].clone());
    let expected = [
        json!("authorization"),
        json!("role"),
        json!("usr_abc123"),
        json!("main"),
        json!("all"),
        json!(403),
        json!("127.0.0.1"),
        json!("/a"),
    ];
    assert_eq!(of(&records[0]), expected);
    assert_eq!((&records[1]["kind"], &records[1]["reason"]), (&json!("authentication"), &json!("missing")));
    assert!(!std::fs::read_to_string(&path).unwrap().contains(&user), "no secret in it");
}

#[test]
fn anonymous_requests_pass_and_bad_tokens_do_not() {
    let backend = Backend::ok();
    let route = "authenticate: [main, anonymous]";
    let gateway = Setup { route, sections: MAIN, ..Setup::default() }.start(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(ask(&mut client, "X-User-Id: root\r\n").status(), 200);
    assert!(!backend.request().has("x-user-id"), "nobody vouches for it");
    assert_eq!(ask(&mut client, &bearer("a.b.c")).status(), 401);
    let two = format!("{}{}", bearer(&token(json!({}))), bearer(&token(json!({}))));
    let several = ask(&mut client, &two);
    assert!(several.get("www-authenticate").unwrap().contains("error=\"invalid_request\""), "{}", several.text());
}

#[test]
fn api_keys_come_from_a_file() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.yaml");
    let (key, hash) = ringway_core::auth::api_key::generate([7; 32]);
    let text = format!("clients: [{{ name: partner, roles: [reader], keys: [{{ hash: \"{hash}\" }}] }}]\n");
    std::fs::write(&file, text).unwrap();
    let sections = format!(
        "authenticators: [{{ name: partners, api_keys: {{ file: \"{}\", headers: {{ x-client: sub }} }} }}]\n",
        file.display()
    );
    let route = "authenticate: partners, authorize: { roles: [reader] }";
    let gateway = Setup { route, sections: &sections, ..Setup::default() }.start(backend.endpoint());
    let mut client = gateway.connect();
    let missing = ask(&mut client, "");
    assert_eq!((missing.status(), missing.get("www-authenticate")), (401, Some("ApiKey realm=\"partners\"")));
    assert_eq!(ask(&mut client, "X-API-Key: rwk_guess\r\n").status(), 401);
    assert_eq!(ask(&mut client, &format!("X-API-Key: {key}\r\n")).status(), 200);
    assert_eq!(backend.request().get("x-client"), Some("partner"));
    assert_eq!(gateway.log_line(3)["userId"], "partner");
}

#[test]
fn a_reload_changes_the_key_and_no_cached_token_outlives_it() {
    let backend = Backend::ok();
    let setup = Setup { route: "authenticate: main", sections: MAIN, ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let fields = bearer(&token(json!({})));
    assert_eq!(ask(&mut client, &fields).status(), 200);
    let sections = MAIN.replace(SECRET, "another secret of thirty-two bytes and more");
    let changed = Setup { sections: &sections, ..setup };
    assert!(gateway.replace_config(&changed.yaml(backend.endpoint())));
    assert_eq!(ask(&mut client, &fields).status(), 401);
}

#[test]
fn a_remembered_token_is_of_no_use_to_another_authenticator_after_a_reload() {
    let backend = Backend::ok();
    let authenticator = |name: &str, secret: &str| {
        format!("{{ name: {name}, jwt: {{ algorithms: HS256, audience: \"*\", keys: {{ secret: \"{secret}\" }} }} }}")
    };
    let (a, b) = (authenticator("a", SECRET), authenticator("b", "another secret of thirty-two bytes and more"));
    let first = format!("authenticators: [{a}, {b}]\n");
    let setup = Setup { route: "authenticate: a", sections: &first, ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let fields = bearer(&token(json!({})));
    assert_eq!((ask(&mut client, &fields).status(), ask(&mut client, &fields).status()), (200, 200));
    // `b` stands now where `a` stood.
    let second = format!("authenticators: [{b}, {a}]\n");
    let changed = Setup { route: "authenticate: b", sections: &second, ..setup };
    assert!(gateway.replace_config(&changed.yaml(backend.endpoint())));
    assert_eq!(ask(&mut client, &fields).status(), 401);
    // The same authenticator with another rule.
    let third = first.replacen("audience: \"*\"", "audience: other", 1);
    assert!(gateway.replace_config(&Setup { sections: &first, ..setup }.yaml(backend.endpoint())));
    assert_eq!(ask(&mut client, &fields).status(), 200);
    assert!(gateway.replace_config(&Setup { sections: &third, ..setup }.yaml(backend.endpoint())));
    assert_eq!(ask(&mut client, &fields).status(), 401);
}

#[test]
fn trailers_do_not_say_what_the_gate_vouches_for() {
    let (tell, told) = std::sync::mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let backend = Backend::start(move |conn| {
        while let Some(request) = conn.next_request() {
            tell.lock().unwrap().send(request.trailers).unwrap();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let gateway = Setup { route: "authenticate: main", sections: MAIN, ..Setup::default() }.start(backend.endpoint());
    let head =
        format!("POST /a HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n{}\r\n", bearer(&token(json!({}))));
    let body = "1\r\nx\r\n0\r\nX-User-Id: root\r\nX_Tenant: evil\r\nX-Kept: 1\r\n\r\n";
    // In one piece with the head, and behind it.
    let mut client = gateway.connect();
    assert_eq!(client.ask(format!("{head}{body}")).status(), 200);
    client.send(&head);
    eventually(PATIENCE, || gateway.metric("gateway_active_requests") == 1.0);
    assert_eq!(client.send(body).read_response().status(), 200);
    for _ in 0..2 {
        assert_eq!(told.recv_timeout(PATIENCE).unwrap(), [("X-Kept".to_owned(), "1".to_owned())]);
    }
}

#[test]
fn a_token_in_the_query_stays_at_the_gateway() {
    let backend = Backend::ok();
    let directory = tempfile::tempdir().unwrap();
    let audit = directory.path().join("audit.log");
    let keys = format!("keys: {{ secret: {SECRET} }}, audience: \"*\"");
    let (key, hash) = ringway_core::auth::api_key::generate([7; 32]);
    let file = directory.path().join("keys.yaml");
    std::fs::write(&file, format!("clients: [{{ name: partner, keys: [{{ hash: \"{hash}\" }}] }}]\n")).unwrap();
    let sections = |forward: &str| {
        format!(
            "authenticators:\n- {{ name: main, jwt: {{ algorithms: HS256, {keys}, from: [bearer, query access_token], {forward} }} }}\n\
             - {{ name: partners, api_keys: {{ file: \"{}\", from: [\"header X-Key\", \"cookie key\", query key], {forward} }} }}\n\
             audit_log: {{ file: \"{}\" }}\n",
            file.display(),
            audit.display(),
        )
    };
    let setup = |sections| Setup { route: "authenticate: [main, partners]", sections, ..Setup::default() };
    let first = sections("");
    let gateway = setup(&first).start(backend.endpoint());
    let mut client = gateway.connect();
    let token = token(json!({}));
    let escaped = token.replace('.', "%2E");
    let mut seen = |target: &str, fields: &str| {
        let before = backend.requests().len();
        let answer = client.ask(format!("GET {target} HTTP/1.1\r\nHost: test\r\n{fields}\r\n"));
        assert_eq!(answer.status(), 200, "{target}: {}", answer.text());
        assert_eq!(backend.requests().len(), before + 1);
        backend.requests().pop().unwrap()
    };
    for (sent, expected) in [
        (format!("/a?access_token={token}"), "/a"),
        (format!("/a?x=1&access_token={token}"), "/a?x=1"),
        (format!("/a?access_token={token}&x=%7e%2f+%26&&y&="), "/a?x=%7e%2f+%26&&y&="),
        (format!("/a?x=a&access%5Ftoken={escaped}&access_tokens=b"), "/a?x=a&access_tokens=b"),
        // Another authenticator's too, though nobody looks at it.
        (format!("/a?key=%zz&access_token={token}&Key=1"), "/a?Key=1"),
        (format!("/a?key={key}&x"), "/a?x"),
    ] {
        assert_eq!(seen(&sent, "").target(), expected, "{sent}");
    }
    let fields = format!("{}Cookie: a=1; b=\"2\"\r\n", bearer(&token));
    let got = seen("/a?", &fields);
    assert_eq!((got.target(), got.has("authorization"), got.get("cookie")), ("/a?", true, Some("a=1; b=\"2\"")));

    // The rest of what is left behind.
    client.ask(format!("GET /secret?access_token={token}x HTTP/1.1\r\nHost: test\r\n\r\n"));
    assert_eq!(gateway.log_line(8)["path"], "/secret");
    let records = || std::fs::read_to_string(&audit).unwrap_or_default();
    eventually(PATIENCE, || records().contains("\"path\":\"/secret\""));
    let left = [format!("{:?}", gateway.log_lines()), records(), gateway.stderr()].concat();
    assert!(!left.contains(&token[..20]) && !left.contains(&key), "{left}");

    // Everything, or nothing.
    let all = sections("forward_credentials: all");
    assert!(gateway.replace_config(&setup(&all).yaml(backend.endpoint())));
    let target = format!("/a?x=1&access_token={token}");
    let mut client = gateway.connect();
    assert_eq!(client.ask(format!("GET {target} HTTP/1.1\r\nHost: test\r\n\r\n")).status(), 200);
    assert_eq!(backend.requests().pop().unwrap().target(), target);

    let none = sections("forward_credentials: none");
    assert!(gateway.replace_config(&setup(&none).yaml(backend.endpoint())));
    for (fields, credentials, cookies) in [
        (bearer(&token), "authorization", vec![]),
        (format!("X-Key: {key}\r\nCookie: a=1\r\n"), "x-key", vec!["a=1"]),
        (format!("Cookie: key={key}\r\n"), "x-key", vec![]),
        (format!("Cookie: a=1; key={key};b=2\r\nCookie: c=3;d\r\n"), "x-key", vec!["c=3;d", "a=1; b=2"]),
    ] {
        let request = format!("GET /a?x HTTP/1.1\r\nHost: test\r\nX-Kept: 1\r\n{fields}\r\n");
        assert_eq!(client.ask(request).status(), 200, "{fields}");
        let got = backend.requests().pop().unwrap();
        assert_eq!((got.target(), got.has("x-kept"), got.has(credentials)), ("/a?x", true, false), "{fields}");
        assert_eq!(got.all("cookie").collect::<Vec<_>>(), cookies, "{fields}");
    }
}
