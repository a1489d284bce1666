//! x
/// x
#[derive(Debug, clap::Args)]
pub struct Options {}
/// x
pub fn run(_: &Options) -> u8 {
    0
}
