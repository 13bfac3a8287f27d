//! The keeper against a real server.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Instant, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use jsonwebtoken::EncodingKey;
use ringway_core::auth::api_key::{ApiKeyError, stored};
use ringway_core::auth::jwt::{JwtError, Rules, verify};
use ringway_core::auth::{Algorithm, Algorithms, Asked, ClaimHeader, ClaimPath};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::process::unix_ms;
use crate::testing::wait_for;

/// What the server answers to a request for the key set.
#[derive(Clone)]
enum Answer {
    Keys(String),
    /// The same, once the gate has opened.
    Held(String, Arc<AtomicBool>),
    /// Status, header line, body.
    Raw(u16, &'static str, String),
    Nothing,
    /// Without an end.
    Endless,
}

/// A runtime at work, as the control thread has it, until this is dropped.
struct RuntimeThread {
    handle: Handle,
    _running: oneshot::Sender<()>,
}

impl RuntimeThread {
    fn start() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let handle = runtime.handle().clone();
        let (running, stopped) = oneshot::channel::<()>();
        thread::spawn(move || {
            // An error, since the other end is dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        });
        Self { handle, _running: running }
    }
}

/// A server on a thread of its own.
struct Issuer {
    address: SocketAddr,
    is_https: bool,
    answer: Arc<Mutex<Answer>>,
    /// The metadata's `issuer`, where it is not its own address.
    poses_as: Arc<Mutex<Option<String>>>,
    /// Requests for the key set.
    asked: Arc<AtomicU64>,
    others: Arc<AtomicU64>,
    _thread: RuntimeThread,
}

type Body = BoxBody<Bytes, Infallible>;

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed()
}

impl Issuer {
    fn start(answer: Answer) -> Self {
        Self::start_with(answer, None)
    }

    fn start_with(answer: Answer, tls: Option<TlsAcceptor>) -> Self {
        let thread = RuntimeThread::start();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let issuer = Self {
            address: listener.local_addr().unwrap(),
            is_https: tls.is_some(),
            answer: Arc::new(Mutex::new(answer)),
            poses_as: Arc::default(),
            asked: Arc::default(),
            others: Arc::default(),
            _thread: thread,
        };
        let (answer, asked, others) = (issuer.answer.clone(), issuer.asked.clone(), issuer.others.clone());
        let (poses_as, own) = (issuer.poses_as.clone(), issuer.url(""));
        listener.set_nonblocking(true).unwrap();
        issuer._thread.handle.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, asked, others) = (answer.clone(), asked.clone(), others.clone());
                let (poses_as, own) = (poses_as.clone(), own.clone());
                let tls = tls.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let path = request.uri().path().to_owned();
                    let counter = if path == "/jwks" { &asked } else { &others };
                    counter.fetch_add(1, Ordering::SeqCst);
                    let answer = answer.lock().unwrap().clone();
                    let issuer = poses_as.lock().unwrap().clone().unwrap_or_else(|| own.clone());
                    let own = own.clone();
                    async move {
                        if path == "/.well-known/openid-configuration" {
                            let json = format!(r#"{{"issuer":"{issuer}","jwks_uri":"{own}/jwks"}}"#);
                            return Ok::<_, Infallible>(Response::new(full(json)));
                        }
                        Ok(respond(answer).await)
                    }
                });
                tokio::spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    // Clients that give up, or do not trust, are what some tests are about.
                    match tls {
                        None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                drop(http.serve_connection(TokioIo::new(stream), service).await);
                            }
                        }
                    }
                });
            }
        });
        issuer
    }

    fn url(&self, path: &str) -> String {
        let (scheme, host) = if self.is_https { ("https", "localhost") } else { ("http", "127.0.0.1") };
        format!("{scheme}://{host}:{}{path}", self.address.port())
    }

    fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn respond(answer: Answer) -> Response<Body> {
    match answer {
        Answer::Keys(json) => Response::new(full(json)),
        Answer::Held(json, gate) => {
            while !gate.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Response::new(full(json))
        }
        Answer::Raw(status, header, body) => {
            let (name, value) = header.split_once(": ").unwrap();
            Response::builder().status(status).header(name, value).body(full(body)).unwrap()
        }
        Answer::Nothing => std::future::pending().await,
        Answer::Endless => Response::new(Endless.boxed()),
    }
}

