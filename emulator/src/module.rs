//! A parsed module and what can be asked of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::decode;
use crate::error::ParseError;
use crate::numerics::Numerics;
use crate::parse;
use crate::parse::tree::{Bounds, Tree, VarSpace, Variable};
use crate::program::Program;

/// A parameter of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// Its name in the text.
    pub name: String,
    /// Bytes.
    pub size: usize,
    /// Offset in the parameter buffer: the end of the parameter before it, rounded up to its own alignment.
    pub offset: usize,
    /// Alignment.
    pub align: usize,
}

/// A kernel of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its parameters in order.
    pub params: Vec<Param>,
    /// Bytes of the parameter buffer.
    pub params_size: usize,
    /// `.maxntid`, or `.reqntid`.
    pub max_threads: Option<[u32; 3]>,
    /// `.reqnctapercluster`: blocks of a cluster.
    pub cluster: Option<[u32; 3]>,
    /// Bytes of statically declared shared memory that the entry can name.
    pub static_shared: u64,
}

/// An entry, decoded for each numerics that it was launched with.
type Programs = HashMap<Numerics, Result<Arc<Program>, ParseError>>;

/// PTX text, parsed. Entries are decoded when they are first launched.
#[derive(Debug)]
pub struct Module {
    pub(crate) id: u64,
    pub(crate) text: String,
    pub(crate) tree: Tree,
    entries: Vec<Entry>,
    programs: Vec<Mutex<Programs>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    ///
    /// The text is not PTX, or has a directive that is not known. Unknown instructions are errors of [`decode`]
    /// and of the launch of their entry.
    ///
    /// [`decode`]: Module::decode
    pub fn parse(ptx: &str) -> Result<Module, ParseError> {
        let tree = parse::parse(ptx)?;
        let entries: Vec<Entry> = tree
            .entries
            .iter()
            .map(|e| {
                let mut end = 0usize;
                let params = e
                    .params
                    .iter()
                    .map(|p| {
                        let (size, align) = (p.size as usize, p.align as usize);
                        let offset = end.next_multiple_of(align.max(1));
                        end = offset + size;
                        Param {
                            name: p.name.clone(),
                            size,
                            offset,
                            align,
                        }
                    })
                    .collect();
                let shared = tree.variables.iter().chain(&e.body.variables);
                let static_shared = shared
                    .filter(|v| v.space == VarSpace::Shared && !v.external)
                    .fold(0, |end, v| v.placed_after(end).1);
                Entry {
                    name: e.name.clone(),
                    params,
                    params_size: end,
                    max_threads: e.bounds.reqntid.or(e.bounds.maxntid),
                    cluster: e.bounds.reqnctapercluster,
                    static_shared,
                }
            })
            .collect();
        let programs = entries.iter().map(|_| Mutex::default()).collect();
        let id = NEXT_ID.fetch_add(1, Relaxed);
        Ok(Module {
            id,
            text: ptx.to_owned(),
            tree,
            entries,
            programs,
        })
    }

    /// The entries, in the order of the text.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The entry of that name.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// The `.target` of the text.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.tree.target
    }

    /// Decodes an entry without launching it, and says what in it is not known. An unknown name is not an error.
    ///
    /// # Errors
    ///
    /// The first instruction of the entry that the emulator does not know.
    pub fn decode(&self, entry: &str) -> Result<(), ParseError> {
        match self.entries.iter().position(|e| e.name == entry) {
            Some(at) => self.program(at, Numerics::default()).map(drop),
            None => Ok(()),
        }
    }

    /// The module's variables, then those of the bodies in the order of the entries.
    pub(crate) fn all_variables(&self) -> impl Iterator<Item = &Variable> {
        self.tree
            .variables
            .iter()
            .chain(self.tree.entries.iter().flat_map(|e| &e.body.variables))
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.entries.iter().position(|e| e.name == name)
    }

    pub(crate) fn entry_at(&self, at: usize) -> &Entry {
        &self.entries[at]
    }

    /// What the entry's directives say of its launches.
    pub(crate) fn bounds(&self, at: usize) -> &Bounds {
        &self.tree.entries[at].bounds
    }

    pub(crate) fn program(
        &self,
        at: usize,
        numerics: Numerics,
    ) -> Result<Arc<Program>, ParseError> {
        // Every update is a single insertion, so the map is whole even after a panic.
        let programs = self.programs[at].lock();
        programs
            .unwrap_or_else(PoisonError::into_inner)
            .entry(numerics)
            .or_insert_with(|| decode::decode(self, at, numerics).map(Arc::new))
            .clone()
    }
}
