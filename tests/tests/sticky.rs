//! Sessions stay with their endpoint, by a cookie that the gateway signs.

use std::collections::BTreeMap;
use std::process::Command;

use ringway_tests::failing::{Fickle, Mood};
use ringway_tests::{Client, Gateway, Message, PATIENCE, eventually};

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn start(all: &[Fickle], sticky: &str, service: &str) -> Gateway {
    let list: Vec<String> = all.iter().map(|one| format!("\"{}\"", one.endpoint())).collect();
    Gateway::start(&format!(
        "admin: {{ address: ADMIN, changes: true }}\n\
         services: [{{ name: app, endpoints: [{}], sticky: {{ cookie: stay, {sticky} }}, {service} }}]\n\
         routes: [{{ name: all, service: app }}]\n",
        list.join(", ")
    ))
}

fn three() -> [Fickle; 3] {
    ["a", "b", "c"].map(Fickle::new)
}

fn ask(client: &mut Client, cookies: &str) -> Message {
    client.ask(format!("GET / HTTP/1.1\r\nHost: a\r\n{cookies}\r\n"))
}

/// The cookie that an answer sets, `name=value`, and what stands behind it.
fn set_by(answer: &Message) -> Option<(String, String)> {
    let line = answer.get("set-cookie")?;
    let (pair, attributes) = line.split_once(';').expect("attributes");
    Some((pair.to_owned(), attributes.trim().to_owned()))
}

/// Sessions by the name of their endpoint, one for each.
fn sessions(gateway: &Gateway, all: usize) -> BTreeMap<String, String> {
    let mut client = gateway.connect();
    let mut found = BTreeMap::new();
    for _ in 0..200 {
        let answer = ask(&mut client, "");
        let (pair, _) = set_by(&answer).expect("a new session");
        let before = found.insert(answer.text(), pair.clone());
        assert!(before.is_none_or(|before| before == pair), "one endpoint, one value");
    }
    assert_eq!(found.len(), all);
    found
}

fn counted(gateway: &Gateway, session: &str) -> f64 {
    gateway.metric(&format!("gateway_sticky_requests_total{{service=\"app\",session=\"{session}\"}}"))
}

fn operate(gateway: &Gateway, all: &[Fickle], name: &str, what: &str) {
    let index = ["a", "b", "c"].iter().position(|known| *known == name).expect("an endpoint");
    let path = format!("/services/app/endpoints/{}/{what}", all[index].endpoint());
    assert_eq!(gateway.post_admin(&path).0, 200);
}

#[test]
fn a_session_stays_with_its_endpoint() {
    let all = three();
    let gateway = start(&all, &format!("secret: {SECRET}"), "balance: round_robin");
    let sessions = sessions(&gateway, 3);
    for (name, pair) in &sessions {
        for one in &all {
            assert!(!pair.contains(one.endpoint()), "{pair} tells the address");
        }
        let mut client = gateway.connect();
        for cookies in [format!("Cookie: {pair}\r\n"), format!("Cookie: x=1; {pair}; y=2\r\n")] {
            for _ in 0..10 {
                let answer = ask(&mut client, &cookies);
                assert_eq!((answer.text(), set_by(&answer)), (name.clone(), None));
            }
        }
    }
    assert_eq!((counted(&gateway, "kept"), counted(&gateway, "new")), (60.0, 200.0));
    let line = gateway.log_line(260);
    assert_eq!(line["session"], "kept");

    // Forged, of another service, cut: as if there were none, and a new one is given.
    let pair = sessions["a"].clone();
    let last = if pair.ends_with('x') { 'y' } else { 'x' };
    let mut client = gateway.connect();
    for forged in ["stay=", "stay=a", &pair[..pair.len() - 1], &format!("{}{last}", &pair[..pair.len() - 1])] {
        assert!(set_by(&ask(&mut client, &format!("Cookie: {forged}\r\n"))).is_some(), "{forged}");
    }
    assert_eq!(counted(&gateway, "unknown"), 4.0);
    // Of two the good one counts.
    let answer = ask(&mut client, &format!("Cookie: stay=older; {pair}\r\n"));
    assert_eq!((answer.text(), set_by(&answer)), ("a".into(), None));
}

