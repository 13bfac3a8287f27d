//! rustls as the peer of our record layer.

use std::sync::Arc;

use rustls::SupportedCipherSuite;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite as suite};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::{ClientConfig, ClientConnection, Error, RootCertStore, ServerConfig};

/// One for each version and cipher of the record layer.
pub(super) const SUITES: [SupportedCipherSuite; 6] = [
    suite::TLS13_AES_128_GCM_SHA256,
    suite::TLS13_AES_256_GCM_SHA384,
    suite::TLS13_CHACHA20_POLY1305_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
];

/// Both ends of a connection after their handshake with this suite.
pub(super) fn shaken(suite: SupportedCipherSuite) -> (UnbufferedServerConnection, ClientConnection) {
    let provider = Arc::new(CryptoProvider { cipher_suites: vec![suite], ..aws_lc_rs::default_provider() });
    let versions = [suite.version()];
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&versions);
    let mut server =
        server.unwrap().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    server.enable_secret_extraction = true;
    let client = ClientConfig::builder_with_provider(provider).with_protocol_versions(&versions).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut client = client.with_root_certificates(roots).with_no_client_auth();
    client.enable_secret_extraction = true;
    let mut server = UnbufferedServerConnection::new(Arc::new(server)).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut incoming = Vec::new();
    loop {
        while client.wants_write() {
            client.write_tls(&mut incoming).unwrap();
        }
        let (outgoing, done) = serve(&mut server, &mut incoming);
        deliver(&mut client, &outgoing).unwrap();
        if done && !client.is_handshaking() {
            assert!(incoming.is_empty());
            return (server, client);
        }
    }
}

/// Moves the server on as far as it goes: what it sends, and whether it is through.
fn serve(server: &mut UnbufferedServerConnection, incoming: &mut Vec<u8>) -> (Vec<u8>, bool) {
    let mut outgoing = Vec::new();
    loop {
        let UnbufferedStatus { discard, state, .. } = server.process_tls_records(incoming);
        let next = match state.unwrap() {
            ConnectionState::EncodeTlsData(mut message) => {
                let mut room = [0; 32 * 1024];
                let length = message.encode(&mut room).unwrap();
                outgoing.extend_from_slice(&room[..length]);
                None
            }
            ConnectionState::TransmitTlsData(sent) => {
                sent.done();
                None
            }
            ConnectionState::BlockedHandshake => Some(false),
            ConnectionState::WriteTraffic(_) => Some(true),
            other => panic!("{other:?}"),
        };
        incoming.drain(..discard);
        if let Some(done) = next {
            return (outgoing, done);
        }
    }
}

/// Gives the client records to read.
pub(super) fn deliver(client: &mut ClientConnection, mut records: &[u8]) -> Result<(), Error> {
    while !records.is_empty() {
        client.read_tls(&mut records).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}
