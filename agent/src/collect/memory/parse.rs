//! The text of `/proc/meminfo` and `/proc/vmstat`.
//!
//! `procfs` has a `Meminfo`. It takes a value of which the unit was cut off for bytes, and panics where a field's name
//! ends with a letter of several bytes; so this is read here.

use std::collections::BTreeMap;

use super::{Meminfo, VMSTAT};

/// `MemTotal:        1509904 kB` …. The error says what is wrong, in words.
pub(super) fn meminfo(text: &str) -> Result<Meminfo, String> {
    let mut fields = BTreeMap::new();
    for line in text.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else { return Err(format!("the line `{line}` was cut")) };
        let (name, value) = line.split_once(':').ok_or_else(|| format!("the line `{line}` has no colon"))?;
        // These have no unit: they count pages.
        if name.starts_with("HugePages_") {
            let pages =
                digits(value.trim_start()).ok_or_else(|| format!("`{value}` of {name} is no number"))?;
            fields.insert(name, pages);
            continue;
        }
        let Some(kib) = value.trim_start().strip_suffix(" kB") else { continue };
        let bytes = digits(kib)
            .and_then(|kib| kib.checked_mul(1024))
            .ok_or_else(|| format!("`{value}` of {name} is no size"))?;
        fields.insert(name, bytes);
    }
    let optional = |name: &str| fields.get(name).copied();
    let required = |name: &str| optional(name).ok_or_else(|| format!("there is no line `{name}: … kB`"));
    Ok(Meminfo {
        // No machine has none.
        total_bytes: Some(required("MemTotal")?).filter(|total| *total > 0).ok_or("MemTotal is 0")?,
        free_bytes: required("MemFree")?,
        available_bytes: optional("MemAvailable"),
        buffers_bytes: optional("Buffers"),
        cached_bytes: optional("Cached"),
        active_file_bytes: optional("Active(file)"),
        inactive_file_bytes: optional("Inactive(file)"),
        anon_bytes: optional("AnonPages"),
        shmem_bytes: optional("Shmem"),
        dirty_bytes: optional("Dirty"),
        writeback_bytes: optional("Writeback"),
        slab_reclaimable_bytes: optional("SReclaimable"),
        slab_unreclaimable_bytes: optional("SUnreclaim"),
        active_anon_bytes: optional("Active(anon)"),
        inactive_anon_bytes: optional("Inactive(anon)"),
        unevictable_bytes: optional("Unevictable"),
        slab_bytes: optional("Slab"),
        kernel_stack_bytes: optional("KernelStack"),
        page_tables_bytes: optional("PageTables"),
        percpu_bytes: optional("Percpu"),
        commit_limit_bytes: optional("CommitLimit"),
        committed_bytes: optional("Committed_AS"),
        hardware_corrupted_bytes: optional("HardwareCorrupted"),
        hugetlb_bytes: optional("Hugetlb"),
        hugepages: optional("HugePages_Total"),
        hugepages_free: optional("HugePages_Free"),
        swap_cached_bytes: optional("SwapCached"),
        swap_total_bytes: optional("SwapTotal"),
        swap_free_bytes: optional("SwapFree"),
    })
}

/// `MemTotal` alone, in bytes.
pub(crate) fn total_bytes(text: &str) -> Result<u64, String> {
    meminfo(text).map(|meminfo| meminfo.total_bytes)
}

/// `pgmajfault 3265` …: those of [`VMSTAT`].
pub(super) fn vmstat(text: &str) -> Result<BTreeMap<&'static str, u64>, String> {
    let mut counters = BTreeMap::new();
    for line in text.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else { return Err(format!("the line `{line}` was cut")) };
        let (name, value) = line.split_once(' ').ok_or_else(|| format!("the line `{line}` has no value"))?;
        let Some((known, ..)) = VMSTAT.iter().find(|(known, ..)| *known == name) else { continue };
        let count = digits(value).ok_or_else(|| format!("`{value}` of {name} is no number"))?;
        counters.insert(*known, count);
    }
    if counters.is_empty() {
        return Err("none of the counters that every kernel has is in it".to_owned());
    }
    Ok(counters)
}

