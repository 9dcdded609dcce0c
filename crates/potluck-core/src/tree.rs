//! Trees of drafts: how the rows of a step hang together where they are not a chain.
//!
//! Several guesses for the same position are verified together: each row sees the session's cache up to the step's start and the
//! rows on its own way to the root, as in SpecInfer (arXiv:2305.09781).

use serde::{Deserialize, Serialize};

use crate::bounds::TREE_ROWS_MAX;

/// The parent of each row of a step. Empty: a chain, in which each row follows the one before.
///
/// Rows come depth first: a row's parent is the row before it or one of that row's ancestors, so the first path from the root to a
/// leaf is the rows until the first that does not follow the one before. A row's position is the step's start and its depth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Tree(Vec<u8>);

/// The caller, or whoever sent it: these are no parents of a step's rows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// More rows than a tree may have.
    #[error("a tree of {rows} rows; {TREE_ROWS_MAX} are the most")]
    TooLarge {
        /// As given.
        rows: usize,
    },
    /// Rows do not come depth first.
    #[error("row {row} cannot follow row {parent}: rows come depth first")]
    Order {
        /// The row.
        row: usize,
        /// The parent that was given for it.
        parent: u8,
    },
    /// Each row follows the one before: a chain, which has another form.
    #[error("a chain is no tree")]
    Chain,
}

impl Tree {
    /// A tree of rows with these parents; the first one, the root's, is 0.
    ///
    /// # Errors
    /// See [`TreeError`].
    pub fn new(parents: Vec<u8>) -> Result<Self, TreeError> {
        if parents.len() > TREE_ROWS_MAX {
            return Err(TreeError::TooLarge { rows: parents.len() });
        }
        if parents.iter().zip(0..).all(|(&parent, row): (_, usize)| usize::from(parent) == row.saturating_sub(1)) {
            return Err(TreeError::Chain);
        }
        // The way from the root to the row before.
        let mut path: Vec<u8> = Vec::new();
        for (row, &parent) in parents.iter().enumerate() {
            match path.iter().rposition(|&ancestor| ancestor == parent) {
                Some(depth) => path.truncate(depth + 1),
                None if row == 0 && parent == 0 => {}
                None => return Err(TreeError::Order { row, parent }),
            }
            path.push(row as u8);
        }
        Ok(Self(parents))
    }

    /// Each row follows the one before.
    pub const fn chain() -> Self {
        Self(Vec::new())
    }

    /// True if each row follows the one before.
    pub fn is_chain(&self) -> bool {
        self.0.is_empty()
    }

    /// The parent of each row; none for a chain.
    pub fn parents(&self) -> &[u8] {
        &self.0
    }

    /// Whether it can be the tree of a step of so many rows.
    pub fn fits(&self, rows: usize) -> bool {
        self.is_chain() || self.0.len() == rows
    }

    /// How far each of `rows` rows is from the root.
    pub fn depths(&self, rows: usize) -> Vec<u32> {
        let mut depths: Vec<u32> = Vec::with_capacity(rows);
        for row in 0..rows {
            let parent = self.parent(row);
            depths.push(parent.map_or(0, |parent| depths[parent] + 1));
        }
        depths
    }

    /// The row that a row follows; none for the first.
    pub fn parent(&self, row: usize) -> Option<usize> {
        let before = row.checked_sub(1)?;
        Some(self.0.get(row).map_or(before, |&parent| parent.into()))
    }

    /// Rows of the first path from the root to a leaf, of `rows` rows in all: what a cache holds afterwards.
    pub fn trunk(&self, rows: usize) -> usize {
        let strays = |&(row, &parent): &(usize, &u8)| usize::from(parent) + 1 != row;
        self.0.iter().enumerate().skip(1).find(strays).map_or(rows, |(row, _)| row)
    }

    /// Positions that `rows` rows take: the longest path.
    pub fn positions(&self, rows: usize) -> u32 {
        if self.is_chain() { rows as u32 } else { self.depths(rows).into_iter().max().map_or(0, |depth| depth + 1) }
    }
}

impl TryFrom<Vec<u8>> for Tree {
    type Error = TreeError;

    fn try_from(parents: Vec<u8>) -> Result<Self, TreeError> {
        if parents.is_empty() { Ok(Self::chain()) } else { Self::new(parents) }
    }
}

impl From<Tree> for Vec<u8> {
    fn from(tree: Tree) -> Self {
        tree.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_depth_first_and_the_first_path_is_the_trunk() {
        //        0
        //      1   4
        //     2 3   5
        let tree = Tree::new(vec![0, 0, 1, 1, 0, 4]).unwrap();
        assert_eq!(tree.depths(6), [0, 1, 2, 2, 1, 2]);
        assert_eq!((tree.trunk(6), tree.positions(6)), (3, 3));
        assert_eq!(tree.parent(4), Some(0));
        assert!(tree.fits(6) && !tree.fits(5));
        assert_eq!(Tree::new(vec![0, 0, 0, 1]), Err(TreeError::Order { row: 3, parent: 1 }), "1 was left behind");
        assert_eq!(Tree::new(vec![0, 2, 0]), Err(TreeError::Order { row: 1, parent: 2 }));
        assert_eq!(Tree::new(vec![1, 0]), Err(TreeError::Order { row: 0, parent: 1 }));
        assert_eq!(Tree::new(vec![0; 65]), Err(TreeError::TooLarge { rows: 65 }));
    }

    #[test]
    fn a_chain_has_one_form() {
        assert_eq!(Tree::new(vec![0, 0, 1, 2]), Err(TreeError::Chain));
        assert_eq!(Tree::new(vec![0]), Err(TreeError::Chain));
        assert_eq!(Tree::try_from(Vec::new()), Ok(Tree::chain()));
        let chain = Tree::chain();
        assert_eq!((chain.trunk(4), chain.positions(4), chain.depths(3)), (4, 4, vec![0, 1, 2]));
    }

    proptest::proptest! {
        #[test]
        fn what_is_taken_is_a_tree(parents in proptest::collection::vec(0u8..12, 0..12)) {
            if let Ok(tree) = Tree::try_from(parents.clone()) {
                let rows = if tree.is_chain() { 5 } else { parents.len() };
                let depths = tree.depths(rows);
                proptest::prop_assert!((1..rows).all(|row| tree.parent(row).is_some_and(|parent| parent < row)));
                proptest::prop_assert!((1..rows).all(|row| depths[row] <= depths[row - 1] + 1));
                proptest::prop_assert!((0..tree.trunk(rows)).all(|row| depths[row] == row as u32));
                proptest::prop_assert_eq!(Vec::<u8>::from(tree), parents);
            }
        }
    }
}
