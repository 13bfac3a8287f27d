//! Where endpoints are found: what is taken, and what is said of what is not.

mod common;

use common::compiled;
use ringway_config::snapshot::{DiscoverySource, EtcdServer};

const REDIS: &str = "redis: { url: \"redis://127.0.0.1:6379\" }\n";

fn with(name: &str, discovery: &str, more: &str) -> String {
    format!(
        "listeners: [{{ name: public, address: \"127.0.0.1:3000\" }}]\n\
         services: [{{ name: \"{name}\", discovery: {{ {discovery} }} }}]\n{more}"
    )
}

fn source(name: &str, discovery: &str, more: &str) -> DiscoverySource {
    let snapshot = compiled(&with(name, discovery, more)).unwrap();
    snapshot.services[0].discovery.clone().unwrap().source
}

#[test]
fn a_service_is_called_in_the_registry_as_it_is_here_unless_it_says() {
    for (discovery, called) in [("registry: {}", "app"), ("registry: { service: \"shop:app\" }", "shop:app")] {
        let DiscoverySource::Registry { name, place } = source("app", discovery, REDIS) else { panic!("a registry") };
        assert_eq!((&*name, &*place.key), (called, &*format!("ringway:registry:{called}")));
    }
}

#[test]
fn etcd_is_taken_as_it_is_written() {
    let etcd =
        "etcd: { endpoints: [\"http://a:1\", \"https://b\"], prefix: /x/, user: u, password: \"${env:SECRET}\" }";
    let DiscoverySource::Etcd(etcd) = source("app", etcd, "") else { panic!("etcd") };
    let of_server = |server: &EtcdServer| {
        let (url, tls) = (&server.url, &server.tls);
        (url.host().to_owned(), url.port(), tls.as_ref().map(|tls| tls.name.to_str().into_owned()))
    };
    let servers: Vec<_> = etcd.servers.iter().map(of_server).collect();
    assert_eq!(servers, [("a".into(), 1, None), ("b".into(), 443, Some("b".into()))]);
    let login = etcd.login.as_ref().unwrap();
    assert_eq!((&*etcd.prefix, &*login.user, &*login.password), ("/x/", "u", "hunter2"));
    assert!(!format!("{etcd:?}").contains("hunter2"));
}

#[test]
fn what_is_wrong_is_said() {
    let tls = "registry: {} }, tls: { insecure_skip_verify: true";
    for (name, discovery, more, said) in [
        ("app", "", "", "exactly one of `dns`, `file`, `registry` and `etcd` says where endpoints are found"),
        ("app", "file: a, registry: {}", REDIS, "exactly one of"),
        ("app", "registry: {}", "", "endpoints that register themselves in Redis need the section `redis`"),
        ("my app", "registry: {}", REDIS, "`my app` cannot be a name in the registry"),
        ("app", "registry: { service: \"a b\" }", REDIS, "letters, digits and `-._:`"),
        ("app", tls, REDIS, "say `server_name` in the service's `tls`"),
        ("app", "etcd: { endpoints: [], prefix: a }", "", "the list is empty"),
        ("app", "etcd: { endpoints: \"http://a/x\", prefix: a }", "", "the URL of an etcd server has no path"),
        ("app", "etcd: { endpoints: \"a:2379\", prefix: a }", "", "an `http://` or `https://` URL"),
        ("app", "etcd: { endpoints: \"http://a\", prefix: \"\" }", "", "a prefix has from 1 to 1024 bytes"),
        ("app", "etcd: { endpoints: \"http://a\", prefix: a, user: u }", "", "the key `password` is missing"),
        ("app", "etcd: { endpoints: \"http://a\", prefix: a, password: p }", "", "the key `user` is missing"),
        ("app", "etcd: { endpoints: \"http://a\", prefix: a, tls: {} }", "", "`tls` has no effect without TLS"),
        ("app", "etcd: { endpoints: \"https://a\", prefix: a, tls: { ca: none } }", "", "none"),
        (
            "app",
            "etcd: { endpoints: \"https://a\", prefix: a, tls: { certificate: c } }",
            "",
            "the key `key` is missing: the private key of `certificate`",
        ),
    ] {
        let errors = compiled(&with(name, discovery, more)).unwrap_err().to_string();
        assert!(errors.contains(said), "{discovery}: {errors}");
        assert!(errors.ends_with("1 error"), "{discovery}: {errors}");
    }
}
