//! Matrix instructions: fragments in the registers of a warp.

use super::warp::Warp;
use super::{Cluster, Trouble};
use crate::program::{ALL, Matrix, Mma, Narrow, WARP};
use crate::semantics::matrix;

/// Most registers of one mma operand.
const MOST: usize = 8;

impl Warp {
    /// `ldmatrix` and `stmatrix`.
    pub(super) fn matrix(
        &mut self,
        cluster: &mut Cluster<'_, '_>,
        op: &Matrix,
    ) -> Result<(), Trouble> {
        let addresses = self.addresses(op.address);
        for (j, &slot) in op.regs.iter().enumerate() {
            if op.store {
                let rows = matrix::store(self.regs.narrow(slot), op.transposed);
                for (r, row) in rows.into_iter().enumerate() {
                    let lane = 8 * j + r;
                    self.write_row(cluster, op.space, addresses[lane], lane as u32, row)?;
                }
            } else {
                let mut rows = [[0; 16]; 8];
                for (r, row) in rows.iter_mut().enumerate() {
                    let lane = 8 * j + r;
                    *row = self.read_row(cluster, op.space, addresses[lane], lane as u32)?;
                }
                let value = matrix::load(&rows, op.transposed);
                self.regs.put_narrow(slot, ALL, &value);
            }
        }
        // Lanes 8 j to 8 j + 7 have the rows of matrix j.
        let rows = u32::MAX >> (WARP - 8 * op.regs.len());
        cluster.count_banks(op.space, &addresses, rows, 16);
        Ok(())
    }

    /// `mma.sync`.
    pub(super) fn mma(&mut self, op: &Mma) {
        let mut d = [[0; WARP]; MOST];
        let mut a = [[0; WARP]; MOST];
        let mut b = [[0; WARP]; MOST];
        let mut c = [[0; WARP]; MOST];
        let gather = |slots: &[u32], out: &mut [Narrow; MOST]| {
            for (out, &slot) in out.iter_mut().zip(slots) {
                *out = *self.regs.narrow(slot);
            }
        };
        gather(&op.a, &mut a);
        gather(&op.b, &mut b);
        gather(&op.c, &mut c);
        let (nd, na, nb, nc) = (op.d.len(), op.a.len(), op.b.len(), op.c.len());
        (op.f)(&mut d[..nd], &a[..na], &b[..nb], &c[..nc]);
        for (&slot, value) in op.d.iter().zip(&d) {
            self.regs.put_narrow(slot, ALL, value);
        }
    }
}
