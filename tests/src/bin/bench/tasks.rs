//! A look at every thread of a node with 1,000 processes, beside `ps`.

use std::process::{Command, Stdio};

use anyhow::ensure;

use crate::alone::host;
use crate::measure::{Ended, in_turn, own, shell};
use crate::table::Row;

const PROCESSES: usize = 1000;

pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let sleeper = || Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().map(Ended);
    let sleepers = (0..PROCESSES).map(|_| sleeper()).collect::<Result<Vec<_>, _>>()?;
    let host = host();
    let sweep = || -> anyhow::Result<f64> {
        let (cost, seen) = own(1, || {
            let mut seen = 0;
            host.sweep_tasks()?.advance(|| false, |_| seen += 1)?;
            Ok(seen)
        })?;
        ensure!(seen > PROCESSES, "{seen} threads were seen");
        Ok(cost * 1e3)
    };
    let ps = in_turn(9, sweep, || Ok(shell("ps -eLo pid,tid,stat,wchan >/dev/null")? * 1e3))?;
    let gate = own(2000, || {
        std::fs::read("/proc/stat")?;
        Ok(std::fs::read("/proc/loadavg")?)
    })?;
    drop(sleepers);
    Ok(vec![
        Row::new("every thread of 1,000 processes, ms", ps.ours)
            .beside("ps -eLo pid,tid,stat,wchan", ps.peer),
        Row::new("every thread, ratio to ps", ps.ratio).at_most(1.0),
        Row::new("its gate (/proc/stat, /proc/loadavg), ms", gate.0 * 1e3),
    ])
}
