//! TLS connections that are dropped at random points, in the handshake and behind it, some with bytes turned over: nothing
//! of them stays.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use ringway_tests::{Backend, Gateway, PATIENCE, eventually, ten_thousand};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

/// A session whose bytes go astray.
struct Astray {
    session: ClientConnection,
    socket: TcpStream,
    /// Bytes to send before the connection is dropped.
    left: usize,
    /// Which byte is turned over, if any.
    turned: Option<usize>,
}

impl Astray {
    /// Sends what the session has to say; `None` where the connection is to be dropped.
    fn send(&mut self, rng: &mut Rng) -> Option<()> {
        let mut bytes = Vec::new();
        while self.session.wants_write() {
            self.session.write_tls(&mut bytes).ok()?;
        }
        bytes.truncate(self.left);
        self.left -= bytes.len();
        if let Some(at) = self.turned {
            self.turned = at.checked_sub(bytes.len());
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << rng.u8(0..8);
            }
        }
        let (first, second) = bytes.split_at(rng.usize(0..bytes.len() + 1));
        self.socket.write_all(first).ok()?;
        self.socket.write_all(second).ok()?;
        (self.left > 0).then_some(())
    }

    fn receive(&mut self) -> Option<()> {
        if self.session.read_tls(&mut self.socket).ok()? == 0 {
            return None;
        }
        self.session.process_new_packets().map(drop).ok()
    }

    fn run(&mut self, rng: &mut Rng) -> Option<()> {
        while self.session.is_handshaking() {
            self.send(rng)?;
            if self.session.is_handshaking() {
                self.receive()?;
            }
        }
        for _ in 0..rng.usize(0..4) {
            let body = "x".repeat(rng.usize(0..20_000));
            let request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            self.session.writer().write_all(request.as_bytes()).ok()?;
            self.send(rng)?;
            let mut seen = Vec::new();
            while !seen.ends_with(b"ok") {
                self.receive()?;
                let _ = self.session.reader().read_to_end(&mut seen);
            }
        }
        if rng.bool() {
            self.session.send_close_notify();
            self.send(rng)?;
        }
        Some(())
    }
}

fn connection(address: SocketAddr, config: &Arc<ClientConfig>, rng: &mut Rng) {
    let Ok(socket) = TcpStream::connect(address) else { return };
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let session = ClientConnection::new(Arc::clone(config), name).unwrap();
    let left = [rng.usize(1..700), rng.usize(1..30_000), usize::MAX][rng.usize(0..3)];
    let turned = (rng.u8(0..3) == 0).then(|| rng.usize(0..2_000));
    let mut astray = Astray { session, socket, left, turned };
    let _ = astray.run(rng);
    match rng.u8(0..3) {
        0 => drop(socket2::SockRef::from(&astray.socket).set_linger(Some(Duration::ZERO))),
        1 => drop(astray.socket.shutdown(Shutdown::Write)),
        _ => {}
    }
}

#[test]
fn nothing_of_a_connection_stays_behind() {
    let backend = Backend::start(|conn| {
        while let Some(head) = conn.next_request_head() {
            let length: usize = head.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            if conn.read_up_to(length).is_err()
                || conn.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_err()
            {
                return;
            }
        }
    });
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (directory.path().join("a.pem"), directory.path().join("a.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let gateway = Gateway::start(&format!(
        "listeners: [{{ name: public, address: LISTEN, timeouts: {{ head: 1s, body: 1s, idle: 2s }}, \
         tls: {{ handshake_timeout: 1s, certificates: [{{ certificate: \"{}\", key: \"{}\" }}] }} }}]\n\
         services: [{{ name: app, endpoints: [\"{}\"], pool: {{ idle: 0 }} }}]\n\
         routes: [{{ service: app }}]\n",
        certificate.display(),
        key.display(),
        backend.endpoint()
    ));
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let provider = Arc::new(default_provider());
    let config = |version| {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&[version]);
        Arc::new(builder.unwrap().with_root_certificates(roots.clone()).with_no_client_auth())
    };
    // Some come back with a ticket.
    let configs = [config(&rustls::version::TLS12), config(&rustls::version::TLS13)];
    let held = || ["gateway_active_connections", "gateway_active_requests"].map(|name| gateway.metric(name));
    connection(gateway.address(), &configs[1], &mut Rng::with_seed(1));
    eventually(PATIENCE, || held() == [0.0; 2]);
    let descriptors = gateway.open_fds();
    let buffers = gateway.metric("gateway_buffers_in_use{worker=\"0\"}");

    ten_thousand(|rng| connection(gateway.address(), &configs[rng.usize(0..2)], rng));

    eventually(PATIENCE, || held() == [0.0; 2]);
    eventually(PATIENCE, || gateway.open_fds() <= descriptors);
    eventually(PATIENCE, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}") == buffers);
    assert!(gateway.rss_bytes() < 96 << 20, "{} bytes", gateway.rss_bytes());
    assert!(gateway.metric("gateway_tls_handshakes_total{listener=\"public\",result=\"ok\"}") > 0.0);
}
