//! Which configuration a worker starts with: the one its master read last, told from the master's signals and children.
//!
//! nginx's master reads its files on SIGHUP alone, and forks its workers anew from what it has read; a worker that
//! crashed is replaced from the same memory, whatever the files say by then (`ngx_master_process_cycle()`, 1.0 to
//! 1.29). A reload that fails leaves everything as it was and says why at level `emerg`.

use crate::event::Ktime;

/// A crashed worker is replaced this soon unless its master is reading files.
const REPLACED_WITHIN: u64 = 100_000_000;

/// A reload of which no worker was seen yet.
#[derive(Debug)]
struct Asked<C> {
    at: Ktime,
    config: C,
    has_complained: bool,
}

/// What one master was told and has yet to do, with the configuration `C` as the files said it when it was told.
#[derive(Debug)]
pub struct Reloads<C> {
    asked: Option<Asked<C>>,
    n_to_replace: u32,
    lost_at: Ktime,
}

impl<C> Default for Reloads<C> {
    fn default() -> Self {
        Self {
            asked: None,
            n_to_replace: 0,
            lost_at: Ktime(0),
        }
    }
}

impl<C> Reloads<C> {
    /// The master got SIGHUP.
    pub fn ask(&mut self, at: Ktime, config: C) {
        self.asked = Some(Asked {
            at,
            config,
            has_complained: false,
        });
    }

    /// The master said something at level `emerg`.
    pub fn complain(&mut self) {
        if let Some(asked) = &mut self.asked {
            asked.has_complained = true;
        }
    }

    /// A worker of the present generation ended, as nobody asked it to.
    pub fn lose_worker(&mut self, at: Ktime) {
        self.n_to_replace += 1;
        self.lost_at = at;
    }

    /// The master forked a worker: the configuration that begins with it, if one does.
    pub fn fork(&mut self) -> Option<C> {
        let replaces = self.n_to_replace > 0;
        self.n_to_replace = self.n_to_replace.saturating_sub(1);
        let asked = self.asked.as_ref()?;
        // A master that reads files replaces nobody; before that it does so at once.
        let lost_just_before = self.lost_at <= asked.at && asked.at.since(self.lost_at) < REPLACED_WITHIN;
        if replaces && (asked.has_complained || lost_just_before) {
            return None;
        }
        self.n_to_replace = 0;
        self.asked.take().map(|asked| asked.config)
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
        assert_eq!(reloads.fork(), None);
        reloads.ask(at(0), "new");
        assert_eq!(reloads.fork(), Some("new"));
        assert_eq!(reloads.fork(), None);
    }

    #[test]
    fn of_two_reloads_at_once_the_last_one_counts() {
        let mut reloads = Reloads::default();
        reloads.ask(at(0), "new");
        reloads.ask(at(1), "newer");
        assert_eq!(reloads.fork(), Some("newer"));
        reloads.ask(at(2), "newest");
        assert_eq!(reloads.fork(), Some("newest"));
    }

    #[test]
    fn a_replacement_begins_none() {
        let mut reloads = Reloads::default();
        reloads.lose_worker(at(0));
        assert_eq!(reloads.fork(), None);
        reloads.lose_worker(at(10));
        reloads.ask(at(11), "new");
        assert_eq!(reloads.fork(), None);
        assert_eq!(reloads.fork(), Some("new"));
    }

    #[test]
    fn a_worker_that_crashes_while_files_are_read_is_not_replaced() {
        let mut reloads = Reloads::default();
        reloads.ask(at(0), "new");
        reloads.lose_worker(at(10));
        assert_eq!(reloads.fork(), Some("new"));
        assert_eq!(reloads.fork(), None);
    }

    #[test]
    fn a_failed_reload_leaves_replacements_as_they_were() {
        let mut reloads = Reloads::default();
        reloads.ask(at(0), "broken");
        reloads.complain();
        for n in 0..4 {
            reloads.lose_worker(at(60_000 * n));
            assert_eq!(reloads.fork(), None);
        }
        reloads.ask(at(300_000), "mended");
        assert_eq!(reloads.fork(), Some("mended"));
    }

    #[test]
    fn an_old_worker_that_crashed_unreplaced_is_forgotten() {
        let mut reloads = Reloads::default();
        reloads.lose_worker(at(0));
        reloads.ask(at(5_000), "new");
        assert_eq!(reloads.fork(), Some("new"));
    }
}
