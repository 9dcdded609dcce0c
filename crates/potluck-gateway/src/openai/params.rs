//! The parameters that several requests share, as the sampler takes them.

use std::collections::BTreeMap;

use potluck_chain::sample::SamplingParams;
use potluck_client::Request;
use potluck_engine::GrammarSource;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::{Problem, answer::CHOICES_MAX};

/// A bias at or below which a token is banned: the least that OpenAI's API knows.
const BAN: f32 = -100.0;

/// One text or several.
#[derive(Debug, Clone, Deserialize, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// How tokens are chosen and where the answer ends. What is not known is ignored, as the reference does.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[serde(default)]
pub(crate) struct Params {
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<i64>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) repeat_penalty: Option<f32>,
    /// vLLM's name for the same.
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) presence_penalty: Option<f32>,
    pub(crate) frequency_penalty: Option<f32>,
    pub(crate) logit_bias: Option<BTreeMap<String, f32>>,
    pub(crate) seed: Option<i64>,
    pub(crate) stop: Option<OneOrMany>,
    pub(crate) n: Option<usize>,
    pub(crate) max_tokens: Option<u32>,
    pub(crate) max_completion_tokens: Option<u32>,
    pub(crate) ignore_eos: bool,
    pub(crate) response_format: Option<Value>,
    /// llama.cpp's: a GBNF grammar.
    pub(crate) grammar: Option<String>,
    /// Potluck's own: say where the time went, under `potluck` beside the answer.
    pub(crate) trace: bool,
}

impl Params {
    /// Tokens of the answer at most, where the request says.
    pub(crate) fn answer(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }

    /// A request for each choice, like `template` in all else. `logprobs`: alternatives to report.
    pub(crate) fn requests(
        &self,
        template: &Request,
        logprobs: Option<u16>,
        vocabulary: u32,
    ) -> Result<Vec<Request>, Problem> {
        let n = self.n.unwrap_or(1);
        if n == 0 || n > CHOICES_MAX {
            return Err(Problem::value("n", format!("n is {n}; it must be between 1 and {CHOICES_MAX}")));
        }
        let params = self.sampling(logprobs)?;
        params.check(vocabulary).map_err(|error| Problem::new(crate::Whose::Request, "invalid_value", error))?;
        let request = Request {
            stop: self.stop_texts()?,
            max_tokens: self.limit()?,
            ignore_eos: self.ignore_eos,
            grammar: self.grammar()?,
            trace: self.trace,
            ..template.clone()
        };
        let choice = |index: usize| {
            let seed = params.seed.wrapping_add(index as u64);
            Request { params: SamplingParams { seed, ..params.clone() }, ..request.clone() }
        };
        Ok((0..n).map(choice).collect())
    }

