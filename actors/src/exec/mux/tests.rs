use std::io;
use std::task::Poll;

use super::*;
use iii_proto::exec::window::{FRAME_COST, WINDOW, cost};
use iii_proto::exec::{Command, MAX_CHUNK, MAX_SESSIONS};
use proptest::prelude::*;

struct Port {
    mux: Mux,
    sent: mpsc::UnboundedReceiver<Vec<u8>>,
}

fn port() -> Port {
    let (to_guest, sent) = mpsc::unbounded_channel();
    Port {
        mux: Mux::new(to_guest),
        sent,
    }
}

fn command() -> Command {
    Command {
        command: vec!["cat".into()],
        env: Vec::new(),
        cwd: None,
        user: None,
        terminal: None,
        stdin: true,
    }
}

fn idle() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

impl Port {
    fn opened() -> (Self, SessionId) {
        let mut port = port();
        let id = port.open();
        (port, id)
    }

    fn open(&mut self) -> SessionId {
        let id = self.mux.open(command()).unwrap();
        assert!(matches!(&self.sent()[..], [HostFrame::Open { session, .. }] if *session == id));
        assert!(self.mux.poll_opened(id, &idle()).is_pending());
        let pid = Some(GuestPid(7));
        self.say(GuestFrame::Opened { session: id, pid }).unwrap();
        assert_eq!(self.mux.poll_opened(id, &idle()), Poll::Ready(Ok(pid)));
        id
    }

    fn say(&mut self, frame: GuestFrame) -> Result<(), PortFault> {
        self.mux.on_bytes(&encode_frame(&frame).unwrap())
    }

    fn write(&mut self, session: SessionId, bytes: &[u8]) -> Result<(), PortFault> {
        let bytes = bytes.to_vec();
        let stream = Stream::Stdout;
        self.say(GuestFrame::Output {
            session,
            stream,
            bytes,
        })
    }

    fn exit(&mut self, session: SessionId) -> Result<(), PortFault> {
        let exit = Exit::Code { code: 0 };
        self.say(GuestFrame::Exited { session, exit })
    }

    fn sent(&mut self) -> Vec<HostFrame> {
        let mut reader = FrameReader::new();
        while let Ok(frame) = self.sent.try_recv() {
            reader.feed(&frame);
        }
        std::iter::from_fn(|| reader.next().unwrap()).collect()
    }

