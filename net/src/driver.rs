//! The loop's thread: one epoll instance, its events, and the end of it all.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::config::NetworkConfig;
use crate::dns::DnsService;
use crate::error::NetError;
use crate::gateway::{Gateway, Token};
use crate::handle::{Command, Fault, LoopExit, NetHandle, Shared};
use crate::link::{Flush, LinkClaim, Receiver as FrameReceiver};
use crate::refusal::{RefusalCallback, Refused};
use crate::watch::{self, StallCallback};

/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// How soon to try again when the kernel has no memory for a frame; there is no event for that.
const MEMORY_RETRY: Duration = Duration::from_millis(5);
/// Rounds of sending and settling within one tick. More is left to the next tick, so that neither
/// direction starves the other.
const SETTLE_ROUNDS: usize = 4;
/// Batches of frames still processed after the end was announced: what a guest said before it was
/// powered off still reaches its peers.
const FAREWELL_BATCHES: usize = 64;
/// A loop to which nothing has happened for so long gives its buffers back: most workers are idle
/// most of the time, and there may be a thousand.
const REST: Duration = Duration::from_secs(1);

/// Starts loops.
#[derive(Debug)]
pub struct NetLoop;

/// What a loop exit is told to.
pub type ExitCallback = Box<dyn FnOnce(LoopExit) + Send>;

/// A loop that is not started yet.
#[must_use = "a loop does nothing before it is started"]
pub struct NetLoopBuilder {
    config: NetworkConfig,
    link: OwnedFd,
    dns: Arc<dyn DnsService>,
    name: String,
    on_exit: Option<ExitCallback>,
    on_stall: Option<(Duration, StallCallback)>,
    on_refusal: Option<RefusalCallback>,
}

impl NetLoop {
    /// A loop on the loop's end of a [`crate::link_pair`]. The caller may keep a duplicate of
    /// `link` for a successor; two loops on one link are refused whatever duplicates they use.
    pub fn builder(
        config: NetworkConfig,
        link: OwnedFd,
        dns: Arc<dyn DnsService>,
        name: impl Into<String>,
    ) -> NetLoopBuilder {
        NetLoopBuilder {
            config,
            link,
            dns,
            name: name.into(),
            on_exit: None,
            on_stall: None,
            on_refusal: None,
        }
    }

    /// [`Self::builder`] and [`NetLoopBuilder::start`] in one.
    pub fn start(
        config: NetworkConfig,
        link: OwnedFd,
        dns: Arc<dyn DnsService>,
        name: impl Into<String>,
    ) -> Result<NetHandle, NetError> {
        Self::builder(config, link, dns, name).start()
    }
}

impl NetLoopBuilder {
    /// Called on the loop's thread as its last act; a successor may be started from it.
    pub fn on_exit(mut self, callback: impl FnOnce(LoopExit) + Send + 'static) -> Self {
        self.on_exit = Some(Box::new(callback));
        self
    }

    /// Called once if frames, host sockets or commands are ready and the loop makes no round for
    /// `limit`. Its thread cannot be helped, only [`NetHandle::abandon`]ed. The callback runs on the
    /// thread that watches every loop of the program, so it must not block.
    pub fn on_stall(mut self, limit: Duration, callback: impl FnOnce() + Send + 'static) -> Self {
        self.on_stall = Some((limit, Box::new(callback)));
        self
    }

    /// Called on the loop's thread with what the policy refuses, each once and some dozens in all;
    /// it must not block.
    pub fn on_refusal(mut self, callback: impl FnMut(Refused) + Send + 'static) -> Self {
        self.on_refusal = Some(Box::new(callback));
        self
    }

