//! The threads that write log lines. Workers hand them whole buffers ([`ringway_core::log_queue`]); nothing that happens
//! to them, a full disk or a reader that went away, holds a worker up or ends the process.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringway_config::Hub;
use ringway_config::hub::LogLane;
use ringway_config::snapshot::{AccessLog, AuditLog};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Workers wake the writer with each batch; this is how late it notices at worst if a wake is lost.
const IDLE: Duration = Duration::from_millis(250);
/// How long after a failed write it is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// One warning in this time while lines cannot be written.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// How long a pipe that is full may stay so before the write has failed. A blocking one holds the access log's writer up,
/// which costs lines; the audit log's looks before it writes, so that it can still be sent elsewhere.
const FULL_PIPE_MAX: Duration = Duration::from_secs(1);
/// What a pipe that has room takes without blocking (POSIX's `PIPE_BUF`, as Linux has it).
const PIPE_BYTES: usize = 4096;

/// A log, and what becomes of lines that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// Dropped, and counted: the log has gaps, and the newest lines.
    Access,
    /// Kept and tried again, from the first that is missing on; the workers hold back what follows.
    Audit,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Off,
    Stdout,
    Stderr,
    File(PathBuf),
}

/// Where lines go, opened.
#[derive(Debug)]
pub struct Sink {
    file: Option<File>,
    /// To open again; `None` for stdout, stderr and off.
    path: Option<PathBuf>,
    /// The last write ended within a line.
    torn: bool,
}

/// The handle of a writer's thread. Dropped without [`LogWriter::finish`], the thread still writes what waits.
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
    log: Log,
    hub: Arc<Hub>,
    sink: Sink,
    commands: Receiver<Command>,
    /// A buffer that could not be written, and how much of it was; when to try again.
    kept: Option<(Vec<u8>, usize, Instant)>,
    warned: Option<Instant>,
    dropped_since: u64,
}

impl Log {
    /// What operators call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Access => "access log",
            Self::Audit => "audit log",
        }
    }

    fn lane(self, hub: &Hub) -> &LogLane {
        match self {
            Self::Access => &hub.log,
            Self::Audit => &hub.audit,
        }
    }
}

impl From<&AccessLog> for Target {
    fn from(log: &AccessLog) -> Self {
        match log {
            AccessLog::Off => Self::Off,
            AccessLog::Stdout => Self::Stdout,
            AccessLog::File(path) => Self::File(path.clone()),
        }
    }
}

impl From<&AuditLog> for Target {
    fn from(log: &AuditLog) -> Self {
        match log {
            AuditLog::Off => Self::Off,
            AuditLog::Stdout => Self::Stdout,
            AuditLog::Stderr => Self::Stderr,
            AuditLog::File(path) => Self::File(path.clone()),
        }
    }
}

impl Sink {
    /// Opens the target: a file for appending, made with mode 0640 where it does not exist.
    pub fn open(target: &Target) -> io::Result<Self> {
        let (file, path) = match target {
            Target::Off => (None, None),
            // A descriptor of its own: `Stdout` would buffer by lines and lock.
            Target::Stdout => (Some(File::from(io::stdout().as_fd().try_clone_to_owned()?)), None),
            Target::Stderr => (Some(File::from(io::stderr().as_fd().try_clone_to_owned()?)), None),
            Target::File(path) => (Some(append(path)?), Some(path.clone())),
        };
        Ok(Self { file, path, torn: false })
    }

    /// Opens the same path again, after it was renamed. False where there is no path.
    fn reopen(&mut self) -> io::Result<bool> {
        let Some(path) = &self.path else { return Ok(false) };
        self.file = Some(append(path)?);
        self.torn = false;
        Ok(true)
    }

    /// Writes lines. An error says how many of their bytes are written all the same.
    fn write(&mut self, lines: &[u8], log: Log) -> Result<(), (usize, io::Error)> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let looks = log == Log::Audit && self.path.is_none();
        let mut rest = lines;
        let result = if self.torn { write_all(file, &mut b"\n".as_slice(), looks) } else { Ok(()) };
        let result = result.and_then(|()| {
            self.torn = false;
            write_all(file, &mut rest, looks)
        });
        result.map_err(|error| {
            let written = lines.len() - rest.len();
            self.torn |= lines[..written].last().is_some_and(|byte| *byte != b'\n');
            (written, error)
        })
    }
}

impl LogWriter {
    pub fn start(log: Log, hub: Arc<Hub>, sink: Sink) -> io::Result<Self> {
        let (commands, inbox) = channel();
        let (done, finished) = channel();
        let mut writer =
            Writer { log, hub: Arc::clone(&hub), sink, commands: inbox, kept: None, warned: None, dropped_since: 0 };
        let thread = thread::Builder::new().name(log.name().replace(' ', "-")).spawn(move || {
            writer.run();
            drop(done);
        })?;
        log.lane(&hub).set_writer(thread.thread().clone());
        Ok(Self { commands, finished, thread })
    }

    /// Opens the file again: what a log rotation asks for after it renamed the file.
    pub fn reopen(&self) {
        self.tell(Command::Reopen);
    }

