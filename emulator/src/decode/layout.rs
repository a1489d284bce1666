//! Where the variables of an entry are.

use super::Decoded;
use crate::error::Space;
use crate::exec::{LOCAL_BASE, SHARED_BASE};
use crate::module::Module;
use crate::parse::tree::{VarRef, VarSpace, Variable};

/// Where the variables of an entry are.
pub(super) struct Layout {
    /// Of the module and of the body: an address in the variable's own space, or the variable's place in
    /// `Module::all_variables`.
    module: Vec<Placement>,
    body: Vec<Placement>,
    params: Vec<u64>,
    pub(super) shared: u64,
    pub(super) dynamic_align: u64,
    pub(super) local: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Placement {
    At(Space, u64),
    Device(usize),
}

impl Layout {
    pub(super) fn new(module: &Module, at: usize) -> Decoded<Layout> {
        let (mut shared, mut local, mut dynamic_align) = (0u64, 0u64, 1u64);
        let tree = &module.tree;
        let mut first = tree.variables.len();
        for entry in &tree.entries[..at] {
            first += entry.body.variables.len();
        }
        let body = &tree.entries[at].body.variables;
        let in_order = || tree.variables.iter().chain(body);
        for v in in_order().filter(|v| v.space == VarSpace::Shared && v.external) {
            dynamic_align = dynamic_align.max(v.align);
        }
        let statics = in_order().filter(|v| v.space == VarSpace::Shared && !v.external);
        let end = statics.fold(0, |end, v| v.placed_after(end).1);
        let dynamic = end.next_multiple_of(dynamic_align);
        let mut place = |v: &Variable, number: usize| match v.space {
            VarSpace::Global | VarSpace::Const => Placement::Device(number),
            VarSpace::Shared if v.external => Placement::At(Space::Shared, SHARED_BASE + dynamic),
            VarSpace::Shared => {
                let at;
                (at, shared) = v.placed_after(shared);
                Placement::At(Space::Shared, SHARED_BASE + at)
            }
            VarSpace::Local | VarSpace::Param => {
                let at;
                (at, local) = v.placed_after(local);
                Placement::At(Space::Local, LOCAL_BASE + at)
            }
        };
        let of_module = tree
            .variables
            .iter()
            .enumerate()
            .map(|(n, v)| place(v, n))
            .collect();
        let of_body = body
            .iter()
            .enumerate()
            .map(|(n, v)| place(v, first + n))
            .collect();
        // What a thread can have on hardware; it also bounds the memory that a hostile text can ask for.
        if local > 512 * 1024 {
            return Err(format!(
                "{local} bytes of local memory, a thread has at most 524288"
            ));
        }
        if shared > 1 << 24 {
            return Err(format!("{shared} bytes of shared memory"));
        }
        let params = module
            .entry_at(at)
            .params
            .iter()
            .map(|p| p.offset as u64)
            .collect();
        Ok(Layout {
            module: of_module,
            body: of_body,
            params,
            shared,
            dynamic_align,
            local: local.next_multiple_of(16),
        })
    }

    pub(super) fn find(&self, var: VarRef) -> Placement {
        match var {
            VarRef::Module(n) => self.module[n],
            VarRef::Body(n) => self.body[n],
            VarRef::Param(n) => Placement::At(Space::Param, self.params[n]),
        }
    }
}
