//! Memory that begins where a cache line does.

/// Bytes in a cache line.
const LINE: usize = 64;

/// `count` numbers of `memory` from the start of a cache line on, so that no register is read from two
/// lines. If `memory` is too short, it is lengthened with zeros.
pub fn aligned<T: Clone + Default>(memory: &mut Vec<T>, count: usize) -> &mut [T] {
    let of_line = LINE / size_of::<T>();
    memory.resize(count + of_line, T::default());
    let start = memory.as_ptr().align_offset(LINE).min(of_line);
    &mut memory[start..start + count]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_a_line() {
        let mut memory = Vec::new();
        for count in [0, 1, 5, 100, 7] {
            let part = aligned::<f64>(&mut memory, count);
            assert_eq!((part.len(), part.as_ptr() as usize % LINE), (count, 0));
        }
    }
}
