//! Drafted tokens, in the order in which they are sent.

use super::Source;

/// Rows that a tree may have. More drafts than these cost a stage more than they can bring.
pub const TREE_ROWS_MAX: usize = 64;

/// A drafted token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Node {
    /// Its id in the vocabulary.
    pub token: u32,
    /// The row that it continues; none: the last token before the tree.
    pub parent: Option<u16>,
    /// What its source gave for it, between 0 and 1, uncalibrated: what [`Controller::judged`](super::Controller::judged)
    /// is told.
    pub confidence: f32,
    /// Who drafted it.
    pub source: Source,
    /// Probability that the target accepts it and all its ancestors, in other windows too: at most its parent's.
    pub cumulative: f64,
}

/// Why nodes are no tree. Whoever built them is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// More than [`TREE_ROWS_MAX`].
    #[error("a tree of {0} rows; the limit is {TREE_ROWS_MAX}")]
    TooManyRows(usize),
    /// A row's parent does not come before it.
    #[error("row {0} names a parent that does not come before it")]
    Parent(usize),
    /// A row's probability is not one, or larger than its parent's.
    #[error("row {0} claims an impossible probability")]
    Probability(usize),
    /// Two rows are the same guess: one token below one parent.
    #[error("row {0} repeats a sibling's token")]
    Twin(usize),
}

