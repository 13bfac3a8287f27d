//! TLS towards clients, through the real binary, against rustls and openssl.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, KeyPair};
use ringway_tests::{Backend, Gateway, PATIENCE, Process, eventually, settles_at};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned, SupportedProtocolVersion, version,
};
use tempfile::TempDir;

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Certificates in a directory of the test.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Writes `NAME.pem` and `NAME.key`, and gives back how a configuration names them.
    fn make(&self, name: &str, hosts: &[&str]) -> String {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).into()).collect();
        let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(hosts).unwrap();
        self.write(name, &cert.pem(), &signing_key.serialize_pem());
        self.entry(name)
    }

    fn make_rsa(&self, name: &str, hosts: &[&str]) -> String {
        let made =
            Command::new("openssl").args(["genrsa", "-traditional", "2048"]).stderr(Stdio::null()).output().unwrap();
        let key = KeyPair::from_pem_and_sign_algo(std::str::from_utf8(&made.stdout).unwrap(), &rcgen::PKCS_RSA_SHA256)
            .unwrap();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).into()).collect();
        let cert = rcgen::CertificateParams::new(hosts).unwrap().self_signed(&key).unwrap();
        self.write(name, &cert.pem(), std::str::from_utf8(&made.stdout).unwrap());
        self.entry(name)
    }

    fn write(&self, name: &str, certificate: &str, key: &str) {
        fs::write(self.path(&format!("{name}.pem")), certificate).unwrap();
        fs::write(self.path(&format!("{name}.key")), key).unwrap();
    }

    fn entry(&self, name: &str) -> String {
        let [pem, key] = ["pem", "key"].map(|kind| self.path(&format!("{name}.{kind}")));
        format!("{{ certificate: \"{pem}\", key: \"{key}\" }}")
    }

    /// A client that trusts all certificates here.
    fn client(&self, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for file in fs::read_dir(self.0.path()).unwrap().map(|file| file.unwrap().path()) {
            if file.extension().is_some_and(|kind| kind == "pem") {
                roots.add(CertificateDer::from_pem_file(&file).unwrap()).unwrap();
            }
        }
        let builder = ClientConfig::builder_with_protocol_versions(&[version]);
        Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
    }
}

fn yaml(endpoint: &str, certificates: &str, tls: &str) -> String {
    format!(
        "listeners: [{{ name: public, address: LISTEN, tls: {{ certificates: [{certificates}], {tls} }} }}]\n{}",
        Gateway::route_to(endpoint)
    )
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn connect(address: SocketAddr, config: &Arc<ClientConfig>, host: &str) -> std::io::Result<Stream> {
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), tcp(address));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// One answer: its status and its body, which has a length.
fn answer(stream: &mut impl Read) -> std::io::Result<(u16, Vec<u8>)> {
    let (head, body) = ringway_tests::tls::answer(stream)?;
    Ok((head[9..12].parse().unwrap(), body))
}

fn get(stream: &mut Stream) -> std::io::Result<u16> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    Ok(answer(stream)?.0)
}

fn handshakes(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("gateway_tls_handshakes_total{{listener=\"public\",result=\"{result}\"}}"))
}

