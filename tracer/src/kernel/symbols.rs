//! Where functions of the running kernel begin and end, from its own symbol table.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};

/// Where the kernel shows its symbols.
const KALLSYMS: &str = "/proc/kallsyms";

/// First address and end of the functions of these names, one per name, also of what the compiler made of them
/// (`name.isra.0`, `name.constprop.0`); left out what the kernel does not have or, by `kernel.kptr_restrict`, does not
/// show.
///
/// # Errors
/// The table cannot be read.
pub fn read<'a>(names: &[&'a str]) -> Result<BTreeMap<&'a str, (u64, u64)>> {
    let text = std::fs::read(Path::new(KALLSYMS)).with_context(|| format!("reading {KALLSYMS}"))?;
    Ok(parse(&String::from_utf8_lossy(&text), names))
}

fn parse<'a>(text: &str, names: &[&'a str]) -> BTreeMap<&'a str, (u64, u64)> {
    let lines = || {
        text.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address = u64::from_str_radix(words.next()?, 16)
                .ok()
                .filter(|address| *address != 0)?;
            let is_code = matches!(words.next()?, "t" | "T" | "w" | "W");
            Some((address, words.next()?)).filter(|_| is_code)
        })
    };
    let mut found: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (address, symbol) in lines() {
        if let Some(name) = names.iter().find(|name| is_called(symbol, name)) {
            found.entry(name).or_insert((address, u64::MAX));
        }
    }
    // The end of one is the beginning of whatever follows it; the table is not sorted across modules.
    for (address, _) in lines() {
        for (begin, end) in found.values_mut() {
            if address > *begin && address < *end {
                *end = address;
            }
        }
    }
    found.retain(|_, (_, end)| *end != u64::MAX);
    found
}

/// Whether a symbol is that function, whole or as the compiler changed its parameters.
fn is_called(symbol: &str, name: &str) -> bool {
    symbol
        .strip_prefix(name)
        .filter(|rest| !rest.ends_with(".cold"))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(".isra.") || rest.starts_with(".constprop."))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_function_ends_where_the_next_begins() {
        let text = "ffffffff81000200 T after\nffffffff81000100 t wanted\nffffffff81000180 d data\n\
                    ffffffff81000300 t wanted.cold\nffffffff81000400 T last\n";
        let found = parse(text, &["wanted", "last", "absent"]);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("wanted", (0xffff_ffff_8100_0100, 0xffff_ffff_8100_0200))]
        );
    }

    #[test]
    fn a_function_whose_parameters_the_compiler_changed_is_the_same() {
        let text = "ffffffff81000000 t wanted.constprop.0.cold\nffffffff81000100 t wanted.isra.0\n\
                    ffffffff81000200 t after\n";
        assert_eq!(
            parse(text, &["wanted"])["wanted"],
            (0xffff_ffff_8100_0100, 0xffff_ffff_8100_0200)
        );
    }

    #[test]
    fn hidden_addresses_are_no_addresses() {
        assert!(
            parse(
                "0000000000000000 T wanted\n0000000000000000 T after\n",
                &["wanted"]
            )
            .is_empty()
        );
    }
}
