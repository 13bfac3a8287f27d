//! What the policy of a listener forbids, what is stapled, and clients that do what nobody does by accident; through the real
//! binary, against rustls and openssl.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use ringway_tests::tls::{Authority, VERSIONS};
use ringway_tests::{Backend, Gateway, PATIENCE, eventually, settles_at};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    SupportedProtocolVersion, version,
};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A gateway with a certificate of the authority for `localhost`.
fn gateway(authority: &Authority, backend: &Backend, entry: &str, tls: &str) -> Gateway {
    let files = authority.issue_files("localhost");
    Gateway::start(&format!(
        "listeners: [{{ name: public, address: LISTEN, tls: {{ certificates: {{ {files} {entry} }}, {tls} }} }}]\n{}",
        Gateway::route_to(backend.endpoint())
    ))
}

fn client(authority: &Authority, version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_protocol_versions(&[version]);
    Arc::new(builder.with_root_certificates(authority.roots()).with_no_client_auth())
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn begin(address: SocketAddr, client: &Arc<ClientConfig>) -> Stream {
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(client), name).unwrap(), tcp(address))
}

fn connect(address: SocketAddr, client: &Arc<ClientConfig>) -> std::io::Result<Stream> {
    let mut stream = begin(address, client);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

/// One request on a connection that stays; its status.
fn get(stream: &mut Stream) -> std::io::Result<u16> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")?;
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"\r\n\r\nok") {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&answer[9..12]).parse().unwrap())
}

fn handshakes(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("gateway_tls_handshakes_total{{listener=\"public\",result=\"{result}\"}}"))
}

