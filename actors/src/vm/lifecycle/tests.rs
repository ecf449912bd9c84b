use super::*;
use iii_proto::ids::GuestPid;
use proptest::prelude::*;

const BOOT: BootId = BootId::from_random(7);

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn vm() -> VmLifecycle {
    let times = Times {
        boot_deadline: at(1000),
        heartbeat_interval: at(100),
        heartbeat_timeout: at(500),
    };
    VmLifecycle::new(BOOT, times)
}

fn hello() -> VmInput {
    VmInput::Guest(GuestMessage::Hello {
        proto: PROTOCOL_VERSION,
        boot_id: BOOT,
        kernel: "6.12".into(),
    })
}

fn powering_off(reason: PowerOffReason) -> VmInput {
    VmInput::Guest(GuestMessage::PoweringOff {
        reason,
        last_log_seq: 0,
    })
}

fn exited() -> VmInput {
    VmInput::Exited {
        exit: "exit code 0".into(),
    }
}

/// Ticks when they are due, and at `end`; nothing comes of them.
fn tick_until(vm: &mut VmLifecycle, mut now: u64, end: u64) {
    while now < end {
        let due = vm.wake_at().map_or(end, |at| at.as_millis() as u64);
        now = due.max(now).min(end);
        let out = vm.on(VmInput::Tick, at(now), 0);
        let beats = |e: &Effect| matches!(e, Effect::Send(HostMessage::Heartbeat { .. }));
        assert!(out.iter().all(beats), "at {now}: {out:?}");
    }
}

fn running() -> VmLifecycle {
    let mut vm = vm();
    vm.on(VmInput::Spawned, at(0), 0);
    tick_until(&mut vm, 0, 600);
    vm.on(hello(), at(600), 0);
    assert_eq!(vm.state(), State::Running);
    vm
}

fn end(vm: &mut VmLifecycle, inputs: Vec<VmInput>, now: u64) -> VmEnd {
    let mut last = Vec::new();
    for input in inputs {
        last = vm.on(input, at(now), 0);
    }
    match last.pop() {
        Some(Effect::Finish(end)) => end,
        other => panic!("not finished: {other:?} in {:?}", vm.state()),
    }
}

