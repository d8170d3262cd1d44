//! Roots of the secular equation `1/ρ + Σ_i z_i² / (d_i − λ) = 0`: the eigenvalues of
//! `diag(d) + ρ z zᵀ`, eight of them at a time.
//!
//! Between two neighbouring poles the equation is replaced by a rational function with the same poles,
//! which is solved exactly: R.-C. Li, "Solving secular equations stably and efficiently", LAPACK
//! Working Note 89, 1994 (the middle way). A root is kept as its distance from the nearer pole, so that
//! its distance from every pole is right to the last digits, whatever cancels.

use pulp::{Arch, Simd, WithSimd};

/// Roots that are sought together: their sums share the processor's registers.
const LANES: usize = 8;
/// Bisection alone would come to an end after as many steps.
const MOST_STEPS: usize = 100;

type Lanes = [f64; LANES];

/// `diag(poles) + rho z zᵀ`, `poles` strictly ascending, `squares` (z_i²) above 0 and of sum 1, `rho`
/// above 0.
#[derive(Debug, Clone, Copy)]
pub struct Secular<'a> {
    /// `d`.
    pub poles: &'a [f64],
    /// `z_i²`.
    pub squares: &'a [f64],
    /// `ρ`.
    pub rho: f64,
}

/// An eigenvalue, `pole + offset`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Root {
    /// The nearer of the poles beside it.
    pub pole: f64,
    /// Its distance from there.
    pub offset: f64,
}

impl Root {
    /// The eigenvalue.
    pub fn value(&self) -> f64 {
        self.pole + self.offset
    }

    /// `pole − λ`, right to the last digits.
    #[inline(always)]
    pub fn distance_to(&self, pole: f64) -> f64 {
        (pole - self.pole) - self.offset
    }
}

/// The parts of the equation at eight places: the sums over the poles up to the root's own and over
/// those above it, with their slopes.
#[derive(Clone, Copy, Default)]
struct Sums {
    lower: Lanes,
    lower_slope: Lanes,
    upper: Lanes,
    upper_slope: Lanes,
}

/// A struct and no closure: what a closure does is compiled without the processor's wide registers.
struct AllRoots<'a> {
    equation: &'a Secular<'a>,
    roots: &'a mut [Root],
}

impl WithSimd for AllRoots<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (place, roots) in self.roots.chunks_mut(LANES).enumerate() {
            self.equation.eight(place * LANES, roots);
        }
    }
}

