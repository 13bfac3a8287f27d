//! The PROXY protocol on both sides of the gateway, through the real binary.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use ringway_tests::{Backend, Client, End, Gateway, PATIENCE, Process, settles_at};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n";

fn gateway(backend: &Backend, proxy_protocol: &str, more: &str) -> Gateway {
    let listener = format!("listeners: [{{ name: public, address: LISTEN, proxy_protocol: {proxy_protocol} }}]\n");
    Gateway::start(&(listener + &Gateway::route_to(backend.endpoint()) + more))
}

/// A header of version 2.
fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    [&SIGNATURE[..], &[command, family], &(body.len() as u16).to_be_bytes(), body].concat()
}

fn v2_of(source: [u8; 4]) -> Vec<u8> {
    v2(0x21, 0x11, &[&source[..], &[198, 51, 100, 1], &[0x30, 0x39], &[1, 0xbb], b"\x04\x00\x02ab"].concat())
}

/// A header of version 1.
fn v1_of(source: &str) -> Vec<u8> {
    format!("PROXY TCP4 {source} 198.51.100.1 12345 443\r\n").into_bytes()
}

/// For 203.0.113.10; the right one is 23d99e56.
fn with_checksum(checksum: u32) -> Vec<u8> {
    let addresses = [203, 0, 113, 10, 1, 1, 1, 1, 0, 1, 0, 2];
    v2(0x21, 0x11, &[&addresses[..], &[3, 0, 4], &checksum.to_be_bytes()].concat())
}

fn errors(gateway: &Gateway) -> f64 {
    gateway.metric("gateway_proxy_protocol_errors_total{listener=\"public\"}")
}

