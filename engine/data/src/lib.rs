//! Placeholder of the data plane's API, to compile against.
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use ringway_config::Hub;
use ringway_config::snapshot::Runtime;

#[derive(Debug)]
pub struct StartError;

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("placeholder")
    }
}

impl std::error::Error for StartError {}

#[derive(Debug)]
pub struct Workers {
    hub: Arc<Hub>,
    listeners: Vec<(SocketAddr, Vec<TcpListener>)>,
}

pub fn workers_of(runtime: &Runtime) -> usize {
    runtime.workers.unwrap_or(1)
}

pub fn bind(address: SocketAddr, _backlog: u32, _workers: usize) -> io::Result<Vec<TcpListener>> {
    Ok(vec![TcpListener::bind(address)?])
}

pub fn set_allocation_counter(_counter: fn() -> u64) {}

impl Workers {
    pub fn start(hub: Arc<Hub>, listeners: Vec<(SocketAddr, Vec<TcpListener>)>) -> Result<Self, StartError> {
        for cell in &hub.workers.workers {
            cell.driver.set(ringway_core::stats::Driver::Epoll as u64);
        }
        Ok(Self { hub, listeners })
    }

    pub fn reload(&self, _added: Vec<(SocketAddr, Vec<TcpListener>)>) {}

    pub fn wake(&self) {}

    pub fn join(self, _deadline: Duration) -> usize {
        drop(self.listeners);
        drop(self.hub);
        0
    }
}
