//! Why a request has no answer.

use std::io;

/// What went wrong, told apart as far as it helps to find the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody listens at the target.
    Refused,
    /// No route to the target.
    Unreachable,
    /// The connection was not made in time.
    ConnectTimeout,
    /// All local ports towards the target are taken.
    NoPort,
    /// The connection was not made for another reason.
    Connect,
    /// The answer was not whole in time.
    Timeout,
    /// The target reset the connection.
    Reset,
    /// The target closed the connection before the answer was whole.
    Closed,
    /// The answer is not HTTP/1.1, or could be read in two ways.
    Malformed,
    /// No connection became free in time, or too many requests were waiting for one.
    NoConnection,
}

impl Fault {
    pub(crate) const ALL: [Self; 10] = [
        Self::Refused,
        Self::Unreachable,
        Self::ConnectTimeout,
        Self::NoPort,
        Self::Connect,
        Self::Timeout,
        Self::Reset,
        Self::Closed,
        Self::Malformed,
        Self::NoConnection,
    ];

    /// As it stands in results.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::NoPort => "no_port",
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Malformed => "malformed",
            Self::NoConnection => "no_connection",
        }
    }

    /// Of a connection that was not made.
    pub(crate) fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            io::ErrorKind::TimedOut => Self::ConnectTimeout,
            io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse => Self::NoPort,
            io::ErrorKind::ConnectionReset => Self::Reset,
            _ => Self::Connect,
        }
    }

    /// Of a connection that was made before.
    pub(crate) fn of_transfer(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected => Self::Closed,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Reset,
        }
    }
}
