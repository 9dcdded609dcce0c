//! How engines run: the same arguments for every command that loads a model.

use std::time::Duration;

use clap::{Args, ValueEnum};
use potluck_engine::{EngineSettings, FlashAttention, KvType};
use potluck_wire::Codec;

/// Sessions that may share one memory, so that branches of drafts run in one batch: more would slow each other down.
const TREE_CACHES_MAX: u16 = 2;

/// Branches that run in one batch beside the first path.
const TREE_LANES: u16 = 16;

/// Settings of an engine.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Positions that a conversation can hold
    #[arg(long, value_name = "POSITIONS", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) context: u32,
    /// Threads of each engine [default: one a core, less one where they are more than four]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    threads: Option<u16>,
    /// Layers to place on the GPU
    #[arg(long, value_name = "N", default_value_t = 0)]
    gpu_layers: u32,
    /// Type of the cached keys and values
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = KvArg::F16)]
    kv_type: KvArg,
    /// Fused attention
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = FlashArg::Auto)]
    flash_attn: FlashArg,
    /// Map the model's file instead of reading it, where it is one whole file
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = OnOff::On)]
    mmap: OnOff,
    /// Positions in each prefill step [default: as many as fill the route, at most 512]
    #[arg(long, value_name = "POSITIONS", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub(crate) chunk: Option<u16>,
    /// Results that depend on nothing but the prompt: no fused attention, each session a batch of its own
    #[arg(long)]
    exact: bool,
    /// How hidden states travel; f32 implies --exact [default: what potluck model prove found, else f16; with --exact f32]
    #[arg(long, value_enum)]
    codec: Option<CodecArg>,
    /// Seconds that a closed conversation's cells may keep what they held while others are open; never: nothing is overwritten
    #[arg(long, value_name = "SECONDS|never", default_value = "60", value_parser = parse_wipe)]
    wipe_within: Wipe,
    /// Sessions that an engine keeps caches for at once
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u16).range(1..=256))]
    caches: Option<u16>,
}

/// When cells are overwritten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wipe(Option<Duration>);

fn parse_wipe(text: &str) -> Result<Wipe, String> {
    match (text, text.parse::<u32>()) {
        ("never", _) => Ok(Wipe(None)),
        (_, Ok(seconds)) if seconds <= 86_400 => Ok(Wipe(Some(Duration::from_secs(seconds.into())))),
        _ => Err(format!("`{text}` is neither `never` nor seconds, 86400 at most")),
    }
}

/// How hidden states travel between peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CodecArg {
    /// 4 bytes a value, unchanged
    F32,
    /// 2 bytes a value
    F16,
    /// 1.06 bytes a value: whole numbers, scaled by blocks
    Q8,
    /// 1.03 bytes a value: an 8-bit map that is finer near zero
    Dyn8,
    /// 1.07 bytes a value or less: the largest channels apart, the rest rotated
    Mixed8,
    /// 0.82 bytes a value or less
    Mixed6,
    /// 0.57 bytes a value or less
    Mixed4,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KvArg {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FlashArg {
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

impl EngineArgs {
    /// Whether results must not depend on anything but the prompt.
    pub(crate) fn exact(&self) -> bool {
        self.exact || self.codec == Some(CodecArg::F32)
    }

    /// How hidden states have to travel; none: as is best for the model.
    pub(crate) fn codec(&self) -> Option<Codec> {
        match self.codec {
            Some(CodecArg::F32) => Some(Codec::F32),
            Some(CodecArg::F16) => Some(Codec::F16),
            Some(CodecArg::Q8) => Some(Codec::Q8),
            Some(CodecArg::Dyn8) => Some(Codec::Dyn8),
            Some(CodecArg::Mixed8) => Some(Codec::Mixed8),
            Some(CodecArg::Mixed6) => Some(Codec::Mixed6),
            Some(CodecArg::Mixed4) => Some(Codec::Mixed4),
            None => self.exact.then_some(Codec::F32),
        }
    }

    /// What an engine is told. `caches`: sessions at once, unless the user says otherwise.
    pub(crate) fn settings(&self, caches: u16) -> EngineSettings {
        self.settings_with(caches, None)
    }

    /// The same, with so many threads, unless the user says otherwise.
    pub(crate) fn settings_with(&self, caches: u16, threads: Option<u16>) -> EngineSettings {
        let default = EngineSettings::default();
        let caches = self.caches.unwrap_or(caches);
        let threads = self.threads.or(threads).unwrap_or(default.threads);
        EngineSettings {
            threads,
            threads_batch: threads,
            gpu_layers: self.gpu_layers,
            kv: self.kv_type.into(),
            flash: self.flash_attn.into(),
            mmap: self.mmap == OnOff::On,
            context: self.context,
            caches,
            lanes: if caches <= TREE_CACHES_MAX && !self.exact() { TREE_LANES } else { 0 },
            chunk: self.chunk.unwrap_or(default.chunk),
            exact: self.exact(),
            wipe_within: self.wipe_within.0,
            ..default
        }
    }
}

impl From<KvArg> for KvType {
    fn from(arg: KvArg) -> Self {
        match arg {
            KvArg::F32 => Self::F32,
            KvArg::F16 => Self::F16,
            KvArg::Bf16 => Self::Bf16,
            KvArg::Q8_0 => Self::Q8_0,
            KvArg::Q4_0 => Self::Q4_0,
        }
    }
}

impl From<FlashArg> for FlashAttention {
    fn from(arg: FlashArg) -> Self {
        match arg {
            FlashArg::Auto => Self::Auto,
            FlashArg::On => Self::On,
            FlashArg::Off => Self::Off,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        engine: EngineArgs,
    }

    fn parse(args: &[&str]) -> EngineArgs {
        Cli::try_parse_from([&["potluck"], args].concat()).unwrap().engine
    }

    #[test]
    fn exact_and_the_codec_imply_each_other() {
        assert!(!parse(&[]).exact() && parse(&[]).codec().is_none());
        assert!(parse(&["--exact"]).exact() && parse(&["--exact"]).codec() == Some(Codec::F32));
        assert!(parse(&["--codec", "f32"]).settings(1).exact);
        let forced = parse(&["--exact", "--codec", "f16"]);
        assert!(forced.exact() && forced.codec() == Some(Codec::F16));
    }

    #[test]
    fn out_of_range_is_refused_before_anything_loads() {
        assert_eq!(parse(&[]).settings(1).wipe_within, Some(Duration::from_secs(60)));
        assert_eq!(parse(&["--wipe-within", "never"]).settings(1).wipe_within, None);
        for args in [
            ["--wipe-within", "soon"],
            ["--context", "0"],
            ["--threads", "513"],
            ["--chunk", "513"],
            ["--kv-type", "q3"],
        ] {
            assert!(Cli::try_parse_from(["potluck", args[0], args[1]]).is_err(), "{args:?}");
        }
    }
}
