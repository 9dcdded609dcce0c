//! Growing a tree with a draft model: best first, for as long as a further forward is worth its time.

use super::{Calibration, Node, Source, TREE_ROWS_MAX, Tree};

/// Candidates that a growth holds. Beyond, it takes no more.
const CANDIDATES_MAX: usize = 16 * TREE_ROWS_MAX;

/// Of a token's probability, at most so much is spread over its guesses: they exclude each other.
const COVERAGE_MAX: f64 = 0.995;

/// When drafts pay, as a [`Controller`](super::Controller) sees it in one round. All prices are in tokens.
///
/// Source of the rule: optimal stopping of a renewal reward process; Ross, "Stochastic Processes", 2nd edition, 3.6.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// What a row costs: the rate of tokens, times the seconds that a row adds to a step. A row that is accepted with a
    /// smaller probability is not worth sending.
    pub row: f64,
    /// What a forward of the draft model costs, where the chain waits for it. 0: it waits anyway.
    pub forward: f64,
    /// The probability that the target accepts one of a forward's guesses, where it accepted what they continue.
    pub hit: f64,
    /// Rows that the tree may have.
    pub rows_max: usize,
    /// Tokens that its longest path may have.
    pub depth_max: usize,
    /// Guesses that one token may have. 1: a chain.
    pub width_max: usize,
    /// Forwards that the chain may wait for.
    pub forwards_max: usize,
}

impl Rule {
    /// The same rule for forwards that nothing waits for, since a window is in flight.
    #[must_use]
    pub fn while_waiting(self) -> Self {
        Self { forward: 0.0, forwards_max: usize::MAX, ..self }
    }

    /// The same rule for a chain.
    #[must_use]
    pub fn chain(self) -> Self {
        Self { width_max: 1, ..self }
    }
}

/// A tree that grows. Feed it until [`next`](Self::next) has nothing more to expand:
/// ```
/// use potluck_chain::draft::{Calibration, Growth, Rule};
/// let calibration = Calibration::default();
/// let rule =
///     Rule { row: 0.1, forward: 0.2, hit: 0.7, rows_max: 63, depth_max: 8, width_max: 4, forwards_max: 99 };
/// let mut growth = Growth::default();
/// while let Some(expand) = growth.next(&rule) {
///     let _path: Vec<u32> = growth.path(expand); // Run the draft model behind these tokens.
///     growth.expanded(expand, &[(7, 0.6), (9, 0.3)], &calibration);
/// }
/// let tree = growth.tree(&rule);
/// assert_eq!(tree.first_path().len(), 2); // 0.6 and 0.36: a third, at 0.7 of that, is not worth a forward.
/// ```
#[derive(Debug, Clone, Default)]
pub struct Growth {
    candidates: Vec<Candidate>,
    root_expanded: bool,
    forwards: usize,
}

/// What to run the draft model behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expand {
    /// The number of a candidate; none: the token that the tree hangs from.
    node: Option<u16>,
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    token: u32,
    parent: Option<u16>,
    confidence: f32,
    /// Given that the parent is accepted, and given nothing.
    probability: f64,
    cumulative: f64,
    depth: usize,
    expanded: bool,
}

impl Growth {
    /// The likeliest node that is worth a forward under `rule`; none: the tree is grown.
    pub fn next(&self, rule: &Rule) -> Option<Expand> {
        if self.forwards >= rule.forwards_max {
            return None;
        }
        let (node, cumulative) = match self.root_expanded {
            false => (None, 1.0),
            true => {
                let open = self.candidates.iter().enumerate().filter(|(_, c)| !c.expanded && c.depth < rule.depth_max);
                let (index, best) = open.max_by(|a, b| a.1.cumulative.total_cmp(&b.1.cumulative))?;
                (Some(index as u16), best.cumulative)
            }
        };
        let expected = cumulative * rule.hit;
        // Where so many rows are likelier than what a forward will bring, nothing of that would be sent.
        let likelier = self.candidates.iter().filter(|c| c.cumulative > expected).count();
        let room = likelier < rule.rows_max.min(TREE_ROWS_MAX) && self.candidates.len() < CANDIDATES_MAX;
        (room && expected >= rule.row + rule.forward).then_some(Expand { node })
    }

