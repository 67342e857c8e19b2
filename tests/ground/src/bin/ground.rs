//! The proving ground from the command line.

use clap::Parser;
#[derive(Parser)]
struct Cli {
}
fn main() -> anyhow::Result<()> {
    let _ = Cli::parse();
    let t = std::path::PathBuf::from("/bin/true");
    let programs = nodewhy_ground::image::Programs{guest: t.clone(), kubelet: t.clone(), pods: t.clone()};
    let i = nodewhy_ground::image::Image::make(nodewhy_ground::image::Suite::Bookworm, &programs)?;
    eprintln!("{i:?} {:?}", nodewhy_ground::machine::Accelerator::find(&i));
    Ok(())
}
