//! Services that speak TLS, and the authorities that vouch for them.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer, KeyIdMethod, KeyPair,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    SupportedProtocolVersion, version,
};
use tempfile::TempDir;

use crate::PATIENCE;
use crate::message::Head;

/// An authority with a directory of its own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    files: TempDir,
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

impl Authority {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let key = KeyPair::generate().expect("a key");
        let mut own = CertificateParams::new(vec![]).expect("parameters");
        own.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // A name of its own: who is told apart by the signature alone is refused for another reason.
        own.distinguished_name.push(DnType::CommonName, format!("Authority {}", COUNT.fetch_add(1, Ordering::AcqRel)));
        let made = own.self_signed(&key).expect("a certificate");
        let files = tempfile::tempdir().expect("a directory");
        fs::write(files.path().join("ca.pem"), made.pem()).expect("a file");
        Self { issuer: Issuer::new(own, key), certificate: made.der().clone(), files }
    }

    /// The file with its certificate.
    pub fn ca(&self) -> String {
        self.files.path().join("ca.pem").display().to_string()
    }

    pub fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("a root");
        roots
    }

    /// A certificate for these names and addresses, and its key.
    pub fn issue(&self, names: &[&str]) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        self.issue_as(names, |_| {})
    }

    pub fn issue_as(
        &self,
        names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        let mut own = CertificateParams::new(names).expect("parameters");
        change(&mut own);
        let made = own.signed_by(&key, &self.issuer).expect("a certificate");
        (made.der().clone(), PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
    }

    /// The same in files, as the inside of a YAML flow mapping.
    pub fn issue_files(&self, name: &str) -> String {
        let key = KeyPair::generate().expect("a key");
        let own = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let made = own.signed_by(&key, &self.issuer).expect("a certificate");
        let [pem, private] = ["pem", "key"].map(|kind| self.files.path().join(format!("{name}.{kind}")));
        fs::write(&pem, made.pem()).expect("a file");
        fs::write(&private, key.serialize_pem()).expect("a file");
        format!("certificate: \"{}\", key: \"{}\"", pem.display(), private.display())
    }

    /// Writes `revoked.pem`, the list of the certificates with these serial numbers, and gives back its path.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(serials.len() as u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let file = self.files.path().join("revoked.pem");
        let signed = list.signed_by(&self.issuer).expect("a list");
        fs::write(&file, signed.pem().expect("PEM")).expect("a file");
        file.display().to_string()
    }

    /// What a service of this authority speaks, with a certificate for `localhost` and `127.0.0.1`.
    pub fn server(&self, version: &'static SupportedProtocolVersion) -> ServerConfig {
        Self::server_with(self.issue(&["localhost", "127.0.0.1"]), version)
    }

    pub fn server_with(
        (certificate, key): (CertificateDer<'static>, PrivateKeyDer<'static>),
        version: &'static SupportedProtocolVersion,
    ) -> ServerConfig {
        let builder = ServerConfig::builder_with_protocol_versions(&[version]).with_no_client_auth();
        let mut config = builder.with_single_cert(vec![certificate], key).expect("a key that fits");
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config
    }

    /// The same for one that wants certificates of this authority.
    pub fn strict_server(&self, version: &'static SupportedProtocolVersion) -> ServerConfig {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots())).build().expect("a verifier");
        let (certificate, key) = self.issue(&["localhost", "127.0.0.1"]);
        let builder = ServerConfig::builder_with_protocol_versions(&[version]).with_client_cert_verifier(verifier);
        builder.with_single_cert(vec![certificate], key).expect("a key that fits")
    }
}

/// Both versions.
pub const VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];

/// What a service saw of a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub server_name: Option<String>,
    pub is_resumed: bool,
    pub version: Option<ProtocolVersion>,
    /// The client had a certificate.
    pub has_certificate: bool,
    pub protocol: Option<Vec<u8>>,
}

