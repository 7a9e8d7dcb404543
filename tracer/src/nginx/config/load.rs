//! Reads a configuration with all its includes into a tree of directives.
//!
//! Everything is bounded: depth, files, bytes, directives. What nginx itself would refuse is a [`Loaded::is_broken`]:
//! the running nginx cannot have loaded this text.

use std::{collections::BTreeSet, fmt, os::unix::ffi::OsStrExt, path::Path, rc::Rc, time::SystemTime};

use crate::{
    host::root::Root,
    nginx::config::lexer::{Item, Lexer, Origin, SyntaxError},
};

/// Files within files; nginx itself knows no limit but that of open files.
const MAX_INCLUDE_DEPTH: u32 = 32;
/// Blocks within blocks, files included.
const MAX_DEPTH: u32 = 128;
const MAX_FILES: usize = 4096;
const MAX_BYTES: u64 = 32 << 20;
const MAX_DIRECTIVES: usize = 200_000;
/// Different values of one `map`, `geo` or `split_clients`.
const MAX_VALUES: usize = 10_000;

/// Where a directive stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as nginx names it.
    pub file: Rc<str>,
    /// The line.
    pub line: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// One directive.
#[derive(Clone, Debug)]
pub struct Directive {
    /// Its name and arguments; never empty.
    pub words: Vec<String>,
    /// What stands in its braces.
    pub block: Option<Block>,
    /// Where it ends.
    pub place: Place,
}

impl Directive {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.words[0]
    }

    /// Its arguments.
    #[must_use]
    pub fn arguments(&self) -> &[String] {
        &self.words[1..]
    }

    /// The directives in its braces; none where it has no such block.
    #[must_use]
    pub fn directives(&self) -> &[Self] {
        match &self.block {
            Some(Block::Directives(directives)) => directives,
            Some(Block::Values { .. } | Block::Lua | Block::Skipped) | None => &[],
        }
    }
}

/// What stands in a directive's braces.
#[derive(Clone, Debug)]
pub enum Block {
    /// Directives.
    Directives(Vec<Directive>),
    /// The different values of a `map`, `geo` or `split_clients`; `is_cut`: there were more than are kept.
    Values {
        /// The values.
        values: BTreeSet<String>,
        /// There were more.
        is_cut: bool,
    },
    /// Lua code.
    Lua,
    /// A table that says nothing about upstreams (`types`, `charset_map`).
    Skipped,
}

/// A configuration as it was read.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The tree, as far as it could be read.
    pub directives: Vec<Directive>,
    /// One line for each thing that could not be read.
    pub problems: Vec<String>,
    /// nginx itself would refuse this.
    pub is_broken: bool,
    /// The youngest change of any file.
    pub modified: Option<(SystemTime, String)>,
}

/// Reads the file `main`, with the directives given with `-g` in front.
#[must_use]
pub fn load(root: &Root, main: &str, command_line: Option<&str>) -> Loaded {
    let mut loader = Loader {
        root,
        directory: match main.rfind('/') {
            Some(at) => &main[..=at],
            None => "",
        },
        loaded: Loaded::default(),
        files: 0,
        bytes: 0,
        directives: 0,
    };
    let mut directives = Vec::new();
    if let Some(text) = command_line {
        let mut lexer = Lexer::new(text.as_bytes(), Origin::CommandLine);
        let place: Rc<str> = "command line (-g)".into();
        directives.extend(loader.directives(&mut lexer, &place, Depth::default()));
    }
    directives.extend(loader.file(main, Depth::default(), None));
    Loaded {
        directives,
        ..loader.loaded
    }
}

/// The tree of one text, without any file; for texts that include nothing.
#[cfg(test)]
pub fn parse(text: &str) -> Loaded {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let main = directory.path().join("nginx.conf");
    std::fs::write(&main, text).expect("a temporary file");
    load(
        &Root::own().expect("the root directory"),
        &main.to_string_lossy(),
        None,
    )
}

#[derive(Clone, Copy, Debug, Default)]
struct Depth {
    blocks: u32,
    files: u32,
}

struct Loader<'a> {
    root: &'a Root,
    /// Of the main file, with a slash behind: what relative includes are counted from.
    directory: &'a str,
    loaded: Loaded,
    files: usize,
    bytes: u64,
    directives: usize,
}

