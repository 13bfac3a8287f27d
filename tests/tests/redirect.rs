//! Listeners that send everybody to https, through the real binary.

use std::fs;

use ringway_tests::{Backend, Gateway, Process};

fn gateway(backend: &Backend, redirect: &str) -> Gateway {
    let listener = format!("listeners: [{{ name: public, address: LISTEN, redirect_to_https: {redirect} }}]\n");
    Gateway::start(&(listener + &Gateway::route_to(backend.endpoint())))
}

#[test]
fn every_request_is_sent_to_the_same_place_by_https() {
    let backend = Backend::ok();
    let gateway = gateway(&backend, "{}");
    let mut client = gateway.connect();
    for (request, location) in [
        ("GET /a/b?c=d%20e HTTP/1.1\r\nHost: shop.example\r\n\r\n", "https://shop.example/a/b?c=d%20e"),
        ("GET / HTTP/1.1\r\nHost: shop.example:8080\r\n\r\n", "https://shop.example/"),
        ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\n\r\n", "https://[2001:db8::1]/"),
        ("GET http://other.example:81/x HTTP/1.1\r\nHost: shop.example\r\n\r\n", "https://other.example/x"),
        (
            "GET //evil.example/%2e%2e HTTP/1.1\r\nHost: shop.example\r\n\r\n",
            "https://shop.example//evil.example/%2e%2e",
        ),
        ("POST /form HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 3\r\n\r\na=b", "https://shop.example/form"),
        (
            "OPTIONS /x HTTP/1.1\r\nHost: a\r\nOrigin: https://b\r\nAccess-Control-Request-Method: PUT\r\n\r\n",
            "https://a/x",
        ),
    ] {
        let answer = client.ask(request);
        assert_eq!((answer.status(), answer.get("location")), (308, Some(location)), "{request}");
        assert!(answer.body.is_empty() && answer.has("x-request-id") && !answer.has("strict-transport-security"));
    }
    assert_eq!(backend.connections(), 0);
    assert_eq!(gateway.metric("gateway_requests_total{route=\"unmatched\",status=\"308\"}"), 7.0);
    assert_eq!(gateway.log_line(7)["statusCode"], 308);
}

#[test]
fn a_host_that_is_none_leads_nowhere() {
    let backend = Backend::ok();
    let gateway = gateway(&backend, "{ port: 8443, status: 301 }");
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a@evil.example\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\\b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a%2fb\r\n\r\n",
    ] {
        let answer = gateway.connect().ask(request);
        assert_eq!((answer.status(), answer.has("location")), (400, false), "{request}");
    }
    let answer = gateway.connect().ask("GET /x HTTP/1.0\r\nHost: a.example:80\r\n\r\n");
    assert_eq!((answer.status(), answer.get("location")), (301, Some("https://a.example:8443/x")));
}

#[test]
fn exempt_paths_are_routed() {
    let backend = Backend::ok();
    let gateway = gateway(&backend, "{ except: [/.well-known/acme-challenge/] }");
    assert_eq!(gateway.get("/.well-known/acme-challenge/token").status(), 200);
    for path in [
        "/.well-known/acme-challenge",
        "/.well-known/acme-challenge/../../secret",
        "/.well-known/acme-challenge/%2e%2e/secret",
        "/.well-known/Acme-Challenge/token",
    ] {
        assert_eq!(gateway.get(path).status(), 308, "{path}");
    }
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn what_cannot_be_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gateway.yaml");
    for (redirect, expected) in [
        ("{ status: 303 }", "`303` does not redirect every request"),
        ("{ status: 200 }", "from 301 to 308"),
        ("{ except: [a] }", "`a` is no path"),
        ("{ port: 0 }", "from 1 to 65535"),
        ("{ code: 301 }", "unknown key `code`"),
    ] {
        fs::write(
            &path,
            format!("listeners:\n  - name: a\n    address: 127.0.0.1:1\n    redirect_to_https: {redirect}\n"),
        )
        .unwrap();
        let output = Process::run(&["check", path.to_str().unwrap()]);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains("gateway.yaml:4:") && said.contains(expected), "{redirect}: {said}");
    }
}
