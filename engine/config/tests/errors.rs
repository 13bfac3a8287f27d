//! Bad files and exactly what is said about them.

mod common;

use common::{compiled, with_basics};
use ringway_config::{compile, load};

fn errors(text: &str) -> String {
    compiled(text).unwrap_err().to_string()
}

/// What is said about a file of which only what follows the listener and the service is bad, without the count.
#[track_caller]
fn said(more: &str, expected: &str) {
    let said = errors(&with_basics(more));
    let (errors, _) = said.rsplit_once('\n').unwrap();
    assert_eq!(errors, expected, "about\n{more}");
}

#[test]
fn all_errors_are_shown_at_once() {
    let text = "\
lisener: []
runtime: { workers: none, ring_entries: 5000, pin: yes }
drain: { notice: 5, timeout: 1m30s }
listeners:
  - name: public
    address: :3000
    trace: w3
    limits: { head: 2MiB, headers: 513 }
services:
  - name: app
    endpoints: [http://app:8080/x, 1.2.3.4:0]
    timeouts: { answer: \"${env:NOPE}\" }
routes:
  - service: apq
  - service: app
    timeouts: { request: 1s, per_try: 2s }
";
    let expected = "\
f:1:1: unknown key `lisener`
    hint: did you mean `listeners`?
f:2:21: expected a whole number from 1 to 1024, or `auto`, found `none`
    hint: did you mean `auto`?
f:2:41: expected a power of two from 256 to 32768, found `5000`
    hint: the next one is `8192`
f:2:52: expected `true` or `false`, found `yes`
    hint: write `true`
f:3:18: expected a duration from 0s to 1h, found `5`
    hint: give it a unit: `5s`, `5ms`
f:3:30: expected a duration from 0s to 1h, found `1m30s`
    hint: durations are one number and a unit: `250ms`, `5s`, `1m`, `1h`
f:6:14: expected an IP address and port, found `:3000`
    hint: write `0.0.0.0:3000` for all IPv4 addresses of this machine
f:7:12: expected one of `w3c`, `b3`, `b3multi`, `off`, found `w3`
    hint: did you mean `w3c`?
f:8:21: expected a size from 1KiB to 1MiB, found `2MiB`
f:8:36: expected a whole number from 1 to 512, found `513`
f:11:17: expected `host:port` or `unix:/path`, found `http://app:8080/x`
    hint: without the scheme and the path: `app:8080`
f:11:36: expected `host:port` or `unix:/path`, found `1.2.3.4:0`
    hint: a port is from 1 to 65535
f:12:25: the environment variable `NOPE` is not set
    hint: set it, or give a default: `${env:NAME:-default}`
f:14:14: no service is named `apq`
    hint: did you mean `app`?
f:16:15: `per_try` is longer than the whole `request` may take
15 errors";
    assert_eq!(errors(text), expected);
}

#[test]
fn protocols_that_a_connection_may_not_change_to() {
    let text = "\
listeners: [{ name: public, address: 0.0.0.0:80 }]
services: [{ name: app, endpoints: [\"1.2.3.4:80\"] }]
routes:
  - { service: app, upgrades: [websocket, H2C] }
  - { match: { path: /a }, service: app, upgrades: a b }
";
    let expected = "\
f:4:43: expected the name of a protocol, found `H2C`
    hint: requests inside of it would pass unseen: it is never upgraded to
f:5:52: expected the name of a protocol, or `off`, found `a b`
    hint: such as `websocket`, or `name/version`
2 errors";
    assert_eq!(errors(text), expected);
    let text = "\
listeners: [{ name: public, address: 0.0.0.0:80 }]
routes: [{ respond: { text: b }, upgrades: websocket }]
";
    assert!(
        errors(text).contains("f:2:44: `upgrades` has no effect in a route without a `service`"),
        "{}",
        errors(text)
    );
}

#[test]
fn lists_in_redis() {
    said(
        "authenticators:\n  - name: a\n    api_keys: { redis: {} }\n  - name: b\n    jwt:\n      algorithms: HS256\n      \
         keys: { secret: 0123456789abcdef0123456789abcdef }\n      revoked: { redis: { key: x } }\n",
        "\
f:7:24: API keys in Redis need the section `redis`, which is missing
    hint: at the top level: `redis: { url: \"redis://127.0.0.1:6379\" }`
f:12:25: revoked tokens in Redis need the section `redis`, which is missing
    hint: at the top level: `redis: { url: \"redis://127.0.0.1:6379\" }`",
    );
    said(
        "redis: { url: \"redis://a\" }\nauthenticators:\n  - { name: a, api_keys: {} }\n  - { name: b, api_keys: { redis: { key: \"a b\" } } }\n  \
         - { name: c, api_keys: { redis: { every: 1ms } } }\n  - { name: d, api_keys: { file: x, redis: {} } }\n",
        "\
f:7:26: there is no place to take API keys from
    hint: `file: PATH` or `redis: {}`
f:8:42: expected a key in Redis: letters, digits and `-._:`, found `a b`
    hint: from 1 to 128 of them
f:9:44: expected a duration from 100ms to 1h, found `1ms`
f:10:44: API keys come from one place
    hint: make it two authenticators",
    );
}

#[test]
fn what_is_no_configuration_at_all() {
    for (text, expected) in [
        ("", "f: the file is empty\n    hint: start from configs/quickstart.yaml\n1 error"),
        ("# nothing\n", "f: the file is empty\n    hint: start from configs/quickstart.yaml\n1 error"),
        ("hello", "f:1:1: expected a section of keys, found `hello`\n    hint: `listeners: …`\n1 error"),
        ("- a\n", "f:1:1: expected a section of keys, found a list\n    hint: `listeners: …`\n1 error"),
        ("admin: off\n", "f:1:1: the key `listeners` is missing: a list, each a section of keys\n1 error"),
        (
            "listeners: []\n",
            "f:1:12: the gateway needs at least one listener\n    hint: `- { name: public, address: 127.0.0.1:3000 }`\n1 error",
        ),
        ("listeners:\n", "f:1:10: expected a list, each a section of keys, found nothing\n1 error"),
        (
            "listeners:\n\t- name: x\n",
            "f:2:2: not valid YAML: tabs disallowed within this context (block indentation)\n    hint: YAML is indented with spaces, never with tabs\n1 error",
        ),
        (
            "services:\n  - { name: a, endpoints: ${env:A} }\n",
            "f:2:28: not valid YAML: while parsing a flow mapping, did not find expected ',' or '}'\n    hint: within `{…}` and `[…]` a value with braces needs quotes: `\"${env:NAME}\"`, `\"/orders/{id}\"`\n1 error",
        ),
    ] {
        assert_eq!(errors(text), expected, "about {text:?}");
    }
    assert_eq!(compile(&[], &|_| None).unwrap_err().count(), 1);
}

#[test]
fn listeners_and_names() {
    let text = "\
admin: { address: 127.0.0.1:1 }
listeners:
  - { name: a, address: \"127.0.0.1:1\" }
  - { name: a, address: \"127.0.0.1:2\", via: a b }
  - { name: c, address: \"127.0.0.1:2\" }
  - { name: d, address: \"127.0.0.1:2\", trusted_proxies: [10.0.0.0/33] }
  - { address: \"127.0.0.1:3\" }
";
    let expected = "\
f:3:25: `admin` has the address `127.0.0.1:1` too
    hint: keep operators and clients apart
f:4:13: `a` is the name of two listeners, first at f:3:13
f:4:45: expected a word of letters, digits and `-._`, found `a b`
f:6:58: expected an IP network or address, found `10.0.0.0/33`
    hint: such as `10.0.0.0/8` or `192.0.2.7`
f:7:5: the key `name` is missing: a name
5 errors";
    assert_eq!(errors(text), expected);
    let text = "listeners:\n  - { name: a, address: \"127.0.0.1:2\" }\n  - { name: b, address: \"127.0.0.1:2\" }\n";
    let expected = "f:3:25: two listeners have the address `127.0.0.1:2`, first at f:2:25\n1 error";
    assert_eq!(errors(text), expected);
}

#[test]
fn routes() {
    said("routes:\n  - {}\n", "f:6:5: a route has exactly one of `service`, `redirect` and `respond`: it has none");
    said(
        "routes:\n  - service: app\n    redirect: { to: /x }\n",
        "f:6:5: a route has exactly one of `service`, `redirect` and `respond`: it has `service` and `redirect`",
    );
    said(
        "routes:\n  - service: app\n    listeners: [publik]\n",
        "f:7:17: no listener is named `publik`\n    hint: did you mean `public`?",
    );
    said(
        "routes:\n  - service: app\n    listeners: []\n",
        "f:7:16: the list is empty\n    hint: leave the key out, or name at least one",
    );
    said(
        "routes:\n  - service: app\n    match: { path: /a, prefix: /b }\n",
        "f:7:32: a route has a `path` or a `prefix`, not both",
    );
    said(
        "routes:\n  - service: app\n    match: { methods: get, headers: { \"a b\": x, c: { prefix: x, exact: y } } }\n",
        "f:7:23: expected a method, found `get`\n    hint: did you mean `GET`?\nf:7:39: expected a header name, found `a b`\nf:7:52: expected exactly one of `exact`, `prefix`, `present`, `absent`",
    );
    said(
        "routes:\n  - { name: a, service: app }\n  - { name: a, service: app, priority: 1 }\n  - { name: unmatched, service: app, priority: 2 }\n",
        "f:7:13: `a` is the name of two routes, first at f:6:13\nf:8:13: `unmatched` is what requests without a route are counted under",
    );
    said(
        "routes:\n  - service: app\n    match: { prefix: /api }\n    rewrite: { strip_prefix: /ap }\n",
        "f:8:30: `/ap` is not in front of the route's path `/api`\n    hint: strip what `match` asks for",
    );
    said(
        "routes:\n  - service: app\n    rewrite: { strip_prefix: / }\n",
        "f:7:30: expected a path of one or more segments without parameters\n    hint: such as `/api`",
    );
    said(
        "routes:\n  - service: app\n    host: \"http://x\"\n    rewrite: {}\n",
        "f:7:11: expected `keep`, `endpoint` or a host name, found `http://x`\n    hint: such as `api.example.com` or `api.example.com:8080`",
    );
}

#[test]
fn routes_that_the_router_refuses() {
    said(
        "routes:\n  - service: app\n    match: { path: /a }\n  - service: app\n    match: { path: /a }\n",
        "f:8:5: the route matches the same requests as the one at f:6:5\n    hint: change its `match`, or give one of them a higher `priority`",
    );
    said(
        "routes:\n  - service: app\n    match: { host: [a.example, \"http://b\"] }\n",
        "f:7:32: `http://b` is not a host name\n    hint: `api.example.com` or `*.example.com`, without scheme and port",
    );
    said("routes:\n  - service: app\n    match: { path: a }\n", "f:7:20: a path starts with `/`");
    said(
        "routes:\n  - service: app\n    match: { path: \"/a/{id}/{id}\" }\n",
        "f:7:20: the parameter `id` occurs twice",
    );
}

#[test]
fn templates() {
    said(
        "routes:\n  - service: app\n    match: { path: \"/a/{id}\" }\n    rewrite: { path: \"/b/{ix}\" }\n    request_headers: { set: { x-a: \"${request.idd}\", X-A: \"${path.id}\" } }\n",
        "f:8:22: `{ix}` is not a parameter of the route's path\n    hint: did you mean `id`?\nf:9:36: unknown variable `${request.idd}`\n    hint: did you mean `request.id`?\nf:9:54: the header `x-a` is set twice\n    hint: names have no case",
    );
    said(
        "routes:\n  - service: app\n    rewrite: { path: \"b?c\" }\n    request_headers: { remove: [Host, TE] }\n    response_headers: { add: { Connection: [close, x] } }\n",
        "f:7:22: a path starts with `/`\nf:7:22: '?' has no place in a path\n    hint: the query of the request is kept as it is\nf:8:33: `host` is not changed here\n    hint: the route's key `host`: `keep`, `endpoint` or a name\nf:8:39: `te` is the gateway's own: it belongs to one connection\nf:9:32: `connection` is the gateway's own: it belongs to one connection",
    );
}

#[test]
fn answers() {
    said(
        "routes:\n  - redirect: { to: ftp://x, status: 304 }\n",
        "f:6:21: a redirect leads to `http://…`, `https://…` or a path\nf:6:38: `304` does not redirect\n    hint: one of 301, 302, 303, 307 and 308",
    );
    said("routes:\n  - respond: { status: 199 }\n", "f:6:24: expected a whole number from 200 to 599, found `199`");
    said(
        "routes:\n  - respond: { text: x, body: y }\n    rewrite: { path: /x }\n",
        "f:6:14: an answer has at most one of `json`, `text` and `body`\nf:7:14: `rewrite` has no effect in a route without a `service`",
    );
    said(
        "routes:\n  - respond: { status: 204, text: x }\n    host: keep\n    timeouts: {}\n",
        "f:6:24: an answer with status 204 has no body\nf:7:11: `host` has no effect in a route without a `service`\nf:8:15: `timeouts` has no effect in a route without a `service`",
    );
}

#[test]
fn the_process() {
    said(
        "runtime: { cores: [1, 1], workers: 3, driver: iouring }\nlimits: { connections_per_ip: 0 }\naccess_log: /x\nadmin: { adress: x }\naudit_log: none\n",
        "f:5:47: expected one of `auto`, `io_uring`, `epoll`, found `iouring`\n    hint: did you mean `io_uring`?\nf:6:31: expected a whole number from 1 to 10000000, or `off`, found `0`\n    hint: did you mean `off`?\nf:7:13: expected `stdout`, `off` or `file: PATH`, found `/x`\n    hint: a file is written `access_log: { file: PATH }`\nf:8:10: unknown key `adress`\n    hint: did you mean `address`?\nf:9:12: expected `stderr`, `stdout`, `off` or `file: PATH`, found `none`\n    hint: a file is written `audit_log: { file: PATH }`",
    );
    said(
        "runtime: { cores: [1, 1], workers: 3 }\n",
        "f:5:23: core 1 is named twice\nf:5:36: 3 workers do not fit on the 2 of `cores`\n    hint: leave `workers` out: one for each of `cores`",
    );
    said("runtime: { cores: [1], pin: false }\n", "f:5:19: `cores` has no effect with `pin: false`");
}

#[test]
fn http_2_to_services() {
    said(
        "  - { name: a, endpoints: \"127.0.0.1:1\", http2: { connections: 2 } }\n",
        "f:5:49: the service speaks HTTP/1.1: what is said of HTTP/2 does not count\n    hint: say `protocol: http2` as well",
    );
    said(
        "  - { name: a, endpoints: \"127.0.0.1:1\", protocol: grpc, http2: { connections: 0, max_concurrent_streams: 5000 } }\n",
        "f:5:52: expected one of `http1`, `http2`, found `grpc`\n\
         f:5:80: expected a whole number from 1 to 1024, found `0`\n\
         f:5:107: expected a whole number from 1 to 1000, found `5000`",
    );
    said(
        "  - { name: a, endpoints: \"127.0.0.1:1\", protocol: http2, http2: { keepalive: { interval: 5s, timeout: 6s } } }\n",
        "f:5:79: `timeout` is longer than `interval`\n    \
         hint: who is there answers at once",
    );
    said(
        "  - { name: a, endpoints: \"127.0.0.1:1\", protocol: http2, proxy_protocol: v1 }\n",
        "f:5:52: the streams of a connection are of many clients: `proxy_protocol` cannot say of whom\n    \
         hint: `protocol: http1`, or leave `proxy_protocol` out",
    );
}

#[test]
fn an_error_in_a_service_does_not_hide_its_routes_nor_make_more_errors() {
    let text =
        with_basics("  - { name: broken, endpoints: x }\nroutes:\n  - service: broken\n    limits: { body: 5 }\n");
    let expected = "\
f:5:32: expected `host:port` or `unix:/path`, found `x`
    hint: the port is missing: `x:8080`
f:8:21: expected a size from 0B to 1TiB, or `off`, found `5`
    hint: give it a unit: `5B`, `5KiB`
2 errors";
    assert_eq!(errors(&text), expected);
}

#[test]
fn an_error_behind_an_anchor_is_shown_once() {
    said(
        "  - { name: a, endpoints: \"127.0.0.1:1\", timeouts: &t { answer: 5 } }\n  - { name: b, endpoints: \"127.0.0.1:2\", timeouts: *t }\n",
        "f:5:65: expected a duration from 1ms to 24h, found `5`\n    hint: give it a unit: `5s`, `5ms`",
    );
}

#[test]
fn names_that_do_not_resolve() {
    let said = errors(&with_basics("  - { name: far, endpoints: \"host.invalid:80\" }\n"));
    assert!(said.starts_with("f:5:29: the endpoint's name cannot be resolved: "), "{said}");
}

#[test]
fn messages_keep_secrets() {
    let text = with_basics(
        "runtime: { workers: \"${env:SECRET}\", ring_entries: \"${env:SECRET}\" }\nroutes: [{ service: \"${env:SECRET}\" }]\n",
    );
    let said = errors(&text);
    assert_eq!(said.matches("found `${env:SECRET}`").count(), 2, "{said}");
    assert!(said.contains("no service is named `${env:SECRET}`"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn redis() {
    said(
        "redis: { url: \"redis://me:hunter2@cache/x\", prefix: \"a{b}\", connect_timeout: 1 }\n",
        "\
f:5:15: expected the URL of a Redis, found `redis://me:[redacted]@cache/x`
    hint: a database is a number from 0 to 65535: `redis://host:port/0`
f:5:53: expected a word of letters, digits and `-._:`, found `a{b}`
    hint: from 1 to 64 of them
f:5:78: expected a duration from 10ms to 1m, found `1`
    hint: give it a unit: `1s`, `1ms`",
    );
    said(
        "redis: { url: \"${env:SECRET}\" }\n",
        "f:5:15: expected the URL of a Redis, found `${env:SECRET}`\n    hint: such as `redis://127.0.0.1:6379`",
    );
    said(
        "redis: { url: redis://a, tls: { ca: no.pem } }\n",
        "\
f:5:37: `ca` has no effect without TLS
    hint: `rediss://` in place of `redis://`
f:5:37: `no.pem` cannot be used: No such file or directory (os error 2)
    hint: a file of PEM certificates",
    );
    said("redis: {}\n", "f:5:8: the key `url` is missing: the URL of a Redis");
}

#[test]
fn certificates_by_acme() {
    let tls = |certificate: &str| {
        format!(
            "listeners:\n- {{ name: public, address: 127.0.0.1:3000 }}\n\
             - {{ name: tls, address: 127.0.0.1:3001, tls: {{ certificates: {certificate} }} }}\n"
        )
    };
    let said = |text: String| errors(&text).rsplit_once('\n').unwrap().0.to_owned();
    let section = "acme: { terms_agreed: true, storage: { directory: d } }\n";
    assert_eq!(
        said(tls("{ acme: [a.test] }")),
        "\
f:3:70: certificates by ACME need the section `acme`, which is missing
    hint: at the top level: `acme: { terms_agreed: true, storage: { directory: acme } }`"
    );
    assert_eq!(
        said(tls("{ acme: [\"*.a.test\", A.test, a.test, 10.0.0.1, -a.test] }") + section),
        "\
f:3:71: `*.a.test`: certificates for wildcards need the challenge DNS-01, which the gateway does not have
    hint: name each host, or take the certificate from files: `{ certificate: FILE, key: FILE }`
f:3:91: `a.test` is named twice
    hint: leave one of them out
f:3:99: `10.0.0.1` is not a host name
    hint: such as `www.example.com`, without a dot at its end
f:3:109: `-a.test` is not a host name
    hint: such as `www.example.com`, without a dot at its end"
    );
    assert_eq!(
        said(tls("[{ acme: a.test, key: k }, { key: k }]") + section),
        "\
f:3:71: a certificate comes from files or by ACME, not both
    hint: leave `certificate`, `key` and `ocsp` out, or `acme`
f:3:89: the key `certificate` is missing: text
    hint: or `acme: [HOST]` alone"
    );
    assert_eq!(
        said(
            tls("{ acme: a.test }, client_certificates: { ca: /dev/null }")
                + "acme: { terms_agreed: true, storage: { directory: d }, challenge: tls-alpn-01 }\n"
        )
        .lines()
        .take(2)
        .collect::<Vec<_>>(),
        [
            "f:3:46: authorities have no client certificate to answer `tls-alpn-01` with",
            "    hint: `challenge: http-01` in the section `acme`, or `verify: optional`"
        ]
    );
    let many: Vec<String> = (0..101).map(|at| format!("h{at}.test")).collect();
    assert_eq!(
        said(tls(&format!("{{ acme: [{}] }}", many.join(", "))) + section),
        "\
f:3:70: a certificate has at most 100 names, here are 101
    hint: one more entry of `certificates` for the others"
    );
    let hundred = format!("{{ acme: [{}] }}", many[..100].join(", "));
    assert_eq!(
        said(tls(&format!("[{}]", vec![hundred; 11].join(", "))) + section),
        "\
f:4:7: certificates by ACME have 1100 names in all, 1000 are allowed
    hint: take some certificates from files"
    );
}

#[test]
fn how_certificates_are_ordered() {
    said(
        "acme: { directory: \"http://ca.test/dir\", terms_agreed: false, contact: [ops@a.test, x], storage: { redis: {} } }\n",
        "\
f:5:73: expected a `mailto:` URL, found `ops@a.test`
    hint: write `mailto:ops@a.test`
f:5:85: expected a `mailto:` URL, found `x`
    hint: such as `mailto:operators@example.com`, one for each address",
    );
    said(
        "acme: { directory: \"http://ca.test/dir\", terms_agreed: false, storage: { redis: {} } }\n",
        "\
f:5:20: a directory is asked with TLS (RFC 8555 section 6.1)
    hint: an `https://` URL
f:5:56: an authority issues nothing before its terms are agreed to
    hint: read them, then `terms_agreed: true`
f:5:81: storage in Redis needs the section `redis`, which is missing
    hint: at the top level: `redis: { url: \"redis://127.0.0.1:6379\" }`",
    );
    said(
        "acme: { terms_agreed: true, storage: {}, challenge: http01, renew_before: 1s }\n",
        "\
f:5:53: expected one of `http-01`, `tls-alpn-01`, found `http01`
    hint: did you mean `http-01`?
f:5:75: expected a duration from 1m to 8760h, or `auto`, found `1s`",
    );
    said(
        "acme: { terms_agreed: true, storage: {} }\n",
        "\
f:5:38: certificates are kept in one place: `directory` or `redis`
    hint: `{ directory: /var/lib/ringway/acme }` or `{ redis: {} }`",
    );
    said(
        "acme: { terms_agreed: true, storage: { directory: d }, external_account: { id: a, key: \"a b\" } }\n",
        "\
f:5:88: the key of an external account is base64url
    hint: as the authority gave it",
    );
    said(
        "acme: {}\n",
        "\
f:5:7: the key `terms_agreed` is missing: `true` or `false`
f:5:7: the key `storage` is missing: a section of keys",
    );
}

#[test]
fn files_that_cannot_be_read() {
    let directory = std::env::temp_dir().join(format!("ringway-config-unreadable-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let said = |path: &std::path::Path| {
        let said = load(path).unwrap_err().to_string();
        said.replace(&*directory.to_string_lossy(), "D")
    };
    assert!(said(&directory.join("no.yaml")).starts_with("D/no.yaml: cannot be read: No such file or directory"));
    assert!(said(&directory).starts_with("D: the directory has no `*.yaml` or `*.yml` file"));
    let latin = directory.join("latin.yaml");
    std::fs::write(&latin, b"a: 1\nb: \xe4\n").unwrap();
    assert_eq!(said(&latin), "D/latin.yaml:2:4: not UTF-8\n    hint: save the file as UTF-8\n1 error");
    assert_eq!(said(&directory), "D/latin.yaml:2:4: not UTF-8\n    hint: save the file as UTF-8\n1 error");
    std::fs::write(&latin, b"\0\x01\x02").unwrap();
    assert!(load(&latin).is_err());
    std::fs::remove_dir_all(&directory).unwrap();
}
