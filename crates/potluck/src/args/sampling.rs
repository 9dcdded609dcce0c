//! How tokens are chosen, and where an answer ends.

use std::{fs, path::Path};

use clap::Args;
use potluck_chain::sample::SamplingParams;
use potluck_engine::GrammarSource;

use crate::failure::Failure;

/// Bytes of a grammar or a schema that is read from a file: far beyond what the engine accepts.
const RULES_BYTES_MAX: u64 = 1 << 20;

/// How tokens are chosen.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling")]
pub(crate) struct SamplingArgs {
    /// 0 takes the likeliest token; more is bolder
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    temperature: f32,
    /// Keep the K likeliest; 0: all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: u32,
    /// Keep the likeliest that together have this probability
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Keep what is at least this likely, as a share of the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// Keep the most typical that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    typical: f32,
    /// Make recent tokens less likely; 1: off
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repeat_penalty: f32,
    /// How many recent tokens the penalties look at
    #[arg(long, value_name = "N", default_value_t = 64)]
    repeat_last_n: u32,
    /// Taken once from each recent token's logit
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Taken from a recent token's logit each time it occurs
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Add to a token's logit; `-inf` bans it (repeatable)
    #[arg(long, value_name = "TOKEN=BIAS", value_parser = parse_bias)]
    logit_bias: Vec<(u32, f32)>,
    /// Same seed, same answer [default: random]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Report each token's log-probability, and of N alternatives
    #[arg(long, value_name = "N")]
    logprobs: Option<u16>,
    /// A GBNF grammar that the answer must follow, or @FILE
    #[arg(long, value_name = "GBNF", conflicts_with = "json_schema")]
    grammar: Option<String>,
    /// A JSON schema that the answer must follow, or @FILE
    #[arg(long, value_name = "SCHEMA")]
    json_schema: Option<String>,
}

/// Where an answer ends.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Answer")]
pub(crate) struct StopArgs {
    /// Tokens of the answer at most [default: what the context holds]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// End before this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
    /// Go on after an end token: for measurements
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Show where the time went: at each stage in queue, engine and codec, and on the way between them
    #[arg(long)]
    pub(crate) trace: bool,
}

impl SamplingArgs {
    /// The sampler's parameters; a random seed where none was given.
    pub(crate) fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            typical_p: self.typical,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            repeat_last_n: self.repeat_last_n,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            seed: self.seed.unwrap_or_else(|| fastrand::u64(..)),
            logprobs: self.logprobs,
        }
    }

    /// The grammar or the schema, read from its file where it begins with `@`.
    pub(crate) fn grammar(&self) -> Result<Option<GrammarSource>, Failure> {
        Ok(match (&self.grammar, &self.json_schema) {
            (Some(text), _) => Some(GrammarSource::Gbnf(text_or_file(text)?)),
            (None, Some(text)) => Some(GrammarSource::JsonSchema(text_or_file(text)?)),
            (None, None) => None,
        })
    }
}

fn text_or_file(argument: &str) -> Result<String, Failure> {
    let Some(path) = argument.strip_prefix('@').map(Path::new) else { return Ok(argument.to_owned()) };
    let unreadable = |error| Failure::io(path.display(), &error);
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes > RULES_BYTES_MAX {
        let message = format!("{} has {bytes} bytes; the limit is {RULES_BYTES_MAX}", path.display());
        return Err(Failure::usage(message, "use a smaller grammar or schema"));
    }
    fs::read_to_string(path).map_err(unreadable)
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let (token, bias) = text.split_once('=').ok_or("expected TOKEN=BIAS, such as 42=-1.5")?;
    let token = token.trim().parse().map_err(|_| format!("`{token}` is no token id"))?;
    let bias: f32 = bias.trim().parse().map_err(|_| format!("`{bias}` is no number"))?;
    if bias.is_nan() { Err("a bias is a number".into()) } else { Ok((token, bias)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_a_token_and_a_number() {
        assert_eq!(parse_bias("42=-1.5"), Ok((42, -1.5)));
        assert_eq!(parse_bias("7=-inf"), Ok((7, f32::NEG_INFINITY)));
        for text in ["42", "x=1", "42=x", "42=nan", "-1=2"] {
            assert!(parse_bias(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rules_are_read_from_a_file_within_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("g.gbnf");
        fs::write(&path, "root ::= \"a\"").unwrap();
        let argument = format!("@{}", path.display());
        assert_eq!(text_or_file(&argument).unwrap(), "root ::= \"a\"");
        fs::File::create(&path).unwrap().set_len(RULES_BYTES_MAX + 1).unwrap();
        assert_eq!(text_or_file(&argument).unwrap_err().code, "usage");
        assert_eq!(text_or_file("root ::= [a-z]").unwrap(), "root ::= [a-z]");
    }
}