    /// Starts the thread.
    pub fn start(self) -> Result<NetHandle, NetError> {
        if let Some(fault) = self.config.fault() {
            return Err(NetError::Config(fault));
        }
        nix::fcntl::fcntl(
            &self.link,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .map_err(NetError::errno("make the link non-blocking"))?;
        let claim = Arc::new(LinkClaim::new(&self.link)?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)
            .map_err(NetError::errno("create an epoll instance"))?;
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(NetError::errno("create an eventfd"))?;
        epoll
            .add(
                &wake,
                EpollEvent::new(EpollFlags::EPOLLIN, Token::Wake.encode()),
            )
            .map_err(NetError::errno("watch the eventfd"))?;
        epoll
            .add(
                &self.link,
                EpollEvent::new(EpollFlags::EPOLLIN, Token::Link.encode()),
            )
            .map_err(NetError::errno("watch the link"))?;
        let (sender, commands) = unbounded();
        let shared = Arc::new(Shared {
            stats: Arc::default(),
            ticks: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            epoll,
            wake,
            commands: sender,
        });
        if let Some(callback) = self.on_refusal {
            shared.stats.notices.tell_to(callback);
        }
        let gateway = Gateway::new(self.config, self.dns, Arc::clone(&shared))?;
        let driver = Driver {
            shared: Arc::clone(&shared),
            commands,
            link: self.link,
            interest: EpollFlags::EPOLLIN,
            retry_at: None,
            rest_at: None,
            gateway,
            epoch: Instant::now(),
        };
        let watched = match self.on_stall {
            Some((limit, callback)) => Some(watch::watch(Arc::clone(&shared), limit, callback)?),
            None => None,
        };
        let (exit_sender, exit) = bounded(1);
        let ending = Arc::clone(&shared);
        let thread_claim = Arc::clone(&claim);
        let on_exit = self.on_exit;
        let name = self.name;
        let thread = thread::Builder::new()
            // The kernel shows 15 bytes of it.
            .name(format!("net-{name}"))
            .spawn(move || {
                let exit = run(driver);
                ending.ended.store(true, Ordering::SeqCst);
                thread_claim.release();
                match &exit {
                    LoopExit::Stopped => tracing::debug!(name, "network loop stopped"),
                    LoopExit::Failed(cause) => tracing::error!(name, cause, "network loop failed"),
                    LoopExit::Panicked(cause) => {
                        tracing::error!(name, cause, "network loop panicked");
                    }
                }
                if exit_sender.send(exit.clone()).is_err() {
                    tracing::debug!(name, "nobody waits for the network loop's end");
                }
                if let Some(callback) = on_exit {
                    callback(exit);
                }
            })
            .map_err(NetError::io("start the network thread"))?;
        Ok(NetHandle {
            shared,
            claim,
            thread: Mutex::new(Some(thread)),
            exit,
            ended: OnceLock::new(),
            watched,
        })
    }
}

/// Runs a driver to its end. The driver, and with it every host socket, is dropped here, also
/// while unwinding.
fn run(driver: Driver) -> LoopExit {
    let mut driver = driver;
    // The driver is not used after a panic, so that no half-changed state is ever seen.
    match catch_unwind(AssertUnwindSafe(move || driver.run())) {
        Ok(Ok(())) => LoopExit::Stopped,
        Ok(Err(error)) => LoopExit::Failed(error.to_string()),
        Err(payload) => LoopExit::Panicked(
            payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "a panic without a message".to_owned()),
        ),
    }
}

/// What a round of the loop ended with.
enum Next {
    Continue,
    End,
}

struct Driver {
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    link: OwnedFd,
    /// What epoll watches the link for.
    interest: EpollFlags,
    /// When to try a flush for which there will be no event.
    retry_at: Option<Duration>,
    /// When to give the buffers back; `None`: that is done.
    rest_at: Option<Duration>,
    gateway: Gateway,
    /// The gateway's clock starts here.
    epoch: Instant,
}

