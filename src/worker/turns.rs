//! Who reads how many tokens of a step: the policy alone, so that every case can be tested.
//!
//! An answer that is being written reads its one token in every step. Prompts share what room
//! is left, a piece each in turn, so that none waits behind a longer one and none is passed
//! over. What a step computes does not change what a request is answered, only when.

/// Most tokens of one engine step, in tokens: from here on a longer step reads a prompt no
/// faster.
pub(super) const STEP_TOKENS_MAX: usize = 512;
/// Most prompt tokens of a step that also writes answers, in tokens. Every answer waits for
/// them, so they are few; but they are enough that what a step does once, unpacking the weights
/// and reading them, is a small part of it.
const PROMPT_TOKENS_BESIDE_ANSWERS: usize = 64;
/// Tokens that a prompt reads before it is the next one's turn.
const PIECE_TOKENS: usize = 32;

/// What a request could read in the next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// The last token of an answer that is being written.
    Answer,
    /// So many tokens of a prompt.
    Prompt(usize),
}

/// Deals out steps.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Whose turn it is among the answers, should there be more than a step holds.
    answer: usize,
    /// Whose turn it is among the prompts.
    prompt: usize,
    shares: Vec<usize>,
}

impl Turns {
    /// Turns of so many requests at once, for which nothing is allocated later.
    #[must_use]
    pub(super) fn new(requests_max: usize) -> Self {
        Self { shares: Vec::with_capacity(requests_max), ..Self::default() }
    }

    /// Returns how many tokens each request reads in the next step.
    pub(super) fn deal(&mut self, needs: &[Need]) -> &[usize] {
        self.shares.clear();
        self.shares.resize(needs.len(), 0);
        let has = |is_answer: bool| needs.iter().any(|need| (*need == Need::Answer) == is_answer);
        let prompt_room = if has(true) { PROMPT_TOKENS_BESIDE_ANSWERS } else { STEP_TOKENS_MAX };
        let answer_room = STEP_TOKENS_MAX - if has(false) { prompt_room } else { 0 };
        self.deal_answers(needs, answer_room);
        self.deal_prompts(needs, prompt_room);
        &self.shares
    }

    fn deal_answers(&mut self, needs: &[Need], mut room: usize) {
        for at in turn_order(self.answer, needs.len()) {
            if needs[at] != Need::Answer {
                continue;
            }
            if room == 0 {
                self.answer = at;
                return;
            }
            self.shares[at] = 1;
            room -= 1;
        }
    }

    fn deal_prompts(&mut self, needs: &[Need], mut room: usize) {
        loop {
            let mut dealt = 0;
            for at in turn_order(self.prompt, needs.len()) {
                let Need::Prompt(unread) = needs[at] else { continue };
                let piece = (unread - self.shares[at]).min(PIECE_TOKENS).min(room - dealt);
                self.shares[at] += piece;
                dealt += piece;
                if dealt == room {
                    self.prompt = at + 1;
                    return;
                }
            }
            if dealt == 0 {
                return;
            }
            room -= dealt;
        }
    }

    /// The request at `at` is gone, and those after it have moved up.
    pub(super) fn removed(&mut self, at: usize) {
        for turn in [&mut self.answer, &mut self.prompt] {
            *turn -= usize::from(*turn > at);
        }
    }
}

