//! A small directed graph, by number: who reaches whom, who is fed by nobody, who stands in a circle.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Vertices are `0..size`. Arrows to or from anything else are ignored, and so is an arrow from a vertex to itself.
pub(crate) struct Graph {
    next: Vec<BTreeSet<usize>>,
    reached: Vec<BTreeSet<usize>>,
}

impl Graph {
    /// A graph of this many vertices with these arrows.
    pub(crate) fn new(size: usize, arrows: impl IntoIterator<Item = (usize, usize)>) -> Graph {
        let mut next = vec![BTreeSet::new(); size];
        for (from, to) in arrows {
            if from != to
                && to < size
                && let Some(next) = next.get_mut(from)
            {
                next.insert(to);
            }
        }
        let mut graph = Graph { next, reached: Vec::new() };
        graph.reached = (0..size).map(|vertex| graph.walk(vertex)).collect();
        graph
    }

    fn next(&self, vertex: usize) -> impl Iterator<Item = usize> + '_ {
        self.next.get(vertex).into_iter().flatten().copied()
    }

    fn walk(&self, start: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut open: Vec<usize> = self.next(start).collect();
        while let Some(vertex) = open.pop() {
            if reached.insert(vertex) {
                open.extend(self.next(vertex));
            }
        }
        reached
    }

    /// Whether a path of one arrow or more leads from one to the other.
    pub(crate) fn reaches(&self, from: usize, to: usize) -> bool {
        self.reached.get(from).is_some_and(|reached| reached.contains(&to))
    }

    fn size(&self) -> usize {
        self.next.len()
    }

    /// Whether no other vertex leads to this one.
    pub(crate) fn is_source(&self, vertex: usize) -> bool {
        !(0..self.size()).any(|other| self.reaches(other, vertex))
    }

    /// The circles that nothing outside feeds, each as the vertices that lead to each other, smallest first.
    pub(crate) fn unfed_circles(&self) -> Vec<Vec<usize>> {
        let mut circles = Vec::new();
        for first in (0..self.size()).filter(|&vertex| self.reaches(vertex, vertex)) {
            let members: Vec<usize> = (0..self.size())
                .filter(|&other| self.reaches(first, other) && self.reaches(other, first))
                .collect();
            let fed = (0..self.size()).any(|other| self.reaches(other, first) && !members.contains(&other));
            if !fed && members.first() == Some(&first) {
                circles.push(members);
            }
        }
        circles
    }

    /// The same graph without the arrows that a detour explains better: with a→b→c, a→c says nothing more.
    pub(crate) fn without_shortcuts(&self) -> Graph {
        let mut arrows = Vec::new();
        for from in 0..self.size() {
            for to in self.next(from) {
                let detour = self.next(from).any(|by| {
                    by != to && self.reaches(by, to) && !self.reaches(by, from) && !self.reaches(to, by)
                });
                if !detour {
                    arrows.push((from, to));
                }
            }
        }
        Graph::new(self.size(), arrows)
    }

    /// A shortest path, both ends included; from a vertex to itself it is the smallest circle through it. Of several
    /// the one by smaller numbers.
    pub(crate) fn shortest(&self, from: usize, to: usize) -> Option<Vec<usize>> {
        let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
        let mut open = VecDeque::from([from]);
        while let Some(vertex) = open.pop_front() {
            for next in self.next(vertex) {
                if came_from.contains_key(&next) {
                    continue;
                }
                came_from.insert(next, vertex);
                if next == to {
                    let mut path = vec![to];
                    let mut back = vertex;
                    while back != from {
                        path.push(back);
                        back = *came_from.get(&back)?;
                    }
                    path.push(from);
                    path.reverse();
                    return Some(path);
                }
                open.push_back(next);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_detour_is_told_and_its_shortcut_is_not() {
        let graph = Graph::new(3, [(0, 1), (1, 2), (0, 2)]).without_shortcuts();
        assert_eq!(graph.shortest(0, 2), Some(vec![0, 1, 2]));
    }

    #[test]
    fn an_unfed_circle_is_found_and_a_fed_one_is_not() {
        assert_eq!(Graph::new(3, [(0, 1), (1, 0), (1, 2)]).unfed_circles(), [[0, 1]]);
        assert!(Graph::new(3, [(0, 1), (1, 0), (2, 0)]).unfed_circles().is_empty());
        assert!(Graph::new(1, [(0, 0)]).unfed_circles().is_empty());
    }

    proptest! {
        #[test]
        fn shortcuts_never_cut_anybody_off(
            arrows in proptest::collection::vec((0_usize..7, 0_usize..9), 0..25)
        ) {
            let graph = Graph::new(7, arrows);
            let fewer = graph.without_shortcuts();
            for from in 0..7 {
                for to in 0..7 {
                    prop_assert_eq!(graph.reaches(from, to), fewer.reaches(from, to));
                    let path = fewer.shortest(from, to);
                    prop_assert_eq!(path.is_some(), fewer.reaches(from, to));
                    if let Some(path) = path {
                        prop_assert_eq!(path.first(), Some(&from));
                        prop_assert_eq!(path.last(), Some(&to));
                    }
                }
            }
        }
    }
}
