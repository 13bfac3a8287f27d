//! Tunnels to a service of HTTP/2 that are dropped at random points, by clients of both versions and by the service: nothing
//! of them stays.

use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use h2::Reason;
use http::Response;
use ringway_tests::http2::*;
use ringway_tests::websocket::{KEY, come_and_go};
use ringway_tests::{Gateway, PATIENCE, eventually, settles_at, ten_thousand};

use super::{Call, Service, send_all};

/// What the service does of its own accord.
const PATHS: [&str; 8] = ["/", "/", "/", "/end", "/reset", "/gone", "/no", "/silent"];

async fn answer(mut call: Call) {
    match call.path() {
        "/no" => {
            let head = Response::builder().status(403).body(()).expect("a head");
            let _ = call.respond.send_response(head, true);
        }
        "/silent" => {
            let reset = std::future::poll_fn(|cx| call.respond.poll_reset(cx)).await;
            drop(reset);
        }
        "/reset" => {
            let _stream = call.agree();
            call.respond.send_reset(Reason::CANCEL);
        }
        "/gone" => drop(call.agree()),
        "/end" => {
            let Some(mut stream) = call.agree() else { return };
            let _ = send_all(&mut stream, Bytes::from_static(&[0x5a; 3_000]), &call.shared.sent).await;
            let _ = stream.send_data(Bytes::new(), true);
            while call.read_some().await.is_some() {}
        }
        _ => call.echo().await,
    }
}

/// One of HTTP/2, with a few streams.
fn http2(gateway: &Gateway, rng: &mut Rng) {
    let mut client = Http2::connect(gateway.address());
    for stream in (1..).step_by(2).take(rng.usize(1..4)) {
        let path = PATHS[rng.usize(..PATHS.len())];
        let (head, point) = (Http2::connect_bytes(stream, "websocket", path, &[("x-key", KEY)]), rng.u32(..7));
        if point == 0 {
            let _ = client.try_send(&head[..rng.usize(..head.len())]);
            break;
        }
        let _ = client.try_send(&head);
        if point >= 2 && path == "/" {
            assert_eq!(client.status(stream), 200);
            if point >= 3 {
                // Within the windows that there are at first, of three streams together.
                let bytes = vec![0x5a; rng.usize(1..16_000)];
                let _ = client.try_send(Http2::bytes(DATA, 0, stream, &bytes));
                if point >= 4 {
                    let mut back = Vec::new();
                    while back.len() < bytes.len() {
                        back.extend(client.next_of(DATA, stream).payload);
                    }
                    assert_eq!(back, bytes);
                }
                if point == 5 {
                    client.frame(DATA, END_STREAM, stream, b"");
                    assert_eq!(client.next_of(DATA, stream).flags & END_STREAM, END_STREAM);
                }
            }
        }
        if point == 6 {
            let _ = client.try_send(Http2::bytes(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
        }
    }
    match rng.u8(..3) {
        0 => client.reset_on_close(),
        1 => drop(client.stays_silent(Duration::from_millis(rng.u64(..3)))),
        _ => {}
    }
}

#[test]
fn ten_thousand_tunnels_come_and_go_and_nothing_stays() {
    let service = Service::start(answer);
    // Those that are not answered end with their clients, or soon after.
    let gateway = service.gateway("timeouts: { answer: 1s }", "");
    let labels = format!("{{service=\"app\",endpoint=\"{}\"}}", service.endpoint);
    let gauges = [
        "gateway_active_connections".to_owned(),
        "gateway_active_requests".to_owned(),
        "gateway_active_tunnels".to_owned(),
        "gateway_buffers_in_use{worker=\"0\"}".to_owned(),
        format!("gateway_endpoint_in_flight{labels}"),
    ];
    let settles = || {
        settles_at([0.0; 5], || gauges.each_ref().map(|gauge| gateway.metric(gauge)));
        settles_at(0, || service.open());
    };
    // As much as so many at a time take is there from now on.
    let mut first = Rng::with_seed(1);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let gateway = &gateway;
            let mut rng = Rng::with_seed(first.u64(..) ^ seed);
            scope.spawn(move || (0..750).for_each(|_| of_either_version(gateway, &mut rng)));
        }
    });
    settles();
    let (descriptors, resident) = (gateway.open_fds(), gateway.rss_bytes());

    ten_thousand(|rng| of_either_version(&gateway, rng));

    settles();
    eventually(PATIENCE, || gateway.open_fds() <= descriptors + 16);
    let grown = gateway.rss_bytes().saturating_sub(resident);
    println!("{grown} bytes more resident");
    assert!(grown < 4 << 20, "{grown} bytes more than after the first");
    assert!(gateway.metric("gateway_tunnels_total{route=\"all\",protocol=\"websocket\"}") > 1_000.0);
    assert_eq!(gateway.metric("gateway_worker_panics_total"), 0.0);
    assert_eq!(super::both(&gateway, "/", None), [101, 200]);
}

fn of_either_version(gateway: &Gateway, rng: &mut Rng) {
    if rng.bool() { come_and_go(gateway, rng, &PATHS, "/silent") } else { http2(gateway, rng) }
}
