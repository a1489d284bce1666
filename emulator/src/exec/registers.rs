//! A warp's registers.

use super::fit;
use crate::program::{ALL, Dst, Kind, Narrow, PredSrc, Program, Row, Slot, Src, WARP, Wide};

/// A warp's registers.
#[derive(Hash)]
pub(super) struct Registers {
    rows: Vec<Row>,
    pub(super) preds: Vec<u32>,
}

impl Registers {
    pub(super) fn new(program: &Program) -> Self {
        let mut preds = vec![0; program.preds as usize];
        preds[0] = ALL;
        // One row more than there are, so that every row is also the first half of a pair.
        Self {
            rows: vec![Row([u32::MAX; WARP]); program.rows as usize + 1],
            preds,
        }
    }

    #[inline(always)]
    pub(super) fn narrow(&self, slot: Slot) -> &Narrow {
        &self.rows[slot as usize].0
    }

    #[inline(always)]
    pub(super) fn narrow_mut(&mut self, slot: Slot) -> &mut Narrow {
        &mut self.rows[slot as usize].0
    }

    /// Several different registers; `None` if two are the same.
    #[inline(always)]
    pub(super) fn several_mut<const N: usize>(
        &mut self,
        slots: [Slot; N],
    ) -> Option<[&mut Narrow; N]> {
        let rows = self.rows.get_disjoint_mut(slots.map(|s| s as usize));
        rows.ok().map(|rows| rows.map(|row| &mut row.0))
    }

    #[inline(always)]
    pub(super) fn wide(&self, slot: Slot) -> &Wide {
        let pair = &self.rows[slot as usize..slot as usize + 2];
        // SAFETY: two adjacent rows are 256 initialised bytes at a multiple of 64, which is what a `Wide` needs, and
        // the borrow of `pair` carries over.
        unsafe { &*pair.as_ptr().cast::<Wide>() }
    }

    #[inline(always)]
    pub(super) fn wide_mut(&mut self, slot: Slot) -> &mut Wide {
        let pair = &mut self.rows[slot as usize..slot as usize + 2];
        // SAFETY: as in `wide`; the borrow is unique.
        unsafe { &mut *pair.as_mut_ptr().cast::<Wide>() }
    }

    #[inline(always)]
    pub(super) fn pred(&self, p: PredSrc) -> u32 {
        self.preds[p.index as usize] ^ p.flip
    }

    /// Any operand, widened with zeros.
    #[inline(always)]
    pub(super) fn widen(&self, src: Src, out: &mut Wide) {
        match src.kind {
            Kind::W64 => *out = *self.wide(src.slot),
            Kind::Pred => {
                let mask = self.preds[src.slot as usize];
                for (lane, out) in out.iter_mut().enumerate() {
                    *out = u64::from(mask >> lane & 1);
                }
            }
            _ => {
                for (out, &v) in out.iter_mut().zip(self.narrow(src.slot)) {
                    *out = u64::from(v);
                }
            }
        }
    }

    /// One lane's value.
    #[inline(always)]
    pub(super) fn lane(&self, src: Src, lane: u32) -> u64 {
        match src.kind {
            Kind::W64 => self.wide(src.slot)[lane as usize],
            Kind::Pred => u64::from(self.preds[src.slot as usize] >> lane & 1),
            _ => u64::from(self.narrow(src.slot)[lane as usize]),
        }
    }

    #[inline(always)]
    pub(super) fn set_lane(&mut self, dst: Src, lane: u32, value: u64) {
        match dst.kind {
            Kind::W64 => self.wide_mut(dst.slot)[lane as usize] = value,
            Kind::Pred => {
                let mask = &mut self.preds[dst.slot as usize];
                *mask = *mask & !(1 << lane) | (value as u32 & 1) << lane;
            }
            kind => self.narrow_mut(dst.slot)[lane as usize] = fit(kind, value) as u32,
        }
    }

    /// Writes the active lanes.
    #[inline(always)]
    pub(super) fn put_narrow(&mut self, slot: Slot, active: u32, value: &Narrow) {
        let row = self.narrow_mut(slot);
        if active == ALL {
            *row = *value;
        } else {
            for lane in 0..WARP {
                row[lane] = if active >> lane & 1 != 0 {
                    value[lane]
                } else {
                    row[lane]
                };
            }
        }
    }

    /// Writes the active lanes of a register of any kind.
    #[inline(always)]
    pub(super) fn put_wide(&mut self, dst: Src, active: u32, value: &Wide) {
        match dst.kind {
            Kind::W64 => {
                let row = self.wide_mut(dst.slot);
                if active == ALL {
                    *row = *value;
                } else {
                    for lane in 0..WARP {
                        row[lane] = if active >> lane & 1 != 0 {
                            value[lane]
                        } else {
                            row[lane]
                        };
                    }
                }
            }
            Kind::Pred => {
                let mut mask = 0;
                for (lane, &v) in value.iter().enumerate() {
                    mask |= (v as u32 & 1) << lane;
                }
                self.put_pred(Some(dst.slot), active, mask);
            }
            kind => {
                let keep = fit(kind, u64::MAX) as u32;
                let mut narrow = [0; WARP];
                for (n, &v) in narrow.iter_mut().zip(value) {
                    *n = v as u32 & keep;
                }
                self.put_narrow(dst.slot, active, &narrow);
            }
        }
    }

    #[inline(always)]
    pub(super) fn put_pred(&mut self, index: Option<u32>, active: u32, value: u32) {
        if let Some(index) = index {
            let mask = &mut self.preds[index as usize];
            *mask = *mask & !active | value & active;
        }
    }

    /// Writes one value to the active lanes.
    pub(super) fn put_uniform(&mut self, dst: Dst, active: u32, value: u64) {
        if let Some(dst) = dst {
            self.put_wide(dst, active, &[value; WARP]);
        }
    }

    pub(super) fn broadcast(&mut self, dst: Src, value: u64) {
        self.put_uniform(Some(dst), ALL, value);
    }

    pub(super) fn set(&mut self, dst: Src, value: impl Fn(u32) -> u64) {
        for lane in 0..WARP as u32 {
            self.set_lane(dst, lane, value(lane));
        }
    }
}
