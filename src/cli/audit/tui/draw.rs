//! The screen: what was found, the record that is looked at, and what proves it.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, TableState, Wrap};

use super::super::facts::{Facts, Weight};
use super::super::scan::Found;
use super::super::show::flatten;
use super::super::text::{plain, time_text};
use super::app::App;

const KEYS: &str = "↑↓ move  Enter look  / filter  r read anew  Esc back  q quit";
const HELP: &str =
    "event:begin principal:3fa9 model:NAME outcome:failed request:6a0f from:7d to:2026-11-30";

/// Draws the whole screen. Colours are the terminal's own; emphasis is bold and reverse.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(4), Constraint::Length(2)])
            .areas(frame.area());
    draw_head(frame, head, app);
    if app.is_open {
        draw_record(frame, body, app);
    } else {
        let [list, record] =
            Layout::vertical([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(body);
        draw_list(frame, list, app);
        draw_record(frame, record, app);
    }
    draw_foot(frame, foot, app);
}

fn bold(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::BOLD))
}

fn dim(text: impl Into<String>) -> Span<'static> {
    Span::styled(text.into(), Style::new().add_modifier(Modifier::DIM))
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let signed = app.snapshot.checkpoint();
    let first = Line::from(vec![
        bold(format!(" {} ", plain(&signed.origin))),
        Span::raw(format!("{} signed records", signed.size)),
    ]);
    let second = match (&app.typed, app.query.is_empty()) {
        (Some(typed), _) => {
            Line::from(vec![bold(" filter: "), Span::raw(format!("{}▏", plain(typed)))])
        }
        (None, true) => Line::from(dim(" filter: none")),
        (None, false) => Line::from(vec![dim(" filter: "), bold(plain(&app.query))]),
    };
    frame.render_widget(Paragraph::new(vec![first, second]), area);
}

fn draw_list(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let rows = app.found.iter().map(row);
    let widths = [
        Constraint::Length(9),
        Constraint::Length(20),
        Constraint::Length(21),
        Constraint::Length(16),
        Constraint::Length(16),
        Constraint::Min(8),
    ];
    let head = Row::new(["record", "time", "event", "principal", "model", "outcome"])
        .style(Style::new().add_modifier(Modifier::DIM));
    let table = Table::new(rows, widths)
        .header(head)
        .block(Block::bordered().title(" records, newest first "))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .highlight_symbol("▶ ");
    let mut state =
        TableState::default().with_selected((!app.found.is_empty()).then_some(app.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn row(found: &Found) -> Row<'static> {
    let facts = Facts::of(&found.record.event);
    let principal = facts.principal().or(found.origin.as_ref().map(|of| of.principal.as_str()));
    let model = facts.model().or(found.origin.as_ref().map(|of| of.model.as_str()));
    let cells = [
        found.index.to_string(),
        time_text(found.record.time_s),
        found.record.event.name().to_owned(),
        principal.unwrap_or_default().to_owned(),
        model.unwrap_or_default().to_owned(),
        facts.outcome().unwrap_or_default().to_owned(),
    ];
    let style = match facts.weight {
        Weight::Plain => Style::new(),
        Weight::Notice | Weight::Warning => Style::new().add_modifier(Modifier::BOLD),
    };
    Row::new(cells.map(|cell| Cell::from(plain(&cell)))).style(style)
}

fn draw_record(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let Some(found) = app.found.get(app.selected) else {
        frame.render_widget(Paragraph::new(" no record").block(Block::bordered()), area);
        return;
    };
    let record = &found.record;
    let mut rows = vec![
        ("time".to_owned(), time_text(record.time_s)),
        (
            "machine's start".to_owned(),
            format!("{}, {} s after it", record.boot, record.monotonic_s),
        ),
    ];
    if let Some(origin) = &found.origin {
        rows.push(("request of".to_owned(), format!("{} to {}", origin.principal, origin.model)));
    }
    flatten("", &super::super::facts::members(&record.event), &mut rows);
    let mut lines = vec![Line::from(bold(app.proof.clone()))];
    lines.extend(rows.into_iter().map(|(name, value)| {
        Line::from(vec![dim(format!("{name:<28} ")), Span::raw(plain(&value))])
    }));
    let title = format!(" #{} {} ", found.index, record.event.name());
    let shown = Paragraph::new(lines)
        .block(Block::bordered().title(title))
        .wrap(Wrap { trim: false })
        .scroll((app.scroll, 0));
    frame.render_widget(shown, area);
}

fn draw_foot(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let style = if app.is_fault { Modifier::REVERSED } else { Modifier::empty() };
    let message =
        Span::styled(format!(" {} ", plain(&app.message)), Style::new().add_modifier(style));
    let help = if app.typed.is_some() { HELP } else { KEYS };
    let lines = vec![Line::from(message), Line::from(dim(format!(" {help}")))];
    frame.render_widget(Paragraph::new(lines), area);
}
