//! One heap for all threads.
//!
//! glibc gives each thread a heap (arena) of its own, up to eight a processor. Two dozen threads that each work for a
//! millisecond a second never wait for one another, but each heap keeps the most that its thread ever used: locked in
//! memory (see [`crate::memory_lock`]) none of it goes back. One heap is used by all in turn.

use nix::libc;

/// So much at once comes from the kernel, and goes back to it when it is freed: a table of rules is 30 MB for a moment.
/// Set, it also stays: by itself glibc raises it to what was freed last.
const LARGE_BYTES: libc::c_int = 256 * 1024;

/// To be called before there are threads. Where the C library has no such choice, nothing changes.
#[expect(unsafe_code, reason = "the C library's allocator is set by a call that nobody has wrapped")]
pub fn share() {
    // SAFETY: mallopt takes numbers alone, and there is no other thread yet that it could meet.
    #[cfg(target_env = "gnu")]
    let taken = unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1) == 1 && libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BYTES) == 1
    };
    #[cfg(not(target_env = "gnu"))]
    let taken = false;
    if !taken {
        eprintln!("nodewhy-agent: the allocator keeps a heap a thread: it needs some MiB more");
    }
}
