//! Calls that fail, and how their service is judged by it: breakers, ejection and further tries go by `grpc-status`.

use std::time::Duration;

use ringway_tests::{Gateway, settles_at};
use tonic::{Code, Status};

use super::echo::*;

fn retries(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&format!("gateway_retries_total{{service=\"app\",outcome=\"{outcome}\"}}"))
}

fn state(gateway: &Gateway) -> f64 {
    gateway.metric("gateway_circuit_breaker_state{service=\"app\"}")
}

/// Asks for so many messages, and how that ended.
fn count(gateway: &Gateway, messages: &'static str) -> Status {
    on_runtime(async {
        let mut client = connect(gateway).await;
        client.ready().await.expect("a connection");
        let answer = client.server_streaming(message(messages), path("/test.Echo/Count"), Raw).await;
        let mut stream = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status,
        };
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("an end without an error"),
                Err(status) => return status,
            }
        }
    })
}

const BREAKER: &str = "circuit_breaker: { min_requests: 4, consecutive_failures: off, open: 1h }";

#[test]
fn calls_that_fail_open_the_breaker_by_head_and_by_trailers() {
    for by_trailers in [false, true] {
        let service = Service::start();
        let gateway = gateway(&service.endpoint, BREAKER, "", "");
        let ask = || match by_trailers {
            false => refused(&gateway, message("x")).code(),
            true => count(&gateway, "0").code(),
        };
        // What says nothing of the service.
        service.seen.fail(8, Code::NotFound);
        (0..8).for_each(|_| assert_eq!(ask(), Code::NotFound));
        settles_at(8, || gateway.log_lines().len());
        assert_eq!(state(&gateway), 0.0, "{by_trailers}");
        service.seen.fail(100, Code::Unavailable);
        for index in 0..8 {
            assert_eq!(ask(), Code::Unavailable);
            settles_at(9 + index, || gateway.log_lines().len());
        }
        assert_eq!(state(&gateway), 2.0, "half of sixteen: {by_trailers}");
        assert_eq!(ask(), Code::Unavailable);
        assert_eq!(service.seen.heads.lock().expect("a list").len(), 16, "the last one was not asked for");
    }
}

#[test]
fn failures_in_a_row_count_in_trailers_too_and_a_stream_that_went_well_breaks_the_row() {
    let service = Service::start();
    let breaker = "circuit_breaker: { error_share: off, consecutive_failures: 3, open: 1h }";
    let gateway = gateway(&service.endpoint, breaker, "", "");
    for _ in 0..3 {
        service.seen.fail(2, Code::Internal);
        assert_eq!([(); 2].map(|()| count(&gateway, "0").code()), [Code::Internal; 2]);
        assert_eq!(count(&gateway, "3").code(), Code::OutOfRange);
    }
    gateway.log_line(9);
    assert_eq!(state(&gateway), 0.0);
    service.seen.fail(3, Code::Internal);
    (0..3).for_each(|_| assert_eq!(count(&gateway, "0").code(), Code::Internal));
    settles_at(2.0, || state(&gateway));
    assert!(gateway.stderr().contains("3 requests failed in a row"), "{}", gateway.stderr());
}

#[test]
fn which_statuses_are_failures_is_configured() {
    let service = Service::start();
    for (keys, code, opens) in [
        ("grpc_failures: [resource_exhausted]", Code::ResourceExhausted, true),
        ("grpc_failures: resource_exhausted", Code::Unavailable, false),
        ("grpc_failures: off", Code::Unavailable, false),
        ("retry_stale: true", Code::Unknown, true),
        ("retry_stale: true", Code::Unimplemented, false),
        ("retry_stale: true", Code::DeadlineExceeded, true),
    ] {
        let gateway = gateway(&service.endpoint, &format!("{BREAKER}, {keys}"), "", "");
        service.seen.fail(4, code);
        (0..4).for_each(|_| assert_eq!(refused(&gateway, message("x")).code(), code));
        gateway.log_line(4);
        assert_eq!(state(&gateway) == 2.0, opens, "{keys} {code:?}");
    }
    // The time that a client gives its call is its own affair.
    let gateway = gateway(&service.endpoint, BREAKER, "", "");
    service.seen.fail(4, Code::DeadlineExceeded);
    for _ in 0..4 {
        let mut request = message("x");
        request.set_timeout(Duration::from_secs(60));
        assert_eq!(refused(&gateway, request).code(), Code::DeadlineExceeded);
    }
    gateway.log_line(4);
    assert_eq!(state(&gateway), 0.0);
}

#[test]
fn an_endpoint_whose_calls_fail_is_ejected() {
    for by_trailers in [false, true] {
        let (bad, good) = (Service::start(), Service::start());
        let endpoints = format!("{}\", \"{}", bad.endpoint, good.endpoint);
        let gateway = gateway(&endpoints, "balance: round_robin, outlier_ejection: {}", "", "");
        bad.seen.fail(1000, Code::Unavailable);
        let ask = || match by_trailers {
            false => call(&gateway, message("x")).map_or_else(|status| status.code(), |_| Code::Ok),
            true => count(&gateway, "0").code(),
        };
        let mut failed = 0;
        for _ in 0..20 {
            failed += usize::from(ask() == Code::Unavailable);
        }
        assert_eq!(failed, 5, "{by_trailers}");
        let ejected = format!("gateway_endpoint_ejected{{service=\"app\",endpoint=\"{}\"}}", bad.endpoint);
        settles_at(1.0, || gateway.metric(&ejected));
    }
}

#[test]
fn calls_that_were_refused_at_their_head_are_tried_again_where_that_is_asked() {
    let service = Service::start();
    let keys =
        "retries: { on: [grpc_unavailable], body: 4KiB, budget: { min_per_second: 1000 }, backoff: { base: 0s } }";
    let gateway = gateway(&service.endpoint, keys, "", "");
    for _ in 0..20 {
        service.seen.fail(1, Code::Unavailable);
        assert_eq!(call(&gateway, message("hello")).expect("an answer").get_ref().as_ref(), b"hello");
        assert_eq!(service.seen.heads.lock().expect("a list").len() % 2, 0);
    }
    settles_at(20.0, || retries(&gateway, "success"));
    gateway.log_line(20);
    assert!(gateway.log_lines().iter().all(|line| (&line["attempts"], &line["grpcStatus"]) == (&2.into(), &0.into())));

    // Another status, and what comes in trailers, are the client's.
    service.seen.fail(1, Code::Internal);
    assert_eq!(refused(&gateway, message("x")).code(), Code::Internal);
    service.seen.fail(1, Code::Unavailable);
    assert_eq!(count(&gateway, "1").code(), Code::Unavailable);
    assert_eq!(retries(&gateway, "success"), 20.0);
}
