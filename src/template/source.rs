//! Rewrites a template's source: marks its literals, and bounds what its operators can build.
//!
//! The rewritten template does what the original does. `+` and `~` get a filter on both operands
//! that fails when they are too long, because instructions alone do not bound what doubling a
//! string builds. Literals that a template compares with or passes to methods and filters stay
//! unmarked, as they are held against a user's text; where that guess is wrong, the rendered text
//! differs from the unmarked template's, and the caller sees it. What `set` stores gets the same
//! filter, so that no loop can nest a list in a list without end.

use super::provenance::mark;

/// The filter on operands of `+` and `~`.
pub(super) const BOUND_FILTER: &str = "cloister_bounded";
/// The filter on operands of `*`.
pub(super) const FACTOR_FILTER: &str = "cloister_factor";

/// Functions whose arguments are not written out.
const SILENT_FUNCTIONS: &[&str] =
    &["raise_exception", "strftime_now", "namespace", "range", "dict", "debug"];
/// Words that are not operands.
const KEYWORDS: &[&str] = &["in", "not", "and", "or", "if", "else", "is", "elif", "set", "for"];

/// Which literals are marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marking {
    /// None.
    Nothing,
    /// All but those that are compared or passed on.
    Everything,
    /// Those of raw text and `{{ … }}` alone.
    Written,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TokenKind {
    String,
    Word,
    Operator,
}

#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    kind: TokenKind,
    text: &'a str,
    start: usize,
}

impl Token<'_> {
    fn end(&self) -> usize {
        self.start + self.text.len()
    }

    fn is_operand_end(&self) -> bool {
        match self.kind {
            TokenKind::String => true,
            TokenKind::Word => !KEYWORDS.contains(&self.text),
            TokenKind::Operator => matches!(self.text, ")" | "]" | "}"),
        }
    }
}

/// Tags that need other templates, of which there are none.
const OTHER_TEMPLATES: &[&str] = &["include", "import", "from", "extends", "block"];

/// Returns whether a tag of the source needs other templates.
pub(super) fn needs_other_templates(source: &str) -> bool {
    let names = source.split("{%").skip(1).map(|tag| {
        let tag = tag.trim_start_matches(['-', '+']).trim_start();
        tag.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
    });
    names.into_iter().any(|name| OTHER_TEMPLATES.contains(&name))
}

/// Returns the rewritten source.
pub(super) fn rewrite(source: &str, marking: Marking) -> String {
    let mut output = String::with_capacity(source.len() * 2);
    let mut rest = source;
    loop {
        let tag = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min();
        let (raw, tagged) = rest.split_at(tag.unwrap_or(rest.len()));
        push_raw(&mut output, raw, marking);
        if tagged.is_empty() {
            return output;
        }
        let len = if tagged.starts_with("{#") {
            let len = tagged.find("#}").map_or(tagged.len(), |end| end + 2);
            output.push_str(&tagged[..len]);
            len
        } else {
            rewrite_tag(&mut output, tagged, marking)
        };
        rest = &tagged[len..];
    }
}

fn push_raw(output: &mut String, raw: &str, marking: Marking) {
    match marking {
        Marking::Nothing => output.push_str(raw),
        _ => output.extend(raw.chars().map(mark)),
    }
}

/// Rewrites the tag at the start of `source`, with all that a raw block holds; returns its length.
fn rewrite_tag(output: &mut String, source: &str, marking: Marking) -> usize {
    let is_output = source.starts_with("{{");
    let (tokens, len) = tokens(source);
    let name = tokens.first().map_or("", |token| token.text);
    if !is_output && name == "raw" {
        output.push_str(&source[..len]);
        let end = end_of_raw(&source[len..]).map_or(source.len(), |end| len + end);
        push_raw(output, &source[len..end], marking);
        return end;
    }
    let marks = match marking {
        Marking::Nothing => false,
        Marking::Written => is_output,
        Marking::Everything => is_output || !matches!(name, "if" | "elif" | "for"),
    };
    let guards = guards(&tokens);
    let assigned = if name == "set" { assignment(&tokens) } else { None };
    let mut copied = 0;
    for (index, token) in tokens.iter().enumerate() {
        output.push_str(&source[copied..token.start]);
        copied = token.end();
        if token.kind == TokenKind::String && marks && is_written(&tokens, index) {
            push_literal(output, token.text);
        } else {
            output.push_str(token.text);
        }
        for (_, filter) in guards.iter().filter(|(after, _)| *after == index) {
            output.push('|');
            output.push_str(filter);
        }
        if assigned == Some(index) {
            output.push_str(" (");
        } else if assigned.is_some() && index + 1 == tokens.len() {
            output.push_str(")|");
            output.push_str(BOUND_FILTER);
        }
    }
    output.push_str(&source[copied..len]);
    len
}

