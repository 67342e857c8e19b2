//! `nodewhy`, also installed as `kubectl-nodewhy`.

use std::process::ExitCode;

fn main() -> ExitCode {
    nodewhy::command::main()
}
