//! The connection to Redis: every kind of server, every way to lose it.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use ringway_config::snapshot::RedisList;
use ringway_config::{Snapshot, Source, compile, snapshot};
use ringway_control::redis::{Found, Kind, Poll, PollError, Redis as Link};
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
    // One that dies without a word.
    let time = server.ask(&["TIME"]);
    let now: u64 = time.lines().next().unwrap().parse().unwrap();
    server.ask(&["ZADD", "ringway:instances", &(now * 1000).to_string(), "dead"]);
    settles_at(4, || links[0].stats().instances.get());
    settles_at(3, || links[0].stats().instances.get());
    // One whose clock is in the future does not stay either.
    server.ask(&["ZADD", "ringway:instances", &(now * 1000 + 60_000).to_string(), "future"]);
    settles_at("3".to_owned(), || count(&server));
    let mut links = links.into_iter();
    links.next().unwrap().stop();
    assert_eq!(count(&server), "2");
    let links: Vec<Link> = links.collect();
    for link in &links {
        settles_at(2, || link.stats().instances.get());
    }
    links.into_iter().for_each(Link::stop);
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
    eventually(PATIENCE, || link.stats().reconnects.get() > 0 && connected(&link));
    assert_eq!(count(&replica), "1");
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
fn what_others_write_is_read_when_its_version_changes() {
    let mut server = Redis::start();
    let link = link(&server.url());
    let (sender, keys) = mpsc::channel();
    let (other, revoked) = mpsc::channel();
    let servers = settings(&format!("url: \"{}\"", server.url())).unwrap().servers;
    let poll = |kind, key: &str, sender: mpsc::Sender<Result<Found, PollError>>| Poll {
        kind,
        list: RedisList { servers: servers.clone(), key: key.into(), every: Duration::from_millis(20) },
        deliver: Arc::new(move |found| drop(sender.send(found))),
    };
    let get = |receiver: &mpsc::Receiver<Result<Found, PollError>>| receiver.recv_timeout(PATIENCE).unwrap();
    link.poll(vec![poll(Kind::Hash, "ringway:api-keys", sender.clone())]);
    assert_eq!(get(&keys), Ok(Found::Hash(vec![])));
    server.ask(&["HSET", "ringway:api-keys", "partner", "hash"]);
    server.ask(&["INCR", "ringway:api-keys:version"]);
    let content = Found::Hash(vec![(b"partner".to_vec(), b"hash".to_vec())]);
    eventually(PATIENCE, || get(&keys) == Ok(content.clone()));
    // Once it has been read with its version, nothing is read any more.
    eventually(PATIENCE, || get(&keys) == Ok(Found::Unchanged));
    server.ask(&["CONFIG", "RESETSTAT"]);
    eventually(PATIENCE, || server.ask(&["INFO", "commandstats"]).contains("cmdstat_get:"));
    assert!(!server.ask(&["INFO", "commandstats"]).contains("cmdstat_hscan:"));
    // A long list comes in parts, and whole.
    let script = "for i = 1, 5000 do redis.call('HSET', KEYS[1], i, i) end redis.call('INCR', KEYS[1] .. ':version')";
    server.ask(&["EVAL", script, "1", "ringway:api-keys"]);
    let whole = |found: Result<Found, PollError>| match found {
        Ok(Found::Hash(mut members)) => {
            members.sort();
            members.dedup();
            members.len() == 5001
        }
        _ => false,
    };
    eventually(PATIENCE, || whole(get(&keys)));
    // One that is too long is not read.
    let script = "for i = 1, 100000 do redis.call('HSET', KEYS[1], i, i) end redis.call('INCR', KEYS[1] .. ':version')";
    server.ask(&["EVAL", script, "1", "ringway:api-keys"]);
    eventually(PATIENCE, || get(&keys) == Err(PollError::TooMany(100_000)));
    // Another list, while it runs; and never one of another server.
    server.ask(&["SADD", "ringway:revoked", "a"]);
    let elsewhere = settings("url: \"redis://127.0.0.1:1\"").unwrap().servers;
    let mut stranger = poll(Kind::Hash, "ringway:strange", sender);
    stranger.list.servers = elsewhere;
    link.poll(vec![stranger, poll(Kind::Set, "ringway:revoked", other)]);
    assert_eq!(get(&revoked), Ok(Found::Set(vec![b"a".to_vec()])));
    server.restart();
    eventually(PATIENCE, || get(&revoked) == Err(PollError::Down));
    eventually(PATIENCE, || get(&revoked) == Ok(Found::Set(vec![])));
    assert!(keys.try_iter().all(|found| found != Ok(Found::Hash(vec![]))), "the stranger was read");
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
