//! Messages for the operator, on stderr, one line each. Requests are logged elsewhere: the access log.

use std::io;

use tracing::level_filters::LevelFilter;

use crate::failure::Failure;

/// The environment variable that sets the level.
const LEVEL: &str = "RINGWAY_LOG";

/// Sets up logging for the whole process; also for panics, which are a line like any other.
pub(crate) fn start() -> Result<(), Failure> {
    let level = match std::env::var(LEVEL) {
        Ok(level) => parse(&level)?,
        Err(_) => LevelFilter::INFO,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(false)
        // Where stderr is gone, there is nobody to tell it to.
        .log_internal_errors(false)
        .init();
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message").replace('\n', " ");
        tracing::error!("panic in thread {} at {place}: {message}", thread.name().unwrap_or("unnamed"));
    }));
    Ok(())
}

fn parse(level: &str) -> Result<LevelFilter, Failure> {
    level
        .parse()
        .map_err(|_| Failure::usage(format!("{LEVEL}: `{level}` is not one of off, error, warn, info, debug, trace")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_names() {
        assert_eq!(parse("debug").unwrap(), LevelFilter::DEBUG);
        assert_eq!(parse("OFF").unwrap(), LevelFilter::OFF);
        assert!(parse("loud").unwrap_err().to_string().starts_with("RINGWAY_LOG: `loud` is not one of"));
    }
}
