//! Certificates by ACME, through the real binary, from a real authority.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringway_tests::pebble::{Pebble, PebbleSetup};
use ringway_tests::redis::Redis;
use ringway_tests::{Backend, Client, Gateway, PATIENCE, eventually, free_port};
use rustix::process::Signal;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;

/// For what takes some seconds by its nature.
const LONG: Duration = Duration::from_secs(90);

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// Where a gateway listens: in the clear, and with TLS.
#[derive(Clone, Copy)]
struct Ports {
    ip: Ipv4Addr,
    http: u16,
    tls: u16,
}

impl Ports {
    fn new() -> Self {
        let [http, tls] = [(); 2].map(|()| free_port());
        Self { ip: Ipv4Addr::LOCALHOST, http, tls }
    }

    fn pebble(self) -> PebbleSetup {
        PebbleSetup { http_port: self.http, tls_port: self.tls, validity_s: 90 * 24 * 3600, external_account: None }
    }

    fn tls(self) -> SocketAddr {
        (self.ip, self.tls).into()
    }

    /// The configuration of a gateway with a certificate for these hosts.
    fn yaml(self, pebble: &Pebble, backend: &Backend, storage: &str, hosts: &str, more: &str) -> String {
        let Self { ip, http, tls } = self;
        format!(
            "listeners:\n\
             - {{ name: plain, address: \"{ip}:{http}\" }}\n\
             - {{ name: public, address: \"{ip}:{tls}\", tls: {{ certificates: {{ acme: [{hosts}] }} }} }}\n\
             acme: {{ directory: \"{}\", ca: \"{}\", terms_agreed: true, contact: [\"mailto:ops@a.test\"], \
             storage: {{ {storage} }}, back_off: 200ms, back_off_max: 1s, {more} }}\n{}",
            pebble.url(),
            pebble.ca().display(),
            Gateway::route_to(backend.endpoint())
        )
    }
}

fn client(root: &[u8], alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

fn connect(address: SocketAddr, config: &Arc<ClientConfig>, host: &str) -> std::io::Result<Stream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from(host.to_owned()).unwrap();
    let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(config), name).unwrap(), stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

fn certificate(stream: &Stream) -> CertificateDer<'static> {
    stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

/// One request on a connection that stays open; its status.
fn get(stream: &mut Stream) -> u16 {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    stream.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
    head[9..12].parse().unwrap()
}

fn orders(gateway: &Gateway, result: &str) -> f64 {
    gateway.metric(&format!("gateway_acme_orders_total{{result=\"{result}\"}}"))
}

fn is_issued(gateway: &Gateway) -> bool {
    gateway.metric("gateway_acme_certificate_issued{name=\"a.test\"}") == 1.0
}

/// The first certificate of the page `/certificates`.
fn page(gateway: &Gateway) -> Value {
    let (status, body) = gateway.admin("/certificates");
    assert_eq!(status, 200, "{body}");
    serde_json::from_str::<Value>(&body).unwrap()["certificates"][0].clone()
}

#[test]
fn a_certificate_is_ordered_by_http_01_kept_and_shown_again_after_a_restart() {
    let (ports, backend, kept) = (Ports::new(), Backend::ok(), tempfile::tempdir().unwrap());
    let pebble = Pebble::start(ports.pebble());
    let storage = format!("directory: \"{}\"", kept.path().display());
    let yaml = ports.yaml(&pebble, &backend, &storage, "A.test, b.test", "");
    let gateway = Gateway::start(&yaml);
    eventually(LONG, || is_issued(&gateway));
    let root = pebble.root();
    // A client of its own each time: one that comes back is not shown the certificate again.
    let shown_to = |host| {
        let mut stream = connect(ports.tls(), &client(&root, &[]), host).unwrap();
        assert_eq!(get(&mut stream), 200);
        certificate(&stream)
    };
    let first = ["a.test", "b.test"].map(shown_to);
    assert_eq!(first[0], first[1]);
    assert_eq!((orders(&gateway, "success"), orders(&gateway, "failure"), pebble.issued()), (1.0, 0.0, 1));
    assert!(gateway.metric("gateway_certificate_expiry_seconds{name=\"a.test\"}") > 89.0 * 86_400.0);
    let left = gateway.metric("gateway_acme_renewal_timestamp_seconds{name=\"a.test\"}") - unix_s();
    assert!((58.0..60.1).contains(&(left / 86_400.0)), "{left}");
    let shown = page(&gateway);
    assert_eq!(
        (&shown["names"][0], &shown["source"], &shown["issued"]),
        (&"a.test".into(), &"acme".into(), &true.into())
    );
    assert!(shown["not_after"].is_string() && shown["next_order"].is_string() && shown["last_error"].is_null());

    // Tokens that nobody asked for are requests like any other.
    let before = backend.requests().len();
    let answer = Client::connect((ports.ip, ports.http).into()).get("/.well-known/acme-challenge/unknown");
    assert_eq!((answer.status(), backend.requests().len()), (200, before + 1));

    let files = files(kept.path());
    assert!(files.iter().any(|file| file.ends_with("account.json")) && files.iter().any(|file| file.ends_with(".pem")));
    for file in files {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0, "{file}");
    }
    for secret in ["PRIVATE", "key_pkcs8"] {
        assert!(!gateway.stderr().contains(secret) && !gateway.admin("/config").1.contains(secret));
    }
    drop(gateway);
    let gateway = Gateway::start(&yaml);
    eventually(LONG, || is_issued(&gateway));
    assert_eq!(shown_to("a.test"), first[0]);
    assert_eq!((orders(&gateway, "success"), pebble.issued()), (0.0, 1));
    // What is shown outlives a reload.
    assert!(gateway.replace_config(&format!("{yaml}# again\n")));
    assert_eq!(shown_to("a.test"), first[0]);
    assert_eq!(pebble.issued(), 1);
}

