//! What a load needs: pure arithmetic.

use serde::Serialize;

use super::limiter::{Demand, RedisLoad};

/// What is known. Units are in the names.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Inputs {
    pub(crate) peak_per_s: f64,
    /// Times the peak that must be carried.
    pub(crate) safety: f64,
    pub(crate) per_instance_per_s: f64,
    /// Share of an instance's capacity that stays free even then.
    pub(crate) headroom: f64,
    /// Instances that may be lost.
    pub(crate) n_plus: u64,
    /// Zones, one of which may be lost.
    pub(crate) zones: Option<u64>,
    pub(crate) instances_min: u64,
    pub(crate) request_bytes: f64,
    pub(crate) response_bytes: f64,
    pub(crate) latency_s: Option<f64>,
    pub(crate) cpu_us_per_request: Option<f64>,
    /// Of all clients together.
    pub(crate) connections: Option<u64>,
    pub(crate) memory_bytes_per_connection: Option<f64>,
    pub(crate) memory_bytes_base: Option<f64>,
    pub(crate) rate_limit: Option<Demand>,
    /// What held when the capacity was measured.
    pub(crate) slo: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Plan {
    pub(crate) instances: Instances,
    pub(crate) bandwidth: Bandwidth,
    pub(crate) cpu: Option<Cpu>,
    pub(crate) in_flight: Option<InFlight>,
    pub(crate) memory: Option<Memory>,
    pub(crate) redis: Option<RedisLoad>,
    pub(crate) misread: Misread,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Instances {
    /// That carry the peak times the safety factor.
    pub(crate) for_load: u64,
    pub(crate) per_zone: Option<u64>,
    pub(crate) total: u64,
    /// After the largest loss that was planned for: `n_plus` instances, or a zone.
    pub(crate) left_after_loss: u64,
    /// Share of the capacity used at the peak, without and with that loss.
    pub(crate) busy_at_peak: f64,
    pub(crate) busy_after_loss: f64,
}

/// Bytes per second at the peak.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Bandwidth {
    pub(crate) from_clients_bytes_per_s: f64,
    pub(crate) to_clients_bytes_per_s: f64,
    /// Each way, clients and services together: a gateway receives and sends every byte once.
    pub(crate) each_way_bytes_per_s: f64,
    /// The same for one instance, with the safety factor, after the loss.
    pub(crate) each_way_per_instance_bytes_per_s: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Cpu {
    pub(crate) cores_at_peak: f64,
    /// With the safety factor, after the loss.
    pub(crate) cores_per_instance: f64,
}

/// Little's law: requests in flight are rate times latency.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct InFlight {
    pub(crate) at_peak: f64,
    /// With the safety factor, after the loss.
    pub(crate) per_instance: f64,
}

/// Of one instance, after the loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Memory {
    pub(crate) connections_per_instance: u64,
    pub(crate) connections_bytes: f64,
    /// None where the base is not known.
    pub(crate) total_bytes: Option<f64>,
}

/// What comes out of the formula that takes the latency into the count of instances:
/// peak x latency x safety / rate per instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Misread {
    pub(crate) latency_s: f64,
    pub(crate) in_flight: f64,
    /// Requests divided by requests per second.
    pub(crate) result_s: f64,
    /// How many instances it would be taken for.
    pub(crate) instances: u64,
    /// What each of them would get at the peak, as a multiple of what one carries.
    pub(crate) overload: f64,
}

/// The latency that shows what is wrong with the formula above where none was given.
const LATENCY_EXAMPLE_S: f64 = 0.05;

pub(crate) fn plan(inputs: &Inputs) -> Plan {
    let instances = instances(inputs);
    let left = instances.left_after_loss as f64;
    let carried_per_s = inputs.peak_per_s * inputs.safety;
    let each_way_bytes = inputs.request_bytes + inputs.response_bytes;
    let total = instances.total;
    Plan {
        bandwidth: Bandwidth {
            from_clients_bytes_per_s: inputs.peak_per_s * inputs.request_bytes,
            to_clients_bytes_per_s: inputs.peak_per_s * inputs.response_bytes,
            each_way_bytes_per_s: inputs.peak_per_s * each_way_bytes,
            each_way_per_instance_bytes_per_s: carried_per_s * each_way_bytes / left,
        },
        cpu: inputs.cpu_us_per_request.map(|us| Cpu {
            cores_at_peak: inputs.peak_per_s * us / 1e6,
            cores_per_instance: carried_per_s * us / 1e6 / left,
        }),
        in_flight: inputs.latency_s.map(|latency_s| InFlight {
            at_peak: inputs.peak_per_s * latency_s,
            per_instance: carried_per_s * latency_s / left,
        }),
        memory: memory(inputs, instances.left_after_loss),
        redis: inputs.rate_limit.as_ref().map(|demand| demand.redis_load(carried_per_s, total)),
        misread: misread(inputs),
        instances,
    }
}