    /// The tokens below the root up to and with the node: what the draft model has to have seen.
    pub fn path(&self, expand: Expand) -> Vec<u32> {
        let mut path = Vec::new();
        let mut at = expand.node;
        while let Some(candidate) = at.and_then(|node| self.candidates.get(usize::from(node))) {
            path.push(candidate.token);
            at = candidate.parent;
        }
        path.reverse();
        path
    }

    /// The draft model's row behind `expand`: its likeliest tokens with their probabilities, which are the confidences.
    /// A token that comes twice counts once; no guesses at all: nothing is drafted below.
    pub fn expanded(&mut self, expand: Expand, guesses: &[(u32, f32)], calibration: &Calibration) {
        let (above, depth) = match expand.node {
            None => {
                self.root_expanded = true;
                (1.0, 1)
            }
            Some(node) => {
                let Some(candidate) = self.candidates.get_mut(usize::from(node)) else { return };
                candidate.expanded = true;
                (candidate.cumulative, candidate.depth + 1)
            }
        };
        self.forwards += 1;
        let first = self.candidates.len();
        for (token, confidence) in guesses.iter().take(CANDIDATES_MAX.saturating_sub(first)) {
            if self.candidates[first..].iter().all(|twin| twin.token != *token) {
                let probability = calibration.probability(Source::Model, *confidence);
                let (token, confidence) = (*token, *confidence);
                let parent = expand.node;
                let cumulative = above * probability;
                self.candidates.push(Candidate {
                    token,
                    parent,
                    confidence,
                    probability,
                    cumulative,
                    depth,
                    expanded: false,
                });
            }
        }
        let sum: f64 = self.candidates[first..].iter().map(|c| c.probability).sum();
        if sum > COVERAGE_MAX {
            for candidate in &mut self.candidates[first..] {
                candidate.probability *= COVERAGE_MAX / sum;
                candidate.cumulative = above * candidate.probability;
            }
        }
    }

    /// Forwards that it was fed.
    pub fn forwards(&self) -> usize {
        self.forwards
    }

    /// The rows worth sending.
    pub fn tree(&self, rule: &Rule) -> Tree {
        let mut order: Vec<u16> = (0..self.candidates.len() as u16).collect();
        let at = |index: u16| &self.candidates[usize::from(index)];
        // Stable: parents stay before children of equal likelihood.
        order.sort_by(|a, b| at(*b).cumulative.total_cmp(&at(*a).cumulative));
        let mut rows: Vec<Option<u16>> = vec![None; self.candidates.len()];
        let mut nodes: Vec<Node> = Vec::new();
        for index in order {
            let candidate = at(index);
            if nodes.len() == rule.rows_max.min(TREE_ROWS_MAX) || candidate.cumulative < rule.row {
                break;
            }
            let parent = match candidate.parent {
                None => None,
                Some(parent) => match rows[usize::from(parent)] {
                    None => continue,
                    row => row,
                },
            };
            let siblings = nodes.iter().filter(|node| node.parent == parent).count();
            if siblings < rule.width_max && candidate.depth <= rule.depth_max {
                rows[usize::from(index)] = Some(nodes.len() as u16);
                let Candidate { token, confidence, cumulative, .. } = *candidate;
                nodes.push(Node { token, parent, confidence, source: Source::Model, cumulative });
            }
        }
        // By construction parents come first, likelihoods fall along a path, and no guess has a twin.
        Tree::new(&nodes).unwrap_or_default()
    }

