//! What appending and gathering have alike: which row is a token's, and types and scales of caches.

use candle_core::{DType, Result, Tensor};
use flashtile::{
    cache::{Place, PlaceData, Sequences},
    serving::PageTable,
};

use crate::{
    error::bad,
    operands::{ints, longs},
    problem::{INDICES, dtype_of, expect, strides, typed},
};

/// Where tokens go.
#[derive(Clone, Debug)]
pub(super) enum Tokens {
    Slots(Tensor),
    Pages {
        table: Tensor,
        seqlens: Tensor,
        seqused: Option<Tensor>,
    },
}

pub(super) const HALVES: [DType; 2] = [DType::F16, DType::BF16];

impl Tokens {
    pub fn check(&self, batch: usize, tokens: usize) -> Result<Place> {
        match self {
            Self::Slots(slots) => {
                count("slot_mapping", slots, tokens)?;
                typed("slot_mapping", slots, &[DType::I64])?;
                Ok(Place::Slots)
            }
            Self::Pages {
                table,
                seqlens,
                seqused,
            } => {
                expect("seqlens", seqlens, &[batch], &INDICES)?;
                if let Some(seqused) = seqused {
                    expect("seqused", seqused, &[batch], &INDICES)?;
                }
                Ok(Place::Sequences(Sequences {
                    batch,
                    starts: false,
                    used: seqused.is_some(),
                    first: true,
                    pages: Some(page_table(table, batch)?),
                }))
            }
        }
    }
}

/// A table [batch, entries].
pub(super) fn page_table(table: &Tensor, batch: usize) -> Result<PageTable> {
    match table.dims() {
        &[rows, entries] if rows == batch => {
            typed("block_table", table, &INDICES)?;
            Ok(PageTable {
                entries,
                strides: strides(table.layout()),
            })
        }
        found => Err(bad(
            "block_table",
            format!("shape [{batch}, entries]"),
            format!("shape {found:?}"),
        )),
    }
}

/// Refuses another number of numbers, and gaps.
pub(super) fn count(argument: &str, tensor: &Tensor, wanted: usize) -> Result<()> {
    match tensor.elem_count() == wanted && tensor.is_contiguous() {
        true => Ok(()),
        false => Err(bad(
            argument,
            format!("{wanted} numbers without gaps, one for each token"),
            format!("shape {:?}, strides {:?}", tensor.dims(), tensor.stride()),
        )),
    }
}

/// Numbers that say where tokens go, in the host's memory.
#[derive(Default)]
pub(super) struct PlaceNumbers {
    pub slots: Vec<i64>,
    pub starts: Vec<i32>,
    pub used: Vec<i32>,
    pub first: Vec<i32>,
    pub table: Vec<i32>,
}

impl PlaceNumbers {
    pub fn new(place: &Tokens) -> Result<Self> {
        match place {
            Tokens::Slots(slots) => Ok(Self {
                slots: longs("slot_mapping", slots)?,
                ..Self::default()
            }),
            Tokens::Pages {
                table,
                seqlens,
                seqused,
            } => Ok(Self {
                first: ints("seqlens", seqlens, seqlens.elem_count())?,
                used: match seqused {
                    Some(used) => ints("seqused", used, used.elem_count())?,
                    None => Vec::new(),
                },
                table: ints("block_table", table, usize::MAX)?,
                ..Self::default()
            }),
        }
    }

    pub fn data(&self) -> PlaceData<'_> {
        PlaceData {
            slots: &self.slots,
            starts: &self.starts,
            used: &self.used,
            first: &self.first,
            table: &self.table,
        }
    }
}

/// Type of caches beside rows of f16 or bf16.
pub(super) fn cache_type(
    dtype: DType,
    k_cache: &Tensor,
    v_cache: &Tensor,
) -> Result<flashtile::DType> {
    typed("k_cache", k_cache, &[dtype, DType::F8E4M3, DType::U8])?;
    typed("v_cache", v_cache, &[k_cache.dtype()])?;
    Ok(match k_cache.dtype() {
        DType::F8E4M3 | DType::U8 => flashtile::DType::E4m3,
        dtype => dtype_of(dtype),
    })
}
