//! Aligned buffers that are used again.

use crate::sys::AlignedBuf;

const SMALLEST: usize = 4096;
/// Buffers of at most this are kept, bytes.
const LARGEST: usize = 1 << 20;
const CLASSES: usize = (LARGEST / SMALLEST).trailing_zeros() as usize + 1;
/// All that is kept, bytes: the footprint of a tap that is idle after a burst.
const KEPT_BYTES_MAX: usize = 8 << 20;

/// Free buffers by size (powers of two).
pub struct Pool {
    free: [Vec<AlignedBuf>; CLASSES],
    kept: usize,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Pool {
        Pool { free: std::array::from_fn(|_| Vec::new()), kept: 0 }
    }

    fn class(size: usize) -> Option<usize> {
        let size = size.max(SMALLEST).next_power_of_two();
        (size <= LARGEST).then(|| (size / SMALLEST).trailing_zeros() as usize)
    }

    /// A buffer of at least `length` bytes; its content is whatever it was.
    pub fn take(&mut self, length: usize) -> AlignedBuf {
        let Some(class) = Self::class(length) else { return AlignedBuf::new(length) };
        match self.free[class].pop() {
            Some(buffer) => {
                self.kept -= buffer.capacity();
                buffer
            }
            None => AlignedBuf::new(SMALLEST << class),
        }
    }

    /// Takes a buffer back.
    pub fn give(&mut self, buffer: AlignedBuf) {
        let capacity = buffer.capacity();
        if self.kept + capacity > KEPT_BYTES_MAX || !capacity.is_power_of_two() {
            return;
        }
        if let Some(class) = Self::class(capacity) {
            self.kept += capacity;
            self.free[class].push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_and_are_bounded() {
        let mut pool = Pool::new();
        let first = pool.take(5000);
        assert_eq!(first.capacity(), 8192);
        let address = first.as_ptr();
        assert_eq!(address as usize % 4096, 0);
        pool.give(first);
        assert_eq!(pool.take(8192).as_ptr(), address);
        for _ in 0..100 {
            pool.give(AlignedBuf::new(LARGEST));
        }
        assert!(pool.kept <= KEPT_BYTES_MAX);
        assert_eq!(pool.take(LARGEST + 1).capacity(), LARGEST + 4096);
    }
}
