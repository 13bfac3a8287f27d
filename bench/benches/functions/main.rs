//! Times every case, and beside some what else could stand in their place.

mod baselines;
mod cpu_time;

use cpu_time::CpuTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ringway_bench::cases;

fn functions(c: &mut Criterion<CpuTime>) {
    for cases in cases::all().chunk_by(|left, right| left.group == right.group) {
        let Some(group_name) = cases.first().map(|case| case.group) else { continue };
        let mut group = c.benchmark_group(group_name);
        for case in cases {
            if let Some(bytes) = case.bytes {
                group.throughput(Throughput::Bytes(bytes as u64));
            }
            // Made when it is its turn: a filter leaves out what takes long to prepare.
            group.bench_with_input(case.name, case, |b, case| {
                let mut calls = case.prepare();
                b.iter_custom(|times| CpuTime::of(|| calls(times)));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = functions, baselines::heads, baselines::chunked, baselines::log_line
}
criterion_main!(benches);