/// A service with a thread for each connection.
pub struct TlsBackend {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    failed: AtomicUsize,
    requests: AtomicUsize,
}

/// A secured connection in the hands of a script. Dropped: closed without a word.
pub struct Peer {
    pub stream: StreamOwned<ServerConnection, TcpStream>,
    /// Which secured connection this is, from 0.
    pub index: usize,
    shared: Arc<Shared>,
}

impl TlsBackend {
    pub fn start(config: ServerConfig, script: impl Fn(&mut Peer) + Send + Sync + 'static) -> Self {
        // On both families, so that it does not matter what `localhost` stands for.
        let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("127.0.0.1:0")).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (config, script, shared) = (Arc::new(config), Arc::new(script), Arc::<Shared>::default());
        let of_backend = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, script, shared) = (Arc::clone(&config), Arc::clone(&script), Arc::clone(&shared));
                thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                    let conn = ServerConnection::new(config).expect("a connection");
                    let mut stream = StreamOwned::new(conn, stream);
                    while stream.conn.is_handshaking() {
                        if stream.conn.complete_io(&mut stream.sock).is_err() {
                            shared.failed.fetch_add(1, Ordering::AcqRel);
                            return;
                        }
                    }
                    let seen = Seen {
                        server_name: stream.conn.server_name().map(str::to_owned),
                        is_resumed: stream.conn.handshake_kind() == Some(HandshakeKind::Resumed),
                        version: stream.conn.protocol_version(),
                        has_certificate: stream.conn.peer_certificates().is_some(),
                        protocol: stream.conn.alpn_protocol().map(<[u8]>::to_vec),
                    };
                    let index = {
                        let mut all = shared.seen.lock().expect("a list");
                        all.push(seen);
                        all.len() - 1
                    };
                    script(&mut Peer { stream, index, shared });
                });
            }
        });
        Self { port, shared: of_backend }
    }

    /// Answers every request with its own body.
    pub fn echo(config: ServerConfig) -> Self {
        Self::start(config, |peer| {
            while let Some((_, body)) = peer.next_request() {
                peer.answer(&body);
            }
        })
    }

    /// As the configuration writes it, for a name or an address of this machine.
    pub fn at(&self, host: &str) -> String {
        format!("{host}:{}", self.port)
    }

    /// The handshakes that went through.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().expect("a list").clone()
    }

    /// The handshakes that did not.
    pub fn failed(&self) -> usize {
        self.shared.failed.load(Ordering::Acquire)
    }

    pub fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::Acquire)
    }
}

impl Peer {
    /// The next request's head; `None` where the connection has ended.
    pub fn next_head(&mut self) -> Option<Head> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte).ok()?;
            head.extend_from_slice(&byte);
        }
        self.shared.requests.fetch_add(1, Ordering::AcqRel);
        Some(Head::parse(&head))
    }

    /// The next request, whose body has a length.
    pub fn next_request(&mut self) -> Option<(Head, Vec<u8>)> {
        let head = self.next_head()?;
        let mut body = vec![0; head.length().unwrap_or(0)];
        self.stream.read_exact(&mut body).ok()?;
        Some((head, body))
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
        let _ = self.stream.flush();
    }

    /// Answers 200 with this body.
    pub fn answer(&mut self, body: &[u8]) {
        let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        answer.extend_from_slice(body);
        self.send(&answer);
    }

    /// Says that nothing follows.
    pub fn end(&mut self) {
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
    }

    /// Goes on under other keys, and asks the other side for the same.
    pub fn renew_keys(&mut self) {
        self.stream.conn.refresh_traffic_keys().expect("TLS 1.3");
        let _ = self.stream.flush();
    }
}

/// One answer that says how long it is, from a connection of a test's own: its head and its body.
pub fn answer(stream: &mut impl Read) -> std::io::Result<(String, Vec<u8>)> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    let length =
        head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
    stream.read_exact(&mut body)?;
    Ok((head, body))
}
