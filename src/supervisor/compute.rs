//! Where each model's loader and worker run: memory node, threads, processors.
//!
//! Decided once, before the supervisor's sandbox closes; a model keeps its place for good, and a
//! worker that is started again takes the same one.

use std::fmt;

use super::config::{Config, Lifetime, MemoryNode};
use crate::sys::numa::{self, Node};
use crate::sys::processors;

/// Where one model is computed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Place {
    /// The memory node that holds its weights and whose processors compute it.
    pub(super) node: Option<u16>,
    /// Compute threads.
    pub(super) threads: u16,
    /// A processor for each thread; none leaves the threads to the system.
    pub(super) processors: Vec<u16>,
}

/// Why a model has no place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Misplaced {
    /// The node that was asked for is not there; those that are.
    Absent(u16, Vec<u16>),
    /// The kernel knows of no nodes.
    NoNodes,
    /// The node has no processors.
    NoProcessors(u16),
    /// The node has too little memory for a model; what is needed and what there is, in bytes.
    TooSmall(u16, String, u64, u64),
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(asked, there) => {
                let there: Vec<String> = there.iter().map(u16::to_string).collect();
                write!(
                    f,
                    "{asked} is no memory node of this machine, which has {}",
                    there.join(", ")
                )
            }
            Self::NoNodes => write!(f, "this kernel knows of no memory nodes; remove the line"),
            Self::NoProcessors(node) => {
                write!(f, "memory node {node} has no processor that may be used; take another")
            }
            Self::TooSmall(node, model, needed, available) => write!(
                f,
                "memory node {node} has {} MiB available and model {model} needs about {} MiB; \
                 take another node or free memory there",
                available >> 20,
                needed >> 20
            ),
        }
    }
}

/// What the machine has.
struct Machine {
    /// Processors' worth of time.
    parallelism: usize,
    /// Processors that may be used, those of different cores first.
    allowed: Vec<u16>,
    nodes: Vec<Node>,
}

/// Gives each model its place; `lens_bytes` are the lengths of their files. Asks the machine, which
/// is not allowed later.
pub(super) fn place(config: &Config, lens_bytes: &[u64]) -> Result<Vec<Place>, Misplaced> {
    let machine = Machine {
        parallelism: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        allowed: processors::allowed().unwrap_or_default(),
        nodes: numa::nodes(),
    };
    let nodes = machine.choose_nodes(config, lens_bytes)?;
    Ok(machine.share(config, &nodes))
}

/// Memory of a model, in bytes, from its file's length: weights that are packed while the rest of
/// the file is still there, and keys and values.
fn needed_bytes(len_bytes: u64) -> u64 {
    len_bytes.saturating_add(len_bytes / 8)
}

impl Machine {
    /// Names a node for each model, if the configuration asks for one.
    fn choose_nodes(
        &self,
        config: &Config,
        lens_bytes: &[u64],
    ) -> Result<Vec<Option<u16>>, Misplaced> {
        let mut left = self.nodes.clone();
        let mut chosen = Vec::new();
        for (model, &len_bytes) in config.models.iter().zip(lens_bytes) {
            let node = match config.worker.numa_node {
                MemoryNode::Any => {
                    chosen.push(None);
                    continue;
                }
                MemoryNode::Number(number) => {
                    let there = || self.nodes.iter().map(|node| node.number).collect();
                    let node = left.iter_mut().find(|node| node.number == number);
                    node.ok_or_else(|| Misplaced::Absent(number, there()))?
                }
                MemoryNode::Auto => {
                    let usable = left.iter_mut().filter(|node| self.has_processors(node));
                    usable.max_by_key(|node| node.available_bytes).ok_or(Misplaced::NoNodes)?
                }
            };
            if !self.has_processors(node) {
                return Err(Misplaced::NoProcessors(node.number));
            }
            let (needed, available) = (needed_bytes(len_bytes), node.available_bytes);
            if needed > available {
                let name = model.name.clone();
                return Err(Misplaced::TooSmall(node.number, name, needed, available));
            }
            node.available_bytes -= needed;
            chosen.push(Some(node.number));
        }
        Ok(chosen)
    }

    fn has_processors(&self, node: &Node) -> bool {
        node.processors.iter().any(|number| self.allowed.contains(number))
    }

    /// Shares the processors of each node among the models that are there; all of the machine's
    /// among those that are on none.
    fn share(&self, config: &Config, nodes: &[Option<u16>]) -> Vec<Place> {
        let place = |(index, &node): (usize, &Option<u16>)| {
            let neighbours = nodes.iter().filter(|&&other| other == node).count().max(1);
            let before = nodes.iter().take(index).filter(|&&other| other == node).count();
            let (threads, processors) = self.part(config, node, neighbours);
            let mut parts = processors.chunks_exact(usize::from(threads).max(1));
            let processors = parts.nth(before).unwrap_or_default().to_vec();
            Place { node, threads, processors }
        };
        nodes.iter().enumerate().map(place).collect()
    }

