//! The thread that writes access log lines. Workers hand it whole buffers ([`ringway_core::log_queue`]); nothing that
//! happens to it, a full disk or a reader that went away, holds a worker up or ends the process.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringway_config::Hub;
use ringway_config::snapshot::AccessLog;

/// Workers wake the writer with each batch; this is how late it notices at worst if a wake is lost.
const IDLE: Duration = Duration::from_millis(250);
/// One warning in this time while lines cannot be written.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// How long a non-blocking stdout that is full may stay so before the buffer's lines are dropped.
const FULL_PIPE_MAX: Duration = Duration::from_secs(1);

/// Where lines go, opened.
#[derive(Debug)]
pub struct Sink {
    file: Option<File>,
    /// To open again; `None` for stdout and off.
    path: Option<PathBuf>,
    /// The last write ended within a line.
    torn: bool,
}

/// The handle of the writer's thread. Dropped without [`LogWriter::finish`], the thread still writes what waits.
#[derive(Debug)]
pub struct LogWriter {
    commands: Sender<Command>,
    finished: Receiver<()>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
enum Command {
    Reopen,
    Redirect(Sink),
}

struct Writer {
    hub: Arc<Hub>,
    sink: Sink,
    commands: Receiver<Command>,
    warned: Option<Instant>,
    dropped_since: u64,
}

impl Sink {
    /// Opens the target: a file for appending, made with mode 0640 where it does not exist.
    pub fn open(target: &AccessLog) -> io::Result<Self> {
        let (file, path) = match target {
            AccessLog::Off => (None, None),
            // A descriptor of its own: `Stdout` would buffer by lines and lock.
            AccessLog::Stdout => (Some(File::from(io::stdout().as_fd().try_clone_to_owned()?)), None),
            AccessLog::File(path) => {
                let file = OpenOptions::new().append(true).create(true).mode(0o640).open(path)?;
                (Some(file), Some(path.clone()))
            }
        };
        Ok(Self { file, path, torn: false })
    }

    /// Opens the same path again, after it was renamed. False where there is no path.
    fn reopen(&mut self) -> io::Result<bool> {
        let Some(path) = &self.path else { return Ok(false) };
        *self = Self::open(&AccessLog::File(path.clone()))?;
        Ok(true)
    }

    /// Writes whole lines. An error says how many of them are not in the file, or not whole.
    fn write(&mut self, lines: &[u8]) -> Result<(), (u64, io::Error)> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut rest = lines;
        let result = if self.torn { write_all(file, &mut b"\n".as_slice()) } else { Ok(()) };
        let result = result.and_then(|()| {
            self.torn = false;
            write_all(file, &mut rest)
        });
        result.map_err(|error| {
            let written = lines.len() - rest.len();
            self.torn |= lines[..written].last().is_some_and(|byte| *byte != b'\n');
            (memchr::memchr_iter(b'\n', rest).count() as u64, error)
        })
    }
}

impl LogWriter {
    pub fn start(hub: Arc<Hub>, sink: Sink) -> io::Result<Self> {
        let (commands, inbox) = channel();
        let (done, finished) = channel();
        let mut writer = Writer { hub: Arc::clone(&hub), sink, commands: inbox, warned: None, dropped_since: 0 };
        let thread = thread::Builder::new().name("access-log".into()).spawn(move || {
            writer.run();
            drop(done);
        })?;
        hub.set_log_writer(thread.thread().clone());
        Ok(Self { commands, finished, thread })
    }

    /// Opens the file again: what a log rotation asks for after it renamed the file.
    pub fn reopen(&self) {
        self.tell(Command::Reopen);
    }

    /// Writes what waits to the old sink, then goes on with this one.
    pub fn redirect(&self, sink: Sink) {
        self.tell(Command::Redirect(sink));
    }

    /// Writes what waits and ends the thread. False if that was not done within `deadline`, because nobody reads
    /// from stdout, say: the rest is lost then.
    pub fn finish(self, deadline: Duration) -> bool {
        let Self { commands, finished, thread } = self;
        drop(commands);
        thread.thread().unpark();
        let done = finished.recv_timeout(deadline) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected);
        done && thread.join().is_ok()
    }

    fn tell(&self, command: Command) {
        // The thread ends only after this sender is gone.
        let _ = self.commands.send(command);
        self.thread.thread().unpark();
    }
}

