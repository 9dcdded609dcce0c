//! How many threads an engine has, where nobody says.

use std::thread::available_parallelism;

use crate::THREADS_MAX;

/// Cores of which all are used. Of more, one is left to the rest of the machine.
const ALL_CORES_UP_TO: usize = 4;

/// Processors that are all used, whether or not two of them are one core: fewer than two threads would be too few.
const ALL_PROCESSORS_UP_TO: usize = 2;

/// The default number of threads on this machine.
pub(crate) fn default_threads() -> u16 {
    let available = available_parallelism().map_or(1, usize::from);
    choose(available, sysinfo::System::physical_core_count())
}

/// ggml's threads wait for each other after every operation. A processor that another program wants holds them all up,
/// again and again (a tenth of the speed and less was seen), and the second processor of a core adds little: so there is
/// one thread for each core, and a core left over where there are several.
fn choose(available: usize, cores: Option<usize>) -> u16 {
    let threads = match cores {
        // In some virtual machines there are processors, and no core.
        Some(cores) if cores > 0 && available > ALL_PROCESSORS_UP_TO => cores.clamp(ALL_PROCESSORS_UP_TO, available),
        _ => available,
    };
    let threads = if threads > ALL_CORES_UP_TO { threads - 1 } else { threads };
    threads.clamp(1, THREADS_MAX.into()) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_a_core_and_one_left_over_where_there_are_several() {
        for (available, cores, threads) in [
            (1, Some(1), 1),
            (2, Some(1), 2),
            (2, Some(2), 2),
            (4, Some(2), 2),
            (4, Some(4), 4),
            (8, Some(4), 4),
            (8, Some(8), 7),
            (16, Some(8), 7),
            // A container that may use fewer than the machine has.
            (3, Some(32), 3),
            (8, None, 7),
            (4, Some(0), 4),
            (100_000, None, THREADS_MAX),
        ] {
            assert_eq!(choose(available, cores), threads, "{available} processors on {cores:?} cores");
        }
        assert!(default_threads() >= 1);
    }
}
