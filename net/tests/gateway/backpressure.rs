//! Whatever the pace of either end and the cutting of the bytes, all arrive.

use std::io::{Read, Write};
use std::net::Shutdown;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use smoltcp::socket::tcp::RecvError;

use crate::guest::{World, config_with_host_ports, gateway};
use crate::servers::{digest, pattern, serve_once};

#[derive(Clone, Debug)]
struct Case {
    mtu: u16,
    upload: usize,
    download: usize,
    guest_write: usize,
    /// What the guest reads at once; it reads in some of its rounds only.
    guest_read: usize,
    guest_reads_every: usize,
    host_write: usize,
    host_read: usize,
    host_buffer: usize,
    /// The host sends only after the guest's FIN.
    reply_after_fin: bool,
    budget: usize,
}

fn case() -> impl Strategy<Value = Case> {
    (
        (
            prop_oneof![
                Just(1280u16),
                Just(1500),
                Just(9000),
                Just(65520),
                1280u16..65520
            ],
            0usize..1_000_000,
            0usize..1_000_000,
            1usize..200_000,
            // Slower, and the guest's stack would end its TIME-WAIT with bytes unread.
            20_000usize..200_000,
            1usize..8,
        ),
        (
            1usize..200_000,
            1usize..200_000,
            prop_oneof![Just(32usize << 10), Just(1 << 20)],
            any::<bool>(),
            prop_oneof![Just(64usize << 10), Just(2 << 20), Just(64 << 20)],
        ),
    )
        .prop_map(|(first, second)| Case {
            mtu: first.0,
            upload: first.1,
            download: first.2,
            guest_write: first.3,
            guest_read: first.4,
            guest_reads_every: first.5,
            host_write: second.0,
            host_read: second.1,
            host_buffer: second.2,
            reply_after_fin: second.3,
            budget: second.4,
        })
}

fn run(case: &Case) {
    let upload = pattern(case.upload, 21);
    let download = pattern(case.download, 22);
    let to_send = download.clone();
    let host = case.clone();
    let (server, thread) = serve_once(move |stream| {
        socket2::SockRef::from(&stream)
            .set_recv_buffer_size(host.host_buffer)
            .unwrap();
        let mut writer = stream.try_clone().unwrap();
        let write = move || {
            for chunk in to_send.chunks(host.host_write) {
                writer.write_all(chunk).unwrap();
            }
            writer.shutdown(Shutdown::Write).unwrap();
        };
        let (early, late) = if host.reply_after_fin {
            (None, Some(write))
        } else {
            (Some(std::thread::spawn(write)), None)
        };
        let mut received = Vec::new();
        let mut buffer = vec![0; host.host_read];
        let mut reader = stream;
        loop {
            match reader.read(&mut buffer).unwrap() {
                0 => break,
                count => received.extend_from_slice(&buffer[..count]),
            }
        }
        if let Some(mut write) = late {
            write();
        }
        if let Some(early) = early {
            early.join().unwrap();
        }
        digest(&received)
    });
    let mut config = config_with_host_ports(&[server.port()]);
    config.mtu = case.mtu;
    config.buffer_budget = case.budget;
    let mut world = World::new(config);
    let connection = world.guest.connect(gateway(server.port()));
    assert!(world.guest.connected(connection));
    let mut sent = 0;
    let mut round = 0;
    let mut received = Vec::new();
    let mut end = None;
    let orderly = world.guest.run("both directions", |guest| {
        round += 1;
        let socket = guest.tcp(connection);
        if sent < upload.len() && socket.can_send() {
            let part = upload.len().min(sent + case.guest_write);
            sent += socket.send_slice(&upload[sent..part]).unwrap();
        }
        let all_sent = sent == upload.len();
        if all_sent && socket.may_send() {
            socket.close();
        }
        if round % case.guest_reads_every == 0 && end.is_none() {
            let read = socket.recv(|bytes| {
                let take = bytes.len().min(case.guest_read);
                (take, bytes[..take].to_vec())
            });
            match read {
                Ok(bytes) => received.extend(bytes),
                Err(RecvError::Finished) => end = Some(true),
                Err(RecvError::InvalidState) => end = Some(false),
            }
        }
        end.filter(|orderly| all_sent || !orderly)
    });
    assert!(orderly);
    assert_eq!(digest(&received), digest(&download));
    world
        .guest
        .run("the host's end", |_| thread.is_finished().then_some(()));
    assert_eq!(thread.join().unwrap(), digest(&upload));
    world.guest.run("the flow's end", |_| {
        (world.net.stats().traffic.tcp_flows == 0).then_some(())
    });
}

#[test]
fn all_bytes_arrive_at_any_pace() {
    let mut runner = TestRunner::new(Config {
        cases: 64,
        failure_persistence: None,
        max_shrink_iters: 8,
        ..Config::default()
    });
    runner
        .run(&case(), |case| {
            run(&case);
            Ok(())
        })
        .unwrap();
}