fn instances(inputs: &Inputs) -> Instances {
    let carries_per_s = inputs.per_instance_per_s * (1.0 - inputs.headroom);
    let for_load = ceil(inputs.peak_per_s * inputs.safety / carries_per_s).max(1);
    let with_spare = (for_load + inputs.n_plus).max(inputs.instances_min);
    let per_zone = inputs.zones.map(|zones| with_spare.div_ceil(zones).max(for_load.div_ceil(zones - 1)));
    let total = per_zone.zip(inputs.zones).map_or(with_spare, |(per_zone, zones)| per_zone * zones);
    let left_after_loss = total - inputs.n_plus.max(per_zone.unwrap_or(0));
    let busy = |count: u64| inputs.peak_per_s / (count as f64 * inputs.per_instance_per_s);
    let (busy_at_peak, busy_after_loss) = (busy(total), busy(left_after_loss));
    Instances { for_load, per_zone, total, left_after_loss, busy_at_peak, busy_after_loss }
}

fn memory(inputs: &Inputs, left: u64) -> Option<Memory> {
    let (connections, bytes) = inputs.connections.zip(inputs.memory_bytes_per_connection)?;
    let connections_per_instance = connections.div_ceil(left);
    let connections_bytes = connections_per_instance as f64 * bytes;
    let total_bytes = inputs.memory_bytes_base.map(|base| base + connections_bytes);
    Some(Memory { connections_per_instance, connections_bytes, total_bytes })
}

fn misread(inputs: &Inputs) -> Misread {
    let latency_s = inputs.latency_s.unwrap_or(LATENCY_EXAMPLE_S);
    let in_flight = inputs.peak_per_s * latency_s * inputs.safety;
    let result_s = in_flight / inputs.per_instance_per_s;
    let instances = ceil(result_s).max(inputs.instances_min);
    let overload = inputs.peak_per_s / (instances as f64 * inputs.per_instance_per_s);
    Misread { latency_s, in_flight, result_s, instances, overload }
}

