//! CRC-32C, alone or while bytes are copied. Where the processor can, 64 bytes at a time by
//! carry-less multiplication: a sum costs less than the copy that it goes along with.

/// The CRC-32C of `bytes` behind those whose sum is `before` (0: behind nothing).
pub fn append(before: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if wide::is_worth_it(bytes.len()) {
        return wide::append(before, bytes);
    }
    crc32c::crc32c_append(before, bytes)
}

/// Copies `from` to `to`, which is as long, and returns its CRC-32C. What is copied goes past the
/// processor's cache if it is long: its next reader is another process, later. Before another is
/// told of it, [`settle`].
pub fn copy(to: &mut [u8], from: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if wide::is_worth_it(from.len()) {
        return wide::copy(to, from);
    }
    to.copy_from_slice(from);
    crc32c::crc32c(from)
}

/// Lets all that was copied past the cache be seen by whoever is told of it after this.
pub fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this kind has the instruction.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Copies bytes past the processor's cache, where they are many. Before another is told of it,
/// [`settle`].
///
/// # Safety
/// As many bytes fit at `to`, and nothing refers to them.
pub unsafe fn stream(to: *mut u8, from: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    if wide::is_worth_it(from.len()) && to.align_offset(wide::LINE) == 0 {
        // SAFETY: as the caller says, and the processor has the feature.
        return unsafe { wide::stream(to, from) };
    }
    // SAFETY: as the caller says.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
}

/// The CRC-32C of some numbers, little-endian, and of a short one behind them.
#[inline]
pub fn numbers<const N: usize>(numbers: &[u64; N], last: u32) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has the feature.
        return unsafe { wide::numbers(numbers, last) };
    }
    let sum = |before, bytes: &[u8]| crc32c::crc32c_append(before, bytes);
    let most = numbers.iter().fold(0, |before, number| sum(before, &number.to_le_bytes()));
    sum(most, &last.to_le_bytes())
}

#[cfg(target_arch = "x86_64")]
mod wide {
    use std::arch::x86_64::*;

    const POLYNOMIAL: u32 = 0x1EDC_6F41;
    /// Bytes of one register.
    pub const LINE: usize = 64;
    /// Bytes of one turn.
    const STEP: usize = 4 * LINE;

    /// x^n modulo the polynomial, in the form in which reflected numbers are multiplied.
    const fn power(n: u32) -> u64 {
        let (mut rest, mut at) = (1u32, 0);
        while at < n {
            rest = (rest << 1) ^ (POLYNOMIAL * (rest >> 31));
            at += 1;
        }
        (rest.reverse_bits() as u64) << 1
    }

    /// The factors of both halves of 128 bits that move them on by `bits`.
    const fn shift(bits: u32) -> (u64, u64) {
        (power(bits + 32), power(bits - 32))
    }

    const TURN: (u64, u64) = shift(8 * STEP as u32);
    const ONE: (u64, u64) = shift(8 * LINE as u32);
    const LANES: [(u64, u64); 3] = [shift(384), shift(256), shift(128)];

    /// Whether this processor has what is needed, and so few bytes are not quicker otherwise.
    #[inline]
    pub fn is_worth_it(length: usize) -> bool {
        length >= 2 * STEP
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("sse4.2")
    }

    /// As outside; [`is_worth_it`] was asked.
    pub fn append(before: u32, bytes: &[u8]) -> u32 {
        let (turns, rest) = bytes.split_at(bytes.len() - bytes.len() % STEP);
        // SAFETY: the processor has the features; nothing is written.
        let state = unsafe { fold::<KEEP>(!before, turns, std::ptr::null_mut()) };
        crc32c::crc32c_append(!state, rest)
    }

    /// As outside; [`is_worth_it`] was asked.
    pub fn copy(to: &mut [u8], from: &[u8]) -> u32 {
        let (turns, rest) = from.split_at(from.len() - from.len() % STEP);
        let (first, last) = to[..from.len()].split_at_mut(turns.len());
        let to = first.as_mut_ptr();
        // SAFETY: the processor has the features; `first` has room for all of `turns`, and the
        // stores that need whole lines are chosen only where it begins with one.
        let state = unsafe {
            match to.align_offset(LINE) {
                0 => fold::<STREAM>(!0, turns, to),
                _ => fold::<STORE>(!0, turns, to),
            }
        };
        last.copy_from_slice(rest);
        crc32c::crc32c_append(!state, rest)
    }

    /// As outside.
    #[inline]
    #[target_feature(enable = "sse4.2")]
    pub fn numbers<const N: usize>(numbers: &[u64; N], last: u32) -> u32 {
        let state = numbers.iter().fold(u64::from(!0u32), |s, number| _mm_crc32_u64(s, *number));
        !_mm_crc32_u32(state as u32, last)
    }

    /// Nothing is copied.
    const KEEP: u8 = 0;
    /// Copied as usual.
    const STORE: u8 = 1;
    /// Copied past the cache, to whole lines.
    const STREAM: u8 = 2;