    /// Writes what waits to the old sink, then goes on with this one. What the old one does not take goes to this one.
    pub fn redirect(&self, sink: Sink) {
        self.tell(Command::Redirect(sink));
    }

    /// Writes what waits and ends the thread. False if that was not done within `deadline`, because nobody reads
    /// from stdout, say: the rest is lost then.
    pub fn finish(self, deadline: Duration) -> bool {
        let Self { commands, finished, thread } = self;
        drop(commands);
        thread.thread().unpark();
        let done = finished.recv_timeout(deadline) == Err(RecvTimeoutError::Disconnected);
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
                Err(TryRecvError::Disconnected) if !wrote && self.kept.is_none() => break,
                Err(_) if !wrote => thread::park_timeout(IDLE),
                Err(_) => {}
            }
        }
        if self.dropped_since > 0 {
            tracing::warn!("{}: {} lines could not be written", self.log.name(), self.dropped_since);
        }
    }

    fn obey(&mut self, command: Command) {
        let name = self.log.name();
        let reopens = matches!(command, Command::Reopen);
        match command {
            Command::Reopen => match self.sink.reopen() {
                Ok(true) => tracing::info!("{name} opened again"),
                Ok(false) => return,
                Err(error) => {
                    return tracing::warn!("{name} cannot be opened again, the old file stays in use: {error}");
                }
            },
            Command::Redirect(sink) => self.sink = sink,
        }
        if let Some((lines, written, again)) = &mut self.kept {
            // Each line is whole in one file. Where this is the old file all the same, its torn line ends here.
            let whole = memchr::memrchr(b'\n', &lines[..*written]).map_or(0, |end| end + 1);
            self.sink.torn = reopens && whole < *written;
            *written = whole;
            *again = Instant::now();
        }
    }

    /// Writes the buffers that wait. True if one was written or is gone.
    fn drain(&mut self) -> bool {
        let mut wrote = false;
        loop {
            let (lines, from) = match self.kept.take() {
                Some((lines, written, again)) if again > Instant::now() => {
                    self.kept = Some((lines, written, again));
                    return wrote;
                }
                Some((lines, written, _)) => (lines, written),
                None => match self.log.lane(&self.hub).pop() {
                    Some(lines) => (lines, 0),
                    None => return wrote,
                },
            };
            if let Err((written, error)) = self.sink.write(&lines[from..], self.log) {
                let written = from + written;
                let missing = memchr::memchr_iter(b'\n', &lines[written..]).count() as u64;
                self.log.lane(&self.hub).write_errors.fetch_add(1, Ordering::Relaxed);
                self.warn(missing, &error);
                if self.log == Log::Audit {
                    // What is missing of a torn line follows.
                    self.sink.torn = false;
                    self.kept = Some((lines, written, Instant::now() + RETRY));
                    return wrote;
                }
                self.log.lane(&self.hub).count_dropped(missing);
            }
            wrote = true;
            self.log.lane(&self.hub).give_back(lines);
        }
    }

    fn warn(&mut self, lines: u64, error: &io::Error) {
        match self.log {
            Log::Access => self.dropped_since += lines,
            Log::Audit => self.dropped_since = 0,
        }
        if self.warned.is_some_and(|last| last.elapsed() < WARN_EVERY) {
            return;
        }
        match self.log {
            Log::Access => tracing::warn!("access log: {} lines could not be written: {error}", self.dropped_since),
            Log::Audit => {
                tracing::error!("audit log: records cannot be written, they are kept and tried again: {error}");
            }
        }
        (self.warned, self.dropped_since) = (Some(Instant::now()), 0);
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// Like [`Write::write_all`], but leaves in `rest` what was not written, and waits a while for a full pipe. `looks`: never
/// blocks in the write itself.
fn write_all(file: &mut File, rest: &mut &[u8], looks: bool) -> io::Result<()> {
    let mut full_since = None;
    while !rest.is_empty() {
        let mut piece = *rest;
        if looks {
            wait_for_room(file)?;
            piece = piece.get(..PIPE_BYTES).unwrap_or(piece);
        }
        match file.write(piece) {
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

fn wait_for_room(file: &File) -> io::Result<()> {
    let mut polled = [PollFd::new(file, PollFlags::OUT)];
    let limit = Timespec::try_from(FULL_PIPE_MAX).map_err(io::Error::other)?;
    match poll(&mut polled, Some(&limit)) {
        Ok(0) => Err(ErrorKind::WouldBlock.into()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
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
        hub.log.wake();
    }

    fn start(target: &Target) -> (Arc<Hub>, LogWriter) {
        let hub = hub(snapshot());
        let writer = LogWriter::start(Log::Access, hub.clone(), Sink::open(target).unwrap()).unwrap();
        (hub, writer)
    }

    fn read(path: &std::path::Path) -> String {
        fs::read_to_string(path).unwrap_or_default()
    }

    #[test]
    fn lines_go_to_the_file_and_follow_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let (hub, writer) = start(&Target::File(path.clone()));
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
        let (hub, writer) = start(&Target::File(logs.join("access.log")));
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
        let (hub, writer) = start(&Target::File("/dev/full".into()));
        push(&hub, "a\nb\nc\n");
        push(&hub, "d\n");
        wait_for(|| hub.log.dropped_lines() == 4);
        writer.redirect(Sink::open(&Target::File(path.clone())).unwrap());
        wait_for(|| {
            push(&hub, "e\n");
            read(&path).starts_with("e\n")
        });
        assert!(writer.finish(Duration::from_secs(5)));
    }

    #[test]
    fn a_reader_that_went_away_is_an_error() {
        let (reader, pipe) = io::pipe().unwrap();
        drop(reader);
        let mut sink = Sink { file: Some(File::from(OwnedFd::from(pipe))), path: None, torn: false };
        let (written, error) = sink.write(b"a\nb\n", Log::Access).unwrap_err();
        assert_eq!((written, error.kind()), (0, ErrorKind::BrokenPipe));
    }

    #[test]
    fn a_torn_line_does_not_spoil_the_next() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let pipe = OwnedFd::from(pipe);
        let flags = rustix::fs::fcntl_getfl(&pipe).unwrap();
        rustix::fs::fcntl_setfl(&pipe, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let mut sink = Sink { file: Some(File::from(pipe)), path: None, torn: false };
        let long = [b"first\n".as_slice(), &[b'x'; 100_000], b"\n"].concat();
        assert_eq!(sink.write(&long, Log::Access).unwrap_err().0, 65_536);

        let mut taken = vec![0; 65_536];
        reader.read_exact(&mut taken).unwrap();
        assert!(taken.ends_with(b"x"));
        sink.write(b"next\n", Log::Access).unwrap();
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
        let writer = LogWriter::start(Log::Access, hub.clone(), sink).unwrap();
        push(&hub, &"x".repeat(200_000));
        assert!(!writer.finish(Duration::from_millis(50)));
        drop(reader);
    }

    fn start_audit(sink: Sink) -> (Arc<Hub>, LogWriter) {
        let hub = hub(snapshot());
        let writer = LogWriter::start(Log::Audit, hub.clone(), sink).unwrap();
        (hub, writer)
    }

    fn push_audit(hub: &Hub, lines: &str) {
        assert!(hub.audit.offer(lines.as_bytes().to_vec()).is_ok());
        hub.audit.wake();
    }

    fn errors(hub: &Hub) -> u64 {
        hub.audit.write_errors.load(Ordering::Relaxed)
    }

    #[test]
    fn audit_records_outlast_a_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (hub, writer) = start_audit(Sink::open(&Target::File("/dev/full".into())).unwrap());
        push_audit(&hub, "a\nb\n");
        push_audit(&hub, "c\n");
        wait_for(|| errors(&hub) >= 2);
        assert!(hub.audit.has_full(), "what follows waits");
        writer.redirect(Sink::open(&Target::File(path.clone())).unwrap());
        wait_for(|| read(&path) == "a\nb\nc\n");
        push_audit(&hub, "d\n");
        assert!(writer.finish(Duration::from_secs(5)));
        assert_eq!((read(&path).as_str(), hub.audit.dropped_lines()), ("a\nb\nc\nd\n", 0));
    }

    #[test]
    fn audit_records_wait_for_a_stalled_pipe_and_come_whole() {
        let (mut reader, pipe) = io::pipe().unwrap();
        let sink = Sink { file: Some(File::from(OwnedFd::from(pipe))), path: None, torn: false };
        let (hub, writer) = start_audit(sink);
        let long = format!("first\n{}\n", "x".repeat(100_000));
        push_audit(&hub, &long);
        push_audit(&hub, "next\n");
        wait_for(|| errors(&hub) >= 1);
        let expected = format!("{long}next\n");
        let (mut read, mut room) = (Vec::new(), vec![0; 4096]);
        while read.len() < expected.len() {
            let taken = reader.read(&mut room).unwrap();
            read.extend_from_slice(&room[..taken]);
        }
        assert!(read == expected.as_bytes());
        assert!(writer.finish(Duration::from_secs(5)));
    }

    #[test]
    fn a_record_that_was_torn_is_whole_in_the_next_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        let (mut reader, pipe) = io::pipe().unwrap();
        let sink = Sink { file: Some(File::from(OwnedFd::from(pipe))), path: None, torn: false };
        let (hub, writer) = start_audit(sink);
        let record = format!("{}\n", "x".repeat(100_000));
        push_audit(&hub, &format!("first\n{record}"));
        wait_for(|| errors(&hub) >= 1);
        writer.redirect(Sink::open(&Target::File(path.clone())).unwrap());
        assert!(writer.finish(Duration::from_secs(5)));
        assert!(read(&path) == record);
        let mut before = String::new();
        reader.read_to_string(&mut before).unwrap();
        assert!(before.starts_with("first\nx"));
    }

    #[test]
    fn an_audit_log_that_nobody_takes_is_not_written_off_as_done() {
        let (hub, writer) = start_audit(Sink::open(&Target::File("/dev/full".into())).unwrap());
        push_audit(&hub, "a\n");
        assert!(!writer.finish(Duration::from_millis(100)));
        assert!(errors(&hub) >= 1);
    }
}
