//! The harness at work: what all other tests rely on.

use ringway_tests::{Backend, Gateway, PATIENCE};

#[test]
fn a_request_goes_through_and_leaves_its_traces() {
    let backend = Backend::ok();
    let mut gateway = Gateway::to(backend.endpoint());
    let answer = gateway.get("/hello?x=1");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
    assert_eq!(backend.request().start, "GET /hello?x=1 HTTP/1.1");

    let line = gateway.log_line(1);
    assert_eq!((line["path"].as_str(), line["statusCode"].as_u64()), (Some("/hello"), Some(200)));
    assert_eq!(gateway.metric("gateway_requests_total{route=\"all\",status=\"200\"}"), 1.0);
    assert_eq!(gateway.admin("/ready").0, 200);
    gateway.expect_idle();

    gateway.terminate();
    assert!(gateway.wait_exit(PATIENCE).success(), "{}", gateway.stderr());
}

#[test]
fn a_configuration_is_replaced_while_it_runs() {
    let gateway = Gateway::start("routes: [{ respond: { text: one } }]\n");
    assert_eq!(gateway.get("/").text(), "one");
    assert!(gateway.replace_config("routes: [{ respond: { text: two } }]\n"));
    assert_eq!(gateway.get("/").text(), "two");
    assert!(!gateway.replace_config("routes: [{ respond: { txt: three } }]\n"));
    assert_eq!(gateway.get("/").text(), "two");
}
