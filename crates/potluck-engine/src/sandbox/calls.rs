//! The system calls that an engine keeps.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// What computing needs: memory, threads, time, the descriptors that are open, and dying.
const COMPUTING: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_set_tid_address,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler,
    libc::SYS_getpriority,
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_getrusage,
    libc::SYS_prlimit64,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_fstat,
    libc::SYS_ppoll,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What the driver of a GPU needs beyond: its files (landlock says which), its device.
const DRIVING: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_memfd_create,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getcwd,
    libc::SYS_flock,
    libc::SYS_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
];

/// Leaves this thread, and those that it starts, the calls above. Others give `EPERM`.
pub(super) fn forbid(gpu: bool) -> Result<(), Error> {
    // The C library falls back to `clone`, whose flags can be read, where `clone3` does not exist.
    install(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, libc::ENOSYS)?;
    install(allowed(gpu)?, SeccompAction::Errno(libc::EPERM as u32), 0)
}

/// Refuses this thread, and those that it starts, the tiles of AMX; see `arch_prctl(2)`.
#[cfg(target_arch = "x86_64")]
pub(super) fn forbid_amx() -> Result<(), Error> {
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    let asks = vec![equals(0, ARCH_REQ_XCOMP_PERM)?];
    install(BTreeMap::from([(libc::SYS_arch_prctl, asks)]), SeccompAction::Allow, libc::EPERM)
}

/// Installs a filter. With `Allow` as what is usual, the calls listed give `errno`; else they are allowed.
fn install(calls: BTreeMap<i64, Vec<SeccompRule>>, usual: SeccompAction, errno: i32) -> Result<(), Error> {
    let listed = match usual {
        SeccompAction::Allow => SeccompAction::Errno(errno as u32),
        _ => SeccompAction::Allow,
    };
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(Error::Backend)?;
    let filter = SeccompFilter::new(calls, usual, listed, arch).map_err(Error::Backend)?;
    let program: BpfProgram = filter.try_into().map_err(Error::Backend)?;
    seccompiler::apply_filter(&program)
}

fn allowed(gpu: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>, Error> {
    let more = if gpu { DRIVING } else { &[] };
    let mut calls: BTreeMap<i64, Vec<SeccompRule>> =
        COMPUTING.iter().chain(more).map(|&call| (call, Vec::new())).collect();
    // A thread, and not a process.
    calls.insert(libc::SYS_clone, vec![has_bits(0, libc::CLONE_THREAD as u64)?]);
    // Here so that the other filter's answer to it counts: of two refusals the later filter's would.
    calls.insert(libc::SYS_clone3, Vec::new());
    // Signals to itself only: `abort` sends one.
    // SAFETY: a plain system call.
    let own = unsafe { libc::getpid() } as u64;
    calls.insert(libc::SYS_tgkill, vec![equals(0, own)?]);
    if !gpu {
        // `fstat` of an open descriptor, which some C libraries spell like this; never of a path.
        calls.insert(libc::SYS_newfstatat, vec![has_bits(3, libc::AT_EMPTY_PATH as u64)?]);
        calls.insert(libc::SYS_fcntl, vec![equals(1, libc::F_GETFL as u64)?, equals(1, libc::F_DUPFD_CLOEXEC as u64)?]);
        // Memory is never executable: nothing here compiles as it runs.
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            calls.insert(call, vec![lacks_bits(2, libc::PROT_EXEC as u64)?]);
        }
    }
    Ok(calls)
}

fn has_bits(argument: u8, bits: u64) -> Result<SeccompRule, Error> {
    rule(argument, SeccompCmpOp::MaskedEq(bits), bits)
}

fn lacks_bits(argument: u8, bits: u64) -> Result<SeccompRule, Error> {
    rule(argument, SeccompCmpOp::MaskedEq(bits), 0)
}

fn equals(argument: u8, value: u64) -> Result<SeccompRule, Error> {
    rule(argument, SeccompCmpOp::Eq, value)
}

fn rule(argument: u8, operation: SeccompCmpOp, value: u64) -> Result<SeccompRule, Error> {
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operation, value).map_err(Error::Backend)?;
    SeccompRule::new(vec![condition]).map_err(Error::Backend)
}
