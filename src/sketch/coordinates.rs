//! Every row's own sketch coordinates, carried along with the sketch: one pass instead of two.
//!
//! A row g is taken in with the coordinates `z = S g` that the shrink knows anyway. A later shrink
//! `S' = R [S; G]` knows the part of g in the span of the rows of S, and turns z into `T z`,
//! `T = R K[:, S] Σ⁻²` with `K` the Gram matrix of `[S; G]` and Σ the lengths of S's rows (a missing
//! row has none, and no coordinate): S' times the part of g that S holds. T is a contraction.
//!
//! Moving all rows at each shrink would cost N². So moves are kept, a group of them at a time, and
//! their product afterwards. A row is moved once within its group and once at the end.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatMut, MatRef, Par};

use crate::error::{Error, Result};

/// Moves kept apart before they become one. Memory: `8 l² (GROUP + N / (GROUP b))` bytes, b rows
/// per shrink.
const GROUP: usize = 32;
/// Rows moved at once.
const PANEL: usize = 256;

/// What happens to the rows before `start`: z becomes `change` z (l, l).
#[derive(Debug, Clone, PartialEq)]
pub struct Move {
    /// Number of rows when the move was made.
    pub start: usize,
    /// `T` (l, l).
    pub change: Mat<f64>,
}

/// Weighted coordinates (N, l) of the rows of a stream, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Coordinates {
    width: usize,
    rows: Vec<f32>, // each in the basis of the shrink, or of the group's end, that it came with
    moves: Vec<Move>,
    open: usize, // how many of the moves, the last ones, are not yet one
}

impl Coordinates {
    /// No rows yet; each will have `width` coordinates.
    pub fn new(width: usize) -> Self {
        Self { width, rows: Vec::new(), moves: Vec::new(), open: 0 }
    }

    /// Restores coordinates from their `rows`, `moves` and `open`.
    ///
    /// # Errors
    /// `Shape` when they do not fit together or are not finite.
    pub fn restored(width: usize, rows: Vec<f32>, moves: Vec<Move>, open: usize) -> Result<Self> {
        let count = rows.len() / width;
        let starts = moves.iter().map(|one| one.start);
        let fits = rows.len() == count * width
            && open <= moves.len()
            && starts.clone().zip(starts.skip(1)).all(|(one, next)| one <= next)
            && moves.iter().all(|one| {
                (1..=count).contains(&one.start)
                    && (one.change.nrows(), one.change.ncols()) == (width, width)
                    && one.change.col_iter().all(|column| column.iter().all(|x| x.is_finite()))
            })
            && rows.iter().all(|value| value.is_finite());
        if fits {
            return Ok(Self { width, rows, moves, open });
        }
        Err(Error::Shape(format!(
            "expected the coordinates of a sketch's state, got {} numbers of width {width} and {} \
             moves that do not fit, or a number that is not finite",
            rows.len(),
            moves.len()
        )))
    }

    /// Rows (N, l) as they are kept, row-major.
    pub fn rows(&self) -> &[f32] {
        &self.rows
    }

    /// The moves that are still to be made.
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// How many of the last moves belong to a group that is not complete.
    pub fn open(&self) -> usize {
        self.open
    }

    /// Number of rows.
    pub fn count(&self) -> usize {
        self.rows.len() / self.width
    }

    /// A shrink has moved the basis by `change` (l, l) and taken rows in, whose coordinates in the
    /// new basis are the columns of `new` (l, b).
    pub fn take_in(&mut self, change: Mat<f64>, new: &Mat<f64>) {
        self.push(change);
        self.rows.reserve(new.nrows() * new.ncols());
        for column in new.col_iter() {
            self.rows.extend(column.iter().map(|value| *value as f32));
        }
    }

    /// Two sketches have become one, in whose basis the rows here are moved by `change` (l, l) and
    /// those of the other, which follow, by `change_of_other` (l, l of the other).
    pub fn join(&mut self, change: Mat<f64>, other: &Self, change_of_other: &Mat<f64>) {
        self.push(change);
        let mut theirs = other.clone();
        theirs.settle();
        let change_of_other = as_float32(change_of_other);
        let mut panel = vec![0.0; PANEL * self.width];
        self.rows.reserve(theirs.count() * self.width);
        for rows in theirs.rows.chunks(PANEL * theirs.width) {
            let moved = &mut panel[..rows.len() / theirs.width * self.width];
            turn(rows, &change_of_other, moved);
            self.rows.extend_from_slice(moved);
        }
    }

