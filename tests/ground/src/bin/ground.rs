//! The proving ground from the command line.
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use nodewhy_ground::{image::*, machine::*};
fn main() -> anyhow::Result<()> {
    let t = std::path::PathBuf::from("/bin/true");
    let programs = Programs{guest: "target/x86_64-unknown-linux-gnu/release/guest".into(), kubelet: t.clone(), pods: t.clone()};
    let i = Image::make(Suite::Bookworm, &programs)?;
    let acc = Accelerator::find(&i)?;
    let d = Disks::new(&i, i.folder.join("try"))?;
    let began = Instant::now();
    let mut m = Machine::start(&i, acc, &d, From::Boot)?;
    let c = nodewhy_guest::client::Client::new(UnixStream::connect(m.channel())?, Duration::from_secs(60));
    let c = match c { Ok(c) => c, Err(e) => { println!("{}", m.console()?); return Err(e.into()); } };
    println!("answers after {:?}", began.elapsed());
    for s in ["systemctl is-system-running --wait; systemctl --failed; systemd-analyze | head -3; systemd-analyze blame | head -8", "free -m; df -h; lsmod | wc -l; cat /proc/cmdline; dmesg | tail -5; iptables -V; ls /sys/fs/cgroup; systemctl status guest kubelet data containerd --no-pager | head -60"] {
        let o = c.run_for(&["/bin/sh", "-c", s], b"", Duration::from_secs(60))?;
        println!("{:?} {}{}", began.elapsed(), String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    }
    let t = Instant::now(); c.clocks()?; println!("clocks {:?}", t.elapsed());
    let t = Instant::now(); c.run(&["true"])?; println!("true {:?}", t.elapsed());
    let t = Instant::now(); m.save("ready")?; println!("save {:?}", t.elapsed());
    m.quit()?;
    println!("{}", String::from_utf8_lossy(&std::process::Command::new("ls").arg("-ls").arg(&d.folder).output()?.stdout));
    let t = Instant::now(); let mut m = Machine::start(&i, acc, &d, From::Snapshot("ready"))?; println!("load {:?}", t.elapsed());
    let c = nodewhy_guest::client::Client::new(UnixStream::connect(m.channel())?, Duration::from_secs(60))?;
    println!("answers {:?}", t.elapsed());
    let o = c.run_for(&["/bin/sh", "-c", "date; uptime"], b"", Duration::from_secs(60))?;
    println!("{:?} {}{}", t.elapsed(), String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    m.freeze()?; m.thaw()?;
    Ok(())
}