#[test]
fn a_certificate_is_ordered_by_tls_alpn_01() {
    let (ports, backend) = (Ports::new(), Backend::ok());
    let pebble = Pebble::start(ports.pebble());
    let gateway = Gateway::start(&ports.yaml(&pebble, &backend, "directory: DIR", "a.test", "challenge: tls-alpn-01"));
    eventually(LONG, || is_issued(&gateway));
    let root = pebble.root();
    let mut stream = connect(ports.tls(), &client(&root, &[b"http/1.1", b"acme-tls/1"]), "a.test").unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(get(&mut stream), 200);
    let handshakes =
        |result| gateway.metric(&format!("gateway_tls_handshakes_total{{listener=\"public\",result=\"{result}\"}}"));
    // It looks several times.
    assert!(handshakes("acme") >= 1.0);
    // Nobody has been asked for a challenge: there is nothing to show.
    let failed = handshakes("failed");
    assert!(connect(ports.tls(), &client(&root, &[b"acme-tls/1"]), "a.test").is_err());
    eventually(PATIENCE, || handshakes("failed") > failed);
}

#[test]
fn renewal_keeps_connections() {
    let (ports, backend) = (Ports::new(), Backend::ok());
    let pebble = Pebble::start(PebbleSetup { validity_s: 12, ..ports.pebble() });
    let gateway = Gateway::start(&ports.yaml(&pebble, &backend, "directory: DIR", "a.test", ""));
    eventually(LONG, || is_issued(&gateway));
    let root = pebble.root();
    let mut old = connect(ports.tls(), &client(&root, &[]), "a.test").unwrap();
    assert_eq!(get(&mut old), 200);
    eventually(LONG, || orders(&gateway, "success") >= 2.0);
    let new = connect(ports.tls(), &client(&root, &[]), "a.test").unwrap();
    assert_ne!(certificate(&new), certificate(&old));
    assert_eq!(get(&mut old), 200);
    assert_eq!(orders(&gateway, "failure"), 0.0);
}

#[test]
fn without_an_authority_the_gateway_serves_and_orders_when_it_comes() {
    let (ports, backend) = (Ports::new(), Backend::ok());
    let mut pebble = Pebble::stopped(ports.pebble());
    let gateway = Gateway::start(&ports.yaml(&pebble, &backend, "directory: DIR", "a.test", ""));
    assert_eq!(Client::connect((ports.ip, ports.http).into()).get("/").status(), 200);
    eventually(LONG, || orders(&gateway, "failure") >= 2.0);
    let shown = page(&gateway);
    assert_eq!(shown["issued"], false);
    assert!(shown["last_error"].as_str().unwrap().contains("cannot connect"), "{shown}");
    assert!(gateway.stderr().contains("a self-signed one stands in"));
    // Whoever trusts the authority alone does not take what stands in.
    let other = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.pem();
    let error = connect(ports.tls(), &client(other.as_bytes(), &[]), "a.test").unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");

    // A host that is elsewhere is not validated, and the reason is told.
    pebble.set_address("a.test", Ipv4Addr::new(127, 0, 0, 9));
    pebble.restart();
    eventually(LONG, || page(&gateway)["last_error"].as_str().is_some_and(|error| error.contains("was not validated")));
    pebble.set_address("a.test", ports.ip);
    eventually(LONG, || is_issued(&gateway));
    assert_eq!(get(&mut connect(ports.tls(), &client(&pebble.root(), &[]), "a.test").unwrap()), 200);
    assert!(page(&gateway)["last_error"].is_null());

    // An authority that has lost its accounts is told of a new one.
    pebble.restart();
    let stored = files(gateway.directory());
    let certificate = stored.iter().find(|file| file.contains("/a.test-")).unwrap();
    fs::remove_file(certificate).unwrap();
    gateway.signal(Signal::HUP);
    eventually(LONG, || orders(&gateway, "success") >= 2.0);
    assert!(fs::exists(certificate).unwrap());
    assert_eq!(get(&mut connect(ports.tls(), &client(&pebble.root(), &[]), "a.test").unwrap()), 200);
}

