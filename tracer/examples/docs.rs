//! Writes the generated pages of the manual into the folder given; `cargo xtask docs` runs it.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let root = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .context("give the repository's folder")?,
    );
    for page in tracer::docs::pages() {
        let path = root.join(page.path);
        let before = fs::read_to_string(&path).unwrap_or_default();
        if before == page.text {
            println!("fresh    {}", page.path);
            continue;
        }
        fs::write(&path, &page.text).with_context(|| format!("writing {}", path.display()))?;
        println!("written  {}", page.path);
    }
    Ok(())
}
