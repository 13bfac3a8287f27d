//! From the file's `load` to a schedule.

use std::time::Duration;

use super::file;
use super::text::{Place, Reader, Text};
use crate::schedule::{Process, Segment};
use crate::units;

/// The measured part of an open loop.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) segments: Vec<Segment>,
    pub(crate) process: Process,
}

pub(crate) const DURATION_DEFAULT: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Requests per second.
const RATE_MAX: f64 = 10_000_000.0;
const PHASES_MAX: usize = 1_000;

/// A time span from 1 ms to a day.
pub(crate) fn duration(reader: &mut Reader, text: &Text) -> Option<Duration> {
    reader.value(text, "a duration from 1ms to 24h", |text| match units::duration(text)? {
        duration if (Duration::from_millis(1)..=DAY).contains(&duration) => Ok(duration),
        _ => Err(None),
    })
}

/// A time span that may be nothing.
pub(crate) fn duration_or_zero(reader: &mut Reader, text: &Text) -> Option<Duration> {
    reader.value(text, "a duration from 0s to 24h", |text| match units::duration(text)? {
        duration if duration <= DAY => Ok(duration),
        _ => Err(None),
    })
}

fn rate(reader: &mut Reader, text: &Text) -> Option<f64> {
    // A flag has its unit in its name; a file shows the unit.
    let flag = matches!(text.place, Place::Flag(_));
    reader.value(text, "a rate from 0/s to 10000000/s", |text| match flag {
        true => bounded(units::or_plain(text, "/s", units::rate)?),
        false => bounded(units::rate(text)?),
    })
}

fn bounded(rate: f64) -> Result<f64, Option<String>> {
    if rate <= RATE_MAX { Ok(rate) } else { Err(None) }
}

/// `1000/s..5000/s`
fn ramp(reader: &mut Reader, text: &Text) -> Option<(f64, f64)> {
    reader.value(text, "two rates: `1000/s..5000/s`", |text| {
        let (from, to) = text.split_once("..").ok_or(None)?;
        Ok((bounded(units::rate(from)?)?, bounded(units::rate(to)?)?))
    })
}

pub(crate) fn profile(reader: &mut Reader, open: &file::Open, place: Place, length: Option<&Text>) -> Option<Profile> {
    let process = match &open.arrivals {
        None => Some(Process::Constant),
        Some(text) => reader.value(text, "`constant` or `poisson`", |text| match text {
            "constant" => Ok(Process::Constant),
            "poisson" => Ok(Process::Poisson),
            _ => Err(None),
        }),
    };
    let segments = match (&open.rate, &open.phases) {
        (Some(text), None) => {
            let length = length.map_or(Some(DURATION_DEFAULT), |text| duration(reader, text));
            let rate = rate(reader, text);
            rate.zip(length).map(|(rate, length)| vec![Segment::constant(rate, length)])
        }
        (None, Some(phases)) => {
            if let Some(length) = length {
                reader.problem(
                    length.place,
                    "`duration` beside `phases`",
                    Some("the phases' `for` say how long it takes"),
                );
            }
            if phases.is_empty() || phases.len() > PHASES_MAX {
                reader.problem(place, format!("`phases` has 1 to {PHASES_MAX} phases"), None);
            }
            let phases: Vec<_> = phases.iter().map(|phase| segments_of(reader, phase)).collect();
            phases.into_iter().collect::<Option<Vec<_>>>().map(|phases| phases.concat())
        }
        (None, None) => {
            let hint = "`rate: 1000/s`, or a list of `phases`; without a schedule write `load: closed`";
            reader.problem(place, "an open loop needs a rate", Some(hint));
            None
        }
        (Some(rate), Some(_)) => {
            reader.problem(rate.place, "`rate` beside `phases`", Some("each phase has its rate"));
            None
        }
    };
    let profile = Profile { segments: segments?, process: process? };
    let length: Duration = profile.segments.iter().map(|segment| segment.length).sum();
    if profile.segments.iter().all(|segment| segment.from == 0.0 && segment.to == 0.0) {
        reader.problem(place, "the rate is 0 all the time", None);
    }
    if length > DAY {
        reader.problem(place, "the phases take longer than 24h", None);
    }
    Some(profile)
}

fn segments_of(reader: &mut Reader, phase: &file::Phase) -> Option<Vec<Segment>> {
    let length = duration(reader, &phase.length);
    match (&phase.rate, &phase.ramp, &phase.steps, &phase.spike) {
        (Some(text), None, None, None) => {
            let rate = rate(reader, text);
            Some(vec![Segment::constant(rate?, length?)])
        }
        (Some(text), None, None, Some(spike)) => {
            let base = rate(reader, text);
            let (top, after) = (rate(reader, &spike.rate), duration_or_zero(reader, &spike.after));
            let spike_length = duration(reader, &spike.length);
            let (base, top, length, after, spike_length) = (base?, top?, length?, after?, spike_length?);
            let Some(rest) = length.checked_sub(after + spike_length) else {
                let hint = "`after` and the spike's `for` are together at most the phase's `for`";
                reader.problem(spike.length.place, "the spike ends after its phase", Some(hint));
                return None;
            };
            let all =
                [Segment::constant(base, after), Segment::constant(top, spike_length), Segment::constant(base, rest)];
            Some(all.into_iter().filter(|segment| !segment.length.is_zero()).collect())
        }
        (None, Some(text), None, None) => {
            let (from, to) = ramp(reader, text)?;
            Some(vec![Segment { length: length?, from, to }])
        }
        (None, None, Some(steps), None) if !steps.is_empty() => {
            let rates: Vec<_> = steps.iter().map(|text| rate(reader, text)).collect();
            let each = length? / u32::try_from(steps.len()).ok()?;
            rates.into_iter().map(|rate| Some(Segment::constant(rate?, each))).collect()
        }
        _ => {
            let hint = "one of `rate`, `ramp` and `steps`; a `spike` goes with a `rate`";
            reader.problem(phase.length.place, "it is not clear what this phase does", Some(hint));
            None
        }
    }
}
