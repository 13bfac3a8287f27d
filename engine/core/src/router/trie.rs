//! A trie of path segments, and the walk that visits all patterns that match a path, the most specific first.

use std::collections::HashMap;
use std::hash::BuildHasher;

use ahash::{AHasher, RandomState};

use super::Captures;
use super::pattern::{Pattern, Segment, Tail};

/// Hashing with fixed keys: what is stored comes from the configuration, so that clients cannot make collisions. The keys
/// are constants: `AHasher::default()` looks for those of its process at each call.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FixedState;

impl BuildHasher for FixedState {
    type Hasher = AHasher;

    #[inline]
    fn build_hasher(&self) -> AHasher {
        RandomState::with_seeds(1, 2, 3, 4).build_hasher()
    }
}

const NONE: u32 = u32::MAX;
/// Literal children that are searched one by one; with more they are hashed.
const FEW: usize = 4;

/// Sees the candidates of a path, the most specific node first. What a node holds is sorted by the builder.
pub(super) trait Visitor<'r, E> {
    /// Whether candidates of at most this priority are of no use any more.
    fn skips(&self, priority_max: i32) -> bool;

    /// `rest`: where the part of the path begins that a catch-all captures.
    fn visit(&mut self, candidates: &'r [E], captures: &Captures, rest: usize);
}

#[derive(Debug)]
struct Node<E> {
    parent: u32,
    /// Whether it is its parent's parameter child.
    is_parameter: bool,
    /// The highest priority in it and below it.
    priority_max: i32,
    literals: Literals,
    parameter: u32,
    /// For a path that ends here.
    exact: Vec<E>,
    /// For a path that ends or goes on here.
    prefix: Vec<E>,
    /// For a path that goes on here.
    below: Vec<E>,
}

#[derive(Debug)]
enum Literals {
    Few(Vec<(Box<[u8]>, u32)>),
    Many(HashMap<Box<[u8]>, u32, FixedState>),
}

impl Literals {
    #[inline]
    fn get(&self, segment: &[u8]) -> Option<u32> {
        match self {
            Self::Few(few) => few.iter().find(|(literal, _)| **literal == *segment).map(|(_, child)| *child),
            Self::Many(many) => many.get(segment).copied(),
        }
    }

    fn insert(&mut self, segment: &[u8], child: u32) {
        match self {
            Self::Few(few) if few.len() < FEW => few.push((segment.into(), child)),
            Self::Few(few) => {
                *self = Self::Many(few.drain(..).chain([(segment.into(), child)]).collect());
            }
            Self::Many(many) => {
                many.insert(segment.into(), child);
            }
        }
    }
}

/// One trie for each host (see [`Trie::add_root`]), their nodes together. A child's index is above its parent's.
#[derive(Debug)]
pub(super) struct Trie<E> {
    nodes: Vec<Node<E>>,
}

impl<E> Default for Trie<E> {
    fn default() -> Self {
        Self { nodes: Vec::new() }
    }
}

impl<E> Trie<E> {
    pub(super) fn add_root(&mut self) -> u32 {
        self.add_node(NONE, false)
    }

    fn add_node(&mut self, parent: u32, is_parameter: bool) -> u32 {
        // More nodes than this do not fit into memory.
        let id = u32::try_from(self.nodes.len()).unwrap_or(NONE);
        self.nodes.push(Node {
            parent,
            is_parameter,
            priority_max: i32::MIN,
            literals: Literals::Few(Vec::new()),
            parameter: NONE,
            exact: Vec::new(),
            prefix: Vec::new(),
            below: Vec::new(),
        });
        id
    }

    #[inline]
    fn node(&self, id: u32) -> Option<&Node<E>> {
        self.nodes.get(id as usize)
    }

    fn node_mut(&mut self, id: u32) -> Option<&mut Node<E>> {
        self.nodes.get_mut(id as usize)
    }

