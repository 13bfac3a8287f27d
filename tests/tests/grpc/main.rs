//! gRPC through the gateway: a client and a service of `tonic`, HTTP/2 on both sides.

mod echo;
mod failures;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringway_tests::{Gateway, Nobody, PATIENCE, settles_at};
use tonic::{Code, Request};

use echo::*;

#[test]
fn unary_calls_go_through_with_their_metadata() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let mut request = message("hello");
    request.metadata_mut().insert("x-text", "some text".parse().expect("a value"));
    request.metadata_mut().insert_bin("x-data-bin", tonic::metadata::MetadataValue::from_bytes(b"\0\xff"));
    let response = call(&gateway, request).expect("an answer");
    assert_eq!(response.get_ref().as_ref(), b"hello");
    assert_eq!(response.metadata().get("x-text").expect("metadata"), "some text");
    let data = response.metadata().get_bin("x-back-bin").expect("metadata").to_bytes().expect("base64");
    assert_eq!(data.as_ref(), b"\0\xff");
    let head = service.head(0);
    assert_eq!(
        (&head["te"], &head["content-type"]),
        (&"trailers".parse().unwrap(), &"application/grpc".parse().unwrap())
    );
    assert!(!head.contains_key("grpc-timeout") && !head.contains_key("connection"));
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["grpcStatus"]), (&200.into(), &0.into()));
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"0\"}"), 1.0);
}

#[test]
fn large_messages_go_both_ways() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let large: Bytes = (0..12 * 1024 * 1024u32).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let response = call(&gateway, Request::new(large.clone())).expect("an answer");
    assert!(response.get_ref() == &large, "{} bytes", response.get_ref().len());
    settles_at(0.0, || gateway.metric("gateway_buffers_in_use{worker=\"0\"}"));
}

#[test]
fn messages_of_a_client_are_collected() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let answer = on_runtime(async {
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let messages = tokio_stream::iter((0..1000).map(|_| Bytes::from_static(&[7; 1000])));
        client.client_streaming(Request::new(messages), path("/test.Echo/Collect"), Raw).await
    });
    assert_eq!(answer.expect("an answer").into_inner().as_ref(), b"1000 1000000");
}

#[test]
fn messages_of_a_service_come_in_order_and_end_with_its_status() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    on_runtime(async {
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.server_streaming(message("2000"), path("/test.Echo/Count"), Raw).await;
        let mut messages = answer.expect("an answer").into_inner();
        for index in 0..2000 {
            let message = messages.message().await.expect("a message").expect("not the end");
            assert_eq!(message, format!("{index:08}").repeat(128));
        }
        let end = messages.message().await.expect_err("a status");
        assert_eq!((end.code(), end.message()), (Code::OutOfRange, "no more"));
    });
    assert_eq!(gateway.log_line(1)["grpcStatus"], 11);
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"11\"}"), 1.0);
}

#[test]
fn both_sides_talk_in_turn() {
    let service = Service::start();
    // Nothing waits for a body, or for a rate of it, once the service has begun to answer.
    let gateway = Gateway::start(&format!(
        "listeners: [{{ name: public, address: LISTEN, http2: {{ enabled: true }}, timeouts: {{ body: 100ms }} }}]\n\
         services: [{{ name: app, endpoints: [\"{}\"], protocol: http2 }}]\nroutes: [{{ name: all, service: app }}]\n",
        service.endpoint
    ));
    on_runtime(async {
        let (say, said) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let said = tokio_stream::wrappers::UnboundedReceiverStream::new(said);
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.streaming(Request::new(said), path("/test.Echo/Chat"), Raw).await;
        let mut heard = answer.expect("an answer before a message").into_inner();
        for index in 0..50 {
            say.send(format!("message {index}").into()).expect("a receiver");
            let echo = heard.message().await.expect("a message").expect("not the end");
            assert_eq!(echo, format!("message {index}"));
            if index == 25 {
                // Longer than a body may stand still otherwise.
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        }
        drop(say);
        assert_eq!(heard.message().await.expect("an end"), None);
    });
    assert_eq!(gateway.log_line(1)["grpcStatus"], 0);
}

#[test]
fn a_failure_of_the_service_comes_with_its_message_and_details() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let status = refused(&gateway, message("fail"));
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, "100 % é"));
    assert_eq!(status.details(), b"\0why");
    assert_eq!(status.metadata().get("x-reason").expect("metadata"), "asked");
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["grpcStatus"]), (&200.into(), &9.into()));
}

