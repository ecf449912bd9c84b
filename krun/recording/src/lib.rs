//! A libkrun that runs no VM: it writes each call down, and does at `krun_start_enter` what the test
//! asks for.
//!
//! * `III_RECORDING` names the file; a line per call.
//! * `III_RECORDING_ANSWERS` holds `call=answer` pairs, separated by commas: a number is returned
//!   (`krun_has_feature.1=0` is about one feature); for `krun_start_enter` it may also be
//!   `exit:STATUS`, `abort`, `hang`, `speak`, which uses every descriptor once as a VM would and then
//!   hangs until its first port is closed, or `serve`, which opens initramfs, console, disks and what
//!   is in the exports the way libkrun does, and ends.
//!
//! Nothing of libkrun is copied; what the functions take is what its public header says.
#![allow(unsafe_code, clippy::missing_safety_doc)]

mod serve;

use std::ffi::{CStr, c_char, c_int};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

unsafe extern "C" {
    fn _exit(status: c_int) -> !;
}

/// What the calls have told of the VM.
#[derive(Default)]
struct Vm {
    initramfs: String,
    console: String,
    ports: Vec<(String, c_int)>,
    /// Serial number, path, read-only.
    disks: Vec<(String, String, bool)>,
    /// Tag and path.
    exports: Vec<(String, String)>,
    network: Option<c_int>,
}

static VM: Mutex<Option<Vm>> = Mutex::new(None);

fn vm() -> MutexGuard<'static, Option<Vm>> {
    VM.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(change: impl FnOnce(&mut Vm)) {
    change(vm().get_or_insert_default());
}

fn record(line: &str) {
    let path = std::env::var_os("III_RECORDING").expect("III_RECORDING names the file");
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .expect("the recording can be written");
    file.write_all(format!("{line}\n").as_bytes())
        .expect("the recording can be written");
}

/// What the test has ordered for a call.
fn ordered(call: &str) -> Option<String> {
    let answers = std::env::var("III_RECORDING_ANSWERS").ok()?;
    answers
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| *name == call)
        .map(|(_, answer)| answer.to_owned())
}

fn answer(call: &str, arguments: &str, usual: c_int) -> c_int {
    record(&format!("{call}({arguments})"));
    ordered(call).map_or(usual, |answer| answer.parse().expect("a number"))
}

/// SAFETY, for the caller: a string of libkrun's API is null or NUL-terminated.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return "null".into();
    }
    // SAFETY: not null, so NUL-terminated and valid for this call, by this function's condition.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

