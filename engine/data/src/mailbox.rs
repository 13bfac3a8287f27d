//! How anyone reaches a worker from another thread: a bounded queue and a bell (an eventfd) that wakes its loop.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam::queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

/// Connections on their way to a worker; more stay with the worker that accepted them.
const HANDED_MAX: usize = 1024;

/// A client's connection on its way from one worker to another.
pub(crate) struct Handed {
    pub(crate) fd: OwnedFd,
    pub(crate) peer: SocketAddr,
    /// Of the listener that accepted it.
    pub(crate) listener: SocketAddr,
}

pub(crate) struct Mailbox {
    bell: OwnedFd,
    connections: ArrayQueue<Handed>,
    listeners: Mutex<Vec<(SocketAddr, TcpListener)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            connections: ArrayQueue::new(HANDED_MAX),
            listeners: Mutex::default(),
        })
    }

    /// A descriptor that becomes readable when the bell rings.
    pub(crate) fn bell(&self) -> io::Result<OwnedFd> {
        self.bell.try_clone()
    }

    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    pub(crate) fn silence(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
    }

    /// Gives the connection back where the queue is full.
    pub(crate) fn hand_over(&self, handed: Handed) -> Result<(), Handed> {
        self.connections.push(handed)?;
        self.ring();
        Ok(())
    }

    pub(crate) fn take_connection(&self) -> Option<Handed> {
        self.connections.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    pub(crate) fn add_listener(&self, address: SocketAddr, socket: TcpListener) {
        lock(&self.listeners).push((address, socket));
    }

    pub(crate) fn take_listeners(&self) -> Vec<(SocketAddr, TcpListener)> {
        std::mem::take(&mut lock(&self.listeners))
    }
}

const SHARDS: usize = 64;

/// Open connections per client address, over all cores. Touched when a connection begins and ends, never by a request.
/// Memory: one entry per address with an open connection.
pub(crate) struct PerIp {
    shards: [Mutex<HashMap<IpAddr, usize, ahash::RandomState>>; SHARDS],
    hasher: ahash::RandomState,
}

impl PerIp {
    pub(crate) fn new() -> Self {
        Self { shards: [(); SHARDS].map(|()| Mutex::default()), hasher: ahash::RandomState::new() }
    }

    fn shard(&self, ip: IpAddr) -> Option<MutexGuard<'_, HashMap<IpAddr, usize, ahash::RandomState>>> {
        self.shards.get(self.hasher.hash_one(ip) as usize % SHARDS).map(lock)
    }

    /// Takes a place; false where the address has `max` already.
    pub(crate) fn enter(&self, ip: IpAddr, max: usize) -> bool {
        let Some(mut shard) = self.shard(ip) else { return true };
        let open = shard.entry(ip).or_default();
        if *open >= max {
            return false;
        }
        *open += 1;
        true
    }

    pub(crate) fn leave(&self, ip: IpAddr) {
        let Some(mut shard) = self.shard(ip) else { return };
        if let Some(open) = shard.get_mut(&ip) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                shard.remove(&ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let per_ip = PerIp::new();
        let ip = IpAddr::from([127, 0, 0, 1]);
        assert!(per_ip.enter(ip, 2) && per_ip.enter(ip, 2) && !per_ip.enter(ip, 2));
        assert!(per_ip.enter(IpAddr::from([127, 0, 0, 2]), 1));
        per_ip.leave(ip);
        assert!(per_ip.enter(ip, 2));
        per_ip.leave(ip);
        per_ip.leave(ip);
        assert!(per_ip.shard(ip).unwrap().get(&ip).is_none(), "no entry outlives its connections");
    }
}
