//! Memory for the futures of connections that are at work, used again and again.
//!
//! The future of a request is large, and most connections are idle: only those at work hold one. A finished future's
//! place is kept, so that the next one needs no allocation.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// Places that a core keeps when nobody uses them.
const FREE_MAX: usize = 256;

type Place<F> = Pin<Box<Option<F>>>;

pub(crate) struct Slots<F> {
    free: RefCell<Vec<Place<F>>>,
}

/// A future in its place.
pub(crate) struct Slot<F> {
    place: Option<Place<F>>,
    home: Rc<Slots<F>>,
}

impl<F: Future> Slots<F> {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self { free: RefCell::new(Vec::with_capacity(FREE_MAX)) })
    }

    #[inline]
    pub(crate) fn place(self: &Rc<Self>, future: F) -> Slot<F> {
        let place = match self.free.borrow_mut().pop() {
            Some(mut place) => {
                place.set(Some(future));
                place
            }
            None => Box::pin(Some(future)),
        };
        Slot { place: Some(place), home: Rc::clone(self) }
    }
}

impl<F: Future> Future for Slot<F> {
    type Output = F::Output;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<F::Output> {
        match self.place.as_mut().and_then(|place| place.as_mut().as_pin_mut()) {
            Some(future) => future.poll(cx),
            None => std::task::Poll::Pending,
        }
    }
}

impl<F> Drop for Slot<F> {
    fn drop(&mut self) {
        if let Some(mut place) = self.place.take() {
            place.set(None);
            let mut free = self.home.free.borrow_mut();
            if free.len() < FREE_MAX {
                free.push(place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::{Connection, connection};

    fn size<A, F>(_: impl Fn(A) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    #[test]
    fn futures_are_small_where_there_are_many() {
        let busy = size(crate::serve::serve);
        let idle = size(|conn: Connection| connection(conn, Slots::new(), crate::serve::serve));
        println!("a request's future: {busy} bytes, an idle connection's: {idle} bytes");
        assert!(idle <= 512, "{idle} bytes for each idle connection");
        assert!(busy <= 4096, "{busy} bytes for each request");
    }
}
