//! Endpoints from etcd: all keys are listed, then watched from there on; and listed again at intervals, so that a watch that
//! has silently died is noticed.

mod client;
mod keys;

use std::time::Duration;

use ringway_config::snapshot::{Etcd, EtcdServer};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use self::client::{Connection, Watched};
use self::keys::Keys;
use super::Found;

/// Between two tries, at first and at most; each time a random part of the upper half.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(2);
/// What ends sooner counts as another failed try.
const STABLE: Duration = Duration::from_secs(1);

pub(super) async fn find(mut found: Found, of: &Etcd) {
    let mut keys = Keys::default();
    let mut back_off = BACK_OFF_MIN;
    for server in of.servers.iter().cycle() {
        let begun = Instant::now();
        loop {
            match follow(&mut found, &mut keys, of, server).await {
                // What was to be watched is history that etcd has given up: from the beginning.
                Ok(Compacted) => {
                    tracing::info!("service `{}`: etcd has compacted what was to be watched", found.service);
                    sleep(BACK_OFF_MIN).await;
                }
                Err(reason) => {
                    found.fail(&format!("etcd: {reason}"));
                    break;
                }
            }
        }
        if begun.elapsed() >= STABLE {
            back_off = BACK_OFF_MIN;
        }
        sleep(back_off.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        back_off = (back_off * 2).min(BACK_OFF_MAX);
    }
}

struct Compacted;

/// Goes on with one server for as long as it answers.
async fn follow(found: &mut Found, keys: &mut Keys, of: &Etcd, server: &EtcdServer) -> Result<Compacted, String> {
    let mut lister = Connection::open(server, of).await?;
    let listed = lister.list(&of.prefix).await?;
    keys.list(listed, found.of.tls.as_ref());
    found.learn_but(keys.endpoints(), keys.problem());
    let mut watch = Connection::open(server, of).await?.watch(&of.prefix, keys.revision() + 1).await?;
    let mut looks = interval_at(Instant::now() + found.of.interval, found.of.interval);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The last list had news of which the watch has said nothing since. It may just have been late; twice it is dead.
    let mut was_silent = false;
    loop {
        let is_changed = tokio::select! {
            watched = watch.next() => match watched? {
                Watched::Events(events) => {
                    was_silent = false;
                    keys.follow(events, found.of.tls.as_ref())
                }
                Watched::Compacted => return Ok(Compacted),
            },
            _ = looks.tick() => {
                let listed = lister.list(&of.prefix).await?;
                // Unless more was heard of meanwhile.
                let has_news = listed.revision >= keys.revision() && keys.list(listed, found.of.tls.as_ref());
                if has_news && std::mem::replace(&mut was_silent, has_news) {
                    return Err("the watch is silent".into());
                }
                has_news
            }
        };
        // That there is nobody is believed in time.
        match is_changed || keys.is_empty() {
            true => found.learn_but(keys.endpoints(), keys.problem()),
            false => found.unchanged(keys.problem()),
        }
    }
}
