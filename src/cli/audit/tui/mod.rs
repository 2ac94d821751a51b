//! `cloister audit tui`: browse the log on the box, every record proven before it is shown.
//!
//! Nothing is written but to the terminal, and no text of a record acts on it. State and keys are in
//! `app.rs`, the screen in `draw.rs`.

mod app;
mod draw;
#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::time::Duration;

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use self::app::App;
use super::super::{Outcome, Verdict};
use super::filter::Filter;
use super::recorded::Reading;
use super::source::Log;

/// Time to wait for a key before the screen is drawn anew.
const PATIENCE: Duration = Duration::from_secs(1);

/// Arguments of `cloister audit tui`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(flatten)]
    log: Log,
}

/// Runs `cloister audit tui`, until `q`.
pub(super) fn run(arguments: &Arguments) -> Outcome {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err("there is no terminal: use `cloister audit list`".into());
    }
    let verifier = arguments.log.verifier()?;
    let snapshot = arguments.log.open(Reading::Browse, &Filter::default())?;
    let mut app = App::new(arguments.log.folder.clone(), verifier, snapshot);
    let mut terminal = ratatui::try_init()?;
    let browsed = browse(&mut terminal, &mut app);
    ratatui::restore();
    browsed?;
    Ok(Verdict::Holds)
}

fn browse(terminal: &mut ratatui::DefaultTerminal, app: &mut App) -> std::io::Result<()> {
    loop {
        terminal.draw(|frame| draw::draw(frame, app))?;
        if !event::poll(PATIENCE)? {
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && !app.press(key)
        {
            return Ok(());
        }
    }
}