    /// Adds a candidate after those with the same pattern.
    pub(super) fn add(&mut self, root: u32, pattern: &Pattern, priority: i32, candidate: E) {
        let mut id = root;
        for segment in &pattern.segments {
            self.raise(id, priority);
            id = self.child(id, segment);
        }
        self.raise(id, priority);
        if let Some(node) = self.node_mut(id) {
            match pattern.tail {
                Tail::Exact => node.exact.push(candidate),
                Tail::Prefix => node.prefix.push(candidate),
                Tail::Below => node.below.push(candidate),
            }
        }
    }

    fn raise(&mut self, id: u32, priority: i32) {
        if let Some(node) = self.node_mut(id) {
            node.priority_max = node.priority_max.max(priority);
        }
    }

    /// The child of a node for a segment, made where there is none yet.
    fn child(&mut self, id: u32, segment: &Segment) -> u32 {
        let known = self.node(id).and_then(|node| match segment {
            Segment::Literal(text) => node.literals.get(text),
            Segment::Parameter => Some(node.parameter).filter(|child| *child != NONE),
        });
        if let Some(child) = known {
            return child;
        }
        let child = self.add_node(id, *segment == Segment::Parameter);
        if let Some(node) = self.node_mut(id) {
            match segment {
                Segment::Literal(text) => node.literals.insert(text, child),
                Segment::Parameter => node.parameter = child,
            }
        }
        child
    }

    /// Visits the candidates for `path` below `root` until the visitor skips them all.
    ///
    /// Each node is entered at most once, the way back is found by parent links: no allocation, no recursion, and never
    /// more steps than the trie has nodes of the path's prefixes, whatever the path.
    pub(super) fn walk<'r>(&'r self, root: u32, path: &[u8], visitor: &mut impl Visitor<'r, E>) {
        let Some(priority_max) = self.node(root).map(|node| node.priority_max) else { return };
        let mut captures = Captures::default();
        // What lies before `at` has been matched; at it stands a slash, or the path ends.
        let (mut id, mut at) = (root, 0);
        while let Some(node) = self.node(id) {
            if visitor.skips(node.priority_max) {
                // Nothing here or below.
            } else if at >= path.len() {
                visitor.visit(&node.exact, &captures, at);
                visitor.visit(&node.prefix, &captures, at);
            } else {
                let rest = path.get(at + 1..).unwrap_or_default();
                // Segments are short: a plain loop is faster than `memchr`.
                let segment = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
                let end = at + 1 + segment.len();
                if let Some(child) = node.literals.get(segment) {
                    (id, at) = (child, end);
                    continue;
                }
                if node.parameter != NONE && !segment.is_empty() {
                    captures.push(at + 1, segment.len());
                    (id, at) = (node.parameter, end);
                    continue;
                }
                node.visit_tails(&captures, at + 1, visitor);
            }
            // What is left: the parameter beside each literal, and the tails, on the way up.
            loop {
                if visitor.skips(priority_max) {
                    return;
                }
                let Some(node) = self.node(id) else { return };
                let Some(parent) = self.node(node.parent) else { return };
                let slash = memchr::memrchr(b'/', path.get(..at).unwrap_or_default()).unwrap_or_default();
                if node.is_parameter {
                    captures.pop();
                } else if parent.parameter != NONE && at > slash + 1 {
                    captures.push(slash + 1, at - slash - 1);
                    id = parent.parameter;
                    break;
                }
                parent.visit_tails(&captures, slash + 1, visitor);
                (id, at) = (node.parent, slash);
            }
        }
    }
}

