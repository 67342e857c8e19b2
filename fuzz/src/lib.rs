//! What every target has: an allocator that ends the run where one allocation is larger than any parser may want.
//! (libFuzzer's own `-malloc_limit_mb` needs a sanitizer.)

use std::alloc::{GlobalAlloc, Layout, System};

/// The agent's files have 8 MiB at most; a few times that is a size that was believed.
const LARGEST_ALLOCATION_BYTES: usize = 64 * 1024 * 1024;

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn checked(bytes: usize) {
    if bytes > LARGEST_ALLOCATION_BYTES {
        // To panic would allocate again. libFuzzer keeps the input of what aborts.
        std::process::abort();
    }
}

// SAFETY: each call is the system allocator's, unchanged.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        checked(layout.size());
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        checked(layout.size());
        // SAFETY: the caller's promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        checked(bytes);
        // SAFETY: the caller's promises.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}
