//! What turns keys and queries: checks, and the parameters.

use flashtile_abi::{RowsParams, cache::flags};

use super::{
    address::{address, expect, in_pieces, numbers, whole_units},
    plan::{MAX_GRID, RotaryPointers},
    problem::{AppendProblem, IndexType, Place, QueryRows, Rotary, RotaryTable},
};
use crate::{
    error::{Error, Result},
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

/// Fills in addresses, and the flags that depend on them.
pub(super) fn addresses(
    problem: &AppendProblem,
    params: &mut RowsParams,
    pointers: &RotaryPointers,
) -> Result<()> {
    let rotary = problem.rotary.as_ref();
    let tokens = i64::from(params.lengths.tokens);
    let element = problem.dtype.bytes();
    for (argument, ptr) in [("cos", pointers.cos), ("sin", pointers.sin)] {
        let table = rotary.map(|it| (table_of_angles(&it.table, it.rotary_dim / 2), it.table));
        let bytes = table.map_or(4, |(_, it)| it.element.of(problem.dtype).bytes());
        let layout = table.map(|(layout, _)| layout);
        let (low, high) = layout.and_then(|it| it.offsets()).unwrap_or_default();
        let empty = layout.is_none_or(|it| it.is_empty());
        address(argument, ptr, bytes, empty, rotary.is_some(), low, high)?;
    }
    let index = rotary.and_then(|it| it.positions);
    let bytes = index.map_or(4, IndexType::bytes);
    numbers(
        "positions",
        pointers.positions,
        bytes,
        index.is_some(),
        tokens,
    )?;
    let queries = rotary.and_then(|it| it.queries);
    let mut ranges = [(0i128, 0i128); 2];
    for (range, (argument, layout, ptr)) in ranges.iter_mut().zip([
        ("q", queries.map(|it| it.q), pointers.q),
        ("q_out", queries.map(|it| it.out), pointers.q_out),
    ]) {
        let (low, high) = layout.and_then(|it| it.offsets()).unwrap_or_default();
        let empty = layout.is_none_or(|it| it.is_empty());
        address(argument, ptr, element, empty, queries.is_some(), low, high)?;
        if !empty {
            let at = |offset: i64| i128::from(ptr) + i128::from(offset) * i128::from(element);
            *range = (at(low), at(high) + i128::from(element));
        }
    }
    if let Some(QueryRows { q, out }) = queries {
        let in_place = pointers.q == pointers.q_out && same_elements(&q, &out);
        if !in_place && ranges[0].0 < ranges[1].1 && ranges[1].0 < ranges[0].1 {
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
