//! Which configuration a worker starts with: the one its master read last, told from the master's signals and children.
//!
//! nginx's master reads its files on SIGHUP alone, and forks its workers anew from what it has read; a worker that
//! crashed is replaced from the same memory, whatever the files say by then (`ngx_master_process_cycle()`, 1.0 to
//! 1.29). A reload that fails leaves everything as it was and says why at level `emerg`.

use std::collections::VecDeque;

use crate::event::Ktime;

/// A lost worker is replaced this soon unless its master is reading files.
const REPLACED_WITHIN: u64 = 100_000_000;
/// A signal that comes this soon after another one finds the master still asleep: the two are one reload.
const ONE_SIGNAL: u64 = 5_000_000;
/// A master lets its new workers start for 100 ms (`ngx_msleep(100)`) before it looks at its signals again.
const GENERATION_APART: u64 = 90_000_000;

/// A reload of which no worker was seen yet.
#[derive(Debug)]
struct Asked<C> {
    at: Ktime,
    config: C,
    has_complained: bool,
}

/// What one master was told and has yet to do, with the configuration `C` as the files said it when it was told.
#[derive(Debug, Default)]
pub struct Reloads<C> {
    /// The reload under way, and the one that waits: further signals are one with that.
    asked: VecDeque<Asked<C>>,
    n_to_replace: u32,
    lost_at: Ktime,
    forked_at: Ktime,
    /// When the generation that was started last began.
    began_at: Ktime,
}

impl<C> Reloads<C> {
    /// The master got SIGHUP.
    pub fn ask(&mut self, at: Ktime, config: C) {
        // A reload that failed is over.
        if self.asked.front().is_some_and(|asked| asked.has_complained) {
            self.asked.pop_front();
        }
        let is_one = self.asked.len() > 1
            || self
                .asked
                .back()
                .is_some_and(|before| at.since(before.at) < ONE_SIGNAL);
        if is_one {
            self.asked.pop_back();
        }
        self.asked.push_back(Asked {
            at,
            config,
            has_complained: false,
        });
    }

    /// The master said something at level `emerg`.
    pub fn complain(&mut self) {
        if self.asked.len() > 1 {
            self.asked.pop_front();
        } else if let Some(asked) = self.asked.front_mut() {
            asked.has_complained = true;
        }
    }

    /// A worker of the present generation ended, as nobody asked it to.
    pub fn lose_worker(&mut self, at: Ktime) {
        self.n_to_replace += 1;
        self.lost_at = at;
    }

    /// The master forked a worker: the configuration that begins with it, if one does.
    pub fn fork(&mut self, at: Ktime) -> Option<C> {
        let replaces = self.n_to_replace > 0;
        self.n_to_replace = self.n_to_replace.saturating_sub(1);
        let before = std::mem::replace(&mut self.forked_at, at);
        let asked = self.asked.front()?;
        // A master that reads files replaces nobody; before that it does so at once.
        let lost_just_before = self.lost_at <= asked.at && asked.at.since(self.lost_at) < REPLACED_WITHIN;
        let replaces = replaces && (asked.has_complained || lost_just_before);
        // Another worker of the generation that is being started.
        let continues =
            self.began_at > Ktime(0) && before >= self.began_at && at.since(before) < GENERATION_APART;
        if replaces || continues {
            return None;
        }
        self.n_to_replace = 0;
        self.began_at = at;
        self.asked.pop_front().map(|asked| asked.config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn at(ms: u64) -> Ktime {
        Ktime(1_000_000_000 + ms * MS)
    }

    #[test]
    fn the_first_worker_after_a_reload_begins_a_generation() {
        let mut reloads = Reloads::default();
        assert_eq!(reloads.fork(at(0)), None);
        reloads.ask(at(10), "new");
        assert_eq!(reloads.fork(at(20)), Some("new"));
        assert_eq!(reloads.fork(at(21)), None);
    }

    #[test]
    fn signals_to_a_sleeping_master_are_one_reload() {
        let mut reloads = Reloads::default();
        reloads.ask(at(0), "new");
        reloads.ask(at(1), "newer");
        assert_eq!(reloads.fork(at(30)), Some("newer"));
        assert_eq!(reloads.fork(at(200)), None);
    }

    #[test]
    fn a_signal_to_a_master_that_reads_or_forks_is_another_reload() {
        let mut reloads = Reloads::default();
        reloads.ask(at(0), "slow");
        reloads.ask(at(1_000), "never read");
        reloads.ask(at(1_500), "last");
        assert_eq!(reloads.fork(at(2_000)), Some("slow"));
        // Its second worker, and then the next generation.
        assert_eq!(reloads.fork(at(2_010)), None);
        assert_eq!(reloads.fork(at(2_200)), Some("last"));
        assert_eq!(reloads.fork(at(2_201)), None);
        // Between two workers of one generation.
        reloads.ask(at(5_000), "one");
        assert_eq!(reloads.fork(at(5_010)), Some("one"));
        reloads.ask(at(5_011), "two");
        assert_eq!(reloads.fork(at(5_012)), None);
        assert_eq!(reloads.fork(at(5_150)), Some("two"));
    }

    #[test]
    fn a_replacement_begins_none() {
        let mut reloads = Reloads::default();
        reloads.lose_worker(at(0));
        assert_eq!(reloads.fork(at(1)), None);
        reloads.lose_worker(at(1_000));
        reloads.ask(at(1_001), "new");
        assert_eq!(reloads.fork(at(1_002)), None);
        assert_eq!(reloads.fork(at(1_100)), Some("new"));
    }

    #[test]
    fn a_worker_that_crashes_while_files_are_read_is_not_replaced() {
        let mut reloads = Reloads::default();
        reloads.ask(at(0), "new");
        reloads.lose_worker(at(10));
        assert_eq!(reloads.fork(at(300)), Some("new"));
        assert_eq!(reloads.fork(at(301)), None);
    }

    #[test]
    fn a_failed_reload_leaves_replacements_as_they_were() {
        let mut reloads = Reloads::default();
        reloads.ask(at(0), "broken");
        reloads.complain();
        for n in 1..5 {
            reloads.lose_worker(at(60_000 * n));
            assert_eq!(reloads.fork(at(60_000 * n + 1)), None);
        }
        reloads.ask(at(300_000), "mended");
        assert_eq!(reloads.fork(at(300_020)), Some("mended"));
        // The one that waited behind a failed one is read.
        reloads.ask(at(400_000), "broken");
        reloads.ask(at(400_100), "mended again");
        reloads.complain();
        assert_eq!(reloads.fork(at(400_200)), Some("mended again"));
    }

    #[test]
    fn an_old_worker_that_crashed_unreplaced_is_forgotten() {
        let mut reloads = Reloads::default();
        reloads.lose_worker(at(0));
        reloads.ask(at(5_000), "new");
        assert_eq!(reloads.fork(at(5_010)), Some("new"));
    }
}
