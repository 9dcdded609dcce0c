//! Where pooling does not pay: what this machine would do alone, beside what a route does.

use potluck_chain::plan::{Alone, Hindrance, Preview, Who};

/// By how much one machine has to be faster before it is worth a word: predictions err.
const WORTH_A_WORD: f64 = 1.25;

/// What to tell of a plan that is predicted slower than this machine alone; none where pooling pays, or there is nothing to do about it.
pub(crate) fn advice(plan: &Preview, model: &str) -> Option<String> {
    let alone = plan.faster_alone()?;
    let others = plan.stages.iter().filter(|stage| stage.who != Who::Own).count();
    let peers = if others == 1 { "this peer".to_owned() } else { format!("these {others} peers") };
    compared(&alone, &peers, plan.decode_tokens_per_s, "predicted", model)
}

/// The same of a rate that was measured.
pub(crate) fn compared(alone: &Alone, route: &str, rate: f64, how: &str, model: &str) -> Option<String> {
    if alone.decode_tokens_per_s < rate * WORTH_A_WORD {
        return None;
    }
    let mine = alone.decode_tokens_per_s;
    let known = if alone.measured { "measured" } else { "predicted" };
    let then = match alone.hindrance {
        None => "--local is faster".to_owned(),
        Some(Hindrance::NotHere { .. }) => format!("fetch it and use --local: potluck model pull {model}"),
        // It may be all that this machine has.
        Some(_) => return None,
    };
    Some(format!("this machine alone: {mine:.1} tokens/s {known}; {route}: {rate:.1} {how}: {then}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_said_where_one_machine_is_clearly_faster_and_can() {
        let of = |rate, hindrance| {
            let alone = Alone { decode_tokens_per_s: rate, prefill_tokens_per_s: 100.0, measured: true, hindrance };
            compared(&alone, "these 3 peers", 8.0, "predicted", "m")
        };
        let said = "this machine alone: 45.0 tokens/s measured; these 3 peers: 8.0 predicted: --local is faster";
        assert_eq!(of(45.0, None).as_deref(), Some(said));
        assert_eq!(of(9.5, None), None, "predictions err");
        assert_eq!(of(2.0, None), None, "pooling pays");
        let pull = of(45.0, Some(Hindrance::NotHere { layers: 3 })).unwrap();
        assert!(pull.ends_with("potluck model pull m"), "{pull}");
        assert_eq!(of(45.0, Some(Hindrance::TooSmall { needed_bytes: 2, free_bytes: 1 })), None);
    }
}
