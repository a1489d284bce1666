//! Bulk copies.

use super::moves::update_named;
use super::{Decoded, Decoder, Form};
use crate::error::Space;
use crate::parse::tree::{Operand, Type};
use crate::program::{AtomicFn, Bulk, Direction, Extent, Op};
use crate::tensor_map::ElementType;

impl Decoder<'_> {
    pub(super) fn bulk(&mut self, form: &Form<'_>) -> Decoded<Op> {
        match form.opcode() {
            "cp.async.bulk.commit_group" => return Ok(Op::BulkCommit),
            "cp.async.bulk.wait_group" => {
                let allowed = self.immediate(&form.operands[0])?;
                let allowed =
                    u32::try_from(allowed).map_err(|_| "the number of groups is out of range")?;
                return Ok(Op::BulkWait(allowed, form.has(".read")));
            }
            "cp.async.bulk.prefetch.tensor" => {
                self.tensor(form, &form.operands[0])?;
                return Ok(Op::Nop);
            }
            "cp.async.bulk.prefetch" => {
                self.address(&form.operands[0], Space::Global)?;
                self.src(&form.operands[1], 32)?;
                return Ok(Op::Nop);
            }
            _ => {}
        }
        let direction = if form.has(".bulk_group") {
            Direction::Store
        } else if form.has(".global") {
            Direction::Load
        } else {
            Direction::Send
        };
        // The destination comes first.
        let [to, from] = [&form.operands[0], &form.operands[1]];
        let shared_space = if form.has(".shared::cluster") && direction == Direction::Load {
            Space::Cluster
        } else {
            Space::Shared
        };
        let (shared, global, remote) = match direction {
            Direction::Load => (to, Some(from), None),
            Direction::Store => (from, Some(to), None),
            Direction::Send => (from, None, Some(self.address(to, Space::Cluster)?)),
        };
        let shared = (shared_space, self.address(shared, shared_space)?);
        let mut rest = &form.operands[2..];
        let extent = if form.opcode().ends_with("tensor") {
            self.tensor(form, global.ok_or("a tensor map was expected")?)?
        } else {
            let (bytes, others) = rest.split_first().ok_or("a size was expected")?;
            rest = others;
            let global = global.map(|operand| self.address(operand, Space::Global));
            Extent::Linear {
                global: global.transpose()?,
                bytes: self.src(bytes, 32)?,
            }
        };
        let mut mbarrier = None;
        if direction != Direction::Store {
            let (operand, others) = rest.split_first().ok_or("an mbarrier was expected")?;
            // It is in the destination's block.
            let space = if direction == Direction::Send {
                Space::Cluster
            } else {
                shared_space
            };
            mbarrier = Some((space, self.address(operand, space)?));
            rest = others;
        }
        let mut multicast = None;
        if form.has(".multicast::cluster") {
            let (mask, others) = rest.split_first().ok_or("a mask of blocks was expected")?;
            multicast = Some(self.src(mask, 16)?);
            rest = others;
        }
        match (rest, form.has(".L2::cache_hint")) {
            ([], false) => {}
            ([policy], true) => {
                self.src(policy, 64)?;
            }
            _ => return Err("operands and modifiers do not match".to_owned()),
        }
        Ok(Op::Bulk(Box::new(Bulk {
            direction,
            extent,
            shared,
            remote,
            mbarrier,
            multicast,
            reduce: reduction(form)?,
        })))
    }

    /// `[map, {x, y, z}]`.
    fn tensor(&mut self, form: &Form<'_>, operand: &Operand) -> Decoded<Extent> {
        let Operand::Tensor(base, offset, parts) = operand else {
            return Err("a tensor map and coordinates in brackets were expected".to_owned());
        };
        let [Operand::Vector(coordinates)] = parts.as_slice() else {
            return Err("coordinates in braces were expected".to_owned());
        };
        let rank = [".1d", ".2d", ".3d", ".4d", ".5d"];
        let rank = rank.iter().position(|d| form.has(d)).map_or(0, |n| n + 1);
        if coordinates.len() != rank {
            return Err(format!(
                "{} coordinates, {rank} are needed",
                coordinates.len()
            ));
        }
        let coordinates = coordinates.iter().map(|c| self.src(c, 32));
        Ok(Extent::Tensor {
            coordinates: coordinates.collect::<Decoded<Vec<_>>>()?,
            map: self.based(base, *offset, Space::Generic)?,
        })
    }
}

/// How elements are updated, by their types.
fn reduction(form: &Form<'_>) -> Decoded<Vec<(ElementType, AtomicFn)>> {
    if !form.opcode().starts_with("cp.reduce") {
        return Ok(Vec::new());
    }
    let ops = [
        ".and", ".or", ".xor", ".add", ".inc", ".dec", ".min", ".max",
    ];
    let op = ops.into_iter().find(|op| form.has(op));
    let op = op.ok_or("an operation was expected")?;
    // What the manual lists. Bits have no type in a tensor map.
    let types = |op: &str| -> &[(&str, ElementType)] {
        use ElementType::{Bf16, F16, F32, F64, S32, S64, U32, U64};
        match op {
            ".add" => &[
                ("u32", U32),
                ("s32", S32),
                ("u64", U64),
                ("f16", F16),
                ("bf16", Bf16),
                ("f32", F32),
                ("f64", F64),
            ],
            ".min" | ".max" => &[
                ("u32", U32),
                ("s32", S32),
                ("u64", U64),
                ("s64", S64),
                ("f16", F16),
                ("bf16", Bf16),
            ],
            ".inc" | ".dec" => &[("u32", U32)],
            _ => &[("b32", U32), ("b32", S32), ("b64", U64), ("b64", S64)],
        }
    };
    let tensor = form.opcode().ends_with("tensor");
    let ty = if tensor { None } else { Some(form.ty()?.name) };
    let mut found = Vec::new();
    for &(name, element) in types(op) {
        // A tensor map of f64 is not among those that are updated.
        let fits = ty.map_or(element != ElementType::F64, |ty| ty == name);
        if let (true, Some(ty)) = (fits, Type::named(name)) {
            found.push((element, update_named(op, ty)?));
        }
    }
    if found.is_empty() {
        let ty = ty.unwrap_or_default();
        return Err(format!("there is no bulk update `{op}.{ty}`"));
    }
    Ok(found)
}
