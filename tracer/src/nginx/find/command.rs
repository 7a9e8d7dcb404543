//! How an nginx was started, and what it does, from its arguments: raw ones, or the title it wrote over them.

/// The options that matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// `-c`: the main configuration file.
    pub conf: Option<String>,
    /// `-p`: the prefix.
    pub prefix: Option<String>,
    /// `-e`: the error log used when the configuration names none.
    pub error_log: Option<String>,
    /// `-g`: directives in front of the configuration file.
    pub directives: Option<String>,
    /// `-t`, `-T`, `-s`, `-v`, `-V`, `-h`: it tests, signals or prints, and ends.
    pub is_one_shot: bool,
}

/// What a process's arguments say it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Title {
    /// `nginx: master process …` with the arguments it was started with.
    Master(Command),
    /// `nginx: worker process`.
    Worker,
    /// `nginx: worker process is shutting down`.
    OldWorker,
    /// `nginx: cache manager process` and the like.
    Helper,
    /// Untouched arguments: `master_process off`, a one-shot, or an nginx that has just begun.
    Plain(Command),
}

impl Title {
    /// Reads `/proc/PID/cmdline`.
    #[must_use]
    pub fn parse(arguments: &[u8]) -> Self {
        let words: Vec<String> = arguments
            .split(|&byte| byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        // A title is one text with NUL bytes behind it. `argv[0]` of an untouched process has no such form.
        let title = words.first().and_then(|first| first.split_once(": "));
        let Some((_, role)) = title.filter(|(_, role)| role.contains(" process")) else {
            // The last argument ends with a NUL byte as well.
            let last = words
                .len()
                .saturating_sub(usize::from(arguments.ends_with(b"\0")));
            return Self::Plain(Command::from_arguments(&words[..last]));
        };
        if let Some(started_as) = role.strip_prefix("master process") {
            Self::Master(Command::from_title(started_as))
        } else if role.starts_with("worker process is shutting down") {
            Self::OldWorker
        } else if let Some(rest) = role.strip_prefix("worker process") {
            match rest.contains("shutting down") {
                true => Self::OldWorker,
                false => Self::Worker,
            }
        } else {
            Self::Helper
        }
    }

    /// It only tests, signals or prints.
    #[must_use]
    pub fn is_one_shot(&self) -> bool {
        matches!(self, Self::Plain(command) if command.is_one_shot)
    }
}

impl Command {
    /// From arguments as they were given, the program's name first.
    #[must_use]
    pub fn from_arguments(words: &[String]) -> Self {
        let mut command = Self::default();
        let mut words = words.iter().skip(1);
        while let Some(word) = words.next() {
            let Some(letters) = word.strip_prefix('-') else {
                continue;
            };
            for (at, letter) in letters.char_indices() {
                if !command.is_valued(letter) {
                    continue;
                }
                // The value is the rest of the word, or the next one.
                let rest = &letters[at + 1..];
                let value = match rest {
                    "" => words.next().cloned(),
                    _ => Some(rest.to_owned()),
                };
                command.set(letter, value);
                break;
            }
        }
        command
    }

    /// From a master's title, where the arguments stand joined by single spaces: a value reaches to the next option,
    /// since nginx takes no arguments but options.
    fn from_title(started_as: &str) -> Self {
        // Angie: ` v1.13.0 #1 [/usr/sbin/angie -c …]`.
        let started_as = match (started_as.find('['), started_as.ends_with(']')) {
            (Some(at), true) => &started_as[at + 1..started_as.len() - 1],
            _ => started_as,
        };
        let is_option = |word: &str| {
            let mut letters = word.chars();
            letters.next() == Some('-')
                && letters
                    .next()
                    .is_some_and(|letter| "?hvVtTqsgcpe".contains(letter))
        };
        let mut words: Vec<String> = Vec::new();
        for word in started_as.trim().split(' ') {
            match words.last_mut() {
                // The word after a lone option is its value whatever it looks like.
                Some(last) if last.len() > 2 && last.starts_with('-') && !is_option(word) => {
                    last.push(' ');
                    last.push_str(word);
                }
                Some(last) if last.len() == 2 && is_option(last) && "gcpes".contains(&last[1..]) => {
                    last.push_str(word)
                }
                _ => words.push(word.to_owned()),
            }
        }
        Self::from_arguments(&words)
    }

