//! Bounds on unknowns from sums that are known.
//!
//! A system of equations `low <= sum of some unknowns <= high` over unknowns that are not negative. Every equation
//! tightens the bounds of its unknowns by those of the others, until nothing moves. The bounds are always true
//! (propagation is sound); for two-way tables, which is what endpoints that share a group of policies amount to, they
//! are also as tight as the numbers allow.

/// No upper bound. Far below the range of `i128`, so that sums of many stay in it.
pub(crate) const UNBOUNDED: i128 = 1 << 100;

/// How often all equations are gone through before what is known by then is taken. Stopping early loses tightness,
/// never truth.
const ROUNDS: usize = 64;

/// `low <= sum of terms <= high`.
#[derive(Clone, Debug)]
pub(crate) struct Sum {
    /// Indices of the unknowns.
    pub(crate) terms: Vec<usize>,
    pub(crate) low: i128,
    pub(crate) high: i128,
}

/// Bounds of one unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) low: i128,
    pub(crate) high: i128,
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
    let low: i128 = sum.terms.iter().map(|&t| unknowns[t].low).sum();
    let high: i128 = sum.terms.iter().map(|&t| unknowns[t].high).sum();
    if low > sum.high || high < sum.low {
        return Err(Contradiction);
    }
    let mut moved = false;
    for &term in &sum.terms {
        let old = unknowns[term];
        let new = Bounds {
            low: old.low.max(sum.low - (high - old.high)),
            high: old.high.min(sum.high - (low - old.low)),
        };
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
        vec![Bounds { low: 0, high: UNBOUNDED }; n]
    }

    fn exactly(terms: &[usize], value: i128) -> Sum {
        Sum { terms: terms.to_vec(), low: value, high: value }
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
            let bounds = tighten(free(12), &sums).unwrap();
            for (cell, bounds) in cells.iter().zip(bounds) {
                prop_assert!(bounds.low <= *cell && *cell <= bounds.high);
            }
        }
    }
}