#[test]
fn the_same_secret_is_the_same_session_on_other_gateways_and_after_reloads() {
    let all = three();
    let yaml = |secret: &str, rest: &str| {
        let list: Vec<String> = all.iter().map(|one| format!("\"{}\"", one.endpoint())).collect();
        format!(
            "services: [{{ name: app, endpoints: [{}], sticky: {{ cookie: stay{secret} }} }}]\nroutes: [{{ name: all, service: app{rest} }}]\n",
            list.join(", ")
        )
    };
    let keyed = format!(", secret: {SECRET}");
    let (first, second) = (Gateway::start(&yaml(&keyed, "")), Gateway::start(&yaml(&keyed, "")));
    assert_eq!(sessions(&first, 3), sessions(&second, 3));
    // Without one each process has its own, for as long as it runs.
    let (third, fourth) = (Gateway::start(&yaml("", "")), Gateway::start(&yaml("", "")));
    let before = sessions(&third, 3);
    assert_ne!(before, sessions(&fourth, 3));
    assert!(third.replace_config(&yaml("", ", priority: 1")));
    assert_eq!(sessions(&third, 3), before);
}

#[test]
fn the_cookie_has_the_attributes_that_are_said() {
    let all = three();
    for (sticky, expected) in [
        ("", "Path=/; HttpOnly; SameSite=Lax"),
        ("ttl: 1h, path: /shop, same_site: strict, http_only: false", "Path=/shop; Max-Age=3600; SameSite=Strict"),
        ("same_site: none, secure: true", "Path=/; HttpOnly; SameSite=None; Secure"),
        ("same_site: off, secure: false", "Path=/; HttpOnly"),
    ] {
        let gateway = start(&all, sticky, "");
        let answer = gateway.get("/");
        let (pair, attributes) = set_by(&answer).expect("a cookie");
        assert!(pair.starts_with("stay=") && pair.len() == 29, "{pair}");
        assert_eq!(attributes, expected, "{sticky}");
    }
}

#[test]
fn what_the_service_sets_itself_stays() {
    let backend = ringway_tests::Backend::fixed(
        "HTTP/1.1 200 OK\r\nSet-Cookie: cart=1\r\nContent-Length: 2\r\nSet-Cookie: stay=mine\r\n\r\nok",
    );
    let gateway = Gateway::start(&format!(
        "services: [{{ name: app, endpoints: \"{}\", sticky: {{ cookie: stay }} }}]\nroutes: [{{ service: app }}]\n",
        backend.endpoint()
    ));
    let answer = gateway.get("/");
    let set: Vec<&str> = answer.all("set-cookie").collect();
    assert_eq!(set[..2], ["cart=1", "stay=mine"]);
    assert!(set.len() == 3 && set[2].starts_with("stay=") && set[2].contains("; Path=/"), "{set:?}");
}

#[test]
fn the_service_gets_the_cookie_unless_told_otherwise() {
    for (sticky, expected) in [("", true), ("indirect: true", false)] {
        let all = three();
        let gateway = start(&all, sticky, "");
        let mut client = gateway.connect();
        let (pair, _) = set_by(&ask(&mut client, "")).expect("a cookie");
        let served = ask(&mut client, &format!("Cookie: cart=7; {pair}; x=y\r\n")).text();
        assert_eq!(ask(&mut client, &format!("Cookie: {pair}\r\n")).text(), served);
        let index = ["a", "b", "c"].iter().position(|name| *name == served).expect("an endpoint");
        let requests = all[index].backend().requests();
        let [.., first, second] = requests.as_slice() else { panic!("two requests") };
        match expected {
            true => {
                assert_eq!(first.get("cookie"), Some(&*format!("cart=7; {pair}; x=y")));
                assert_eq!(second.get("cookie"), Some(&*pair));
            }
            false => {
                assert_eq!(first.get("cookie"), Some("cart=7; x=y"));
                assert_eq!(second.get("cookie"), None);
            }
        }
    }
}

