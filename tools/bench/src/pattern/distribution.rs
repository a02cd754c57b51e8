//! Random units, some more often than others.

use crate::random::{Random, mix};
use crate::settings::Distribution;

/// Terms of the zeta function that are added one by one; the rest is the integral.
const EXACT_TERMS: u64 = 1 << 20;

/// A distribution over so many units.
pub struct Skew {
    shape: Shape,
    units: u64,
}

enum Shape {
    Uniform,
    Zipf(Zipf),
    /// The exponent.
    Pareto(f64),
}

/// Gray et al., "Quickly generating billion-record synthetic databases", SIGMOD 1994.
struct Zipf {
    theta: f64,
    zeta: f64,
    eta: f64,
}

impl Skew {
    /// A distribution over `units` (at least one).
    pub fn new(distribution: Distribution, units: u64) -> Skew {
        let units = units.max(1);
        let shape = match distribution {
            Distribution::Uniform => Shape::Uniform,
            Distribution::Zipf(theta) => Shape::Zipf(Zipf::new(theta, units)),
            Distribution::Pareto(power) => Shape::Pareto(power.ln() / (1.0 - power).ln()),
        };
        Skew { shape, units }
    }

    /// The next unit. The frequent ones are scattered over all.
    pub fn next(&self, random: &mut Random) -> u64 {
        let rank = match &self.shape {
            Shape::Uniform => return random.below(self.units),
            Shape::Zipf(zipf) => zipf.rank(random.fraction(), self.units),
            Shape::Pareto(exponent) => ((self.units - 1) as f64 * random.fraction().powf(*exponent)) as u64,
        };
        mix(rank) % self.units
    }
}

impl Zipf {
    fn new(theta: f64, units: u64) -> Zipf {
        let zeta = zeta(units, theta);
        let eta = (1.0 - (2.0 / units as f64).powf(1.0 - theta)) / (1.0 - zeta_of_two(theta) / zeta);
        Zipf { theta, zeta, eta }
    }

    /// The rank, from 0, that a number in [0, 1) stands for.
    fn rank(&self, fraction: f64, units: u64) -> u64 {
        let scaled = fraction * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < zeta_of_two(self.theta) {
            return 1.min(units - 1);
        }
        let rank = units as f64 * (self.eta * fraction - self.eta + 1.0).powf(1.0 / (1.0 - self.theta));
        (rank as u64).min(units - 1)
    }
}

fn zeta_of_two(theta: f64) -> f64 {
    1.0 + 0.5_f64.powf(theta)
}

fn zeta(units: u64, theta: f64) -> f64 {
    let exact: f64 = (1..=units.min(EXACT_TERMS)).map(|rank| (rank as f64).powf(-theta)).sum();
    let integral = |to: f64| to.powf(1.0 - theta) / (1.0 - theta);
    match units > EXACT_TERMS {
        true => exact + integral(units as f64) - integral(EXACT_TERMS as f64),
        false => exact,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Share of the accesses that the most frequent tenth of the units gets.
    fn share_of_tenth(distribution: Distribution) -> f64 {
        let units = 1000;
        let skew = Skew::new(distribution, units);
        let mut random = Random::new(3, 0);
        let mut counts = vec![0_u32; units as usize];
        for _ in 0..100_000 {
            counts[skew.next(&mut random) as usize] += 1;
        }
        counts.sort_unstable_by(|left, right| right.cmp(left));
        f64::from(counts[..100].iter().sum::<u32>()) / 100_000.0
    }

    #[test]
    fn skewed_distributions_are_as_skewed_as_asked() {
        assert!((0.10..0.14).contains(&share_of_tenth(Distribution::Uniform)));
        assert!((0.55..0.75).contains(&share_of_tenth(Distribution::Zipf(0.9))));
        assert!(share_of_tenth(Distribution::Zipf(1.2)) > 0.85);
        // Of a pareto with h = 0.1 a tenth of the units gets nine tenths.
        assert!((0.86..0.96).contains(&share_of_tenth(Distribution::Pareto(0.1))));
    }

    #[test]
    fn one_unit_is_enough() {
        for distribution in [Distribution::Uniform, Distribution::Zipf(1.1), Distribution::Pareto(0.2)] {
            assert_eq!(Skew::new(distribution, 1).next(&mut Random::new(1, 1)), 0);
        }
    }

    #[test]
    fn the_integral_continues_the_sum() {
        let exact: f64 = (1..=2 * EXACT_TERMS).map(|rank| (rank as f64).powf(-1.1)).sum();
        assert!((zeta(2 * EXACT_TERMS, 1.1) / exact - 1.0).abs() < 1e-6);
    }
}
