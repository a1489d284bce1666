//! Grids of problems: what is measured where nobody says otherwise.

use flashtile::{DType, Shape};

use crate::cell::{Cache, Cell, Group, HeadDim, Mask, dtypes};

/// Lists of which every combination is a cell, and cells besides.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// Element types.
    pub dtypes: Vec<DType>,
    /// Head dimensions.
    pub head_dims: Vec<HeadDim>,
    /// Masks.
    pub masks: Vec<Mask>,
    /// Sequence lengths, of queries as of keys.
    pub seqlens: Vec<usize>,
    /// Query heads to a key/value head.
    pub groups: Vec<Group>,
    /// Query heads times their head_dim.
    pub hidden: usize,
    /// Batch times sequence length, if the batch is 1 at least.
    pub tokens: usize,
    /// Cells besides, of serving kernels.
    pub serving: Vec<Cell>,
}

/// Decode, one token for each of `batch` sequences that have `keys` already: Llama 3's heads, in pages of so many rows.
fn decode(batch: usize, keys: usize, page: usize, [heads_q, heads_kv]: [usize; 2]) -> Cell {
    Cell {
        dtype: DType::Bf16,
        shape: Shape {
            batch,
            seqlen_q: 1,
            seqlen_k: keys,
            heads_q,
            heads_kv,
            head_dim_qk: 128,
            head_dim_v: 128,
        },
        mask: Mask::Full,
        cache: Cache::Pages(page),
    }
}

/// So, over DeepSeek's latent cache: 512 elements, and 64 of rotary position.
fn latent(batch: usize, keys: usize, heads: usize) -> Cell {
    let cell = decode(batch, keys, 64, [heads, 1]);
    Cell {
        shape: Shape {
            head_dim_qk: 576,
            head_dim_v: 512,
            ..cell.shape
        },
        cache: Cache::Latent(64),
        ..cell
    }
}

/// Prefill: sequences one after the other, causal.
fn prefill(batch: usize, tokens: usize, heads: [usize; 2]) -> Cell {
    let cell = decode(batch, tokens, 1, heads);
    Cell {
        shape: Shape {
            seqlen_q: tokens,
            ..cell.shape
        },
        mask: Mask::Causal,
        cache: Cache::Packed,
        ..cell
    }
}

impl Grid {
    /// What FlashAttention's own benchmark measures, and longer and shorter sequences and grouped heads.
    pub fn gpu() -> Self {
        Self {
            dtypes: narrow(),
            head_dims: [128, 64, 256].map(HeadDim::from).to_vec(),
            masks: vec![Mask::Full, Mask::Causal],
            seqlens: vec![512, 1024, 2048, 4096, 8192, 16_384, 32_768],
            groups: vec![Group(1), Group(8)],
            hidden: 2048,
            tokens: 16_384,
            serving: Self::gpu_serving(),
        }
    }

    fn gpu_serving() -> Vec<Cell> {
        let mut cells = Vec::new();
        for batch in [1, 8, 64] {
            for keys in [4096, 8192] {
                cells.extend([16, 64].map(|page| decode(batch, keys, page, [32, 8])));
                cells.extend([128, 16].map(|heads| latent(batch, keys, heads)));
            }
        }
        cells.extend([(16, 1024), (4, 4096), (2, 8192)].map(|(b, n)| prefill(b, n, [32, 8])));
        cells
    }

    /// A few cells of it.
    pub fn gpu_quick() -> Self {
        Self {
            dtypes: vec![DType::Bf16],
            head_dims: [128, 64].map(HeadDim::from).to_vec(),
            seqlens: vec![1024, 4096, 16_384],
            groups: vec![Group(1)],
            serving: vec![
                decode(1, 4096, 16, [32, 8]),
                decode(64, 8192, 16, [32, 8]),
                latent(8, 4096, 128),
                prefill(4, 4096, [32, 8]),
            ],
            ..Self::gpu()
        }
    }

    /// What the emulator can do in a few seconds.
    pub fn emulator() -> Self {
        Self {
            head_dims: [64, 128].map(HeadDim::from).to_vec(),
            seqlens: vec![64, 128, 256],
            hidden: 512,
            tokens: 256,
            serving: vec![
                decode(1, 512, 16, [8, 2]),
                decode(4, 256, 64, [8, 2]),
                latent(1, 128, 16),
                prefill(2, 128, [4, 1]),
            ],
            ..Self::gpu()
        }
    }

