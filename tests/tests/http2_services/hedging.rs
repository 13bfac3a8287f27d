//! Hedges between services of HTTP/2.

use super::*;

/// A gateway before these services, which take turns, with a hedge after this time.
fn before(services: [&Service; 2], after: &str) -> ringway_tests::Gateway {
    let endpoints = services.map(|service| format!("\"{}\"", service.endpoint)).join(", ");
    ringway_tests::Gateway::start(&format!(
        "services: [{{ name: app, protocol: http2, endpoints: [{endpoints}], balance: round_robin }}]\n\
         routes: [{{ name: hedged, service: app, retries: {{ hedge: {{ after: {after} }} }} }}]\n"
    ))
}

#[test]
fn a_stream_that_is_given_up_is_reset_and_its_connection_goes_on() {
    // Every other request there waits for its reset.
    let slow = Service::start(|mut call| async move {
        match call.index % 2 {
            0 => call.expect_reset().await,
            _ => call.answer(Response::builder(), "slow"),
        }
    });
    let quick = Service::ok();
    let gateway = before([&slow, &quick], "50ms");
    let mut client = gateway.connect();
    let texts: Vec<String> = (0..12).map(|_| client.get("/").text()).collect();
    assert_eq!(texts.iter().filter(|text| *text == "slow").count(), 3, "{texts:?}");
    settles_at(vec![Reason::CANCEL; 3], || slow.resets());
    assert_eq!((slow.connections(), quick.connections(), slow.open()), (1, 1, 1));
    assert_eq!(gateway.metric("gateway_hedges_total{service=\"app\",outcome=\"won\"}"), 3.0);
    for service in [&slow, &quick] {
        let of = format!("{{service=\"app\",endpoint=\"{}\"}}", service.endpoint);
        settles_at([0.0, 1.0], || {
            ["in_flight", "idle_connections"].map(|name| gateway.metric(&format!("gateway_endpoint_{name}{of}")))
        });
    }
}

#[test]
fn bodies_of_answers_come_whole_from_whoever_is_quicker() {
    let slow = || {
        Service::start(|mut call| async move {
            let (body, _) = call.body().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            let mut stream = call.begin(Response::builder(), false);
            let _ = send_all(&mut stream, Bytes::from(body.repeat(20_000)), &call.shared).await;
            let _ = stream.send_data(Bytes::new(), true);
        })
    };
    let services = [slow(), slow()];
    let gateway = before([&services[0], &services[1]], "20ms");
    let mut client = gateway.connect();
    for _ in 0..4 {
        let answer = client.ask("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello");
        assert_eq!((answer.status(), answer.body.len()), (200, 100_000));
    }
    assert_eq!(services.each_ref().map(|service| service.requests()), [4, 4]);
}
