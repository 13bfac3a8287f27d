//! Where connections are served, one after the other.
//!
//! The future that serves is large, and most connections are idle: only those at work have one. It does not end with a
//! connection but waits for the next, so that neither memory nor a copy of it is needed for each request.

use std::cell::Cell;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use crate::buffer::Buffer;
use crate::connection::Connection;
use crate::serve::{serve, serve_stream};

/// Room for one connection at a time.
pub(crate) struct Place {
    door: Rc<Door>,
    serving: Pin<Box<dyn Future<Output = ()>>>,
}

/// What goes in and out.
#[derive(Default)]
struct Door {
    arrived: Cell<Option<Arrived>>,
    served: Cell<Option<Option<Box<Connection>>>>,
}

enum Arrived {
    Connection(Box<Connection>),
    /// A stream with its request's head: at the front of the block, of this length.
    Stream(Box<Connection>, Buffer, usize),
}

/// The serving panicked. Its connection is gone, and the place must not be used again.
pub(crate) struct Panicked;

impl Place {
    pub(crate) fn new() -> Self {
        let door = Rc::new(Door::default());
        Self { serving: Box::pin(serve_all(Rc::clone(&door))), door }
    }

    /// Has a connection served. Gives it back when it is idle, nothing when it is to be closed.
    pub(crate) async fn serve(&mut self, conn: Box<Connection>) -> Result<Option<Box<Connection>>, Panicked> {
        self.run(Arrived::Connection(conn)).await
    }

    /// Has a stream's one request served, whose head stands at the front of the inbox in the form of HTTP/1.1. Gives it back
    /// where it has become a tunnel.
    pub(crate) async fn serve_stream(
        &mut self,
        conn: Box<Connection>,
        inbox: Buffer,
        head_length: usize,
    ) -> Result<Option<Box<Connection>>, Panicked> {
        self.run(Arrived::Stream(conn, inbox, head_length)).await
    }

    async fn run(&mut self, arrived: Arrived) -> Result<Option<Box<Connection>>, Panicked> {
        self.door.arrived.set(Some(arrived));
        std::future::poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| self.serving.as_mut().poll(cx))) {
            Ok(_) => self.door.served.take().map_or(Poll::Pending, |idle| Poll::Ready(Ok(idle))),
            Err(_) => Poll::Ready(Err(Panicked)),
        })
        .await
    }
}

async fn serve_all(door: Rc<Door>) {
    loop {
        let arrived = std::future::poll_fn(|_| door.arrived.take().map_or(Poll::Pending, Poll::Ready)).await;
        let idle = match arrived {
            Arrived::Connection(conn) => serve(conn).await,
            Arrived::Stream(conn, inbox, head_length) => serve_stream(conn, inbox, head_length).await,
        };
        door.served.set(Some(idle));
    }
}

#[cfg(test)]
mod tests {
    use crate::connection::{Connection, connection as run};

    fn size<A, F>(_: impl Fn(A) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn futures_are_small_where_there_are_many() {
        let busy = size(super::serve_all);
        let idle = size(run);
        let connection = size_of::<Connection>();
        println!("a place: {busy} bytes, an idle connection: {idle} and {connection} bytes");
        assert!(idle + connection <= 384, "{idle} and {connection} bytes for each idle connection");
        assert!(busy <= 4096, "{busy} bytes for each request");
    }
}