#[test]
fn a_policy_says_which_versions_are_spoken() {
    let (authority, backend) = (Authority::new(), Backend::ok());
    for (policy, spoken) in [("intermediate", [true, true]), ("modern", [true, false])] {
        let gateway = gateway(&authority, &backend, "", &format!("policy: {policy}"));
        let is_spoken = VERSIONS.map(|version| connect(gateway.address(), &client(&authority, version)).is_ok());
        assert_eq!(is_spoken, spoken, "{policy}");
        let old = Command::new("openssl")
            .args(["s_client", "-tls1_1", "-cipher", "ALL:@SECLEVEL=0", "-connect", &gateway.address().to_string()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&old.stderr).into_owned();
        assert!(!old.status.success() && told.contains("SSL alert number"), "{told}");
    }
}

#[test]
fn nothing_is_taken_before_the_handshake_is_through() {
    let (authority, backend) = (Authority::new(), Backend::ok());
    let gateway = gateway(&authority, &backend, "", "");
    let mut early = ClientConfig::clone(&client(&authority, &version::TLS13));
    early.enable_early_data = true;
    let early = Arc::new(early);
    for goes_on in [false, true] {
        let mut stream = begin(gateway.address(), &early);
        // With the ticket of the first connection the second one could have sent some.
        assert!(stream.conn.early_data().is_none(), "{goes_on}");
        assert_eq!(get(&mut stream).unwrap(), 200);
        let is_resumed = stream.conn.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        assert_eq!(is_resumed, goes_on);
    }
}

/// Looks at what is stapled.
#[derive(Debug)]
struct Stapled(Arc<WebPkiServerVerifier>, Mutex<Vec<u8>>);

impl ServerCertVerifier for Stapled {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.1.lock().unwrap() = stapled.to_vec();
        self.0.verify_server_cert(own, others, name, stapled, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[test]
fn a_word_of_the_authority_is_stapled_and_read_again() {
    let (authority, backend, files) = (Authority::new(), Backend::ok(), tempfile::tempdir().unwrap());
    let file = files.path().join("ocsp.der");
    // Nobody but clients reads it.
    fs::write(&file, b"first").unwrap();
    let gateway = gateway(&authority, &backend, &format!(", ocsp: \"{}\"", file.display()), "");
    let shown = |version| {
        let verifier = WebPkiServerVerifier::builder(Arc::new(authority.roots())).build().unwrap();
        let stapled = Arc::new(Stapled(verifier, Mutex::default()));
        let builder = ClientConfig::builder_with_protocol_versions(&[version]).dangerous();
        let verifier = Arc::clone(&stapled);
        let client = builder.with_custom_certificate_verifier(verifier).with_no_client_auth();
        connect(gateway.address(), &Arc::new(client)).unwrap();
        stapled.1.lock().unwrap().clone()
    };
    assert_eq!(VERSIONS.map(shown), [b"first", b"first"]);
    fs::write(&file, b"second").unwrap();
    eventually(PATIENCE, || VERSIONS.map(shown) == [b"second", b"second"]);
}

#[test]
fn renegotiation_is_refused() {
    let (authority, backend) = (Authority::new(), Backend::ok());
    let gateway = gateway(&authority, &backend, "", "");
    let mut client = Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect", &gateway.address().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its word for that, on a line of its own.
    let mut stdin = client.stdin.take().unwrap();
    settles_at(1.0, || handshakes(&gateway, "ok"));
    stdin.write_all(b"R\n").unwrap();
    let output = client.wait_with_output().unwrap();
    drop(stdin);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("alert no renegotiation"), "{told}");
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
    assert_eq!(backend.connections(), 0);
}

#[test]
fn records_that_are_too_large_end_the_connection_and_no_other() {
    let (authority, backend) = (Authority::new(), Backend::ok());
    let gateway = gateway(&authority, &backend, "", "");
    let mut first = tcp(gateway.address());
    first.write_all(&[22, 3, 1, 0xff, 0xff, 1, 0]).unwrap();
    let mut told = Vec::new();
    let _ = first.read_to_end(&mut told);
    assert_eq!(told.first(), Some(&21), "an alert: {told:?}");
    settles_at(1.0, || handshakes(&gateway, "failed"));
    for version in VERSIONS {
        let client = client(&authority, version);
        let [mut neighbour, mut stream] = [(); 2].map(|()| connect(gateway.address(), &client).unwrap());
        assert_eq!((get(&mut neighbour).unwrap(), get(&mut stream).unwrap()), (200, 200));
        // One byte more than 2^14 + 256.
        stream.sock.write_all(&[23, 3, 3, 0x41, 0x01, 0, 0, 0]).unwrap();
        let error = stream.read(&mut [0; 64]).unwrap_err();
        assert!(error.to_string().contains("RecordOverflow"), "{error}");
        assert_eq!(get(&mut neighbour).unwrap(), 200);
    }
    settles_at(0.0, || gateway.metric("gateway_active_connections"));
}

#[test]
fn a_certificate_that_runs_out_is_warned_of() {
    let (backend, files) = (Backend::ok(), tempfile::tempdir().unwrap());
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let now = date_time_ymd(1970, 1, 1) + SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let (pem, private) = (files.path().join("a.pem"), files.path().join("a.key"));
    let write = |lived: Duration, left: Duration| {
        let key = KeyPair::generate().unwrap();
        let mut own = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        (own.not_before, own.not_after) = (now - lived, now + left);
        fs::write(&private, key.serialize_pem()).unwrap();
        fs::write(&pem, own.self_signed(&key).unwrap().pem()).unwrap();
    };
    let warned = |lived: u32, left: u32| {
        write(DAY * lived, DAY * left + DAY / 2);
        let gateway = Gateway::start(&format!(
            "listeners: [{{ name: public, address: LISTEN, tls: {{ certificates: {{ certificate: \"{}\", key: \"{}\" }} }} }}]\n{}",
            pem.display(),
            private.display(),
            Gateway::route_to(backend.endpoint())
        ));
        let known = gateway.metric("gateway_certificate_expiry_seconds{name=\"a.test\"}") / DAY.as_secs_f64();
        assert!((f64::from(left)..f64::from(left) + 0.51).contains(&known), "{known}");
        gateway.stderr().contains(&format!("listener `public`: the certificate of `a.test` expires in {left} days"))
    };
    // Below a third of 9 days, and below thirty days.
    assert_eq!(
        [(7, 1), (5, 3), (360, 28), (360, 31)].map(|(lived, left)| warned(lived, left)),
        [true, false, true, false]
    );
}

#[test]
fn a_flood_of_handshakes_leaves_established_connections_their_turn() {
    let (authority, backend) = (Authority::new(), Backend::ok());
    let gateway = gateway(&authority, &backend, "", "handshakes_per_ip: 100000, handshakes: 100000");
    let (address, client) = (gateway.address(), client(&authority, &version::TLS13));
    let mut established = connect(address, &client).unwrap();
    let mut hello = Vec::new();
    begin(address, &client).conn.write_tls(&mut hello).unwrap();
    let (is_over, hello) = (Arc::new(AtomicBool::new(false)), Arc::new(hello));
    // A client's first message costs it nothing, and the gateway a signature.
    let floods: Vec<_> = (0..2)
        .map(|_| {
            let (is_over, hello) = (Arc::clone(&is_over), Arc::clone(&hello));
            thread::spawn(move || {
                let mut open = Vec::new();
                while !is_over.load(Ordering::Acquire) {
                    if let Ok(mut stream) = TcpStream::connect(address) {
                        let _ = stream.write_all(&hello);
                        open.push(stream);
                    }
                    if open.len() > 200 {
                        open.clear();
                    }
                }
            })
        })
        .collect();
    eventually(PATIENCE, || handshakes(&gateway, "closed") > 200.0);
    let (started, mut slowest) = (Instant::now(), Duration::ZERO);
    for _ in 0..200 {
        let asked = Instant::now();
        assert_eq!(get(&mut established).unwrap(), 200);
        slowest = slowest.max(asked.elapsed());
    }
    let took = started.elapsed();
    is_over.store(true, Ordering::Release);
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    assert!(slowest < Duration::from_secs(2) && took < Duration::from_secs(20), "{slowest:?} of {took:?}");
    settles_at(1.0, || gateway.metric("gateway_active_connections"));
}
