//! The files of a decision log: one that grows, and those it was before, together never more than a bound.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::line::Line;
use super::record::Context;

/// Where a decision log is written, and its bounds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileOptions {
    /// The folder; made when it is not there. One process writes to it.
    pub dir: PathBuf,
    /// Largest file.
    pub max_file_bytes: u64,
    /// Oldest file that still grows.
    pub max_file_age: Duration,
    /// Most bytes of all files together; the oldest are deleted.
    pub max_total_bytes: u64,
}

/// The files, held by the one thread that writes.
#[derive(Debug)]
pub(super) struct Files {
    options: FileOptions,
    current: Option<Current>,
    /// The last write failed, so that the file may end in half a line.
    torn: bool,
    /// Files put aside so far.
    put_aside: u64,
}

/// The file that grows.
#[derive(Debug)]
struct Current {
    writer: BufWriter<File>,
    bytes: u64,
    opened: Instant,
    /// Contexts that stand in it.
    contexts: HashSet<Arc<str>>,
    /// Decisions in the buffer.
    waiting: u64,
}

const CURRENT: &str = "decisions.jsonl";
const PREFIX: &str = "decisions-";
const SUFFIX: &str = ".jsonl";
const BUFFER_BYTES: usize = 64 * 1024;

// === impl Files ===

impl Files {
    /// Makes the folder and puts what an earlier process left aside.
    pub(super) fn open(options: FileOptions) -> io::Result<Self> {
        fs::create_dir_all(&options.dir)?;
        let mut files = Self { options, current: None, torn: false, put_aside: 0 };
        files.put_aside()?;
        files.reopen()?;
        Ok(files)
    }

    /// Writes one line into the buffer; a full file is put aside first. Gives how many lines reached the file.
    ///
    /// # Errors
    /// When the file cannot be written; how many lines were lost with it, this one included, is in [`Self::lose`].
    pub(super) fn append(&mut self, line: &Line, context: &Arc<Context>) -> io::Result<u64> {
        let line = json(line)?;
        let mut written = 0;
        let full = self.current.as_ref().is_some_and(|current| {
            current.bytes > 0 && current.bytes + line.len() as u64 > self.options.max_file_bytes
        });
        if full || self.is_old() {
            written += self.flush()?;
            self.current = None;
            self.put_aside()?;
        }
        if self.current.is_none() {
            self.reopen()?;
        }
        let Some(current) = &mut self.current else { return Ok(written) };
        if !current.contexts.contains(&context.id) {
            let header = json(&Line::Context(Arc::clone(context)))?;
            current.writer.write_all(&header)?;
            current.bytes += header.len() as u64;
            current.contexts.insert(Arc::clone(&context.id));
        }
        current.writer.write_all(&line)?;
        current.bytes += line.len() as u64;
        current.waiting += 1;
        Ok(written)
    }

    /// Hands the buffer to the system; gives how many decisions that were.
    pub(super) fn flush(&mut self) -> io::Result<u64> {
        let Some(current) = &mut self.current else { return Ok(0) };
        current.writer.flush()?;
        Ok(std::mem::take(&mut current.waiting))
    }

    /// Gives up on the file after an error, until the next [`Self::append`]; gives how many decisions were lost.
    pub(super) fn lose(&mut self) -> u64 {
        self.torn = true;
        self.current.take().map_or(0, |current| {
            // Not flushed by its drop: what did not go through before would be tried again.
            let (_, _) = current.writer.into_parts();
            current.waiting
        })
    }

    /// Flushes and waits until the disk has it.
    pub(super) fn finish(&mut self) -> io::Result<u64> {
        let written = self.flush()?;
        if let Some(current) = &self.current {
            current.writer.get_ref().sync_data()?;
        }
        Ok(written)
    }

    fn is_old(&self) -> bool {
        let old = |current: &Current| current.bytes > 0 && current.opened.elapsed() >= self.options.max_file_age;
        self.current.as_ref().is_some_and(old)
    }

    fn reopen(&mut self) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.options.dir.join(CURRENT))?;
        let mut bytes = file.metadata()?.len();
        if self.torn && bytes > 0 {
            file.write_all(b"\n")?;
            bytes += 1;
        }
        self.torn = false;
        self.current = Some(Current {
            writer: BufWriter::with_capacity(BUFFER_BYTES, file),
            bytes,
            opened: Instant::now(),
            contexts: HashSet::new(),
            waiting: 0,
        });
        Ok(())
    }

    /// Renames the file that grew by the time, and deletes the oldest until all fit.
    fn put_aside(&mut self) -> io::Result<()> {
        let current = self.options.dir.join(CURRENT);
        if fs::metadata(&current).is_ok_and(|metadata| metadata.is_file() && metadata.len() > 0) {
            let stamp = humantime::format_rfc3339_millis(SystemTime::now()).to_string().replace([':', '-'], "");
            loop {
                // Several files of one millisecond must sort as they were written.
                self.put_aside += 1;
                let aside = self.options.dir.join(format!("{PREFIX}{stamp}-{:06}{SUFFIX}", self.put_aside));
                if !aside.exists() {
                    fs::rename(&current, aside)?;
                    break;
                }
            }
        }
        self.trim()
    }

    fn trim(&self) -> io::Result<()> {
        let mut aside = Vec::new();
        for entry in fs::read_dir(&self.options.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(PREFIX) && name.ends_with(SUFFIX) {
                aside.push((name, entry.path(), entry.metadata()?.len()));
            }
        }
        // Names sort by time.
        aside.sort();
        // The file that grows from now on may become as large as a file may be.
        let mut total = self.options.max_file_bytes + aside.iter().map(|(.., bytes)| bytes).sum::<u64>();
        for (_, path, bytes) in aside {
            if total <= self.options.max_total_bytes {
                break;
            }
            fs::remove_file(path)?;
            total -= bytes;
        }
        Ok(())
    }
}

fn json(line: &Line) -> io::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    Ok(bytes)
}