/// Returns the `=` of a `set` tag that has something after it.
fn assignment(tokens: &[Token<'_>]) -> Option<usize> {
    let is_equals = |token: &Token<'_>| token.kind == TokenKind::Operator && token.text == "=";
    tokens.iter().position(is_equals).filter(|&index| index + 1 < tokens.len())
}

fn end_of_raw(source: &str) -> Option<usize> {
    source.match_indices("{%").map(|(at, _)| at).find(|&at| {
        let name = source[at + 2..].trim_start_matches(['-', '+']).trim_start();
        name.starts_with("endraw")
    })
}

/// Marks a string literal; what a backslash escapes stays.
fn push_literal(output: &mut String, literal: &str) {
    let mut chars = literal.chars();
    output.extend(chars.next());
    let body = chars.as_str();
    let quote_len = literal.len() - body.len();
    let Some(body) = body.get(..body.len().saturating_sub(quote_len)) else { return };
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            output.push(mark(c));
            continue;
        }
        output.push(c);
        let escaped = chars.next();
        output.extend(escaped);
        let digits = match escaped {
            Some('u') => 4,
            Some('x') => 2,
            _ => 0,
        };
        output.extend(chars.by_ref().take(digits));
    }
    output.push_str(&literal[quote_len + body.len()..]);
}

/// Returns the tokens of the tag at the start of `source` and the tag's length.
fn tokens(source: &str) -> (Vec<Token<'_>>, usize) {
    let close = if source.starts_with("{{") { "}}" } else { "%}" };
    let mut tokens = Vec::new();
    let (mut at, mut depth) = (2, 0usize);
    if source[at..].starts_with(['-', '+']) {
        at += 1;
    }
    while let Some(c) = source[at..].chars().next() {
        let rest = &source[at..];
        if depth == 0 {
            let trimmed = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if trimmed.starts_with(close) {
                return (tokens, at + (rest.len() - trimmed.len()) + close.len());
            }
        }
        let (kind, len) = token(rest, c);
        if let Some(kind) = kind {
            tokens.push(Token { kind, text: &rest[..len], start: at });
        }
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += len;
    }
    (tokens, source.len())
}

/// Returns what `rest` starts with (nothing for white space) and its length.
fn token(rest: &str, first: char) -> (Option<TokenKind>, usize) {
    let is_word = |c: char| c == '_' || c.is_alphanumeric();
    if first.is_whitespace() {
        (None, first.len_utf8())
    } else if first == '"' || first == '\'' {
        (Some(TokenKind::String), string_len(rest, first))
    } else if is_word(first) {
        let len = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        (Some(TokenKind::Word), len)
    } else {
        let double = ["==", "!=", "<=", ">=", "**", "//"].iter().any(|op| rest.starts_with(op));
        (Some(TokenKind::Operator), if double { 2 } else { first.len_utf8() })
    }
}

