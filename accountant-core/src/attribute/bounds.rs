//! Bounds on unknowns from sums that are known.
//!
//! A system of equations `low <= sum of some unknowns - sum of others <= high` over unknowns that are not negative. Every
//! equation tightens the bounds of its unknowns by those of the others, until nothing moves. The bounds are always true
//! (propagation is sound); for two-way tables, which is what endpoints that share a group of policies amount to, they
//! are also as tight as the numbers allow.

/// No upper bound. Far below the range of `i128`, so that sums of many stay in it.
pub(crate) const UNBOUNDED: i128 = 1 << 100;

/// How often all equations are gone through before what is known by then is taken. Stopping early loses tightness,
/// never truth.
const ROUNDS: usize = 64;

/// `low <= sum of plus - sum of minus <= high`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sum {
    /// Indices of the unknowns that are added.
    pub(crate) plus: Vec<usize>,
    /// Indices of the unknowns that are subtracted.
    pub(crate) minus: Vec<usize>,
    pub(crate) low: i128,
    pub(crate) high: i128,
}

/// Bounds of one unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) low: i128,
    pub(crate) high: i128,
}

impl Bounds {
    /// Anything from nothing to so much.
    pub(crate) fn up_to(high: i128) -> Self {
        Self { low: 0, high: high.clamp(0, UNBOUNDED) }
    }
}

/// The equations contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contradiction;

/// Tightens the bounds of all unknowns by all sums.
pub(crate) fn tighten(mut unknowns: Vec<Bounds>, sums: &[Sum]) -> Result<Vec<Bounds>, Contradiction> {
    for _ in 0..ROUNDS {
        let mut moved = false;
        for sum in sums {
            moved |= tighten_by(&mut unknowns, sum)?;
        }
        if !moved {
            break;
        }
    }
    Ok(unknowns)
}

fn tighten_by(unknowns: &mut [Bounds], sum: &Sum) -> Result<bool, Contradiction> {
    let total = |terms: &[usize], end: fn(&Bounds) -> i128| -> i128 {
        terms.iter().map(|&term| end(&unknowns[term])).sum()
    };
    let least = total(&sum.plus, |b| b.low) - total(&sum.minus, |b| b.high);
    let most = total(&sum.plus, |b| b.high) - total(&sum.minus, |b| b.low);
    if least > sum.high || most < sum.low {
        return Err(Contradiction);
    }
    // How much the sum can still grow or shrink is how far each single unknown can move.
    let (room_up, room_down) = (sum.high - least, most - sum.low);
    let mut moved = false;
    for (&term, added) in sum.plus.iter().map(|t| (t, true)).chain(sum.minus.iter().map(|t| (t, false))) {
        let old = unknowns[term];
        let (up, down) = if added { (room_up, room_down) } else { (room_down, room_up) };
        let new = Bounds { low: old.low.max(old.high - down), high: old.high.min(old.low + up) };
        moved |= new != old;
        unknowns[term] = new;
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn free(n: usize) -> Vec<Bounds> {
        vec![Bounds::up_to(UNBOUNDED); n]
    }

    fn exactly(plus: &[usize], value: i128) -> Sum {
        Sum { plus: plus.to_vec(), minus: vec![], low: value, high: value }
    }

    fn lows(bounds: &[Bounds]) -> Vec<i128> {
        bounds.iter().map(|b| b.low).collect()
    }

    #[test]
    fn one_member_that_moved_takes_all() {
        // Two endpoints (rows) share a group of two members (columns); only the first member moved.
        let sums = [exactly(&[0, 1], 3), exactly(&[2, 3], 5), exactly(&[0, 2], 8), exactly(&[1, 3], 0)];
        assert_eq!(lows(&tighten(free(4), &sums).unwrap()), [3, 0, 5, 0]);
    }

    #[test]
    fn what_is_open_stays_open() {
        let sums = [exactly(&[0, 1], 3), exactly(&[2, 3], 5), exactly(&[0, 2], 4), exactly(&[1, 3], 4)];
        let bounds = tighten(free(4), &sums).unwrap();
        assert_eq!(bounds[0], Bounds { low: 0, high: 3 });
        assert_eq!(bounds[2], Bounds { low: 1, high: 4 });
    }

    #[test]
    fn what_is_subtracted_counts_the_other_way() {
        // x0 - x1 = 2 and x1 is between 1 and 3.
        let difference = Sum { plus: vec![0], minus: vec![1], low: 2, high: 2 };
        let between = Sum { plus: vec![1], minus: vec![], low: 1, high: 3 };
        let bounds = tighten(free(2), &[difference, between]).unwrap();
        assert_eq!(bounds, [Bounds { low: 3, high: 5 }, Bounds { low: 1, high: 3 }]);
    }

    #[test]
    fn sums_that_cannot_be_are_found() {
        assert_eq!(tighten(free(1), &[exactly(&[0], 1), exactly(&[0], 2)]), Err(Contradiction));
        assert_eq!(tighten(free(0), &[exactly(&[], 1)]), Err(Contradiction));
    }

    proptest! {
        /// Whatever the true table, its cells lie within the bounds that its margins give.
        #[test]
        fn truth_lies_within(cells in proptest::collection::vec(0i128..50, 12)) {
            let mut sums = Vec::new();
            for row in 0..3 {
                let terms: Vec<_> = (0..4).map(|column| row * 4 + column).collect();
                let value = terms.iter().map(|&t| cells[t]).sum();
                sums.push(exactly(&terms, value));
            }
            for column in 0..4 {
                let terms: Vec<_> = (0..3).map(|row| row * 4 + column).collect();
                let value = terms.iter().map(|&t| cells[t]).sum();
                sums.push(exactly(&terms, value));
            }
            let difference = cells[0] + cells[5] - cells[7];
            sums.push(Sum { plus: vec![0, 5], minus: vec![7], low: difference, high: difference });
            let bounds = tighten(free(12), &sums).unwrap();
            for (cell, bounds) in cells.iter().zip(bounds) {
                prop_assert!(bounds.low <= *cell && *cell <= bounds.high);
            }
        }
    }
}