    /// Notes an option; whether it takes a value.
    fn is_valued(&mut self, letter: char) -> bool {
        match letter {
            '?' | 'h' | 'v' | 'V' | 't' | 'T' => {
                self.is_one_shot = true;
                false
            }
            'c' | 'p' | 'e' | 'g' | 's' => true,
            _ => false,
        }
    }

    fn set(&mut self, letter: char, value: Option<String>) {
        match letter {
            'c' => self.conf = value,
            'p' => self.prefix = value,
            'e' => self.error_log = value,
            'g' => self.directives = value,
            _ => self.is_one_shot = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(
        conf: Option<&str>,
        prefix: Option<&str>,
        error_log: Option<&str>,
        directives: Option<&str>,
    ) -> Command {
        Command {
            conf: conf.map(str::to_owned),
            prefix: prefix.map(str::to_owned),
            error_log: error_log.map(str::to_owned),
            directives: directives.map(str::to_owned),
            is_one_shot: false,
        }
    }

    #[test]
    fn titles_name_the_role() {
        let cases: &[(&[u8], Title)] = &[
            (
                b"nginx: master process /usr/sbin/nginx -c /etc/a.conf\0\0\0\0",
                Title::Master(command(Some("/etc/a.conf"), None, None, None)),
            ),
            (
                b"nginx: master process nginx -g daemon off; error_log /x; -p /srv/\0",
                Title::Master(command(
                    None,
                    Some("/srv/"),
                    None,
                    Some("daemon off; error_log /x;"),
                )),
            ),
            (
                b"nginx: master process nginx -c /my conf/a b.conf -e stderr\0",
                Title::Master(command(Some("/my conf/a b.conf"), None, Some("stderr"), None)),
            ),
            (
                b"nginx: master process nginx -c/a.conf -qp/x\0",
                Title::Master(command(Some("/a.conf"), Some("/x"), None, None)),
            ),
            (
                b"angie: master process v1.13.0 #1 [/usr/sbin/angie -c /etc/angie/angie.conf]",
                Title::Master(command(Some("/etc/angie/angie.conf"), None, None, None)),
            ),
            (b"nginx: worker process\0\0", Title::Worker),
            (b"angie: worker process #3\0", Title::Worker),
            (b"nginx: worker process is shutting down\0", Title::OldWorker),
            (b"angie: worker process #3 is shutting down\0", Title::OldWorker),
            (b"nginx: cache manager process\0", Title::Helper),
            (b"nginx: cache loader process\0", Title::Helper),
            (b"nginx: privileged agent process\0", Title::Helper),
            (
                b"nginx\0-g\0master_process off;\0-c\0/a b\0",
                Title::Plain(command(Some("/a b"), None, None, Some("master_process off;"))),
            ),
            (b"", Title::Plain(Command::default())),
        ];
        for (arguments, expected) in cases {
            assert_eq!(
                &Title::parse(arguments),
                expected,
                "{}",
                String::from_utf8_lossy(arguments)
            );
        }
    }

    #[test]
    fn one_shots_are_no_instances() {
        let cases: &[(&[u8], bool)] = &[
            (b"nginx\0-t\0", true),
            (b"nginx\0-T\0-c\0/x\0", true),
            (b"nginx\0-s\0reload\0", true),
            (b"nginx\0-sreload\0", true),
            (b"nginx\0-V\0", true),
            (b"nginx\0-v\0", true),
            (b"nginx\0-tc\0/x\0", true),
            (b"nginx\0-ct\0", false),
            (b"nginx\0-c\0-t\0", false),
            (b"nginx\0-g\0env t;\0", false),
            (b"nginx\0-q\0", false),
            (b"nginx: master process nginx -c /t\0", false),
        ];
        for (arguments, expected) in cases {
            let title = Title::parse(arguments);
            assert_eq!(
                title.is_one_shot(),
                *expected,
                "{}",
                String::from_utf8_lossy(arguments)
            );
        }
    }
}