impl Writer {
    fn run(&mut self) {
        loop {
            let command = self.commands.try_recv();
            let wrote = self.drain();
            match command {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Disconnected) if !wrote => break,
                Err(TryRecvError::Empty) if !wrote => thread::park_timeout(IDLE),
                Err(_) => {}
            }
        }
        if self.dropped_since > 0 {
            tracing::warn!("access log: {} lines could not be written", self.dropped_since);
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Reopen => match self.sink.reopen() {
                Ok(true) => tracing::info!("access log opened again"),
                Ok(false) => {}
                Err(error) => tracing::warn!("access log cannot be opened again, the old file stays in use: {error}"),
            },
            Command::Redirect(sink) => self.sink = sink,
        }
    }

    /// Writes the buffers that wait. True if there was one.
    fn drain(&mut self) -> bool {
        let mut wrote = false;
        while let Some(buffer) = self.hub.log.pop() {
            wrote = true;
            if let Err((lines, error)) = self.sink.write(&buffer) {
                self.hub.log.count_dropped(lines);
                self.warn(lines, &error);
            }
            self.hub.log.give_back(buffer);
        }
        wrote
    }

    fn warn(&mut self, lines: u64, error: &io::Error) {
        self.dropped_since += lines;
        if self.warned.is_none_or(|last| last.elapsed() >= WARN_EVERY) {
            tracing::warn!("access log: {} lines could not be written: {error}", self.dropped_since);
            (self.warned, self.dropped_since) = (Some(Instant::now()), 0);
        }
    }
}

/// Like [`Write::write_all`], but leaves in `rest` what was not written, and waits a while for a full pipe.
fn write_all(file: &mut File, rest: &mut &[u8]) -> io::Result<()> {
    let mut full_since = None;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => {
                *rest = rest.get(written..).unwrap_or_default();
                full_since = None;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if full_since.get_or_insert_with(Instant::now).elapsed() > FULL_PIPE_MAX {
                    return Err(error);
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::testing::{hub, snapshot, wait_for};

    fn push(hub: &Hub, lines: &str) {
        assert!(hub.log.swap(&mut lines.as_bytes().to_vec()));
        hub.wake_log_writer();
    }

    fn start(target: &AccessLog) -> (Arc<Hub>, LogWriter) {
        let hub = hub(snapshot());
        let writer = LogWriter::start(hub.clone(), Sink::open(target).unwrap()).unwrap();
        (hub, writer)
    }

    fn read(path: &std::path::Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn lines_go_to_the_file_and_follow_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let (hub, writer) = start(&AccessLog::File(path.clone()));
        push(&hub, "a\nb\n");
        wait_for(|| read(&path) == "a\nb\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o640, 0);

        fs::rename(&path, &old).unwrap();
        push(&hub, "c\n");
        wait_for(|| read(&old) == "a\nb\nc\n");
        writer.reopen();
        wait_for(|| path.exists());
        push(&hub, "d\n");
        assert!(writer.finish(Duration::from_secs(5)));
        assert_eq!((read(&path).as_str(), read(&old).as_str()), ("d\n", "a\nb\nc\n"));
        assert_eq!(hub.log.dropped_lines(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_stays_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        fs::create_dir(&logs).unwrap();
        let (hub, writer) = start(&AccessLog::File(logs.join("access.log")));
        fs::rename(&logs, dir.path().join("moved")).unwrap();
        writer.reopen();
        push(&hub, "a\n");
        assert!(writer.finish(Duration::from_secs(5)));
        assert_eq!(read(&dir.path().join("moved/access.log")), "a\n");
    }

    #[test]
    fn a_full_disk_counts_lines_and_the_writer_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (hub, writer) = start(&AccessLog::File("/dev/full".into()));
        push(&hub, "a\nb\nc\n");
        push(&hub, "d\n");
        wait_for(|| hub.log.dropped_lines() == 4);
        writer.redirect(Sink::open(&AccessLog::File(path.clone())).unwrap());
        wait_for(|| {
            push(&hub, "e\n");
            read(&path).starts_with("e\n")
        });
        assert!(writer.finish(Duration::from_secs(5)));
    }

    #[test]
    fn a_reader_that_went_away_counts_lines() {
        let (reader, pipe) = io::pipe().unwrap();
        drop(reader);
        let mut sink = Sink { file: Some(File::from(OwnedFd::from(pipe))), path: None, torn: false };
        let (lines, error) = sink.write(b"a\nb\n").unwrap_err();
        assert_eq!((lines, error.kind()), (2, ErrorKind::BrokenPipe));
    }

    #[test]
    fn a_torn_line_does_not_spoil_the_next() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let pipe = OwnedFd::from(pipe);
        let flags = rustix::fs::fcntl_getfl(&pipe).unwrap();
        rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let mut sink = Sink { file: Some(File::from(pipe)), path: None, torn: false };
        let long = [b"first\n".as_slice(), &[b'x'; 100_000], b"\n"].concat();
        assert_eq!(sink.write(&long).unwrap_err().0, 1);

        let mut taken = vec![0; 65_536];
        reader.read_exact(&mut taken).unwrap();
        assert!(taken.ends_with(b"x"));
        sink.write(b"next\n").unwrap();
        drop(sink);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "\nnext\n");
    }

    #[test]
    fn what_waits_is_written_at_the_end_and_a_stuck_reader_does_not_hold_it_up() {
        let (reader, pipe) = io::pipe().unwrap();
        let sink = Sink { file: Some(File::from(OwnedFd::from(pipe))), path: None, torn: false };
        let hub = hub(snapshot());
        let writer = LogWriter::start(hub.clone(), sink).unwrap();
        push(&hub, &"x".repeat(200_000));
        assert!(!writer.finish(Duration::from_millis(50)));
        drop(reader);
    }
}