impl Secular<'_> {
    /// All eigenvalues, ascending: root i lies between poles i and i + 1, the last one at most ρ above
    /// the last pole.
    pub fn roots(&self) -> Vec<Root> {
        let mut roots = vec![Root::default(); self.poles.len()];
        Arch::new().dispatch(AllRoots { equation: self, roots: &mut roots });
        roots
    }

    /// The pole above root `j`: behind the last one a pole without weight, so far away that the root is
    /// nearer to the last.
    fn next_pole(&self, j: usize) -> f64 {
        self.poles.get(j + 1).copied().unwrap_or(self.poles[j] + 2.0 * self.rho)
    }

    #[inline(always)]
    fn eight(&self, first: usize, roots: &mut [Root]) {
        let count = roots.len();
        let of = |lane: usize| first + lane.min(count - 1);
        let next: Lanes = std::array::from_fn(|lane| self.next_pole(of(lane)));
        let gap: Lanes = std::array::from_fn(|lane| next[lane] - self.poles[of(lane)]);

        // The sign half way says which pole is nearer.
        let mut pole: Lanes = std::array::from_fn(|lane| self.poles[of(lane)]);
        let mut offset: Lanes = gap.map(|gap| gap / 2.0);
        let sums = self.sums(first, &pole, &offset);
        let (mut low, mut high) = ([0.0; LANES], offset);
        for lane in 0..LANES {
            let j = of(lane);
            let value = 1.0 / self.rho + sums.lower[lane] + sums.upper[lane];
            let (own, above) = (self.squares[j], self.squares.get(j + 1).copied().unwrap_or(0.0));
            // All but the two poles beside it hardly change within the interval.
            let rest = value + 2.0 * (own - above) / gap[lane];
            if value >= 0.0 {
                let (a, b) = (rest * gap[lane] + own + above, own * gap[lane]);
                offset[lane] = root_of(rest, a, b);
            } else {
                let (a, b) = (own + above - rest * gap[lane], -above * gap[lane]);
                offset[lane] = root_of(rest, a, b);
                (low[lane], high[lane]) = (-gap[lane] / 2.0, 0.0);
                pole[lane] = next[lane];
            }
            offset[lane] = within(offset[lane], low[lane], high[lane]);
        }

        let mut is_found = [false; LANES];
        for _ in 0..MOST_STEPS {
            let sums = self.sums(first, &pole, &offset);
            for lane in 0..LANES {
                if is_found[lane] {
                    continue;
                }
                let value = 1.0 / self.rho + sums.lower[lane] + sums.upper[lane];
                let slope = sums.lower_slope[lane] + sums.upper_slope[lane];
                let magnitude = 1.0 / self.rho + sums.upper[lane] - sums.lower[lane];
                let noise = f64::EPSILON
                    * (magnitude * self.poles.len().max(8) as f64 + offset[lane].abs() * slope);
                if value.abs() <= noise {
                    is_found[lane] = true;
                    continue;
                }
                let side = if value < 0.0 { &mut low[lane] } else { &mut high[lane] };
                *side = offset[lane];
                let own = (self.poles[of(lane)] - pole[lane]) - offset[lane];
                let above = (next[lane] - pole[lane]) - offset[lane];
                let a = (own + above) * value - own * above * slope;
                let c = value - own * sums.lower_slope[lane] - above * sums.upper_slope[lane];
                let mut step = root_of(c, a, own * above * value);
                if value * step >= 0.0 || !step.is_finite() {
                    step = -value / slope;
                }
                let moved = within(offset[lane] + step, low[lane], high[lane]);
                // No number lies between, or the step is below the last digit.
                is_found[lane] = [offset[lane], low[lane], high[lane]].contains(&moved)
                    || offset[lane] + step == offset[lane];
                if !is_found[lane] {
                    offset[lane] = moved;
                }
            }
            if is_found == [true; LANES] {
                break;
            }
        }
        for (lane, root) in roots.iter_mut().enumerate() {
            *root = Root { pole: pole[lane], offset: offset[lane] };
        }
    }

    /// The sums at `pole + offset`, the places of the roots from `first` on.
    #[inline(always)]
    fn sums(&self, first: usize, pole: &Lanes, offset: &Lanes) -> Sums {
        let mut sums = Sums::default();
        let (lower, rest) = self.poles.split_at(first);
        let (beside, upper) = rest.split_at(rest.len().min(LANES));
        let (of_lower, rest) = self.squares.split_at(first);
        let (of_beside, of_upper) = rest.split_at(beside.len());
        let distance = |d: f64, lane: usize| (d - pole[lane]) - offset[lane];
        let Sums { lower: of_below, lower_slope, upper: of_above, upper_slope } = &mut sums;
        add_terms((lower, of_lower), distance, of_below, lower_slope);
        for (place, (d, square)) in beside.iter().zip(of_beside).enumerate() {
            for lane in 0..LANES {
                let quotient = 1.0 / distance(*d, lane);
                let term = square * quotient;
                let (of_lower, of_upper) = if place <= lane { (term, 0.0) } else { (0.0, term) };
                of_below[lane] += of_lower;
                lower_slope[lane] += of_lower * quotient;
                of_above[lane] += of_upper;
                upper_slope[lane] += of_upper * quotient;
            }
        }
        add_terms((upper, of_upper), distance, of_above, upper_slope);
        sums
    }
}

