//! The prompts that are answered: fixed, of several kinds.

use std::collections::HashSet;

use serde::Deserialize;

use crate::Outcome;

/// `bench/wan/prompts.json`: as it was when this program was built.
const FILE: &str = include_str!("../../../../bench/wan/prompts.json");

/// What is said to the model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Prompt {
    /// Its kind and number.
    pub(crate) id: String,
    /// `story`, `reasoning` and `chat` are novel; `edit`, `quote`, `repair` and `extract` repeat what they were given.
    pub(crate) category: String,
    pub(crate) text: String,
}

impl Prompt {
    /// Whether an answer repeats much of the prompt.
    pub(crate) fn is_draftable(&self) -> bool {
        matches!(self.category.as_str(), "edit" | "quote" | "repair" | "extract")
    }
}

/// Of an answer's tokens, so many repeat its prompt where the text is called draftable.
pub(crate) const REPEATED_MIN: f64 = 0.8;

/// The share of an answer's tokens that stand in a run of four which the prompt has, too.
pub(crate) fn repeated(prompt: &[u32], answer: &[u32]) -> f64 {
    const RUN: usize = 4;
    let known: HashSet<&[u32]> = prompt.windows(RUN).collect();
    let mut repeats = vec![false; answer.len()];
    for (at, _) in answer.windows(RUN).enumerate().filter(|(_, run)| known.contains(run)) {
        repeats[at..at + RUN].fill(true);
    }
    repeats.iter().filter(|repeats| **repeats).count() as f64 / answer.len().max(1) as f64
}

/// All of them.
pub(crate) fn all() -> Outcome<Vec<Prompt>> {
    Ok(serde_json::from_str(FILE)?)
}

/// Of one sort, so many at most, of each kind in turn.
pub(crate) fn some(draftable: bool, count: usize) -> Outcome<Vec<Prompt>> {
    let mut kinds: Vec<(String, Vec<Prompt>)> = Vec::new();
    for prompt in all()?.into_iter().filter(|prompt| prompt.is_draftable() == draftable) {
        match kinds.iter_mut().find(|(kind, _)| *kind == prompt.category) {
            Some((_, prompts)) => prompts.push(prompt),
            None => kinds.push((prompt.category.clone(), vec![prompt])),
        }
    }
    let longest = kinds.iter().map(|(_, prompts)| prompts.len()).max().unwrap_or_default();
    let in_turn = (0..longest).flat_map(|at| kinds.iter().filter_map(move |(_, prompts)| prompts.get(at)));
    Ok(in_turn.take(count).cloned().collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn there_are_as_many_as_are_promised_and_no_two_alike() {
        let all = all().unwrap();
        let (draftable, novel): (Vec<_>, Vec<_>) = all.iter().partition(|prompt| prompt.is_draftable());
        assert!(novel.len() >= 40 && draftable.len() >= 20, "{} {}", novel.len(), draftable.len());
        let ids: BTreeSet<_> = all.iter().map(|prompt| &prompt.id).collect();
        let texts: BTreeSet<_> = all.iter().map(|prompt| &prompt.text).collect();
        assert_eq!((ids.len(), texts.len()), (all.len(), all.len()));
        let kinds: BTreeSet<_> = all.iter().map(|prompt| prompt.category.as_str()).collect();
        assert_eq!(kinds, ["chat", "edit", "extract", "quote", "reasoning", "repair", "story"].into());
    }

    #[test]
    fn runs_of_four_count_and_shorter_ones_do_not() {
        let prompt = [1, 2, 3, 4, 5, 6];
        assert_eq!(repeated(&prompt, &[2, 3, 4, 5, 9, 1, 2, 3]), 0.5);
        assert_eq!(repeated(&prompt, &[1, 2, 3, 4, 5]), 1.0);
        assert_eq!((repeated(&prompt, &[]), repeated(&[], &[1, 2, 3, 4])), (0.0, 0.0));
    }

    #[test]
    fn a_few_are_of_every_kind() {
        let few = some(false, 6).unwrap();
        let kinds: Vec<_> = few.iter().map(|prompt| prompt.category.as_str()).collect();
        assert_eq!(kinds[..3], kinds[3..]);
        assert_eq!(kinds[..3].iter().collect::<BTreeSet<_>>().len(), 3);
    }
}