#[test]
fn an_answer_of_trailers_alone_stays_one() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "match: { prefix: /test.Echo }", "");
    for (method, code) in [("/test.Echo/Nothing", "12"), ("/other.Echo/Unary", "12")] {
        on_runtime(async {
            let stream = tokio::net::TcpStream::connect(gateway.address()).await.expect("a connection");
            let (mut send, connection) = h2::client::handshake(stream).await.expect("a handshake");
            tokio::spawn(connection);
            let request = http::Request::post(format!("http://{}{method}", gateway.address()))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(())
                .expect("a request");
            let (answer, mut body) = send.send_request(request, false).expect("a stream");
            body.send_data(Bytes::from_static(&[0; 5]), true).expect("a stream");
            let answer = answer.await.expect("an answer");
            assert_eq!(answer.status(), 200, "{method}");
            assert_eq!(answer.headers()["content-type"], "application/grpc", "{method}");
            assert_eq!(answer.headers()["grpc-status"], code, "{method}");
            assert!(answer.headers().contains_key("x-request-id"), "{method}");
            assert!(!answer.headers().contains_key("content-length"), "{method}");
            assert!(answer.body().is_end_stream(), "{method}: the head ends the stream");
        });
    }
}

#[test]
fn the_gateways_own_refusals_are_told_in_grpc() {
    let service = Service::start();
    let sections = "authenticators: [{ name: main, jwt: { algorithms: HS256, keys: { secret: \"0123456789abcdef0123456789abcdef\" } } }]\n\
                    rate_limits: [{ name: few, limit: 1/min }]\n";
    for (route, code, message_of, status, field) in [
        ("ip: { deny: [127.0.0.0/8] }", Code::PermissionDenied, "Insufficient permissions", 403, None),
        ("authenticate: main", Code::Unauthenticated, "Missing authorization token", 401, Some("www-authenticate")),
        ("rate_limit: few", Code::ResourceExhausted, "Too many requests", 429, Some("retry-after")),
        ("limits: { body: 3B }", Code::ResourceExhausted, "Request body too large", 413, None),
    ] {
        let route =
            if route.starts_with("limits") { route.to_owned() } else { format!("limits: {{ body: off }}, {route}") };
        let gateway = Gateway::start(&format!(
            "listeners: [{{ name: public, address: LISTEN, http2: {{ enabled: true }} }}]\n\
             services: [{{ name: app, endpoints: [\"{}\"], protocol: http2 }}]\n\
             routes: [{{ name: all, service: app, {route} }}]\n{sections}",
            service.endpoint
        ));
        if status == 429 {
            call(&gateway, message("x")).expect("the one that is allowed");
        }
        let refusal = refused(&gateway, message("x"));
        assert_eq!((refusal.code(), refusal.message()), (code, message_of), "{route}");
        assert!(refusal.metadata().contains_key("x-request-id"), "{route}");
        if let Some(field) = field {
            assert!(refusal.metadata().contains_key(field), "{route}: {field}");
        }
        let line = gateway.log_line(if status == 429 { 2 } else { 1 });
        assert_eq!((&line["statusCode"], &line["grpcStatus"]), (&status.into(), &(code as i32).into()), "{route}");
    }
    let gets = gateway(&service.endpoint, "", "match: { methods: [GET] }", "");
    assert_eq!(refused(&gets, message("x")).code(), Code::Unimplemented);
}

#[test]
fn a_service_that_is_not_there_is_unavailable() {
    let nobody = Nobody::new();
    let gateway = gateway(nobody.endpoint(), "", "", "");
    let status = refused(&gateway, message("x"));
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "Bad gateway"));
    assert_eq!(gateway.log_line(1)["statusCode"], 502);
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"14\"}"), 1.0);
}

#[test]
fn a_deadline_is_passed_on_and_kept() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let mut request = message("wait");
    request.set_timeout(Duration::from_millis(400));
    let begun = Instant::now();
    let status = refused(&gateway, request);
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "Gateway timeout"));
    assert!((Duration::from_millis(300)..PATIENCE).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    let head = service.head(0);
    let left = head["grpc-timeout"].to_str().expect("text");
    let us: u64 = left.strip_suffix('u').expect("microseconds").parse().expect("a number");
    assert!((1..=400_000).contains(&us), "{left}");
    settles_at(1, || service.seen.cancelled.load(Ordering::Acquire));
    let line = gateway.log_line(1);
    assert_eq!((&line["statusCode"], &line["grpcStatus"]), (&504.into(), &4.into()));
}

