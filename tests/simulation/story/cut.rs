//! What of a story is left out, to find a smaller one that fails.

use super::{REPLICAS, WRITERS, deeds::Deed};

const VARIABLE: &str = "SYNCD_SIMULATION_CUT";

/// What a story is at most; written as `deeds=3,writers=1,replicas=1,without=lies+export`.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub deeds: u64,
    pub writers: u64,
    pub replicas: usize,
    pub without: Vec<Deed>,
}

impl Default for Cut {
    fn default() -> Self {
        Self { deeds: u64::MAX, writers: WRITERS, replicas: REPLICAS, without: Vec::new() }
    }
}

impl Cut {
    pub fn of_environment() -> Self {
        std::env::var(VARIABLE).map_or_else(|_| Self::default(), |text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let mut cut = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').expect("NAME=VALUE");
            match name {
                "deeds" => cut.deeds = value.parse().unwrap(),
                "writers" => cut.writers = value.parse().unwrap(),
                "replicas" => cut.replicas = value.parse().unwrap(),
                "without" => cut.without = value.split('+').map(Deed::parse).collect(),
                _ => panic!("{VARIABLE}: '{name}' is none of deeds, writers, replicas, without"),
            }
        }
        cut
    }

    /// The variable that says this, for a command; empty if nothing is left out.
    pub fn variable(&self) -> String {
        let mut parts = Vec::new();
        if self.deeds < u64::MAX {
            parts.push(format!("deeds={}", self.deeds));
        }
        if self.writers < WRITERS {
            parts.push(format!("writers={}", self.writers));
        }
        if self.replicas < REPLICAS {
            parts.push(format!("replicas={}", self.replicas));
        }
        if !self.without.is_empty() {
            let names: Vec<_> = self.without.iter().map(|deed| deed.name()).collect();
            parts.push(format!("without={}", names.join("+")));
        }
        if parts.is_empty() { String::new() } else { format!("{VARIABLE}={} ", parts.join(",")) }
    }
}

/// The smallest story that was found to fail: what it says.
///
/// Leaving something out changes everything after it, so a smaller story may fail differently, or by
/// chance not at all. Each cut is kept if the story still fails.
pub(super) fn shrink(seed: u64) -> String {
    let mut best = Cut::default();
    let Err(mut text) = super::run(seed, &best) else {
        return format!("seed {seed} does not fail");
    };
    let mut keep = |best: &mut Cut, cut: Cut| {
        let failed = super::run(seed, &cut).err();
        if let Some(failed) = failed {
            eprintln!("fails as well: {}", cut.variable());
            (*best, text) = (cut, failed);
            return true;
        }
        false
    };
    for deeds in 0..16 {
        let cut = Cut { deeds, ..best.clone() };
        if keep(&mut best, cut) {
            break;
        }
    }
    for (deed, _) in Deed::ALL {
        let without = [best.without.clone(), vec![deed]].concat();
        let cut = Cut { without, ..best.clone() };
        keep(&mut best, cut);
    }
    for writers in 0..WRITERS {
        let cut = Cut { writers, ..best.clone() };
        if keep(&mut best, cut) {
            break;
        }
    }
    for replicas in 1..REPLICAS {
        let cut = Cut { replicas, ..best.clone() };
        if keep(&mut best, cut) {
            break;
        }
    }
    text
}
