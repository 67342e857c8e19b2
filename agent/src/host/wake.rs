//! Several descriptors that wake a collector, as one.

use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

/// Readable when any of its descriptors is. One that is closed leaves by itself.
#[derive(Debug)]
pub struct Wake(Epoll);

impl Wake {
    /// Without descriptors; `None` when the kernel has none left to give: then the collector is not woken and looks
    /// at its own pace.
    pub fn new() -> Option<Wake> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).ok().map(Wake)
    }

    /// Adds a descriptor; `false`: it will not wake.
    pub fn add(&self, fd: impl AsFd) -> bool {
        self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0)).is_ok()
    }

    /// The one to wait on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}
