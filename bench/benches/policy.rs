//! What is decided about a request: its path, its route, its endpoint.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ringway_core::balance::{Balancer, Kind};
use ringway_core::path::{PathPolicy, normalize};
use ringway_core::router::{Found, PathMatch, RouteRequest, RouteSpec, Router, RouterBuilder};

fn path(c: &mut Criterion) {
    let mut group = c.benchmark_group("path");
    let paths = [
        ("plain", "/api/products/123"),
        ("escaped", "/api/products/caf%C3%A9%20au%20lait"),
        ("rewritten", "/api//products/./x/../%7euser/caf%c3%a9"),
    ];
    for (name, path) in paths {
        group.bench_with_input(BenchmarkId::new("ringway", name), path.as_bytes(), |b, path| {
            let mut out = Vec::with_capacity(256);
            b.iter(|| {
                black_box(normalize(black_box(path), PathPolicy::default(), &mut out)).expect("a good path").len()
            });
        });
    }
    group.finish();
}

/// `/api/s0/items/{id}`, `/api/s1/items/{id}`, ...; every other one also asks for a method and a host.
fn routes(count: u32) -> Router {
    let mut builder = RouterBuilder::new();
    for index in 0..count {
        let spec = RouteSpec {
            hosts: if index % 2 == 0 { Vec::new() } else { vec!["www.example.com".into()] },
            path: PathMatch::Pattern(format!("/api/s{index}/items/{{id}}")),
            methods: if index % 2 == 0 { Vec::new() } else { vec!["GET".into()] },
            headers: Vec::new(),
            query: Vec::new(),
            priority: 0,
        };
        builder.add(index, spec).expect("a good route");
    }
    builder.build()
}

fn router(c: &mut Criterion) {
    let mut group = c.benchmark_group("router");
    for count in [1, 100, 10_000] {
        let router = routes(count);
        for (name, index) in [("found", count / 2), ("missing", count)] {
            let path = format!("/api/s{index}/items/123");
            let request = RouteRequest {
                host: b"www.example.com",
                method: b"GET",
                path: path.as_bytes(),
                query: None,
                headers: &[],
            };
            assert_eq!(matches!(router.find(&request), Found::Route { .. }), name == "found");
            group.bench_function(BenchmarkId::new(name, count), |b| b.iter(|| router.find(black_box(&request))));
        }
    }
    group.finish();
}

fn balance(c: &mut Criterion) {
    let mut group = c.benchmark_group("balance");
    let weights: [(&str, &[u32]); 3] = [("1", &[1]), ("8", &[1; 8]), ("8_weighted", &[1, 2, 3, 4, 5, 6, 7, 8])];
    for (kind, kind_name) in [(Kind::RoundRobin, "round_robin"), (Kind::LeastLoaded, "least_loaded")] {
        for (name, weights) in weights {
            let mut balancer = Balancer::new(kind, weights);
            let mut random = 1u64;
            group.bench_function(BenchmarkId::new(kind_name, name), |b| {
                b.iter(|| {
                    random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    balancer.pick(random, None, |index| black_box(index as u64))
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, path, router, balance);
criterion_main!(benches);
