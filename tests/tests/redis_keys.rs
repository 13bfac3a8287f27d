//! API keys and revoked tokens that others keep in Redis, through the real binary.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::{EncodingKey, Header};
use ringway_core::auth::api_key::generate;
use ringway_core::timestamp::rfc3339_millis;
use ringway_tests::redis::Redis;
use ringway_tests::{Backend, Client, Gateway, Message, PATIENCE, Setup, eventually, settles_at};
use serde_json::json;

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn sections(server: &str, list: &str) -> String {
    format!(
        "authenticators: [{{ name: partners, api_keys: {{ redis: {{ every: 100ms, {list} }}, headers: {{ x-client: sub }} }} }}]\n\
         redis: {{ url: \"{server}\" }}\n"
    )
}

const ROUTE: &str = "authenticate: partners, authorize: { roles: [partner] }";

fn yaml(backend: &Backend, server: &Redis, list: &str) -> String {
    let sections = sections(&server.url(), list);
    Setup { route: ROUTE, sections: &sections, ..Setup::default() }.yaml(backend.endpoint())
}

fn ask(client: &mut Client, key: &str) -> Message {
    client.ask(format!("GET /a HTTP/1.1\r\nHost: test\r\nX-API-Key: {key}\r\n\r\n"))
}

/// Adds a key of the client `shop`.
fn add(server: &Redis, hash: &str, more: &str) {
    let entry = format!("{{\"client\":\"shop\",\"roles\":[\"partner\"]{more}}}");
    server.ask(&["HSET", "ringway:api-keys", hash, &entry]);
}

fn in_seconds(seconds: u64) -> String {
    let mut text = Vec::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    rfc3339_millis((now + seconds) * 1000, &mut text);
    String::from_utf8(text).unwrap().replace(".000Z", "Z")
}

#[test]
fn keys_are_added_rotated_and_removed() {
    let (backend, server) = (Backend::ok(), Redis::start());
    let (old, new, later, short) = (generate([1; 32]), generate([2; 32]), generate([3; 32]), generate([4; 32]));
    add(&server, &old.1, ",\"id\":\"old\"");
    let gateway = Gateway::start(&yaml(&backend, &server, ""));
    let mut client = gateway.connect();
    // The very first request waits for the first look.
    assert_eq!(ask(&mut client, &old.0).status(), 200);
    assert_eq!(backend.request().get("x-client"), Some("shop"));
    let unknown = ask(&mut client, &new.0);
    assert_eq!((unknown.status(), unknown.get("www-authenticate").is_some()), (401, true));

    // Another one beside it, for a while.
    add(&server, &new.1, "");
    eventually(PATIENCE, || ask(&mut client, &new.0).status() == 200);
    assert_eq!(ask(&mut client, &old.0).status(), 200);
    server.ask(&["HDEL", "ringway:api-keys", &old.1]);
    eventually(PATIENCE, || ask(&mut client, &old.0).status() == 401);
    assert_eq!(ask(&mut client, &new.0).status(), 200);

    // Not yet, and not any more: what the entry says counts, whenever it was read.
    add(&server, &later.1, &format!(",\"not_before\":\"{}\"", in_seconds(3600)));
    add(&server, &short.1, &format!(",\"expires\":\"{}\"", in_seconds(3)));
    eventually(PATIENCE, || ask(&mut client, &short.0).status() == 200);
    let early = ask(&mut client, &later.0);
    assert!(early.get("www-authenticate").unwrap().contains("not yet valid"), "{}", early.text());
    eventually(PATIENCE, || ask(&mut client, &short.0).status() == 401);

    // What cannot be read does not count, and the others do.
    settles_at(3.0, || gateway.metric("gateway_authenticator_keys{authenticator=\"partners\"}"));
    server.ask(&["HSET", "ringway:api-keys", &old.1, "{\"client\":", "nothing", "{\"client\":\"x\"}"]);
    settles_at(2.0, || gateway.metric("gateway_authenticator_malformed_entries{authenticator=\"partners\"}"));
    assert_eq!((ask(&mut client, &old.0).status(), ask(&mut client, &new.0).status()), (401, 200));
    let told = gateway.stderr();
    assert!(told.contains("`partners`: 2 entries of ringway:api-keys in Redis do not count"), "{told}");
    assert!(!told.contains(&old.1[7..]) && !told.contains(&new.0), "neither keys nor hashes are told");

    // With a version it is read when that changes.
    server.ask(&["INCR", "ringway:api-keys:version"]);
    server.ask(&["HDEL", "ringway:api-keys", "nothing"]);
    server.ask(&["INCR", "ringway:api-keys:version"]);
    settles_at(1.0, || gateway.metric("gateway_authenticator_malformed_entries{authenticator=\"partners\"}"));
    // Not a hash at all.
    server.ask(&["DEL", "ringway:api-keys", "ringway:api-keys:version"]);
    server.ask(&["SET", "ringway:api-keys", "x"]);
    eventually(PATIENCE, || gateway.stderr().contains("ringway:api-keys in Redis cannot be read"));
    server.ask(&["DEL", "ringway:api-keys"]);
    eventually(PATIENCE, || ask(&mut client, &new.0).status() == 401);
}