fn string_len(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Returns whether the literal at `index` is written out rather than compared or passed on.
fn is_written(tokens: &[Token<'_>], index: usize) -> bool {
    let compares = |token: Option<&Token<'_>>| {
        token.is_some_and(|token| {
            matches!(token.text, "==" | "!=" | "<" | ">" | "<=" | ">=" | "in" | "not" | ".")
        })
    };
    let previous = index.checked_sub(1).and_then(|index| tokens.get(index));
    if compares(previous) || compares(tokens.get(index + 1)) {
        return false;
    }
    let mut depth = 0usize;
    for at in (0..index).rev() {
        match tokens[at].text {
            ")" | "]" | "}" if tokens[at].kind == TokenKind::Operator => depth += 1,
            "(" | "[" | "{" if tokens[at].kind == TokenKind::Operator && depth > 0 => depth -= 1,
            "[" | "{" if tokens[at].kind == TokenKind::Operator => return false,
            "(" if tokens[at].kind == TokenKind::Operator && passes_on(tokens, at) => return false,
            _ => {}
        }
    }
    true
}

/// Returns whether the parenthesis at `open` holds the arguments of a method, filter or test.
fn passes_on(tokens: &[Token<'_>], open: usize) -> bool {
    let Some(name) = open.checked_sub(1).map(|at| tokens[at]) else { return false };
    if name.kind != TokenKind::Word || KEYWORDS.contains(&name.text) {
        return false;
    }
    let before = open.checked_sub(2).map_or("", |at| tokens[at].text);
    match before {
        "|" => !matches!(name.text, "default" | "d" | "join"),
        "." | "is" | "not" => true,
        _ => SILENT_FUNCTIONS.contains(&name.text),
    }
}

/// Returns after which tokens a filter must stand to bound the operands of `+`, `~` and `*`.
fn guards(tokens: &[Token<'_>]) -> Vec<(usize, &'static str)> {
    let mut guards = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        let filter = match token.text {
            "+" | "~" if token.kind == TokenKind::Operator => BOUND_FILTER,
            "*" if token.kind == TokenKind::Operator => FACTOR_FILTER,
            _ => continue,
        };
        let Some(left) = at.checked_sub(1).filter(|&left| tokens[left].is_operand_end()) else {
            continue;
        };
        guards.push((left, filter));
        if let Some(right) = operand_end(tokens, at + 1) {
            guards.push((right, filter));
        }
    }
    guards
}

/// Returns the last token of the operand that starts at `at`, with its attributes and filters.
fn operand_end(tokens: &[Token<'_>], mut at: usize) -> Option<usize> {
    while matches!(tokens.get(at)?.text, "-" | "+" | "not") {
        at += 1;
    }
    let mut end = group_end(tokens, at)?;
    loop {
        match tokens.get(end + 1).map(|token| token.text) {
            Some("." | "|") if tokens.get(end + 2).is_some() => end += 2,
            Some("[" | "(") => end = group_end(tokens, end + 1)?,
            _ => return Some(end),
        }
    }
}

/// Returns the token that closes the bracket at `at`, or `at` itself.
fn group_end(tokens: &[Token<'_>], at: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(at) {
        if token.kind == TokenKind::Operator {
            match token.text {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.checked_sub(1)?,
                _ => {}
            }
        }
        if depth == 0 {
            return Some(index);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(text: &str) -> String {
        text.chars().map(mark).collect()
    }

    #[test]
    fn operands_are_bounded_on_both_sides() {
        let cases = [
            ("{{ a + b }}", "{{ a|cloister_bounded + b|cloister_bounded }}"),
            (
                "{{- x.y[0] ~ (c)|trim('+') -}}",
                "{{- x.y[0]|cloister_bounded ~ (c)|trim('+')|cloister_bounded -}}",
            ),
            ("{% set n = -1 -%}", "{% set n = ( -1)|cloister_bounded -%}"),
            (
                "{% set n.a = b + c %}",
                "{% set n.a = ( b|cloister_bounded + c|cloister_bounded)|cloister_bounded %}",
            ),
            ("{% set n %}a{% endset %}", "{% set n %}a{% endset %}"),
            ("{{ 'a' * 3 }}", "{{ 'a'|cloister_factor * 3|cloister_factor }}"),
            (
                "{# a + b #}{% raw %}{{ a + b }}{% endraw %}",
                "{# a + b #}{% raw %}{{ a + b }}{% endraw %}",
            ),
        ];
        for (source, expected) in cases {
            assert_eq!(rewrite(source, Marking::Nothing), expected);
        }
    }

    #[test]
    fn only_written_literals_are_marked() {
        let source = "a{{ '<x>' }}{% if m['role'] == '<x>' or '<x>' in c %}{{ c.split('<x>')[0] }}{% endif %}";
        let expected = source.replacen("'<x>'", &format!("'{}'", marked("<x>")), 1);
        let expected = expected.replacen('a', &marked("a"), 1);
        assert_eq!(rewrite(source, Marking::Everything), expected);
    }

    #[test]
    fn escapes_survive_marking() {
        let rewritten = rewrite(r#"{{ "a\n\"\u0041" }}"#, Marking::Everything);
        assert_eq!(rewritten, format!(r#"{{{{ "{}\n\"\u0041" }}}}"#, marked("a")));
    }

    #[test]
    fn broken_sources_do_not_panic() {
        for source in ["{{", "{%", "{#", "{{ '", "{{ (", "{{ a +", "{% raw %}", "{{ '\\", "{{ é + "]
        {
            for marking in [Marking::Nothing, Marking::Everything, Marking::Written] {
                assert!(rewrite(source, marking).len() >= source.len());
            }
        }
    }
}
