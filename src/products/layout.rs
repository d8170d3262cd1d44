//! How the numbers of a tensor lie in memory, and how those of a view of it do.
//!
//! libtorch's stable interface makes a view from sizes, strides and an offset, so that we work them
//! out. Nothing here panics on bad arguments: the callers are C functions, where a panic ends the
//! process.

/// Sizes and strides of a tensor, in numbers, not bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Numbers along each axis.
    pub sizes: Vec<i64>,
    /// From one number to the next along each axis.
    pub strides: Vec<i64>,
}

/// `Result` with what is wrong, in words.
pub type Possible<T> = Result<T, String>;

impl Layout {
    /// Row after row without gaps.
    pub fn dense(sizes: &[i64]) -> Self {
        let mut strides = vec![1; sizes.len()];
        for axis in (1..sizes.len()).rev() {
            strides[axis - 1] = strides[axis] * sizes[axis].max(1);
        }
        Self { sizes: sizes.to_vec(), strides }
    }

    /// Numbers in all.
    pub fn count(&self) -> i64 {
        self.sizes.iter().product()
    }

    /// Whether the numbers lie row after row without gaps.
    pub fn is_dense(&self) -> bool {
        let dense = Self::dense(&self.sizes);
        let axes = self.sizes.iter().zip(self.strides.iter().zip(&dense.strides));
        self.count() == 0
            || axes.into_iter().all(|(size, (given, wanted))| *size == 1 || given == wanted)
    }

    /// `length` places of an axis from `start` on, and how far the first number moves.
    pub fn narrow(mut self, axis: i64, start: i64, length: i64) -> Possible<(Self, i64)> {
        let axis = self.axis(axis)?;
        let size = self.sizes[axis];
        if start < 0 || length < 0 || start > size - length {
            return Err(format!("expected places within {size}, got {length} from {start} on"));
        }
        self.sizes[axis] = length;
        let offset = start * self.strides[axis];
        Ok((self, offset))
    }

    /// Two axes change places.
    pub fn transpose(mut self, first: i64, second: i64) -> Possible<Self> {
        let (first, second) = (self.axis(first)?, self.axis(second)?);
        self.sizes.swap(first, second);
        self.strides.swap(first, second);
        Ok(self)
    }

    /// A new axis of size 1 before `axis`.
    pub fn unsqueeze(mut self, axis: i64) -> Possible<Self> {
        let place = usize::try_from(axis).ok().filter(|place| *place <= self.sizes.len());
        let place = place.ok_or_else(|| self.no_axis(axis))?;
        self.sizes.insert(place, 1);
        self.strides.insert(place, 1);
        Ok(self)
    }

    /// Other sizes for dense numbers; one of them may be -1, for what is left.
    pub fn view(&self, sizes: &[i64]) -> Possible<Self> {
        let known: i64 = sizes.iter().filter(|size| **size >= 0).product();
        let left = self.count() / known.max(1);
        let whole = |size: &i64| if *size < 0 { left } else { *size };
        let viewed = Self::dense(&sizes.iter().map(whole).collect::<Vec<_>>());
        if !self.is_dense() || viewed.count() != self.count() {
            return Err(format!("expected dense numbers to view as {sizes:?}, got {self:?}"));
        }
        Ok(viewed)
    }

    /// One axis in pieces, whatever lies between its numbers: (n, w) as (n, w / c, c).
    pub fn unflatten(mut self, axis: i64, pieces: &[i64]) -> Possible<Self> {
        let axis = self.axis(axis)?;
        if pieces.iter().product::<i64>() != self.sizes[axis] {
            return Err(format!("expected pieces of {}, got {pieces:?}", self.sizes[axis]));
        }
        let step = self.strides[axis];
        let strides = Self::dense(pieces).strides.into_iter().map(|stride| stride * step);
        self.strides.splice(axis..=axis, strides);
        self.sizes.splice(axis..=axis, pieces.iter().copied());
        Ok(self)
    }

    fn axis(&self, axis: i64) -> Possible<usize> {
        let place = usize::try_from(axis).ok().filter(|place| *place < self.sizes.len());
        place.ok_or_else(|| self.no_axis(axis))
    }

    fn no_axis(&self, axis: i64) -> String {
        format!("expected an axis of a tensor of shape {:?}, got {axis}", self.sizes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The places in memory of all numbers, in reading order.
    fn places(layout: &Layout, offset: i64) -> Vec<i64> {
        let steps = layout.sizes.iter().zip(&layout.strides);
        steps.fold(vec![offset], |places, (size, stride)| {
            places.iter().flat_map(|place| (0..*size).map(move |at| place + at * stride)).collect()
        })
    }

    #[test]
    fn views_read_the_numbers_that_they_say() -> Possible<()> {
        let matrix = Layout::dense(&[3, 8]);
        assert_eq!(places(&matrix, 0), (0..24).collect::<Vec<_>>());
        let (columns, offset) = matrix.clone().narrow(1, 2, 4)?;
        assert_eq!(places(&columns, offset), [2, 3, 4, 5, 10, 11, 12, 13, 18, 19, 20, 21]);
        assert_eq!(places(&columns.clone().transpose(0, 1)?, 2)[..4], [2, 10, 18, 3]);
        let pieces = columns.clone().unflatten(1, &[2, 2])?;
        assert_eq!(pieces.sizes, [3, 2, 2]);
        assert_eq!(places(&pieces, offset), places(&columns, offset));
        assert_eq!(places(&pieces.transpose(0, 1)?, offset)[..6], [2, 3, 10, 11, 18, 19]);
        for axis in 0..3 {
            assert_eq!(places(&columns.clone().unsqueeze(axis)?, 2), places(&columns, 2));
        }
        assert_eq!(matrix.view(&[-1])?, Layout::dense(&[24]));
        assert_eq!(matrix.view(&[2, -1, 3])?, Layout::dense(&[2, 4, 3]));
        Ok(())
    }

    #[test]
    fn numbers_with_gaps_are_told_from_dense_ones() -> Possible<()> {
        let matrix = Layout::dense(&[3, 8]);
        assert!(matrix.is_dense() && Layout::dense(&[]).is_dense());
        assert!(matrix.clone().narrow(0, 1, 2)?.0.is_dense());
        assert!(!matrix.clone().narrow(1, 0, 4)?.0.is_dense());
        assert!(!matrix.clone().transpose(0, 1)?.is_dense());
        // No number follows along an axis of one place, so its stride does not matter.
        assert!(matrix.clone().narrow(0, 1, 1)?.0.is_dense());
        assert!(Layout { sizes: vec![1, 8], strides: vec![3, 1] }.is_dense());
        assert!(Layout { sizes: vec![0, 8], strides: vec![3, 5] }.is_dense());
        Ok(())
    }

    #[test]
    fn impossible_views_are_refused_and_nothing_panics() -> Possible<()> {
        let matrix = Layout::dense(&[3, 8]);
        for (axis, start, length) in [(2, 0, 1), (-1, 0, 1), (0, 2, 2), (0, -1, 1), (0, 0, -1)] {
            assert!(matrix.clone().narrow(axis, start, length).is_err());
        }
        assert!(matrix.clone().narrow(0, i64::MAX, 1).is_err());
        assert!(matrix.clone().transpose(0, 2).is_err() && matrix.clone().unsqueeze(3).is_err());
        assert!(matrix.view(&[5, -1]).is_err() && matrix.view(&[3, 9]).is_err());
        assert!(matrix.clone().transpose(0, 1)?.view(&[24]).is_err());
        assert!(matrix.clone().unflatten(1, &[3, 3]).is_err());
        Ok(())
    }
}