    /// As outside; `to` is a multiple of [`LINE`] and [`is_worth_it`] was asked.
    ///
    /// # Safety
    /// The processor has the feature, and as many bytes fit at `to`.
    #[target_feature(enable = "avx512f")]
    pub unsafe fn stream(to: *mut u8, from: &[u8]) {
        let whole = from.len() - from.len() % LINE;
        for at in (0..whole).step_by(LINE) {
            // SAFETY: a line at `at` lies within both, and `to + at` is a multiple of it.
            unsafe {
                let line = _mm512_loadu_si512(from.as_ptr().add(at).cast());
                _mm512_stream_si512(to.add(at).cast(), line);
            }
        }
        let rest = &from[whole..];
        // SAFETY: what is left fits behind it.
        unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), to.add(whole), rest.len()) };
    }

    #[inline]
    #[target_feature(enable = "avx512f,vpclmulqdq")]
    fn step(sum: __m512i, factors: __m512i, next: __m512i) -> __m512i {
        let low = _mm512_clmulepi64_epi128::<0x00>(sum, factors);
        let high = _mm512_clmulepi64_epi128::<0x11>(sum, factors);
        _mm512_ternarylogic_epi64::<0x96>(low, high, next)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn factors(of: (u64, u64)) -> __m512i {
        _mm512_broadcast_i32x4(_mm_set_epi64x(of.1 as i64, of.0 as i64))
    }

    /// The state after `bytes`, whole turns and at least one; they go to `to` meanwhile.
    ///
    /// # Safety
    /// The processor has the features. Unless `HOW` is [`KEEP`], as many bytes fit at `to`, which
    /// for [`STREAM`] is a multiple of [`LINE`].
    #[target_feature(enable = "avx512f,avx2,vpclmulqdq,sse4.2")]
    unsafe fn fold<const HOW: u8>(state: u32, bytes: &[u8], to: *mut u8) -> u32 {
        let take = |at: usize| {
            // SAFETY: `at` and the line behind it lie within `bytes`, and so within `to`.
            unsafe {
                let line = _mm512_loadu_si512(bytes.as_ptr().add(at).cast());
                match HOW {
                    STORE => _mm512_storeu_si512(to.add(at).cast(), line),
                    STREAM => _mm512_stream_si512(to.add(at).cast(), line),
                    _ => {}
                }
                line
            }
        };
        let turn = factors(TURN);
        let begin = _mm512_zextsi128_si512(_mm_cvtsi32_si128(state as i32));
        let mut sums = [take(0), take(LINE), take(2 * LINE), take(3 * LINE)];
        sums[0] = _mm512_xor_si512(sums[0], begin);
        for at in (STEP..bytes.len()).step_by(STEP) {
            sums[0] = step(sums[0], turn, take(at));
            sums[1] = step(sums[1], turn, take(at + LINE));
            sums[2] = step(sums[2], turn, take(at + 2 * LINE));
            sums[3] = step(sums[3], turn, take(at + 3 * LINE));
        }
        let one = factors(ONE);
        let [first, second, third, fourth] = sums;
        finish(step(step(step(first, one, second), one, third), one, fourth))
    }

    /// The state of which `sum` is the multiple.
    #[inline]
    #[target_feature(enable = "avx512f,avx2,vpclmulqdq,sse4.2")]
    fn finish(sum: __m512i) -> u32 {
        let [a, b, c] = LANES;
        let lanes = _mm512_set_epi64(
            0, 0, c.1 as i64, c.0 as i64, b.1 as i64, b.0 as i64, a.1 as i64, a.0 as i64,
        );
        // The last lane is where it belongs: it is added as it is.
        let last = _mm512_maskz_mov_epi64(0b1100_0000, sum);
        let sum = step(sum, lanes, last);
        let high = _mm512_extracti64x4_epi64::<1>(sum);
        let sum = _mm256_xor_si256(_mm512_castsi512_si256(sum), high);
        let high = _mm256_extracti128_si256::<1>(sum);
        let sum = _mm_xor_si128(_mm256_castsi256_si128(sum), high);
        let state = _mm_crc32_u64(0, _mm_cvtsi128_si64(sum) as u64);
        _mm_crc32_u64(state, _mm_extract_epi64::<1>(sum) as u64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    #[test]
    fn equals_the_sum_of_one_bit_after_the_other() {
        let slow = |bytes: &[u8]| {
            !bytes.iter().fold(!0u32, |state, byte| {
                (0..8).fold(state ^ u32::from(*byte), |s, _| (s >> 1) ^ (0x82F6_3B78 * (s & 1)))
            })
        };
        assert_eq!(slow(b"123456789"), 0xE306_9283);
        let mut random = Random::new(3);
        let bytes: Vec<u8> = (0..70_000).map(|_| random.next() as u8).collect();
        for _ in 0..300 {
            let start = random.below(130) as usize;
            let length = (random.next() >> (47 + random.below(14))) as usize % 60_000;
            let part = &bytes[start..start + length];
            let expected = slow(part);
            let cut = random.below(length as u64 + 1) as usize;
            let words = [random.next(), random.next(), random.next()];
            let last = random.next() as u32;
            let mut flat: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            flat.extend_from_slice(&last.to_le_bytes());
            assert_eq!(numbers(&words, last), slow(&flat));
            assert_eq!(append(append(0, &part[..cut]), &part[cut..]), expected);
            let place = random.below(3) as usize * 32;
            let mut room = crate::sys::AlignedBuf::new(place + length + 1);
            assert_eq!(copy(&mut room[place..place + length], part), expected);
            assert!(room[place..place + length] == *part);
            assert!(room[..place].iter().chain(&room[place + length..]).all(|byte| *byte == 0));
        }
    }
}
