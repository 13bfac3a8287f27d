//! How often requests may come, through the real binary, without Redis.

use ringway_tests::{Backend, Client, Message, PATIENCE, Setup, eventually};

const PER_CLIENT: &str = "rate_limits: [{ name: per-client, limit: 3/min }]\n";

fn ask(client: &mut Client, fields: &str) -> Message {
    client.ask(format!("GET /a HTTP/1.1\r\nHost: test\r\n{fields}\r\n"))
}

#[test]
fn one_too_many_is_told_when_to_come_back() {
    let backend = Backend::ok();
    let setup = Setup { route: "rate_limit: per-client", sections: PER_CLIENT, ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    for remaining in ["2", "1", "0"] {
        let answer = ask(&mut client, "");
        assert_eq!((answer.status(), answer.get("ratelimit-limit")), (200, Some("3")));
        assert_eq!(
            (answer.get("ratelimit-remaining"), answer.get("ratelimit-policy")),
            (Some(remaining), Some("3;w=60"))
        );
        assert!(!answer.has("retry-after"));
    }
    let refused = ask(&mut client, "");
    assert_eq!((refused.status(), refused.json()["error"].as_str()), (429, Some("Too many requests")));
    let wait: u64 = refused.get("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    assert_eq!(refused.get("ratelimit-remaining"), Some("0"));
    assert_eq!(backend.requests().len(), 3, "nothing of it reaches the service");
    let mut other = Client::connect_from([127, 0, 0, 2].into(), gateway.address());
    assert_eq!(ask(&mut other, "").status(), 200, "another client has its own bucket");
    let line = gateway.log_line(5);
    assert_eq!((&line["rateLimitRemaining"], &line["statusCode"]), (&2.into(), &200.into()));
    let exceeded = "gateway_rate_limit_exceeded_total{policy=\"per-client\",client=\"127.0.0.1\"}";
    eventually(PATIENCE, || gateway.metric(exceeded) == 1.0);
    assert_eq!(gateway.metric("gateway_rate_limit_keys{policy=\"per-client\"}"), 2.0);
}

#[test]
fn what_a_service_says_of_its_own_limit_does_not_contradict_the_gateway() {
    let backend = Backend::fixed(
        "HTTP/1.1 200 OK\r\nratelimit-remaining: 7\r\nRateLimit-Policy: 8;w=1\r\nX-RateLimit-Limit: 9\r\nContent-Length: 0\r\n\r\n",
    );
    let setup = Setup { route: "rate_limit: per-client", sections: PER_CLIENT, ..Setup::default() };
    let answer = ask(&mut setup.start(backend.endpoint()).connect(), "");
    let of = |name: &str| answer.all(name).collect::<Vec<_>>();
    assert_eq!((of("ratelimit-remaining"), of("ratelimit-policy")), (vec!["2"], vec!["3;w=60"]));
    assert_eq!(of("x-ratelimit-limit"), ["9"], "another style says something else");

    let silent = "rate_limits: [{ name: per-client, limit: 3/min, headers: none }]\n";
    let setup = Setup { sections: silent, ..setup };
    let answer = ask(&mut setup.start(backend.endpoint()).connect(), "");
    assert_eq!(answer.get("ratelimit-remaining"), Some("7"), "the gateway says nothing of its own");
}

#[test]
fn limits_join_and_a_refused_request_takes_nothing() {
    let backend = Backend::ok();
    let sections = "rate_limits: [{ name: all, limit: 100/min, key: all, headers: none }, \
        { name: tenant, limit: 2/min, key: header x-tenant, headers: structured }]\n";
    let setup = Setup { route: "rate_limit: [all, tenant]", sections, ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    for _ in 0..2 {
        assert_eq!(ask(&mut client, "X-Tenant: a\r\n").status(), 200);
    }
    for _ in 0..100 {
        let refused = ask(&mut client, "X-Tenant: a\r\n");
        assert_eq!(refused.status(), 429);
        assert!(refused.get("ratelimit").unwrap().starts_with("\"tenant\";r=0;t="), "{}", refused.text());
        assert_eq!(refused.get("ratelimit-policy"), Some("\"tenant\";q=2;w=60"));
    }
    assert_eq!(ask(&mut client, "X-Tenant: b\r\n").status(), 200, "the first limit lost nothing to refusals");
}

#[test]
fn a_reload_keeps_the_buckets() {
    let backend = Backend::ok();
    let setup = Setup { route: "rate_limit: per-client", sections: PER_CLIENT, ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    (0..3).for_each(|_| assert_eq!(ask(&mut client, "").status(), 200));
    let other = Setup { service: "balance: round_robin", ..setup };
    assert!(gateway.replace_config(&other.yaml(backend.endpoint())));
    assert_eq!(ask(&mut client, "").status(), 429);
    let wider = Setup { sections: "rate_limits: [{ name: per-client, limit: 4/min }]\n", ..setup };
    assert!(gateway.replace_config(&wider.yaml(backend.endpoint())));
    assert_eq!(ask(&mut client, "").status(), 200, "another policy begins anew");
}
