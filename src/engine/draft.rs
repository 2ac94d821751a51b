//! Guesses how a text goes on: as it did where its end stood in it before.
//!
//! A guess never changes what is written. Whoever uses it computes the guessed tokens in one
//! batch, samples at each position as ever, and takes back those from the first other token on.

/// Fewest tokens at the end of the text that must have stood there before.
const MATCH_MIN: usize = 2;
/// Tokens of a match from which on a longer one is not looked for.
const MATCH_ENOUGH: usize = 4;

/// Adds a guess of at most `max` tokens to `out`, or none.
///
/// Of the places where the longest end of the text stood before, the last counts. Allocates
/// nothing if `out` has room.
pub fn draft(text: &[u32], max: usize, out: &mut Vec<u32>) {
    if max == 0 {
        return;
    }
    let (mut best, mut start) = (MATCH_MIN - 1, 0);
    for end in (1..text.len()).rev() {
        let matches = text[..end].iter().rev().zip(text.iter().rev()).take(MATCH_ENOUGH);
        let len = matches.take_while(|(before, last)| before == last).count();
        if len > best {
            (best, start) = (len, end);
        }
        if len == MATCH_ENOUGH {
            break;
        }
    }
    if start == 0 {
        return;
    }
    // Where the text ends, the guess goes on with itself: a text that repeats does so.
    let first = out.len();
    for at in start..start + max {
        let token = text.get(at).or_else(|| out.get(first + at - text.len())).copied();
        out.extend(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(text: &[u32], max: usize) -> Vec<u32> {
        let mut out = vec![99];
        draft(text, max, &mut out);
        assert_eq!(out.remove(0), 99, "what was there stays");
        out
    }

    #[test]
    fn a_text_goes_on_as_it_did_before() {
        assert_eq!(guess(&[1, 2, 3, 4, 5, 1, 2], 2), [3, 4]);
        assert_eq!(guess(&[1, 2, 3, 1, 2, 4, 0, 1, 2], 1), [4], "the last place counts");
        assert_eq!(guess(&[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], 1), [3], "a longer match counts more");
        assert_eq!(guess(&[1, 2, 3, 1, 2], 8), [3, 1, 2, 3, 1, 2, 3, 1], "a cycle goes on");
        assert_eq!(guess(&[5, 5, 5], 3), [5, 5, 5]);
    }

    #[test]
    fn what_never_stood_there_is_not_guessed() {
        assert!(guess(&[], 4).is_empty());
        assert!(guess(&[1], 4).is_empty());
        assert!(guess(&[1, 2, 3, 2], 4).is_empty(), "one token is no match");
        assert!(guess(&[1, 2, 3, 4], 4).is_empty());
        assert!(guess(&[1, 2, 1, 2], 0).is_empty());
    }
}