    /// What it can do at once.
    pub fn emulator_quick() -> Self {
        Self {
            dtypes: vec![DType::Bf16],
            head_dims: [64].map(HeadDim::from).to_vec(),
            seqlens: vec![64, 128],
            groups: vec![Group(1)],
            hidden: 128,
            tokens: 128,
            serving: vec![
                decode(1, 128, 16, [4, 1]),
                latent(1, 64, 16),
                prefill(2, 64, [2, 1]),
            ],
            ..Self::gpu()
        }
    }

    /// Every cell, so that a run that is cut short has measured what others publish.
    pub fn cells(&self) -> Vec<Cell> {
        [self.dense(), self.serving.clone()].concat()
    }

    /// Every combination of the lists.
    fn dense(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &dtype in &self.dtypes {
            for &group in &self.groups {
                for &head_dim in &self.head_dims {
                    for &mask in &self.masks {
                        for &seqlen in &self.seqlens {
                            let shape = self.shape(head_dim, seqlen, group);
                            let cache = Cache::Dense;
                            cells.push(Cell {
                                dtype,
                                shape,
                                mask,
                                cache,
                            });
                        }
                    }
                }
            }
        }
        cells
    }

    fn shape(&self, head_dim: HeadDim, seqlen: usize, group: Group) -> Shape {
        let heads = (self.hidden / head_dim.qk.max(1)).max(1);
        // As many as share key/value heads evenly.
        let heads_q = heads.next_multiple_of(group.0.max(1));
        Shape {
            batch: (self.tokens / seqlen.max(1)).max(1),
            seqlen_q: seqlen,
            seqlen_k: seqlen,
            heads_q,
            heads_kv: heads_q / group.0.max(1),
            head_dim_qk: head_dim.qk,
            head_dim_v: head_dim.v,
        }
    }
}

/// Element types for which tensor cores are made: those of at most 16 bits.
fn narrow() -> Vec<DType> {
    let narrow = |dtype: &DType| dtype.bytes() <= 2;
    dtypes().into_iter().filter(narrow).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile::{ArchChoice, DeviceInfo, Sharing};

    #[test]
    fn the_grids_hold_what_they_promise() {
        for grid in [
            Grid::gpu(),
            Grid::gpu_quick(),
            Grid::emulator(),
            Grid::emulator_quick(),
        ] {
            let cells = grid.dense();
            let lists = [
                grid.dtypes.len(),
                grid.head_dims.len(),
                grid.masks.len(),
                grid.seqlens.len(),
                grid.groups.len(),
            ];
            assert_eq!(cells.len(), lists.iter().product::<usize>());
            for (at, cell) in cells.iter().enumerate() {
                assert!(!cells[..at].contains(cell), "{cell} comes twice");
                let s = &cell.shape;
                assert_eq!(s.heads_q, s.heads_kv * cell.group().0);
                assert!(grid.groups.contains(&cell.group()));
                assert_eq!(s.batch * s.seqlen_q, grid.tokens.max(s.seqlen_q));
                assert!(s.heads_q * s.head_dim_qk >= grid.hidden);
            }
        }
        let mha: Vec<_> = Grid::gpu().dense();
        let all_hidden = |cell: &Cell| cell.shape.heads_q * cell.shape.head_dim_qk == 2048;
        assert!(mha.iter().all(all_hidden));
    }

    /// Those of a kind of their own: their kernels, and what must be read of them.
    #[test]
    fn serving_cells_have_their_kernels() {
        for grid in [
            Grid::gpu(),
            Grid::gpu_quick(),
            Grid::emulator(),
            Grid::emulator_quick(),
        ] {
            for (at, cell) in grid.serving.iter().enumerate() {
                assert!(!grid.serving[..at].contains(cell), "{cell} comes twice");
                let problem = cell.serving_problem(ArchChoice::Auto).unwrap();
                let plan = problem.plan(&DeviceInfo::emulator()).unwrap();
                let kind = plan.variant().sharing;
                assert_eq!(
                    kind,
                    match cell.cache {
                        Cache::Latent(_) => Sharing::Columns,
                        Cache::Pages(_) => Sharing::Keys,
                        Cache::Packed | Cache::Dense => Sharing::Rows,
                    },
                    "{cell}"
                );
                let s = &cell.shape;
                let keys = s.batch * s.seqlen_k * s.heads_kv * s.head_dim_qk * 2;
                let twice = !matches!(cell.cache, Cache::Latent(_));
                let rest = s.batch * s.seqlen_q * s.heads_q * (s.head_dim_qk + s.head_dim_v) * 2;
                let all = if twice { 2 * keys } else { keys } + rest;
                assert_eq!(cell.bytes(), Some(all as u64), "{cell}");
            }
        }
    }
}
