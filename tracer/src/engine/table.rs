//! Tables that cannot grow without end: bounded by count and by age on the input clock, oldest out first.
//!
//! Ageing out is no loss; being pushed out by newer entries before it was of use is, and is counted.

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
    by_key: HashMap<K, VecDeque<Held<V>>>,
    capacity: usize,
    keep: u64,
    evicted: u64,
}

#[derive(Debug)]
struct Held<V> {
    value: V,
    /// It has done its work: when it is pushed out nothing is lost.
    is_spent: bool,
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
            let is_lost = self.pop_oldest().is_some_and(|held| !held.is_spent);
            self.evicted += u64::from(is_lost);
        }
        self.order.push_back((now, key.clone()));
        let held = Held {
            value,
            is_spent: false,
        };
        self.by_key.entry(key).or_default().push_back(held);
    }

    /// The values of one key, oldest first.
    pub fn get<'a>(&'a self, key: &K) -> impl DoubleEndedIterator<Item = &'a V> + use<'a, K, V> {
        self.by_key.get(key).into_iter().flatten().map(|held| &held.value)
    }

    /// The values of one key, oldest first, to be changed in place.
    pub fn get_mut(&mut self, key: &K) -> impl Iterator<Item = &mut V> {
        let held = self.by_key.get_mut(key).into_iter().flatten();
        held.map(|held| &mut held.value)
    }

    /// The newest value of one key.
    pub fn last(&self, key: &K) -> Option<&V> {
        self.by_key.get(key)?.back().map(|held| &held.value)
    }

    /// The newest value of one key, to be changed in place.
    pub fn last_mut(&mut self, key: &K) -> Option<&mut V> {
        self.by_key.get_mut(key)?.back_mut().map(|held| &mut held.value)
    }

    /// The values of one key that `are_used` have done their work; they are still there.
    pub fn spend(&mut self, key: &K, are_used: impl Fn(&V) -> bool) {
        for held in self.by_key.get_mut(key).into_iter().flatten() {
            held.is_spent |= are_used(&held.value);
        }
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

    /// Drops the values of one key: what they tell of is over.
    pub fn forget(&mut self, key: &K) {
        if self.by_key.remove(key).is_some() {
            self.order.retain(|(_, other)| other != key);
        }
    }

    /// How many values were pushed out before their time and unused since this was last asked.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// How many values it holds.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    fn pop_oldest(&mut self) -> Option<Held<V>> {
        let (_, key) = self.order.pop_front()?;
        let values = self.by_key.get_mut(&key)?;
        let oldest = values.pop_front();
        if values.is_empty() {
            self.by_key.remove(&key);
        }
        oldest
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
    fn what_has_done_its_work_is_no_loss() {
        let mut table = Keyed::new(2, 100);
        table.push(Ktime(1), 'a', 1);
        table.push(Ktime(2), 'a', 2);
        table.spend(&'a', |value| *value == 1);
        table.push(Ktime(3), 'b', 3);
        assert_eq!(table.take_evicted(), 0);
        table.push(Ktime(4), 'b', 4);
        assert_eq!(table.take_evicted(), 1);
    }

    #[test]
    fn what_is_forgotten_leaves_later_values_of_its_key_alone() {
        let mut table = Keyed::new(2, 100);
        table.push(Ktime(1), 'a', 1);
        table.forget(&'a');
        table.push(Ktime(2), 'a', 2);
        table.push(Ktime(3), 'b', 3);
        assert_eq!((table.last(&'a'), table.len()), (Some(&2), 2));
        assert_eq!(table.take_evicted(), 0);
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
