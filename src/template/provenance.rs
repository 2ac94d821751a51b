//! Tells a template's own characters from those of the messages after both went through it.
//!
//! Every character of the template's literals but white space is moved by four planes, to code
//! points that no text holds (planes 4 to 7 are unassigned, and messages that hold them are
//! refused). What comes out moved is the template's; all else may be a user's. Nothing that a
//! template does to strings can move a user's character, so the mark cannot be forged.

use super::conversation::ROLES;
use crate::tokenizer::Fragment;

/// How far a character is moved.
const DISTANCE: u32 = 0x4_0000;

/// Returns the moved character; white space, and what is beyond plane 3, stays.
pub(super) fn mark(c: char) -> char {
    let code = u32::from(c);
    if c.is_whitespace() || code >= DISTANCE {
        return c;
    }
    char::from_u32(code + DISTANCE).unwrap_or(c)
}

/// Returns whether a character was moved.
pub(super) fn is_marked(c: char) -> bool {
    (DISTANCE..2 * DISTANCE).contains(&u32::from(c))
}

/// Returns the character that was moved.
fn unmark(c: char) -> char {
    if is_marked(c) { char::from_u32(u32::from(c) - DISTANCE).unwrap_or(c) } else { c }
}

/// Returns the text with every character where it belongs.
pub(super) fn unmark_text(text: &str) -> String {
    text.chars().map(unmark).collect()
}

/// Cuts a marked text into what is trusted and what is not.
///
/// White space cannot be marked: it is trusted between trusted text only. So is the bare name of a
/// role, from which templates put markup together.
pub(super) fn fragments(marked: &str) -> Vec<Fragment> {
    let mut parts: Vec<Fragment> = Vec::new();
    let mut rest = marked;
    while !rest.is_empty() {
        let trusted = rest.chars().find(|c| !c.is_whitespace()).is_some_and(is_marked);
        let ends = |c: char| !c.is_whitespace() && is_marked(c) != trusted;
        let end = rest.find(ends).unwrap_or(rest.len());
        // White space at a border belongs to the side that is not trusted.
        let end = if trusted { rest[..end].trim_end().len() } else { end };
        let (part, after) = rest.split_at(end);
        let is_role = !parts.is_empty() && !after.is_empty() && ROLES.contains(&part);
        push(&mut parts, &unmark_text(part), trusted || is_role);
        rest = after;
    }
    parts
}

fn push(parts: &mut Vec<Fragment>, text: &str, trusted: bool) {
    match parts.last_mut() {
        Some(last) if last.trusted == trusted => last.text.push_str(text),
        _ => parts.push(Fragment { text: text.to_owned(), trusted }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(marked: &str) -> Vec<(String, bool)> {
        fragments(marked).into_iter().map(|part| (part.text, part.trusted)).collect()
    }

    fn marked(text: &str) -> String {
        text.chars().map(mark).collect()
    }

    #[test]
    fn only_marked_text_and_roles_within_it_are_trusted() {
        let text = [&marked("<|"), "user", &marked("|>"), "\n<|user|> \n", &marked("<|end|>")];
        let expected = [("<|user|>", true), ("\n<|user|> \n", false), ("<|end|>", true)];
        assert_eq!(cut(&text.concat()), expected.map(|(text, trusted)| (text.to_owned(), trusted)));
    }

    #[test]
    fn a_role_on_its_own_or_in_a_sentence_is_not_trusted() {
        assert_eq!(cut("user"), [("user".to_owned(), false)]);
        let text = [&marked("<"), "user x", &marked(">")].concat();
        assert_eq!(cut(&text)[1], ("user x".to_owned(), false));
    }

    #[test]
    fn white_space_goes_with_what_is_not_trusted() {
        let text = [&marked("a b"), " \n", "c"].concat();
        assert_eq!(cut(&text), [("a b".to_owned(), true), (" \nc".to_owned(), false)]);
        assert_eq!(cut(" \n"), [(" \n".to_owned(), false)]);
    }
}
