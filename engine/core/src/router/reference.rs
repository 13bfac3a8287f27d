//! The router against a naive one that looks at every route and sorts, as the documentation says it.

use proptest::prelude::*;

use super::*;

type Headers = &'static [(&'static str, &'static str)];

#[derive(Debug, Clone)]
struct Request {
    host: &'static str,
    method: &'static str,
    path: String,
    query: Option<&'static str>,
    headers: Headers,
}

impl Request {
    fn with<T>(&self, use_it: impl FnOnce(&RouteRequest<'_>) -> T) -> T {
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| httparse::Header { name, value: value.as_bytes() }).collect();
        use_it(&RouteRequest {
            host: self.host.as_bytes(),
            method: self.method.as_bytes(),
            path: self.path.as_bytes(),
            query: self.query.map(str::as_bytes),
            headers: &headers,
        })
    }
}

/// How specific a match is: smaller is more so.
type Rank = (Reverse<i32>, Reverse<usize>, Vec<u8>, Reverse<usize>, usize);

/// Ranks the path segment by segment and gives what it captures.
fn match_path(pattern: &PathMatch, path: &str) -> Option<(Vec<u8>, Vec<String>)> {
    let (text, is_prefix) = match pattern {
        PathMatch::Pattern(text) => (text, false),
        PathMatch::Prefix(text) => (text, true),
    };
    let slash_prefix = is_prefix && text.ends_with('/');
    let text = if slash_prefix { text.strip_suffix('/').unwrap() } else { text };
    let mut given = path.split('/').skip(1);
    let (mut rank, mut captures) = (Vec::new(), Vec::new());
    for segment in text.split('/').skip(1) {
        if segment.starts_with("{*") {
            let rest = given.collect::<Vec<_>>();
            if rest.is_empty() {
                return None;
            }
            captures.push(rest.join("/"));
            rank.push(4);
            return Some((rank, captures));
        }
        let here = given.next()?;
        if segment.starts_with('{') {
            if here.is_empty() {
                return None;
            }
            captures.push(here.to_owned());
            rank.push(3);
        } else if segment == here {
            rank.push(2);
        } else {
            return None;
        }
    }
    // 0 and 1 only ever meet each other: both end where the path ends.
    match (given.next().is_some(), is_prefix) {
        (false, false) => rank.push(0),
        (false, true) if slash_prefix => return None,
        (false, true) => rank.push(1),
        (true, false) => return None,
        (true, true) => rank.push(if slash_prefix { 4 } else { 5 }),
    }
    Some((rank, captures))
}

/// 0: no host was asked for.
fn match_host(hosts: &[String], host: &str) -> Option<usize> {
    let host = host.to_lowercase();
    let rank = |pattern: &String| match pattern.strip_prefix('*') {
        Some(suffix) => (host.ends_with(suffix) && host.len() > suffix.len()).then_some(suffix.len()),
        None => (host == *pattern).then_some(1000),
    };
    if hosts.is_empty() { Some(0) } else { hosts.iter().filter_map(rank).max() }
}

fn holds(want: &ValueMatch, values: &[&str]) -> bool {
    match want {
        ValueMatch::Present => !values.is_empty(),
        ValueMatch::Absent => values.is_empty(),
        ValueMatch::Exact(text) => values.contains(&&**text),
        ValueMatch::Prefix(text) => values.iter().any(|value| value.starts_with(&**text)),
    }
}

fn conditions_hold(spec: &RouteSpec, request: &Request) -> bool {
    spec.headers.iter().all(|(name, want)| {
        let same = request.headers.iter().filter(|(given, _)| given.to_lowercase() == *name);
        holds(want, &same.map(|(_, value)| *value).collect::<Vec<_>>())
    }) && spec.query.iter().all(|(name, want)| {
        let pairs = request.query.into_iter().flat_map(|query| query.split('&'));
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        holds(want, &pairs.filter(|(key, _)| key == name).map(|(_, value)| value).collect::<Vec<_>>())
    })
}

#[derive(Debug, PartialEq)]
enum Answer {
    Route(u32, Vec<String>),
    WrongMethod(String),
    Nothing,
}

fn reference(routes: &[(u32, RouteSpec)], request: &Request) -> Answer {
    let mut found: Vec<(Rank, u32, Vec<String>)> = Vec::new();
    let mut allowed = BTreeSet::new();
    for (order, (index, spec)) in routes.iter().enumerate() {
        let Some(host) = match_host(&spec.hosts, request.host) else { continue };
        let Some((path, captures)) = match_path(&spec.path, &request.path) else { continue };
        if !conditions_hold(spec, request) {
            continue;
        }
        let mut methods: BTreeSet<_> = spec.methods.iter().map(String::as_str).collect();
        if methods.contains("GET") {
            methods.insert("HEAD");
        }
        if !methods.is_empty() && !methods.contains(request.method) {
            allowed.extend(methods);
            continue;
        }
        let conditions = usize::from(!methods.is_empty()) + spec.headers.len() + spec.query.len();
        found.push(((Reverse(spec.priority), Reverse(host), path, Reverse(conditions), order), *index, captures));
    }
    match found.into_iter().min() {
        Some((_, index, captures)) => Answer::Route(index, captures),
        None if allowed.is_empty() => Answer::Nothing,
        None => Answer::WrongMethod(allowed.into_iter().collect::<Vec<_>>().join(", ")),
    }
}

