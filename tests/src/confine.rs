//! Conditions that a process starts under: what containers and tight machines take away, or give. The one file of this crate
//! with `unsafe`.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Resource, Rlimit, setrlimit};

/// The limit on open files, soft and hard.
pub fn limit_descriptors(command: &mut Command, limit: u64) {
    let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
    // SAFETY: runs one system call between fork and exec, which touches no memory and takes no lock.
    unsafe { command.pre_exec(move || Ok(setrlimit(Resource::Nofile, limit)?)) };
}

/// Any process of this user may trace it, also where Yama keeps that to ancestors.
pub fn allow_tracing(command: &mut Command) {
    // SAFETY: prctl reads its plain arguments.
    let allow = || match check(unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) }) {
        // A kernel without Yama.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    };
    // SAFETY: runs one system call between fork and exec, with plain arguments.
    unsafe { command.pre_exec(allow) };
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `io_uring_setup` fails with `EPERM`, as the default seccomp profiles of Docker and containerd have it.
pub fn forbid_io_uring(command: &mut Command) {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD_WORD, 0, 0, 0), // the number of the system call
        step(JUMP_IF_EQUAL, 0, 1, libc::SYS_io_uring_setup as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let confine = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: prctl reads its plain arguments, and the program that `program` points to, which lives until it returns.
        unsafe {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            check(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program))
        }
    };
    // SAFETY: runs two system calls between fork and exec, which take no lock.
    unsafe { command.pre_exec(confine) };
}