#[test]
fn the_routes_deadline_holds_where_it_is_sooner() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "timeouts: { request: 300ms }", "");
    let mut request = message("wait");
    request.set_timeout(Duration::from_secs(3600));
    assert_eq!(refused(&gateway, request).code(), Code::DeadlineExceeded);
    assert_eq!(refused(&gateway, message("wait")).code(), Code::DeadlineExceeded);
    for index in 0..2 {
        let head = service.head(index);
        let left = head["grpc-timeout"].to_str().expect("text");
        let us: u64 = left.strip_suffix('u').expect("microseconds").parse().expect("a number");
        assert!((1..=300_000).contains(&us), "{left}");
    }
}

#[test]
fn a_retry_is_told_what_is_left() {
    let service = Service::start();
    // Its queue is full: no connection stands within its time.
    let full = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    rustix::net::listen(&full, 0).expect("a short queue");
    let address = full.local_addr().expect("an address");
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    let gateway = gateway(
        &format!("{address}\", \"{}", service.endpoint),
        "balance: round_robin, timeouts: { connect: 500ms }, retries: { backoff: { base: 0s } }",
        "",
        "",
    );
    for _ in 0..2 {
        let mut request = message("hello");
        request.set_timeout(Duration::from_secs(20));
        assert_eq!(call(&gateway, request).expect("an answer").get_ref().as_ref(), b"hello");
    }
    let left = |index| -> u64 {
        let head = service.head(index);
        let text = head["grpc-timeout"].to_str().expect("text");
        text.strip_suffix('u').expect("microseconds").parse().expect("a number")
    };
    let retried = left(0).min(left(1));
    assert!((10_000_000..=19_500_000).contains(&retried), "{retried}");
}

#[test]
fn a_deadline_that_cannot_be_read_is_refused() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    let mut request = message("x");
    request.metadata_mut().insert("grpc-timeout", "soon".parse().expect("a value"));
    let status = refused(&gateway, request);
    assert_eq!((status.code(), status.message()), (Code::Internal, "Malformed grpc-timeout"));
    assert_eq!(service.seen.heads.lock().expect("a list").len(), 0);
}

#[test]
fn a_client_that_lets_go_ends_the_call_at_the_service() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    on_runtime(async {
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.server_streaming(message("1000000000"), path("/test.Echo/Count"), Raw).await;
        let mut messages = answer.expect("an answer").into_inner();
        messages.message().await.expect("a message");
        drop(messages);
        let end = Instant::now() + PATIENCE;
        while service.seen.cancelled.load(Ordering::Acquire) == 0 {
            assert!(Instant::now() < end, "the call goes on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(unary(&mut client, message("x")).await.expect("an answer").into_inner(), "x");
    });
    gateway.log_line(2);
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"1\"}"), 1.0);
    gateway.expect_idle();
}

#[test]
fn a_service_that_dies_within_a_call_ends_it_with_an_error() {
    let mut service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    on_runtime(async {
        let (say, said) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
        let said = tokio_stream::wrappers::UnboundedReceiverStream::new(said);
        let mut client = connect(&gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.streaming(Request::new(said), path("/test.Echo/Chat"), Raw).await;
        let mut heard = answer.expect("an answer").into_inner();
        say.send(Bytes::from_static(b"one")).expect("a receiver");
        assert_eq!(heard.message().await.expect("a message").expect("not the end"), "one");
        service.stop();
        let status = heard.message().await.expect_err("an error");
        // Its client takes that for INTERNAL, but for `tonic` over a connection of its own.
        assert!(format!("{status:?}").contains("INTERNAL_ERROR"), "{status:?}");
    });
    assert_eq!(gateway.log_line(1)["grpcStatus"], 13);
}

#[test]
fn many_calls_at_a_time_share_few_connections() {
    let service = Service::start();
    let gateway = gateway(&service.endpoint, "", "", "");
    on_runtime(async {
        let client = connect(&gateway).await;
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    for index in 0..20 {
                        let text = format!("{index}");
                        let answer = unary(&mut client, Request::new(text.clone().into())).await.expect("an answer");
                        assert_eq!(answer.into_inner(), text);
                    }
                })
            })
            .collect();
        for call in calls {
            call.await.expect("a task");
        }
    });
    let endpoint = format!("{{service=\"app\",endpoint=\"{}\"}}", service.endpoint);
    assert_eq!(gateway.metric(&format!("gateway_endpoint_open_connections{endpoint}")), 1.0);
    gateway.log_line(64 * 20);
    assert_eq!(gateway.metric("gateway_grpc_requests_total{service=\"app\",grpc_status=\"0\"}"), 1280.0);
}