/// Digits alone: `u64::from_str` takes `+7` too.
pub(super) fn digits(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // Recorded on Linux 6.18.44.
    const MEMINFO: &str = include_str!("../../../fixtures/memory/linux-6.18.44-meminfo.txt");
    const VMSTAT_TEXT: &str = include_str!("../../../fixtures/memory/linux-6.18.44-vmstat.txt");

    #[test]
    fn the_recorded_files() {
        let recorded = meminfo(MEMINFO).unwrap();
        assert_eq!(recorded.total_bytes, 24_684_092 * 1024);
        assert!(recorded.available_bytes.unwrap() > recorded.free_bytes);
        assert_eq!(recorded.kernel_stack_bytes, Some(1568 * 1024));
        assert_eq!(recorded.page_tables_bytes, Some(2632 * 1024));
        assert_eq!(recorded.hugepages, Some(0));
        let slab = recorded.slab_reclaimable_bytes.zip(recorded.slab_unreclaimable_bytes);
        assert_eq!(slab.map(|(a, b)| a + b), recorded.slab_bytes);
        assert!(recorded.committed_bytes.is_some() && recorded.percpu_bytes == Some(688 * 1024));
        assert!(meminfo(&MEMINFO.replace("HugePages_Free:        0", "HugePages_Free:      0 kB")).is_err());
        assert_eq!(recorded.swap_total_bytes, Some(0), "a 0 that the kernel printed is a 0");
        let counters = vmstat(VMSTAT_TEXT).unwrap();
        assert_eq!(counters["oom_kill"], 0);
        assert!(counters["pgmajfault"] > 3000);
        assert!(!counters.contains_key("workingset_refault"), "gone since 5.9");
        assert_eq!(counters.len(), VMSTAT.len() - 1);
    }

    #[test]
    fn a_missing_line_is_none_or_an_error() {
        let without = |name: &str| -> String {
            MEMINFO.split_inclusive('\n').filter(|line| !line.starts_with(name)).collect()
        };
        assert_eq!(meminfo(&without("MemAvailable")).unwrap().available_bytes, None);
        assert!(meminfo(&without("MemTotal")).unwrap_err().contains("MemTotal"));
        assert!(meminfo(&without("MemFree")).is_err());
        assert!(meminfo("").is_err());
        assert!(vmstat("").is_err());
    }

    #[test]
    fn a_value_without_its_unit_is_not_bytes() {
        let cut = MEMINFO.replace("24684092 kB", "24684092");
        assert!(meminfo(&cut).unwrap_err().contains("MemTotal"));
    }

    #[test]
    fn a_value_that_is_too_large_is_an_error() {
        let large = MEMINFO.replace("24684092 kB", "18446744073709551615 kB");
        assert!(meminfo(&large).is_err());
    }

    proptest! {
        #[test]
        fn a_cut_file_is_an_error_or_lacks_whole_lines(cut in 0..MEMINFO.len()) {
            let whole = meminfo(MEMINFO).unwrap();
            if let Ok(part) = meminfo(&MEMINFO[..cut]) {
                prop_assert!(MEMINFO[..cut].ends_with('\n'));
                prop_assert_eq!(part.total_bytes, whole.total_bytes);
                prop_assert!(part.shmem_bytes.is_none() || part.shmem_bytes == whole.shmem_bytes);
            }
        }

        #[test]
        fn a_cut_vmstat_too(cut in 0..VMSTAT_TEXT.len()) {
            let whole = vmstat(VMSTAT_TEXT).unwrap();
            if let Ok(part) = vmstat(&VMSTAT_TEXT[..cut]) {
                prop_assert!(part.iter().all(|(name, count)| whole[name] == *count));
            }
        }

        #[test]
        fn a_flipped_byte_gives_a_value_or_an_error(at in 0..MEMINFO.len(), byte: u8) {
            let mut bytes = MEMINFO.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(text) = String::from_utf8(bytes)
                && let Ok(meminfo) = meminfo(&text)
            {
                prop_assert!(meminfo.total_bytes > 0 && meminfo.free_bytes > 0);
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "([A-Za-zé()]{0,9}:? {0,9}[0-9+-]{0,22}( kB)?\n?){0,4}") {
            meminfo(&text).ok();
            vmstat(&text).ok();
        }
    }
}
