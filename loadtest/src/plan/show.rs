//! A plan as people read it: every formula with its numbers.

use serde::Serialize;

use super::arithmetic::{Inputs, Misread, Plan};
use super::limiter::{Demand, Kind, RedisLoad};
use crate::report::units::{bandwidth, bytes, count, number, rate, share, time_us};
use crate::report::{Align, columns, wrapped};

const LINE_WIDTH: usize = 90;

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Step {
    part: &'static str,
    name: &'static str,
    formula: String,
    result: String,
}

pub(crate) fn table(inputs: &Inputs, plan: &Plan) -> String {
    let steps = steps(inputs, plan);
    let mut rows = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        if at == 0 || steps[at - 1].part != step.part {
            rows.push(vec![String::new()]);
            rows.push(vec![step.part.to_owned()]);
        }
        rows.push(vec![format!("  {}", step.name), step.formula.clone(), format!("= {}", step.result)]);
    }
    let mut text = format!("Plan for {} at the peak\n", rate(inputs.peak_per_s));
    text += &columns(&rows, &[Align::Left; 3]);
    for note in notes(inputs, plan) {
        text.push('\n');
        text += &wrapped(&note, LINE_WIDTH, 0);
    }
    text
}

/// The plan for programs: what went in, what came out, the same steps and notes.
pub(crate) fn json(inputs: &Inputs, plan: &Plan) -> String {
    #[derive(Serialize)]
    struct File<'a> {
        format: u32,
        inputs: &'a Inputs,
        plan: &'a Plan,
        steps: Vec<Step>,
        notes: Vec<String>,
    }
    let file = File { format: 1, inputs, plan, steps: steps(inputs, plan), notes: notes(inputs, plan) };
    serde_json::to_string_pretty(&file).expect("strings, numbers and lists always have a JSON form") + "\n"
}

fn steps(inputs: &Inputs, plan: &Plan) -> Vec<Step> {
    let parts = [instances(inputs, plan), traffic(inputs, plan), work(inputs, plan), memory(inputs, plan)];
    let redis = inputs.rate_limit.as_ref().zip(plan.redis.as_ref());
    let redis = redis.map_or(Vec::new(), |(demand, load)| redis_steps(demand, load, inputs, plan.instances.total));
    parts.into_iter().flatten().chain(redis).collect()
}

fn instances(inputs: &Inputs, plan: &Plan) -> Vec<Step> {
    let step = |name, formula, result| Step { part: "Instances", name, formula, result };
    let (peak, safety, carries) = (rate(inputs.peak_per_s), number(inputs.safety), rate(inputs.per_instance_per_s));
    let counts = &plan.instances;
    let per_instance = match inputs.headroom > 0.0 {
        true => format!("({carries} per instance x (1 - {} headroom))", share(inputs.headroom)),
        false => format!("{carries} per instance"),
    };
    let mut steps = vec![step(
        "for the load",
        format!("{peak} peak x {safety} safety / {per_instance}, rounded up"),
        count(counts.for_load),
    )];
    let minimum = inputs.instances_min;
    let spares = match inputs.n_plus {
        0 => format!("the larger of {} and {minimum} for availability", counts.for_load),
        more => format!("the larger of {} + {more} that may be lost, and {minimum} for availability", counts.for_load),
    };
    let with_spares = (counts.for_load + inputs.n_plus).max(minimum);
    steps.push(step(if inputs.zones.is_some() { "with spares" } else { "in all" }, spares, count(with_spares)));
    if let Some((per_zone, zones)) = counts.per_zone.zip(inputs.zones) {
        let (load, others) = (counts.for_load, zones - 1);
        let formula =
            format!("the larger of {with_spares} / {zones} zones and {load} / {others} zones left, rounded up");
        steps.push(step("per zone", formula, count(per_zone)));
        steps.push(step("in all", format!("{zones} zones x {per_zone}"), count(counts.total)));
    }
    let busy = |count: u64| format!("{peak} / ({count} x {carries})");
    steps.push(step("busy at the peak", busy(counts.total), share(counts.busy_at_peak)));
    if counts.left_after_loss < counts.total {
        let name = if inputs.zones.is_some() { "and after a loss" } else { "and N left" };
        steps.push(step(name, busy(counts.left_after_loss), share(counts.busy_after_loss)));
    }
    steps
}

fn traffic(inputs: &Inputs, plan: &Plan) -> Vec<Step> {
    let step = |name, formula, bytes_per_s| Step { part: "Bandwidth", name, formula, result: bandwidth(bytes_per_s) };
    let (peak, planned) = (rate(inputs.peak_per_s), &plan.bandwidth);
    let (request, response) = (bytes(inputs.request_bytes), bytes(inputs.response_bytes));
    let (left, safety) = (plan.instances.left_after_loss, number(inputs.safety));
    let (each_way, one) = (planned.each_way_bytes_per_s, planned.each_way_per_instance_bytes_per_s);
    vec![
        step("from clients", format!("{peak} x {request} x 8 bit"), planned.from_clients_bytes_per_s),
        step("to clients", format!("{peak} x {response} x 8 bit"), planned.to_clients_bytes_per_s),
        step("each way, in all", format!("clients and services: {peak} x ({request} + {response}) x 8 bit"), each_way),
        step("of an instance", format!("{} x {safety} safety / {left} instances", bandwidth(each_way)), one),
    ]
}

