//! How the process ends when it does not end well.

use std::fmt;
use std::process::ExitCode;

use ringway_control::reload::Refused;

/// An exit code and what to tell: one line, or one for each error of a configuration.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The configuration or the command line is wrong: exit code 2.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { code: 2, message: message.to_string() }
    }

    /// Something failed while starting or running: exit code 1.
    pub(crate) fn runtime(message: impl fmt::Display) -> Self {
        Self { code: 1, message: message.to_string() }
    }

    pub(crate) fn code(&self) -> ExitCode {
        self.code.into()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.trim_end())
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Config(errors) => Self::usage(errors),
            other => Self::runtime(other),
        }
    }
}
