//! Arms that take turns over the same prompts, and who said the same.

use super::{
    figures::{Equality, Parting},
    net::Carried,
    rpc::Rpc,
    stand::Stand,
    words::{Answered, Generate, Speculation},
};
use crate::Outcome;

/// What arms are called that compute whatever the stages of a chain do, and the answers that were recorded.
pub(crate) const RPC: &str = "llama.cpp RPC";
pub(crate) const ALONE: &str = "one machine";
pub(crate) const UNSLICED: &str = "the unsliced model";

/// A way to answer.
#[derive(Debug, Clone)]
pub(crate) struct Arm {
    pub(crate) name: String,
    pub(crate) how: How,
    /// Prompts of a group that it is asked at once; it is not asked the others.
    pub(crate) at_once: usize,
    /// Tokens of an answer that it is asked for, where that is fewer than of the others.
    pub(crate) tokens: u32,
}

/// How an arm answers.
#[derive(Debug, Clone)]
pub(crate) enum How {
    /// llama.cpp's RPC.
    Rpc,
    /// Potluck, over a chain that was opened under that name.
    Chain { chain: String, speculation: Speculation },
}

impl Arm {
    /// llama.cpp's RPC.
    pub(crate) fn rpc() -> Self {
        Self { name: RPC.into(), how: How::Rpc, at_once: usize::MAX, tokens: u32::MAX }
    }

    /// Over a chain, a token a traversal.
    pub(crate) fn plain(name: &str, chain: &str) -> Self {
        Self::drafting(name, chain, Speculation::default())
    }

    /// Over a chain, with drafts.
    pub(crate) fn drafting(name: &str, chain: &str, speculation: Speculation) -> Self {
        let how = How::Chain { chain: chain.into(), speculation };
        Self { name: name.into(), how, at_once: usize::MAX, tokens: u32::MAX }
    }

    /// Asked for no more than so many tokens.
    pub(crate) fn tokens(self, tokens: u32) -> Self {
        Self { tokens, ..self }
    }

    /// Asked so many prompts of a group at most.
    pub(crate) fn at_once(self, at_once: usize) -> Self {
        Self { at_once, ..self }
    }
}

/// A prompt, and what the unsliced model says to it.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) id: String,
    pub(crate) prompt: Vec<u32>,
    pub(crate) recorded: Answered,
}

/// How an answer is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length {
    pub(crate) max_tokens: u32,
    pub(crate) ignore_eos: bool,
}

/// What every arm answered to the same prompts, which were asked at once.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    pub(crate) answers: Vec<Vec<Answered>>,
    /// What was on the lines meanwhile, of each arm.
    pub(crate) carried: Vec<Carried>,
    /// Chains that lost a peer and were opened again.
    pub(crate) lost: usize,
}

/// Has the arms take turns, a round for each group of prompts: those of a group are asked at once.
pub(crate) async fn fight(stand: &mut Stand, arms: &[Arm], groups: &[&[Case]], length: Length) -> Outcome<Vec<Round>> {
    let mut rounds = Vec::with_capacity(groups.len());
    for (number, group) in groups.iter().enumerate() {
        let (mut answers, mut carried, mut lost) = (Vec::new(), Vec::new(), 0);
        for arm in arms {
            let before = stand.net.carried();
            let asked = &group[..arm.at_once.min(group.len())];
            let mut answered = ask(stand, arm, asked, length).await;
            if let (Err(error), How::Chain { chain, .. }) = (&answered, &arm.how) {
                // Once, and told: a line that loses packets, or a machine that is too busy to say that it is there.
                eprintln!("    {} of {}: {error}; opened again", arm.name, group[0].id);
                stand.reopen(chain).await?;
                lost += 1;
                answered = ask(stand, arm, asked, length).await;
            }
            let answered = answered.map_err(|error| format!("{} of {}: {error}", arm.name, group[0].id))?;
            let rates: Vec<String> = answered.iter().map(|a| format!("{:.2}", a.rate().unwrap_or_default())).collect();
            eprintln!("    {}/{} {:14} {}", number + 1, groups.len(), arm.name, rates.join(" "));
            answers.push(answered);
            carried.push(stand.net.carried().since(before));
        }
        rounds.push(Round { answers, carried, lost });
    }
    Ok(rounds)
}