fn work(inputs: &Inputs, plan: &Plan) -> Vec<Step> {
    let (peak, safety, left) = (rate(inputs.peak_per_s), number(inputs.safety), plan.instances.left_after_loss);
    let mut steps = Vec::new();
    if let (Some(cpu), Some(us)) = (&plan.cpu, inputs.cpu_us_per_request) {
        let step =
            |name, formula, cores| Step { part: "CPU", name, formula, result: format!("{} cores", number(cores)) };
        let per_request = time_us(us);
        steps.push(step("at the peak", format!("{peak} x {per_request} of CPU per request"), cpu.cores_at_peak));
        let formula = format!("{peak} x {safety} safety x {per_request} / {left} instances");
        steps.push(step("of an instance", formula, cpu.cores_per_instance));
    }
    if let (Some(in_flight), Some(latency_s)) = (&plan.in_flight, inputs.latency_s) {
        let step = |name, formula, count| Step { part: "In flight", name, formula, result: number(count) };
        let latency = time_us(latency_s * 1e6);
        steps.push(step("at the peak", format!("Little's law: {peak} x {latency}"), in_flight.at_peak));
        let formula = format!("{peak} x {safety} safety x {latency} / {left} instances");
        steps.push(step("of an instance", formula, in_flight.per_instance));
    }
    steps
}

fn memory(inputs: &Inputs, plan: &Plan) -> Vec<Step> {
    let (Some(memory), Some(connections), Some(each)) =
        (&plan.memory, inputs.connections, inputs.memory_bytes_per_connection)
    else {
        return Vec::new();
    };
    let step = |name, formula, result| Step { part: "Memory", name, formula, result };
    let (left, of_instance) = (plan.instances.left_after_loss, count(memory.connections_per_instance));
    let mut steps = vec![
        step("connections", format!("{} / {left} instances, rounded up", count(connections)), of_instance.clone()),
        step("that they hold", format!("{of_instance} x {}", bytes(each)), bytes(memory.connections_bytes)),
    ];
    if let Some((base, total)) = inputs.memory_bytes_base.zip(memory.total_bytes) {
        let formula = format!("{} base + {}", bytes(base), bytes(memory.connections_bytes));
        steps.push(step("of an instance", formula, bytes(total)));
    }
    steps
}

fn redis_steps(demand: &Demand, load: &RedisLoad, inputs: &Inputs, total: u64) -> Vec<Step> {
    let step = |name, formula, result| Step { part: "Redis", name, formula, result };
    let (keys, each) = (count(demand.keys), rate(demand.rate()));
    let carried = rate(inputs.peak_per_s * inputs.safety);
    let calls = match load.kind {
        Kind::Fast => format!("fast policy: the smaller of the admitted and {keys} keys x {total} instances x 10/s"),
        Kind::Slow => "slow policy: one call for each admitted request".to_owned(),
        Kind::Strict => "strict policy: each admitted request waits for its call".to_owned(),
    };
    vec![
        step("admitted", format!("the smaller of {carried} and {keys} keys x {each}"), rate(load.admitted_per_s)),
        step("calls", calls, rate(load.calls_per_s)),
        step("calls, at most", bound(load.kind), rate(load.calls_per_s_max)),
        step("CPU of Redis", format!("{} x 10 us of CPU per call", rate(load.calls_per_s)), share(load.cores)),
    ]
}

fn bound(kind: Kind) -> String {
    match kind {
        Kind::Fast => "however requests arrive: a report and a returned lease each, or the stated bound".to_owned(),
        Kind::Slow | Kind::Strict => "however requests arrive: one call each, or the stated bound".to_owned(),
    }
}

fn notes(inputs: &Inputs, plan: &Plan) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(slo) = &inputs.slo {
        notes.push(format!("One instance carried {} with {slo}.", rate(inputs.per_instance_per_s)));
    }
    notes.push(latency_note(inputs, &plan.misread));
    if plan.redis.as_ref().is_some_and(|load| load.cores > 1.0) {
        notes.push("One Redis serves about 100,000 calls per second: spread the keys over several.".to_owned());
    }
    notes
}

/// Why the latency is not part of the count, with the numbers that a formula with it would give.
fn latency_note(inputs: &Inputs, misread: &Misread) -> String {
    let (peak, carries, safety) = (rate(inputs.peak_per_s), rate(inputs.per_instance_per_s), number(inputs.safety));
    let (latency, in_flight) = (time_us(misread.latency_s * 1e6), number(misread.in_flight));
    let example = if inputs.latency_s.is_some() { "" } else { "say " };
    let result = number(misread.result_s);
    let mut note = format!(
        "Latency is not part of the count of instances. {peak} x {example}{latency} x {safety} = {in_flight} are \
         requests in flight; divided by {carries} they give {result} seconds, not {result} instances."
    );
    if misread.overload > 1.0 {
        note += &format!(
            " Taken for a count, and rounded up to {}, each instance would get {} times what it carries at the peak.",
            misread.instances,
            number(misread.overload),
        );
    }
    note
}