/// Drafts below the last token that is certain (or that an earlier window ends with): parents before children, each
/// branch whole before the next, the likelier first. So the first rows are the likeliest path, and a chain is a tree.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// Puts nodes in order. They come in any order that has parents before children.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn new(nodes: &[Node]) -> Result<Self, TreeError> {
        if nodes.len() > TREE_ROWS_MAX {
            return Err(TreeError::TooManyRows(nodes.len()));
        }
        for (row, node) in nodes.iter().enumerate() {
            let above = match node.parent {
                None => 1.0,
                Some(parent) if usize::from(parent) < row => nodes[usize::from(parent)].cumulative,
                Some(_) => return Err(TreeError::Parent(row)),
            };
            if !(0.0..=above).contains(&node.cumulative) {
                return Err(TreeError::Probability(row));
            }
            if nodes[..row].iter().any(|other| (other.parent, other.token) == (node.parent, node.token)) {
                return Err(TreeError::Twin(row));
            }
        }
        let mut tree = Self { nodes: Vec::with_capacity(nodes.len()) };
        tree.place(nodes, None, None);
        Ok(tree)
    }

    /// Appends the descendants of `old` (its number in `nodes`), which is row `new` here. The depth is bounded by the rows.
    fn place(&mut self, nodes: &[Node], old: Option<u16>, new: Option<u16>) {
        let mut children: Vec<u16> = (0..nodes.len() as u16).filter(|i| nodes[usize::from(*i)].parent == old).collect();
        let likelihood = |i: &u16| nodes[usize::from(*i)].cumulative;
        // The sort is stable: of equals, the one that was drafted first stays first.
        children.sort_by(|a, b| likelihood(b).total_cmp(&likelihood(a)));
        for child in children {
            let row = self.nodes.len() as u16;
            self.nodes.push(Node { parent: new, ..nodes[usize::from(child)] });
            self.place(nodes, Some(child), Some(row));
        }
    }

    /// The rows, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// How many rows it has.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing is drafted.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Whether each row continues the one before it.
    pub fn is_chain(&self) -> bool {
        self.nodes.iter().enumerate().all(|(row, node)| node.parent.map_or(0, |parent| usize::from(parent) + 1) == row)
    }

    /// Tokens and parents, in the order of the rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = (u32, Option<u16>)> + '_ {
        self.nodes.iter().map(|node| (node.token, node.parent))
    }

    /// The rows below `parent`, the likeliest first; none: below the last token before the tree.
    pub fn children(&self, parent: Option<u16>) -> impl Iterator<Item = u16> + '_ {
        (0..self.nodes.len() as u16).filter(move |row| self.nodes[usize::from(*row)].parent == parent)
    }

    /// The row that guesses `token` below `parent`: the one to go on from where the target chose `token`.
    pub fn child(&self, parent: Option<u16>, token: u32) -> Option<u16> {
        self.children(parent).find(|row| self.nodes[usize::from(*row)].token == token)
    }

    /// How many tokens `row` lies below the last token before the tree: 1 for its children.
    ///
    /// # Panics
    /// Where there is no such row.
    pub fn depth(&self, row: u16) -> usize {
        let mut depth = 1;
        let mut at = self.nodes[usize::from(row)].parent;
        while let Some(parent) = at {
            depth += 1;
            at = self.nodes[usize::from(parent)].parent;
        }
        depth
    }

    /// The rows of the likeliest path: a further window in flight continues the last of them.
    pub fn first_path(&self) -> &[Node] {
        let end = (1..self.nodes.len()).find(|row| self.nodes[*row].parent != Some(*row as u16 - 1));
        &self.nodes[..end.unwrap_or(self.nodes.len())]
    }

    /// Tokens that it is expected to bring, at least 0: the sum of the rows' probabilities.
    pub fn expected(&self) -> f64 {
        self.nodes.iter().map(|node| node.cumulative).sum()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(token: u32, parent: Option<u16>, cumulative: f64) -> Node {
        Node { token, parent, confidence: 0.5, source: Source::Model, cumulative }
    }

    #[test]
    fn the_likeliest_path_comes_first() {
        let tree = Tree::new(&[
            node(1, None, 0.3),
            node(2, None, 0.6),
            node(3, Some(0), 0.2),
            node(4, Some(1), 0.1),
            node(5, Some(1), 0.4),
        ])
        .unwrap();
        let rows: Vec<_> = tree.rows().collect();
        assert_eq!(rows, [(2, None), (5, Some(0)), (4, Some(0)), (1, None), (3, Some(3))]);
        assert_eq!(tree.first_path().iter().map(|node| node.token).collect::<Vec<_>>(), [2, 5]);
        assert_eq!((tree.depth(0), tree.depth(4)), (1, 2));
        assert_eq!(tree.children(None).collect::<Vec<_>>(), [0, 3]);
        assert_eq!((tree.child(Some(0), 4), tree.child(Some(0), 3), tree.child(None, 1)), (Some(2), None, Some(3)));
        assert!(!tree.is_chain());
        assert!((tree.expected() - 1.6).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_tree_is_refused() {
        let many: Vec<_> = (0..65).map(|token| node(token, None, 0.01)).collect();
        assert_eq!(Tree::new(&many), Err(TreeError::TooManyRows(65)));
        assert_eq!(Tree::new(&[node(1, Some(0), 0.1)]), Err(TreeError::Parent(0)));
        assert_eq!(Tree::new(&[node(1, None, 0.1), node(2, Some(0), 0.2)]), Err(TreeError::Probability(1)));
        assert_eq!(Tree::new(&[node(1, None, f64::NAN)]), Err(TreeError::Probability(0)));
        assert_eq!(Tree::new(&[node(1, None, 0.1), node(1, None, 0.1)]), Err(TreeError::Twin(1)));
        let empty = Tree::new(&[]).unwrap();
        assert!(empty.is_empty() && empty.is_chain() && empty.first_path().is_empty());
    }

    proptest! {
        #[test]
        fn order_changes_no_path(drawn in proptest::collection::vec((any::<prop::sample::Index>(), 0.0..1.0f64), 0..=64)) {
            let mut nodes: Vec<Node> = Vec::new();
            for (token, (at, share)) in drawn.iter().enumerate() {
                let at = at.index(nodes.len() + 1);
                let parent = at.checked_sub(1).map(|row| row as u16);
                let above = parent.map_or(1.0, |row| nodes[usize::from(row)].cumulative);
                nodes.push(node(token as u32, parent, above * share));
            }
            let tree = Tree::new(&nodes).unwrap();
            let path = |nodes: &[Node], token: u32| {
                let mut path = Vec::new();
                let mut at = nodes.iter().position(|node| node.token == token);
                while let Some(row) = at {
                    path.push(nodes[row].token);
                    at = nodes[row].parent.map(usize::from);
                }
                path
            };
            prop_assert_eq!(tree.len(), nodes.len());
            for (row, placed) in tree.nodes().iter().enumerate() {
                prop_assert!(placed.parent.is_none_or(|parent| usize::from(parent) < row));
                prop_assert_eq!(path(tree.nodes(), placed.token), path(&nodes, placed.token));
                prop_assert_eq!(tree.depth(row as u16), path(&nodes, placed.token).len());
                let siblings: Vec<f64> =
                    tree.children(Some(row as u16)).map(|child| tree.nodes()[usize::from(child)].cumulative).collect();
                prop_assert!(siblings.is_sorted_by(|a, b| a >= b));
                prop_assert!(tree.children(Some(row as u16)).next().is_none_or(|child| usize::from(child) == row + 1));
            }
            prop_assert_eq!(tree.is_chain(), tree.first_path().len() == tree.len());
        }
    }
}
