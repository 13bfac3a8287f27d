use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::*;

const SMALLEST: &str = "target: http://h:1/b\nload: { open: { rate: 10/s } }\nrequests: [{ path: /x }]\n";

fn scenario(text: &str) -> Result<Scenario, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.yaml");
    std::fs::write(&path, text).unwrap();
    std::fs::write(directory.path().join("body.bin"), b"{n}\x00\xff").unwrap();
    let opened = Scenario::open(path.to_str().unwrap(), &RequestFlags::default(), &LoadFlags::default());
    opened.map_err(|failure| {
        assert_eq!(failure.code(), std::process::ExitCode::from(2), "{failure}");
        failure.to_string().replace(&format!("{}/", directory.path().display()), "")
    })
}

fn with(load: &str, rest: &str) -> Result<Scenario, String> {
    scenario(&format!("target: http://h:1/b\nload: {load}\n{rest}\n"))
}

fn from_url(url: &str, request: RequestFlags, load: LoadFlags) -> Result<Scenario, String> {
    Scenario::open(url, &request, &load).map_err(|failure| failure.to_string())
}

fn first_request(scenario: &Scenario) -> String {
    let mut out = Vec::new();
    scenario.mixes()[0].write(&mut out);
    String::from_utf8_lossy(&out).into_owned()
}

fn arrivals(scenario: &Scenario) -> Arrivals {
    match &scenario.load {
        Load::Open(arrivals) => arrivals.clone(),
        Load::Closed => panic!("closed"),
    }
}

#[test]
fn every_example_is_a_scenario() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/loadtest");
    let files: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        let opened = Scenario::open(file.to_str().unwrap(), &RequestFlags::default(), &LoadFlags::default());
        let scenario = opened.unwrap_or_else(|failure| panic!("{failure}"));
        let request = first_request(&scenario);
        assert!(request.contains(" HTTP/1.1\r\nHost: 127.0.0.1:3000\r\n"), "{}: {request}", file.display());
    }
}

#[test]
fn the_smallest_file_has_the_documented_defaults() {
    let scenario = scenario(SMALLEST).unwrap();
    assert_eq!((scenario.warmup, scenario.duration), (Duration::ZERO, Duration::from_secs(30)));
    assert_eq!((scenario.connections, scenario.threads, &scenario.cores[..]), (64, 1, &[][..]));
    assert_eq!((scenario.keep_alive, scenario.timeout, scenario.seed), (true, Duration::from_secs(10), 1));
    assert_eq!(scenario.classes()[0].name, "GET /x");
    assert!(scenario.classes()[0].expects.contains(399) && !scenario.classes()[0].expects.contains(400));
    assert_eq!(arrivals(&scenario).collect::<Vec<_>>().len(), 300);
    assert_eq!(first_request(&scenario), "GET /b/x HTTP/1.1\r\nHost: h:1\r\nUser-Agent: loadtest/0.1.0\r\n\r\n");
    assert_eq!(scenario.mixes()[0].client_address(0), None);
    assert_eq!(scenario.describe().description, "10/s for 30 s, constant");
    assert_eq!(scenario.describe().rate, Some(10.0));
}

#[test]
fn phases_become_a_schedule() {
    let phases = "{ for: 10s, rate: 100/s }, { for: 10s, ramp: 100/s..200/s }, { for: 30s, steps: [1/s, 2/s, 3/s] }, \
                  { for: 10s, rate: 10/s, spike: { after: 4s, for: 1s, rate: 50/s } }";
    let rest = "warmup: 5s\nrequests: [{ path: / }]";
    let scenario = with(&format!("{{ open: {{ phases: [{phases}] }} }}"), rest).unwrap();
    let arrivals = arrivals(&scenario);
    assert_eq!(scenario.duration, Duration::from_secs(60));
    assert_eq!(arrivals.duration(), Duration::from_secs(65));
    assert_eq!(arrivals.total(), 500 + 1000 + 1500 + 60 + 140);
    for (at_ms, rate) in
        [(0, 100.0), (14_999, 100.0), (20_000, 150.0), (25_000, 1.0), (54_999, 3.0), (59_500, 50.0), (61_000, 10.0)]
    {
        assert_eq!(arrivals.rate_at(Duration::from_millis(at_ms)), rate, "at {at_ms} ms");
    }
    let told = scenario.describe();
    assert!(told.description.starts_with("100/s for 10 s, then 100/s to 200/s in 10 s, then 1/s for 10 s"), "{told:?}");
    assert_eq!(told.rate, Some(2700.0 / 60.0));
}