/// All requests, from the one whose turn it is.
fn turn_order(turn: usize, len: usize) -> impl Iterator<Item = usize> {
    let turn = if turn < len { turn } else { 0 };
    (turn..len).chain(0..turn)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: Need = Need::Answer;

    fn deal(needs: &[Need]) -> Vec<usize> {
        Turns::default().deal(needs).to_vec()
    }

    #[test]
    fn prompts_alone_fill_a_step_and_beside_answers_a_part_of_it() {
        assert!(deal(&[]).is_empty());
        assert_eq!(deal(&[Need::Prompt(5)]), [5]);
        assert_eq!(deal(&[Need::Prompt(5000)]), [STEP_TOKENS_MAX]);
        assert_eq!(deal(&[Need::Prompt(5000), Need::Prompt(5000)]), [256, 256]);
        let beside = PROMPT_TOKENS_BESIDE_ANSWERS;
        assert_eq!(deal(&[Need::Prompt(5000), ANSWER]), [beside, 1]);
        assert_eq!(deal(&[ANSWER; 3]), [1, 1, 1]);
        assert_eq!(deal(&[Need::Prompt(3), ANSWER, Need::Prompt(4)]), [3, 1, 4]);
    }

    #[test]
    fn a_short_prompt_is_not_stuck_behind_long_ones() {
        let mut turns = Turns::default();
        let mut needs = vec![Need::Prompt(8000); 8];
        needs.push(Need::Prompt(40));
        needs.push(ANSWER);
        let mut steps = 0;
        while needs[8] != Need::Prompt(0) {
            read(&mut turns, &mut needs);
            steps += 1;
        }
        // Two pieces, each after at most one of every other prompt.
        assert!(steps <= 2 * (9 * PIECE_TOKENS).div_ceil(PROMPT_TOKENS_BESIDE_ANSWERS), "{steps}");
    }

    /// Runs a step and takes what it read off the needs.
    fn read(turns: &mut Turns, needs: &mut [Need]) -> Vec<usize> {
        let shares = turns.deal(needs).to_vec();
        for (need, share) in needs.iter_mut().zip(&shares) {
            if let Need::Prompt(unread) = need {
                *unread -= share;
            }
        }
        shares
    }

    #[test]
    fn equal_prompts_stay_within_a_piece_of_each_other() {
        for count in 1..40 {
            let (mut turns, mut needs) = (Turns::default(), vec![Need::Prompt(1000); count]);
            needs.push(ANSWER);
            let mut done = vec![0; count];
            while done.iter().any(|done| *done < 1000) {
                let shares = read(&mut turns, &mut needs);
                assert!(shares.iter().sum::<usize>() <= 1 + PROMPT_TOKENS_BESIDE_ANSWERS);
                assert_eq!(shares[count], 1, "the answer never waits");
                done.iter_mut().zip(shares).for_each(|(done, share)| *done += share);
                let (least, most) = (done.iter().min().unwrap(), done.iter().max().unwrap());
                assert!(most - least <= PIECE_TOKENS, "{done:?}");
            }
        }
    }

    #[test]
    fn more_answers_than_a_step_holds_take_turns_and_leave_prompts_their_room() {
        let (mut turns, mut needs) = (Turns::default(), vec![ANSWER; 700]);
        needs.push(Need::Prompt(1000));
        let mut written = [0; 700];
        for step in 1..=20 {
            let shares = turns.deal(&needs).to_vec();
            assert_eq!(shares.iter().sum::<usize>(), STEP_TOKENS_MAX);
            assert_eq!(shares[700], PROMPT_TOKENS_BESIDE_ANSWERS);
            written.iter_mut().zip(&shares).for_each(|(written, share)| *written += share);
            let (least, most) = (written.iter().min().unwrap(), written.iter().max().unwrap());
            assert!(most - least <= 1, "after {step} steps");
        }
    }

    #[test]
    fn a_turn_survives_those_who_leave() {
        let mut turns = Turns::default();
        let mut needs = vec![Need::Prompt(PIECE_TOKENS * 9); 6];
        needs.push(ANSWER);
        let pieces = PROMPT_TOKENS_BESIDE_ANSWERS / PIECE_TOKENS;
        assert_eq!(read(&mut turns, &mut needs).iter().filter(|share| **share > 1).count(), pieces);
        // It is the turn of the one after the last that was served, also when one before it left.
        needs.remove(0);
        turns.removed(0);
        assert_eq!(read(&mut turns, &mut needs)[pieces - 1], PIECE_TOKENS);
        needs.clear();
        (0..7).rev().for_each(|at| turns.removed(at));
        assert_eq!(turns.deal(&[Need::Prompt(1)]), [1]);
    }
}
