//! The left operand of Q * K^T: kept in registers, or read from shared memory in every tile.

use crate::element::Element;
use crate::tile::smem::FragmentView;
use core::marker::PhantomData;

/// One warp's queries as left operands.
pub trait QueryFrags<E: Element>: Copy {
    /// Whether [`load`](Self::load) reads the queries, which must have landed then.
    const IN_REGISTERS: bool;
    /// From the warp's view of the Q tile.
    fn load(view: FragmentView) -> Self;
    /// The same queries for the products of one tile, from the view made anew.
    fn in_tile(&self, view: FragmentView) -> Self;
    /// The same queries from byte `bytes` of their rows on, which shared memory only is asked for.
    fn skip(&self, bytes: u32) -> Self;
    /// The operand of 16-row fragment `m` and 32-byte step `step`.
    fn frag(&self, m: usize, step: usize) -> E::FragA;
}

/// How an operand is read from a view of the Q tile.
pub trait Reading<E: Element>: Copy {
    /// The operand of 16-row fragment `m` and 32-byte step `step`.
    fn frag(view: &FragmentView, m: usize, step: usize) -> E::FragA;
}

/// As `ldmatrix` delivers it.
#[derive(Clone, Copy)]
pub struct Ldmatrix;

impl<E: Element> Reading<E> for Ldmatrix {
    #[inline(always)]
    fn frag(view: &FragmentView, m: usize, step: usize) -> E::FragA {
        E::frag_a(view.ldmatrix(16 * m as u32, 2 * step as u32))
    }
}

/// Queries in registers: M x STEPS operands. Worth it as long as nothing spills.
#[derive(Clone, Copy)]
pub struct InRegisters<E: Element, R, const M: usize, const STEPS: usize>(
    [[E::FragA; STEPS]; M],
    PhantomData<R>,
);

impl<E: Element, R: Reading<E>, const M: usize, const STEPS: usize> QueryFrags<E>
    for InRegisters<E, R, M, STEPS>
{
    const IN_REGISTERS: bool = true;

    #[inline(always)]
    fn load(view: FragmentView) -> Self {
        let mut frags = [[E::frag_a([0; 4]); STEPS]; M];
        for m in 0..M {
            for step in 0..STEPS {
                frags[m][step] = R::frag(&view, m, step);
            }
        }
        Self(frags, PhantomData)
    }

    #[inline(always)]
    fn in_tile(&self, _: FragmentView) -> Self {
        *self
    }

    #[inline(always)]
    fn skip(&self, _: u32) -> Self {
        *self
    }

    #[inline(always)]
    fn frag(&self, m: usize, step: usize) -> E::FragA {
        self.0[m][step]
    }
}

/// Queries in shared memory.
#[derive(Clone, Copy)]
pub struct InSharedMemory<R>(FragmentView, PhantomData<R>);

impl<E: Element, R: Reading<E>> QueryFrags<E> for InSharedMemory<R> {
    const IN_REGISTERS: bool = false;

    #[inline(always)]
    fn load(view: FragmentView) -> Self {
        Self(view, PhantomData)
    }

    #[inline(always)]
    fn in_tile(&self, view: FragmentView) -> Self {
        Self(view, PhantomData)
    }

    #[inline(always)]
    fn skip(&self, bytes: u32) -> Self {
        Self(self.0.skip(bytes), PhantomData)
    }

    #[inline(always)]
    fn frag(&self, m: usize, step: usize) -> E::FragA {
        R::frag(&self.0, m, step)
    }
}