#[test]
fn a_closed_loop_has_connections_only() {
    let scenario = with("closed", "duration: 2s\nconnections: 3\nrequests: [{ path: / }]").unwrap();
    assert!(matches!(scenario.load, Load::Closed));
    assert_eq!((scenario.duration, scenario.connections), (Duration::from_secs(2), 3));
    assert_eq!((&scenario.describe().model[..], scenario.describe().rate), ("closed", None));
    let open = scenario.at_rate(50.0, Process::Poisson, Duration::from_secs(1), Duration::from_secs(4));
    assert_eq!(arrivals(&open).total(), 250);
}

#[test]
fn headers_and_bodies_are_framed() {
    let body = |body: &str| {
        let rest = format!(
            "keep_alive: false\nheaders: {{ Host: other, A: '1', B: '2' }}\n\
             requests: [{{ path: /x, headers: {{ a: '3' }}, {body} }}]"
        );
        first_request(&with("closed", &rest).unwrap())
    };
    let head = |method: &str| {
        format!(
            "{method} /b/x HTTP/1.1\r\nUser-Agent: loadtest/0.1.0\r\nHost: other\r\nB: 2\r\na: 3\r\n\
             Connection: close\r\n"
        )
    };
    assert_eq!(body("weight: 2"), head("GET") + "\r\n");
    assert_eq!(body("method: POST"), head("POST") + "Content-Length: 0\r\n\r\n");
    assert_eq!(body("body: ab"), head("POST") + "Content-Length: 2\r\n\r\nab");
    assert_eq!(body("method: PUT, body: '{{n} {n} {pick:äö}'"), head("PUT") + "Content-Length: 10\r\n\r\n{n} 0 äö");
    assert_eq!(body("body_size: 12B"), head("POST") + "Content-Length: 12\r\n\r\n0123456789ab");
    // A file is sent as it is.
    assert_eq!(body("body_file: body.bin"), head("POST") + "Content-Length: 5\r\n\r\n{n}\0\u{fffd}");
}

#[test]
fn clients_have_keys_tokens_and_addresses() {
    let clients = "clients:
  count: 1000
  addresses: 127.9.0.0/24
  api_key: { value: 'k{client}' }
  jwt: { algorithm: HS256, secret: '${env:LOADTEST_NO_SUCH:-s}', claims: { a: ['{client}', 1] } }
requests: [{ path: '/{client}' }, { path: /own, weight: 1, headers: { authorization: none, x-api-key: none } }]";
    let scenario = scenario(&format!("target: http://127.0.0.1:1\nload: closed\n{clients}")).unwrap();
    let mut mix = scenario.mixes().remove(0);
    let (mut out, mut of_each) = (Vec::new(), [0; 2]);
    for _ in 0..100 {
        out.clear();
        let issued = mix.write(&mut out);
        of_each[issued.class] += 1;
        let text = std::str::from_utf8(&out).unwrap();
        let client = issued.client;
        if issued.class == 0 {
            assert!(text.starts_with(&format!("GET /{client} ")), "{text}");
            assert!(text.contains(&format!("\r\nX-API-Key: k{client}\r\nAuthorization: Bearer ey")), "{text}");
        } else {
            assert!(!text.contains("Bearer") && !text.contains("X-API-Key"), "{text}");
        }
        assert_eq!(mix.client_address(client), Some(Ipv4Addr::from_bits(0x7f09_0001 + client as u32 % 254)));
    }
    assert!(of_each.iter().all(|count| *count > 20), "{of_each:?}");
}

