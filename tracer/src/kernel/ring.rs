//! Reading the ring: whole records, in order, as many as there are.

use aya::maps::{MapData, RingBuf};

/// The consumer's end of the ring.
pub struct Ring(RingBuf<MapData>);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl Ring {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Hands over at most `limit` records; returns how many.
    pub fn drain(&mut self, limit: usize, mut take: impl FnMut(&[u8])) -> usize {
        let mut n = 0;
        while n < limit
            && let Some(record) = self.0.next()
        {
            take(&record);
            n += 1;
        }
        n
    }
}
