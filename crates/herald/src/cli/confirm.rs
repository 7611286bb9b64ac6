//! Asking before what cannot be undone: on a terminal by a question, elsewhere by a flag.

use std::io::{BufRead, IsTerminal};

use crate::cli::Global;
use crate::exit::{Code, Exit};
use crate::output::note;

/// Goes on only if the person wants `what`; otherwise `nothing` is said to have happened.
pub(crate) fn confirm(global: &Global, what: &str, nothing: &str) -> Result<(), Exit> {
    if global.yes {
        return Ok(());
    }
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Exit::new(Code::Usage, format!("{what}, and needs confirmation")).with_hint("add --yes"));
    }
    note(&format!("{what}. Continue? [y/N]"));
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Exit::new(Code::Usage, format!("not confirmed; {nothing}"))),
    }
}
