//! Keys that change while the gateway runs: key sets that an issuer publishes, revocations and API keys in files.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use ringway_core::auth::api_key::generate;
use ringway_tests::{Backend, Client, Gateway, PATIENCE, Setup, eventually, settles_at};
use serde_json::{Value, json};

/// Between two fetches that unknown keys lead to.
const ASK_INTERVAL: Duration = Duration::from_secs(10);

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A key pair of an issuer.
struct Signer {
    kid: &'static str,
    pair: rcgen::KeyPair,
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        Self { kid, pair: rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap() }
    }

    fn jwk(&self) -> Value {
        // 4, then x and y, 32 bytes each (SEC 1 section 2.3.3).
        let point = self.pair.public_key_raw();
        let (x, y) = point[1..].split_at(32);
        json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "use": "sig", "x": base64url(x), "y": base64url(y) })
    }

    fn token(&self, id: &str) -> String {
        let header = Header { kid: Some(self.kid.into()), ..Header::new(Algorithm::ES256) };
        let claims = json!({ "sub": "ada", "exp": now() + 600, "jti": id });
        let key = EncodingKey::from_ec_der(&self.pair.serialize_der());
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    }
}

/// RFC 4648 section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..=three.len() {
            text.push(ALPHABET[(bits >> (18 - 6 * at) & 63) as usize] as char);
        }
    }
    text
}

fn set_of(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

fn json_answer(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
}

/// A server of metadata and of a key set, which the test may change, or take down.
struct Issuer {
    backend: Backend,
    keys: Arc<Mutex<String>>,
    is_up: Arc<AtomicBool>,
    fetched: Arc<Mutex<Instant>>,
}

impl Issuer {
    fn start(keys: String) -> Self {
        let (keys, is_up) = (Arc::new(Mutex::new(keys)), Arc::new(AtomicBool::new(true)));
        let fetched = Arc::new(Mutex::new(Instant::now()));
        let (current, up, last) = (Arc::clone(&keys), Arc::clone(&is_up), Arc::clone(&fetched));
        let backend = Backend::start(move |conn| {
            while let Some(request) = conn.next_request() {
                if !up.load(Ordering::Acquire) {
                    return;
                }
                let host = request.get("host").expect("a Host").to_owned();
                let body = match request.target() {
                    "/.well-known/openid-configuration" => {
                        json!({ "issuer": format!("http://{host}"), "jwks_uri": format!("http://{host}/jwks") })
                            .to_string()
                    }
                    "/jwks" => {
                        *last.lock().unwrap() = Instant::now();
                        current.lock().unwrap().clone()
                    }
                    other => panic!("{other} was asked for"),
                };
                conn.send(json_answer(&body));
            }
        });
        Self { backend, keys, is_up, fetched }
    }

    fn keys_as(&self, key: &str, path: &str) -> String {
        format!("keys: {{ {key}: \"http://{}{path}\" }}", self.backend.endpoint())
    }

    /// How often the key set was asked for.
    fn fetches(&self) -> usize {
        self.backend.requests().iter().filter(|request| request.target() == "/jwks").count()
    }
}

fn start(app: &Backend, jwt: &str) -> Gateway {
    let sections = format!("authenticators: [{{ name: main, jwt: {{ algorithms: ES256, {jwt} }} }}]\n");
    Setup { route: "authenticate: [main, anonymous]", sections: &sections, ..Setup::default() }.start(app.endpoint())
}

#[track_caller]
fn ask(client: &mut Client, token: &str) -> u16 {
    client.ask(format!("GET /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {token}\r\n\r\n")).status()
}

#[test]
fn keys_rotate_without_a_refused_request() {
    let (old, new, foreign) = (Signer::new("old"), Signer::new("new"), Signer::new("foreign"));
    let app = Backend::ok();
    let both = [("jwks_url", "/jwks"), ("oidc", "")].map(|(key, path)| {
        let issuer = Issuer::start(set_of(&[&old]));
        let gateway = start(&app, &issuer.keys_as(key, path));
        assert_eq!(ask(&mut gateway.connect(), &old.token("1")), 200, "{key}: a request waits for the first keys");
        assert_eq!(issuer.fetches(), 1);
        *issuer.keys.lock().unwrap() = set_of(&[&old, &new]);
        (key, issuer, gateway)
    });
    for (key, issuer, gateway) in both {
        // An unknown key leads to a fetch when the last one is old enough.
        let enough = ASK_INTERVAL + Duration::from_millis(500);
        eventually(PATIENCE, || issuer.fetched.lock().unwrap().elapsed() > enough);
        let mut client = gateway.connect();
        assert_eq!(ask(&mut client, &new.token("2")), 200, "{key}: it waits for the new ones too");
        assert_eq!(ask(&mut client, &old.token("3")), 200);
        assert_eq!(issuer.fetches(), 2);
        // Nobody can have keys fetched as often as they like.
        assert_eq!(ask(&mut client, &foreign.token("4")), 401);
        assert_eq!(issuer.fetches(), 2);
        assert_eq!(gateway.metric("gateway_authenticator_keys{authenticator=\"main\"}"), 2.0);
    }
}

/// An issuer that answers with what it had when it was asked, while a token of its next key is already under way.
#[test]
fn a_key_that_is_newer_than_the_first_answer_is_waited_for() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let [first, second] = [set_of(&[&old]), set_of(&[&old, &new])];
    let is_asked = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&is_asked);
    let fetches = AtomicUsize::new(0);
    let issuer = Backend::start(move |conn| {
        while conn.next_request().is_some() {
            if fetches.fetch_add(1, Ordering::AcqRel) == 0 {
                eventually(PATIENCE, || asked.load(Ordering::Acquire));
                conn.send(json_answer(&first));
            } else {
                conn.send(json_answer(&second));
            }
        }
    });
    let app = Backend::ok();
    let gateway = start(&app, &format!("keys: {{ jwks_url: \"http://{}/jwks\" }}", issuer.endpoint()));
    let mut client = gateway.connect();
    client.send(format!("GET /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {}\r\n\r\n", new.token("1")));
    // It is not answered while nobody knows.
    assert!(client.stays_silent(Duration::from_millis(200)));
    is_asked.store(true, Ordering::Release);
    assert_eq!(client.read_response().status(), 200);
    assert_eq!(ask(&mut client, &old.token("2")), 200);
}

