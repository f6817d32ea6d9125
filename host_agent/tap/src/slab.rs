//! Values under small numbers that are used again.

/// A vector with holes.
#[derive(Debug)]
pub struct Slab<T> {
    items: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { items: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Keeps a value; returns its number.
    pub fn insert(&mut self, value: T) -> usize {
        match self.free.pop() {
            Some(at) => {
                self.items[at] = Some(value);
                at
            }
            None => {
                self.items.push(Some(value));
                self.items.len() - 1
            }
        }
    }

    /// The value under a number.
    pub fn get(&self, at: usize) -> Option<&T> {
        self.items.get(at).and_then(Option::as_ref)
    }

    /// The value under a number.
    pub fn get_mut(&mut self, at: usize) -> Option<&mut T> {
        self.items.get_mut(at).and_then(Option::as_mut)
    }

    /// Takes a value out; its number is free again.
    pub fn remove(&mut self, at: usize) -> Option<T> {
        let value = self.items.get_mut(at).and_then(Option::take)?;
        self.free.push(at);
        Some(value)
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.items.len() - self.free.len()
    }

    /// All values with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        self.items.iter().enumerate().filter_map(|(at, item)| Some((at, item.as_ref()?)))
    }

    /// All values with their numbers.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        self.items.iter_mut().enumerate().filter_map(|(at, item)| Some((at, item.as_mut()?)))
    }
}