impl Loader<'_> {
    fn problem(&mut self, text: String) {
        self.loaded.problems.push(text);
    }

    /// Notes what nginx would stop at; nothing more is read then.
    fn broken(&mut self, file: &str, error: &SyntaxError) {
        if !self.loaded.is_broken {
            self.loaded.is_broken = true;
            self.problem(format!("{file}:{}: {}", error.line, error.what));
        }
    }

    /// A limit of ours, not nginx's, is reached; what is missing cannot be known, so nothing is built on the rest.
    fn too_much(&mut self, place: &Place, what: &str) {
        if !self.loaded.is_broken {
            self.loaded.is_broken = true;
            self.problem(format!("{place}: {what}"));
        }
    }

    fn file(&mut self, path: &str, depth: Depth, included_at: Option<&Place>) -> Vec<Directive> {
        let Some(text) = self.text(path, included_at) else {
            return vec![];
        };
        let mut lexer = Lexer::new(&text, Origin::File);
        self.directives(&mut lexer, &path.into(), depth)
    }

    fn text(&mut self, path: &str, included_at: Option<&Place>) -> Option<Vec<u8>> {
        self.files += 1;
        if let Some(place) = included_at.filter(|_| self.files > MAX_FILES) {
            self.too_much(place, &format!("more than {MAX_FILES} files are included"));
            return None;
        }
        let read = self.root.read(Path::new(path), MAX_BYTES - self.bytes);
        match read {
            Ok(text) => {
                self.bytes += text.len() as u64;
                if let Ok(modified) = self
                    .root
                    .metadata(Path::new(path))
                    .and_then(|meta| meta.modified())
                    && self
                        .loaded
                        .modified
                        .as_ref()
                        .is_none_or(|(youngest, _)| *youngest < modified)
                {
                    self.loaded.modified = Some((modified, path.to_owned()));
                }
                Some(text)
            }
            Err(error) => {
                let included = included_at.map(|place| format!(" (included at {place})"));
                self.problem(format!(
                    "cannot read {path}{}: {error}",
                    included.unwrap_or_default()
                ));
                None
            }
        }
    }

    /// Everything up to the end of the block, or of the text.
    fn directives(&mut self, lexer: &mut Lexer<'_>, file: &Rc<str>, depth: Depth) -> Vec<Directive> {
        let mut directives = Vec::new();
        while let Some((words, opens_block, place)) = self.statement(lexer, file, depth) {
            self.directives += 1;
            if self.directives > MAX_DIRECTIVES {
                self.too_much(&place, &format!("more than {MAX_DIRECTIVES} directives"));
                break;
            }
            if words[0] == "include" && !opens_block {
                for path in self.included(&words, &place, depth) {
                    let deeper = Depth {
                        files: depth.files + 1,
                        blocks: 0,
                    };
                    directives.extend(self.file(&path, deeper, Some(&place)));
                }
                continue;
            }
            let block = opens_block.then(|| self.block(lexer, &words, &place, depth));
            directives.push(Directive { words, block, place });
        }
        directives
    }

    /// The next statement of a block; `None` at its end, or when nothing more can be read.
    fn statement(
        &mut self,
        lexer: &mut Lexer<'_>,
        file: &Rc<str>,
        depth: Depth,
    ) -> Option<(Vec<String>, bool, Place)> {
        if self.loaded.is_broken {
            return None;
        }
        let complaint = match lexer.next_item() {
            Ok(Item::Statement {
                words,
                opens_block,
                line,
            }) => {
                return Some((
                    words,
                    opens_block,
                    Place {
                        file: file.clone(),
                        line,
                    },
                ));
            }
            Ok(Item::BlockEnd { .. }) if depth.blocks > 0 => return None,
            Ok(Item::End) if depth.blocks == 0 => return None,
            Ok(Item::BlockEnd { line }) => SyntaxError {
                line,
                what: "unexpected \"}\"".into(),
            },
            Ok(Item::End) => SyntaxError {
                line: lexer.line(),
                what: "unexpected end of file, expecting \"}\"".into(),
            },
            Err(error) => error,
        };
        self.broken(file, &complaint);
        None
    }

    fn block(&mut self, lexer: &mut Lexer<'_>, words: &[String], place: &Place, depth: Depth) -> Block {
        let depth = Depth {
            blocks: depth.blocks + 1,
            ..depth
        };
        if depth.blocks > MAX_DEPTH {
            self.too_much(place, &format!("more than {MAX_DEPTH} blocks within each other"));
            return Block::Skipped;
        }
        match words[0].as_str() {
            name if name.ends_with("_by_lua_block") => {
                if let Err(error) = lexer.lua_block() {
                    self.broken(&place.file, &error);
                }
                Block::Lua
            }
            "map" | "geo" | "split_clients" => {
                let mut values = BTreeSet::new();
                self.values(lexer, &place.file, depth, &mut values);
                let is_cut = values.len() > MAX_VALUES;
                Block::Values { values, is_cut }
            }
            "types" | "charset_map" => {
                while self.statement(lexer, &place.file, depth).is_some() {}
                Block::Skipped
            }
            _ => Block::Directives(self.directives(lexer, &place.file, depth)),
        }
    }

    /// The values of a table, without its keys: it may have a million lines.
    fn values(&mut self, lexer: &mut Lexer<'_>, file: &Rc<str>, depth: Depth, values: &mut BTreeSet<String>) {
        while let Some((mut words, _, place)) = self.statement(lexer, file, depth) {
            match words[0].as_str() {
                "include" => {
                    for path in self.included(&words, &place, depth) {
                        let Some(text) = self.text(&path, Some(&place)) else {
                            continue;
                        };
                        let deeper = Depth {
                            files: depth.files + 1,
                            blocks: 0,
                        };
                        self.values(
                            &mut Lexer::new(&text, Origin::File),
                            &path.as_str().into(),
                            deeper,
                            values,
                        );
                    }
                }
                // Switches of `map` and `geo`, not values.
                "hostnames" | "volatile" | "ranges" | "delete" | "proxy" | "proxy_recursive" => {}
                _ => {
                    if let Some(value) = words
                        .pop()
                        .filter(|_| !words.is_empty() && values.len() <= MAX_VALUES)
                    {
                        values.insert(value);
                    }
                }
            }
        }
    }

    fn included(&mut self, words: &[String], place: &Place, depth: Depth) -> Vec<String> {
        let [_, pattern] = words else {
            self.problem(format!("{place}: include takes one file name"));
            return vec![];
        };
        if depth.files >= MAX_INCLUDE_DEPTH {
            self.too_much(
                place,
                &format!("files are included more than {MAX_INCLUDE_DEPTH} deep: {pattern}"),
            );
            return vec![];
        }
        let path = match pattern.starts_with('/') {
            true => pattern.clone(),
            false => format!("{}{pattern}", self.directory),
        };
        match path.contains(['*', '?', '[']) {
            true => glob(self.root, &path),
            false => vec![path],
        }
    }
}