#[test]
fn an_issuer_that_is_down_costs_those_with_a_token_only() {
    let signer = Signer::new("one");
    let (app, issuer) = (Backend::ok(), Issuer::start(set_of(&[&signer])));
    issuer.is_up.store(false, Ordering::Release);
    let gateway = start(&app, &issuer.keys_as("jwks_url", "/jwks"));
    let mut client = gateway.connect();
    assert_eq!(client.get("/a").status(), 200, "it has no token");
    // The first try has failed; while one is under way, requests wait for its end.
    eventually(PATIENCE, || gateway.stderr().contains("there are no keys yet"));
    let request = format!("GET /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {}\r\n\r\n", signer.token("1"));
    let refused = client.ask(&request);
    assert_eq!((refused.status(), refused.has("retry-after"), refused.has("www-authenticate")), (503, true, false));
    assert_eq!(app.requests().len(), 1);
    issuer.is_up.store(true, Ordering::Release);
    eventually(PATIENCE, || client.ask(&request).status() == 200);
    // What is known stays when it goes down again.
    issuer.is_up.store(false, Ordering::Release);
    assert_eq!(ask(&mut client, &signer.token("2")), 200);
}

/// As editors and deployments do it: a new file in place of the old one.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

#[test]
fn a_key_set_that_a_reload_brings_is_waited_for_by_the_first_request() {
    let (signer, backend) = (Signer::new("a"), Backend::ok());
    let issuers = [0, 1].map(|_| Issuer::start(set_of(&[&signer])));
    let sections = issuers.each_ref().map(|issuer| {
        let keys = issuer.keys_as("jwks_url", "/jwks");
        format!("authenticators: [{{ name: main, jwt: {{ algorithms: ES256, {keys} }} }}]\n")
    });
    let setup = |index: usize| Setup { route: "authenticate: main", sections: &sections[index], ..Setup::default() };
    let gateway = setup(0).start(backend.endpoint());
    let mut client = gateway.connect();
    let request = format!("GET /a HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer {}\r\n\r\n", signer.token("1"));
    assert_eq!(client.ask(&request).status(), 200);
    // One request after the other while the configuration changes: each waits for the keys that it needs.
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let mut client = gateway.connect();
            let mut statuses = Vec::new();
            while !done.load(Ordering::Acquire) {
                statuses.push(client.ask(&request).status());
            }
            statuses
        });
        for round in 1..=6 {
            assert!(gateway.replace_config(&setup(round % 2).yaml(backend.endpoint())));
        }
        done.store(true, Ordering::Release);
        let statuses = asking.join().unwrap();
        assert!(!statuses.is_empty() && statuses.iter().all(|status| *status == 200), "{statuses:?}");
    });
    assert!(issuers.iter().all(|issuer| issuer.fetches() >= 3));
}