#[test]
fn the_client_is_whom_a_trusted_proxy_names() {
    let backend = Backend::ok();
    let gateway = gateway(&backend, "{ trusted: [127.0.0.1] }", "");
    let v6 = b"PROXY TCP6 2001:db8::7 2001:db8::1 12345 443\r\n".to_vec();
    for (count, (header, client)) in [
        (v1_of("203.0.113.7"), "203.0.113.7"),
        (v6, "2001:db8::7"),
        (v2_of([203, 0, 113, 8]), "203.0.113.8"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
        (v2(0x20, 0, &[]), "127.0.0.1"),
        (v2(0x21, 0x31, &[b'/'; 216]), "127.0.0.1"),
        (
            v2(0x21, 0x11, &[&[203, 0, 113, 9, 1, 1, 1, 1, 0, 1, 0, 2, 4, 15, 241][..], &[0; 4081]].concat()),
            "203.0.113.9",
        ),
        (with_checksum(0x23d9_9e56), "203.0.113.10"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut connection = gateway.connect();
        // A client cannot say who it is itself.
        let request = b"GET / HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 192.0.2.99\r\n\r\n";
        assert_eq!(connection.ask([&header[..], request].concat()).status(), 200);
        assert_eq!(connection.ask(GET).status(), 200, "once, at the beginning");
        let requests = backend.requests();
        let told: Vec<_> = requests.iter().rev().take(2).map(|request| request.get("x-forwarded-for")).collect();
        assert_eq!(told, [Some(client); 2]);
        assert_eq!(gateway.log_line(2 * count + 2)["clientIp"], client);
    }
    assert_eq!(errors(&gateway), 0.0);
}

#[test]
fn a_header_in_pieces_is_a_header() {
    let backend = Backend::ok();
    let gateway = gateway(&backend, "{ trusted: [127.0.0.0/8] }", "");
    for header in [v1_of("203.0.113.7"), v2_of([203, 0, 113, 7])] {
        let mut connection = gateway.connect();
        connection.stream().set_nodelay(true).unwrap();
        for byte in &header {
            connection.send([*byte]);
        }
        assert_eq!(connection.ask(GET).status(), 200);
        assert_eq!(backend.requests().last().unwrap().get("x-forwarded-for"), Some("203.0.113.7"));
    }
}

#[test]
fn others_are_not_believed() {
    let backend = Backend::ok();
    let strict = gateway(&backend, "{ trusted: [127.0.0.2] }", "");
    let mut untrusted = strict.connect();
    let _ = untrusted.try_send([&v1_of("203.0.113.7")[..], GET].concat());
    assert!(matches!(untrusted.read_to_end(), (bytes, _) if bytes.is_empty()));
    settles_at(1.0, || errors(&strict));
    let mut trusted = Client::connect_from([127, 0, 0, 2].into(), strict.address());
    assert_eq!(trusted.ask([&v1_of("203.0.113.7")[..], GET].concat()).status(), 200);

    let lenient = gateway(&backend, "{ trusted: [127.0.0.2], required: false }", "");
    assert_eq!(lenient.get("/").status(), 200);
    assert_eq!(backend.requests().last().unwrap().get("x-forwarded-for"), Some("127.0.0.1"));
    let before = backend.requests().len();
    // As a request line the one has a strange version, the other is none.
    for (header, status) in [(v1_of("203.0.113.7"), 505), (v2_of([203, 0, 113, 7]), 400)] {
        assert_eq!(lenient.connect().ask([&header[..], GET].concat()).status(), status);
    }
    assert_eq!((backend.requests().len(), errors(&lenient)), (before, 0.0));
}

#[test]
fn what_is_no_header_ends_the_connection() {
    let backend = Backend::ok();
    let gateway = gateway(&backend, "{ trusted: [127.0.0.1], timeout: 200ms, versions: v1 }", "");
    // A look at the port is no error.
    drop(gateway.connect());
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
    let mut count = 0.0;
    for bytes in [
        GET.to_vec(),
        v2_of([203, 0, 113, 7]),
        b"PROXY TCP4 203.0.113.7 198.51.100.1 12345\r\n".to_vec(),
        b"PROXY TCP4 203.0.113.7 198.51.100.1 12345 99999\r\n".to_vec(),
        [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat(),
        // In time, or not at all.
        b"PROXY TCP4 203.0".to_vec(),
        b"".to_vec(),
    ] {
        let mut connection = gateway.connect();
        let _ = connection.try_send(&bytes);
        let (answer, end) = connection.read_to_end();
        assert!(answer.is_empty() && matches!(end, End::Closed | End::Reset), "{}", bytes.escape_ascii());
        count += 1.0;
        settles_at(count, || errors(&gateway));
    }
    let mut half = gateway.connect();
    half.send(b"PROXY TC").half_close();
    half.expect_end();
    settles_at(count + 1.0, || errors(&gateway));
    assert_eq!(backend.connections(), 0);
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
}

#[test]
fn a_header_whose_checksum_is_wrong_ends_the_connection() {
    let backend = Backend::ok();
    let gateway = gateway(&backend, "{ trusted: [127.0.0.1] }", "");
    let mut connection = gateway.connect();
    let _ = connection.try_send([&with_checksum(0x23d9_9e57)[..], GET].concat());
    assert!(matches!(connection.read_to_end(), (answer, _) if answer.is_empty()));
    settles_at(1.0, || errors(&gateway));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn limits_and_lists_are_about_the_client() {
    let backend = Backend::ok();
    let yaml = format!(
        "listeners: [{{ name: public, address: LISTEN, proxy_protocol: {{ trusted: [127.0.0.1] }} }}]
limits: {{ connections_per_ip: 2 }}
rate_limits: [{{ name: each, limit: 3/min, key: client_ip }}]
services: [{{ name: app, endpoints: [\"{}\"] }}]
routes: [{{ name: all, service: app, rate_limit: each, ip: {{ deny: [203.0.113.66] }} }}]\n",
        backend.endpoint()
    );
    let gateway = Gateway::start(&yaml);
    let connect = |source: &str| {
        let mut connection = gateway.connect();
        let answer = connection.ask([&v1_of(source)[..], GET].concat());
        (answer.status(), connection)
    };
    assert_eq!(connect("203.0.113.66").0, 403);
    let (first, one) = connect("203.0.113.1");
    let (second, _two) = connect("203.0.113.1");
    let (third, _three) = connect("203.0.113.1");
    assert_eq!([first, second, third], [200, 200, 503], "two connections of one client at a time");
    let (other, mut connection) = connect("203.0.113.2");
    assert_eq!(other, 200, "the proxy itself is not counted");
    let statuses = [(); 3].map(|()| connection.ask(GET).status());
    assert_eq!(statuses, [200, 200, 429]);
    drop(one);
    settles_at(2.0, || gateway.metric("gateway_active_connections"));
    assert_eq!(connect("203.0.113.1").0, 200);
}

#[test]
fn the_header_comes_before_tls() {
    let backend = Backend::ok();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let [pem, key] = ["a.pem", "a.key"].map(|name| directory.path().join(name).display().to_string());
    fs::write(&pem, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let yaml = format!(
        "listeners: [{{ name: public, address: LISTEN, proxy_protocol: {{ trusted: [127.0.0.1] }}, tls: {{ certificates: {{ certificate: \"{pem}\", key: \"{key}\" }}, handshakes_per_ip: 1 }} }}]\n{}",
        Gateway::route_to(backend.endpoint())
    );
    let gateway = Gateway::start(&yaml);
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    let connect = |source: &str| {
        let mut stream = TcpStream::connect(gateway.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&v1_of(source)).unwrap();
        stream
    };
    let ask = |mut stream: TcpStream| -> std::io::Result<Vec<u8>> {
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls = ClientConnection::new(Arc::clone(&config), name).unwrap();
        while tls.is_handshaking() {
            tls.complete_io(&mut stream)?;
        }
        let mut stream = StreamOwned::new(tls, stream);
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    };
    // One client has begun a handshake; the next one of the same address is too many, one of another is not.
    let _idle = connect("203.0.113.7");
    settles_at(1.0, || gateway.metric("gateway_active_connections"));
    let second = connect("203.0.113.7");
    let refused = "gateway_tls_handshakes_total{listener=\"public\",result=\"refused\"}";
    settles_at(1.0, || gateway.metric(refused));
    assert!(ask(second).is_err());
    assert!(ask(connect("203.0.113.8")).unwrap().starts_with(b"HTTP/1.1 200"));
    assert_eq!(backend.requests().last().unwrap().get("x-forwarded-for"), Some("203.0.113.8"));
    assert_eq!(gateway.log_line(1)["clientIp"], "203.0.113.8");
    // Without a header a handshake is none.
    assert!(ask(TcpStream::connect(gateway.address()).unwrap()).is_err());
    settles_at(1.0, || errors(&gateway));
}

#[test]
fn services_are_told_whose_connection_it_is() {
    for version in ["v1", "v2"] {
        let backend = Backend::start(move |conn| {
            let header = match version {
                "v1" => {
                    let mut header = Vec::new();
                    while !header.ends_with(b"\r\n") {
                        header.extend(conn.read_exact(1));
                    }
                    header
                }
                _ => conn.read_exact(28),
            };
            while conn.next_request_head().is_some() {
                let body: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
            }
        });
        let yaml = format!(
            "listeners: [{{ name: public, address: LISTEN }}]
services: [{{ name: app, endpoints: [\"{}\"], proxy_protocol: {version} }}]
routes: [{{ name: all, service: app }}]\n",
            backend.endpoint()
        );
        let gateway = Gateway::start(&yaml);
        let expected = |client: SocketAddr| {
            let to = gateway.address();
            match version {
                "v1" => format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", client.port(), to.port()).into_bytes(),
                _ => {
                    let ports = [client.port().to_be_bytes(), to.port().to_be_bytes()].concat();
                    v2(0x21, 0x11, &[&[127u8, 0, 0, 1, 127, 0, 0, 1][..], &ports].concat())
                }
            }
        };
        let mut clients = [gateway.connect(), gateway.connect()];
        for round in 0..3 {
            for client in &mut clients {
                let address = client.stream().local_addr().unwrap();
                let answer = client.get("/");
                let hex: String = expected(address).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(String::from_utf8_lossy(&answer.body), hex, "{version}, round {round}");
            }
        }
        assert_eq!(backend.connections(), 6, "each request has its own");
        settles_at(0, || backend.open());
    }
}

#[test]
fn what_one_proxy_said_the_next_service_hears() {
    let backend = Backend::start(|conn| {
        let mut header = Vec::new();
        while !header.ends_with(b"\r\n") {
            header.extend(conn.read_exact(1));
        }
        conn.next_request_head();
        conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", header.len()));
        conn.send(&header);
    });
    let yaml = format!(
        "listeners: [{{ name: public, address: LISTEN, proxy_protocol: {{ trusted: [127.0.0.1] }} }}]
services: [{{ name: app, endpoints: [\"{}\"], proxy_protocol: v1 }}]
routes: [{{ name: all, service: app }}]\n",
        backend.endpoint()
    );
    let gateway = Gateway::start(&yaml);
    let answer = gateway.connect().ask([&v2_of([203, 0, 113, 7])[..], GET].concat());
    assert_eq!(answer.body, b"PROXY TCP4 203.0.113.7 198.51.100.1 12345 443\r\n");
}

#[test]
fn a_listener_that_trusts_nobody_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gateway.yaml");
    for (section, expected) in [
        ("{ trusted: [] }", "no proxy is trusted"),
        ("{}", "the key `trusted` is missing"),
        ("{ trusted: [10.0.0.0/8], versions: v3 }", "`v1`"),
    ] {
        let text = format!("listeners:\n  - name: a\n    address: 127.0.0.1:1\n    proxy_protocol: {section}\n");
        fs::write(&path, text).unwrap();
        let output = Process::run(&["check", path.to_str().unwrap()]);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains("gateway.yaml:4:") && said.contains(expected), "{section}: {said}");
    }
}
