//! Copies of requests that come over HTTP/2, for services of either version.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use ringway_tests::{Backend, Gateway, Message, PATIENCE, eventually, settles_at};

use crate::service::*;

/// What a service of HTTP/2 got, bodies and trailers.
type Got = Arc<Mutex<Vec<(Vec<u8>, HeaderMap)>>>;

fn keeping() -> (Service, Got) {
    let got = Got::default();
    let kept = Arc::clone(&got);
    let service = Service::start(move |mut call| {
        let kept = Arc::clone(&kept);
        async move {
            let body = call.body().await;
            kept.lock().expect("a list").push(body);
            call.answer(Response::builder(), "ok");
        }
    });
    (service, got)
}

/// Sends a body in pieces, and trailers behind it; the status.
async fn send(client: &mut h2::client::SendRequest<Bytes>, uri: &str, pieces: &[Bytes]) -> u16 {
    let request = Request::post(uri).header("x-mirrored", "no").body(()).expect("a request");
    let (answer, mut body) = client.send_request(request, false).expect("a stream");
    for piece in pieces {
        send_all(&mut body, piece.clone(), &Shared::default()).await.expect("a window");
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "1".parse().expect("a value"));
    body.send_trailers(trailers).expect("a stream");
    answer.await.expect("an answer").status().as_u16()
}

#[test]
fn copies_of_streams_go_to_services_of_either_version() {
    let (app, at_app) = keeping();
    let (shadow, at_shadow) = keeping();
    let old: Arc<Mutex<Vec<Message>>> = Arc::default();
    let kept = Arc::clone(&old);
    let old_shadow = Backend::start(move |conn| {
        while let Some(request) = conn.next_request() {
            kept.lock().expect("a list").push(request);
            conn.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let gateway = Gateway::start(&format!(
        "listeners: [{{ name: public, address: LISTEN, http2: {{ enabled: true }} }}]\n\
         services:\n  - {{ name: app, endpoints: \"{}\", protocol: http2 }}\n\
         \x20 - {{ name: new, endpoints: \"{}\", protocol: http2 }}\n  - {{ name: old, endpoints: \"{}\" }}\n\
         routes:\n  - {{ name: new, match: {{ path: /new }}, service: app, mirror: {{ service: new, body_max: 1MiB }} }}\n\
         \x20 - {{ name: old, match: {{ path: /old }}, service: app, mirror: {{ service: old, body_max: 1MiB }} }}\n",
        app.endpoint,
        shadow.endpoint,
        old_shadow.endpoint()
    ));
    let pieces: Vec<Bytes> = (0..20u8).map(|number| Bytes::from(vec![b'a' + number; 5_000])).collect();
    let whole = pieces.concat();
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.address()).await.expect("a connection");
        let (client, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::spawn(connection);
        let mut client = client.ready().await.expect("a connection");
        for path in ["/new", "/old"] {
            let uri = format!("http://{}{path}", gateway.address());
            assert_eq!(send(&mut client, &uri, &pieces).await, 200);
            assert_eq!(send(&mut client, &uri, &[]).await, 200);
        }
    });
    for route in ["new", "old"] {
        let answered = format!("gateway_mirrored_requests_total{{route=\"{route}\",outcome=\"answered\"}}");
        settles_at(2.0, || gateway.metric(&answered));
    }
    let of = |got: &Got| got.lock().expect("a list").clone();
    let (originals, copies) = (of(&at_app), of(&at_shadow));
    assert_eq!((originals.len(), copies.len()), (4, 2));
    // Copies leave when they are whole, and may come in any order.
    for (got, count) in [(&originals, 2), (&copies, 1)] {
        assert!(got.iter().all(|(_, trailers)| trailers.get("x-sum").is_some_and(|sum| sum == "1")), "{got:?}");
        assert_eq!(got.iter().filter(|(body, _)| *body == whole).count(), count);
        assert_eq!(got.iter().filter(|(body, _)| body.is_empty()).count(), count);
    }
    for index in 0..2 {
        let copy = shadow.request(index);
        assert_eq!((copy.version, &copy.headers["x-mirrored"]), (http::Version::HTTP_2, &"true".parse().unwrap()));
    }
    eventually(PATIENCE, || old.lock().expect("a list").len() == 2);
    let copies = old.lock().expect("a list");
    assert!(
        copies.iter().any(|copy| copy.text().as_bytes() == whole) && copies.iter().any(|copy| copy.text().is_empty())
    );
    assert!(copies.iter().all(|copy| copy.all("x-mirrored").eq(["true"]) && copy.target() == "/old"));
}
