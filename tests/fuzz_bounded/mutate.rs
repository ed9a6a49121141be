//! Mutations of valid inputs, as a function of the case's number.

const EXTREMES: [u64; 9] = [0, 1, 2, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];

pub struct Mutator<'a> {
    state: u64,
    seeds: &'a [Vec<u8>],
    words: &'a [&'a [u8]],
}

impl<'a> Mutator<'a> {
    pub fn new(case: u64, seeds: &'a [Vec<u8>], words: &'a [&'a [u8]]) -> Mutator<'a> {
        Mutator { state: case.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15, seeds, words }
    }

    /// Xorshift, multiplied at the end.
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `n`; 0 if there is nothing below it.
    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 16) as usize % n.max(1)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A seed with one to four faults; half of the mutants keep its outer form, so that the fault lies deep. One in sixteen
    /// is made of words alone.
    pub fn mutant(&mut self) -> Vec<u8> {
        let seeds = self.seeds;
        if self.below(16) == 0 {
            return (0..1 + self.below(24)).flat_map(|_| self.pick(self.words).to_vec()).collect();
        }
        let mut data = seeds[self.below(seeds.len())].clone();
        let any = self.below(2) == 0;
        for _ in 0..1 + self.below(4) {
            match self.below(if any { 12 } else { 6 }) {
                kind if kind < 6 && json(&data) => self.value(&mut data),
                0..3 => self.byte(&mut data),
                3..6 => self.field(&mut data),
                _ => self.form(&mut data),
            }
        }
        data
    }

    fn byte(&mut self, data: &mut [u8]) {
        let at = self.below(data.len());
        if let Some(byte) = data.get_mut(at) {
            *byte = if self.below(2) == 0 { *byte ^ (1 << self.below(8)) } else { self.next() as u8 };
        }
    }

    /// A word in place of a value, or of a key.
    fn value(&mut self, data: &mut Vec<u8>) {
        let at = self.below(data.len());
        let ends = |byte: &u8| b",:[]{}".contains(byte);
        let begin = data[..at].iter().rposition(ends).map_or(0, |i| i + 1);
        let end = data[at..].iter().position(ends).map_or(data.len(), |i| at + i);
        let word = self.pick(self.words);
        if begin < end {
            data.splice(begin..end, word.iter().copied());
        }
    }

    fn form(&mut self, data: &mut Vec<u8>) {
        let at = self.below(data.len());
        let len = data.len();
        match self.below(6) {
            0 => self.byte(data),
            1 => data.truncate(at),
            2 => {
                // The rest of another seed, from there or from anywhere.
                let seeds = self.seeds;
                let other = &seeds[self.below(seeds.len())];
                let from = if self.below(2) == 0 { at.min(other.len()) } else { self.below(other.len()) };
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            3 => {
                let end = (at + self.below(64)).min(len);
                let piece = data[at..end].to_vec();
                let to = self.below(len);
                data.splice(to..to, piece);
            }
            4 => {
                let end = (at + 1 + self.below(16)).min(len);
                data.drain(at..end);
            }
            _ => {
                let word = self.pick(self.words);
                // In place of a number, of as many bytes, or in between.
                let digits = data[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                let gone = [digits, word.len(), 0][self.below(3)].min(len - at);
                data.splice(at..at + gone, word.iter().copied());
            }
        }
    }

    /// A field of 2, 4 or 8 bytes, wherever it lies, becomes an extreme or near what it was or the whole length.
    fn field(&mut self, data: &mut [u8]) {
        let width = self.pick(&[2, 4, 8]);
        if data.len() < width {
            return;
        }
        let at = self.below(data.len() - width + 1);
        // Fields are aligned more often than not.
        let at = if self.below(2) == 0 { at & !(width - 1) } else { at };
        let mut old = [0; 8];
        old[..width].copy_from_slice(&data[at..at + width]);
        let near = u64::from_le_bytes(old).wrapping_add(self.pick(&[1, u64::MAX]));
        let around = (data.len() as u64).wrapping_add(self.pick(&[0, 1, u64::MAX]));
        let value = [self.pick(&EXTREMES), near, around][self.below(3)];
        data[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

fn json(data: &[u8]) -> bool {
    data.windows(2).any(|pair| pair == b"\":")
}
