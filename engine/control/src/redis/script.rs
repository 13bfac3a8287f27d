//! Lua scripts, called by their hash.

use std::sync::OnceLock;

use redis::{Cmd, ErrorKind, ServerErrorKind};

use super::connect::Answer;

/// A script with one key.
#[derive(Debug)]
pub(super) struct Script {
    text: &'static str,
    hash: OnceLock<String>,
}

impl Script {
    pub(super) const fn new(text: &'static str) -> Self {
        Self { text, hash: OnceLock::new() }
    }

    /// `EVALSHA` with its key; the arguments follow.
    pub(super) fn call(&self, key: &[u8]) -> Cmd {
        let hash = self.hash.get_or_init(|| redis::Script::new(self.text).get_hash().to_owned());
        let mut command = redis::cmd("EVALSHA");
        command.arg(hash).arg(1).arg(key);
        command
    }

    pub(super) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.text);
        command
    }
}

/// The server does not know the script any more.
pub(super) fn is_forgotten(answer: &Answer) -> bool {
    answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}