#[test]
fn requests_and_bodies_in_both_versions() {
    let (files, backend) = (Files::new(), Backend::echo());
    let gateway = Gateway::start(&yaml(backend.endpoint(), &files.make("a", &["localhost"]), ""));
    for version in [&version::TLS13, &version::TLS12] {
        let mut stream = connect(gateway.address(), &files.client(version), "localhost").unwrap();
        assert_eq!(get(&mut stream).unwrap(), 200);
        stream.write_all(&b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(5)).unwrap();
        (0..5).for_each(|_| assert_eq!(answer(&mut stream).unwrap().0, 200));

        let body: Vec<u8> = (0..1024 * 1024).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        write!(stream, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        stream.write_all(&body).unwrap();
        assert_eq!(answer(&mut stream).unwrap().0, 200);
        assert_eq!(backend.requests().last().unwrap().get("x-forwarded-proto"), Some("https"));
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("an end that is announced");
    }
    assert_eq!(handshakes(&gateway, "ok"), 2.0);
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
}

#[test]
fn http_2_is_offered_where_it_is_spoken() {
    let (backend, files) = (Backend::ok(), Files::new());
    files.make("a", &["localhost"]);
    for (keys, expected) in [("http2: { enabled: true }, ", "2 200"), ("http2: { enabled: false }, ", "1.1 200")] {
        let yaml = yaml(backend.endpoint(), &files.entry("a"), "").replacen("tls:", &format!("{keys}tls:"), 1);
        let gateway = Gateway::start(&yaml);
        let url = format!("https://{}/a", gateway.address());
        let output = Command::new("curl")
            .args(["--http2", "--insecure", "--silent", "--show-error", "--max-time", "10", "--output", "/dev/null"])
            .args(["--write-out", "%{http_version} %{http_code}", &url])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(backend.requests().len(), 2);
    assert_eq!(backend.requests()[0].get("x-forwarded-proto"), Some("https"));
}

#[test]
fn a_large_answer_for_a_slow_reader() {
    let body = "0123456789abcdef".repeat(64 * 1024);
    let backend = Backend::fixed(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    let files = Files::new();
    let gateway = Gateway::start(&yaml(backend.endpoint(), &files.make("a", &["localhost"]), ""));
    for version in [&version::TLS13, &version::TLS12] {
        let mut stream = connect(gateway.address(), &files.client(version), "localhost").unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        // The sockets' buffers fill up meanwhile, so that the gateway has to wait within a record.
        eventually(PATIENCE, || gateway.metric("gateway_sent_bytes_total") > 0.0);
        assert!(answer(&mut stream).unwrap() == (200, body.clone().into_bytes()), "the body has changed on its way");
    }
}

#[test]
fn certificates_by_name_and_kind() {
    let (files, backend) = (Files::new(), Backend::ok());
    let certificates = [
        files.make("first", &["localhost"]),
        files.make("wild", &["*.example.com"]),
        files.make("exact", &["api.example.com"]),
        files.make_rsa("rsa", &["api.example.com"]),
    ];
    let gateway = Gateway::start(&yaml(backend.endpoint(), &certificates.join(", "), ""));
    let own = |name: &str| CertificateDer::from_pem_file(files.path(&format!("{name}.pem"))).unwrap();
    for (host, expected) in [("localhost", "first"), ("www.example.com", "wild"), ("api.example.com", "exact")] {
        let stream = connect(gateway.address(), &files.client(&version::TLS13), host).unwrap();
        assert_eq!(stream.conn.peer_certificates().unwrap()[0], own(expected), "{host}");
    }
    let subject = |arguments: &[&str]| {
        let address = gateway.address().to_string();
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address, "-tls1_2"]).args(arguments).stdin(Stdio::null());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let rsa = subject(&["-servername", "api.example.com", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]);
    assert!(rsa.contains("Cipher is ECDHE-RSA-AES128-GCM-SHA256"), "{rsa}");
    let unknown = subject(&["-servername", "other.test"]);
    assert!(unknown.contains("Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"), "{unknown}");
}

#[test]
fn every_suite_is_spoken_and_counted() {
    let (files, backend) = (Files::new(), Backend::ok());
    let certificates = [files.make("ecdsa", &["localhost"]), files.make_rsa("rsa", &["localhost"])];
    let gateway = Gateway::start(&yaml(backend.endpoint(), &certificates.join(", "), ""));
    let address = gateway.address().to_string();
    let mut suites = Vec::new();
    for suite in ["AES_128_GCM_SHA256", "AES_256_GCM_SHA384", "CHACHA20_POLY1305_SHA256"] {
        suites.push(("TLSv1.3", format!("TLS_{suite}"), format!("-ciphersuites TLS_{suite}")));
        let known =
            suite.replace("AES_", "AES").replace("_SHA256", if suite.starts_with('C') { "" } else { "_SHA256" });
        for key in ["ECDSA", "RSA"] {
            let of_openssl = format!("-tls1_2 -cipher ECDHE-{key}-{}", known.replace('_', "-"));
            suites.push(("TLSv1.2", format!("TLS_ECDHE_{key}_WITH_{suite}"), of_openssl));
        }
    }
    for (version, cipher, arguments) in suites {
        // It stays for as long as there may be something to send.
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &address]).args(arguments.split(' '));
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let labels = format!("listener=\"public\",version=\"{version}\",cipher=\"{cipher}\"");
        settles_at(1.0, || gateway.metric(&format!("gateway_tls_connections_total{{{labels}}}")));
        drop(client.stdin.take());
        assert!(client.wait().unwrap().success(), "{cipher}");
    }
}

