//! Renewal on the authority's advice (ARI, RFC 9773). Pebble as Debian has it gives none: a proxy before it does.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ringway_tests::pebble::{Pebble, PebbleSetup};
use ringway_tests::{Backend, Gateway, eventually, free_port};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(90);
/// 2099-01-01 and the day after, in Unix time.
const FUTURE: [f64; 2] = [4_070_908_800.0, 4_070_995_200.0];

/// What the proxy was asked.
#[derive(Default)]
struct Seen {
    /// Certificates whose renewal was asked about.
    advised: Vec<String>,
    /// What new orders said that they replace.
    replaced: Vec<String>,
}

/// A proxy before Pebble that advises to renew the first certificate that it is asked about at once, others in 2099.
struct Advisor {
    port: u16,
    seen: Arc<Mutex<Seen>>,
}

impl Advisor {
    /// `directory`: Pebble's certificates, which serve the proxy too.
    fn before(pebble: u16, directory: &Path) -> Self {
        let read = |name: &str| directory.join(name);
        let chain = vec![CertificateDer::from_pem_file(read("cert.pem")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(read("key.pem")).unwrap();
        let server = Arc::new(ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(read("ca.pem")).unwrap()).unwrap();
        let client = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, seen) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Seen>>::default());
        thread::spawn({
            let seen = seen.clone();
            move || {
                for stream in listener.incoming().flatten() {
                    let (server, client, seen) = (server.clone(), client.clone(), seen.clone());
                    // A client that goes away is no failure of the test.
                    thread::spawn(move || serve(stream, server, (client, pebble), port, &seen).ok());
                }
            }
        });
        Self { port, seen }
    }
}

/// One request, after which both sides close.
fn serve(
    stream: TcpStream,
    server: Arc<ServerConfig>,
    (client, pebble): (Arc<ClientConfig>, u16),
    port: u16,
    seen: &Mutex<Seen>,
) -> io::Result<()> {
    let mut stream = StreamOwned::new(ServerConnection::new(server).unwrap(), stream);
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let target = String::from_utf8_lossy(&head).split(' ').nth(1).unwrap().to_owned();
    let answer = match target.strip_prefix("/advice/") {
        Some(id) => advise(id, seen),
        None => {
            let answer = ask(client, pebble, &[head, body.clone()].concat())?;
            match target.as_str() {
                "/dir" => with_key(&answer, "renewalInfo", &format!("https://127.0.0.1:{port}/advice")),
                "/order-plz" => match replaced(&body) {
                    // It says so again, as it must, since Pebble does not know of it.
                    Some(id) if answer.starts_with(b"HTTP/1.1 201 ") => {
                        seen.lock().unwrap().replaced.push(id.clone());
                        with_key(&answer, "replaces", &id)
                    }
                    _ => answer,
                },
                _ => answer,
            }
        }
    };
    stream.write_all(&answer)?;
    stream.conn.send_close_notify();
    stream.flush()
}

fn advise(id: &str, seen: &Mutex<Seen>) -> Vec<u8> {
    let mut seen = seen.lock().unwrap();
    let is_first = seen.advised.first().is_none_or(|first| first == id);
    seen.advised.push(id.to_owned());
    let [start, end] = match is_first {
        true => ["2020-01-01T00:00:00Z", "2020-01-02T00:00:00Z"],
        false => ["2099-01-01T00:00:00Z", "2099-01-02T00:00:00Z"],
    };
    let body = json!({ "suggestedWindow": { "start": start, "end": end } }).to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRetry-After: 21600\r\nConnection: close\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn ask(client: Arc<ClientConfig>, pebble: u16, request: &[u8]) -> io::Result<Vec<u8>> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TcpStream::connect(("127.0.0.1", pebble))?;
    let mut stream = StreamOwned::new(ClientConnection::new(client, name).unwrap(), stream);
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// The answer, with one more key in its JSON.
fn with_key(answer: &[u8], key: &str, value: &str) -> Vec<u8> {
    let text = std::str::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let mut json: Value = serde_json::from_str(body).unwrap();
    json[key] = value.into();
    let body = json.to_string();
    let others = head.split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("content-length:"));
    let head = others.collect::<Vec<_>>().join("\r\n");
    format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What the payload of a new order says that it replaces.
fn replaced(body: &[u8]) -> Option<String> {
    let jws: Value = serde_json::from_slice(body).ok()?;
    let payload = URL_SAFE_NO_PAD.decode(jws["payload"].as_str()?).ok()?;
    Some(serde_json::from_slice::<Value>(&payload).ok()?["replaces"].as_str()?.to_owned())
}

#[test]
fn an_authority_says_when_to_renew() {
    let backend = Backend::ok();
    let [http, tls] = [(); 2].map(|()| free_port());
    let pebble = Pebble::start(PebbleSetup {
        http_port: http,
        tls_port: tls,
        validity_s: 90 * 24 * 3600,
        external_account: None,
    });
    let advisor = Advisor::before(pebble.port(), pebble.directory());
    let gateway = Gateway::start(&format!(
        "listeners:\n\
         - {{ name: plain, address: \"127.0.0.1:{http}\" }}\n\
         - {{ name: public, address: \"127.0.0.1:{tls}\", tls: {{ certificates: {{ acme: a.test }} }} }}\n\
         acme: {{ directory: \"https://127.0.0.1:{}/dir\", ca: \"{}\", terms_agreed: true, \
         storage: {{ directory: DIR }} }}\n{}",
        advisor.port,
        pebble.ca().display(),
        Gateway::route_to(backend.endpoint())
    ));
    let renewal = || gateway.metric("gateway_acme_renewal_timestamp_seconds{name=\"a.test\"}");
    eventually(LONG, || (FUTURE[0]..=FUTURE[1]).contains(&renewal()));
    assert_eq!(gateway.metric("gateway_acme_orders_total{result=\"success\"}"), 2.0);
    assert_eq!(gateway.metric("gateway_acme_orders_total{result=\"failure\"}"), 0.0);
    let seen = advisor.seen.lock().unwrap();
    assert_eq!(seen.replaced, seen.advised[..1], "the new certificate replaces the one that was asked about");
    assert_eq!(seen.advised.len(), 2, "{:?}", seen.advised);
}