#[test]
fn keys_outlive_a_redis_that_is_down() {
    let (backend, mut server) = (Backend::ok(), Redis::start());
    let key = generate([1; 32]);
    add(&server, &key.1, "");
    let gateway = Gateway::start(&yaml(&backend, &server, ""));
    let mut client = gateway.connect();
    assert_eq!(ask(&mut client, &key.0).status(), 200);
    server.kill();
    let failures =
        || gateway.metric("gateway_authenticator_key_refreshes_total{authenticator=\"partners\",result=\"failure\"}");
    eventually(PATIENCE, || failures() >= 3.0);
    assert_eq!((ask(&mut client, &key.0).status(), ask(&mut client, "rwk_guess").status()), (200, 401));
    assert_eq!(gateway.stderr().matches("ringway:api-keys in Redis cannot be read").count(), 1, "told once");
    // A reload that does not change the place keeps them too.
    assert!(gateway.replace_config(&yaml(&backend, &server, "every: 200ms").replace("every: 100ms, ", "")));
    assert_eq!(ask(&mut client, &key.0).status(), 200);
    // Back, and empty.
    server.restart();
    eventually(PATIENCE, || ask(&mut client, &key.0).status() == 401);
}

#[test]
fn without_a_first_look_nobody_passes_and_nobody_is_unknown() {
    let (backend, mut server) = (Backend::ok(), Redis::start());
    server.kill();
    let gateway = Gateway::start(&yaml(&backend, &server, ""));
    let mut client = gateway.connect();
    let key = generate([1; 32]);
    let refused = ask(&mut client, &key.0);
    assert_eq!(refused.status(), 503, "{}", refused.text());
    assert!(refused.has("retry-after") && !refused.has("www-authenticate"));
    assert_eq!(client.ask("GET /a HTTP/1.1\r\nHost: test\r\n\r\n").status(), 401, "there is no key to judge");
    assert_eq!(gateway.admin("/ready").0, 200);
    assert!(backend.requests().is_empty());
    server.restart();
    add(&server, &key.1, "");
    eventually(PATIENCE, || ask(&mut client, &key.0).status() == 200);
}

#[test]
fn another_place_begins_anew() {
    let (backend, first, second) = (Backend::ok(), Redis::start(), Redis::start());
    let (here, there) = (generate([1; 32]), generate([2; 32]));
    add(&first, &here.1, "");
    add(&second, &there.1, "");
    let gateway = Gateway::start(&yaml(&backend, &first, ""));
    let mut client = gateway.connect();
    assert_eq!(ask(&mut client, &here.0).status(), 200);
    // Another server: not one request is judged by the keys of the old one, or answered that its key is unknown.
    for _ in 0..3 {
        assert!(gateway.replace_config(&yaml(&backend, &second, "")));
        assert_eq!((ask(&mut client, &there.0).status(), ask(&mut client, &here.0).status()), (200, 401));
        assert!(gateway.replace_config(&yaml(&backend, &first, "")));
        assert_eq!((ask(&mut client, &here.0).status(), ask(&mut client, &there.0).status()), (200, 401));
    }
    // Another key of the same server.
    let entry = "{\"client\":\"shop\",\"roles\":[\"partner\"]}";
    first.ask(&["HSET", "ringway:others", &there.1, entry]);
    assert!(gateway.replace_config(&yaml(&backend, &first, "key: others")));
    assert_eq!((ask(&mut client, &there.0).status(), ask(&mut client, &here.0).status()), (200, 401));
    // A place that is not there is not the place before it.
    let mut gone = Redis::start();
    gone.kill();
    assert!(gateway.replace_config(&yaml(&backend, &gone, "")));
    assert_eq!(ask(&mut client, &there.0).status(), 503);
}

#[test]
fn a_revoked_token_is_refused_though_it_was_remembered() {
    let (backend, mut server) = (Backend::ok(), Redis::start());
    let sections = format!(
        "authenticators: [{{ name: main, jwt: {{ algorithms: HS256, keys: {{ secret: \"{SECRET}\" }}, \
         revoked: {{ redis: {{ every: 100ms }} }} }} }}]\nredis: {{ url: \"{}\" }}\n",
        server.url()
    );
    let setup = Setup { route: "authenticate: main", sections: &sections, ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let mut ask = |id: Option<&str>| {
        let claims = json!({ "sub": "u", "exp": now + 600, "jti": id });
        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let claims = match id {
            Some(_) => claims,
            None => json!({ "sub": "u", "exp": now + 600 }),
        };
        let token = jsonwebtoken::encode(&Header::default(), &claims, &key).unwrap();
        client.ask(format!("GET /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n\r\n"))
    };
    for _ in 0..2 {
        assert_eq!((ask(Some("good")).status(), ask(Some("bad")).status()), (200, 200));
    }
    server.ask(&["SADD", "ringway:revoked", "bad"]);
    eventually(PATIENCE, || ask(Some("bad")).status() == 401);
    assert!(ask(Some("bad")).get("www-authenticate").unwrap().contains("revoked"));
    assert_eq!(ask(Some("good")).status(), 200);
    assert_eq!(gateway.metric("gateway_authenticator_revoked_tokens{authenticator=\"main\"}"), 1.0);
    server.kill();
    let failures =
        || gateway.metric("gateway_authenticator_key_refreshes_total{authenticator=\"main\",result=\"failure\"}");
    eventually(PATIENCE, || failures() >= 2.0);
    assert_eq!((ask(Some("good")).status(), ask(Some("bad")).status()), (200, 401));
    // A new list that cannot be read: who could be on it does not pass.
    let sections = sections.replace("every: 100ms", "every: 100ms, key: other");
    assert!(gateway.replace_config(&Setup { sections: &sections, ..setup }.yaml(backend.endpoint())));
    let refused = ask(Some("good"));
    assert_eq!((refused.status(), refused.has("retry-after")), (503, true));
    assert_eq!(ask(None).status(), 200, "what has no ID cannot be revoked");
    server.restart();
    eventually(PATIENCE, || ask(Some("good")).status() == 200);
}