#[test]
fn a_drained_endpoint_keeps_its_sessions_and_an_unhealthy_one_loses_them() {
    let all = three();
    let check =
        "health_check: { http: { path: /health }, interval: 50ms, unhealthy_threshold: 2, healthy_threshold: 2 }";
    let gateway = start(&all, "", check);
    let sessions = sessions(&gateway, 3);
    let pair = &sessions["a"];
    let mut client = gateway.connect();
    let cookies = format!("Cookie: {pair}\r\n");
    for what in ["drain", "enable", "weight/0"] {
        operate(&gateway, &all, "a", what);
        let answer = ask(&mut client, &cookies);
        assert_eq!((answer.text(), set_by(&answer)), ("a".into(), None), "{what}");
        if what != "enable" {
            assert!((0..20).all(|_| ask(&mut client, "").text() != "a"), "no new session");
        }
    }
    operate(&gateway, &all, "a", "weight/configured");

    all[0].set(Mood::Broken);
    let healthy = format!("gateway_endpoint_healthy{{service=\"app\",endpoint=\"{}\"}}", all[0].endpoint());
    eventually(PATIENCE, || gateway.metric(&healthy) == 0.0);
    let answer = ask(&mut client, &cookies);
    let (moved, _) = set_by(&answer).expect("another session");
    assert_eq!(sessions[&answer.text()], moved);
    assert!(answer.text() != "a" && counted(&gateway, "moved") == 1.0);
    // Who has moved stays, also when the first one is back.
    all[0].set(Mood::Good);
    eventually(PATIENCE, || gateway.metric(&healthy) == 1.0);
    for _ in 0..10 {
        let later = ask(&mut client, &format!("Cookie: {moved}\r\n"));
        assert_eq!((later.text(), set_by(&later)), (answer.text(), None));
    }
}

#[test]
fn an_answer_that_a_retry_has_brought_moves_the_session() {
    let all = three();
    let gateway = start(&all, "", "retries: { on: [connect_failure, reset, 500], budget: { min_per_second: 100 } }");
    let sessions = sessions(&gateway, 3);
    for mood in [Mood::Broken, Mood::Closing] {
        all[0].set(mood);
        let answer = ask(&mut gateway.connect(), &format!("Cookie: {}\r\n", sessions["a"]));
        assert_eq!(answer.status(), 200, "{mood:?}");
        let (moved, _) = set_by(&answer).expect("another session");
        assert_eq!(sessions[&answer.text()], moved, "{mood:?}");
    }
    assert_eq!(counted(&gateway, "moved"), 2.0);
}

#[test]
fn clients_of_http2_have_sessions_too() {
    let all = three();
    let gateway = start(&all, &format!("secret: {SECRET}"), "");
    let known = sessions(&gateway, 3);
    let curl = |arguments: &[&str]| {
        let url = format!("http://{}/", gateway.address());
        let output = Command::new("curl")
            .args(["-sS", "-i", "--http2-prior-knowledge", "--max-time", "10"])
            .args(arguments)
            .arg(url)
            .output();
        let output = output.expect("curl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let answer = curl(&[]);
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/2 200"), "{head}");
    assert!(head.contains(&format!("set-cookie: {}; Path=/", known[body])), "{answer}");
    // Its cookies may come in pieces (RFC 9113 section 8.2.3).
    let piece = format!("cookie: {}", known["b"]);
    let answer = curl(&["-H", "cookie: x=1", "-H", &piece, "-H", "cookie: y=2"]);
    assert!(answer.ends_with("\r\n\r\nb") && !answer.contains("set-cookie"), "{answer}");
    assert_eq!(counted(&gateway, "kept"), 1.0);
}
