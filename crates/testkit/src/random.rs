//! Random numbers that can be had again: the seed is printed, and taken from HERALD_TEST_SEED.

/// A small generator (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    #[expect(clippy::new_without_default, reason = "two of them are never equal")]
    /// With a new seed, or the one that was asked for.
    pub fn new() -> Self {
        Self::from_seed(Self::seed())
    }

    /// With this seed.
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed, printed so that the run can be repeated.
    pub fn seed() -> u64 {
        let given = std::env::var("HERALD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0);
        println!("HERALD_TEST_SEED={seed}");
        seed
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below this one.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
