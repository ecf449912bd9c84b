//! The system calls that a VMM is denied, some of them by their arguments. Unlike a helper of ours a VMM is not known call by call
//! over all its versions, so that this is a list of what none has any business with: making
//! processes, reaching into others, changing what the kernel does, and the interfaces from which
//! most of the kernel's own holes were reached.
//!
//! `execve` stays, since the program itself is still to be executed; Landlock leaves it nothing but
//! itself, and no second process can be made to do it in.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

/// Denied with EPERM.
const DENIED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_settime,
    // Every connection that a VMM of ours has comes to it as a descriptor.
    libc::SYS_connect,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_migrate_pages,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_socket,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_userfaultfd,
];

/// The same where the processor has them.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[libc::c_long] = &[
    libc::SYS_fork,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_modify_ldt,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[libc::c_long] = &[];

/// As if the kernel did not know them: whoever wants them then takes the older ones, whose arguments
/// can be looked at.
const UNKNOWN: &[libc::c_long] = &[libc::SYS_clone3, libc::SYS_openat2];

/// Signals, with the process to which they go as the first argument: none but this one. A landlocked
/// process of a newer kernel and one in a pid namespace have nobody else to signal anyway.
const SIGNALS: &[libc::c_long] = &[
    libc::SYS_kill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_tgkill,
    // By thread: the first, whose number is the process's, is the only one that can be known here.
    libc::SYS_tkill,
];

/// Set-id bits: on a file that a guest may write, they would hand its user, or root, to whoever
/// executes it on the host.
const SET_ID: [u32; 2] = [libc::S_ISUID, libc::S_ISGID];

/// Calls that give a file a mode, with the argument that is it.
const MODES: &[(libc::c_long, u8)] = &[
    (libc::SYS_fchmod, 1),
    (libc::SYS_fchmodat, 2),
    (libc::SYS_fchmodat2, 2),
    (libc::SYS_mkdirat, 2),
    (libc::SYS_mknodat, 2),
];
#[cfg(target_arch = "x86_64")]
const MODES_HERE: &[(libc::c_long, u8)] = &[
    (libc::SYS_chmod, 1),
    (libc::SYS_creat, 1),
    (libc::SYS_mkdir, 1),
    (libc::SYS_mknod, 1),
];
#[cfg(not(target_arch = "x86_64"))]
const MODES_HERE: &[(libc::c_long, u8)] = &[];

/// The same with flags in the argument before, without which the mode is whatever lies there.
const MODES_OF_NEW: &[(libc::c_long, u8)] = &[(libc::SYS_openat, 3)];
#[cfg(target_arch = "x86_64")]
const MODES_OF_NEW_HERE: &[(libc::c_long, u8)] = &[(libc::SYS_open, 2)];
#[cfg(not(target_arch = "x86_64"))]
const MODES_OF_NEW_HERE: &[(libc::c_long, u8)] = &[];
/// Any of which makes a file. O_TMPFILE has the bit of O_DIRECTORY too, which makes none.
const NEW: [i32; 2] = [libc::O_CREAT, libc::O_TMPFILE & !libc::O_DIRECTORY];

/// Marks the calls of x32, which would pass by every number above (seccomp(2), "Caveats").
#[cfg(target_arch = "x86_64")]
const X32_SYSCALL_BIT: u32 = 0x4000_0000;

pub(super) fn restrict() -> io::Result<()> {
    let refused = |_| io::Error::from_raw_os_error(libc::EINVAL);
    for filter in [
        filter(denied()?, libc::EPERM)?,
        filter(rules_of(UNKNOWN), libc::ENOSYS)?,
        #[cfg(target_arch = "x86_64")]
        no_x32(),
    ] {
        apply_filter(&filter).map_err(refused)?;
    }
    Ok(())
}

fn rules_of(calls: &[libc::c_long]) -> BTreeMap<i64, Vec<SeccompRule>> {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn denied() -> io::Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let mut rules = rules_of(DENIED);
    rules.extend(rules_of(DENIED_HERE));
    // A thread is made; a process is not.
    rules.insert(
        libc::SYS_clone,
        vec![rule([lacks(0, libc::CLONE_THREAD.cast_unsigned())])?],
    );
    let own = std::process::id();
    for call in SIGNALS {
        rules.insert(*call, vec![rule([is_not(0, own)])?]);
    }
    for (call, mode) in MODES.iter().chain(MODES_HERE) {
        let each = SET_ID.map(|bit| rule([has(*mode, bit)]));
        rules.insert(*call, each.into_iter().collect::<io::Result<_>>()?);
    }
    for (call, mode) in MODES_OF_NEW.iter().chain(MODES_OF_NEW_HERE) {
        let mut each = Vec::new();
        for new in NEW {
            for bit in SET_ID {
                each.push(rule([has(mode - 1, new.cast_unsigned()), has(*mode, bit)])?);
            }
        }
        rules.insert(*call, each);
    }
    Ok(rules)
}

type Condition = Result<SeccompCondition, seccompiler::BackendError>;

/// Denied where all of these hold.
fn rule<const N: usize>(conditions: [Condition; N]) -> io::Result<SeccompRule> {
    let conditions: Result<Vec<_>, _> = conditions.into_iter().collect();
    conditions
        .and_then(SeccompRule::new)
        .map_err(io::Error::other)
}

/// Flags, modes and process ids are 32 bits wide: what lies above them is nobody's.
fn compared(argument: u8, how: SeccompCmpOp, with: u32) -> Condition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, how, with.into())
}

fn has(argument: u8, bits: u32) -> Condition {
    compared(argument, SeccompCmpOp::MaskedEq(bits.into()), bits)
}

fn lacks(argument: u8, bits: u32) -> Condition {
    compared(argument, SeccompCmpOp::MaskedEq(bits.into()), 0)
}

fn is_not(argument: u8, value: u32) -> Condition {
    compared(argument, SeccompCmpOp::Ne, value)
}

fn filter(rules: BTreeMap<i64, Vec<SeccompRule>>, errno: i32) -> io::Result<BpfProgram> {
    let target = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(errno.unsigned_abs()),
        target,
    );
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

/// Answers every call of x32 as a kernel without it does. The other filters have seen to it that the
/// architecture is the right one.
#[cfg(target_arch = "x86_64")]
fn no_x32() -> BpfProgram {
    use seccompiler::sock_filter;
    let step = |code: u32, jt, jf, k| sock_filter {
        // Classic BPF's codes fit: they are bytes.
        code: code as u16,
        jt,
        jf,
        k,
    };
    vec![
        // The number is the first field of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(
            libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K,
            0,
            1,
            X32_SYSCALL_BIT,
        ),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}
