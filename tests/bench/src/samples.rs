//! Repetitions, and what to make of them on a noisy machine.

use crate::cost::Cost;
use anyhow::Result;

/// Several values of one thing: their median, and the quartiles around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Summary {
    /// Of a value that is what it is.
    pub(crate) fn exact(value: f64) -> Self {
        Self { median: value, low: value, high: value }
    }

    /// Of several values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let at = |quarter: usize| {
            let last = values.len().saturating_sub(1);
            let (below, above) = (last * quarter / 4, (last * quarter).div_ceil(4));
            match (values.get(below), values.get(above)) {
                (Some(below), Some(above)) => f64::midpoint(*below, *above),
                _ => f64::NAN,
            }
        };
        Self { median: at(2), low: at(1), high: at(3) }
    }
}

/// What one contender's repetitions cost, in the order of the rounds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs(pub(crate) Vec<Cost>);

impl Costs {
    /// Milliseconds on the wall.
    pub(crate) fn wall(&self) -> Vec<f64> {
        self.0.iter().map(|cost| cost.wall.as_secs_f64() * 1e3).collect()
    }

    /// Milliseconds of processor time.
    pub(crate) fn cpu(&self) -> Vec<f64> {
        self.0.iter().map(|cost| cost.cpu.as_secs_f64() * 1e3).collect()
    }
}

/// How many times as much as the other, round by round: what slows a whole round down does not show.
pub(crate) fn ratio(one: &[f64], other: &[f64]) -> f64 {
    Summary::of(one.iter().zip(other).map(|(one, other)| one / other)).median
}

/// Something to be measured in turns with others.
pub(crate) type Contender<'a> = Box<dyn FnMut() -> Result<Cost> + 'a>;

/// Lets all take turns. Who begins changes from round to round, and so does the direction, so that nobody always finds
/// the caches as the same other left them.
pub(crate) fn take_turns<const N: usize>(mut all: [Contender<'_>; N], rounds: usize) -> Result<[Costs; N]> {
    let mut costs = std::array::from_fn(|_| Costs::default());
    for contender in &mut all {
        // Buffers grow to their size, and programs come into memory.
        contender()?;
    }
    for round in 0..rounds {
        for turn in 0..N {
            let next = if round % 2 == 0 { (round + turn) % N } else { (round + N - turn) % N };
            costs[next].0.push(all[next]()?);
        }
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_and_quartiles() {
        assert_eq!(Summary::of([3.0, 1.0, 2.0, 5.0, 4.0]), Summary { median: 3.0, low: 2.0, high: 4.0 });
        assert_eq!(Summary::of([1.0, 2.0]).median, 1.5);
        assert_eq!(Summary::of([7.0]), Summary::exact(7.0));
    }

    #[test]
    fn a_ratio_is_that_of_the_rounds() {
        assert_eq!(ratio(&[2.0, 200.0, 4.0], &[1.0, 100.0, 2.0]), 2.0);
    }
}
