//! A list whose values keep their places while others come and go.
//!
//! Rules name clusters by place and routers name rules by place. If places moved, one route more would change every rule
//! and every router of a configuration; so what goes leaves its place empty until something new takes it.

use std::ops::Index;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// Values by place. A copy is the same list until one of the two is changed.
#[derive(Debug)]
pub struct Slots<T> {
    places: Arc<Vec<Option<Arc<T>>>>,
}

impl<T> Slots<T> {
    /// The value at a place; none if it is empty or behind the last.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<&Arc<T>> {
        self.places.get(place)?.as_ref()
    }

    /// All values, in the order of their places.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> + Clone {
        self.places.iter().flatten()
    }

    /// All places, the empty ones too.
    #[must_use]
    pub fn places(&self) -> &[Option<Arc<T>>] {
        &self.places
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Adds a value behind all places.
    pub fn push(&mut self, value: Arc<T>) {
        Arc::make_mut(&mut self.places).push(Some(value));
    }

    /// Fills a place, or empties it; places up to there come into being.
    pub fn set(&mut self, place: usize, value: Option<Arc<T>>) {
        let places = Arc::make_mut(&mut self.places);
        if places.len() <= place {
            places.resize_with(place + 1, || None);
        }
        places[place] = value;
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self {
            places: Arc::default(),
        }
    }
}

impl<T> Clone for Slots<T> {
    fn clone(&self) -> Self {
        Self {
            places: Arc::clone(&self.places),
        }
    }
}

impl<T> Index<usize> for Slots<T> {
    type Output = Arc<T>;

    /// The value at a place.
    ///
    /// # Panics
    /// If there is none; [`Slots::get`] does not.
    fn index(&self, place: usize) -> &Arc<T> {
        self.get(place).expect("the place holds a value")
    }
}

impl<T> FromIterator<Arc<T>> for Slots<T> {
    fn from_iter<I: IntoIterator<Item = Arc<T>>>(values: I) -> Self {
        let places: Vec<_> = values.into_iter().map(Some).collect();
        Self {
            places: Arc::new(places),
        }
    }
}

impl<T> From<Vec<Arc<T>>> for Slots<T> {
    fn from(values: Vec<Arc<T>>) -> Self {
        values.into_iter().collect()
    }
}

impl<T> Extend<Arc<T>> for Slots<T> {
    fn extend<I: IntoIterator<Item = Arc<T>>>(&mut self, values: I) {
        Arc::make_mut(&mut self.places).extend(values.into_iter().map(Some));
    }
}

impl<T> IntoIterator for Slots<T> {
    type Item = Arc<T>;
    type IntoIter = std::iter::Flatten<std::vec::IntoIter<Option<Arc<T>>>>;

    fn into_iter(self) -> Self::IntoIter {
        Arc::unwrap_or_clone(self.places).into_iter().flatten()
    }
}

impl<'a, T> IntoIterator for &'a Slots<T> {
    type Item = &'a Arc<T>;
    type IntoIter = std::iter::Flatten<std::slice::Iter<'a, Option<Arc<T>>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.places.iter().flatten()
    }
}

impl<T: Serialize> Serialize for Slots<T> {
    /// All places, the empty ones as null, so that what names a place still means it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.places.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_keeps_its_place() {
        let mut slots: Slots<u8> = [1, 2, 3].map(Arc::new).into_iter().collect();
        slots.set(1, None);
        assert_eq!((slots.len(), *slots[2]), (2, 3));
        assert!(slots.get(1).is_none() && slots.get(9).is_none());
        slots.set(4, Some(Arc::new(5)));
        let values: Vec<u8> = slots.iter().map(|value| **value).collect();
        assert_eq!(values, [1, 3, 5]);
        let json = serde_json::to_string(&slots).expect("JSON");
        assert_eq!(json, "[1,null,3,null,5]");
    }
}
