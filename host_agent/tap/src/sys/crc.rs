//! CRC-32C, alone or along a copy.

/// The CRC-32C of `bytes` behind those whose sum is `before` (0: behind nothing).
pub fn append(before: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(before, bytes)
}

/// Copies `from` to `to`, which is as long, and returns its CRC-32C.
pub fn copy(to: &mut [u8], from: &[u8]) -> u32 {
    to.copy_from_slice(from);
    crc32c::crc32c(from)
}
