#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

pub(crate) fn run(_args: &Args) -> Result<(), crate::failure::Failure> {
    Err(crate::failure::Failure::usage("not built yet"))
}