#[test]
fn sessions_go_on_with_another_worker_and_after_a_reload() {
    let (files, backend) = (Files::new(), Backend::ok());
    let runtime = "runtime: { workers: 2, pin: false }\n";
    let config = yaml(backend.endpoint(), &files.make("a", &["localhost"]), "") + runtime;
    let gateway = Gateway::start(&config);
    for version in [&version::TLS13, &version::TLS12] {
        let client = files.client(version);
        get(&mut connect(gateway.address(), &client, "localhost").unwrap()).unwrap();
        assert!(gateway.replace_config(&format!("{config}# {version:?}\n")));
        for _ in 0..8 {
            let mut stream = connect(gateway.address(), &client, "localhost").unwrap();
            get(&mut stream).unwrap();
            assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
        }
    }
}

#[test]
fn the_first_answer_comes_at_once_also_with_nagle() {
    let (files, backend) = (Files::new(), Backend::ok());
    let gateway = Gateway::start(&yaml(backend.endpoint(), &files.make("a", &["localhost"]), ""));
    for version in [&version::TLS13, &version::TLS12] {
        let client = files.client(version);
        let ask = |_| {
            let begun = Instant::now();
            get(&mut connect(gateway.address(), &client, "localhost").unwrap()).unwrap();
            begun.elapsed()
        };
        // A delayed acknowledgement takes 40 ms each time; a machine that is busy takes long for a while.
        let median = |_| {
            let mut took: Vec<_> = (0..5).map(ask).collect();
            took.sort();
            took[2]
        };
        let medians: Vec<_> = (0..10).map(median).collect();
        assert!(medians.iter().any(|took| *took < Duration::from_millis(30)), "{version:?}: {medians:?}");
    }
}