#[test]
fn a_revoked_token_is_refused_though_it_was_remembered() {
    let signer = Signer::new("one");
    let directory = tempfile::tempdir().unwrap();
    let [keys, revoked] = ["keys.json", "revoked.txt"].map(|name| directory.path().join(name));
    std::fs::write(&keys, set_of(&[&signer])).unwrap();
    std::fs::write(&revoked, "# token IDs\n").unwrap();
    let app = Backend::ok();
    let jwt = format!("keys: {{ jwks_file: \"{}\" }}, revoked: \"{}\"", keys.display(), revoked.display());
    let gateway = start(&app, &jwt);
    let mut client = gateway.connect();
    let [bad, good] = ["bad", "good"].map(|id| signer.token(id));
    for _ in 0..2 {
        assert_eq!((ask(&mut client, &bad), ask(&mut client, &good)), (200, 200));
    }
    replace(&revoked, "bad\n");
    eventually(PATIENCE, || ask(&mut client, &bad) == 401);
    assert_eq!(ask(&mut client, &good), 200);

    // Another key, by file: the old one's tokens end with it.
    let other = Signer::new("two");
    replace(&keys, &set_of(&[&other]));
    eventually(PATIENCE, || ask(&mut client, &other.token("new")) == 200);
    assert_eq!(ask(&mut client, &good), 401);
    // A broken file changes nothing.
    replace(&keys, "{");
    eventually(PATIENCE, || gateway.stderr().contains("what was loaded before stays"));
    assert_eq!(ask(&mut client, &other.token("newer")), 200);
    assert_eq!(gateway.metric("gateway_config_reloads_total{result=\"success\"}"), 0.0, "nothing was reloaded");
}

#[test]
fn api_keys_are_replaced_one_by_one() {
    let [(first, first_hash), (second, second_hash)] = [[1; 32], [2; 32]].map(generate);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("keys.yaml");
    let list = |hashes: &[&str]| {
        let keys: Vec<_> = hashes.iter().map(|hash| format!("{{ hash: \"{hash}\" }}")).collect();
        format!("clients: [{{ name: partner, keys: [{}] }}]\n", keys.join(", "))
    };
    std::fs::write(&file, list(&[&first_hash])).unwrap();
    let app = Backend::ok();
    let sections = format!("authenticators: [{{ name: partners, api_keys: {{ file: \"{}\" }} }}]\n", file.display());
    let setup = Setup { route: "authenticate: partners", sections: &sections, ..Setup::default() };
    let gateway = setup.start(app.endpoint());
    let mut client = gateway.connect();
    let mut ask = |key: &str| client.ask(format!("GET /a HTTP/1.1\r\nHost: test\r\nX-API-Key: {key}\r\n\r\n")).status();
    assert_eq!((ask(&first), ask(&second)), (200, 401));
    replace(&file, &list(&[&first_hash, &second_hash]));
    eventually(PATIENCE, || ask(&second) == 200);
    assert_eq!(ask(&first), 200, "both hold while clients change over");
    replace(&file, &list(&[&second_hash]));
    settles_at(401, || ask(&first));
    assert_eq!(ask(&second), 200);
}