    /// What the tree hangs from has become certain, or was chosen anew, and `token` follows it: keeps what was drafted
    /// behind that token. False where it was not drafted: nothing is left.
    pub fn descend(&mut self, token: u32) -> bool {
        let root = self.candidates.iter().position(|c| c.parent.is_none() && c.token == token);
        let old = std::mem::take(self);
        let Some(root) = root else { return false };
        self.root_expanded = old.candidates[root].expanded;
        let mut kept: Vec<Option<u16>> = vec![None; old.candidates.len()];
        for (index, candidate) in old.candidates.iter().enumerate() {
            let Some(parent) = candidate.parent.map(usize::from) else { continue };
            let parent = match (parent == root, kept[parent]) {
                (true, _) => None,
                (false, Some(parent)) => Some(parent),
                (false, None) => continue,
            };
            let above = parent.map_or(1.0, |parent| self.candidates[usize::from(parent)].cumulative);
            kept[index] = Some(self.candidates.len() as u16);
            let cumulative = above * candidate.probability;
            self.candidates.push(Candidate { parent, cumulative, depth: candidate.depth - 1, ..*candidate });
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULE: Rule =
        Rule { row: 0.05, forward: 0.1, hit: 0.8, rows_max: 63, depth_max: 32, width_max: 4, forwards_max: 999 };

    /// A draft model that gives the same guesses everywhere.
    fn grown(rule: &Rule, guesses: &[(u32, f32)]) -> Growth {
        let mut growth = Growth::default();
        while let Some(expand) = growth.next(rule) {
            growth.expanded(expand, guesses, &Calibration::default());
        }
        growth
    }

    #[test]
    fn the_surer_the_deeper_and_the_less_sure_the_wider() {
        let sure = grown(&RULE, &[(1, 0.95), (2, 0.03)]).tree(&RULE);
        assert!(sure.is_chain() && sure.len() > 20, "{}", sure.len());
        let unsure = grown(&RULE, &[(1, 0.4), (2, 0.3), (3, 0.2)]).tree(&RULE);
        assert!(!unsure.is_chain() && unsure.first_path().len() < 5);
        let narrow = grown(&RULE.chain(), &[(1, 0.4), (2, 0.3), (3, 0.2)]).tree(&RULE.chain());
        assert!(narrow.is_chain() && !narrow.is_empty());
    }

    #[test]
    fn forwards_that_nothing_waits_for_go_deeper() {
        let guesses = [(1, 0.6), (2, 0.2)];
        let waited = grown(&RULE, &guesses).forwards();
        assert!(grown(&RULE.while_waiting(), &guesses).forwards() > waited);
        let dear = Rule { forward: 0.9, ..RULE };
        assert_eq!(grown(&dear, &guesses).forwards(), 0);
    }

    #[test]
    fn a_path_is_what_was_drafted_above() {
        let mut growth = Growth::default();
        let calibration = Calibration::default();
        let root = growth.next(&RULE).unwrap();
        assert!(growth.path(root).is_empty());
        growth.expanded(root, &[(4, 0.6), (5, 0.3), (4, 0.1)], &calibration);
        let best = growth.next(&RULE).unwrap();
        assert_eq!(growth.path(best), [4]);
        growth.expanded(best, &[(6, 0.9)], &calibration);
        let deeper = growth.next(&RULE).unwrap();
        assert_eq!(growth.path(deeper), [4, 6]);
        assert!(growth.descend(4));
        assert_eq!(growth.tree(&RULE).rows().collect::<Vec<_>>(), [(6, None)]);
        assert!((growth.tree(&RULE).nodes()[0].cumulative - 0.9).abs() < 1e-6);
        assert!(!growth.descend(7));
        assert!(growth.tree(&RULE).is_empty() && growth.next(&RULE).is_some());
    }

    proptest! {
        #[test]
        fn it_ends_within_its_bounds(
            rows in proptest::collection::vec(proptest::collection::vec((0u32..5, 0.0f32..1.0), 0..6), 1..40),
            row in 0.0f64..0.3, forward in 0.0f64..0.3, hit in 0.0f64..1.0, rows_max in 0usize..80,
            depth_max in 1usize..12, width_max in 1usize..5, forwards_max in 1usize..30,
        ) {
            let rule = Rule { row, forward, hit, rows_max, depth_max, width_max, forwards_max };
            let mut growth = Growth::default();
            let mut fed = rows.iter().cycle();
            while let Some(expand) = growth.next(&rule) {
                growth.expanded(expand, fed.next().unwrap(), &Calibration::default());
                prop_assert!(growth.forwards() <= forwards_max);
            }
            let tree = growth.tree(&rule);
            prop_assert!(tree.len() <= rows_max.min(TREE_ROWS_MAX));
            prop_assert!(tree.nodes().iter().all(|node| node.cumulative >= row));
            for row in 0..tree.len() as u16 {
                prop_assert!(tree.depth(row) <= depth_max && tree.children(Some(row)).count() <= width_max);
            }
            // The best of what was fed is in it: nothing else was refused by mistake.
            let best = growth.candidates.iter().map(|c| c.cumulative).fold(0.0, f64::max);
            prop_assert_eq!(tree.is_empty(), rows_max == 0 || growth.candidates.is_empty() || best < row);
        }
    }
}