#[test]
fn an_authority_that_knows_its_customers_is_told_who_asks() {
    const SECRET: &str = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let (ports, backend) = (Ports::new(), Backend::ok());
    let pebble = Pebble::start(PebbleSetup { external_account: Some(("kid-1", SECRET)), ..ports.pebble() });
    let yaml = |more: &str| ports.yaml(&pebble, &backend, "directory: DIR", "a.test", more);
    let account = |id: &str, key: &str| yaml(&format!("external_account: {{ id: \"{id}\", key: \"{key}\" }}"));
    let gateway = Gateway::start_with(&yaml(""), |command| {
        command.env("EAB_ID", "kid-1").env("EAB_KEY", SECRET);
    });
    let fails_with =
        |text: &str| eventually(LONG, || page(&gateway)["last_error"].as_str().is_some_and(|told| told.contains(text)));
    fails_with("externalAccountBinding");
    assert!(gateway.replace_config(&account("kid-2", "${env:EAB_KEY}")));
    fails_with("not known");
    assert!(gateway.replace_config(&account("kid-1", "AAAA")));
    fails_with("verification");
    assert_eq!((orders(&gateway, "success"), pebble.issued()), (0.0, 0));
    assert!(gateway.replace_config(&account("${env:EAB_ID}", "${env:EAB_KEY}")));
    eventually(LONG, || is_issued(&gateway));
    assert_eq!(pebble.issued(), 1);
    for told in [gateway.stderr(), gateway.admin("/config").1] {
        assert!(!told.contains(SECRET), "{told}");
    }
}

#[test]
fn gateways_that_share_a_redis_order_once_and_answer_for_each_other() {
    let (redis, ports, backend) = (Redis::start(), Ports::new(), Backend::ok());
    let others = Ports { ip: Ipv4Addr::new(127, 0, 0, 2), ..ports };
    let pebble = Pebble::start(ports.pebble());
    // Whoever orders, the authority asks the other one too.
    pebble.set_address("a.test", ports.ip);
    pebble.set_address("b.test", others.ip);
    let start = |ports: Ports| {
        let section = format!("redis: {{ url: \"{}\" }}\n", redis.url());
        Gateway::start(&(ports.yaml(&pebble, &backend, "redis: {}", "a.test, b.test", "") + &section))
    };
    let gateways = [start(ports), start(others)];
    eventually(LONG, || gateways.iter().all(is_issued));
    let client = client(&pebble.root(), &[]);
    let shown = [ports, others].map(|ports| certificate(&connect(ports.tls(), &client, "a.test").unwrap()));
    assert_eq!(shown[0], shown[1]);
    let succeeded: f64 = gateways.iter().map(|gateway| orders(gateway, "success")).sum();
    assert_eq!((succeeded, pebble.issued()), (1.0, 1));
    // Nothing is left of the order but what it brought.
    eventually(PATIENCE, || {
        let keys = redis.ask(&["KEYS", "ringway:acme:*"]);
        keys.lines().count() == 2 && keys.contains("account.json") && keys.contains(".pem")
    });
}

#[test]
fn another_gateway_takes_over_when_one_is_killed_in_the_middle_of_an_order() {
    let (redis, ports, backend) = (Redis::start(), Ports::new(), Backend::ok());
    let others = Ports { ip: Ipv4Addr::new(127, 0, 0, 2), ..ports };
    let pebble = Pebble::start(ports.pebble());
    pebble.set_address("a.test", others.ip);
    let start = |ports: Ports| {
        let section = format!("redis: {{ url: \"{}\" }}\n", redis.url());
        Gateway::start(&(ports.yaml(&pebble, &backend, "redis: {}", "a.test", "") + &section))
    };
    let first = start(ports);
    eventually(LONG, || redis.ask(&["KEYS", "ringway:acme:*:challenges"]).contains("challenges"));
    drop(first);
    assert!(redis.ask(&["KEYS", "ringway:acme:*:lock"]).contains("lock"), "it was not in the middle of an order");
    let second = start(others);
    eventually(LONG, || is_issued(&second));
    assert_eq!((orders(&second, "success"), orders(&second, "failure"), pebble.issued()), (1.0, 0.0, 1));
    assert_eq!(get(&mut connect(others.tls(), &client(&pebble.root(), &[]), "a.test").unwrap()), 200);
}

fn unix_s() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.is_dir() {
            true => found.extend(files(&entry)),
            false => found.push(entry.display().to_string()),
        }
    }
    found
}
