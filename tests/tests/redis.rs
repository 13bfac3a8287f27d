//! The connection to Redis: every kind of server, every way to lose it.

use std::time::Duration;

use ringway_config::{Snapshot, Source, compile, snapshot};
use ringway_control::redis::Redis as Link;
use ringway_tests::redis::{Redis, RedisSetup, Slow};
use ringway_tests::{Backend, Gateway, PATIENCE, eventually, settles_at};

fn compiled(redis: &str) -> Snapshot {
    let text = format!("listeners: [{{ name: a, address: \"127.0.0.1:1\" }}]\nredis: {{ {redis} }}\n");
    let source = Source { name: "f".into(), text };
    compile(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}"))
}

fn settings(redis: &str) -> Option<snapshot::Redis> {
    compiled(redis).redis
}

fn link(url: &str) -> Link {
    Link::start(settings(&format!("url: \"{url}\""))).unwrap()
}

fn connected(link: &Link) -> bool {
    link.stats().connected.get() == 1
}

fn count(server: &Redis) -> String {
    server.ask(&["ZCARD", "ringway:instances"])
}

#[test]
fn instances_count_each_other_and_forget_the_dead() {
    let server = Redis::start();
    let links: Vec<Link> = (0..3).map(|_| link(&server.url())).collect();
    for link in &links {
        settles_at(3, || link.stats().instances.get());
    }
    // One that died without a word, three seconds ago and more.
    let time = server.ask(&["TIME"]);
    let now: u64 = time.lines().next().unwrap().parse().unwrap();
    server.ask(&["ZADD", "ringway:instances", &(now * 1000 - 2_500).to_string(), "dead"]);
    settles_at(4, || links[0].stats().instances.get());
    settles_at(3, || links[0].stats().instances.get());
    // One whose clock is in the future does not stay either.
    server.ask(&["ZADD", "ringway:instances", &(now * 1000 + 60_000).to_string(), "future"]);
    settles_at("3".to_owned(), || count(&server));
    let mut links = links.into_iter();
    links.next().unwrap().stop();
    assert_eq!(count(&server), "2");
    for link in links {
        settles_at(2, || link.stats().instances.get());
        link.stop();
    }
    assert_eq!(count(&server), "0");
}

#[test]
fn password_and_tls() {
    let server = Redis::start_with(RedisSetup { password: Some("hunter2"), tls: true, config: "" });
    let ca = server.ca();
    let with = |url: &str, ca: &str| Link::start(settings(&format!("url: \"{url}\", tls: {{ {ca} }}"))).unwrap();
    let ca = format!("ca: \"{}\"", ca.display());
    let good = with(&server.url(), &ca);
    eventually(PATIENCE, || connected(&good));
    good.stop();
    // Neither a wrong password, nor an authority that is not trusted, nor a connection in the clear.
    let wrong = server.url().replace("hunter2", "hunter3");
    for (url, ca) in [(&wrong, ca.as_str()), (&server.url(), ""), (&server.url().replace("rediss", "redis"), "")] {
        let bad = with(url, ca);
        eventually(PATIENCE, || bad.stats().connect_errors.get() > 1);
        assert!(!connected(&bad), "{url} {ca}");
        bad.stop();
    }
    assert_eq!(count(&server), "0");
}

#[test]
fn a_server_that_is_not_there_yet() {
    let mut server = Redis::start();
    server.kill();
    let link = link(&server.url());
    eventually(PATIENCE, || link.stats().connect_errors.get() > 2);
    assert!(!connected(&link));
    server.restart();
    eventually(Duration::from_secs(2), || connected(&link));
    link.stop();
}

#[test]
fn killed_restarted_frozen_and_flushed() {
    let mut server = Redis::start();
    let link = link(&server.url());
    eventually(PATIENCE, || connected(&link));
    server.restart();
    eventually(Duration::from_secs(4), || link.stats().reconnects.get() == 1 && connected(&link));
    server.stop();
    eventually(Duration::from_secs(4), || !connected(&link));
    server.cont();
    eventually(Duration::from_secs(2), || connected(&link));
    // The heartbeat comes back by itself, its script too.
    let errors = link.stats().errors.get();
    server.flush();
    settles_at("1".to_owned(), || count(&server));
    settles_at(errors + 1, || link.stats().errors.get());
    assert!(connected(&link));
    link.stop();
}