#[test]
fn shapes_that_are_wrong_are_told_with_their_place() {
    for (text, message) in [
        ("target: http://h\nlaod: closed\n", "test.yaml:2:1: unknown key `laod`\n    hint: did you mean `load`?"),
        ("target: http://h\nload: closed\n", "test.yaml:2:1: the key `requests` is missing"),
        (
            "target: http://h\nload: clsed\nrequests: []\n",
            "test.yaml:2:7: unknown word `clsed`\n    hint: did you mean `closed`?",
        ),
        ("target: [\n", "test.yaml:1:9: expected a single value"),
        ("target: http://h\ntarget: http://i\n", "test.yaml:2:1: the key `target` stands here twice"),
        ("target: http://h\n  x: 1\n", "test.yaml:2:4: mapping values are not allowed in this context"),
        ("", "test.yaml:1:1: the file is empty, or ends too early"),
        ("- a", "test.yaml:1:1: expected a section of keys"),
        ("target:\n", "test.yaml:1:7: a value is missing"),
        ("target: http://h\nload: { open: 3 }\n", "test.yaml:2:15: expected a section of keys"),
        ("target: http://h\nload: [1]\n", "test.yaml:2:7: expected a word or a section of one key"),
        ("target: http://h\nload: closed\nrequests: x\n", "test.yaml:3:11: expected a list"),
        ("load: closed\nheaders: {a: b, a: c}\n", "test.yaml:2:17: the key `a` stands here twice"),
        (
            "load: closed\nrequests:\n  - { path: /, colour: red }\n",
            "test.yaml:3:16: unknown key `colour`\n    hint: the keys here: `name`, `weight`",
        ),
        ("load: closed\nrequests:\n  - name: x\n", "test.yaml:3:5: the key `path` is missing"),
    ] {
        let told = scenario(text).unwrap_err();
        assert!(told.starts_with(message), "{text}told: {told}");
    }
}