/// The existing files that a pattern means, sorted by bytes, as glob(3) yields them to nginx.
fn glob(root: &Root, pattern: &str) -> Vec<String> {
    let mut found = vec![String::new()];
    for component in pattern.split('/').skip(1) {
        if component.is_empty() {
            continue;
        }
        let mut next = Vec::new();
        for directory in &found {
            if !component.contains(['*', '?', '[']) {
                next.push(format!("{directory}/{}", component.replace('\\', "")));
                continue;
            }
            let listed = if directory.is_empty() { "/" } else { directory };
            for name in root.list(Path::new(listed)).unwrap_or_default() {
                let hides = name.as_bytes().starts_with(b".") && !component.starts_with('.');
                if !hides && matches(component.as_bytes(), name.as_bytes()) {
                    next.push(format!("{directory}/{}", name.to_string_lossy()));
                }
            }
        }
        next.truncate(MAX_FILES + 1);
        found = next;
    }
    found.retain(|path| root.metadata(Path::new(path)).is_ok());
    found.sort();
    found
}

/// Whether a name fits one component of a pattern.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    // Where to go on when a `*` has to take one byte more.
    let mut retry: Option<(usize, usize)> = None;
    let (mut p, mut n) = (0, 0);
    while n < name.len() {
        let step = match pattern.get(p) {
            Some(b'*') => {
                retry = Some((p + 1, n + 1));
                p += 1;
                continue;
            }
            Some(b'?') => Some(p + 1),
            Some(b'[') => match class(&pattern[p..], name[n]) {
                Some((true, length)) => Some(p + length),
                Some((false, _)) => None,
                None => (name[n] == b'[').then_some(p + 1),
            },
            Some(b'\\') if p + 1 < pattern.len() => (pattern[p + 1] == name[n]).then_some(p + 2),
            Some(&byte) => (byte == name[n]).then_some(p + 1),
            None => None,
        };
        match (step, retry) {
            (Some(behind), _) => (p, n) = (behind, n + 1),
            (None, Some((pattern_at, name_at))) => {
                (p, n) = (pattern_at, name_at);
                retry = Some((pattern_at, name_at + 1));
            }
            (None, None) => return false,
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Whether a byte is in the class a pattern begins with, and the class's length; `None`: it is not closed.
fn class(pattern: &[u8], byte: u8) -> Option<(bool, usize)> {
    let mut at = 1;
    let is_negated = matches!(pattern.get(at), Some(b'!' | b'^'));
    at += usize::from(is_negated);
    let first = at;
    let mut is_member = false;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && at > first {
            return Some((is_member != is_negated, at + 1));
        }
        match (pattern.get(at + 1), pattern.get(at + 2)) {
            (Some(b'-'), Some(&high)) if high != b']' => {
                is_member |= (low..=high).contains(&byte);
                at += 3;
            }
            _ => {
                is_member |= low == byte;
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load_files(files: &[(&str, &str)]) -> Loaded {
        let directory = tempfile::tempdir().expect("a temporary directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        let main = directory.path().join(files[0].0);
        let root = Root::own().expect("the root directory");
        let mut loaded = load(&root, &main.to_string_lossy(), None);
        let prefix = format!("{}/", directory.path().display());
        for problem in &mut loaded.problems {
            *problem = problem.replace(&prefix, "");
        }
        loaded
    }

    fn names(loaded: &Loaded) -> Vec<&str> {
        loaded.directives.iter().map(Directive::name).collect()
    }

    #[test]
    fn includes_are_counted_from_the_main_files_directory_and_sorted() {
        let loaded = load_files(&[
            ("nginx.conf", "a; include conf.d/*.conf; include more/x.conf; b;"),
            ("conf.d/2.conf", "c2;"),
            ("conf.d/10.conf", "c10;"),
            ("conf.d/.hidden.conf", "hidden;"),
            ("conf.d/note.txt", "note;"),
            ("more/x.conf", "x; include more/y.conf;"),
            ("more/y.conf", "y;"),
        ]);
        assert_eq!(names(&loaded), ["a", "c10", "c2", "x", "y", "b"]);
        assert_eq!(loaded.problems, [""; 0]);
        assert!(loaded.modified.is_some());
    }

    #[test]
    fn a_missing_file_is_told_and_an_empty_pattern_is_none() {
        let loaded = load_files(&[("nginx.conf", "a;\ninclude missing.conf; include no/*; b;")]);
        assert_eq!(names(&loaded), ["a", "b"]);
        assert_eq!(
            loaded.problems,
            ["cannot read missing.conf (included at nginx.conf:2): No such file or directory (os error 2)"]
        );
        assert!(!loaded.is_broken);
        let loaded = load(
            &Root::own().expect("the root directory"),
            "/nonexistent/nginx.conf",
            None,
        );
        assert_eq!(
            loaded.problems,
            ["cannot read /nonexistent/nginx.conf: No such file or directory (os error 2)"]
        );
    }

    #[test]
    fn a_recursive_include_ends_and_is_told() {
        let loaded = load_files(&[("nginx.conf", "a;\ninclude nginx.conf;")]);
        assert!(loaded.is_broken);
        assert_eq!(
            loaded.problems,
            ["nginx.conf:2: files are included more than 32 deep: nginx.conf"]
        );
    }

    #[test]
    fn deep_blocks_and_unbalanced_ones_are_told() {
        let deep = "a{".repeat(5000);
        for (text, problem) in [
            (
                deep.as_str(),
                "nginx.conf:1: more than 128 blocks within each other",
            ),
            ("a {\n}\n}", "nginx.conf:3: unexpected \"}\""),
            (
                "a {\n b;\n",
                "nginx.conf:3: unexpected end of file, expecting \"}\"",
            ),
            (
                "content_by_lua_block {\n",
                "nginx.conf:2: unexpected end of file in a Lua block, expecting \"}\"",
            ),
        ] {
            let loaded = load_files(&[("nginx.conf", text)]);
            assert!(loaded.is_broken, "{text}");
            assert_eq!(loaded.problems, [problem]);
        }
    }

    #[test]
    fn tables_keep_their_values_only() {
        let loaded = load_files(&[
            (
                "nginx.conf",
                "map $a $b { hostnames; default x; k1 y; k2 y; include more; } types { a b; }",
            ),
            ("more", "~^z \"http://$1\";"),
        ]);
        let Some(Block::Values {
            values,
            is_cut: false,
        }) = &loaded.directives[0].block
        else {
            panic!("{loaded:?}");
        };
        assert_eq!(
            values.iter().map(String::as_str).collect::<Vec<_>>(),
            ["http://$1", "x", "y"]
        );
        assert!(matches!(loaded.directives[1].block, Some(Block::Skipped)));
    }

    #[test]
    fn names_fit_patterns_as_glob_says() {
        for (pattern, name, expected) in [
            ("*.conf", "a.conf", true),
            ("*.conf", "a.confx", false),
            ("*", "", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "a", true),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("[", "[", true),
            (r"\*", "*", true),
            (r"\*", "a", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }
}
