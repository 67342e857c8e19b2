//! Keeps the agent's own pages in memory: under thrash the kernel drops program text first, and to read it back it
//! needs the very disk that is too slow or hangs.
//!
//! What is mapped at the start (the program, its data) is read in and locked whole. What comes later (threads' stacks,
//! the allocator's arenas) is locked page by page as it is touched: locked whole it would cost 512 KiB a thread.

use std::io;
use std::sync::OnceLock;

use nodewhy_proto::{Locked, MemoryLock};
use rustix::mm::{MlockAllFlags, mlockall, munlockall};
use rustix::process::{Resource, getrlimit};

static OUTCOME: OnceLock<MemoryLock> = OnceLock::new();

/// What came of it; `None`: it was not tried (the agent is part of another program, or reads only once).
pub fn outcome() -> Option<MemoryLock> {
    OUTCOME.get().cloned()
}

/// Locks this process's memory, or notes why not. To be called before there are threads.
pub fn lock(is_wanted: bool) {
    let outcome =
        if is_wanted { tried() } else { no("switched off in the settings (lock_memory)".to_owned()) };
    // A second call changes nothing.
    OUTCOME.get_or_init(|| outcome);
}

fn tried() -> MemoryLock {
    let limit = getrlimit(Resource::Memlock).current;
    if let Err(errno) = mlockall(MlockAllFlags::CURRENT) {
        return no(format!("mlockall: {}; {}", io::Error::from(errno), needs(limit)));
    }
    match future(limit) {
        Ok(()) => MemoryLock { locked: Locked::All, why: None },
        Err(why) => MemoryLock { locked: Locked::Program, why: Some(why) },
    }
}

/// Locks what will be mapped.
fn future(limit: Option<u64>) -> Result<(), String> {
    // Since Linux 4.4.
    mlockall(MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT).map_err(|errno| {
        format!("what is mapped later: mlockall: {}; {}", io::Error::from(errno), needs(limit))
    })?;
    // The kernel takes the wish in any case, and then refuses each mapping past the limit: an allocation or a thread
    // would fail in the middle of a fault. So it is tried here, without touching a page. With CAP_IPC_LOCK no limit
    // counts.
    let Some(limit) = limit else { return Ok(()) };
    let more = usize::try_from(limit).ok().and_then(|limit| limit.checked_add(1));
    if more.is_some_and(|more| Vec::<u8>::new().try_reserve_exact(more).is_ok()) {
        return Ok(());
    }
    let undone = munlockall().and_then(|()| mlockall(MlockAllFlags::CURRENT));
    Err(match undone {
        Ok(()) => format!("what is mapped later is not locked: {}", needs(Some(limit))),
        Err(errno) => format!("{}; {}", io::Error::from(errno), needs(Some(limit))),
    })
}

fn needs(limit: Option<u64>) -> String {
    let limit = limit.map_or("none".to_owned(), |limit| format!("{limit} bytes"));
    format!("give it CAP_IPC_LOCK, or no RLIMIT_MEMLOCK (it is {limit})")
}

fn no(why: String) -> MemoryLock {
    MemoryLock { locked: Locked::No, why: Some(why) }
}