/// The next whole number, where the excess is more than what rounding of binary fractions leaves.
fn ceil(value: f64) -> u64 {
    (value * (1.0 - 1e-12)).ceil() as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 10,000/s, 2 KB in, 16 KB out, 2,000/s per instance, safety 2, 50 ms.
    fn example() -> Inputs {
        Inputs {
            peak_per_s: 10_000.0,
            safety: 2.0,
            per_instance_per_s: 2_000.0,
            headroom: 0.0,
            n_plus: 0,
            zones: None,
            instances_min: 2,
            request_bytes: 2_000.0,
            response_bytes: 16_000.0,
            latency_s: Some(0.05),
            cpu_us_per_request: None,
            connections: None,
            memory_bytes_per_connection: None,
            memory_bytes_base: None,
            rate_limit: None,
            slo: None,
        }
    }

    fn count(change: impl FnOnce(&mut Inputs)) -> Instances {
        let mut inputs = example();
        change(&mut inputs);
        plan(&inputs).instances
    }

    #[test]
    fn the_worked_example() {
        let plan = plan(&example());
        assert_eq!((plan.instances.for_load, plan.instances.total, plan.instances.left_after_loss), (10, 10, 10));
        assert_eq!(plan.instances.busy_at_peak, 0.5);
        assert_eq!(plan.bandwidth.from_clients_bytes_per_s * 8.0, 160e6);
        assert_eq!(plan.bandwidth.to_clients_bytes_per_s * 8.0, 1.28e9);
        assert_eq!(plan.bandwidth.each_way_bytes_per_s * 8.0, 1.44e9);
        assert_eq!(plan.bandwidth.each_way_per_instance_bytes_per_s * 8.0, 288e6);
        assert_eq!(plan.in_flight, Some(InFlight { at_peak: 500.0, per_instance: 100.0 }));
        let misread = Misread { latency_s: 0.05, in_flight: 1_000.0, result_s: 0.5, instances: 2, overload: 2.5 };
        assert_eq!(plan.misread, misread);
    }

    #[test]
    fn availability_has_its_minimum() {
        assert_eq!(count(|inputs| inputs.peak_per_s = 10.0).total, 2);
        assert_eq!(count(|inputs| (inputs.peak_per_s, inputs.n_plus) = (10.0, 1)).total, 2);
        assert_eq!(count(|inputs| (inputs.peak_per_s, inputs.n_plus) = (10.0, 3)).total, 4);
        assert_eq!(count(|inputs| (inputs.peak_per_s, inputs.instances_min) = (10.0, 1)).total, 1);
    }

    #[test]
    fn headroom_and_spares_add_instances() {
        // 20,000 / (2,000 x 0.7) = 14.3
        assert_eq!(count(|inputs| inputs.headroom = 0.3).total, 15);
        let spare = count(|inputs| inputs.n_plus = 1);
        assert_eq!((spare.total, spare.left_after_loss), (11, 10));
    }

    #[test]
    fn a_zone_may_be_lost() {
        // 5 in each of the two that are left.
        let three = count(|inputs| inputs.zones = Some(3));
        assert_eq!((three.per_zone, three.total, three.left_after_loss), (Some(5), 15, 10));
        let two = count(|inputs| inputs.zones = Some(2));
        assert_eq!((two.per_zone, two.total, two.left_after_loss), (Some(10), 20, 10));
        // A spare fits into what the zones have anyway.
        assert_eq!(count(|inputs| (inputs.zones, inputs.n_plus) = (Some(3), 1)).total, 15);
        assert_eq!(count(|inputs| (inputs.zones, inputs.n_plus) = (Some(3), 6)).total, 18);
    }

    #[test]
    fn memory_and_cpu_are_those_of_an_instance_after_the_loss() {
        let inputs = Inputs {
            n_plus: 1,
            connections: Some(100_001),
            memory_bytes_per_connection: Some(1_000.0),
            memory_bytes_base: Some(20e6),
            cpu_us_per_request: Some(12.5),
            ..example()
        };
        let plan = plan(&inputs);
        let memory =
            Memory { connections_per_instance: 10_001, connections_bytes: 10_001e3, total_bytes: Some(30_001e3) };
        assert_eq!(plan.memory, Some(memory));
        assert_eq!(plan.cpu, Some(Cpu { cores_at_peak: 0.125, cores_per_instance: 0.025 }));
    }

    #[test]
    fn rounding_of_fractions_adds_no_instance() {
        // 0.1 x 3 is a little more than 0.3.
        let inputs =
            |inputs: &mut Inputs| (inputs.peak_per_s, inputs.safety, inputs.per_instance_per_s) = (0.1, 3.0, 0.3);
        assert_eq!(count(inputs).for_load, 1);
    }

    prop_compose! {
        fn any_inputs()(
            peak_per_s in 0.01..1e7f64, safety in 1.0..10.0f64, per_instance_per_s in 1.0..1e5f64, headroom in 0.0..0.9f64,
            n_plus in 0..5u64, zones in proptest::option::of(2..8u64), instances_min in 1..5u64,
        ) -> Inputs {
            Inputs { peak_per_s, safety, per_instance_per_s, headroom, n_plus, zones, instances_min, ..example() }
        }
    }

    proptest! {
        #[test]
        fn the_load_is_carried_after_any_planned_loss(inputs in any_inputs()) {
            let instances = plan(&inputs).instances;
            let carries = |count: u64| count as f64 * inputs.per_instance_per_s * (1.0 - inputs.headroom) * 1.000_001;
            let load = inputs.peak_per_s * inputs.safety;
            prop_assert!(carries(instances.left_after_loss) >= load);
            prop_assert!(carries(instances.total - inputs.n_plus) >= load);
            if let Some((per_zone, zones)) = instances.per_zone.zip(inputs.zones) {
                prop_assert_eq!(instances.total, per_zone * zones);
                prop_assert!(carries(instances.total - per_zone) >= load);
            }
        }

        #[test]
        fn never_fewer_than_availability_asks_for(inputs in any_inputs()) {
            let instances = plan(&inputs).instances;
            prop_assert!(instances.total >= inputs.instances_min.max(inputs.n_plus + 1));
            prop_assert!(instances.left_after_loss >= 1);
        }

        #[test]
        fn more_load_never_needs_fewer(inputs in any_inputs(), times in 1.0..10.0f64) {
            let more = |change: fn(&mut Inputs, f64)| {
                let mut inputs = inputs.clone();
                change(&mut inputs, times);
                plan(&inputs).instances.total
            };
            let total = plan(&inputs).instances.total;
            prop_assert!(more(|inputs, times| inputs.peak_per_s *= times) >= total);
            prop_assert!(more(|inputs, times| inputs.safety *= times) >= total);
            prop_assert!(more(|inputs, times| inputs.n_plus += times as u64) >= total);
            prop_assert!(more(|inputs, times| inputs.headroom += (1.0 - inputs.headroom) * (1.0 - 1.0 / times)) >= total);
            prop_assert!(more(|inputs, times| inputs.per_instance_per_s *= times) <= total);
        }

        #[test]
        fn without_zones_no_instance_is_too_many(inputs in any_inputs()) {
            let Instances { for_load, total, .. } = plan(&Inputs { zones: None, ..inputs.clone() }).instances;
            let load = inputs.peak_per_s * inputs.safety;
            let one_less = (for_load - 1) as f64 * inputs.per_instance_per_s * (1.0 - inputs.headroom);
            prop_assert!(one_less < load);
            prop_assert_eq!(total, (for_load + inputs.n_plus).max(inputs.instances_min));
        }
    }
}
