//! Who clients of TLS are, and how their connections begin and end, through the real binary.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{CertificateParams, DnType, Issuer, KeyPair, SanType, SerialNumber, date_time_ymd};
use ringway_tests::tls::answer;
use ringway_tests::{Backend, Gateway, PATIENCE, Process, eventually, settles_at};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, version};
use tempfile::TempDir;

type Stream = StreamOwned<ClientConnection, TcpStream>;

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// A server's certificate and an authority for clients, in a directory of the test.
struct Pki {
    directory: TempDir,
    server: CertificateDer<'static>,
    authority: Issuer<'static, KeyPair>,
}

/// A client's certificate and key.
struct Owner {
    certificate: CertificateDer<'static>,
    pem: String,
    key: Vec<u8>,
}

impl Pki {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        fs::write(directory.path().join("server.pem"), made.cert.pem()).unwrap();
        fs::write(directory.path().join("server.key"), made.signing_key.serialize_pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        fs::write(directory.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        Self { directory, server: made.cert.der().clone(), authority: Issuer::new(params, key) }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// Somebody with this serial number, named by `name`.
    fn owner(&self, serial: u64, name: impl FnOnce(&mut CertificateParams)) -> Owner {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from(serial));
        name(&mut params);
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        Owner { certificate: certificate.der().clone(), pem: certificate.pem(), key: key.serialize_der() }
    }

    /// Alice of a shop, with a name that has to be escaped.
    fn alice(&self) -> Owner {
        self.owner(0xab12, |params| {
            let name = &mut params.distinguished_name;
            name.push(DnType::OrganizationName, "Shop, \"Söhne\"");
            name.push(DnType::CommonName, "alice");
            params.subject_alt_names = vec![
                SanType::DnsName("alice.example".try_into().unwrap()),
                SanType::URI("spiffe://shop/alice".try_into().unwrap()),
                SanType::URI("spiffe://shop/second".try_into().unwrap()),
                SanType::Rfc822Name("alice@shop.example".try_into().unwrap()),
            ];
        })
    }

    fn client(&self, version: &'static rustls::SupportedProtocolVersion, owner: Option<&Owner>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.server.clone()).unwrap();
        let builder = ClientConfig::builder_with_protocol_versions(&[version]).with_root_certificates(roots);
        Arc::new(match owner {
            Some(owner) => {
                let key = PrivateKeyDer::try_from(owner.key.clone()).unwrap();
                builder.with_client_auth_cert(vec![owner.certificate.clone()], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        })
    }

    /// A listener whose clients may have certificates of the authority, and `more` of the configuration.
    fn yaml(&self, clients: &str, more: &str) -> String {
        let [server, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|name| self.path(name));
        format!(
            "listeners:\n  - name: public\n    address: LISTEN\n    tls:\n      certificates: {{ certificate: \"{server}\", key: \"{key}\" }}\n      client_certificates: {{ ca: \"{ca}\"{clients} }}\n{more}"
        )
    }

    /// What OpenSSL says of a certificate.
    fn openssl(&self, owner: &Owner, option: &[&str]) -> String {
        let path = self.path("owner.pem");
        fs::write(&path, &owner.pem).unwrap();
        let output = Command::new("openssl").args(["x509", "-noout", "-in", &path]).args(option).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim_end().split_once('=').unwrap().1.trim_start().to_owned()
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Stream> {
    shake(tcp(address), config)
}

fn shake(tcp: TcpStream, config: &Arc<ClientConfig>) -> std::io::Result<Stream> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn status(head: &str) -> u16 {
    head[9..12].parse().unwrap()
}

/// The status of a GET with these header lines.
fn get(stream: &mut Stream, target: &str, lines: &str) -> std::io::Result<u16> {
    write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n")?;
    Ok(status(&answer(stream)?.0))
}

/// Standard base64.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize]);
            text.push(if at <= group.len() { digit } else { '=' });
        }
    }
    text
}

#[test]
fn a_certificate_is_told_to_the_gate_the_service_and_the_log() {
    let (pki, backend) = (Pki::new(), Backend::ok());
    let more = format!(
        r#"
services: [{{ name: app, endpoints: ["{}"] }}]
authenticators:
  - name: devices
    client_certificate:
      user: san_uri
      roles: {{ "spiffe://shop/alice": [admin] }}
      headers: {{ x-client: sub, x-mail: san_email }}
routes:
  - name: all
    service: app
    authenticate: devices
    authorize: {{ roles: admin, claims: {{ common_name: alice }} }}
    request_headers:
      set:
        x-subject: "${{tls.client.subject}}"
        x-names: "${{tls.client.common_name}} ${{tls.client.san_dns}} ${{tls.client.san_uri}} ${{tls.client.san_email}}"
        x-numbers: "${{tls.client.serial}} ${{tls.client.fingerprint}}"
        x-tls: "${{tls.version}} ${{tls.cipher}}"
"#,
        backend.endpoint()
    );
    let gateway = Gateway::start(&pki.yaml(", header: true", &more));
    let alice = pki.alice();
    let subject = pki.openssl(&alice, &["-subject", "-nameopt", "RFC2253"]);
    assert_eq!(subject, r#"CN=alice,O=Shop\, \"S\C3\B6hne\""#);
    let fingerprint = pki.openssl(&alice, &["-fingerprint", "-sha256"]).replace(':', "").to_ascii_lowercase();
    let mut lines = 0;
    for (version, (name, cipher)) in VERSIONS
        .into_iter()
        .zip([("TLSv1.3", "TLS_AES_128_GCM_SHA256"), ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")])
    {
        let client = pki.client(version, Some(&alice));
        // The second connection goes on with the session of the first.
        for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
            let mut stream = connect(gateway.address(), &client).unwrap();
            let forged = "Client-Cert: :AAAA:\r\nClient-Cert-Chain: :AAAA:\r\nClient_Cert: x\r\nX-Client: root\r\n";
            assert_eq!(get(&mut stream, "/", forged).unwrap(), 200);
            assert_eq!(get(&mut stream, "/again", forged).unwrap(), 200);
            assert_eq!(stream.conn.handshake_kind(), Some(kind));
            let request = backend.requests().pop().unwrap();
            assert_eq!(request.get("x-subject"), Some(subject.as_str()));
            let names = "alice alice.example spiffe://shop/alice alice@shop.example";
            assert_eq!(request.get("x-names"), Some(names));
            let serial = pki.openssl(&alice, &["-serial"]);
            assert_eq!(request.get("x-numbers"), Some(format!("{serial} {fingerprint}").as_str()));
            assert_eq!(request.get("x-tls"), Some(format!("{name} {cipher}").as_str()));
            assert_eq!(request.get("x-mail"), Some("alice@shop.example"));
            assert_eq!(request.all("x-client").collect::<Vec<_>>(), ["spiffe://shop/alice"]);
            let told: Vec<_> = request.fields.iter().filter(|(name, _)| name.to_lowercase().contains("cert")).collect();
            let expected = ("Client-Cert".to_owned(), format!(":{}:", base64(&alice.certificate)));
            assert_eq!(told, [&expected], "RFC 9440 section 2.2");
            lines += 2;
            let line = gateway.log_line(lines);
            assert_eq!(line["userId"], "spiffe://shop/alice");
            assert_eq!((&line["tlsVersion"], &line["tlsCipher"]), (&name.into(), &cipher.into()));
            assert_eq!(line["clientCertificate"], subject.as_str());
            assert_eq!(line["clientCertificateSha256"], fingerprint.as_str());
        }
    }
    let verified = gateway.metric("gateway_authentications_total{authenticator=\"devices\",outcome=\"verified\"}");
    let cached = gateway.metric("gateway_authentications_total{authenticator=\"devices\",outcome=\"cached\"}");
    assert_eq!((verified, cached), (4.0, 4.0), "once a connection");
}

/// Asks over HTTP/2, on a connection of its own: the statuses of so many streams at a time.
fn ask_over_http2(address: SocketAddr, client: &Arc<ClientConfig>, streams: usize) -> Vec<u16> {
    let mut client = ClientConfig::clone(client);
    client.alpn_protocols = vec![b"h2".to_vec()];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = async {
        let socket = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut send, connection) = h2::client::handshake(stream).await.unwrap();
        let driven = tokio::spawn(connection);
        let mut answers = Vec::new();
        for _ in 0..streams {
            let request = http::Request::builder().uri("https://localhost/").header("client-cert", ":AAAA:");
            answers.push(send.send_request(request.body(()).unwrap(), true).unwrap().0);
        }
        let mut statuses = Vec::new();
        for answer in answers {
            statuses.push(answer.await.unwrap().status().as_u16());
        }
        drop(send);
        driven.abort();
        statuses
    };
    runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await.expect("answers in time") })
}

#[test]
fn over_http_2_a_certificate_is_that_of_every_stream() {
    let (pki, backend) = (Pki::new(), Backend::ok());
    let more = format!(
        r#"
services: [{{ name: app, endpoints: ["{}"] }}]
authenticators:
  - {{ name: devices, client_certificate: {{ user: san_uri, roles: {{ "spiffe://shop/alice": [admin] }}, headers: {{ x-client: sub }} }} }}
routes:
  - name: all
    service: app
    authenticate: devices
    authorize: {{ roles: admin }}
    request_headers: {{ set: {{ x-subject: "${{tls.client.subject}}" }} }}
"#,
        backend.endpoint()
    );
    let gateway = Gateway::start(&pki.yaml(", verify: optional, header: true", &more));
    let alice = pki.alice();
    let bob =
        pki.owner(1, |params| params.subject_alt_names = vec![SanType::URI("spiffe://shop/bob".try_into().unwrap())]);
    for version in VERSIONS {
        let before = backend.requests().len();
        let ask = |owner| ask_over_http2(gateway.address(), &pki.client(version, owner), 3);
        assert_eq!(ask(Some(&alice)), [200; 3]);
        for request in &backend.requests()[before..] {
            assert_eq!(request.get("x-client"), Some("spiffe://shop/alice"));
            assert_eq!(
                request.get("x-subject"),
                Some(pki.openssl(&alice, &["-subject", "-nameopt", "RFC2253"]).as_str())
            );
            let told: Vec<_> = request.all("client-cert").collect();
            assert_eq!(told, [format!(":{}:", base64(&alice.certificate))]);
        }
        assert_eq!(ask(Some(&bob)), [403; 3]);
        assert_eq!(ask(None), [401; 3]);
        assert_eq!(backend.requests().len(), before + 3);
    }
    settles_at(18, || gateway.log_lines().len());
    let lines = gateway.log_lines();
    let of_alice: Vec<_> = lines.iter().filter(|line| line["userId"] == "spiffe://shop/alice").collect();
    assert_eq!(of_alice.len(), 6);
    assert!(of_alice.iter().all(|line| line["httpVersion"] == "2.0" && line["clientCertificateSha256"].is_string()));
}

#[test]
fn without_a_certificate_a_client_is_nobody() {
    let pki = Pki::new();
    // Answers with the trailers that it got.
    let backend = Backend::start(|conn| {
        while let Some(request) = conn.next_request() {
            let names: Vec<_> = request.trailers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
            let body = names.join(" ");
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
        }
    });
    let more = format!(
        r#"
services: [{{ name: app, endpoints: ["{}"] }}]
rate_limits: [{{ name: each, limit: 2/min, key: user }}]
authenticators: [{{ name: devices, client_certificate: {{ user: common_name }} }}]
routes:
  - {{ name: open, match: {{ prefix: /open }}, service: app }}
  - {{ name: all, service: app, authenticate: devices, rate_limit: each }}
"#,
        backend.endpoint()
    );
    let gateway = Gateway::start(&pki.yaml(", verify: optional", &more));
    for version in VERSIONS {
        let mut nobody = connect(gateway.address(), &pki.client(version, None)).unwrap();
        assert_eq!(get(&mut nobody, "/open", "Client-Cert: :AAAA:\r\n").unwrap(), 200);
        assert!(!backend.requests().pop().unwrap().has("client-cert"), "nobody has vouched for it");
        nobody.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        let (head, _) = answer(&mut nobody).unwrap();
        assert_eq!(status(&head), 401);
        assert!(head.contains("\r\nWWW-Authenticate: ClientCertificate realm=\"devices\"\r\n"), "{head}");
        let trailers = "1\r\nx\r\n0\r\nClient-Cert: :AAAA:\r\nX-Kept: 1\r\n\r\n";
        write!(nobody, "POST /open HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{trailers}").unwrap();
        assert_eq!(answer(&mut nobody).unwrap().1, b"x-kept");
    }
    let named = |serial, name: &str| {
        pki.owner(serial, |params| {
            params.distinguished_name.push(DnType::CommonName, name);
        })
    };
    let (bob, carol) = (named(1, "bob"), named(2, "carol"));
    let ask = |owner: &Owner| {
        let client = pki.client(&version::TLS13, Some(owner));
        get(&mut connect(gateway.address(), &client).unwrap(), "/", "").unwrap()
    };
    assert_eq!([ask(&bob), ask(&bob), ask(&bob), ask(&carol)], [200, 200, 429, 200], "each has a limit of its own");
    let unnamed = pki.owner(3, |params| params.distinguished_name.push(DnType::OrganizationName, "x"));
    assert_eq!(ask(&unnamed), 401);
}

#[test]
fn a_revoked_certificate_is_refused() {
    let (pki, backend) = (Pki::new(), Backend::ok());
    let [good, bad] = [7, 8].map(|serial| pki.owner(serial, |_| ()));
    let list = |serials: &[u64]| {
        let revoked = |serial: &u64| rcgen::RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(serials.len() as u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        fs::write(pki.path("revoked.pem"), params.signed_by(&pki.authority).unwrap().pem().unwrap()).unwrap();
    };
    list(&[8]);
    let clients = format!(", crl: \"{}\"", pki.path("revoked.pem"));
    let gateway = Gateway::start(&pki.yaml(&clients, &Gateway::route_to(backend.endpoint())));
    for version in VERSIONS {
        let ask =
            |client: &Arc<ClientConfig>| connect(gateway.address(), client).and_then(|mut s| get(&mut s, "/", ""));
        assert_eq!(ask(&pki.client(version, Some(&good))).unwrap(), 200);
        assert!(ask(&pki.client(version, Some(&bad))).is_err());
    }
    settles_at(2.0, || {
        gateway.metric("gateway_tls_handshakes_total{listener=\"public\",result=\"client_certificate\"}")
    });
    // Who is revoked later does not come back with a session of before.
    let client = pki.client(&version::TLS13, Some(&good));
    let ask = || connect(gateway.address(), &client).and_then(|mut stream| get(&mut stream, "/", ""));
    assert_eq!(ask().unwrap(), 200);
    list(&[7, 8]);
    eventually(PATIENCE, || ask().is_err());
}

#[test]
fn a_drain_lets_requests_end_and_says_so() {
    let pki = Pki::new();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let backend = Backend::start(move |conn| {
        while conn.next_request_head().is_some() {
            wait.lock().unwrap().recv().unwrap();
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let yaml = pki.yaml(", verify: optional", &Gateway::route_to(backend.endpoint()));
    let mut gateway = Gateway::start(&yaml);
    let mut streams: Vec<_> =
        VERSIONS.map(|version| connect(gateway.address(), &pki.client(version, None)).unwrap()).into();
    let mut idle = connect(gateway.address(), &pki.client(&version::TLS13, None)).unwrap();
    for stream in &mut streams {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    }
    eventually(PATIENCE, || backend.requests().len() == 2);
    gateway.terminate();
    // An end without close_notify would be an error here.
    assert_eq!(idle.read(&mut [0; 64]).unwrap(), 0);
    (0..2).for_each(|_| go.send(()).unwrap());
    for stream in &mut streams {
        let (head, body) = answer(stream).unwrap();
        assert!(status(&head) == 200 && body == b"ok" && head.contains("\r\nConnection: close\r\n"), "{head}");
        assert_eq!(stream.read(&mut [0; 64]).unwrap(), 0, "announced");
    }
    assert!(gateway.wait_exit(PATIENCE).success());
}

#[test]
fn the_first_answer_does_not_wait_for_an_acknowledgement() {
    const ROUNDS: usize = 25;
    let (pki, backend) = (Pki::new(), Backend::ok());
    let gateway = Gateway::start(&pki.yaml(", verify: optional", &Gateway::route_to(backend.endpoint())));
    for version in VERSIONS {
        let client = pki.client(version, None);
        let ask = |nodelay: bool| {
            let stream = tcp(gateway.address());
            stream.set_nodelay(nodelay).unwrap();
            let begun = Instant::now();
            let mut stream = shake(stream, &client).unwrap();
            assert_eq!(get(&mut stream, "/", "").unwrap(), 200);
            begun.elapsed()
        };
        // In turns, so that both meet the same load of the machine; again where that has changed meanwhile.
        let is_alike = |_| {
            let (mut with_nagle, mut without): (Vec<_>, Vec<_>) = (0..ROUNDS).map(|_| (ask(false), ask(true))).unzip();
            with_nagle.sort();
            without.sort();
            let [with_nagle, without] = [with_nagle, without].map(|times| times[ROUNDS / 2]);
            println!("{version:?}: {with_nagle:?} with Nagle, {without:?} without");
            with_nagle < Duration::from_millis(5).max(without * 2)
        };
        assert!((0..5).any(is_alike), "{version:?}");
    }
}

#[test]
fn certificates_that_nobody_asks_for_are_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gateway.yaml");
    let text = "listeners: [{ name: a, address: 127.0.0.1:1 }]\nauthenticators:\n  - name: b\n    client_certificate: { user: nickname }\n";
    for (text, expected) in [
        (text.to_owned(), "`subject`"),
        (text.replace("{ user: nickname }", "{}"), "gateway.yaml:4:25: no listener asks clients for certificates"),
    ] {
        fs::write(&path, text).unwrap();
        let output = Process::run(&["check", path.to_str().unwrap()]);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains(expected), "{said}");
    }
}

/// Connections that are opened and dropped in the middle of all of this leave nothing behind.
#[test]
fn dropped_connections_leave_no_descriptor() {
    let (pki, backend) = (Pki::new(), Backend::ok());
    let gateway = Gateway::start(&pki.yaml(", verify: optional", &Gateway::route_to(backend.endpoint())));
    let alice = pki.alice();
    let client = pki.client(&version::TLS13, Some(&alice));
    get(&mut connect(gateway.address(), &client).unwrap(), "/", "").unwrap();
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
    let before = gateway.open_fds();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for at in 0..50 {
                    let mut raw = tcp(gateway.address());
                    match at % 3 {
                        0 => raw.write_all(b"\x16\x03\x01").unwrap(),
                        1 => drop(shake(raw, &client).unwrap()),
                        _ => {
                            let mut stream = shake(raw, &client).unwrap();
                            stream.write_all(b"GET / HTTP/1.1\r\nHo").unwrap();
                        }
                    }
                }
            });
        }
    });
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
    eventually(PATIENCE, || gateway.open_fds() <= before);
}