#[test]
fn values_that_are_wrong_are_told_with_their_place() {
    let requests = "requests: [{ path: / }]";
    for (load, rest, message) in [
        (
            "closed",
            "timeout: 5",
            "3:10: expected a duration from 1ms to 24h, found `5`\n    hint: give it a unit: `5ms`, `5s`",
        ),
        ("closed", "duration: 25h", "3:11: expected a duration from 1ms to 24h, found `25h`"),
        ("closed", "connections: 0", "3:14: expected a whole number from 1 to 1000000, found `0`"),
        ("closed", "connections: 2\nthreads: 3", "3:14: 2 connections for 3 threads\n    hint: each thread needs one"),
        ("closed", "keep_alive: yes", "3:13: expected `true` or `false`, found `yes`"),
        ("closed", "cores: [0, x]", "3:12: expected a whole number from 0 to 4095, found `x`"),
        (
            "closed",
            "seed: ${env:LOADTEST_NO_SUCH}",
            "3:7: the environment variable `LOADTEST_NO_SUCH` is not set\n    hint: set it,",
        ),
        (
            "closed",
            "seed: ${env:LOADTEST_NO_SUCH:-x1}",
            "3:7: expected a whole number from 0 to 18446744073709551615, found `${env:",
        ),
        ("closed", "headers: { 'a b': x }", "3:12: `a b` is not a header name"),
        ("closed", "headers: { a: \"x\\r\\ny\" }", "3:15: `\\r` would break the request's framing"),
        (
            "closed",
            "headers: { Content-Length: '3' }",
            "3:12: `Content-Length` is not yours to set\n    hint: it is computed from the body",
        ),
        (
            "closed",
            "headers: { Connection: close }",
            "3:12: `Connection` is not yours to set\n    hint: `keep_alive` says",
        ),
        ("closed", "clients: { count: 0 }", "3:19: expected a whole number from 1 to 10000000, found `0`"),
        (
            "closed",
            "clients: { distribution: { zipf: 0 } }",
            "3:34: expected an exponent above 0 and up to 10, found `0`",
        ),
        ("closed", "clients: { distribution: pareto }", "3:26: unknown word `pareto`"),
        (
            "closed",
            "clients: { addresses: 10.0.0.0/8 }",
            "3:23: expected a part of 127.0.0.0/8 or `off`, found `10.0.0.0/8`",
        ),
        (
            "closed",
            "clients: { jwt: { algorithm: HS512 } }",
            "3:30: expected `HS256`, `RS256` or `ES256`, found `HS512`",
        ),
        (
            "closed",
            "clients: { jwt: { algorithm: HS256 } }",
            "3:30: HS256 needs a `secret`\n    hint: `secret: ${env:NAME}`",
        ),
        (
            "closed",
            "clients: { jwt: { algorithm: HS256, secret: abc } }",
            "3:45: a `secret` does not stand in the file",
        ),
        (
            "closed",
            "clients: { jwt: { algorithm: RS256, key: '${env:LOADTEST_NO_SUCH:-x}' } }",
            "3:42: `key` is not an RSA key in PEM",
        ),
        ("closed", "clients: { jwt: { algorithm: ES256, key: '${file:no.pem}' } }", "3:42: cannot read `"),
        (
            "closed",
            "clients: { jwt: { algorithm: HS256, secret: '${env:LOADTEST_NO_SUCH:-s}', claims: { exp: 1 } } }",
            "3:83: `exp` among the `claims`",
        ),
        ("{ open: {} }", "", "2:7: an open loop needs a rate\n    hint: `rate: 1000/s`"),
        (
            "{ open: { rate: 100 } }",
            "",
            "2:23: expected a rate from 0/s to 10000000/s, found `100`\n    hint: give it a unit: `100/s`",
        ),
        ("{ open: { rate: 0/s } }", "", "2:7: the rate is 0 all the time"),
        ("{ open: { rate: 1/s, arrivals: random } }", "", "2:38: expected `constant` or `poisson`, found `random`"),
        ("{ open: { rate: 1/s, phases: [{ for: 1s, rate: 1/s }] } }", "", "2:23: `rate` beside `phases`"),
        ("{ open: { phases: [] } }", "", "2:7: `phases` has 1 to 1000 phases"),
        ("{ open: { phases: [{ for: 1s, rate: 1/s }] } }", "duration: 3s", "3:11: `duration` beside `phases`"),
        (
            "{ open: { phases: [{ for: 1s, ramp: 1/s-2/s }] } }",
            "",
            "2:43: expected two rates: `1000/s..5000/s`, found `1/s-2/s`",
        ),
        (
            "{ open: { phases: [{ for: 1s }] } }",
            "",
            "2:33: it is not clear what this phase does\n    hint: one of `rate`, `ramp` and `steps`",
        ),
        (
            "{ open: { phases: [{ for: 2s, rate: 1/s, spike: { after: 1s, for: 2s, rate: 9/s } }] } }",
            "",
            "2:73: the spike ends after its phase",
        ),
        (
            "{ open: { phases: [{ for: 1s, ramp: 0/s..9/s }] } }",
            "warmup: 1s",
            "3:9: the warm-up has the first phase's rate, which is 0",
        ),
    ] {
        let told = with(load, &format!("{rest}\n{requests}")).unwrap_err();
        assert!(told.starts_with(&format!("test.yaml:{message}")), "{load} {rest}\ntold: {told}");
    }
}

