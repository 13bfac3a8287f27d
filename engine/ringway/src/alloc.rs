//! The process' allocator: mimalloc, with a count of each thread's allocations, so that a test can assert that a
//! request in the steady state makes none. The one file of this crate with `unsafe`.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;

use mimalloc::MiMalloc;

/// Counts and passes on.
pub(crate) struct Counting;

thread_local! {
    // Constant and without a destructor: reading it neither allocates nor fails while a thread ends.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

/// Allocations of the calling thread since its start; one that grows or shrinks counts too.
pub(crate) fn allocations() -> u64 {
    COUNT.get()
}

#[inline]
fn count() {
    COUNT.set(COUNT.get().wrapping_add(1));
}

// SAFETY: every call goes to mimalloc with its arguments unchanged; counting touches no memory that it manages.
unsafe impl GlobalAlloc for Counting {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is the same.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as in `alloc`.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `pointer` came from this allocator, hence from mimalloc, with this layout.
        unsafe { MiMalloc.realloc(pointer, layout, size) }
    }

    #[inline]
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_thread_that_allocates_counts() {
        let before = allocations();
        let other = std::thread::spawn(|| {
            let before = allocations();
            drop(std::hint::black_box(vec![0u8; 100]));
            allocations() - before
        });
        assert_eq!(other.join().unwrap(), 1);
        let after_spawn = allocations();
        assert!(after_spawn > before);
        let number = std::hint::black_box(7);
        assert_eq!(std::hint::black_box(number) + 1, 8);
        assert_eq!(allocations(), after_spawn);
    }
}
