//! Which request comes next, and its bytes.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::failure::Failure;

/// A kind of request: one entry of a scenario's `requests`.
#[derive(Debug)]
pub(crate) struct Class {
    pub(crate) name: String,
    pub(crate) expects: Expects,
}

/// The statuses that count as good answers.
#[derive(Debug, Clone)]
pub(crate) struct Expects(Vec<std::ops::RangeInclusive<u16>>);

impl Expects {
    pub(crate) fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// All that a scenario sends, shared by the threads.
#[derive(Debug)]
pub(crate) struct Requests {
    classes: Vec<Class>,
}

impl Requests {
    pub(crate) fn classes(&self) -> &[Class] {
        &self.classes
    }

    pub(crate) fn mixes(this: &Arc<Self>, threads: usize, seed: u64) -> Result<Vec<Mix>, Failure> {
        let _ = seed;
        Ok((0..threads).map(|_| Mix { requests: this.clone() }).collect())
    }
}

/// A thread's requests, one after the other.
#[derive(Debug)]
pub(crate) struct Mix {
    requests: Arc<Requests>,
}

/// A request that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Issued {
    /// Index into `Scenario::classes`.
    pub(crate) class: usize,
    /// From 0.
    pub(crate) client: usize,
    /// Its answer has no body.
    pub(crate) method_is_head: bool,
}

/// A request that was chosen and not yet written: which client, and so which source address it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pick {
    pub(crate) class: usize,
    pub(crate) client: usize,
}

impl Mix {
    /// Picks a request and appends its bytes to `out`.
    pub(crate) fn write(&mut self, out: &mut Vec<u8>) -> Issued {
        let pick = self.pick();
        self.write_picked(pick, out)
    }

    /// Chooses the next request and its client: for who needs to know the source address before writing.
    pub(crate) fn pick(&mut self) -> Pick {
        Pick { class: 0, client: 0 }
    }

    /// Appends the request of a pick.
    pub(crate) fn write_picked(&mut self, pick: Pick, out: &mut Vec<u8>) -> Issued {
        let _ = (out, &self.requests);
        Issued { class: pick.class, client: pick.client, method_is_head: false }
    }

    /// The source address of a client's connections; `None` if the kernel may choose. Several clients may share one.
    pub(crate) fn client_address(&self, client: usize) -> Option<Ipv4Addr> {
        let _ = client;
        None
    }
}