#[unsafe(no_mangle)]
pub extern "C" fn krun_init_log(target: c_int, level: u32, style: u32, options: u32) -> c_int {
    answer(
        "krun_init_log",
        &format!("{target}, {level}, {style}, {options}"),
        0,
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn krun_has_feature(feature: u64) -> c_int {
    // Not recorded: `--check` asks too, and has no recording.
    ordered(&format!("krun_has_feature.{feature}")).map_or(1, |a| a.parse().expect("a number"))
}

#[unsafe(no_mangle)]
pub extern "C" fn krun_create_ctx() -> c_int {
    answer("krun_create_ctx", "", 7)
}

#[unsafe(no_mangle)]
pub extern "C" fn krun_set_vm_config(ctx: u32, cpus: u8, memory_mib: u32) -> c_int {
    answer(
        "krun_set_vm_config",
        &format!("{ctx}, {cpus}, {memory_mib}"),
        0,
    )
}

#[unsafe(no_mangle)]
pub extern "C" fn krun_disable_implicit_init(ctx: u32) -> c_int {
    answer("krun_disable_implicit_init", &format!("{ctx}"), 0)
}

#[unsafe(no_mangle)]
pub extern "C" fn krun_disable_implicit_vsock(ctx: u32) -> c_int {
    answer("krun_disable_implicit_vsock", &format!("{ctx}"), 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn krun_set_kernel(
    ctx: u32,
    kernel: *const c_char,
    format: u32,
    initramfs: *const c_char,
    command_line: *const c_char,
) -> c_int {
    // SAFETY: the caller gives strings as libkrun's API wants them.
    // SAFETY: the caller gives strings as libkrun's API wants them.
    let (kernel, initramfs, command_line) =
        unsafe { (text(kernel), text(initramfs), text(command_line)) };
    note(|vm| vm.initramfs.clone_from(&initramfs));
    let arguments = format!("{ctx}, {kernel}, {format}, {initramfs}, {command_line:?}");
    answer("krun_set_kernel", &arguments, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn krun_set_console_output(ctx: u32, path: *const c_char) -> c_int {
    // SAFETY: the caller gives strings as libkrun's API wants them.
    let path = unsafe { text(path) };
    note(|vm| vm.console.clone_from(&path));
    answer("krun_set_console_output", &format!("{ctx}, {path}"), 0)
}

#[unsafe(no_mangle)]
pub extern "C" fn krun_add_virtio_console_multiport(ctx: u32) -> c_int {
    answer("krun_add_virtio_console_multiport", &format!("{ctx}"), 3)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn krun_add_console_port_inout(
    ctx: u32,
    console: u32,
    name: *const c_char,
    input: c_int,
    output: c_int,
) -> c_int {
    // SAFETY: the caller gives strings as libkrun's API wants them.
    let name = unsafe { text(name) };
    note(|vm| vm.ports.push((name.clone(), output)));
    let arguments = format!("{ctx}, {console}, {name}, {input}, {output}");
    answer("krun_add_console_port_inout", &arguments, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn krun_add_virtiofs4(
    ctx: u32,
    tag: *const c_char,
    path: *const c_char,
    window: u64,
    read_only: bool,
    semantics: u32,
) -> c_int {
    // SAFETY: the caller gives strings as libkrun's API wants them.
    let (tag, path) = unsafe { (text(tag), text(path)) };
    note(|vm| vm.exports.push((tag.clone(), path.clone())));
    let arguments = format!("{ctx}, {tag}, {path}, {window}, {read_only}, {semantics}");
    answer("krun_add_virtiofs4", &arguments, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn krun_add_disk3(
    ctx: u32,
    id: *const c_char,
    path: *const c_char,
    format: u32,
    read_only: bool,
    direct: bool,
    sync: u32,
) -> c_int {
    // SAFETY: the caller gives strings as libkrun's API wants them.
    let (id, path) = unsafe { (text(id), text(path)) };
    note(|vm| vm.disks.push((id.clone(), path.clone(), read_only)));
    let arguments = format!("{ctx}, {id}, {path}, {format}, {read_only}, {direct}, {sync}");
    answer("krun_add_disk3", &arguments, 0)
}

/// SAFETY, for the caller: strings and address are as libkrun's API wants them.
unsafe fn network(
    call: &str,
    ctx: u32,
    path: *const c_char,
    fd: c_int,
    mac: *const u8,
    features: u32,
    flags: u32,
) -> c_int {
    // SAFETY: the caller gives strings as libkrun's API wants them.
    let path = unsafe { text(path) };
    // SAFETY: libkrun's API has six bytes here.
    let mac: Vec<String> = unsafe { std::slice::from_raw_parts(mac, 6) }
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    note(|vm| vm.network = Some(fd));
    let mac = mac.join(":");
    answer(
        call,
        &format!("{ctx}, {path}, {fd}, {mac}, {features:#x}, {flags}"),
        0,
    )
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn krun_add_net_unixgram(
    ctx: u32,
    path: *const c_char,
    fd: c_int,
    mac: *const u8,
    features: u32,
    flags: u32,
) -> c_int {
    // SAFETY: as for `network`, by the caller.
    unsafe { network("krun_add_net_unixgram", ctx, path, fd, mac, features, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn krun_add_net_unixstream(
    ctx: u32,
    path: *const c_char,
    fd: c_int,
    mac: *const u8,
    features: u32,
    flags: u32,
) -> c_int {
    // SAFETY: as for `network`, by the caller.
    unsafe {
        network(
            "krun_add_net_unixstream",
            ctx,
            path,
            fd,
            mac,
            features,
            flags,
        )
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn krun_start_enter(ctx: u32) -> c_int {
    record(&format!("krun_start_enter({ctx})"));
    let order = ordered("krun_start_enter").unwrap_or_else(|| "exit:0".into());
    match order.split_once(':') {
        // SAFETY: it takes a number. libkrun too ends the process this way, without destructors.
        Some(("exit", status)) => unsafe { _exit(status.parse().expect("a number")) },
        _ => {}
    }
    match order.as_str() {
        "abort" => std::process::abort(),
        "hang" => loop {
            std::thread::park();
        },
        "speak" => {
            speak();
            // SAFETY: as above.
            unsafe { _exit(0) }
        }
        "serve" => {
            serve::all();
            // SAFETY: as above.
            unsafe { _exit(0) }
        }
        number => number.parse().expect("a number, or an order that is known"),
    }
}

/// An inherited descriptor, which stays open.
fn borrowed(fd: c_int) -> ManuallyDrop<File> {
    // SAFETY: the launcher has handed it over and keeps it open; it is never closed here.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}

fn speak() {
    let vm = vm().take().unwrap_or_default();
    let initramfs = std::fs::read(&vm.initramfs).expect("the initramfs can be read");
    record(&format!(
        "saw initramfs {:?}",
        String::from_utf8_lossy(&initramfs)
    ));
    for (id, path, _) in &vm.disks {
        let start = std::fs::read(path).expect("the disk can be read");
        record(&format!(
            "saw disk {id} {:?}",
            String::from_utf8_lossy(&start)
        ));
    }
    // As libkrun opens it.
    let mut console = File::create(&vm.console).expect("the console can be opened");
    console
        .write_all(b"from the console\n")
        .expect("the console can be written");
    if let Some(fd) = vm.network {
        borrowed(fd)
            .write_all(b"a frame")
            .expect("the network can be written");
    }
    for (name, fd) in &vm.ports {
        borrowed(*fd)
            .write_all(format!("from port {name}\n").as_bytes())
            .expect("the port can be written");
    }
    if let Some((_, fd)) = vm.ports.first() {
        let mut rest = Vec::new();
        borrowed(*fd)
            .read_to_end(&mut rest)
            .expect("the port can be read");
        record(&format!("heard {:?}", String::from_utf8_lossy(&rest)));
    }
}