/// Has one arm answer a group.
async fn ask(stand: &mut Stand, arm: &Arm, group: &[Case], length: Length) -> Outcome<Vec<Answered>> {
    let prompts = group.iter().map(|case| case.prompt.clone()).collect();
    let Length { max_tokens, ignore_eos } = length;
    let max_tokens = max_tokens.min(arm.tokens);
    match &arm.how {
        How::Rpc => Rpc::answer(&mut stand.client, prompts, max_tokens, ignore_eos).await,
        How::Chain { chain, speculation } => {
            let generate = Generate {
                chain: chain.clone(),
                prompts,
                max_tokens,
                ignore_eos,
                chunk: None,
                in_flight: None,
                margins: false,
                recordings: group.iter().map(|case| case.recorded.tokens.clone()).collect(),
                speculation: speculation.clone(),
            };
            stand.client.generate(generate).await
        }
    }
}

/// The ratios of one arm to another, round by round, by what is measured of each.
pub(crate) fn ratios(
    rounds: &[Round],
    of: usize,
    over: usize,
    measure: impl Fn(&[Answered]) -> Option<f64>,
) -> Vec<f64> {
    let ratio = |round: &Round| Some(measure(&round.answers[of])? / measure(&round.answers[over])?);
    rounds.iter().filter_map(ratio).collect()
}

/// How far one arm's tokens are another's. `end`: a token that ends answers, which not every arm tells.
pub(crate) fn equality(names: [&str; 2], pairs: &[(&Case, &[u32], &[u32])], end: Option<u32>) -> Equality {
    let mut equality = Equality {
        of: names[0].into(),
        with: names[1].into(),
        answers: [0, pairs.len()],
        tokens: [0; 2],
        parted: Vec::new(),
    };
    for (case, ours, theirs) in pairs {
        let cut =
            |tokens: &'_ [u32]| tokens.iter().copied().take_while(|token| Some(*token) != end).collect::<Vec<_>>();
        let (ours, theirs, recorded) = (cut(ours), cut(theirs), cut(&case.recorded.tokens));
        let same = common(&ours, &theirs);
        let both = ours.len().min(theirs.len());
        equality.tokens[0] += same;
        equality.tokens[1] += both;
        if same == both {
            equality.answers[0] += usize::from(ours.len() == theirs.len());
        }
        if same < both {
            // A margin is the reference's only as long as the text is.
            let margin = (common(&ours, &recorded).max(common(&theirs, &recorded)) >= same)
                .then(|| case.recorded.margins.get(same).copied())
                .flatten();
            equality.parted.push(Parting { prompt: case.id.clone(), at: same, margin });
        }
    }
    equality
}

fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(tokens: &[u32], margins: &[f32]) -> Case {
        let recorded = Answered { tokens: tokens.to_vec(), margins: margins.to_vec(), ..Answered::default() };
        Case { id: "story-1".into(), prompt: vec![1], recorded }
    }

    #[test]
    fn answers_part_where_the_first_token_differs() {
        let case = case(&[5, 6, 7, 2], &[1.0, 2.0, 0.01, 4.0]);
        let pairs: [(&Case, &[u32], &[u32]); 3] =
            [(&case, &[5, 6, 7, 2], &[5, 6, 7]), (&case, &[5, 6, 8, 9], &[5, 6, 7, 9]), (&case, &[5, 6], &[5, 6, 7])];
        let equality = equality(["chain", "rpc"], &pairs, Some(2));
        // The end is not told by all; an answer that only stops earlier is not equal, and has not parted.
        assert_eq!((equality.answers, equality.tokens), ([1, 3], [3 + 2 + 2, 3 + 4 + 2]));
        assert_eq!(equality.parted, [Parting { prompt: "story-1".into(), at: 2, margin: Some(0.01) }]);
    }

    #[test]
    fn a_round_without_a_rate_has_no_ratio() {
        let answer = |at_s: &[f64]| vec![Answered { at_s: at_s.to_vec(), ..Answered::default() }];
        let rounds = [
            Round { answers: vec![answer(&[0.0, 1.0]), answer(&[0.0, 0.5])], carried: Vec::new(), lost: 0 },
            Round { answers: vec![answer(&[0.0]), answer(&[0.0, 0.5])], carried: Vec::new(), lost: 0 },
        ];
        assert_eq!(ratios(&rounds, 1, 0, |answers| answers[0].rate()), [2.0]);
    }
}