    /// Makes all moves: the rows are then in the basis of the last shrink.
    pub fn settle(&mut self) {
        self.close();
        if let Some(whole) = self.go_back(0) {
            let before = self.moves[0].start * self.width;
            move_rows(&mut self.rows[..before], &whole);
        }
        self.moves.clear();
    }

    /// The rows (N, l) in the basis of the last shrink, row-major.
    pub fn into_rows(mut self) -> Vec<f32> {
        self.settle();
        self.rows
    }

    /// The same in a sketch that has grown to `width` rows, the new ones 0.
    pub fn widened(mut self, width: usize) -> Self {
        self.settle();
        let mut wide = Self::new(width);
        wide.rows = vec![0.0; self.count() * width];
        for (row, old) in wide.rows.chunks_mut(width).zip(self.rows.chunks(self.width)) {
            row[..self.width].copy_from_slice(old);
        }
        wide
    }

    fn push(&mut self, change: Mat<f64>) {
        let start = self.count();
        if start > 0 {
            self.moves.push(Move { start, change });
            self.open += 1;
        }
        if self.open == GROUP {
            self.close();
        }
    }

    /// Makes one move of the open group, and those within it of the rows that came with it.
    fn close(&mut self) {
        let first = self.moves.len() - self.open;
        if let Some(change) = self.go_back(first) {
            let start = self.moves[first].start;
            self.moves.truncate(first);
            self.moves.push(Move { start, change });
        }
        self.open = 0;
    }

    /// Moves the rows that came after move `first` to the basis of the last one; returns what is
    /// left to do with those before: the product of the moves, or None where there are none.
    fn go_back(&mut self, first: usize) -> Option<Mat<f64>> {
        let mut end = self.rows.len();
        let mut product: Option<Mat<f64>> = None;
        for Move { start, change } in self.moves[first..].iter().rev() {
            let start = start * self.width;
            product = Some(match product {
                None => change.clone(),
                Some(later) => {
                    move_rows(&mut self.rows[start..end], &later);
                    later * change
                }
            });
            end = start;
        }
        product
    }
}

/// `z ← T z` for each row z (n, l).
fn move_rows(rows: &mut [f32], change: &Mat<f64>) {
    let change = as_float32(change);
    let mut old = Vec::with_capacity(PANEL * change.nrows());
    for panel in rows.chunks_mut(PANEL * change.nrows()) {
        old.clear();
        old.extend_from_slice(panel);
        turn(&old, &change, panel);
    }
}

/// `out ← rows Tᵀ`: (n, m) and (l, m) to (n, l).
fn turn(rows: &[f32], change: &Mat<f32>, out: &mut [f32]) {
    let (new, old) = (change.nrows(), change.ncols());
    let rows = MatRef::from_row_major_slice(rows, rows.len() / old, old);
    let out = MatMut::from_row_major_slice_mut(out, rows.nrows(), new);
    matmul(out, Accum::Replace, rows, change.transpose(), 1.0, Par::Seq);
}

