//! What turns keys and queries: checks, and the parameters.

use flashtile_abi::{RowsParams, cache::flags};

use super::{
    address::{expect, in_pieces, whole_units},
    plan::{MAX_GRID, RotaryPointers},
    problem::{AppendProblem, IndexType, Place, QueryRows, Rotary, RotaryTable},
};
use crate::{
    error::{Error, Result},
    extent::{Extent, check_address},
    layout::TensorLayout,
};

impl Rotary {
    pub(super) fn check(&self, problem: &AppendProblem) -> Result<()> {
        let [batch, rows, _, head_dim] = problem.k.tensor.shape;
        let dim = self.rotary_dim;
        if dim == 0 || !dim.is_multiple_of(2) || dim > head_dim {
            return Err(Error::bad(
                "rotary_dim",
                format!("an even number from 2 to head_dim {head_dim}"),
                dim.to_string(),
            ));
        }
        if problem.place == Place::Slots && self.positions.is_none() {
            return Err(Error::bad(
                "positions",
                "positions of the tokens, which slots do not tell",
                "none",
            ));
        }
        if self.table.positions as u64 > MAX_GRID {
            return Err(Error::bad(
                "cos",
                format!("at most {MAX_GRID} positions"),
                self.table.positions.to_string(),
            ));
        }
        let element = self.table.element.of(problem.dtype).bytes();
        table_of_angles(&self.table, dim / 2).check("cos", element)?;
        if let Some(QueryRows { q, out }) = &self.queries {
            let heads = q.shape[2];
            if heads == 0 {
                return Err(Error::bad(
                    "q",
                    "at least one head",
                    format!("shape {:?}", q.shape),
                ));
            }
            for (argument, layout) in [("q", q), ("q_out", out)] {
                expect(argument, layout.shape, [batch, rows, heads, head_dim])?;
                layout.check(argument, problem.dtype.bytes())?;
            }
            out.check_distinct("q_out")?;
        }
        Ok(())
    }
}

/// Extents of what turns keys and queries; none of what the problem does not have.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RotaryExtents {
    /// Cosines and, as many, sines.
    pub table: Option<Extent>,
    pub positions: Option<Extent>,
    pub q: Option<Extent>,
    pub q_out: Option<Extent>,
}

impl AppendProblem {
    /// The problem has passed its checks.
    pub(crate) fn rotary_extents(&self) -> RotaryExtents {
        let Some(rotary) = &self.rotary else {
            return RotaryExtents::default();
        };
        let [batch, rows, ..] = self.k.tensor.shape;
        let element = self.dtype.bytes();
        let angles = table_of_angles(&rotary.table, rotary.rotary_dim / 2);
        let angle_bytes = rotary.table.element.of(self.dtype).bytes();
        let index = rotary.positions.map(IndexType::bytes);
        RotaryExtents {
            table: Some(Extent::tensor(&angles, angle_bytes)),
            positions: index.map(|bytes| Extent::numbers(batch * rows, bytes)),
            q: rotary.queries.map(|it| Extent::tensor(&it.q, element)),
            q_out: rotary.queries.map(|it| Extent::tensor(&it.out, element)),
        }
    }
}

/// Fills in addresses, and the flags that depend on them.
pub(super) fn addresses(
    problem: &AppendProblem,
    params: &mut RowsParams,
    pointers: &RotaryPointers,
) -> Result<()> {
    let has = problem.rotary_extents();
    for (argument, extent, ptr) in [
        ("cos", has.table, pointers.cos),
        ("sin", has.table, pointers.sin),
        ("positions", has.positions, pointers.positions),
        ("q", has.q, pointers.q),
        ("q_out", has.q_out, pointers.q_out),
    ] {
        check_address(argument, extent, ptr)?;
    }
    if let (Some(q), Some(out)) = (has.q, has.q_out)
        && let Some(QueryRows {
            q: from,
            out: layout,
        }) = problem.rotary.and_then(|it| it.queries)
    {
        let in_place = pointers.q == pointers.q_out && same_elements(&from, &layout);
        if !in_place && q.overlaps(pointers.q, &out, pointers.q_out) {
            return Err(Error::bad(
                "q_out",
                "q's own memory in q's layout, or memory that does not overlap it",
                format!("address {:#x} beside {:#x}", pointers.q_out, pointers.q),
            ));
        }
    }
    params.rotary.cos = pointers.cos;
    params.rotary.sin = pointers.sin;
    params.rotary.positions = pointers.positions;
    params.q.ptr = pointers.q;
    params.q_out.ptr = pointers.q_out;
    let whole = whole_units(params.head_dim_qk, params.rotary.pairs);
    let table = [pointers.cos, pointers.sin, params.rotary.row_stride as u64];
    for (flag, pieces) in [
        (flags::Q_PIECES, whole && in_pieces(&params.q)),
        (flags::Q_OUT_PIECES, whole && in_pieces(&params.q_out)),
        (
            flags::TABLE_PIECES,
            params.rotary.pairs.is_multiple_of(8) && table.iter().all(|x| x.is_multiple_of(16)),
        ),
    ] {
        if pieces {
            params.flags |= flag;
        }
    }
    Ok(())
}

/// Whether two layouts of one shape have every element at the same offset.
fn same_elements(a: &TensorLayout, b: &TensorLayout) -> bool {
    (0..4).all(|dim| a.shape[dim] <= 1 || a.strides[dim] == b.strides[dim])
}

/// A table of cosines or sines as a tensor.
pub(super) fn table_of_angles(table: &RotaryTable, pairs: usize) -> TensorLayout {
    TensorLayout {
        shape: [1, table.positions, 1, pairs],
        strides: [0, table.stride, 0, 1],
    }
}
