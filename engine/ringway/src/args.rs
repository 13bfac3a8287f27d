//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use ringway_control::metrics::{COMMIT, VERSION};

use crate::api_key::ApiKeyArgs;

const EXAMPLES: &str = "\
Examples:
  ringway demo                         a gateway with three small services behind it, to play with
  ringway demo --chaos                 the same, where one service fails now and then
  ringway check gateway.yaml           every error of a configuration at once, with line, column and a hint
  ringway run --config gateway.yaml    the gateway
  ringway api-key --client shop        a new API key, and what the gateway keeps of it
  ringway schema > ringway.schema.json what editors need to complete and check a configuration

While it runs:
  kill -HUP PID    reload the configuration (a changed file is noticed by itself)
  kill -USR1 PID   open the access log again, after a rotation
  kill -TERM PID   drain and end; a second one ends at once

Environment:
  RINGWAY_LOG      off, error, warn, info (the default), debug or trace; messages go to stderr

Exit codes: 0 well, 1 failure while starting or running, 2 bad configuration or command line";

const RUN_EXAMPLES: &str = "\
Examples:
  ringway run --config /etc/ringway/gateway.yaml
  LISTEN=127.0.0.1:8080 UPSTREAM=127.0.0.1:9000 ringway run -c configs/passthrough.yaml
  RINGWAY_LOG=debug ringway run -c gateway.yaml";

const API_KEY_EXAMPLES: &str = "\
Examples:
  ringway api-key --client shop
  ringway api-key --client shop --id 2027-01 --expires 2028-01-31 --role partner
  ringway api-key --client shop --json | jq -r .key";

/// An API gateway for Linux: one process, one pinned io_uring loop per core.
#[derive(Debug, Parser)]
#[command(name = "ringway", version = version(), after_help = EXAMPLES, arg_required_else_help = true)]
#[command(disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the gateway
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        /// A YAML file, or a directory of them
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Checks a configuration and prints all of its errors
    Check {
        /// A YAML file, or a directory of them
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Prints the JSON Schema of the configuration
    Schema,
    /// Makes an API key and prints what to store of it
    #[command(after_help = API_KEY_EXAMPLES)]
    ApiKey(ApiKeyArgs),
    /// Runs a gateway with the configuration configs/quickstart.yaml in front of three built-in services
    Demo {
        /// Where the gateway listens
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
        listen: SocketAddr,
        /// Where the admin listener listens
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9901")]
        admin: SocketAddr,
        /// Its product service fails now and then
        #[arg(long)]
        chaos: bool,
    },
}

fn version() -> String {
    match COMMIT {
        Some(commit) => format!("{VERSION} ({commit})"),
        None => VERSION.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn forms_that_people_type() {
        for line in ["run --config a.yaml", "run -c a.yaml", "run -ca.yaml"] {
            let args = Args::try_parse_from(["ringway"].into_iter().chain(line.split(' '))).unwrap();
            assert!(matches!(args.command, Command::Run { config: Some(path) } if path == Path::new("a.yaml")));
        }
        assert!(matches!(Args::try_parse_from(["ringway", "run"]).unwrap().command, Command::Run { config: None }));
        let Command::Demo { listen, admin, chaos } = Args::try_parse_from(["ringway", "demo"]).unwrap().command else {
            panic!("not demo");
        };
        assert_eq!((listen.port(), admin.port(), chaos), (3000, 9901, false));
        let missing = Args::try_parse_from(["ringway", "check"]).unwrap_err();
        assert_eq!((missing.kind(), missing.exit_code()), (ErrorKind::MissingRequiredArgument, 2));
    }
}
