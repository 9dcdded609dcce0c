//! How an engine runs: threads, caches, kernels.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use potluck_core::bounds::{SESSION_POSITIONS_MAX, STAGE_SESSIONS_MAX, STEP_POSITIONS_MAX, TREE_ROWS_MAX};

use crate::{EngineError, cores::default_threads};

/// Per cent of the time in which an engine may be let compute. With less, a chunk of some seconds would be waited for in vain.
pub const SHARES: std::ops::RangeInclusive<u8> = 20..=100;

/// Threads that one engine may use: more than any machine of today has cores.
pub const THREADS_MAX: u16 = 512;

/// Positions that llama.cpp rounds each cache up to a multiple of.
const CONTEXT_STEP: u64 = 256;

/// The type that keys and values are cached in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum KvType {
    /// 4 bytes a value.
    F32,
    /// 2 bytes a value: llama.cpp's own default.
    #[default]
    F16,
    /// 2 bytes a value, with the range of `f32`.
    Bf16,
    /// 34 bytes for 32 values. Wants flash attention.
    Q8_0,
    /// 18 bytes for 32 values. Wants flash attention.
    Q4_0,
}

impl KvType {
    /// `(bytes, values)` of one block of this type.
    pub const fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (4, 1),
            Self::F16 | Self::Bf16 => (2, 1),
            Self::Q8_0 => (34, 32),
            Self::Q4_0 => (18, 32),
        }
    }

    /// True for the types whose values llama.cpp reads only through flash attention.
    pub const fn wants_flash(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }
}

/// Whether attention runs in one fused kernel. On, results depend on the number of threads; `exact` forces it off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FlashAttention {
    /// Where the backend has it.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// How an engine runs. Every engine of a comparison must use the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSettings {
    /// Threads for a single position.
    pub threads: u16,
    /// Threads for a batch of positions.
    pub threads_batch: u16,
    /// How long, 0 to 100, the threads of a standing pool spin before they sleep; none: threads are made for each
    /// graph. Spinning is faster for a stage alone on its machine and slower where stages share the cores.
    pub poll: Option<u8>,
    /// Layers to place on a GPU; `u32::MAX`: all that it has.
    pub gpu_layers: u32,
    /// Type of the cached keys and values.
    pub kv: KvType,
    /// Fused attention.
    pub flash: FlashAttention,
    /// Map the file instead of reading it, where it is one whole file: shared with the page cache.
    pub mmap: bool,
    /// Positions that one session's cache holds.
    pub context: u32,
    /// Sessions with a cache at once. All of their memory is taken when the engine loads.
    pub caches: u16,
    /// Positions of the longest step, and of the largest batch.
    pub chunk: u16,
    /// Branches of a tree of drafts that run in one batch beside its first path. With 0 they run one after the other, which costs a
    /// GPU more than a CPU. With more, all sessions share one memory: each then costs the others time, and results depend on the company.
    pub lanes: u16,
    /// Each session's step is a batch of its own, and flash attention is off: results do not depend on the company.
    pub exact: bool,
    /// Bytes that all caches together may take; checked before they are made.
    pub cache_bytes_max: u64,
    /// How long a load may go without progress.
    pub load_timeout: Duration,
    /// How long one command may take; then the engine's process is ended.
    pub step_timeout: Duration,
    /// Per cent of the time in which it is let compute, on whatever device. Its peer sees to that; the engine, where that is not all the
    /// time, says that it is done when its device is.
    pub share: u8,
    /// How long the cells of a closed session may keep what they held while others are open; when none is, they are overwritten
    /// at once. None: neither, and memory that is given back keeps its content.
    pub wipe_within: Option<Duration>,
}

impl Default for EngineSettings {
    /// A thread for each core (of more than four, one is left over), eight sessions of 4,096 positions, the CPU only.
    fn default() -> Self {
        let threads = default_threads();
        Self {
            threads,
            threads_batch: threads,
            poll: Some(0),
            gpu_layers: 0,
            kv: KvType::F16,
            flash: FlashAttention::Auto,
            mmap: true,
            context: 4_096,
            caches: 8,
            chunk: STEP_POSITIONS_MAX as u16,
            lanes: 0,
            exact: false,
            cache_bytes_max: 8 << 30,
            load_timeout: Duration::from_secs(60),
            step_timeout: Duration::from_secs(120),
            share: 100,
            wipe_within: Some(Duration::from_secs(60)),
        }
    }
}