#[test]
fn requests_that_are_wrong_are_told_with_their_place() {
    for (request, at, message) in [
        ("path: /, weight: 0", "0", "expected a whole number from 1 to 1000000, found `0`"),
        ("path: x", "x", "a path begins with `/` and has no `#`"),
        (
            "path: '/a b'",
            "'/a b'",
            "a space would break the request's framing\n    hint: in a path write it percent-encoded",
        ),
        ("path: '/{id}'", "'/{id}'", "unknown placeholder `{id}`\n    hint: placeholders: `{client}`"),
        ("path: /, method: 'G T'", "'G T'", "expected a method such as `GET`, found `G T`"),
        ("path: /, method: CONNECT", "CONNECT", "expected a method such as `GET`, found `CONNECT`\n    hint: tunnels"),
        ("path: /, body: a, body_size: 1B", "1B", "more than one of `body`, `body_file` and `body_size`"),
        ("path: /, body_size: 1GiB", "1GiB", "expected a size from 0B to 64MiB, found `1GiB`"),
        ("path: /, body_file: none", "none", "cannot read `"),
        ("path: /, body: '{random:9..1}'", "'{random:9..1}'", "no range of numbers in `{random:9..1}`"),
        ("path: /, expect: [99]", "99", "expected a status such as `200`, or a class such as `2xx`, found `99`"),
        ("path: /, headers: { Upgrade: h2c }", "Upgrade", "`Upgrade` is not yours to set"),
        ("path: / }, { path: /, weight: 2", "{ path", "a second request is named `GET /`"),
    ] {
        let line = format!("requests: [{{ {request} }}]");
        let told = scenario(&format!("target: http://h\nload: closed\n{line}\n")).unwrap_err();
        let column = line.rfind(at).unwrap() + 1;
        assert!(told.starts_with(&format!("test.yaml:3:{column}: {message}")), "{request}\ntold: {told}");
    }
    let told = scenario("target: https://h\nload: closed\nrequests: []\n").unwrap_err();
    assert_eq!(
        told,
        "test.yaml:1:9: targets are plain `http://`: loadtest does not speak TLS yet\n    \
         hint: load a listener without TLS"
    );
    let told = scenario("target: http://h\nload: closed\nrequests: []\n").unwrap_err();
    assert_eq!(told, "test.yaml:3:11: `requests` has 1 to 256 requests");
    let told = with("closed", "clients: { addresses: 127.1.0.0/16 }\nrequests: [{ path: / }]").unwrap();
    assert_eq!(told.target.host, "h");
    let clients = "clients: { addresses: 127.1.0.0/16 }\nrequests: [{ path: / }]";
    let told = scenario(&format!("target: http://10.0.0.1\nload: closed\n{clients}")).unwrap_err();
    assert!(told.starts_with("test.yaml:3:23: 10.0.0.1 cannot be reached from 127.0.0.0/8\n    hint: leave"), "{told}");
}

#[test]
fn all_errors_are_told_at_once() {
    let told = scenario("target: h\nload: closed\ntimeout: 1\nrequests: [{ path: x, weight: 0 }]\n").unwrap_err();
    let places: Vec<_> =
        told.lines().filter_map(|line| line.strip_prefix("test.yaml:")).map(|line| &line[..4]).collect();
    assert_eq!(places, ["1:9:", "3:10"], "{told}");
    assert!(told.ends_with("\n2 errors"), "{told}");
}

#[test]
fn flags_make_a_scenario() {
    let request = RequestFlags {
        headers: vec!["X-A: 1".into(), "x-b:2".into()],
        body: Some("n={n}".into()),
        threads: Some("2".into()),
        cores: vec!["0".into(), "1".into()],
        ..RequestFlags::default()
    };
    let load =
        LoadFlags { rate: Some("500".into()), duration: Some("2s".into()), poisson: true, ..LoadFlags::default() };
    let scenario = from_url("http://127.0.0.1:9/p/{n}?q=1", request, load).unwrap();
    assert_eq!((scenario.threads, &scenario.cores[..]), (2, &[0, 1][..]));
    assert_eq!(arrivals(&scenario).total(), 1000);
    assert_eq!(
        first_request(&scenario),
        "POST /p/0?q=1 HTTP/1.1\r\nHost: 127.0.0.1:9\r\nUser-Agent: loadtest/0.1.0\r\n\
         X-A: 1\r\nx-b: 2\r\nContent-Length: 3\r\n\r\nn=0"
    );
    let closed = LoadFlags { closed: true, ..LoadFlags::default() };
    assert!(matches!(from_url("http://h", RequestFlags::default(), closed).unwrap().load, Load::Closed));
}

