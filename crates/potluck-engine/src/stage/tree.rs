//! A step that is a tree of drafts: in one batch where branches have lanes, else one branch after the other.

use std::ops::Range;

use potluck_core::{Hidden, Output, StageError, Step, Tree};

use super::{Failure, LlamaStage, group::Ready};

/// The paths of a tree from its root to its leaves, the first one first: which rows are on each.
fn paths(tree: &Tree, rows: usize) -> Vec<Vec<usize>> {
    let mut is_leaf = vec![true; rows];
    (0..rows).filter_map(|row| tree.parent(row)).for_each(|parent| is_leaf[parent] = false);
    let path = |leaf| {
        let mut path: Vec<usize> = std::iter::successors(Some(leaf), |&row| tree.parent(row)).collect();
        path.reverse();
        path
    };
    (0..rows).filter(|&row| is_leaf[row]).map(path).collect()
}

/// Runs of rows in the order in which one cache can take them, so that it holds the first path at the end: at each row, its other
/// children come before the first.
fn runs(tree: &Tree, rows: usize) -> Vec<Range<usize>> {
    let mut children: Vec<Vec<usize>> = vec![Vec::new(); rows];
    for row in 1..rows {
        if let Some(parent) = tree.parent(row) {
            children[parent].push(row);
        }
    }
    let mut runs: Vec<Range<usize>> = Vec::new();
    // Whether the row follows the one that was taken last in the cache as it is.
    let mut next = vec![(0, false)];
    while let Some((row, follows)) = next.pop() {
        match runs.last_mut() {
            Some(run) if follows && run.end == row => run.end += 1,
            _ => runs.push(row..row + 1),
        }
        if let Some((&first, others)) = children[row].split_first() {
            next.push((first, others.is_empty()));
            next.extend(others.iter().enumerate().map(|(at, &other)| (other, at + 1 == others.len())));
        }
    }
    runs
}

impl LlamaStage {
    /// Decodes some rows of a step: `place` says to which sequences a row belongs, and its position.
    fn decode_rows<'a>(
        &mut self,
        step: &Step,
        rows: Range<usize>,
        place: impl Fn(usize) -> (&'a [u16], u32),
    ) -> Result<(), Failure> {
        let last = step.positions(self.shape.width);
        self.batch.clear();
        self.enter(&step.input, rows.clone())?;
        for row in rows {
            let wanted = self.is_wanted(step.rows, row + 1 == last);
            let (sequences, position) = place(row);
            self.batch.push_shared(sequences, position, wanted);
        }
        Ok(self.context.decode(&mut self.batch)?)
    }

    /// Runs a step that is a tree. Its cache ends with the first path.
    pub(super) fn run_tree(&mut self, step: &Step, ready: &Ready) -> Result<Output, StageError> {
        let paths = paths(&step.tree, ready.rows);
        let ran = match paths.len() - 1 <= self.context.lanes().into() {
            true => self.run_at_once(step, ready, &paths),
            false => self.run_in_turn(step, ready),
        };
        match ran {
            Ok(output) => {
                self.caches.get_mut(ready.cache)?.held = ready.start + step.tree.trunk(ready.rows) as u32;
                Ok(output)
            }
            Err(error) => {
                self.undo(ready)?;
                Err(error)
            }
        }
    }

    /// In one batch: a row belongs to the sequences of all paths that it is on, and sees what the first of them holds.
    fn run_at_once(&mut self, step: &Step, ready: &Ready, paths: &[Vec<usize>]) -> Result<Output, StageError> {
        let lane = |at: usize| if at == 0 { ready.slot } else { self.context.lane(at as u16 - 1) };
        let lanes: Vec<u16> = (0..paths.len()).map(lane).collect();
        let mut sequences: Vec<Vec<u16>> = vec![Vec::new(); ready.rows];
        for (path, &lane) in paths.iter().zip(&lanes) {
            path.iter().for_each(|&row| sequences[row].push(lane));
        }
        lanes[1..].iter().for_each(|&lane| self.context.lend(ready.slot, lane, ready.start));
        let depths = step.tree.depths(ready.rows);
        let ran = self.decode_rows(step, 0..ready.rows, |row| (&sequences[row], ready.start + depths[row]));
        lanes[1..].iter().for_each(|&lane| {
            self.context.truncate(lane, 0);
        });
        ran.map_err(|error| StageError::Engine(error.to_string()))?;
        self.output(step, ready, 0..ready.rows)
    }

    /// One run of rows after the other, each where the cache ends with its parent.
    fn run_in_turn(&mut self, step: &Step, ready: &Ready) -> Result<Output, StageError> {
        let (depths, width) = (step.tree.depths(ready.rows), self.shape.width as usize);
        let slot = [ready.slot];
        let (mut hidden, mut logits) = (Vec::new(), Vec::new());
        for run in runs(&step.tree, ready.rows) {
            let start = ready.start + depths[run.start];
            if !self.context.truncate(ready.slot, start) {
                return Err(StageError::CannotTruncate(start));
            }
            let ran = self.decode_rows(step, run.clone(), |row| (&slot, ready.start + depths[row]));
            ran.map_err(|error| StageError::Engine(error.to_string()))?;
            match self.output(step, ready, run.clone())? {
                Output::Hidden(Hidden(values)) => {
                    hidden.resize(ready.rows * width, 0.0);
                    hidden[run.start * width..run.end * width].copy_from_slice(&values);
                }
                Output::Logits(rows) => logits.extend(run.zip(rows)),
            }
        }
        if !self.shape.spec.tail {
            return Ok(Output::Hidden(Hidden(hidden)));
        }
        logits.sort_unstable_by_key(|(row, _)| *row);
        Ok(Output::Logits(logits.into_iter().map(|(_, logits)| logits).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_runs() {
        //        0
        //      1   4
        //     2 3   5
        let tree = Tree::new(vec![0, 0, 1, 1, 0, 4]).unwrap();
        assert_eq!(paths(&tree, 6), [vec![0, 1, 2], vec![0, 1, 3], vec![0, 4, 5]]);
        assert_eq!(runs(&tree, 6), [0..1, 4..6, 1..2, 3..4, 2..3]);
        // A comb: each level has one alternative.
        let comb = Tree::new(vec![0, 0, 1, 2, 1, 0]).unwrap();
        assert_eq!(runs(&comb, 6), [0..1, 5..6, 1..2, 4..5, 2..4]);
        assert_eq!(runs(&Tree::chain(), 3), vec![0..3; 1]);
    }
}
