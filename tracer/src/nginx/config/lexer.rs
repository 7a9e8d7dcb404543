//! The words and statements of a configuration file, cut exactly as nginx cuts them.
//!
//! nginx's rules are unlike those of any other such language (a quote inside a word is a letter, `#` inside a word
//! too, a backslash mostly stays), so they are written down here one by one; tests compare with the real nginx.

use std::fmt;

/// nginx reads into a buffer of this size, and a word (or a comment) must fit into it.
const MAX_WORD: usize = 4096;

/// What stands next in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// `words… ;` or `words… {`.
    Statement {
        /// The words, never none.
        words: Vec<String>,
        /// It ends with `{`.
        opens_block: bool,
        /// The line of its end, which is the one nginx names.
        line: u32,
    },
    /// `}`.
    BlockEnd {
        /// Its line.
        line: u32,
    },
    /// The text is over.
    End,
}

/// A place where nginx refuses the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    /// The line nginx names.
    pub line: u32,
    /// What is wrong, in nginx's words where it has some.
    pub what: String,
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in line {}", self.what, self.line)
    }
}

/// Where the text comes from, which decides what is allowed and how an early end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A file.
    File,
    /// `-g`.
    CommandLine,
}

/// Cuts a text into items.
#[derive(Clone, Debug)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    line: u32,
    origin: Origin,
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning of `text`.
    #[must_use]
    pub fn new(text: &'a [u8], origin: Origin) -> Self {
        Self {
            text,
            at: 0,
            line: 1,
            origin,
        }
    }

    /// The next item.
    pub fn next_item(&mut self) -> Result<Item, SyntaxError> {
        let mut words = Vec::new();
        loop {
            self.skip_blanks()?;
            let Some(byte) = self.peek() else {
                return if words.is_empty() {
                    Ok(Item::End)
                } else {
                    Err(self.early_end())
                };
            };
            match (byte, words.is_empty()) {
                (b';' | b'{', true) | (b'}', false) => {
                    return Err(self.error(format!("unexpected \"{}\"", char::from(byte))));
                }
                (b'}', true) => {
                    self.advance();
                    return Ok(Item::BlockEnd { line: self.line });
                }
                (b';' | b'{', false) => {
                    self.advance();
                    return Ok(Item::Statement {
                        words,
                        opens_block: byte == b'{',
                        line: self.line,
                    });
                }
                (b'"' | b'\'', _) => words.push(self.quoted_word(byte)?),
                _ => words.push(self.bare_word()?),
            }
        }
    }

    /// The line it has come to.
    #[must_use]
    pub fn line(&self) -> u32 {
        self.line
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn advance(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        self.line += u32::from(byte == b'\n');
        Some(byte)
    }

    fn error(&self, what: impl Into<String>) -> SyntaxError {
        SyntaxError {
            line: self.line,
            what: what.into(),
        }
    }

    fn early_end(&self) -> SyntaxError {
        self.error(match self.origin {
            Origin::File => "unexpected end of file, expecting \";\" or \"}\"",
            Origin::CommandLine => "unexpected end of parameter, expecting \";\"",
        })
    }

    fn check_length(&self, start: usize) -> Result<(), SyntaxError> {
        if self.origin == Origin::File && self.at - start >= MAX_WORD {
            return Err(self.error("too long parameter"));
        }
        Ok(())
    }

    /// Skips spaces, and comments, which start only where a word could.
    fn skip_blanks(&mut self) -> Result<(), SyntaxError> {
        while let Some(byte) = self.peek() {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => _ = self.advance(),
                b'#' => {
                    let start = self.at;
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.advance();
                        self.check_length(start)?;
                    }
                }
                _ => break,
            }
        }
        Ok(())
    }

    /// A word in quotes; behind it only a blank, `;`, `{` or `)` may stand.
    fn quoted_word(&mut self, quote: u8) -> Result<String, SyntaxError> {
        self.advance();
        let start = self.at;
        loop {
            self.check_length(start)?;
            match self.advance() {
                None => return Err(self.early_end()),
                Some(b'\\') => _ = self.advance(),
                Some(byte) if byte == quote => break,
                Some(_) => {}
            }
        }
        // nginx still counts the closing quote as part of the word.
        self.check_length(start)?;
        let word = unescape(&self.text[start..self.at - 1]);
        match self.peek() {
            Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{' | b')') => Ok(word),
            None => Err(self.early_end()),
            Some(byte) => Err(self.error(format!("unexpected \"{}\"", char::from(byte)))),
        }
    }

    /// A word without quotes: up to a blank, `;` or `{`, but not the `{` of `${name}`.
    fn bare_word(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        let mut is_behind_dollar = false;
        loop {
            self.check_length(start)?;
            match self.peek() {
                None => return Err(self.early_end()),
                Some(b'{') if is_behind_dollar => _ = self.advance(),
                Some(b' ' | b'\t' | b'\r' | b'\n' | b';' | b'{') => break,
                Some(b'\\') => {
                    is_behind_dollar = false;
                    self.advance();
                    self.advance();
                }
                Some(byte) => {
                    is_behind_dollar = byte == b'$';
                    self.advance();
                }
            }
        }
        Ok(unescape(&self.text[start..self.at]))
    }

    /// Skips the code of a `…_by_lua_block {` up to its closing brace and yields it: braces count only outside Lua's
    /// own strings and comments.
    pub fn lua_block(&mut self) -> Result<&'a [u8], SyntaxError> {
        let start = self.at;
        let mut depth = 1_u32;
        while let Some(byte) = self.advance() {
            match byte {
                b'{' => depth += 1,
                b'}' => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(&self.text[start..self.at - 1]);
                    }
                }
                b'"' | b'\'' => self.skip_lua_string(byte),
                b'-' if self.peek() == Some(b'-') => {
                    self.advance();
                    if !self.skip_lua_long_bracket() {
                        while self.peek().is_some_and(|byte| byte != b'\n') {
                            self.advance();
                        }
                    }
                }
                b'[' => {
                    self.at -= 1;
                    if !self.skip_lua_long_bracket() {
                        self.at += 1;
                    }
                }
                _ => {}
            }
        }
        Err(self.error("unexpected end of file in a Lua block, expecting \"}\""))
    }

    /// A Lua string ends at its quote, or at the end of the line when it is broken.
    fn skip_lua_string(&mut self, quote: u8) {
        while let Some(byte) = self.advance() {
            match byte {
                b'\\' => _ = self.advance(),
                b'\n' => return,
                _ if byte == quote => return,
                _ => {}
            }
        }
    }

    /// Skips `[[…]]`, `[=[…]=]` and so on when one starts here.
    fn skip_lua_long_bracket(&mut self) -> bool {
        let rest = &self.text[self.at..];
        let level = rest.iter().skip(1).take_while(|&&byte| byte == b'=').count();
        if rest.first() != Some(&b'[') || rest.get(level + 1) != Some(&b'[') {
            return false;
        }
        let mut close = vec![b'='; level + 2];
        close[0] = b']';
        close[level + 1] = b']';
        let end = memchr::memmem::find(rest, &close).map_or(rest.len(), |at| at + close.len());
        for _ in 0..end {
            self.advance();
        }
        true
    }
}

