//! Every limit of a connection, a client and a pool.

use std::time::Duration;

use ringway_tests::{Backend, Client, Gateway, PATIENCE, Setup, eventually, settles_at};

const REFUSED: &str = "gateway_connections_refused_total";

/// A connection over a limit: 503, whatever it asks for, and the end.
#[track_caller]
fn expect_refused(client: &mut Client) {
    let _ = client.try_send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let answer = client.read_response();
    assert_eq!((answer.status(), answer.get("retry-after")), (503, Some("1")));
    assert_eq!(answer.get("connection"), Some("close"));
    assert_eq!(answer.json()["requestId"].as_str(), answer.get("x-request-id"));
    client.expect_end();
}

#[test]
fn connections_in_all() {
    let backend = Backend::ok();
    let setup = Setup { sections: "limits: { connections: 3 }\n", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut clients: Vec<Client> = (0..3).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
    for refused in 1..=5 {
        expect_refused(&mut gateway.connect());
        assert_eq!(gateway.metric(&format!("{REFUSED}{{reason=\"connections\"}}")), f64::from(refused));
    }
    assert_eq!(gateway.metric("gateway_active_connections"), 3.0);
    clients.pop();
    settles_at(2.0, || gateway.metric("gateway_active_connections"));
    assert_eq!(gateway.get("/").status(), 200, "a place is free again");
    assert!(clients.iter_mut().all(|client| client.get("/").status() == 200));
}

#[test]
fn connections_of_one_address() {
    let backend = Backend::ok();
    let setup = Setup {
        sections: "limits: { connections_per_ip: 2 }\nruntime: { workers: 2, pin: false }\n",
        ..Setup::default()
    };
    let gateway = setup.start(backend.endpoint());
    let mut clients: Vec<Client> = (0..2).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        assert_eq!(client.get("/").status(), 200);
    }
    expect_refused(&mut gateway.connect());
    assert_eq!(gateway.metric(&format!("{REFUSED}{{reason=\"connections_per_ip\"}}")), 1.0);
    let mut other = Client::connect_from([127, 0, 0, 2].into(), gateway.address());
    assert_eq!(other.get("/").status(), 200, "another address has places of its own");
    clients.clear();
    settles_at(1.0, || gateway.metric("gateway_active_connections"));
    for _ in 0..10 {
        assert_eq!(gateway.get("/").status(), 200, "places are given back");
        settles_at(1.0, || gateway.metric("gateway_active_connections"));
    }
}

#[test]
fn requests_of_one_connection() {
    let backend = Backend::ok();
    let setup = Setup { listener: "limits: { requests_per_connection: 3 }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    assert_eq!(client.get("/").get("connection"), None);
    assert_eq!(client.get("/").get("connection"), None);
    assert_eq!(client.get("/").get("connection"), Some("close"));
    client.expect_closed();
    // Also when more has been sent ahead.
    let mut client = gateway.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(5));
    assert_eq!([(); 3].map(|()| client.read_response().status()), [200; 3]);
    client.expect_closed();
    assert_eq!(backend.requests().len(), 6);
}

#[test]
fn idle_connections_of_a_pool() {
    let backend = Backend::ok();
    let setup = Setup { service: "pool: { idle: 1 }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut clients: Vec<Client> = (0..5).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.read_response().status(), 200);
    }
    settles_at(true, || backend.open() <= 1);
    let idle = format!("gateway_endpoint_idle_connections{{service=\"app\",endpoint=\"{}\"}}", backend.endpoint());
    assert_eq!(gateway.metric(&idle), 1.0);
}

#[test]
fn the_idle_time_of_a_pool() {
    let backend = Backend::ok();
    let setup = Setup { service: "pool: { idle_timeout: 1s }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    client.get("/");
    assert_eq!(backend.open(), 1);
    backend.expect_all_closed();
    let idle = format!("gateway_endpoint_idle_connections{{service=\"app\",endpoint=\"{}\"}}", backend.endpoint());
    settles_at(0.0, || gateway.metric(&idle));
    assert_eq!(client.get("/").status(), 200);
    assert_eq!(backend.connections(), 2);
}

#[test]
fn the_age_of_a_pooled_connection() {
    let backend = Backend::ok();
    let setup = Setup { service: "pool: { max_age: 1s }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut client = gateway.connect();
    let mut requests = 0;
    eventually(PATIENCE, || {
        assert_eq!(client.get("/").status(), 200);
        requests += 1;
        backend.connections() == 2
    });
    assert!(requests > 2, "used again until it was too old: {requests}");
}

#[test]
fn connections_of_a_pool() {
    let backend = Backend::start(|conn| {
        while conn.next_request().is_some() {
            std::thread::sleep(Duration::from_millis(300));
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let setup = Setup {
        service: "pool: { connections: 2 }",
        sections: "runtime: { workers: 2, pin: false }\n",
        ..Setup::default()
    };
    let gateway = setup.start(backend.endpoint());
    let mut clients: Vec<Client> = (0..6).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let statuses: Vec<u16> = clients.iter_mut().map(|client| client.read_response().status()).collect();
    assert!(statuses.iter().all(|status| matches!(status, 200 | 503)), "{statuses:?}");
    assert!(statuses.contains(&200) && statuses.contains(&503), "{statuses:?}");
    assert!(backend.connections() <= 3, "two, or three where two workers asked at once: {}", backend.connections());
}

#[test]
fn pipelined_requests_leave_others_their_turn() {
    let backend = Backend::ok();
    let setup = Setup { listener: "limits: { pipelined: 2 }", ..Setup::default() };
    let gateway = setup.start(backend.endpoint());
    let mut greedy = gateway.connect();
    greedy.send("GET /greedy HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2000));
    let mut modest = gateway.connect();
    assert_eq!(modest.get("/modest").status(), 200);
    for _ in 0..2000 {
        assert_eq!(greedy.read_response().status(), 200);
    }
}

#[test]
fn the_last_descriptors_are_not_the_end() {
    let backend = Backend::ok();
    let gateway = Gateway::to(backend.endpoint());
    // Many connections that come and go at once, half of them without a word.
    for _ in 0..5 {
        let mut clients: Vec<Client> = (0..200).map(|_| gateway.connect()).collect();
        for client in clients.iter_mut().step_by(2) {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        for client in clients.iter_mut().step_by(2) {
            assert_eq!(client.read_response().status(), 200);
        }
    }
    gateway.expect_idle();
    assert_eq!(gateway.metric("gateway_worker_panics_total"), 0.0);
}
