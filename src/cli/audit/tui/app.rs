//! What is browsed: the log, the filter, the records found, the one that is looked at.

use std::path::PathBuf;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::filter::Filter;
use super::super::scan::{Found, newest};
use super::super::text::{parse_from, parse_to};
use crate::audit::{Snapshot, Verifier};

/// Records that are looked up first, and by how many times more when the last is reached.
const LIMIT_FIRST: usize = 500;
const LIMIT_GROWTH: usize = 4;
/// Records that a page key moves by.
const PAGE: usize = 20;
/// Longest filter that can be typed, in characters.
const QUERY_LEN_MAX: usize = 200;

/// The state of the browser.
pub(super) struct App {
    folder: PathBuf,
    verifier: Verifier,
    /// The log as it was when it was read last.
    pub(super) snapshot: Snapshot,
    filter: Filter,
    /// The filter as it was typed.
    pub(super) query: String,
    /// The filter that is being typed.
    pub(super) typed: Option<String>,
    /// What was found, newest first.
    pub(super) found: Vec<Found>,
    limit: usize,
    /// Which of them is looked at.
    pub(super) selected: usize,
    /// Whether it fills the screen.
    pub(super) is_open: bool,
    /// By how many lines it is scrolled.
    pub(super) scroll: u16,
    /// The verdict on what was read, or what is wrong with the filter.
    pub(super) message: String,
    /// Whether the message is a fault.
    pub(super) is_fault: bool,
    /// What proves the record that is looked at.
    pub(super) proof: String,
}

impl App {
    /// A browser of an open log.
    pub(super) fn new(folder: PathBuf, verifier: Verifier, snapshot: Snapshot) -> Self {
        let mut app = Self {
            folder,
            verifier,
            snapshot,
            filter: Filter::default(),
            query: String::new(),
            typed: None,
            found: Vec::new(),
            limit: LIMIT_FIRST,
            selected: 0,
            is_open: false,
            scroll: 0,
            message: String::new(),
            is_fault: false,
            proof: String::new(),
        };
        app.search();
        app
    }

    /// Takes a key; false when it ends the browser.
    pub(super) fn press(&mut self, key: KeyEvent) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return false;
        }
        if self.typed.is_some() {
            self.type_key(key.code);
            return true;
        }
        match key.code {
            KeyCode::Char('q') => return false,
            KeyCode::Esc if self.is_open => self.is_open = false,
            KeyCode::Esc if !self.query.is_empty() => self.take_query(String::new()),
            KeyCode::Enter => self.is_open = !self.is_open && !self.found.is_empty(),
            KeyCode::Char('/') => self.typed = Some(self.query.clone()),
            KeyCode::Char('r') => self.reload(),
            KeyCode::Down | KeyCode::Char('j') if self.is_open => {
                self.scroll = self.scroll.saturating_add(1)
            }
            KeyCode::Up | KeyCode::Char('k') if self.is_open => {
                self.scroll = self.scroll.saturating_sub(1)
            }
            KeyCode::Down | KeyCode::Char('j') => self.select(self.selected.saturating_add(1)),
            KeyCode::Up | KeyCode::Char('k') => self.select(self.selected.saturating_sub(1)),
            KeyCode::PageDown => self.select(self.selected.saturating_add(PAGE)),
            KeyCode::PageUp => self.select(self.selected.saturating_sub(PAGE)),
            KeyCode::Home | KeyCode::Char('g') => self.select(0),
            KeyCode::End | KeyCode::Char('G') => self.select(self.found.len().saturating_sub(1)),
            _ => {}
        }
        true
    }

    fn type_key(&mut self, key: KeyCode) {
        let Some(typed) = &mut self.typed else { return };
        match key {
            KeyCode::Esc => self.typed = None,
            KeyCode::Backspace => {
                typed.pop();
            }
            KeyCode::Char(char) if typed.chars().count() < QUERY_LEN_MAX => typed.push(char),
            KeyCode::Enter => {
                let query = self.typed.take().unwrap_or_default();
                self.take_query(query);
            }
            _ => {}
        }
    }

    fn take_query(&mut self, query: String) {
        match parse_query(&query) {
            Ok(filter) => {
                self.filter = filter;
                self.query = query;
                self.limit = LIMIT_FIRST;
                self.selected = 0;
                self.search();
            }
            Err(why) => self.tell(why, true),
        }
    }

    /// Reads the log anew, as its newest checkpoint has it.
    fn reload(&mut self) {
        match Snapshot::open(&self.folder, &self.verifier) {
            Ok(snapshot) => {
                self.snapshot = snapshot;
                self.search();
            }
            Err(error) => self.tell(format!("BROKEN: {error}"), true),
        }
    }

    fn search(&mut self) {
        match newest(&mut self.snapshot, &self.filter, self.limit) {
            Ok((found, absent)) => {
                let more = if found.len() == self.limit { "+" } else { "" };
                let told = format!("{}{more} records, each proven", found.len());
                let is_fault = absent.sentence().is_some();
                self.found = found;
                self.tell(
                    absent.sentence().map_or(told.clone(), |why| format!("{told}; {why}")),
                    is_fault,
                );
            }
            Err(error) => {
                self.found.clear();
                self.tell(format!("BROKEN: {error}"), true);
            }
        }
        self.select(self.selected);
    }

    fn tell(&mut self, message: String, is_fault: bool) {
        (self.message, self.is_fault) = (message, is_fault);
    }

    /// Looks at another record; more are looked up when the last is reached.
    fn select(&mut self, wanted: usize) {
        if wanted >= self.found.len() && self.found.len() == self.limit {
            self.limit *= LIMIT_GROWTH;
            self.selected = wanted;
            return self.search();
        }
        self.selected = wanted.min(self.found.len().saturating_sub(1));
        self.scroll = 0;
        self.proof = match self.found.get(self.selected) {
            None => String::new(),
            Some(found) => match self
                .snapshot
                .proof(found.index)
                .and_then(|proof| proof.check(&self.verifier))
            {
                Ok((signed, _)) => {
                    format!("PROVEN: in its place under the signed root of {} records", signed.size)
                }
                Err(error) => format!("NOT PROVEN: {error}"),
            },
        };
    }
}

/// A filter from words: `event:`, `principal:`, `model:`, `outcome:`, `request:`, `from:`, `to:`; a bare
/// word is an event.
fn parse_query(query: &str) -> Result<Filter, String> {
    let mut filter = Filter::default();
    for word in query.split_whitespace() {
        let (name, value) = word.split_once(':').unwrap_or(("event", word));
        match name {
            "event" => filter.event.push(value.to_owned()),
            "principal" => filter.principal = Some(value.to_owned()),
            "model" => filter.model = Some(value.to_owned()),
            "outcome" => filter.outcome = Some(value.to_owned()),
            "request" => filter.request = Some(value.to_owned()),
            "from" => filter.from = Some(parse_from(value)?),
            "to" => filter.to = Some(parse_to(value)?),
            _ => {
                return Err(format!(
                    "{name}: is none of event: principal: model: outcome: request: from: to:"
                ));
            }
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_filter_is_parsed_strictly() {
        let filter = parse_query("refused principal:3fa9 outcome:failed from:2026-11-01").unwrap();
        assert_eq!(filter.event, ["refused"]);
        assert_eq!(filter.principal.as_deref(), Some("3fa9"));
        assert_eq!(filter.from, Some(1_793_491_200));
        for query in ["who:me", "from:yesterday", "to:2026-13-01"] {
            assert!(parse_query(query).is_err(), "{query}");
        }
    }
}