/// A body without an end.
struct Endless;

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b' '; 64 * 1024])))))
    }
}

/// A key pair of an issuer.
struct Signer {
    kid: String,
    private: Vec<u8>,
    jwk: String,
}

impl Signer {
    fn new(kid: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
        let jwk = format!(r#"{{"kty":"OKP","crv":"Ed25519","kid":"{kid}","x":"{x}"}}"#);
        Self { kid: kid.into(), private: pair.serialize_der(), jwk }
    }

    fn token(&self) -> String {
        let encode = |json: String| URL_SAFE_NO_PAD.encode(json);
        let header = encode(format!(r#"{{"alg":"EdDSA","kid":"{}"}}"#, self.kid));
        let claims = encode(format!(r#"{{"exp":{},"sub":"ada"}}"#, now_s() + 600));
        let message = [header, claims].join(".");
        let key = EncodingKey::from_ed_der(&self.private);
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, jsonwebtoken::Algorithm::EdDSA).unwrap();
        [message, signature].join(".")
    }
}

fn set_of(signers: &[&Signer]) -> String {
    let keys: Vec<_> = signers.iter().map(|signer| signer.jwk.as_str()).collect();
    format!(r#"{{"keys":[{}]}}"#, keys.join(","))
}

fn now_s() -> u64 {
    unix_ms(SystemTime::now()) / 1000
}

/// Counts rings; those who wait are woken.
#[derive(Default)]
struct Bell(Mutex<u64>, Condvar);

impl Bell {
    fn ring(&self) {
        *self.0.lock().unwrap() += 1;
        self.1.notify_all();
    }

    fn rings(&self) -> u64 {
        *self.0.lock().unwrap()
    }

    /// Until it rang once more than `heard`, or the time is over.
    fn wait(&self, heard: u64) -> bool {
        let guard = self.0.lock().unwrap();
        let limit = Duration::from_secs(5);
        !self.1.wait_timeout_while(guard, limit, |rings| *rings == heard).unwrap().1.timed_out()
    }
}

/// A keeper at work.
struct Kept {
    live: Arc<Live>,
    bell: Arc<Bell>,
    keeper: Keeper,
    thread: RuntimeThread,
}

fn fast() -> Fetching {
    Fetching {
        timeout: Duration::from_secs(2),
        ask_interval: Duration::from_millis(50),
        retry_min: Duration::from_millis(10),
        retry_max: Duration::from_millis(40),
        missing: Duration::from_secs(60),
        ..Fetching::default()
    }
}

fn keep(source: Source, place: Place) -> Kept {
    let thread = RuntimeThread::start();
    let (live, bell) = (Arc::new(Live::new("test")), Arc::new(Bell::default()));
    let ring = bell.clone();
    let spec = SourceSpec { source, place };
    let keeper = Keeper::start(&thread.handle, vec![(live.clone(), spec)], Box::new(move || ring.ring()));
    Kept { live, bell, thread, keeper }
}

fn keep_url(issuer: &Issuer, fetching: Fetching) -> Kept {
    let url = HttpUrl::parse(&issuer.url("/jwks")).unwrap();
    keep(Source::Jwks { secrets: false }, Place::Url { url, fetching })
}

impl Kept {
    fn judge(&self, token: &str) -> Result<(), JwtError> {
        let rules = Rules::new(Algorithms::new([Algorithm::EdDSA]).unwrap());
        verify(&rules, &self.live.keys(), token, now_s()).map(|_| ())
    }

    /// What a worker does with a request.
    fn request(&self, token: &str) -> Result<(), JwtError> {
        loop {
            let (heard, generation) = (self.bell.rings(), self.live.generation());
            match self.judge(token) {
                Err(JwtError::UnknownKey { kid }) => match self.live.ask(kid.as_deref(), generation) {
                    Asked::Wait => assert!(self.bell.wait(heard), "nobody rang"),
                    Asked::Again => {}
                    Asked::No => return Err(JwtError::UnknownKey { kid }),
                },
                result => return result,
            }
        }
    }

    fn count(&self, counter: impl Fn(&ringway_core::auth::Stats) -> &AtomicU64) -> u64 {
        counter(&self.live.stats).load(Ordering::Relaxed)
    }

    fn failed(&self) -> u64 {
        self.count(|stats| &stats.refreshes_failed)
    }

    fn wait_until_open(&self) {
        wait_for(|| self.live.looking() == Looking::WhenAsked);
    }
}

#[test]
fn keys_rotate_without_a_refused_request() {
    let mut signers = vec![Signer::new("0")];
    let issuer = Issuer::start(Answer::Keys(set_of(&[&signers[0]])));
    let kept = keep_url(&issuer, fast());
    wait_for(|| kept.live.keys().len() == 1);
    let (token, is_over) = (Mutex::new(signers[0].token()), AtomicBool::new(false));
    thread::scope(|scope| {
        let worker = || {
            let mut requests = 0;
            while !is_over.load(Ordering::SeqCst) {
                let token = token.lock().unwrap().clone();
                assert_eq!(kept.request(&token), Ok(()));
                requests += 1;
            }
            requests
        };
        let workers = [(); 3].map(|()| scope.spawn(worker));
        for rotation in 1..=10 {
            kept.wait_until_open();
            signers.push(Signer::new(&rotation.to_string()));
            // The new key and the one before it, whose tokens are still around; it is used at once.
            let published = &signers[rotation - 1..];
            issuer.set(Answer::Keys(set_of(&[&published[0], &published[1]])));
            *token.lock().unwrap() = signers[rotation].token();
            wait_for(|| kept.live.keys().has_kid(&rotation.to_string()));
        }
        is_over.store(true, Ordering::SeqCst);
        let requests: Vec<u32> = workers.map(|worker| worker.join().unwrap()).into();
        assert!(requests.iter().all(|requests| *requests > 10), "{requests:?}");
    });
    assert_eq!(issuer.asked(), 11, "one fetch for each rotation");
    assert_eq!(kept.judge(&signers[0].token()), Err(JwtError::UnknownKey { kid: Some("0".into()) }));
    assert_eq!(kept.live.generation(), 11);
}

#[test]
fn keys_are_fetched_ahead_of_time() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let issuer = Issuer::start(Answer::Raw(200, "cache-control: max-age=0", set_of(&[&old])));
    let fetching = Fetching { refresh_min: Duration::from_millis(20), ..fast() };
    let kept = keep_url(&issuer, fetching);
    wait_for(|| kept.live.keys().len() == 1);
    issuer.set(Answer::Keys(set_of(&[&old, &new])));
    // Nobody asks.
    wait_for(|| kept.live.keys().has_kid("new"));
    assert_eq!((kept.judge(&old.token()), kept.judge(&new.token())), (Ok(()), Ok(())));
}

#[test]
fn the_same_keys_again_are_no_change() {
    let signer = Signer::new("a");
    let issuer = Issuer::start(Answer::Raw(200, "cache-control: no-store", set_of(&[&signer])));
    let kept = keep_url(&issuer, Fetching { refresh_min: Duration::from_millis(5), ..fast() });
    wait_for(|| kept.count(|stats| &stats.refreshes_ok) > 5);
    assert_eq!(kept.live.generation(), 1);
    assert!(now_s() - kept.count(|stats| &stats.refreshed_at_s) < 5);
    assert_eq!((kept.count(|stats| &stats.keys), kept.failed()), (1, 0));
}

#[test]
fn a_storm_of_unknown_keys_leads_to_one_fetch_an_interval() {
    let signer = Signer::new("good");
    let issuer = Issuer::start(Answer::Keys(set_of(&[&signer])));
    let interval = Duration::from_millis(200);
    let kept = keep_url(&issuer, Fetching { ask_interval: interval, ..fast() });
    wait_for(|| kept.live.keys().len() == 1);
    let (started, good) = (Instant::now(), signer.token());
    let asks = AtomicU64::new(0);
    thread::scope(|scope| {
        for worker in 0..4 {
            let (kept, good, asks) = (&kept, &good, &asks);
            scope.spawn(move || {
                for number in 0.. {
                    if started.elapsed() > 6 * interval {
                        break;
                    }
                    let kid = format!("{worker}-{number}");
                    let forged = Signer { kid: kid.clone(), ..Signer::new("other") }.token();
                    assert_eq!(kept.request(&forged), Err(JwtError::UnknownKey { kid: Some(kid.into()) }));
                    assert_eq!(kept.request(good), Ok(()));
                    asks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let intervals = started.elapsed().as_millis() as u64 / interval.as_millis() as u64;
    let fetches = issuer.asked();
    assert!(asks.load(Ordering::Relaxed) > 100 && fetches > 2);
    // The first one, one for each interval that began.
    assert!(fetches <= 1 + intervals + 1, "{fetches} in {intervals} intervals");
}

#[test]
fn a_key_that_was_looked_for_in_vain_is_not_looked_for_again() {
    let signer = Signer::new("good");
    let issuer = Issuer::start(Answer::Keys(set_of(&[&signer])));
    let kept = keep_url(&issuer, Fetching { missing: Duration::from_millis(300), ..fast() });
    let stranger = Signer::new("stranger");
    let ask = || {
        kept.wait_until_open();
        kept.request(&stranger.token()).unwrap_err();
        issuer.asked()
    };
    let first = ask();
    assert_eq!(first, 2);
    assert_eq!((ask(), ask()), (first, first));
    // Another one is.
    kept.wait_until_open();
    kept.request(&Signer::new("other").token()).unwrap_err();
    assert_eq!(issuer.asked(), first + 1);
    // After a while it is, too.
    issuer.set(Answer::Keys(set_of(&[&signer, &stranger])));
    wait_for(|| kept.request(&stranger.token()).is_ok());
}

#[test]
fn a_key_asked_for_while_an_older_answer_is_under_way_is_fetched_once_more() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let gate = Arc::new(AtomicBool::new(false));
    let issuer = Issuer::start(Answer::Keys(set_of(&[&old])));
    let kept = keep_url(
        &issuer,
        Fetching { refresh_default: Duration::from_millis(50), refresh_min: Duration::ZERO, ..fast() },
    );
    wait_for(|| kept.live.keys().len() == 1);
    issuer.set(Answer::Held(set_of(&[&old]), gate.clone()));
    let before = issuer.asked();
    wait_for(|| issuer.asked() > before && kept.live.looking() == Looking::Now);
    issuer.set(Answer::Keys(set_of(&[&old, &new])));
    thread::scope(|scope| {
        let request = scope.spawn(|| kept.request(&new.token()));
        thread::sleep(Duration::from_millis(20));
        gate.store(true, Ordering::SeqCst);
        assert_eq!(request.join().unwrap(), Ok(()));
    });
}

#[test]
fn the_last_good_keys_stay_while_the_issuer_fails() {
    let signer = Signer::new("good");
    let issuer = Issuer::start(Answer::Keys(set_of(&[&signer])));
    let fetching = Fetching {
        timeout: Duration::from_millis(200),
        refresh_default: Duration::from_millis(5),
        refresh_min: Duration::ZERO,
        ..fast()
    };
    let kept = keep_url(&issuer, fetching);
    wait_for(|| kept.live.keys().len() == 1);
    let raw = |status, body: &str| Answer::Raw(status, "x: y", body.into());
    let long = [&set_of(&[&signer])[..], &" ".repeat(BODY_BYTES_MAX)].concat();
    let secret = r#"{"keys":[{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T"}]}"#;
    let redirect = Answer::Raw(302, "location: /other", String::new());
    for (name, answer) in [
        ("down", raw(503, "")),
        ("an error with keys", raw(500, &set_of(&[&Signer::new("evil")]))),
        ("empty", raw(200, "")),
        ("a page", raw(200, "<!doctype html><title>Maintenance</title>")),
        ("cut off", raw(200, &set_of(&[&signer])[..40])),
        ("no keys", raw(200, r#"{"keys":[]}"#)),
        ("a public secret", raw(200, secret)),
        ("bytes", Answer::Raw(200, "content-encoding: gzip", "\u{1f}\u{8b}\0\u{ff}".into())),
        ("redirect", redirect),
        ("huge", raw(200, &long)),
        ("endless", Answer::Endless),
        ("slow", Answer::Nothing),
    ] {
        issuer.set(answer);
        let (failed, asked) = (kept.failed(), issuer.asked());
        wait_for(|| kept.failed() > failed + 1 && issuer.asked() > asked);
        assert_eq!(kept.request(&signer.token()), Ok(()), "{name}");
        // Somebody who asks while it is tried again is told in time, too.
        wait_for(|| name != "slow" || kept.live.looking() == Looking::Now);
        assert!(matches!(kept.request(&Signer::new("new").token()), Err(JwtError::UnknownKey { .. })), "{name}");
        assert_eq!(kept.live.generation(), 1, "{name}");
    }
    assert_eq!(issuer.others.load(Ordering::SeqCst), 0, "no redirect is followed");
    let ok = kept.count(|stats| &stats.refreshes_ok);
    issuer.set(Answer::Keys(set_of(&[&signer, &Signer::new("new")])));
    wait_for(|| kept.live.keys().len() == 2);
    // Counted once the keys are there.
    wait_for(|| kept.count(|stats| &stats.refreshes_ok) > ok);
}

#[test]
fn an_issuer_that_comes_late_is_waited_for() {
    let signer = Signer::new("a");
    let issuer = Issuer::start(Answer::Raw(503, "x: y", String::new()));
    let kept = keep_url(&issuer, fast());
    wait_for(|| kept.failed() > 2);
    assert_eq!(kept.request(&signer.token()), Err(JwtError::NoKeys));
    issuer.set(Answer::Keys(set_of(&[&signer])));
    wait_for(|| kept.request(&signer.token()).is_ok());
    // Nobody listens at all.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = HttpUrl::parse(&format!("http://{}/jwks", nobody.local_addr().unwrap())).unwrap();
    drop(nobody);
    let kept = keep(Source::Jwks { secrets: false }, Place::Url { url, fetching: fast() });
    wait_for(|| kept.failed() > 2);
}

#[test]
fn an_issuer_names_its_key_set() {
    let signer = Signer::new("a");
    let issuer = Issuer::start(Answer::Keys(set_of(&[&signer])));
    *issuer.poses_as.lock().unwrap() = Some("http://other.example".into());
    let place = Place::Issuer { issuer: HttpUrl::parse(&issuer.url("")).unwrap(), fetching: fast() };
    let kept = keep(Source::Jwks { secrets: false }, place);
    wait_for(|| kept.failed() > 1);
    assert_eq!((kept.live.keys().len(), issuer.asked()), (0, 0), "metadata of another issuer");
    *issuer.poses_as.lock().unwrap() = None;
    wait_for(|| kept.request(&signer.token()).is_ok());
}

#[test]
fn https_asks_for_a_certificate_that_is_trusted() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let signer = Signer::new("a");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let issuer = Issuer::start_with(Answer::Keys(set_of(&[&signer])), Some(acceptor));
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap().cert.pem()).unwrap();
    let kept = keep_url(&issuer, Fetching { ca: Some(ca.clone()), ..fast() });
    wait_for(|| kept.failed() > 1);
    assert_eq!((kept.live.keys().len(), issuer.asked()), (0, 0), "another certificate");
    std::fs::write(&ca, certified.cert.pem()).unwrap();
    wait_for(|| kept.request(&signer.token()).is_ok());
    // The system's certificates do not vouch for it, and a file that is not there vouches for nothing.
    for ca in [None, Some(dir.path().join("none.pem"))] {
        let kept = keep_url(&issuer, Fetching { ca, ..fast() });
        wait_for(|| kept.failed() > 1);
        assert!(kept.live.keys().is_empty());
    }
}

/// Replaces a file as it is done in the field: whole.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[test]
fn files_are_read_again_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    replace(&at("jwks"), &set_of(&[&old]));
    let mut kept = keep(Source::Jwks { secrets: true }, Place::File(at("jwks")));
    wait_for(|| kept.judge(&old.token()).is_ok());
    assert_eq!(kept.live.ask(Some("new"), kept.live.generation()), Asked::No, "there is nowhere to look");
    replace(&at("jwks"), "{");
    wait_for(|| kept.failed() == 1);
    assert!(kept.judge(&old.token()).is_ok());
    replace(&at("jwks"), &set_of(&[&new]));
    wait_for(|| kept.judge(&new.token()).is_ok());
    assert!(kept.judge(&old.token()).is_err());

    // Other sources in place of it: API keys and revocations.
    let headers = [ClaimHeader { name: "X-Client".into(), claim: ClaimPath::parse("sub").unwrap() }];
    let file = |key: &str| format!("clients: [{{ name: shop, keys: [{{ hash: \"{}\" }}] }}]", stored(key.as_bytes()));
    replace(&at("keys.yaml"), &file("one"));
    let spec = |source, name: &str| SourceSpec { source, place: Place::File(at(name)) };
    let sources = vec![
        (kept.live.clone(), spec(Source::ApiKeys { headers: headers.into() }, "keys.yaml")),
        (kept.live.clone(), spec(Source::Revoked, "revoked")),
    ];
    let ring = kept.bell.clone();
    kept.keeper.replace(&kept.thread.handle, sources, Box::new(move || ring.ring()));
    let identity = |key: &str| {
        let keys = kept.live.api_keys();
        keys.as_ref().ok_or(ApiKeyError::Unknown).and_then(|keys| keys.verify(key.as_bytes(), 0))
    };
    wait_for(|| identity("one").is_ok());
    assert_eq!(identity("one").unwrap().header_lines, b"X-Client: shop\r\n");
    wait_for(|| kept.failed() == 2);
    replace(&at("revoked"), "# stolen\nid-1\n");
    wait_for(|| kept.live.revoked().as_ref().is_some_and(|revoked| revoked.contains("id-1")));
    replace(&at("keys.yaml"), &file("two"));
    wait_for(|| identity("two").is_ok());
    assert!(identity("one").is_err());
}

#[test]
fn what_will_be_fetched_is_waited_for_before_the_fetch_has_begun() {
    let thread = RuntimeThread::start();
    let (fetched, read) = (Arc::new(Live::new("fetched")), Arc::new(Live::new("read")));
    // What an earlier task may have left.
    read.set_looking(Looking::WhenAsked);
    // The thread is kept busy, so that no task begins.
    let (busy, free) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (began, may_end) = (busy.clone(), free.clone());
    thread.handle.spawn(async move {
        began.store(true, Ordering::SeqCst);
        wait_for(|| may_end.load(Ordering::SeqCst));
    });
    wait_for(|| busy.load(Ordering::SeqCst));
    let url = HttpUrl::parse("http://127.0.0.1:9/jwks").unwrap();
    let remote = Place::Url { url, fetching: Fetching::default() };
    let sources = vec![
        (fetched.clone(), SourceSpec { source: Source::Jwks { secrets: false }, place: remote }),
        (fetched.clone(), SourceSpec { source: Source::Revoked, place: Place::File("revoked".into()) }),
        (read.clone(), SourceSpec { source: Source::Pem, place: Place::File("keys.pem".into()) }),
    ];
    let keeper = Keeper::start(&thread.handle, sources, Box::new(|| {}));
    assert_eq!((fetched.ask(None, 0), read.ask(None, 0)), (Asked::Wait, Asked::No));
    drop(keeper);
    free.store(true, Ordering::SeqCst);
}

#[test]
fn a_bad_file_is_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.yaml");
    let live = Live::new("partners");
    let source = Source::ApiKeys { headers: [].into() };
    let error = load_file(&live, &source, &path).unwrap_err().to_string();
    assert!(error.starts_with(&path.display().to_string()) && error.contains("No such file"), "{error}");
    std::fs::write(&path, "clients: [{ name: a, keys: [{ hash: x }] }]").unwrap();
    let error = load_file(&live, &source, &path).unwrap_err().to_string();
    assert!(error.ends_with("client `a`: a hash is `sha256:` and 64 hex digits"), "{error}");
    assert_eq!(live.stats.refreshes_failed.load(Ordering::Relaxed), 2);
}
