//! The running supervisor's control socket: how `iii-super ps`, `stop`, `exec` and the others speak
//! to a `iii-super run`.
//!
//! * [`protocol`]: what is said, as types; [`line`](mod@line): how it is put into bytes;
//! * [`socket`]: where it is, under paths of any length; who may speak;
//! * [`server`]: the supervisor's end; [`client`]: the commands' end.
//!
//! # The socket
//!
//! `control.sock` in the project's state directory (`~/.iii/projects/<project>`), mode 0600 in a
//! directory of mode 0700. The kernel names the peer: its owner and root are answered, nobody else.
//! Whoever holds the directory's lock is the supervisor, so a socket that a killed one has left is
//! replaced without asking. It is removed at the supervisor's end.
//!
//! # A conversation
//!
//! One connection carries one request. Every line is one JSON value, ended by a newline.
//!
//! 1. The supervisor speaks first, a [`Greeting`](protocol::Greeting):
//!    `{"protocol":1,"version":"0.1.0","pid":4711,"file":"/srv/app/iii.workers.yaml",…}`.
//! 2. The client asks, a [`Call`](protocol::Call), within ten seconds and in at most 512 KiB:
//!    `{"protocol":1,"request":"status"}` or
//!    `{"protocol":1,"request":{"logs":{"workers":["web"],"follow":true}}}`.
//! 3. The supervisor answers with [`Reply`](protocol::Reply) lines: `{"worker":{…}}`,
//!    `{"event":{…}}`, `{"log":{…}}`, `{"missed":12}`. The last one is `"done"`,
//!    `{"refused":{"kind":…,"message":…}}` or `{"ended":{"code":0}}`. Events and output lines are the
//!    very objects that `iii-super run --json` prints.
//!
//! An [`Exec`](protocol::Request::Exec) request is answered by `{"opened":{…}}`; from there on both
//! ends speak the binary frames of the guests' exec port ([`iii_proto::exec`]), with its windows.
//!
//! A client that hangs up takes its waiting back, never what it has asked for; only a command that
//! it runs in a guest ends with it.
//!
//! # Versions
//!
//! `protocol` is checked at both ends before anything else of a message is read. Within a version
//! fields and kinds of events are only added: unknown fields are ignored, an unknown kind of event
//! is shown as its JSON.
//!
//! # What a client cannot do
//!
//! A client is a process of the same user, and may be broken. It cannot make the supervisor wait:
//! each connection is a task of its own, and what is put out faster than a client reads is missed by
//! it, and counted, not kept. It cannot make it grow: requests, connections, and what is under way
//! on each are bounded.
//!
//! May depend on the library part of this crate. Must never be in it: printing, what a command line
//! looks like.

pub mod client;
pub mod line;
pub mod protocol;
pub mod server;
pub mod socket;