    /// Threads of each of some models of a node, unless the configuration says how many, and the
    /// processors for all of them: none where a quota says that their time is shared with others,
    /// or where there are too few.
    fn part(&self, config: &Config, node: Option<u16>, models: usize) -> (u16, Vec<u16>) {
        let node = self.nodes.iter().find(|there| Some(there.number) == node);
        let is_there = |number: &u16| node.is_none_or(|node| node.processors.contains(number));
        let processors: Vec<u16> = self.allowed.iter().copied().filter(is_there).collect();
        let parallelism = match node {
            None => self.parallelism,
            Some(_) => processors.len().min(self.parallelism),
        };
        let workers = models * usize::from(config.worker.computing_count());
        let threads = match config.worker.threads {
            0 => u16::try_from((parallelism / workers).max(1)).unwrap_or(u16::MAX),
            asked => asked,
        };
        let has_quota = self.parallelism < self.allowed.len();
        let is_enough = usize::from(threads) * models <= processors.len();
        // Which workers serve at once changes with each request.
        let is_lasting = config.worker.lifetime == Lifetime::Model;
        let is_pinned = config.worker.pin && is_enough && is_lasting && !has_quota;
        (threads, if is_pinned { processors } else { Vec::new() })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A configuration of two models.
    fn two_models(worker: &str) -> Config {
        let text = format!(
            "[[model]]\nfile = \"a.gguf\"\n[[model]]\nfile = \"b.gguf\"\n[worker]\n{worker}\n"
        );
        Config::parse(Path::new("/c/cloister.toml"), &text, true, None).unwrap()
    }

    /// Six processors on two nodes of 1,000 bytes.
    fn machine(parallelism: usize) -> Machine {
        let node = |number, processors, available_bytes| Node {
            number,
            processors,
            total_bytes: 1000,
            available_bytes,
        };
        let nodes = vec![node(0, vec![0, 1, 2], 600), node(2, vec![3, 4, 5], 900)];
        Machine { parallelism, allowed: vec![0, 2, 4, 1, 3, 5], nodes }
    }

    fn share(threads: usize, parallelism: usize) -> Vec<Place> {
        machine(parallelism).share(&two_models(&format!("threads = {threads}")), &[None, None])
    }

    fn processors(places: &[Place]) -> Vec<Vec<u16>> {
        places.iter().map(|place| place.processors.clone()).collect()
    }

    #[test]
    fn workers_have_processors_of_their_own_if_there_are_enough() {
        let places = share(0, 6);
        assert_eq!(places[0].threads, 3);
        assert_eq!(processors(&places), [[0, 2, 4], [1, 3, 5]]);
        assert_eq!(processors(&share(2, 6)), [[0, 2], [4, 1]]);
        assert_eq!(processors(&share(4, 6)), [[0; 0], [0; 0]], "more threads than processors");
        let places = share(0, 4);
        assert_eq!(places[0].threads, 2);
        assert_eq!(processors(&places), [[0; 0], [0; 0]], "a quota");
        let one_request = "lifetime = \"request\"\nsequences = 2";
        let places = machine(6).share(&two_models(one_request), &[None, None]);
        assert_eq!(places[0].threads, 1, "two models, of two workers each");
        assert_eq!(processors(&places), [[0; 0], [0; 0]], "they come and go");
        let places = machine(6).share(&two_models("pin = false"), &[None, None]);
        assert_eq!(processors(&places), [[0; 0], [0; 0]]);
    }

    #[test]
    fn models_of_a_node_share_its_processors() {
        let config = two_models("numa_node = \"auto\"");
        let places = machine(6).share(&config, &[Some(2), Some(0)]);
        assert_eq!((places[0].node, places[0].threads), (Some(2), 3));
        assert_eq!(processors(&places), [[4, 3, 5], [0, 2, 1]]);
        let places = machine(6).share(&config, &[Some(2), Some(2)]);
        assert_eq!((places[1].node, places[1].threads), (Some(2), 1));
        assert_eq!(processors(&places), [[4], [3]]);
    }

    #[test]
    fn a_node_is_chosen_by_number_or_by_what_it_has_left() {
        let choose = |worker, lens| machine(6).choose_nodes(&two_models(worker), lens);
        assert_eq!(choose("", &[9000, 9000]), Ok(vec![None, None]));
        let auto = "numa_node = \"auto\"";
        assert_eq!(choose(auto, &[80, 80]), Ok(vec![Some(2), Some(2)]));
        assert_eq!(choose(auto, &[400, 400]), Ok(vec![Some(2), Some(0)]));
        let small = |node, needed, available| {
            Err(Misplaced::TooSmall(node, "b".to_owned(), needed, available))
        };
        assert_eq!(choose(auto, &[640, 640]), small(0, 720, 600));
        assert_eq!(choose("numa_node = 2", &[80, 800]), small(2, 900, 810));
        assert_eq!(choose("numa_node = 0", &[80, 80]), Ok(vec![Some(0), Some(0)]));
        assert_eq!(choose("numa_node = 1", &[1, 1]), Err(Misplaced::Absent(1, vec![0, 2])));
        let mut machine = machine(6);
        machine.allowed = vec![0, 1];
        let config = two_models("numa_node = 2");
        assert_eq!(machine.choose_nodes(&config, &[1, 1]), Err(Misplaced::NoProcessors(2)));
        machine.nodes.clear();
        let config = two_models(auto);
        assert_eq!(machine.choose_nodes(&config, &[1, 1]), Err(Misplaced::NoNodes));
    }

    #[test]
    fn a_refusal_says_what_there_is() {
        let absent = Misplaced::Absent(7, vec![0, 1]).to_string();
        assert_eq!(absent, "7 is no memory node of this machine, which has 0, 1");
        let small = Misplaced::TooSmall(1, "a".into(), 3 << 20, 2 << 20).to_string();
        assert!(small.starts_with("memory node 1 has 2 MiB available and model a needs about 3"));
    }
}
