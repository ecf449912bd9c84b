//! Bytes: all of them, in order, and no faster than they are read.

use super::{BOX, begin, code, finish, idle_box, script, text, within};
use iii_integration::{Bench, shell};
use iii_proto::exec::window::WINDOW;
use iii_supervisor::{ExecOutput, ExecRequest};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

const HUNDRED_MEGABYTES: usize = 100_000_000;
/// Bytes of a line of the slow reader's command.
const LINE: usize = 16;

/// Bytes without a pattern that a lost or doubled piece could hide in.
struct Noise(u64);

impl Noise {
    fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            piece.copy_from_slice(&self.0.to_le_bytes()[..piece.len()]);
        }
    }
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_go_in_byte_for_byte() {
    let bench = idle_box().await;
    let mut session = begin(&bench, script("sha256sum").stdin()).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let mut digest = Sha256::new();
    let mut noise = Noise(0x2545_f491_4f6c_dd1d);
    let (mut left, mut buffer) = (HUNDRED_MEGABYTES, vec![0; 100_003]);
    while left > 0 {
        let piece = left.min(buffer.len());
        noise.fill(&mut buffer[..piece]);
        digest.update(&buffer[..piece]);
        within("room", stdin.write_all(&buffer[..piece]))
            .await
            .unwrap();
        left -= piece;
    }
    drop(stdin);
    let ended = finish(&mut session).await.unwrap();
    assert_eq!(ended.text(), format!("{}  -\n", hex(digest.finalize())));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_megabytes_come_out_byte_for_byte() {
    let bench = idle_box().await;
    let program = format!(
        "import hashlib, os, sys\n\
         digest, left = hashlib.sha256(), {HUNDRED_MEGABYTES}\n\
         while left:\n\
         \x20   piece = os.urandom(min(left, 99991))\n\
         \x20   digest.update(piece)\n\
         \x20   sys.stdout.buffer.write(piece)\n\
         \x20   left -= len(piece)\n\
         sys.stdout.flush()\n\
         print(digest.hexdigest(), file=sys.stderr)\n"
    );
    let request = ExecRequest::new(["python3", "-c", &program]);
    let mut session = begin(&bench, request).await.unwrap();
    let mut output = session.output.take().unwrap();
    let (mut digest, mut length, mut stderr) = (Sha256::new(), 0, Vec::new());
    while let Some(piece) = within("output", output.recv()).await {
        match piece {
            ExecOutput::Stdout(bytes) => {
                digest.update(&bytes);
                length += bytes.len();
            }
            ExecOutput::Stderr(bytes) => stderr.extend(bytes),
        }
    }
    assert_eq!(within("its end", session.wait()).await, Ok(code(0)));
    assert_eq!(length, HUNDRED_MEGABYTES);
    let said = String::from_utf8(stderr).unwrap();
    assert_eq!(said.trim_end(), hex(digest.finalize()));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_stops_its_own_command_and_nothing_else_and_loses_nothing() {
    let ticks = "i=0; while true; do i=$((i+1)); echo \"tick $i\"; sleep 0.2; done";
    let mut bench = Bench::start(vec![shell(BOX, ticks)]).await;
    bench.ready(0, BOX).await;
    // It counts what it could write.
    let writer = "import os\n\
        count = os.open('/tmp/count', os.O_CREAT | os.O_WRONLY)\n\
        for line in range(2000000):\n\
        \x20   os.write(1, b'%015d\\n' % line)\n\
        \x20   os.pwrite(count, b'%015d\\n' % line, 0)\n";
    let mut slow = begin(&bench, ExecRequest::new(["python3", "-c", writer]))
        .await
        .unwrap();
    // On a terminal too, where the last words of a command wait in the kernel.
    let tail = script("stty -onlcr; seq 1 100000").terminal(24, 80);
    let mut terminal = begin(&bench, tail).await.unwrap();

    // Meanwhile others run and the workload's log goes on, until it stands still.
    let (mut count, mut before) = (0, None);
    while count == 0 || before != Some(count) {
        before = Some(count);
        let from = bench.lines.len();
        bench.line_from(from, BOX, "tick ").await;
        count = text(&bench, "read count < /tmp/count; echo ${count:-0}")
            .await
            .parse()
            .unwrap();
    }
    // The window, and the pipe between command and guest, which holds as much again.
    let most = 2 * WINDOW as usize / LINE;
    assert!(count <= most, "it wrote {count} lines of at most {most}");
    println!("it stands still at {count} lines of at most {most}");

    // It is interrupted in the middle of a write; what it wrote before is all there.
    slow.signal(2);
    let ended = finish(&mut slow).await.unwrap();
    let last: usize = text(&bench, "cat /tmp/count").await.parse().unwrap();
    let lines = ended.text();
    let lines: Vec<&str> = lines.lines().collect();
    // The last line may not have been counted any more.
    assert!(
        last >= count && (last + 1..=last + 2).contains(&lines.len()),
        "{} lines came, line {last} was the last counted",
        lines.len()
    );
    for (number, line) in lines.iter().enumerate() {
        assert_eq!(*line, format!("{number:015}"));
    }
    let ended = finish(&mut terminal).await.unwrap();
    let expected: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(
        ended.text() == expected,
        "{} bytes of {}",
        ended.stdout.len(),
        expected.len()
    );
    bench.stop().await;
}