    /// The guest has broken the port: every session is lost, and none can be begun.
    fn is_broken(&mut self, session: SessionId) {
        match self.mux.poll_end(session, &idle()) {
            Poll::Ready(Err(ExecError::Lost(cause))) => {
                assert!(cause.contains("the guest broke its exec port"), "{cause}");
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(self.mux.open(command()), Err(ExecError::Lost(_))));
        assert!(self.mux.poll_stdin(session, b"x", &idle()).is_ready());
        assert!(self.sent().is_empty() && self.mux.to_guest.is_none());
        // What it says from now on is not even looked at.
        self.mux.on_bytes(&[0xff; 64]).unwrap();
    }
}

#[test]
fn output_arrives_in_order_and_behind_it_the_end() {
    let (mut port, id) = Port::opened();
    port.write(id, b"one").unwrap();
    port.say(GuestFrame::Output {
        session: id,
        stream: Stream::Stderr,
        bytes: b"two".to_vec(),
    })
    .unwrap();
    port.exit(id).unwrap();
    let next = |port: &mut Port| port.mux.poll_output(id, &idle());
    let out = |bytes: &[u8]| Poll::Ready(Some(ExecOutput::Stdout(bytes.to_vec())));
    assert_eq!(next(&mut port), out(b"one"));
    let err = ExecOutput::Stderr(b"two".to_vec());
    assert_eq!(next(&mut port), Poll::Ready(Some(err)));
    assert_eq!(next(&mut port), Poll::Ready(None));
    let end = Ok(Exit::Code { code: 0 });
    assert_eq!(port.mux.poll_end(id, &idle()), Poll::Ready(end));
    port.mux.close(id);
    assert!(port.sent().is_empty(), "nothing to close");
    assert!(port.mux.sessions.is_empty());
}

#[test]
fn credit_is_given_for_what_was_taken_and_for_what_is_thrown_away() {
    let (mut port, id) = Port::opened();
    let chunk = vec![b'x'; MAX_CHUNK];
    let mut held = 0;
    while held + cost(MAX_CHUNK) <= WINDOW {
        port.write(id, &chunk).unwrap();
        held += cost(MAX_CHUNK);
    }
    assert!(port.sent().is_empty(), "nobody has read anything");
    let mut granted = 0;
    for _ in 0..4 {
        assert!(port.mux.poll_output(id, &idle()).is_ready());
        for frame in port.sent() {
            match frame {
                HostFrame::OutputCredit { credit, .. } => granted += credit,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(granted, 4 * cost(MAX_CHUNK));
    port.mux.drop_output(id);
    let rest: u32 = port
        .sent()
        .iter()
        .map(|frame| match frame {
            HostFrame::OutputCredit { credit, .. } => *credit,
            other => panic!("{other:?}"),
        })
        .sum();
    assert!(rest > 0 && granted + rest <= held);
    for _ in 0..100 {
        port.write(id, &vec![0; 1000]).unwrap();
        port.sent();
    }
}

#[test]
fn input_stops_at_the_window_and_goes_on_with_credit() {
    let (mut port, id) = Port::opened();
    let bytes = vec![b'i'; 1 << 20];
    let mut taken = 0;
    while let Poll::Ready(result) = port.mux.poll_stdin(id, &bytes, &idle()) {
        taken += result.unwrap();
    }
    assert!(taken <= WINDOW as usize && taken > WINDOW as usize / 2);
    let sent: usize = port
        .sent()
        .iter()
        .map(|frame| match frame {
            HostFrame::Stdin { bytes, .. } => bytes.len(),
            other => panic!("{other:?}"),
        })
        .sum();
    assert_eq!(sent, taken);
    let credit = cost(MAX_CHUNK);
    let session = id;
    port.say(GuestFrame::StdinCredit { session, credit })
        .unwrap();
    assert!(port.mux.poll_stdin(id, &bytes, &idle()).is_ready());
    port.say(GuestFrame::StdinClosed { session }).unwrap();
    match port.mux.poll_stdin(id, &bytes, &idle()) {
        Poll::Ready(Err(error)) => assert_eq!(error.kind(), io::ErrorKind::BrokenPipe),
        other => panic!("{other:?}"),
    }
}

#[test]
fn input_has_one_end() {
    let (mut port, id) = Port::opened();
    port.mux.end_stdin(id);
    port.mux.end_stdin(id);
    assert_eq!(port.sent(), [HostFrame::StdinEnd { session: id }]);
    assert!(port.mux.poll_stdin(id, b"more", &idle()).is_ready());
    assert!(port.sent().is_empty());
}

#[test]
fn a_closed_session_counts_until_the_guest_has_nothing_of_it() {
    let mut port = port();
    let ids: Vec<SessionId> = (0..MAX_SESSIONS).map(|_| port.open()).collect();
    let full = Err(ExecError::TooManySessions);
    assert_eq!(port.mux.open(command()), full);
    port.mux.close(ids[0]);
    assert_eq!(port.sent(), [HostFrame::Close { session: ids[0] }]);
    assert_eq!(port.mux.open(command()), full);
    port.write(ids[0], b"not heard").unwrap();
    port.exit(ids[0]).unwrap();
    assert!(port.sent().is_empty());
    assert!(port.mux.open(command()).unwrap() > ids[MAX_SESSIONS - 1]);
}

#[test]
fn a_refusal_is_an_error_and_leaves_nothing() {
    let mut port = port();
    let session = port.mux.open(command()).unwrap();
    let message = String::from("no such user");
    port.say(GuestFrame::Refused { session, message }).unwrap();
    let refused = Err(ExecError::Refused("no such user".into()));
    assert_eq!(port.mux.poll_opened(session, &idle()), Poll::Ready(refused));
    port.mux.close(session);
    assert!(port.mux.sessions.is_empty());
}

#[test]
fn a_request_that_fits_no_frame_is_refused_here() {
    let mut port = port();
    let mut long = command();
    long.env = vec![("A".into(), "x".repeat(200_000))];
    assert!(matches!(
        port.mux.open(long),
        Err(ExecError::TooLong { .. })
    ));
    assert!(port.sent().is_empty());
    port.open();
}

#[test]
fn the_end_of_the_vm_is_the_end_of_every_session() {
    let (mut port, id) = Port::opened();
    let opening = port.mux.open(command()).unwrap();
    port.write(id, b"last words").unwrap();
    port.mux.lose("gone".into());
    let lost = || Poll::Ready(Err(ExecError::Lost("gone".into())));
    assert_eq!(port.mux.poll_end(id, &idle()), lost());
    assert_eq!(
        port.mux.poll_opened(opening, &idle()),
        Poll::Ready(Err(ExecError::Lost("gone".into())))
    );
    assert!(matches!(
        port.mux.poll_output(id, &idle()),
        Poll::Ready(Some(_))
    ));
    assert_eq!(port.mux.poll_output(id, &idle()), Poll::Ready(None));
}

#[test]
fn frames_for_no_session_break_the_port() {
    for strange in [SessionId(0), SessionId(2), SessionId(u32::MAX)] {
        let (mut port, id) = Port::opened();
        assert!(matches!(
            port.write(strange, b"x"),
            Err(PortFault::Unknown(s)) if s == strange
        ));
        port.is_broken(id);
    }
    // Nor may a session that is over say anything.
    let (mut port, id) = Port::opened();
    let other = port.open();
    port.exit(id).unwrap();
    assert!(port.exit(id).is_err());
    port.is_broken(other);
}

#[test]
fn frames_out_of_order_break_the_port() {
    let pid = None;
    let session = SessionId(1);
    let (mut port, id) = Port::opened();
    assert!(port.say(GuestFrame::Opened { session, pid }).is_err());
    port.is_broken(id);
    let (mut port, id) = Port::opened();
    let message = String::new();
    assert!(port.say(GuestFrame::Refused { session, message }).is_err());
    port.is_broken(id);
    let (mut port, id) = Port::opened();
    port.say(GuestFrame::StdinClosed { session }).unwrap();
    assert!(port.say(GuestFrame::StdinClosed { session }).is_err());
    port.is_broken(id);
    let mut port = port_with_opening();
    assert!(port.write(session, b"early").is_err());
    port.is_broken(session);
    let mut port = port_with_opening();
    assert!(port.exit(session).is_err());
    port.is_broken(session);
}

fn port_with_opening() -> Port {
    let mut port = port();
    port.mux.open(command()).unwrap();
    port.sent();
    port
}

#[test]
fn more_than_the_window_breaks_the_port() {
    let (mut port, id) = Port::opened();
    let chunk = vec![0; MAX_CHUNK];
    let fault = loop {
        if let Err(fault) = port.write(id, &chunk) {
            break fault;
        }
    };
    assert!(matches!(fault, PortFault::Window { .. }));
    port.is_broken(id);
    // A closed session has no more credit than that either.
    let (mut port, id) = Port::opened();
    port.mux.close(id);
    let mut frames = 0;
    while port.write(id, &chunk).is_ok() {
        frames += 1;
    }
    assert_eq!(frames, WINDOW / cost(MAX_CHUNK));
    // And frames of one byte are not free.
    let (mut port, id) = Port::opened();
    let mut frames = 0;
    while port.write(id, b"x").is_ok() {
        frames += 1;
    }
    assert_eq!(frames, WINDOW / (FRAME_COST + 1));
}

#[test]
fn odd_sizes_and_credits_break_the_port() {
    for length in [0, MAX_CHUNK + 1] {
        let (mut port, id) = Port::opened();
        assert!(port.write(id, &vec![0; length]).is_err());
        port.is_broken(id);
    }
    for credit in [0, 1, u32::MAX] {
        let (mut port, session) = Port::opened();
        assert!(
            port.say(GuestFrame::StdinCredit { session, credit })
                .is_err()
        );
        port.is_broken(session);
    }
    let (mut port, id) = Port::opened();
    assert!(matches!(
        port.mux.on_bytes(&u32::MAX.to_le_bytes()),
        Err(PortFault::Codec(_))
    ));
    port.is_broken(id);
    let (mut port, id) = Port::opened();
    assert!(port.mux.on_bytes(&[4, 0, 0, 0, 9, 9, 9, 9]).is_err());
    port.is_broken(id);
}

#[test]
fn sleepers_are_woken_by_what_they_wait_for() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    #[derive(Default)]
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (mut port, id) = Port::opened();
    let woken = |port: &mut Port, count: &Arc<Count>| {
        for waker in port.mux.take_woken() {
            waker.wake();
        }
        count.0.swap(0, Ordering::Relaxed)
    };
    let sleeper = || {
        let count = Arc::new(Count::default());
        (Waker::from(Arc::clone(&count)), count)
    };
    let (output, outputs) = sleeper();
    let (end, ends) = sleeper();
    let cx = Context::from_waker(&output);
    assert!(port.mux.poll_output(id, &cx).is_pending());
    // Two that wait for the end: both are told.
    assert!(
        port.mux
            .poll_end(id, &Context::from_waker(&end))
            .is_pending()
    );
    assert!(
        port.mux
            .poll_end(id, &Context::from_waker(&end))
            .is_pending()
    );
    let (other, others) = sleeper();
    assert!(
        port.mux
            .poll_end(id, &Context::from_waker(&other))
            .is_pending()
    );
    port.write(id, b"x").unwrap();
    assert_eq!(woken(&mut port, &outputs), 1);
    assert!(port.mux.poll_output(id, &cx).is_ready());
    assert!(port.mux.poll_output(id, &cx).is_pending());
    port.exit(id).unwrap();
    assert_eq!(woken(&mut port, &outputs), 1);
    assert_eq!(woken(&mut port, &ends), 1);
    assert_eq!(woken(&mut port, &others), 1);
}

fn any_frame() -> impl Strategy<Value = GuestFrame> {
    let session = (0u32..5).prop_map(SessionId);
    (session, 0usize..6, any::<u32>(), 0usize..40_000).prop_map(
        |(session, kind, number, length)| match kind {
            0 => GuestFrame::Opened { session, pid: None },
            1 => GuestFrame::Refused {
                session,
                message: "x".repeat(length % 100),
            },
            2 => GuestFrame::Output {
                session,
                stream: Stream::Stderr,
                bytes: vec![1; length],
            },
            3 => GuestFrame::StdinCredit {
                session,
                credit: number,
            },
            4 => GuestFrame::StdinClosed { session },
            _ => GuestFrame::Exited {
                session,
                exit: Exit::Unhealthy,
            },
        },
    )
}

proptest! {
    /// Whatever a guest sends: no panic, never more than a window held per session, and sessions
    /// that are polled to their ends have one.
    #[test]
    fn any_guest_is_survived(frames in prop::collection::vec(any_frame(), 0..60)) {
        let mut port = port();
        let ids: Vec<SessionId> = (0..4).map(|_| port.mux.open(command()).unwrap()).collect();
        port.mux.close(ids[3]);
        for frame in frames {
            if port.say(frame).is_err() {
                break;
            }
            for session in port.mux.sessions.values() {
                let held: u32 = session.output.iter().map(|o| cost(o.bytes().len())).sum();
                prop_assert!(held <= WINDOW);
            }
        }
        port.mux.lose("over".into());
        for id in &ids[..3] {
            prop_assert!(port.mux.poll_end(*id, &idle()).is_ready());
            while port.mux.poll_output(*id, &idle()) != Poll::Ready(None) {}
            port.mux.close(*id);
        }
        prop_assert!(port.mux.sessions.is_empty());
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let (mut port, _) = Port::opened();
        // An incomplete frame is no fault.
        port.mux.on_bytes(&bytes).ok();
    }
}