fn answer(router: &Router, names: &HashMap<u32, usize>, request: &Request) -> Answer {
    request.with(|route_request| match router.find(route_request) {
        Found::Route { index, captures } => {
            let text = |at| String::from_utf8(captures.get(at, route_request.path).unwrap().to_vec()).unwrap();
            assert_eq!(captures.get(names[&index], route_request.path), None);
            Answer::Route(index, (0..names[&index]).map(text).collect())
        }
        Found::WrongMethod => {
            let mut out = Vec::new();
            router.allow(route_request, &mut out);
            Answer::WrongMethod(String::from_utf8(out).unwrap())
        }
        Found::Nothing => Answer::Nothing,
    })
}

fn path_matches() -> impl Strategy<Value = PathMatch> {
    let segment = prop::sample::select(vec!["a", "a", "b", "c", "d", "e", "f", "%2F", "{}"]);
    let tail = prop::sample::select(vec!["", "", "", "/", "/{*rest}"]);
    (prop::collection::vec(segment, 0..4), tail, any::<bool>()).prop_map(|(segments, tail, is_prefix)| {
        let mut path = String::new();
        for (at, segment) in segments.iter().enumerate() {
            path += &if *segment == "{}" { format!("/{{p{at}}}") } else { format!("/{segment}") };
        }
        if is_prefix {
            let path = path + if tail.is_empty() { "" } else { "/" };
            return PathMatch::Prefix(if path.is_empty() { "/".to_owned() } else { path });
        }
        PathMatch::Pattern(if path.is_empty() && tail.is_empty() { "/".to_owned() } else { path + tail })
    })
}

fn conditions() -> impl Strategy<Value = Vec<(String, ValueMatch)>> {
    let want = prop_oneof![
        Just(ValueMatch::Present),
        Just(ValueMatch::Absent),
        Just(ValueMatch::Exact("1".into())),
        Just(ValueMatch::Prefix("1".into())),
    ];
    let one = (prop::sample::select(vec!["x".to_owned(), "y".to_owned()]), want);
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(one, 1..3)].prop_map(|mut list| {
        list.sort();
        list.dedup();
        list
    })
}

fn specs() -> impl Strategy<Value = RouteSpec> {
    let host = prop::sample::select(vec!["a.b.c", "b.c", "*.b.c", "*.c"]);
    let hosts = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::btree_set(host, 1..3)
        .prop_map(|hosts| hosts.into_iter().map(str::to_owned).collect())];
    let method = prop::sample::select(vec!["GET", "HEAD", "POST", "PURGE"]);
    let methods = prop_oneof![1 => Just(Vec::new()), 1 => prop::collection::btree_set(method, 1..3)
        .prop_map(|methods| methods.into_iter().map(str::to_owned).collect())];
    let priority = prop_oneof![4 => Just(0), 1 => -1..=1];
    (hosts, path_matches(), methods, conditions(), conditions(), priority)
        .prop_map(|(hosts, path, methods, headers, query, priority)| RouteSpec {
            hosts,
            path,
            methods,
            headers,
            query,
            priority,
        })
        .no_shrink()
}

fn requests() -> impl Strategy<Value = Request> {
    let segment = prop::sample::select(vec!["a", "a", "b", "c", "d", "e", "f", "%2F", ""]);
    let path = prop::collection::vec(segment, 1..5).prop_map(|segments| format!("/{}", segments.join("/")));
    let headers = prop::sample::select(vec![
        &[] as Headers,
        &[("X", "1"), ("Y", "2")],
        &[("x", "0"), ("X", "12")],
        &[("y", "1"), ("Y", "")],
    ]);
    (
        prop::sample::select(vec!["", "A.b.c", "b.c", "x.y.b.c", "x.c", "d"]),
        prop::sample::select(vec!["GET", "HEAD", "POST", "PURGE", "OTHER"]),
        path,
        prop::sample::select(vec![None, Some("x=1"), Some("y=2&x=12"), Some("x&y=1")]),
        headers,
    )
        .prop_map(|(host, method, path, query, headers)| Request { host, method, path, query, headers })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn the_router_agrees_with_the_naive_one(
        specs in prop::collection::vec(specs(), 0..40),
        requests in prop::collection::vec(requests(), 20),
    ) {
        let mut builder = RouterBuilder::new();
        let (mut routes, mut names) = (Vec::new(), HashMap::new());
        for (index, spec) in (100..).zip(specs) {
            match builder.add(index, spec.clone()) {
                Ok(captured) => {
                    names.insert(index, captured.len());
                    routes.push((index, spec));
                }
                Err(error) => prop_assert!(matches!(error, RouteError::Duplicate(earlier) if earlier < index)),
            }
        }
        let router = builder.build();
        for request in requests {
            prop_assert_eq!(answer(&router, &names, &request), reference(&routes, &request), "{:?}", request);
        }
    }

    #[test]
    fn any_request_is_answered(
        host in prop::collection::vec(any::<u8>(), 0..300),
        method in prop::collection::vec(any::<u8>(), 0..8),
        path in prop::collection::vec(prop::sample::select(b"/ab%\0\xff".to_vec()), 0..32),
        query in prop::option::of(prop::collection::vec(prop::sample::select(b"ax=&%+1\xff".to_vec()), 0..32)),
        specs in prop::collection::vec(specs(), 0..8),
    ) {
        let mut builder = RouterBuilder::new();
        for (index, spec) in (0..).zip(specs) {
            let _ = builder.add(index, spec);
        }
        let router = builder.build();
        let request =
            RouteRequest { host: &host, method: &method, path: &path, query: query.as_deref(), headers: &[] };
        router.find(&request);
        router.allow(&request, &mut Vec::new());
    }
}
