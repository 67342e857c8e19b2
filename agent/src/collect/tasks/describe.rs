//! What a single task waits for: kernel stack, system call, the file and the mount behind it.
//!
//! `stack` and `syscall` take a lock that an `exec` holds which may itself hang, so all of this runs apart.

use nix::libc;
use serde::Serialize;

use crate::host::{Host, ReadError};

/// Frames of a stack that are kept.
const MOST_FRAMES: usize = 16;

/// What a task waits for, as far as the kernel lets it be known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Described {
    /// The kernel's functions, innermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<String>,
    /// The system call: its name, or its number where the name is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub syscall: Option<String>,
    /// The file that the call is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The mount of that file: `/data (nfs4 of server:/export)`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mount: Option<String>,
    /// What could not be known, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub untold: Vec<String>,
}

/// Reads it. May hang.
pub(super) fn describe(host: &Host, pid: u32, tid: u32) -> Described {
    let mut told = Described::default();
    match host.task_file(pid, tid, "stack") {
        Ok(text) => told.stack = stack(&text),
        Err(error) => told.untold.extend(why("stack", &error)),
    }
    let call = match host.task_file(pid, tid, "syscall") {
        Ok(text) => call(&text),
        Err(error) => {
            told.untold.extend(why("system call", &error));
            return told;
        }
    };
    let Some(call) = call else { return told };
    told.syscall = Some(name(call.number).map_or_else(|| format!("number {}", call.number), str::to_owned));
    let Some(descriptor) = descriptor(&call) else { return told };
    match host.process_link(pid, &format!("fd/{descriptor}")) {
        Ok(path) => told.file = Some(path.display().to_string()),
        Err(error) => {
            told.untold.extend(why("file", &error));
            return told;
        }
    }
    let mount_id =
        host.task_file(pid, tid, &format!("fdinfo/{descriptor}")).ok().and_then(|text| mount_id(&text));
    // Each mount's options are asked of its file system: of the process that waits, not of a path.
    let mounts = host.task_file(pid, tid, "mountinfo").ok();
    told.mount = mount_id.zip(mounts).and_then(|(id, mounts)| mount(&mounts, id));
    told
}

fn why(what: &str, error: &ReadError) -> Option<String> {
    match error {
        ReadError::NotFound { .. } => None,
        ReadError::Denied { .. } => Some(format!(
            "{what}: refused; it takes root with CAP_SYS_ADMIN and CAP_SYS_PTRACE, and no AppArmor profile"
        )),
        error => Some(format!("{what}: {error}")),
    }
}

/// `[<0>] rpc_wait_bit_killable+0x24/0xa0 [sunrpc]`, a line a frame.
fn stack(text: &str) -> Vec<String> {
    let frames = text.lines().filter_map(|line| {
        let place = line.trim().strip_prefix("[<")?.split_once(">] ")?.1;
        let function = place.split('+').next()?.trim();
        (!function.is_empty()).then(|| function.to_owned())
    });
    frames.take(MOST_FRAMES).collect()
}

/// A system call and its first argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    number: i64,
    first: u64,
}

/// `0 0x3 0x7ff… … sp pc`; `running`; `-1 sp pc` outside of a system call. The number is decimal, the rest hexadecimal.
fn call(text: &str) -> Option<Call> {
    let line = text.strip_suffix('\n')?;
    let mut fields = line.split(' ');
    let number: i64 = fields.next()?.parse().ok()?;
    let first = u64::from_str_radix(fields.next()?.strip_prefix("0x")?, 16).ok()?;
    // Six arguments, the stack pointer, the program counter.
    (number >= 0 && fields.count() == 7).then_some(Call { number, first })
}

/// The descriptor that the call is about, if it is about one.
fn descriptor(call: &Call) -> Option<u32> {
    let takes = NAMES.iter().find(|(number, ..)| *number == call.number).is_some_and(|(_, _, takes)| *takes);
    // AT_FDCWD (-100) and other negative ones are no descriptor.
    takes.then(|| u32::try_from(call.first).ok().filter(|fd| i32::try_from(*fd).is_ok())).flatten()
}

/// The call's name, where it is one that waits for files, devices or other tasks.
fn name(number: i64) -> Option<&'static str> {
    NAMES.iter().find(|(known, ..)| *known == number).map(|(_, name, _)| *name)
}