impl Driver {
    fn run(&mut self) -> io::Result<()> {
        let mut frames = FrameReceiver::new();
        let mut events = [EpollEvent::empty(); EVENTS];
        loop {
            let timeout = self.timeout();
            self.shared.busy.store(false, Ordering::SeqCst);
            let count = match self.shared.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            self.shared.busy.store(true, Ordering::SeqCst);
            if self.shared.abandoned.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.shared.ticks.fetch_add(1, Ordering::SeqCst);
            if let Next::End = self.round(&events[..count], &mut frames)? {
                return Ok(());
            }
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let now = self.epoch.elapsed();
        let deadline = [self.gateway.next_deadline(), self.retry_at, self.rest_at]
            .into_iter()
            .flatten()
            .min();
        let Some(deadline) = deadline else {
            return EpollTimeout::NONE;
        };
        // Rounded up: waking early would only mean waiting again.
        let millis = deadline
            .saturating_sub(now)
            .as_micros()
            .div_ceil(1000)
            .min(60_000);
        EpollTimeout::try_from(millis as i32).unwrap_or(EpollTimeout::ZERO)
    }

    fn round(&mut self, events: &[EpollEvent], frames: &mut FrameReceiver) -> io::Result<Next> {
        let now = self.epoch.elapsed();
        for event in events {
            match Token::decode(event.data()) {
                // Drained whatever comes of it: an eventfd left readable would spin the loop.
                Token::Wake => match self.shared.wake.read() {
                    Ok(_) | Err(Errno::EAGAIN) => {}
                    Err(errno) => return Err(errno.into()),
                },
                Token::Link => {}
                token @ (Token::Listener(_) | Token::Tcp(_) | Token::Datagram(_)) => {
                    self.gateway.host_event(token, event.events(), now);
                }
            }
        }
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Stop => {
                    self.farewell(frames, now)?;
                    return Ok(Next::End);
                }
                Command::VmGone => {
                    self.farewell(frames, now)?;
                    self.gateway.vm_gone(now);
                }
                Command::VmStarted => self.gateway.vm_started(now),
                Command::DnsReply(token, reply) => self.gateway.dns_reply(token, &reply, now),
                Command::Fault(Fault::Panic) => panic!("a fault was injected"),
                Command::Fault(Fault::Stall) => {
                    while !self.shared.abandoned.load(Ordering::SeqCst) {
                        thread::park();
                    }
                    return Ok(Next::End);
                }
            }
        }
        if self.gateway.transmitter().has_room() {
            self.receive(frames, now)?;
        }
        self.gateway.expire(now);
        self.retry_at = None;
        for _ in 0..SETTLE_ROUNDS {
            self.gateway.settle(now);
            match self.flush()? {
                Flush::Done if self.gateway.has_unsettled() => {}
                Flush::Done | Flush::Full => break,
                Flush::Retry => {
                    self.retry_at = Some(now + MEMORY_RETRY);
                    break;
                }
            }
        }
        self.watch_link()?;
        self.rest(!events.is_empty(), frames, now);
        Ok(Next::Continue)
    }

    /// Timers alone are no traffic: what they send is answered, and if not, it is little.
    fn rest(&mut self, traffic: bool, frames: &mut FrameReceiver, now: Duration) {
        if traffic {
            self.rest_at = Some(now + REST);
        } else if self.rest_at.is_some_and(|at| at <= now) {
            self.rest_at = None;
            frames.release();
            self.gateway.release();
        }
        let traffic = &self.shared.stats.traffic;
        traffic.frame_bytes.set(frames.bytes() as u64);
    }

    /// Takes in one batch of frames; `false` if there was none.
    fn receive(&mut self, frames: &mut FrameReceiver, now: Duration) -> io::Result<bool> {
        // A thread that was given up in the middle of a round: the frames are its successor's.
        if self.shared.abandoned.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let count = match frames.fill(self.link.as_fd()) {
            Ok(count) => count,
            Err(error) => match error.raw_os_error() {
                // ECONNRESET tells once that the VMM's end was closed with frames unread.
                Some(libc::EAGAIN | libc::EINTR | libc::ECONNRESET | libc::ENOBUFS) => 0,
                _ => return Err(error),
            },
        };
        for index in 0..count {
            self.gateway.frame(frames.frame(index), now);
        }
        Ok(count > 0)
    }

    fn flush(&mut self) -> io::Result<Flush> {
        self.gateway.flush(&self.link)
    }

    /// Processes what has arrived before the end.
    fn farewell(&mut self, frames: &mut FrameReceiver, now: Duration) -> io::Result<()> {
        for _ in 0..FAREWELL_BATCHES {
            let more = self.receive(frames, now)?;
            self.gateway.settle(now);
            self.flush()?;
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Frames are taken in while there is room for their answers, and the link is watched for
    /// room only while frames wait for it.
    fn watch_link(&mut self) -> io::Result<()> {
        let transmitter = self.gateway.transmitter();
        let mut interest = EpollFlags::empty();
        if transmitter.has_room() {
            interest |= EpollFlags::EPOLLIN;
        }
        if !transmitter.is_empty() && self.retry_at.is_none() {
            interest |= EpollFlags::EPOLLOUT;
        }
        if interest != self.interest {
            let mut event = EpollEvent::new(interest, Token::Link.encode());
            self.shared.epoll.modify(&self.link, &mut event)?;
            self.interest = interest;
        }
        Ok(())
    }
}
