//! Tables that cannot grow without end: bounded by count and by age on the input clock, oldest out first.
//!
//! Ageing out is no loss; being pushed out by newer entries is, and is counted.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use crate::event::Ktime;

/// Values by key, several per key, in the order they came.
#[derive(Debug)]
pub struct Keyed<K, V> {
    /// One entry per value, oldest first. The time is the input clock at insertion, so it never goes back.
    order: VecDeque<(Ktime, K)>,
    /// Never iterated: its order is not deterministic.
    by_key: HashMap<K, VecDeque<V>>,
    capacity: usize,
    keep: u64,
    evicted: u64,
}

impl<K: Hash + Eq + Clone, V> Keyed<K, V> {
    /// A table of at most `capacity` values, each kept for `keep` nanoseconds.
    pub fn new(capacity: usize, keep: u64) -> Self {
        Self {
            order: VecDeque::new(),
            by_key: HashMap::new(),
            capacity: capacity.max(1),
            keep,
            evicted: 0,
        }
    }

    /// Adds a value at input time `now`.
    pub fn push(&mut self, now: Ktime, key: K, value: V) {
        self.expire(now);
        if self.order.len() >= self.capacity {
            self.pop_oldest();
            self.evicted += 1;
        }
        self.order.push_back((now, key.clone()));
        self.by_key.entry(key).or_default().push_back(value);
    }

    /// The values of one key, oldest first.
    pub fn get<'a>(&'a self, key: &K) -> impl DoubleEndedIterator<Item = &'a V> + use<'a, K, V> {
        self.by_key.get(key).into_iter().flatten()
    }

    /// The newest value of one key.
    pub fn last(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)?.back()
    }

    /// The newest value of one key, to be changed in place.
    pub fn last_mut(&mut self, key: &K) -> Option<&mut V> {
        self.by_key.get_mut(key)?.back_mut()
    }

    /// Drops what is too old.
    pub fn expire(&mut self, now: Ktime) {
        while self
            .order
            .front()
            .is_some_and(|(at, _)| now.since(*at) > self.keep)
        {
            self.pop_oldest();
        }
    }

    /// How many values were pushed out before their time since this was last asked.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    fn pop_oldest(&mut self) {
        let Some((_, key)) = self.order.pop_front() else {
            return;
        };
        if let Some(values) = self.by_key.get_mut(&key) {
            values.pop_front();
            if values.is_empty() {
                self.by_key.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_forgets_its_oldest_and_counts_it() {
        let mut table = Keyed::new(2, 100);
        table.push(Ktime(1), 'a', 1);
        table.push(Ktime(2), 'b', 2);
        table.push(Ktime(3), 'a', 3);
        assert_eq!(table.get(&'a').copied().collect::<Vec<_>>(), [3]);
        assert_eq!(
            (table.len(), table.take_evicted(), table.take_evicted()),
            (2, 1, 0)
        );
    }

    #[test]
    fn an_old_value_goes_without_being_a_loss() {
        let mut table = Keyed::new(9, 100);
        table.push(Ktime(1), 'a', 1);
        table.expire(Ktime(102));
        assert_eq!((table.last(&'a'), table.len()), (None, 0));
        assert_eq!(table.take_evicted(), 0);
    }
}