#[test]
fn who_does_not_speak_tls_is_told() {
    let (files, backend) = (Files::new(), Backend::ok());
    let gateway = Gateway::start(&yaml(backend.endpoint(), &files.make("a", &["localhost"]), ""));
    let mut stream = tcp(gateway.address());
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let (status, body) = answer(&mut stream).unwrap();
    assert_eq!(status, 400);
    assert!(String::from_utf8(body).unwrap().contains("This port speaks TLS"));
    for garbage in [b"\x01\x02\x03\x04\x05\x06".as_slice(), b"\x16\x03\x01\x00\x04\xff\xff\xff\xff"] {
        let mut stream = tcp(gateway.address());
        stream.write_all(garbage).unwrap();
        let mut told = Vec::new();
        let _ = stream.read_to_end(&mut told);
        assert_eq!(told.first(), Some(&21), "an alert: {told:?}");
    }
    drop(stream);
    settles_at([1.0; 3], || ["plain_http", "not_tls", "failed"].map(|result| handshakes(&gateway, result)));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn slow_handshakes_end_and_byte_by_byte_works() {
    let (files, backend) = (Files::new(), Backend::ok());
    let gateway = Gateway::start(&yaml(backend.endpoint(), &files.make("a", &["localhost"]), "handshake_timeout: 2s"));
    let mut silent = tcp(gateway.address());
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(files.client(&version::TLS13), name).unwrap();
    let mut stream = tcp(gateway.address());
    stream.set_nodelay(true).unwrap();
    while client.is_handshaking() {
        let mut out = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut out).unwrap();
        }
        out.iter().for_each(|byte| stream.write_all(&[*byte]).unwrap());
        if client.is_handshaking() {
            client.read_tls(&mut stream).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert_eq!(get(&mut StreamOwned::new(client, stream)).unwrap(), 200);
    assert_eq!(silent.read(&mut [0; 64]).unwrap_or(0), 0);
    settles_at(1.0, || handshakes(&gateway, "timeout"));
}

#[test]
fn handshakes_of_one_address_are_bounded() {
    let (files, backend) = (Files::new(), Backend::ok());
    let certificate = files.make("a", &["localhost"]);
    let gateway = Gateway::start(&yaml(backend.endpoint(), &certificate, "handshakes_per_ip: 2"));
    let client = files.client(&version::TLS13);
    let mut established = connect(gateway.address(), &client, "localhost").unwrap();
    let _idle: Vec<_> = (0..2).map(|_| tcp(gateway.address())).collect();
    settles_at(3.0, || gateway.metric("gateway_active_connections"));
    assert!(connect(gateway.address(), &client, "localhost").is_err());
    assert_eq!(get(&mut established).unwrap(), 200);
    assert_eq!(handshakes(&gateway, "refused"), 1.0);
}

#[test]
fn a_body_that_breaks_off_is_not_whole() {
    let files = Files::new();
    let backend = Backend::start(|conn| {
        conn.next_request_head();
        conn.stall();
    });
    let gateway = Gateway::start(&yaml(backend.endpoint(), &files.make("a", &["localhost"]), ""));
    let mut stream = connect(gateway.address(), &files.client(&version::TLS13), "localhost").unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
    eventually(PATIENCE, || backend.connections() > 0);
    stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
}

#[test]
fn a_key_that_does_not_fit_is_refused() {
    let files = Files::new();
    files.make("a", &["localhost"]);
    files.make("b", &["localhost"]);
    fs::copy(files.path("b.key"), files.path("a.key")).unwrap();
    let config = files.path("gateway.yaml");
    let listener = format!("{{ name: a, address: 127.0.0.1:1, tls: {{ certificates: {} }} }}", files.entry("a"));
    fs::write(&config, format!("listeners:\n  - {listener}\n")).unwrap();
    let output = Process::run(&["check", &config]);
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(said.contains("the key does not fit the certificate") && said.contains("gateway.yaml:2:"), "{said}");
}

#[test]
fn a_new_certificate_is_taken_under_traffic() {
    let (files, backend) = (Files::new(), Backend::ok());
    let gateway = Gateway::start(&yaml(backend.endpoint(), &files.make("a", &["localhost"]), ""));
    let client = files.client(&version::TLS13);
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicUsize::new(0));
    let mut kept = connect(gateway.address(), &client, "localhost").unwrap();
    let traffic = {
        let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
        thread::spawn(move || {
            while !stop.load(Ordering::Acquire) {
                assert_eq!(get(&mut kept).unwrap(), 200);
                count.fetch_add(1, Ordering::AcqRel);
            }
        })
    };
    // Half of a pair first.
    let CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    fs::write(files.path("a.pem"), cert.pem()).unwrap();
    eventually(PATIENCE, || gateway.stderr().contains("the key does not fit the certificate"));
    assert!(connect(gateway.address(), &client, "localhost").is_ok(), "the last good one is served");
    fs::write(files.path("a.key"), signing_key.serialize_pem()).unwrap();
    let renewed = files.client(&version::TLS13);
    eventually(PATIENCE, || connect(gateway.address(), &renewed, "localhost").is_ok());
    let before = count.load(Ordering::Acquire);
    eventually(PATIENCE, || count.load(Ordering::Acquire) > before);
    stop.store(true, Ordering::Release);
    traffic.join().unwrap();
}

#[test]
fn clients_prove_who_they_are() {
    let (files, backend) = (Files::new(), Backend::ok());
    let server = files.make("server", &["localhost"]);
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let clients = tempfile::tempdir().unwrap();
    let ca_path = Path::new(clients.path()).join("ca.pem");
    fs::write(&ca_path, ca_cert.pem()).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let tls = format!("client_certificates: {{ ca: \"{}\" }}", ca_path.display());
    let gateway = Gateway::start(&yaml(backend.endpoint(), &server, &tls));
    let ask = |year: i32| {
        let key = KeyPair::generate().unwrap();
        let mut own = rcgen::CertificateParams::new(vec!["client".into()]).unwrap();
        own.not_after = rcgen::date_time_ymd(year, 1, 1);
        let own = own.signed_by(&key, &issuer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(files.path("server.pem")).unwrap()).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = Arc::new(builder.with_client_auth_cert(vec![own.der().clone()], key).unwrap());
        connect(gateway.address(), &config, "localhost").and_then(|mut stream| get(&mut stream))
    };
    assert_eq!(ask(4000).unwrap(), 200);
    assert!(ask(2000).is_err());
    let without = connect(gateway.address(), &files.client(&version::TLS13), "localhost");
    assert!(without.and_then(|mut stream| get(&mut stream)).is_err());
    settles_at(2.0, || handshakes(&gateway, "client_certificate"));
    settles_at(1.0, || handshakes(&gateway, "ok"));
}