/// A backslash goes only in front of a quote or itself; `\t`, `\r` and `\n` become what they mean.
fn unescape(raw: &[u8]) -> String {
    let mut word = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, behind)) = rest.split_first() {
        let (meant, length) = match (byte, behind.first()) {
            (b'\\', Some(&escaped @ (b'"' | b'\'' | b'\\'))) => (escaped, 2),
            (b'\\', Some(b't')) => (b'\t', 2),
            (b'\\', Some(b'r')) => (b'\r', 2),
            (b'\\', Some(b'n')) => (b'\n', 2),
            _ => (byte, 1),
        };
        word.push(meant);
        rest = &rest[length..];
    }
    String::from_utf8_lossy(&word).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{io::Write, process::Command};

    use proptest::prelude::*;

    use super::*;

    /// Every item as one text: words in `<>`, then how the statement ends, then the line.
    fn items(text: &str) -> String {
        let mut lexer = Lexer::new(text.as_bytes(), Origin::File);
        let mut seen = String::new();
        loop {
            match lexer.next_item() {
                Ok(Item::Statement {
                    words,
                    opens_block,
                    line,
                }) => {
                    for word in words {
                        seen.push_str(&format!("<{word}>"));
                    }
                    seen.push_str(&format!("{}{line} ", if opens_block { '{' } else { ';' }));
                }
                Ok(Item::BlockEnd { line }) => seen.push_str(&format!("}}{line} ")),
                Ok(Item::End) => return seen.trim_end().to_owned(),
                Err(error) => return format!("{seen}! {error}"),
            }
        }
    }

    #[test]
    fn words_are_cut_as_nginx_cuts_them() {
        let cases = [
            ("", ""),
            ("a b;", "<a><b>;1"),
            (
                "server{listen 1;location /{a;}}",
                "<server>{1 <listen><1>;1 <location></>{1 <a>;1 }1 }1",
            ),
            ("# c\na #b\n;# d", "<a>;3"),
            ("a 127.0.0.1:80#x;", "<a><127.0.0.1:80#x>;1"),
            ("a 'b c' \"d;{}#\";", "<a><b c><d;{}#>;1"),
            ("a b'c d'e;", "<a><b'c><d'e>;1"),
            ("a 'x\ny';", "<a><x\ny>;2"),
            (r"a \.b\ c\;d;", r"<a><\.b\ c\;d>;1"),
            (r#"a "\"\\\'\.";"#, r#"<a><"\'\.>;1"#),
            (r"a \t'\n;", "<a><\t'\n>;1"),
            (
                "a ${b} $c{d",
                "<a><${b}><$c>{1 ! unexpected end of file, expecting \";\" or \"}\" in line 1",
            ),
            ("a ${{b};", "<a><${{b}>;1"),
            ("location ~ a{2}$ {", "<location><~><a>{1 <2}$>{1"),
            ("if ($a = 'b') {", "<if><($a><=><b><)>{1"),
            ("a 'b')c;", "<a><b><)c>;1"),
            ("a 'b'c;", "! unexpected \"c\" in line 1"),
            ("a 'b'}", "! unexpected \"}\" in line 1"),
            ("a }", "! unexpected \"}\" in line 1"),
            ("a b};", "<a><b}>;1"),
            (";", "! unexpected \";\" in line 1"),
            ("\n{", "! unexpected \"{\" in line 2"),
            (
                "a",
                "! unexpected end of file, expecting \";\" or \"}\" in line 1",
            ),
            (
                "a 'b",
                "! unexpected end of file, expecting \";\" or \"}\" in line 1",
            ),
            (
                "a 'b'",
                "! unexpected end of file, expecting \";\" or \"}\" in line 1",
            ),
            ("'' ;", "<>;1"),
            ("}", "}1"),
            ("\u{feff}a;", "<\u{feff}a>;1"),
        ];
        for (text, expected) in cases {
            assert_eq!(items(text), expected, "{text}");
        }
    }

    #[test]
    fn a_word_or_comment_must_fit_into_nginxs_buffer() {
        let x = |count| "x".repeat(count);
        for (text, fits) in [
            (format!("a {};", x(4095)), true),
            (format!("a {};", x(4096)), false),
            (format!("a '{}';", x(4094)), true),
            (format!("a '{}';", x(4095)), false),
            (format!("#{}\na;", x(4094)), true),
            (format!("#{}\na;", x(4095)), false),
        ] {
            assert_eq!(
                !items(&text).contains("too long parameter"),
                fits,
                "{} bytes",
                text.len()
            );
        }
    }

    #[test]
    fn lua_code_ends_at_its_own_brace() {
        for (code, body) in [
            ("}", ""),
            (" local t = {1, {2}} } x", " local t = {1, {2}} "),
            (" s = '}' .. \"\\\"}\" }", " s = '}' .. \"\\\"}\" "),
            (" -- it's }\n }", " -- it's }\n "),
            (" --[[ } ]] }", " --[[ } ]] "),
            (" --[==[ } ]] ]==] }", " --[==[ } ]] ]==] "),
            (" s = [[ } ]] t[1] = a[b[2]] }", " s = [[ } ]] t[1] = a[b[2]] "),
        ] {
            let mut lexer = Lexer::new(code.as_bytes(), Origin::File);
            assert_eq!(lexer.lua_block(), Ok(body.as_bytes()), "{code}");
        }
        for broken in ["", "{}", "--[[ }", "[=[ } ]]"] {
            assert!(
                Lexer::new(broken.as_bytes(), Origin::File).lua_block().is_err(),
                "{broken}"
            );
        }
    }

    /// What the real nginx makes of a file's first statement: its first word, or its complaint.
    fn ask_nginx(directory: &std::path::Path, text: &[u8]) -> String {
        let file = directory.join("nginx.conf");
        std::fs::File::create(&file)
            .and_then(|mut file| file.write_all(text))
            .expect("a temporary file");
        let output = Command::new("/usr/sbin/nginx")
            .args(["-t", "-e", "stderr", "-g", "pid nginx.pid;", "-p"])
            .arg(directory)
            .arg("-c")
            .arg(&file)
            .output()
            .expect("nginx runs");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn compare_with_nginx(directory: &std::path::Path, text: &str) -> Result<(), TestCaseError> {
        let said = ask_nginx(directory, text.as_bytes());
        let mut lexer = Lexer::new(text.as_bytes(), Origin::File);
        match lexer.next_item() {
            Ok(Item::Statement { words, line, .. }) => {
                // nginx knows directives by this name, or says that it does not.
                let unknown = format!("unknown directive \"{}\" in ", words[0]);
                prop_assert!(said.contains(&unknown), "{text:?}: {words:?} but nginx: {said}");
                prop_assert!(
                    said.contains(&format!("nginx.conf:{line}\n")),
                    "{text:?}: line {line} but {said}"
                );
            }
            Ok(Item::BlockEnd { line }) => {
                prop_assert!(said.contains("unexpected \"}\""), "{text:?}: {said}");
                prop_assert!(
                    said.contains(&format!("nginx.conf:{line}\n")),
                    "{text:?}: line {line} but {said}"
                );
            }
            Ok(Item::End) => prop_assert!(said.contains("no \"events\" section"), "{text:?}: {said}"),
            Err(error) => {
                prop_assert!(said.contains(&error.what), "{text:?}: {error} but nginx: {said}");
                // For an early end nginx names the line it stopped in as well.
                prop_assert!(
                    said.contains(&format!("nginx.conf:{}\n", error.line)),
                    "{text:?}: {error} but {said}"
                );
            }
        }
        Ok(())
    }

    #[test]
    fn the_real_nginx_agrees() {
        if !std::path::Path::new("/usr/sbin/nginx").exists() {
            println!("skipped: no /usr/sbin/nginx to compare with");
            return;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let config = ProptestConfig {
            cases: 300,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        // Words start with a letter that no directive starts with, so that nginx always prints the word.
        let letters = "(zq)?[ \t\r\n;{}#'\"\\\\$()a.=ntr]{0,14}";
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let outcome = runner.run(&letters.prop_map(String::from), |text| {
            compare_with_nginx(directory.path(), &text)
        });
        assert_eq!(outcome, Ok(()));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_run_for_ever(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut lexer = Lexer::new(&text, Origin::File);
            let mut items = 0;
            while let Ok(item) = lexer.next_item() {
                if item == Item::End {
                    break;
                }
                items += 1;
                prop_assert!(items <= text.len());
            }
            let _ = Lexer::new(&text, Origin::CommandLine).lua_block();
        }
    }
}