impl EngineSettings {
    /// Refuses what no engine can do, before anything is loaded.
    ///
    /// # Errors
    /// `Settings` names the setting, its value and its bounds.
    pub fn check(&self) -> Result<(), EngineError> {
        let within = |name: &str, value: u64, max: u64| match value {
            0 => Err(EngineError::Settings(format!("{name} is 0; at least 1 is needed"))),
            n if n > max => Err(EngineError::Settings(format!("{name} is {n}; the most is {max}"))),
            _ => Ok(()),
        };
        within("threads", self.threads.into(), THREADS_MAX.into())?;
        within("threads_batch", self.threads_batch.into(), THREADS_MAX.into())?;
        within("context", self.context.into(), SESSION_POSITIONS_MAX.into())?;
        within("caches", self.caches.into(), STAGE_SESSIONS_MAX as u64)?;
        within("chunk", self.chunk.into(), STEP_POSITIONS_MAX as u64)?;
        if usize::from(self.lanes) > TREE_ROWS_MAX || usize::from(self.lanes + self.caches) > STAGE_SESSIONS_MAX {
            let (lanes, caches) = (self.lanes, self.caches);
            return Err(EngineError::Settings(format!(
                "lanes is {lanes}; the most is {TREE_ROWS_MAX}, and {STAGE_SESSIONS_MAX} with the {caches} caches"
            )));
        }
        if self.exact && self.lanes > 0 {
            return Err(EngineError::Settings(
                "exact results do not go with lanes, which make sessions share a memory".into(),
            ));
        }
        if !SHARES.contains(&self.share) {
            let (share, least) = (self.share, SHARES.start());
            return Err(EngineError::Settings(format!("share is {share}; it is per cent, {least} to 100")));
        }
        if self.poll.is_some_and(|poll| poll > 100) {
            return Err(EngineError::Settings("poll is a share of 0 to 100".into()));
        }
        if self.kv.wants_flash() && (self.exact || self.flash == FlashAttention::Off) {
            return Err(EngineError::Settings(format!(
                "caches of type {:?} need flash attention, which {} switches off",
                self.kv,
                if self.exact { "exact" } else { "the setting" }
            )));
        }
        Ok(())
    }

    /// Flash attention as the engine is told: exact mode never has it.
    pub fn flash_attention(&self) -> FlashAttention {
        if self.exact { FlashAttention::Off } else { self.flash }
    }

    /// Bytes of all caches, given what one position takes.
    pub fn cache_bytes(&self, bytes_per_position: u64) -> u64 {
        let positions = u64::from(self.context).next_multiple_of(CONTEXT_STEP);
        bytes_per_position.saturating_mul(positions).saturating_mul(self.caches.into())
    }

    /// Refuses caches that would take more than [`cache_bytes_max`](Self::cache_bytes_max).
    ///
    /// # Errors
    /// `CacheBudget`, with every number of the sum.
    pub fn check_budget(&self, bytes_per_position: u64) -> Result<(), EngineError> {
        let needed = self.cache_bytes(bytes_per_position);
        if needed > self.cache_bytes_max {
            let Self { caches, context, cache_bytes_max: budget, .. } = *self;
            return Err(EngineError::CacheBudget { needed, budget, caches, context, bytes_per_position });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let refused = |change: fn(&mut EngineSettings)| {
            let mut settings = EngineSettings::default();
            change(&mut settings);
            settings.check().unwrap_err().to_string()
        };
        assert!(refused(|s| s.threads = 0).contains("threads is 0"));
        assert!(refused(|s| s.caches = 300).contains("caches is 300; the most is 256"));
        assert!(refused(|s| s.chunk = 1_000).contains("chunk"));
        assert!(refused(|s| s.context = u32::MAX).contains("context"));
        assert!(refused(|s| s.poll = Some(101)).contains("poll"));
        let refusal = refused(|s| {
            s.kv = KvType::Q8_0;
            s.exact = true;
        });
        assert!(refusal.contains("Q8_0") && refusal.contains("exact"), "{refusal}");
        assert_eq!(EngineSettings::default().check(), Ok(()));
    }

    #[test]
    fn a_budget_is_checked_with_its_numbers_and_never_overflows() {
        let settings = EngineSettings { caches: 2, context: 200, cache_bytes_max: 51_199, ..EngineSettings::default() };
        assert!(settings.check_budget(99).is_ok());
        let refusal = settings.check_budget(100).unwrap_err().to_string();
        assert!(refusal.contains("51200") && refusal.contains("51199"), "{refusal}");
        assert!(settings.check_budget(u64::MAX).is_err());
    }
}