/// Adds `z² / distance` and `z² / distance²` of some poles. Four poles share a division, which takes
/// longer than all the rest of this. Poles that are not deflated are some 1e-16 apart or more: a product
/// of four distances is far from underflow.
#[inline(always)]
fn add_terms(
    (poles, squares): (&[f64], &[f64]),
    distance: impl Fn(f64, usize) -> f64,
    sum: &mut Lanes,
    slope: &mut Lanes,
) {
    let mut add = |square: f64, quotient: f64, lane: usize| {
        let term = square * quotient;
        sum[lane] += term;
        slope[lane] += term * quotient;
    };
    let (mut fours, mut of_fours) = (poles.chunks_exact(4), squares.chunks_exact(4));
    for (four, squares) in (&mut fours).zip(&mut of_fours) {
        for lane in 0..LANES {
            let (a, b) = (distance(four[0], lane), distance(four[1], lane));
            let (c, d) = (distance(four[2], lane), distance(four[3], lane));
            let (ab, cd) = (a * b, c * d);
            let inverse = 1.0 / (ab * cd);
            let (of_ab, of_cd) = (cd * inverse, ab * inverse);
            add(squares[0], b * of_ab, lane);
            add(squares[1], a * of_ab, lane);
            add(squares[2], d * of_cd, lane);
            add(squares[3], c * of_cd, lane);
        }
    }
    for (d, square) in fours.remainder().iter().zip(of_fours.remainder()) {
        for lane in 0..LANES {
            add(*square, 1.0 / distance(*d, lane), lane);
        }
    }
}

/// `(a − sqrt(a² − 4bc)) / 2c`, a root of `c x² − a x + b`, without cancellation.
#[inline(always)]
fn root_of(c: f64, a: f64, b: f64) -> f64 {
    let root = (a * a - 4.0 * b * c).abs().sqrt();
    if a > 0.0 {
        2.0 * b / (a + root)
    } else {
        (a - root) / (2.0 * c)
    }
}

/// `place`, or the middle of the interval where it is not inside.
#[inline(always)]
fn within(place: f64, low: f64, high: f64) -> f64 {
    if place > low && place < high {
        place
    } else {
        (low + high) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(poles: &[f64], weights: &[f64], rho: f64) {
        let sum: f64 = weights.iter().sum();
        let squares: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
        let equation = Secular { poles, squares: &squares, rho };
        let roots = equation.roots();
        assert_eq!(roots.len(), poles.len());
        for (j, root) in roots.iter().enumerate() {
            // Strictly between its poles, or the vectors made of it are not finite.
            assert!(root.distance_to(poles[j]) < 0.0);
            assert!(poles.get(j + 1).is_none_or(|next| root.distance_to(*next) > 0.0));
            assert!(root.value() <= poles[poles.len() - 1] + rho * (1.0 + 1e-15));
            let terms = poles.iter().zip(&squares).map(|(d, z)| z / root.distance_to(*d));
            let (value, size) = terms.fold((1.0 / rho, 1.0 / rho), |(value, size), term| {
                (value + term, size + term.abs())
            });
            let slope: f64 =
                poles.iter().zip(&squares).map(|(d, z)| z / root.distance_to(*d).powi(2)).sum();
            let allowed = size * poles.len().max(8) as f64 + slope * root.offset.abs();
            assert!(value.abs() <= 4.0 * f64::EPSILON * allowed, "{j}: {value} {allowed}");
        }
        let trace: f64 = poles.iter().sum::<f64>() + rho;
        let found: f64 = roots.iter().map(Root::value).sum();
        let largest = poles.iter().fold(rho, |top, pole| top.max(pole.abs()));
        let allowed = 4.0 * f64::EPSILON * (poles.len().max(8) * poles.len()) as f64;
        assert!((found - trace).abs() <= allowed * largest);
    }

    #[test]
    fn roots_lie_between_their_poles_and_solve_the_equation() {
        for n in [1, 2, 7, 8, 9, 30] {
            let even: Vec<f64> = (0..n).map(|i| i as f64).collect();
            let graded: Vec<f64> = (0..n).map(|i| 0.1f64.powi((n - i) as i32)).collect();
            let close: Vec<f64> = (0..n).map(|i| 1.0 + 1e-14 * i as f64).collect();
            let signed: Vec<f64> = (0..n).map(|i| i as f64 / n as f64 - 0.4).collect();
            for poles in [even, graded, close, signed] {
                for rho in [1e-9, 1.0, 1e9] {
                    check(&poles, &vec![1.0; n], rho);
                    let falling: Vec<f64> = (0..n).map(|i| 1e-3f64.powi(i as i32 % 9)).collect();
                    check(&poles, &falling, rho);
                    let rising: Vec<f64> = falling.iter().rev().copied().collect();
                    check(&poles, &rising, rho);
                }
            }
        }
    }
}
