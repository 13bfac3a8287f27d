use super::*;
use crate::random::Random;

const SECOND: u64 = 1_000_000;

#[test]
fn a_share_of_the_requests_and_so_many_a_second() {
    let budget = RetryBudget::new(2);
    let settings = BudgetSettings { share: 20, min_per_second: 3 };
    for time in [0, 7 * SECOND] {
        (0..50).for_each(|index| budget.request(index % 2, time));
        assert_eq!((0..100).filter(|_| budget.take(&settings, time)).count(), 10 + 3);
        assert!(!budget.take(&settings, time + 900_000));
        assert!(budget.take(&settings, time + 2 * SECOND));
    }
    let nothing = BudgetSettings { share: 0, min_per_second: 0 };
    assert!(!RetryBudget::new(1).take(&nothing, 0));
}

/// Cores that share a budget under changing load, each with a clock that lags a little.
///
/// The law: in any second, wherever it begins, `retries <= share * requests + min_per_second`.
fn simulate(seed: u64) -> (usize, usize) {
    let mut random = Random(seed);
    let cores = 1 + random.below(4) as usize;
    let settings = BudgetSettings { share: random.below(101) as u8, min_per_second: random.below(20) as u32 };
    let budget = RetryBudget::new(cores);
    let mut now = random.below(1_000 * SECOND);
    let (mut requests, mut retries, mut denied) = (Vec::new(), Vec::new(), 0);
    let (mut pause, mut failing) = (1, 50);
    for _ in 0..2_000 {
        if random.below(100) == 0 {
            (pause, failing) = (1 + random.below(100_000), random.below(101));
        }
        now += random.below(pause);
        let core = random.below(cores as u64) as usize;
        if random.below(100) < failing {
            match budget.take(&settings, now) {
                true => retries.push(now),
                false => denied += 1,
            }
        } else {
            budget.request(core, now);
            requests.push(now);
        }
    }
    // The worst second ends with a retry.
    for (index, end) in retries.iter().enumerate() {
        let begin = (end + 1).saturating_sub(SECOND);
        let made = retries[..=index].iter().filter(|at| **at >= begin).count() as u64;
        let asked = requests.iter().filter(|at| (begin..=*end).contains(*at)).count() as u64;
        let allowed = asked * u64::from(settings.share) / 100 + u64::from(settings.min_per_second);
        assert!(made <= allowed, "seed {seed}: {made} retries in the second up to {end}, {allowed} were allowed");
    }
    (retries.len(), denied)
}

#[test]
fn simulated_cores_keep_the_law() {
    let sums = (0..2_000).map(simulate).fold((0, 0), |sums, seen| (sums.0 + seen.0, sums.1 + seen.1));
    assert!(sums.0 > 100_000 && sums.1 > 100_000, "{sums:?}");
}

#[test]
fn threads_together_do_not_take_more() {
    let budget = RetryBudget::new(4);
    let settings = BudgetSettings { share: 10, min_per_second: 5 };
    (0..1_000).for_each(|index| budget.request(index % 4, 0));
    let taken: usize = std::thread::scope(|scope| {
        let take = || (0..10_000).filter(|_| budget.take(&settings, 0)).count();
        let threads = [(); 4].map(|()| scope.spawn(take));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(taken <= 105, "{taken}");
    assert!(taken >= 102, "{taken}: at most one for each other thread is lost at the end");
}

#[test]
fn a_backoff_grows_to_its_bound() {
    let longest = |retry| {
        backoff_us(25_000, 250_000, retry, 0)
            .max((0..2_000).map(|random| backoff_us(25_000, 250_000, retry, random * 7_919)).max().unwrap())
    };
    assert!((24_000..=25_000).contains(&longest(0)) && (49_000..=50_000).contains(&longest(1)));
    assert!((240_000..=250_000).contains(&longest(9)) && (240_000..=250_000).contains(&longest(u32::MAX)));
    assert_eq!(backoff_us(0, 0, 5, u64::MAX), 0);
}