impl<E> Node<E> {
    fn visit_tails<'r>(&'r self, captures: &Captures, rest: usize, visitor: &mut impl Visitor<'r, E>) {
        visitor.visit(&self.below, captures, rest);
        visitor.visit(&self.prefix, captures, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::PathMatch;
    use crate::router::pattern::parse;

    /// Looks at everything and finds nothing, as a request does that fails at the last condition.
    #[derive(Default)]
    struct Never {
        visits: usize,
        seen: Vec<usize>,
    }

    impl Visitor<'_, usize> for Never {
        fn skips(&self, _: i32) -> bool {
            false
        }

        fn visit(&mut self, candidates: &[usize], _: &Captures, _: usize) {
            self.visits += 1;
            self.seen.extend(candidates);
        }
    }

    fn trie<T: AsRef<str>>(patterns: impl IntoIterator<Item = T>) -> Trie<usize> {
        let mut trie = Trie::default();
        let root = trie.add_root();
        for (index, text) in patterns.into_iter().enumerate() {
            let text = text.as_ref();
            let path = match text.strip_suffix("...") {
                Some(prefix) => PathMatch::Prefix(prefix.to_owned()),
                None => PathMatch::Pattern(text.to_owned()),
            };
            trie.add(root, &parse(&path).ok().unwrap().pattern, 0, index);
        }
        trie
    }

    fn walk(trie: &Trie<usize>, path: &str) -> Never {
        let mut visitor = Never::default();
        trie.walk(0, path.as_bytes(), &mut visitor);
        visitor
    }

    #[test]
    fn the_most_specific_comes_first() {
        let patterns = ["/...", "/{x}/b", "/a...", "/a/...", "/a/{y}", "/a/b...", "/a/b", "/{x}/{y}", "/{*all}"];
        let trie = trie(patterns);
        assert_eq!(walk(&trie, "/a/b").seen, [6, 5, 4, 3, 2, 1, 7, 0, 8]);
        assert_eq!(walk(&trie, "/a").seen, [2, 0, 8]);
        assert_eq!(walk(&trie, "/a/").seen, [3, 2, 0, 8]);
        assert_eq!(walk(&trie, "/a/b/").seen, [5, 3, 2, 0, 8]);
        assert_eq!(walk(&trie, "/ab").seen, [0, 8]);
    }

    #[test]
    fn a_parameter_is_never_empty() {
        let trie = trie(["/a/{x}", "/{x}/"]);
        assert_eq!(walk(&trie, "/a/").seen, [1]);
        assert!(walk(&trie, "/").seen.is_empty());
        assert!(walk(&trie, "//").seen.is_empty());
    }

    #[test]
    fn many_literals_are_hashed() {
        let trie = trie((0..100).map(|n| format!("/p{n}")));
        for n in 0..100 {
            assert_eq!(walk(&trie, &format!("/p{n}")).seen, [n]);
        }
        assert!(walk(&trie, "/p100").seen.is_empty());
    }

    #[test]
    fn backtracking_enters_each_node_once() {
        // All mixtures of a literal and a parameter on eight levels: the worst table for a path of that literal.
        let patterns = (0..1u32 << 8).map(|mix| {
            let segment = |level: u32| if mix & 1 << level == 0 { "/a".to_owned() } else { format!("/{{p{level}}}") };
            (0..8).map(segment).collect::<String>() + "/x"
        });
        let trie = trie(patterns);
        for path in ["/a".repeat(8), "/a".repeat(8) + "/y", "/a".repeat(20_000), "/a".repeat(20_000) + "/x"] {
            let visitor = walk(&trie, &path);
            assert!(visitor.seen.is_empty());
            assert!(visitor.visits <= 2 * trie.nodes.len() * 2, "{} visits", visitor.visits);
        }
    }

    #[test]
    fn depth_is_not_bounded_by_the_stack() {
        let deep = "/a".repeat(30_000);
        let trie = trie([&*deep, "/{x}/..."]);
        assert_eq!(walk(&trie, &deep).seen, [0, 1]);
        assert_eq!(walk(&trie, &format!("{deep}/b")).seen, [1]);
        assert_eq!(walk(&trie, deep.strip_suffix("/a").unwrap()).seen, [1]);
    }
}