#[test]
fn flags_that_are_wrong_are_named() {
    let rate = |rate: &str| LoadFlags { rate: Some(rate.into()), ..LoadFlags::default() };
    let none = RequestFlags::default;
    for (url, request, load, message) in [
        ("http://h", none(), LoadFlags::default(), "how fast?\n    hint: `--rate 1000`"),
        ("https://h", none(), rate("1"), "URL: targets are plain `http://`"),
        ("http://h/{x}", none(), rate("1"), "URL: unknown placeholder `{x}`"),
        ("http://h", none(), rate("fast"), "--rate: expected a rate from 0/s to 10000000/s, found `fast`"),
        ("http://h", none(), LoadFlags { duration: Some("3".into()), ..rate("1") }, "--duration: expected a duration"),
        (
            "http://h",
            RequestFlags { headers: vec!["x".into()], ..none() },
            rate("1"),
            "--header: expected `Name: value`",
        ),
        (
            "http://h",
            RequestFlags { body: Some("@/no/such".into()), ..none() },
            rate("1"),
            "--body: cannot read `/no/such`",
        ),
        (
            "no/such.yaml",
            none(),
            rate("1"),
            "cannot read `no/such.yaml`: No such file or directory (os error 2)\n    hint: give a scenario file",
        ),
    ] {
        let told = from_url(url, request, load).unwrap_err();
        assert!(told.starts_with(message), "{url}\ntold: {told}");
    }
}

#[test]
fn flags_replace_what_a_file_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.yaml");
    std::fs::write(&path, SMALLEST.to_owned() + "headers: { A: '1', b: '2' }\nconnections: 7\n").unwrap();
    let open = |request: &RequestFlags, load: &LoadFlags| Scenario::open(path.to_str().unwrap(), request, load);
    let request =
        RequestFlags { headers: vec!["a: 9".into()], connections: Some("8".into()), ..RequestFlags::default() };
    let load = LoadFlags { rate: Some("20/s".into()), duration: Some("5s".into()), ..LoadFlags::default() };
    let scenario = open(&request, &load).unwrap();
    assert_eq!((scenario.connections, arrivals(&scenario).total()), (8, 100));
    assert!(first_request(&scenario).contains("\r\nb: 2\r\na: 9\r\n"), "{}", first_request(&scenario));
    let told =
        open(&RequestFlags { method: Some("PUT".into()), ..RequestFlags::default() }, &load).unwrap_err().to_string();
    assert!(told.starts_with("--method: a scenario file has its own requests"), "{told}");
}

#[test]
fn another_target_stands_in_for_that_of_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s.yaml");
    std::fs::write(&path, SMALLEST.to_owned() + "clients: { addresses: 127.0.0.0/8 }\n").unwrap();
    let open = |target| Scenario::from_file(&path, Some(target), &RequestFlags::default(), &LoadFlags::default());
    let scenario = open("http://127.0.0.1:7/c").unwrap();
    assert_eq!((scenario.target.url.as_str(), scenario.target.port), ("http://127.0.0.1:7/c", 7));
    let request = first_request(&scenario);
    assert!(request.starts_with("GET /c/x HTTP/1.1\r\nHost: 127.0.0.1:7\r\n"), "{request}");
    let told = |target| open(target).unwrap_err().to_string();
    assert!(told("http://10.0.0.1/").contains("10.0.0.1 cannot be reached from 127.0.0.0/8"));
    assert!(told("127.0.0.1:7").starts_with("TARGET: `127.0.0.1:7` is not a URL"));
}

#[test]
fn flags_are_parsed() {
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        request: RequestFlags,
        #[command(flatten)]
        load: LoadFlags,
    }
    let parsed = |line: &str| <Line as clap::Parser>::try_parse_from(line.split(' '));
    <Line as clap::CommandFactory>::command().debug_assert();
    let line =
        parsed("x -H a:1 --header b:2 -X PUT --body @f -c 8 -t 2 --cores 1,2 -r 100/s --poisson -d 5s --warmup 1s")
            .unwrap();
    assert_eq!(
        (line.request.headers, line.request.cores),
        (vec!["a:1".into(), "b:2".into()], vec!["1".into(), "2".into()])
    );
    assert_eq!((line.load.rate.as_deref(), line.load.poisson), (Some("100/s"), true));
    assert!(parsed("x --closed").unwrap().load.closed);
    assert!(parsed("x --closed --rate 5").unwrap_err().to_string().contains("cannot be used with"));
    assert!(parsed("x --closed --poisson").unwrap_err().to_string().contains("cannot be used with"));
}
