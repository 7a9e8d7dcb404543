//! What a variable in a `…_pass` can be: the values of `set`, `map`, `geo` and `split_clients` are written in the
//! configuration; everything else comes with the request.

use std::collections::{BTreeMap, BTreeSet};

use crate::nginx::config::load::{Block, Directive};

/// Stands in a value for what only the request decides. nginx allows no such character in a configuration word.
pub const UNKNOWN: char = '\0';

/// Values of variables are looked up in each other this deep.
const MAX_DEPTH: u32 = 8;
/// Combinations of values of one word.
const MAX_COMBINATIONS: usize = 512;

/// Where the values of a section's variables come from.
#[derive(Debug, Default)]
pub struct Variables<'a> {
    /// From tables, for the whole section.
    tables: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// From `set` in the server that is being looked at.
    sets: BTreeMap<&'a str, BTreeSet<&'a str>>,
    /// Set by something that cannot be followed: subrequests, captures, scripts.
    opaque: BTreeSet<&'a str>,
    /// Lua or another script may set any variable that `set` declares.
    has_scripts: bool,
}

impl<'a> Variables<'a> {
    /// Everything a section says about its variables, `set` excepted.
    #[must_use]
    pub fn collect(tree: &'a [Directive]) -> Self {
        let mut variables = Self::default();
        variables.collect_tables(tree);
        variables
    }

    fn collect_tables(&mut self, tree: &'a [Directive]) {
        for directive in tree {
            for word in &directive.words {
                self.opaque.extend(captures(word));
            }
            let name = directive.name();
            match (&directive.block, directive.words.last()) {
                (Some(Block::Values { values, is_cut }), Some(variable)) => {
                    // Inside a regular expression's value `$1` and `$name` are its captures; those stay unknown anyway.
                    let variable = variable.trim_start_matches('$');
                    self.tables
                        .entry(variable)
                        .or_default()
                        .extend(values.iter().map(String::as_str));
                    if *is_cut {
                        self.opaque.insert(variable);
                    }
                }
                (Some(Block::Lua), _) => self.has_scripts = true,
                _ => {}
            }
            if name.contains("_by_lua") || name == "js_import" || name == "perl_modules" {
                self.has_scripts = true;
            }
            if let ("auth_request_set" | "perl_set" | "js_set" | "js_var", Some(variable)) =
                (name, directive.words.get(1))
            {
                self.opaque.insert(variable.trim_start_matches('$'));
            }
            self.collect_tables(directive.directives());
        }
    }

    /// Takes the values that `set` gives anywhere in a server; what was there before is to be given back.
    pub fn enter(&mut self, server: &'a Directive) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let outer = self.sets.clone();
        self.collect_sets(server.directives());
        outer
    }

    /// Forgets a server.
    pub fn leave(&mut self, outer: BTreeMap<&'a str, BTreeSet<&'a str>>) {
        self.sets = outer;
    }

    fn collect_sets(&mut self, tree: &'a [Directive]) {
        for directive in tree {
            if let [name, variable, value] = &directive.words[..]
                && name == "set"
            {
                let values = self.sets.entry(variable.trim_start_matches('$')).or_default();
                values.insert(value.as_str());
            }
            self.collect_sets(directive.directives());
        }
    }

    /// Every text that `word` can become, with [`UNKNOWN`] where the request decides.
    #[must_use]
    pub fn expand(&self, word: &str) -> BTreeSet<String> {
        self.expand_within(word, MAX_DEPTH)
    }

    fn expand_within(&self, word: &str, depth: u32) -> BTreeSet<String> {
        let mut texts = BTreeSet::from([String::new()]);
        for piece in pieces(word) {
            let values = match piece {
                Piece::Literal(text) => BTreeSet::from([text.to_owned()]),
                Piece::Variable(name) => self.values(name, depth),
            };
            if texts.len() * values.len() > MAX_COMBINATIONS {
                return BTreeSet::from([UNKNOWN.to_string()]);
            }
            let joined = |text: &String| {
                values
                    .iter()
                    .map(|value| format!("{text}{value}"))
                    .collect::<Vec<_>>()
            };
            texts = texts.iter().flat_map(joined).collect();
        }
        texts
    }

    fn values(&self, name: &str, depth: u32) -> BTreeSet<String> {
        let unknown = || BTreeSet::from([UNKNOWN.to_string()]);
        // nginx makes these begin with a slash, which ends the address in front of them.
        if matches!(name, "uri" | "request_uri" | "document_uri") {
            return BTreeSet::from(["/".to_owned()]);
        }
        let sets = self.sets.get(name);
        let tables = self.tables.get(name);
        if depth == 0 || (sets.is_none() && tables.is_none()) {
            return unknown();
        }
        let written = sets.into_iter().chain(tables).flatten();
        let mut values: BTreeSet<String> = written
            .flat_map(|value| self.expand_within(value, depth - 1))
            .collect();
        if self.opaque.contains(name) || (sets.is_some() && self.has_scripts) {
            values.extend(unknown());
        }
        values
    }
}

enum Piece<'t> {
    Literal(&'t str),
    Variable(&'t str),
}

/// Cuts a word into text and `$name` or `${name}`.
fn pieces(word: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut rest = word;
    while let Some(at) = rest.find('$') {
        pieces.push(Piece::Literal(&rest[..at]));
        let behind = &rest[at + 1..];
        let (name, length) = match behind.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some((name, _)) => (name, name.len() + 2),
            None => {
                let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let length = behind.find(|c| !is_part(c)).unwrap_or(behind.len());
                (&behind[..length], length)
            }
        };
        pieces.push(Piece::Variable(name));
        rest = &behind[length..];
    }
    pieces.push(Piece::Literal(rest));
    pieces
}

/// The names of a regular expression's captures: `(?<name>`, `(?P<name>`, `(?'name'`.
fn captures(word: &str) -> impl Iterator<Item = &str> {
    word.split("(?").skip(1).filter_map(|rest| {
        let rest = rest.strip_prefix('P').unwrap_or(rest);
        let (rest, close) = match rest.as_bytes().first()? {
            b'<' => (&rest[1..], '>'),
            b'\'' => (&rest[1..], '\''),
            _ => return None,
        };
        let name = rest.split(close).next()?;
        name.chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_')
            .then_some(name)
    })
}