fn cause(end: VmEnd) -> String {
    match end {
        VmEnd::Failed(failure) => failure.cause,
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn a_vmm_that_ends_unannounced_has_crashed_whatever_its_status() {
    let end = end(&mut running(), vec![exited(), VmInput::Drained], 700);
    assert_eq!(
        end,
        VmEnd::Failed(Failure {
            cause: "the VMM ended and the guest had not announced it".into(),
            exit: Some("exit code 0".into()),
            last_stage: None,
            silent: false,
            killed: false,
            announced: false,
        })
    );
}

/// Whether nothing was heard of the guest, and whether the VMM was killed by us.
fn silence(mut vm: VmLifecycle, inputs: Vec<VmInput>) -> (bool, bool) {
    let inputs = inputs
        .into_iter()
        .chain([exited(), VmInput::Drained])
        .collect();
    match end(&mut vm, inputs, 700) {
        VmEnd::Failed(failure) => (failure.silent, failure.killed),
        other => panic!("not failed: {other:?}"),
    }
}

#[test]
fn a_guest_is_silent_only_if_nothing_at_all_was_heard_of_it() {
    let booting = || {
        let mut vm = vm();
        vm.on(VmInput::Spawned, at(0), 0);
        tick_until(&mut vm, 0, 600);
        vm
    };
    let stuck = || VmInput::Stuck {
        cause: "KVM internal error".into(),
    };
    assert_eq!(silence(booting(), vec![]), (true, false));
    assert_eq!(silence(booting(), vec![stuck()]), (true, true));
    assert_eq!(silence(booting(), vec![hello()]), (false, false));
    let garbage = VmInput::PortBroken {
        cause: Some("no message".into()),
    };
    assert_eq!(silence(booting(), vec![garbage]), (false, false));
    // The end of the VMM closes the port too.
    let closed = VmInput::PortBroken { cause: None };
    assert_eq!(silence(booting(), vec![closed]), (true, false));
    assert_eq!(silence(running(), vec![stuck()]), (false, true));

    let mut never = vm();
    let failed = VmInput::SpawnFailed {
        cause: "no such program".into(),
    };
    match end(&mut never, vec![failed], 1) {
        VmEnd::Failed(failure) => assert!(!failure.silent),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_vmm_that_has_given_its_guest_up_is_killed_and_quoted() {
    for mut vm in [running(), {
        let mut vm = vm();
        vm.on(VmInput::Spawned, at(600), 0);
        vm
    }] {
        let stuck = VmInput::Stuck {
            cause: "KVM internal error. Suberror: 1".into(),
        };
        let out = vm.on(stuck.clone(), at(610), 0);
        assert!(matches!(out[..], [Effect::Kill]), "{out:?}");
        assert!(vm.on(stuck, at(611), 0).is_empty());
        let end = end(&mut vm, vec![exited(), VmInput::Drained], 620);
        assert_eq!(cause(end), "KVM internal error. Suberror: 1");
    }
}

#[test]
fn an_announcement_that_was_still_in_the_port_counts() {
    let exit = Exit::Code { code: 0 };
    let reason = PowerOffReason::Done { exit: exit.clone() };
    let inputs = vec![exited(), powering_off(reason), VmInput::Drained];
    assert_eq!(end(&mut running(), inputs, 700), VmEnd::Done(exit));
}

#[test]
fn a_missed_boot_deadline_kills_and_says_so() {
    let mut vm = vm();
    vm.on(VmInput::Spawned, at(0), 0);
    tick_until(&mut vm, 0, 999);
    assert_eq!(vm.wake_at(), Some(at(1000)));
    assert!(matches!(
        vm.on(VmInput::Tick, at(1000), 0)[..],
        [Effect::Kill]
    ));
    let end = end(&mut vm, vec![exited(), VmInput::Drained], 1001);
    assert_eq!(cause(end), "no word from the guest within 1 s");
}

#[test]
fn a_guest_that_answers_no_heartbeat_is_killed() {
    let mut vm = running();
    let mut now = 600;
    let killed = loop {
        now += 100;
        let out = vm.on(VmInput::Tick, at(now), 0);
        match &out[..] {
            [Effect::Send(HostMessage::Heartbeat { .. })] => {}
            [Effect::Kill] => break now,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        killed, 1200,
        "500 ms are allowed, the sixth tick is the first beyond"
    );
}

#[test]
fn the_first_start_of_the_workload_brings_the_hosts_time_at_once() {
    let mut vm = running();
    let started = || {
        VmInput::Guest(GuestMessage::Started {
            pid: GuestPid(7),
            restarts: 0,
        })
    };
    let out = vm.on(started(), at(601), 42);
    let [
        Effect::Emit(_),
        Effect::Send(HostMessage::Heartbeat {
            seq,
            host_time_unix_ns,
        }),
    ] = &out[..]
    else {
        panic!("{out:?}");
    };
    assert_eq!((*seq, *host_time_unix_ns), (1, 42));
    let out = vm.on(started(), at(602), 43);
    assert!(matches!(out[..], [Effect::Emit(_)]), "{out:?}");
}

#[test]
fn answers_keep_it_alive_and_answers_to_no_question_do_not() {
    let mut vm = running();
    for n in 1..100 {
        vm.on(VmInput::Tick, at(600 + n * 100), 0);
        vm.on(
            VmInput::Guest(GuestMessage::Alive {
                seq: n,
                guest_time_unix_ns: 0,
            }),
            at(601 + n * 100),
            0,
        );
        assert_eq!(vm.state(), State::Running);
    }
    let mut vm = running();
    for n in 1..10 {
        vm.on(VmInput::Tick, at(600 + n * 100), 0);
        let early = GuestMessage::Alive {
            seq: u64::MAX,
            guest_time_unix_ns: 0,
        };
        vm.on(VmInput::Guest(early), at(601 + n * 100), 0);
    }
    assert_eq!(vm.state(), State::Killed);
}

/// An hour in which the supervisor did nothing.
const SLEEP: u64 = 3_600_000;

#[test]
fn a_supervisor_that_slept_gives_the_guest_a_new_time_out() {
    let mut vm = running();
    // Four questions without an answer: one more and it would be killed.
    tick_until(&mut vm, 600, 1100);
    tick_until(&mut vm, SLEEP, SLEEP + 500);
    let out = vm.on(VmInput::Tick, at(SLEEP + 600), 0);
    assert!(matches!(out[..], [Effect::Kill]), "{out:?}");
}

#[test]
fn a_host_that_stutters_does_not_count_against_the_guest() {
    let mut vm = running();
    for n in 1..=5 {
        let out = vm.on(VmInput::Tick, at(600 + n * 199), 0);
        let beat = matches!(out[..], [Effect::Send(HostMessage::Heartbeat { .. })]);
        assert!(beat, "after {n} stutters: {out:?}");
    }
}

#[test]
fn a_supervisor_that_slept_counts_the_sleep_against_no_deadline() {
    let mut booting = vm();
    booting.on(VmInput::Spawned, at(0), 0);
    tick_until(&mut booting, 0, 500);
    tick_until(&mut booting, SLEEP, SLEEP + 300);
    booting.on(hello(), at(SLEEP + 301), 0);
    assert_eq!(booting.state(), State::Running);

    let mut stopping = running();
    stopping.on(VmInput::Stop { grace: at(2000) }, at(700), 0);
    tick_until(&mut stopping, SLEEP, SLEEP + 6000);
    let reason = PowerOffReason::Stopped;
    stopping.on(powering_off(reason), at(SLEEP + 6000), 0);
    tick_until(&mut stopping, 2 * SLEEP, 2 * SLEEP + 4000);
    let inputs = vec![exited(), VmInput::Drained];
    assert_eq!(end(&mut stopping, inputs, 2 * SLEEP + 4001), VmEnd::Stopped);
}

#[test]
fn stop_is_graceful_then_deadly() {
    let mut vm = running();
    let out = vm.on(VmInput::Stop { grace: at(2000) }, at(700), 0);
    assert!(matches!(
        out[..],
        [Effect::Send(HostMessage::Stop { grace_ms: 2000 })]
    ));
    tick_until(&mut vm, 700, 7699);
    assert_eq!(vm.wake_at(), Some(at(7700)));
    let out = vm.on(VmInput::Tick, at(7700), 0);
    assert!(matches!(
        out[..],
        [Effect::Emit(EventKind::Warning { .. }), Effect::Kill]
    ));
    assert_eq!(
        end(&mut vm, vec![exited(), VmInput::Drained], 7800),
        VmEnd::Stopped
    );
}

#[test]
fn a_used_up_limit_names_the_last_exit() {
    let reason = PowerOffReason::GaveUp {
        exit: Exit::Code { code: 3 },
        restarts: 10,
    };
    let end = end(
        &mut running(),
        vec![powering_off(reason), exited(), VmInput::Drained],
        700,
    );
    assert!(matches!(&end, VmEnd::Failed(failure) if failure.announced));
    assert_eq!(
        cause(end),
        "the workload used up its restart limit (10 restarts, last: exit code 3)"
    );
}

#[test]
fn a_guest_that_lies_about_itself_is_killed() {
    for lie in [
        GuestMessage::Hello {
            proto: PROTOCOL_VERSION,
            boot_id: BootId::from_random(8),
            kernel: String::new(),
        },
        GuestMessage::Hello {
            proto: 999,
            boot_id: BOOT,
            kernel: String::new(),
        },
        GuestMessage::Ready { pid: GuestPid(2) },
    ] {
        let mut vm = vm();
        vm.on(VmInput::Spawned, at(0), 0);
        let out = vm.on(VmInput::Guest(lie), at(1), 0);
        assert!(matches!(out[..], [Effect::Kill]), "{out:?}");
    }
    let mut vm = running();
    assert!(matches!(vm.on(hello(), at(700), 0)[..], [Effect::Kill]));
}

#[test]
fn a_guest_that_announces_its_end_and_stays_is_killed() {
    let mut vm = running();
    let exit = Exit::Code { code: 0 };
    vm.on(
        powering_off(PowerOffReason::Done { exit: exit.clone() }),
        at(700),
        0,
    );
    tick_until(&mut vm, 700, 5699);
    assert!(matches!(
        vm.on(VmInput::Tick, at(5700), 0)[..],
        [Effect::Kill]
    ));
    assert_eq!(
        end(&mut vm, vec![exited(), VmInput::Drained], 5800),
        VmEnd::Done(exit)
    );
}

fn any_input() -> impl Strategy<Value = VmInput> {
    let exit = || Exit::Code { code: 1 };
    prop_oneof![
        Just(VmInput::Spawned),
        Just(VmInput::SpawnFailed { cause: "x".into() }),
        Just(hello()),
        Just(VmInput::Guest(GuestMessage::Started {
            pid: GuestPid(3),
            restarts: 0
        })),
        Just(VmInput::Guest(GuestMessage::Alive {
            seq: 1,
            guest_time_unix_ns: 0
        })),
        Just(powering_off(PowerOffReason::Done { exit: exit() })),
        Just(VmInput::PortBroken { cause: None }),
        Just(exited()),
        Just(VmInput::Drained),
        Just(VmInput::Stop { grace: at(10) }),
        Just(VmInput::Kill),
        Just(VmInput::Tick),
    ]
}

proptest! {
    /// Whatever happens in whatever order, a VM finishes exactly once, never before its VMM was
    /// reaped, and nothing is sent to a guest that is gone.
    #[test]
    fn any_order_of_inputs_ends_once(inputs in prop::collection::vec((any_input(), 0u64..3000), 0..40)) {
        let mut vm = vm();
        let mut now = 0;
        let mut spawned = false;
        let mut reaped = false;
        let mut finished = 0;
        let tail = [VmInput::Kill, exited(), VmInput::Drained].map(|i| (i, 0));
        for (input, gap) in inputs.into_iter().chain(tail) {
            now += gap;
            // The world obeys: one VMM, which ends once.
            if input == VmInput::Spawned && (spawned || finished > 0) { continue; }
            if matches!(input, VmInput::SpawnFailed { .. }) && spawned { continue; }
            if input == exited() && (!spawned || reaped) { continue; }
            spawned |= input == VmInput::Spawned;
            reaped |= input == exited();
            for effect in vm.on(input, at(now), 0) {
                match effect {
                    Effect::Finish(_) => {
                        finished += 1;
                        prop_assert!(!spawned || reaped, "finished while the VMM runs");
                    }
                    Effect::Send(_) => prop_assert!(spawned && !reaped),
                    Effect::Kill => prop_assert!(spawned && !reaped),
                    Effect::Emit(_) | Effect::Measured { .. } | Effect::Drain => {}
                }
            }
        }
        prop_assert_eq!(finished, 1);
        prop_assert_eq!(vm.state(), State::Ended);
    }
}
