//! What the text inside an nginx executable says: its version and how it was configured. The file is read, never run.

use std::{fs::File, io, io::Read, path::Path};

use crate::event::Pid;

/// No nginx is larger; the largest seen, with everything linked in and its symbols, is a third of it.
const MAX_SIZE: u64 = 128 << 20;

/// What was found in the executable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Build {
    /// Product and version, `nginx/1.22.1`.
    pub version: Option<String>,
    /// `--prefix=`.
    pub prefix: Option<String>,
    /// `--conf-path=`.
    pub conf: Option<String>,
    /// `--error-log-path=`.
    pub error_log: Option<String>,
}

impl Build {
    /// The nginx release it corresponds to (`1.22.1` → `(1, 22, 1)`); `None` for forks that count their own.
    #[must_use]
    pub fn nginx_release(&self) -> Option<(u32, u32, u32)> {
        let (product, version) = self.version.as_deref()?.split_once('/')?;
        matches!(product, "nginx" | "openresty").then(|| numbers(version))?
    }

    /// A fork that counts its own releases, in lower case, and its release.
    #[must_use]
    pub fn fork(&self) -> Option<(&'static str, (u32, u32, u32))> {
        let (product, version) = self.version.as_deref()?.split_once('/')?;
        let fork = ["angie", "freenginx", "tengine"]
            .into_iter()
            .find(|fork| product.eq_ignore_ascii_case(fork))?;
        Some((fork, numbers(version)?))
    }
}

/// The numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = version.split('.').map(|part| {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..digits].parse().ok()
    });
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

/// Reads the executable of a process; `None`: it is no nginx.
pub fn read(pid: Pid) -> io::Result<Option<Build>> {
    read_file(Path::new(&format!("/proc/{pid}/exe")))
}

/// Reads an executable; `None`: it is no nginx.
pub fn read_file(path: &Path) -> io::Result<Option<Build>> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_SIZE).read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// Looks for nginx's own texts. A directive that every nginx knows and a version text with its number must both be
/// there, so that a program that merely mentions nginx is not taken for one.
fn parse(text: &[u8]) -> Option<Build> {
    let version = find_version(text)?;
    has_string(text, b"worker_connections").then_some(())?;
    let configured = find(text, b"configure arguments:", 0).map(|at| {
        let rest = &text[at + b"configure arguments:".len()..];
        let end = rest
            .iter()
            .position(|&byte| byte == 0 || byte == b'\n')
            .unwrap_or(rest.len());
        String::from_utf8_lossy(&rest[..end]).into_owned()
    });
    let words = split_quoted(configured.as_deref().unwrap_or_default());
    let value = |name: &str| {
        let value = |word: &String| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned());
        words.iter().rev().find_map(value)
    };
    Some(Build {
        version: Some(version),
        prefix: value("--prefix"),
        conf: value("--conf-path"),
        error_log: value("--error-log-path"),
    })
}

/// The `PRODUCT/VERSION` behind ` version: `. A fork may print its own and nginx's; the first is its own.
fn find_version(text: &[u8]) -> Option<String> {
    const NEEDLE: &[u8] = b" version: ";
    let mut from = 0;
    while let Some(at) = find(text, NEEDLE, from) {
        from = at + NEEDLE.len();
        let is_word = |&byte: &u8| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte);
        let length = text[from..]
            .iter()
            .take(64)
            .take_while(|byte| is_word(byte))
            .count();
        let version = String::from_utf8_lossy(&text[from..from + length]);
        let Some((product, number)) = version.split_once('/') else {
            continue;
        };
        let is_product = ["nginx", "openresty", "angie", "tengine", "freenginx"]
            .iter()
            .any(|known| known.eq_ignore_ascii_case(product));
        // The text goes on with a new line, the build's name, or ends; anything else is another program's.
        let is_end = matches!(text.get(from + length), Some(b'\n' | b' ' | 0));
        if is_product && is_end && number.starts_with(|c: char| c.is_ascii_digit()) {
            return Some(version.into_owned());
        }
    }
    None
}

/// Whether the text is there as a C string of its own; other programs only mention it.
fn has_string(text: &[u8], string: &[u8]) -> bool {
    let is_zero = |at: usize| text.get(at) == Some(&0);
    memchr::memmem::find_iter(text, string).any(|at| at > 0 && is_zero(at - 1) && is_zero(at + string.len()))
}

fn find(text: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    memchr::memmem::find(text.get(from..)?, needle).map(|at| from + at)
}

/// Words as a shell would split them; configure arguments are quoted with single quotes.
fn split_quoted(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for letter in text.chars() {
        match letter {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => words.push(String::new()),
            _ => words.last_mut().expect("there is always one").push(letter),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_and_the_paths_are_in_the_text() {
        let configured = "configure arguments: --with-cc-opt='-g -O2 --prefix=/no' --prefix=/usr/share/nginx \
            --conf-path=/etc/n.conf\n";
        assert_eq!(
            parse(&executable(&["nginx", "nginx/1.22.1"], configured)),
            Some(Build {
                version: Some("nginx/1.22.1".into()),
                prefix: Some("/usr/share/nginx".into()),
                conf: Some("/etc/n.conf".into()),
                error_log: None,
            })
        );
    }

    /// Put together when it runs, so that this program does not look like an nginx itself.
    fn executable(version: &[&str], rest: &str) -> Vec<u8> {
        let texts = ["\x7fELF", "worker_connections", &version.join(" version: "), rest];
        texts.join("\0").into_bytes()
    }

    #[test]
    fn forks_are_known_and_other_programs_are_not() {
        for (version, rest, expected) in [
            (["nginx", "openresty/1.25.3.1"], "", Some("openresty/1.25.3.1")),
            (["Angie", "Angie/1.13.0"], "", Some("Angie/1.13.0")),
            (
                ["Tengine", "Tengine/3.2.0"],
                "nginx version: nginx/1.24.0",
                Some("Tengine/3.2.0"),
            ),
            (["freenginx", "freenginx/1.27.2"], "", Some("freenginx/1.27.2")),
            (["nginx", "nginx/%s"], "", None),
            (["haproxy", "haproxy/2.6"], "", None),
        ] {
            let build = parse(&executable(&version, rest));
            assert_eq!(
                build.and_then(|build| build.version).as_deref(),
                expected,
                "{version:?}"
            );
        }
        let mentions = executable(&["nginx", "nginx/1.22.1"], "");
        let mentions = String::from_utf8_lossy(&mentions).replace('\0', " ");
        assert_eq!(parse(mentions.as_bytes()), None);
        assert_eq!(parse(b""), None);
    }

    #[test]
    fn forks_that_count_their_own_releases_are_told_apart() {
        let fork = |version: &str| {
            let version = Some(version.to_owned());
            Build {
                version,
                ..Build::default()
            }
            .fork()
        };
        assert_eq!(fork("Angie/1.13.0"), Some(("angie", (1, 13, 0))));
        assert_eq!(fork("freenginx/1.27.2"), Some(("freenginx", (1, 27, 2))));
        assert_eq!(fork("nginx/1.27.2"), None);
    }

    #[test]
    fn the_release_is_known_only_where_the_count_is_nginxs() {
        let release = |version: &str| {
            let version = Some(version.to_owned());
            Build {
                version,
                ..Build::default()
            }
            .nginx_release()
        };
        assert_eq!(release("nginx/1.29.7"), Some((1, 29, 7)));
        assert_eq!(release("openresty/1.25.3.1"), Some((1, 25, 3)));
        assert_eq!(release("Angie/1.13.0"), None);
        assert_eq!(release("nginx/1.x"), None);
    }
}