    fn sampling(&self, logprobs: Option<u16>) -> Result<SamplingParams, Problem> {
        let default = SamplingParams::default();
        let within = |name: &'static str, value: Option<f32>, range: std::ops::RangeInclusive<f32>| match value {
            Some(value) if !range.contains(&value) => {
                let message = format!("{name} is {value}; it must be between {} and {}", range.start(), range.end());
                Err(Problem::value(name, message))
            }
            value => Ok(value),
        };
        let penalty = self.repeat_penalty.or(self.repetition_penalty);
        Ok(SamplingParams {
            temperature: within("temperature", self.temperature, 0.0..=2.0)?.unwrap_or(default.temperature),
            top_k: self.top_k.map_or(default.top_k, |k| u32::try_from(k).unwrap_or(0)),
            top_p: within("top_p", self.top_p, 0.0..=1.0)?.unwrap_or(default.top_p),
            min_p: within("min_p", self.min_p, 0.0..=1.0)?.unwrap_or(default.min_p),
            typical_p: within("typical_p", self.typical_p, 0.0..=1.0)?.unwrap_or(default.typical_p),
            repeat_penalty: penalty.unwrap_or(default.repeat_penalty),
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0..=2.0)?.unwrap_or(0.0),
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, -2.0..=2.0)?.unwrap_or(0.0),
            logit_bias: self.biases()?,
            seed: self.seed.map_or_else(|| fastrand::u64(..), |seed| seed as u64),
            logprobs,
            ..default
        })
    }

    fn biases(&self) -> Result<Vec<(u32, f32)>, Problem> {
        let bias = |(token, &bias): (&String, &f32)| {
            let token = token.parse().map_err(|_| Problem::value("logit_bias", format!("`{token}` is no token id")))?;
            if !(-100.0..=100.0).contains(&bias) {
                let message = format!("the bias of token {token} is {bias}; it must be between -100 and 100");
                return Err(Problem::value("logit_bias", message));
            }
            Ok((token, if bias <= BAN { f32::NEG_INFINITY } else { bias }))
        };
        self.logit_bias.iter().flatten().map(bias).collect()
    }

    fn stop_texts(&self) -> Result<Vec<String>, Problem> {
        let texts = match self.stop.clone() {
            None => Vec::new(),
            Some(OneOrMany::One(text)) => vec![text],
            Some(OneOrMany::Many(texts)) => texts,
        };
        // An empty text would end every answer at once: the reference ignores it.
        Ok(texts.into_iter().filter(|text| !text.is_empty()).collect())
    }

    fn limit(&self) -> Result<Option<u32>, Problem> {
        let (name, limit) = match self.max_completion_tokens {
            Some(limit) => ("max_completion_tokens", Some(limit)),
            None => ("max_tokens", self.max_tokens),
        };
        match limit {
            Some(0) => Err(Problem::value(name, format!("{name} is 0; at least 1 is needed"))),
            limit => Ok(limit),
        }
    }

    fn grammar(&self) -> Result<Option<GrammarSource>, Problem> {
        let format = self.response_format.as_ref();
        let kind = format.and_then(|format| format["type"].as_str());
        Ok(match (kind, &self.grammar) {
            (None | Some("text"), None) => None,
            (None | Some("text"), Some(grammar)) => Some(GrammarSource::Gbnf(grammar.clone())),
            (_, Some(_)) => {
                return Err(Problem::value("grammar", "a grammar and a response format exclude each other"));
            }
            (Some("json_object"), None) => {
                let schema = format.and_then(|format| format.get("schema"));
                Some(GrammarSource::JsonSchema(
                    schema.map_or_else(|| r#"{"type":"object"}"#.to_owned(), Value::to_string),
                ))
            }
            (Some("json_schema"), None) => {
                let given = format.and_then(|format| format["json_schema"].get("schema").or(format.get("schema")));
                let missing = || Problem::value("response_format", "json_schema.schema is missing");
                Some(GrammarSource::JsonSchema(
                    given.filter(|schema| schema.is_object()).ok_or_else(missing)?.to_string(),
                ))
            }
            (Some(other), None) => {
                let message = format!("the response format `{other}` is not known: text, json_object or json_schema");
                return Err(Problem::value("response_format.type", message));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn requests(params: Value) -> Result<Vec<Request>, Problem> {
        serde_json::from_value::<Params>(params).unwrap().requests(&Request::new(vec![1, 2]), None, 100)
    }

    #[test]
    fn parameters_reach_the_sampler() {
        let given = json!({"temperature": 0, "n": 2, "seed": -1, "stop": ["a", ""], "max_tokens": 9,
            "max_completion_tokens": 5, "logit_bias": {"7": -100, "8": 1.5}, "no_such_thing": true});
        let requests = requests(given).unwrap();
        assert_eq!(requests.len(), 2);
        let Request { params, stop, max_tokens, .. } = &requests[0];
        assert_eq!((params.temperature, params.seed, *max_tokens), (0.0, u64::MAX, Some(5)), "the newer name wins");
        assert_eq!(params.logit_bias, [(7, f32::NEG_INFINITY), (8, 1.5)]);
        assert_eq!(stop, &["a"]);
        assert_eq!(requests[1].params.seed, 0, "each choice has a seed of its own");
    }

    #[test]
    fn what_has_no_meaning_is_refused_by_name() {
        for (given, param) in [
            (json!({"temperature": 3}), "temperature"),
            (json!({"n": 0}), "n"),
            (json!({"n": 17}), "n"),
            (json!({"max_tokens": 0}), "max_tokens"),
            (json!({"logit_bias": {"x": 1}}), "logit_bias"),
            (json!({"logit_bias": {"1": 101}}), "logit_bias"),
            (json!({"presence_penalty": -3}), "presence_penalty"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format"),
        ] {
            let problem = requests(given.clone()).unwrap_err();
            assert_eq!((problem.status(), problem.param.as_deref()), (400, Some(param)), "{given}");
        }
        let unknown = requests(json!({"logit_bias": {"100": 1}})).unwrap_err();
        assert!(unknown.message.contains("token 100"), "{unknown}");
    }

    #[test]
    fn a_format_becomes_a_grammar() {
        let grammar = |format: Value| requests(json!({ "response_format": format })).unwrap()[0].grammar.clone();
        assert_eq!(grammar(json!({"type": "text"})), None);
        let object = GrammarSource::JsonSchema(r#"{"type":"object"}"#.into());
        assert_eq!(grammar(json!({"type": "json_object"})), Some(object.clone()));
        let schema = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}});
        assert_eq!(grammar(schema), Some(object));
    }
}