#[test]
fn another_server_after_a_reload() {
    let (old, new) = (Redis::start(), Redis::start());
    let link = link(&old.url());
    settles_at("1".to_owned(), || count(&old));
    link.set(settings(&format!("url: \"{}\"", old.url())));
    link.set(settings(&format!("url: \"{}\", prefix: other", new.url())));
    settles_at("1".to_owned(), || new.ask(&["ZCARD", "other:instances"]));
    assert_eq!(count(&old), "0");
    assert_eq!(link.stats().reconnects.get(), 0);
    link.set(None);
    settles_at("0".to_owned(), || new.ask(&["ZCARD", "other:instances"]));
    assert!(!connected(&link) && link.stats().server().is_none());
    link.stop();
}

#[test]
fn sentinels_name_the_next_master() {
    let mut master = Redis::start();
    let replica = Redis::replica_of(master.port());
    let sentinel = Redis::sentinel_of(master.port());
    eventually(PATIENCE, || sentinel.ask(&["SENTINEL", "MASTER", "main"]).contains("num-slaves\n1"));
    eventually(PATIENCE, || replica.ask(&["INFO", "replication"]).contains("master_link_status:up"));
    let link = link(&format!("redis+sentinel://127.0.0.1:1,127.0.0.1:{}/main", sentinel.port()));
    settles_at("1".to_owned(), || count(&master));
    master.kill();
    eventually(PATIENCE, || replica.ask(&["INFO", "replication"]).contains("role:master"));
    eventually(PATIENCE, || connected(&link) && count(&replica) == "1");
    assert!(link.stats().reconnects.get() > 0);
    // Demoted behind the gateway's back: `READONLY` tells.
    let other = Redis::start();
    let direct = Link::start(settings(&format!("url: \"{}\", prefix: d", other.url()))).unwrap();
    eventually(PATIENCE, || connected(&direct));
    other.ask(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]);
    eventually(PATIENCE, || !connected(&direct));
    other.ask(&["REPLICAOF", "NO", "ONE"]);
    eventually(PATIENCE, || connected(&direct));
    direct.stop();
    link.stop();
}

#[test]
fn clusters_are_followed() {
    let nodes = Redis::cluster();
    let link = link(&format!("redis+cluster://127.0.0.1:{}", nodes[1].port()));
    eventually(PATIENCE, || connected(&link) && link.stats().instances.get() == 1);
    nodes.iter().for_each(Redis::flush);
    let listed = || nodes.iter().any(|node| node.try_ask(&["EXISTS", "ringway:instances"]).as_deref() == Some("1"));
    eventually(PATIENCE, listed);
    link.stop();
}

#[test]
fn a_slow_server_is_no_dead_one() {
    let server = Redis::start();
    let slow = Slow::before(server.address());
    slow.set_delay(Duration::from_millis(200));
    let link = link(&format!("redis://{}", slow.address()));
    eventually(PATIENCE, || connected(&link) && link.stats().calls.get() > 2);
    assert_eq!(link.stats().reconnects.get(), 0);
    assert!(link.stats().round_trip.sum_us() >= 2 * 200_000);
    link.stop();
}

#[test]
fn operators_see_it_and_no_password() {
    let backend = Backend::ok();
    let mut server = Redis::start_with(RedisSetup { password: Some("hunter2"), tls: false, config: "" });
    let yaml = format!("{}redis: {{ url: \"{}\" }}\n", Gateway::route_to(backend.endpoint()), server.url());
    let gateway = Gateway::start(&yaml);
    settles_at(1.0, || gateway.metric("gateway_redis_connected"));
    settles_at(1.0, || gateway.metric("gateway_redis_instances"));
    assert!(gateway.metric("gateway_redis_round_trip_seconds_count") >= 0.0);
    let health = gateway.admin("/health").1;
    let shown =
        format!("\"redis\":{{\"server\":\"redis://127.0.0.1:{}\",\"connected\":true,\"instances\":1}}", server.port());
    assert!(health.contains(&shown), "{health}");
    server.kill();
    settles_at(0.0, || gateway.metric("gateway_redis_connected"));
    assert!(gateway.admin("/health").1.contains("\"connected\":false"));
    assert_eq!(gateway.admin("/ready").0, 200);
    assert_eq!(gateway.get("/").head.status(), 200);
    assert!(!gateway.replace_config(&yaml.replace("redis://", "rediz://")));
    for text in [gateway.admin("/config").1, gateway.admin("/health").1, gateway.admin("/metrics").1, gateway.stderr()]
    {
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(gateway.admin("/config").1.contains(":[redacted]@127.0.0.1"));
}