macro_rules! names {
    ($($(#[$when:meta])* $constant:ident $name:literal $takes:literal,)*) => {
        /// Number, name, and whether its first argument is a file's descriptor.
        static NAMES: &[(i64, &str, bool)] = &[$($(#[$when])* (libc::$constant, $name, $takes),)*];
    };
}

names! {
    SYS_read "read" true,
    SYS_write "write" true,
    SYS_pread64 "pread64" true,
    SYS_pwrite64 "pwrite64" true,
    SYS_readv "readv" true,
    SYS_writev "writev" true,
    SYS_fsync "fsync" true,
    SYS_fdatasync "fdatasync" true,
    SYS_syncfs "syncfs" true,
    SYS_sync "sync" false,
    SYS_ftruncate "ftruncate" true,
    SYS_fallocate "fallocate" true,
    SYS_getdents64 "getdents64" true,
    SYS_fstat "fstat" true,
    SYS_fstatfs "fstatfs" true,
    SYS_statfs "statfs" false,
    SYS_statx "statx" true,
    SYS_newfstatat "newfstatat" true,
    SYS_openat "openat" true,
    SYS_unlinkat "unlinkat" true,
    SYS_mkdirat "mkdirat" true,
    SYS_renameat2 "renameat2" true,
    SYS_faccessat "faccessat" true,
    SYS_close "close" false,
    SYS_ioctl "ioctl" true,
    SYS_flock "flock" true,
    SYS_fcntl "fcntl" true,
    SYS_fchdir "fchdir" true,
    SYS_mount "mount" false,
    SYS_umount2 "umount2" false,
    SYS_setns "setns" false,
    SYS_unshare "unshare" false,
    SYS_execve "execve" false,
    SYS_clone "clone" false,
    SYS_clone3 "clone3" false,
    SYS_exit "exit" false,
    SYS_exit_group "exit_group" false,
    SYS_mmap "mmap" false,
    SYS_munmap "munmap" false,
    SYS_mprotect "mprotect" false,
    SYS_madvise "madvise" false,
    SYS_brk "brk" false,
    SYS_wait4 "wait4" false,
    SYS_waitid "waitid" false,
    SYS_futex "futex" false,
    SYS_sendmsg "sendmsg" true,
    SYS_recvmsg "recvmsg" true,
    SYS_connect "connect" true,
    SYS_finit_module "finit_module" true,
    SYS_delete_module "delete_module" false,
    SYS_reboot "reboot" false,
    SYS_ptrace "ptrace" false,
    SYS_bpf "bpf" false,
    SYS_io_uring_enter "io_uring_enter" false,
    SYS_io_getevents "io_getevents" false,
    #[cfg(target_arch = "x86_64")] SYS_open "open" false,
    #[cfg(target_arch = "x86_64")] SYS_stat "stat" false,
    #[cfg(target_arch = "x86_64")] SYS_lstat "lstat" false,
    #[cfg(target_arch = "x86_64")] SYS_access "access" false,
    #[cfg(target_arch = "x86_64")] SYS_unlink "unlink" false,
    #[cfg(target_arch = "x86_64")] SYS_rmdir "rmdir" false,
    #[cfg(target_arch = "x86_64")] SYS_mkdir "mkdir" false,
    #[cfg(target_arch = "x86_64")] SYS_rename "rename" false,
    #[cfg(target_arch = "x86_64")] SYS_vfork "vfork" false,
    #[cfg(target_arch = "x86_64")] SYS_fork "fork" false,
}

/// The line `mnt_id:\t29` of /proc/PID/fdinfo/FD.
fn mount_id(text: &str) -> Option<u64> {
    let line =
        text.split_inclusive('\n').find_map(|line| line.strip_suffix('\n')?.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// `36 35 98:0 /root /mount rw,noatime - ext4 /dev/sda1 rw`: number, parent, device, root, mount point, options, optional
/// fields, `-`, type, source (proc_pid_mountinfo(5)).
fn mount(text: &str, id: u64) -> Option<String> {
    let line = text
        .lines()
        .find(|line| line.split_once(' ').and_then(|(number, _)| number.parse::<u64>().ok()) == Some(id))?;
    let (before, behind) = line.split_once(" - ")?;
    let point = before.split(' ').nth(4)?;
    let mut behind = behind.split(' ');
    Some(format!("{point} ({} of {})", behind.next()?, behind.next()?))
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    use crate::fuzz::{done, text};
    let text = text(bytes);
    done(stack(&text));
    done(call(&text).and_then(|call| descriptor(&call)));
    done(mount_id(&text));
    done(mount(&text, 36));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44: `cat` that waits at a pipe.
    const CALL: &str =
        "0 0x0 0x7f1f6fa10000 0x20000 0x7f1f6faa3b60 0xffffffff 0x0 0x7fff687a9568 0x7f1f6fb8c2ad\n";
    const STACK: &str = "[<0>] anon_pipe_read+0x366/0x410\n[<0>] vfs_read+0x32c/0x360\n[<0>] ksys_read+0xba/0xe0\n[<0>] do_syscall_64+0x71/0x280\n[<0>] entry_SYSCALL_64_after_hwframe+0x76/0x7e\n";
    const FDINFO: &str = "pos:\t0\nflags:\t00\nmnt_id:\t16\nino:\t1715532\n";
    // The kernel's own example (Documentation/filesystems/proc.rst, 3.5).
    const MOUNT: &str = "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n";

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn recorded_texts() {
        let read = call(CALL).unwrap();
        assert_eq!((name(read.number), descriptor(&read)), (Some("read"), Some(0)));
        assert_eq!(call("running\n"), None);
        assert_eq!(call("-1 0x7fff687a9568 0x7f1f6fb8c2ad\n"), None);
        let there = Call { number: libc::SYS_openat, first: 0xffff_ff9c };
        assert_eq!(descriptor(&there), None, "AT_FDCWD");
        assert_eq!(stack(STACK).first().unwrap(), "anon_pipe_read");
        assert_eq!(stack(STACK).len(), 5);
        assert_eq!(mount(MOUNT, 36).as_deref(), Some("/mnt2 (ext3 of /dev/root)"));
        assert_eq!(mount(MOUNT, 35), None);
        assert_eq!(mount_id(FDINFO), Some(16));
    }

    proptest! {
        #[test]
        fn a_cut_call_is_none(cut in 0..CALL.len()) {
            prop_assert_eq!(call(&CALL[..cut]), None);
        }

        #[test]
        fn any_text_is_taken(text in "\\PC{0,200}\n?", id: u64) {
            call(&text);
            stack(&text);
            mount_id(&text);
            mount(&text, id);
        }
    }
}
