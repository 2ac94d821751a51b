//! The browser shows what is proven, finds what is asked for, and no record acts on the terminal.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ring::rand::SystemRandom;
use ring::signature::Ed25519KeyPair;
use serde_json::json;

use super::app::App;
use super::draw::draw;
use crate::audit::{Log, Signer, Snapshot, Verifier};

const HOSTILE: &str = "m\u{1b}[2J\u{9b}5n\u{1b}]0;x\u{7}\u{202e}\r\n";

struct Site {
    folder: PathBuf,
    log: Log,
    verifier: Verifier,
}

impl Site {
    fn new(name: &str, events: usize) -> Self {
        let folder =
            std::env::temp_dir().join(format!("cloister-tui-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let der = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        let der = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{der}\n-----END PRIVATE KEY-----\n");
        let signer = Signer::from_pem("test.example/log", pem.as_bytes()).unwrap();
        let verifier = signer.verifier();
        let (log, _) = Log::open(&folder, signer).unwrap();
        let mut site = Self { folder, log, verifier };
        site.add(events);
        site
    }

    fn add(&mut self, count: usize) {
        for at in 0..count {
            let event = json!({ "model_refused": { "observed": { "model": HOSTILE, "check": format!("check {at}") } } });
            self.log.append(serde_json::from_value(event).unwrap()).unwrap();
        }
        self.log.commit().unwrap();
    }

    fn app(&self) -> App {
        let snapshot = Snapshot::open(&self.folder, &self.verifier).unwrap();
        App::new(self.folder.clone(), self.verifier.clone(), snapshot)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn screen(app: &App) -> String {
    let mut terminal = Terminal::new(TestBackend::new(110, 30)).unwrap();
    terminal.draw(|frame| draw(frame, app)).unwrap();
    terminal.backend().to_string()
}

fn press(app: &mut App, keys: &str) {
    for char in keys.chars() {
        let code = if char == '\n' { KeyCode::Enter } else { KeyCode::Char(char) };
        assert!(app.press(KeyEvent::new(code, KeyModifiers::NONE)), "{char:?} ends the browser");
    }
}

#[test]
fn no_text_of_a_record_acts_on_the_terminal() {
    let site = Site::new("hostile", 5);
    let mut app = site.app();
    for keys in ["", "\n", "\n/model:\u{1b}[31m"] {
        press(&mut app, keys);
        let shown = screen(&app);
        assert!(shown.contains("\\u{1b}["), "{shown}");
        let acts = |char: char| char != '\n' && (char.is_control() || char == '\u{202e}');
        assert!(!shown.contains(acts), "{shown:?}");
    }
}

#[test]
fn the_selected_record_is_shown_with_its_proof() {
    let mut site = Site::new("select", 700);
    let mut app = site.app();
    assert!(screen(&app).contains("500+ records, each proven"));
    press(&mut app, "jj");
    let shown = screen(&app);
    assert!(
        shown.contains("#697 model_refused") && shown.contains("PROVEN: in its place"),
        "{shown}"
    );
    assert!(shown.contains("check 697"));
    press(&mut app, "Gj");
    assert!(screen(&app).contains("700 records, each proven"), "more are looked up at the end");
    press(&mut app, "G");
    assert!(screen(&app).contains("#0 model_refused"));
    site.add(1);
    press(&mut app, "rg");
    assert!(screen(&app).contains("#700 model_refused"));
}

#[test]
fn a_filter_is_typed_and_a_wrong_one_is_told() {
    let site = Site::new("filter", 20);
    let mut app = site.app();
    press(&mut app, "/outcome:check\n");
    assert!(screen(&app).contains("0 records"), "an outcome is a whole word");
    press(&mut app, "/ who:me\n");
    assert!(screen(&app).contains("is none of event:"));
    assert!(!app.press(KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE)));
}

#[test]
fn a_changed_record_is_told_and_not_shown() {
    let site = Site::new("changed", 300);
    let path =
        crate::audit::tiles::tile_path(&site.folder, crate::audit::tiles::Kind::Entries, 0, 256);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let mut app = site.app();
    press(&mut app, "r");
    let shown = screen(&app);
    assert!(shown.contains("BROKEN") && !shown.contains("check 299"), "{shown}");
}