fn as_float32(matrix: &Mat<f64>) -> Mat<f32> {
    Mat::from_fn(matrix.nrows(), matrix.ncols(), |i, j| matrix[(i, j)] as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 3;

    /// Numbers in [-1, 1) that follow from a seed.
    fn numbers(seed: &mut u64) -> impl FnMut() -> f64 + '_ {
        move || {
            *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (*seed >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        }
    }

    /// A stream of `shrinks` of 1 to 5 rows each, and what becomes of its rows when every one is
    /// moved at once, in float64.
    fn stream(shrinks: usize, mut seed: u64) -> (Coordinates, Vec<Mat<f64>>) {
        let mut carried = Coordinates::new(WIDTH);
        let mut direct: Vec<Mat<f64>> = Vec::new();
        let mut next = numbers(&mut seed);
        for shrink in 0..shrinks {
            let change =
                Mat::from_fn(WIDTH, WIDTH, |i, j| f64::from(u8::from(i == j)) * 0.9 + 0.1 * next());
            let new = Mat::from_fn(WIDTH, 1 + shrink % 5, |_, _| next());
            direct.iter_mut().for_each(|row| *row = &change * &*row);
            direct.extend((0..new.ncols()).map(|j| new.subcols(j, 1).to_owned()));
            carried.take_in(change, &new);
        }
        (carried, direct)
    }

    fn assert_near(rows: &[f32], direct: &[Mat<f64>]) {
        assert_eq!(rows.len(), direct.len() * WIDTH);
        for (row, expected) in rows.chunks(WIDTH).zip(direct) {
            for (j, value) in row.iter().enumerate() {
                let error = (f64::from(*value) - expected[(j, 0)]).abs();
                assert!(error < 1e-6, "{value} is not {}", expected[(j, 0)]);
            }
        }
    }

    #[test]
    fn lazy_moves_are_those_made_at_once() {
        for shrinks in [0, 1, 2, GROUP, GROUP + 1, GROUP + 2, 5 * GROUP + 7] {
            let (carried, direct) = stream(shrinks, 1);
            assert_near(&carried.into_rows(), &direct);
        }
    }

    #[test]
    fn memory_for_moves_is_that_of_a_group() {
        let (carried, _) = stream(10 * GROUP, 2);
        assert!(carried.moves().len() <= 10 + GROUP);
    }

    #[test]
    fn joined_streams_are_moved_both() {
        let ((mut first, mut direct), (second, other)) =
            (stream(GROUP + 5, 3), stream(2 * GROUP + 3, 4));
        let ours = Mat::from_fn(WIDTH, WIDTH, |i, j| if i == j { 0.5 } else { 0.25 });
        let theirs = Mat::from_fn(WIDTH, WIDTH, |i, j| (i as f64 - j as f64) / 4.0);
        first.join(ours.clone(), &second, &theirs);
        direct.iter_mut().for_each(|row| *row = &ours * &*row);
        direct.extend(other.iter().map(|row| &theirs * row));
        assert_near(&first.clone().into_rows(), &direct);
        let last = Mat::from_fn(WIDTH, WIDTH, |i, j| if i == j { 0.8 } else { -0.1 });
        first.take_in(last.clone(), &Mat::zeros(WIDTH, 1));
        direct.iter_mut().for_each(|row| *row = &last * &*row);
        direct.push(Mat::zeros(WIDTH, 1));
        assert_near(&first.into_rows(), &direct);
    }

    #[test]
    fn a_stream_of_another_width_can_be_joined() {
        let (mut first, _) = stream(2, 5);
        let kept = first.count();
        let mut second = Coordinates::new(2);
        second.take_in(Mat::zeros(2, 2), &Mat::from_fn(2, 1, |i, _| 1.0 + i as f64));
        let wider = Mat::from_fn(WIDTH, 2, |i, j| (i + j) as f64);
        first.join(Mat::identity(WIDTH, WIDTH), &second, &wider);
        assert_eq!(first.into_rows()[kept * WIDTH..], [2.0, 5.0, 8.0]);
    }

    #[test]
    fn a_restored_stream_goes_on_bit_by_bit() {
        let (carried, _) = stream(2 * GROUP + 9, 6);
        let again = Coordinates::restored(
            WIDTH,
            carried.rows().to_vec(),
            carried.moves().to_vec(),
            carried.open(),
        );
        assert_eq!(again.unwrap(), carried);
        let moves = carried.moves().to_vec();
        let rows = carried.rows().to_vec();
        let wrong = [
            Coordinates::restored(WIDTH, rows[1..].to_vec(), moves.clone(), 0),
            Coordinates::restored(WIDTH, rows.clone(), moves.clone(), moves.len() + 1),
            Coordinates::restored(WIDTH, rows.clone(), moves.iter().rev().cloned().collect(), 0),
            Coordinates::restored(WIDTH, Vec::new(), moves.clone(), 0),
            Coordinates::restored(WIDTH, vec![f32::NAN; rows.len()], moves, 0),
        ];
        assert!(wrong.into_iter().all(|one| matches!(one, Err(Error::Shape(_)))));
    }
}
