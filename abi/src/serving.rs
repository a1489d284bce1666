//! Attention for inference engines: sequences of their own lengths in one launch, caches in pages, keys split over blocks.

use crate::{
    divide::Divisor,
    hopper::WARPGROUP,
    mask::Band,
    params::{LseView, ScaleView, TensorView},
    tile::{DType, TileShape},
    variant::{Arch, Entry},
};

/// Keys or values in device memory. Element `d` of a row is `(d / x) * chunk_stride + (d % x) * element_stride` bytes from the row's
/// first, `x` being the elements of 16 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CacheView {
    /// Device address of the first element.
    pub ptr: u64,
    /// Bytes from one page to the next; without pages from one sequence to the next, 0 if the sequences follow each other.
    pub block_stride: i64,
    /// Bytes from one row (token) to the next, inside a page.
    pub row_stride: i64,
    /// Bytes from one head to the next.
    pub head_stride: i64,
    /// Bytes from one 16-byte piece of a row to the next: 16 where rows are contiguous.
    pub chunk_stride: i64,
    /// Bytes from one element of a piece to the next: the element's size where pieces are contiguous.
    pub element_stride: i64,
}

/// Where the sequences of a launch lie, and how long they are. The numbers are on the device, and may be anything: the kernels keep
/// within `tokens` and `longest` whatever they read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lengths {
    /// Device address of `i32[batch + 1]`: sequence `b` has tokens `starts[b]..starts[b + 1]`. 0: each has `tokens` of its own.
    pub starts: u64,
    /// Device address of `i32[batch]`: only so many tokens of sequence `b` count. 0: all do.
    pub used: u64,
    /// Tokens of all sequences together with `starts`, else of each: what memory holds.
    pub tokens: i32,
    /// Tokens of the longest sequence that the launch has blocks for.
    pub longest: i32,
}

/// Pages of keys and values: row `j` of sequence `b` is row `j % page` of page `table[b][j / page]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pages {
    /// Device address of the table of `i32` or `u32`, or 0 without pages.
    pub table: u64,
    /// Bytes from one sequence's entries to the next one's.
    pub sequence_stride: i64,
    /// Bytes from one entry to the next.
    pub entry_stride: i64,
    /// Rows of a page.
    pub page: Divisor,
    /// Pages that exist. An entry that is none of them is not followed: its rows count as zeros.
    pub blocks: u32,
}

/// A function of pairs of a query and a key, [batch, heads_q, rows, keys]: strides are arbitrary (0 broadcasts), in bytes. Rows and
/// keys count from the start of their sequences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PairView {
    /// Device address of element [0, 0, 0, 0], or 0 if there is none.
    pub ptr: u64,
    /// Bytes from one sequence to the next.
    pub batch_stride: i64,
    /// Bytes from one query head to the next.
    pub head_stride: i64,
    /// Bytes from one query to the next.
    pub row_stride: i64,
    /// Bytes from one key to the next. Of bits: unused; the row's words of 32 keys follow each other.
    pub key_stride: i64,
}

/// Numbers by sequence and query head, f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HeadView {
    /// Device address, or 0 if there are none.
    pub ptr: u64,
    /// Bytes from one sequence to the next: 0 if they share them.
    pub batch_stride: i64,
}

/// Ranges of keys by sequence, `i32[batch, count, 2]`: first and last position of each, both included; an empty one has its first
/// after its last. Queries inside a range see all keys of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RangeView {
    /// Device address, or 0 if there are none.
    pub ptr: u64,
    /// Bytes from one sequence to the next.
    pub batch_stride: i64,
    /// Ranges of a sequence.
    pub count: u32,
    /// Unused.
    pub padding: u32,
}

/// Where the blocks of one tile of queries leave what they made of their parts of the keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PartialView {
    /// Outputs, f32, [splits, tokens, heads_q, head_dim_v]; normalised.
    pub out: TensorView,
    /// Bytes from one split's outputs to the next one's.
    pub out_stride: i64,
    /// Their log-sum-exps, f32, [splits, heads_q, tokens].
    pub lse: LseView,
    /// Bytes from one split's log-sum-exps to the next one's.
    pub lse_stride: i64,
}

/// What one launch of a serving kernel computes: the only parameter, passed by value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct ServingParams {
    /// Queries [batch, rows, heads_q, head_dim_qk]; sequences that follow each other have batch stride 0.
    pub q: TensorView,
    /// Keys.
    pub k: CacheView,
    /// Values.
    pub v: CacheView,
    /// Output, as the queries.
    pub out: TensorView,
    /// Log-sum-exp [batch, heads_q, rows], rows contiguous; as the queries.
    pub lse: LseView,
    /// Partial results; used if there is more than one split.
    pub partial: PartialView,
    /// Of the queries.
    pub q_lengths: Lengths,
    /// Of the keys. With pages, `tokens` is what a row of the table holds, and `starts` say how long sequences are, not where.
    pub k_lengths: Lengths,
    /// Pages of keys and values.
    pub pages: Pages,
    /// Scales of keys, by key/value head: for 8-bit keys. `shift` is unused.
    pub k_scale: ScaleView,
    /// Scales of values, as those of keys.
    pub v_scale: ScaleView,
    /// Slopes of ALiBi: slope * -|distance of the key from the query's own| is added to the score.
    pub alibi: HeadView,
    /// Logits of sinks: keys that every row sees, whose values are 0.
    pub sink: HeadView,
    /// Added to the scores: f32 or the queries' type.
    pub bias: PairView,
    /// Which keys may be seen: a byte for each pair, not 0 = seen; or bits ([`flags::MASK_BITS`]).
    pub mask: PairView,
    /// Ranges inside which queries see all keys.
    pub ranges: RangeView,
    /// Keys that a query sees, relative to its diagonal; `seqlen_k` is unused.
    pub band: Band,
    /// Query heads.
    pub heads_q: u32,
    /// Key/value heads.
    pub heads_kv: u32,
    /// Query heads that share one key/value head, and the rows of a tile: packed row `r` is query `r / q_per_kv` of head
    /// `r % q_per_kv`. (PackGQA)
    pub q_per_kv: Divisor,
    /// Tiles of packed rows of one sequence and key/value head. Grid = splits * m_blocks * heads_kv * batch.
    pub m_blocks: u32,
    /// Blocks that share the keys of one tile of queries.
    pub splits: u32,
    /// Keys of each, a multiple of the tile's.
    pub split_keys: i32,
    /// Elements of a query or key.
    pub head_dim_qk: u32,
    /// Elements of a value.
    pub head_dim_v: u32,
    /// Factor from score to the exponent of two: softmax_scale * log2(e), positive and finite; log2(e) with [`flags::MODIFIED`].
    pub exponent_scale: f32,
    /// With [`flags::MODIFIED`]: what scores are multiplied by first.
    pub softmax_scale: f32,
    /// With [`flags::MODIFIED`]: softcap, or 0.
    pub softcap: f32,
    /// softmax_scale / softcap.
    pub cap_scale: f32,
    /// Bits of [`flags`].
    pub flags: u32,
}

/// Bits of [`ServingParams::flags`], beside those of [`crate::params::flags`] that are about alignment and the output's type.
pub mod flags {
    pub use crate::params::flags::{K_ALIGNED, OUT_ALIGNED, OUT_F32, Q_ALIGNED, V_ALIGNED};

    /// Scores are more than the product times a positive scale: capped, or something is added to them or masks them pair by pair, or
    /// the scale is no positive number that exponents take directly. Every tile goes through the loop body with masks then.
    pub const MODIFIED: u32 = 1 << 8;
    /// Query `i` stands at key `i + seqlen_k - seqlen_q`; else at key `i`.
    pub const BOTTOM_RIGHT: u32 = 1 << 9;
    /// The bias is f32; else it has the queries' type.
    pub const BIAS_F32: u32 = 1 << 10;
    /// The mask has a bit for each pair: key `j` is bit `j % 32` of word `j / 32`.
    pub const MASK_BITS: u32 = 1 << 11;
}

/// What one launch of a merging kernel computes: partial results over parts of the keys, made one by their log-sum-exps. The only
/// parameter, passed by value.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct MergeParams {
    /// The parts. Outputs are f32 with [`flags::PARTS_F32`](merge_flags::PARTS_F32), else of the kernel's type. One whose
    /// log-sum-exp is -inf is not read.
    pub parts: PartialView,
    /// Output.
    pub out: TensorView,
    /// Log-sum-exp.
    pub lse: LseView,
    /// Sinks that the parts know nothing of.
    pub sink: HeadView,
    /// Of the queries.
    pub lengths: Lengths,
    /// Heads.
    pub heads: Divisor,
    /// Number of parts.
    pub count: u32,
    /// Elements of a row.
    pub head_dim: u32,
    /// Blocks of one sequence, each of [`MERGE_ROWS`] rows of `row * heads + head`. Grid = row_blocks * batch.
    pub row_blocks: u32,
    /// Bits of [`merge_flags`].
    pub flags: u32,
}

/// Bits of [`MergeParams::flags`].
pub mod merge_flags {
    /// The parts' outputs are f32.
    pub const PARTS_F32: u32 = 1 << 0;
    /// So is the output.
    pub const OUT_F32: u32 = 1 << 1;
}

/// Rows of one block of a merging kernel: a warp has each.
pub const MERGE_ROWS: u32 = 4;

macro_rules! as_bytes {
    ($($name:ident)*) => { $(
        impl $name {
            /// The block as the bytes a launch passes.
            pub fn as_bytes(&self) -> &[u8] {
                // SAFETY: the struct is repr(C), made of integers and floats only, without padding (the
                // test below adds the fields up), and the slice borrows self.
                unsafe {
                    core::slice::from_raw_parts((self as *const Self).cast::<u8>(), size_of::<Self>())
                }
            }
        }
    )* };
}
pub(crate) use as_bytes;
as_bytes! { ServingParams MergeParams }

/// How the warps of a block share its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// Each warp has its rows, all have the same keys: for many queries.
    Rows,
    /// Each warp has its keys, all have the same 16 rows: for few queries (decode), where memory is the limit.
    Keys,
    /// Warps share rows and keys of a latent cache, and divide the output's columns ([`TileShape::latent`], [`TileShape::latent_sm90`]).
    Columns,
}

impl Sharing {
    /// Every way.
    pub const ALL: [Self; 3] = [Self::Rows, Self::Keys, Self::Columns];

    /// Name as in a variant's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rows => "serving",
            Self::Keys => "decode",
            Self::Columns => "mla",
        }
    }
}

/// A serving kernel. Its [`Entry`] is what it dereferences to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServingVariant {
    /// The entry point.
    pub entry: Entry,
    /// How warps share the work.
    pub sharing: Sharing,
    /// Tile shape, dtype and padded head dimensions included.
    pub tile: TileShape,
}

impl core::ops::Deref for ServingVariant {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// A merging kernel. Its [`Entry`] is what it dereferences to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeVariant {
    /// The entry point.
    pub entry: Entry,
    /// Type of the output, and of parts that are not f32.
    pub dtype: DType,
}

impl core::ops::Deref for MergeVariant {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// Calls `$callback! { (name Sharing DType DType of keys and values head_dim_qk head_dim_v) ... }`: the serving kernels.
#[macro_export]
macro_rules! for_each_serving_variant {
    ($callback:ident) => {
        $callback! {
            (serving_f16_d64_sm80 Rows F16 F16 64 64)
            (serving_f16_d128_sm80 Rows F16 F16 128 128)
            (serving_f16_d192x128_sm80 Rows F16 F16 192 128)
            (serving_f16_d256_sm80 Rows F16 F16 256 256)
            (serving_bf16_d64_sm80 Rows Bf16 Bf16 64 64)
            (serving_bf16_d128_sm80 Rows Bf16 Bf16 128 128)
            (serving_bf16_d192x128_sm80 Rows Bf16 Bf16 192 128)
            (serving_bf16_d256_sm80 Rows Bf16 Bf16 256 256)
            (decode_f16_d64_sm80 Keys F16 F16 64 64)
            (decode_f16_d128_sm80 Keys F16 F16 128 128)
            (decode_f16_d192x128_sm80 Keys F16 F16 192 128)
            (decode_f16_d256_sm80 Keys F16 F16 256 256)
            (decode_bf16_d64_sm80 Keys Bf16 Bf16 64 64)
            (decode_bf16_d128_sm80 Keys Bf16 Bf16 128 128)
            (decode_bf16_d192x128_sm80 Keys Bf16 Bf16 192 128)
            (decode_bf16_d256_sm80 Keys Bf16 Bf16 256 256)
            (serving_f16_e4m3_d64_sm80 Rows F16 E4m3 64 64)
            (serving_f16_e4m3_d128_sm80 Rows F16 E4m3 128 128)
            (serving_f16_e4m3_d256_sm80 Rows F16 E4m3 256 256)
            (serving_bf16_e4m3_d64_sm80 Rows Bf16 E4m3 64 64)
            (serving_bf16_e4m3_d128_sm80 Rows Bf16 E4m3 128 128)
            (serving_bf16_e4m3_d256_sm80 Rows Bf16 E4m3 256 256)
            (decode_f16_e4m3_d64_sm80 Keys F16 E4m3 64 64)
            (decode_f16_e4m3_d128_sm80 Keys F16 E4m3 128 128)
            (decode_f16_e4m3_d256_sm80 Keys F16 E4m3 256 256)
            (decode_bf16_e4m3_d64_sm80 Keys Bf16 E4m3 64 64)
            (decode_bf16_e4m3_d128_sm80 Keys Bf16 E4m3 128 128)
            (decode_bf16_e4m3_d256_sm80 Keys Bf16 E4m3 256 256)
        }
    };
}

/// Calls `$callback! { (name DType head_dim_qk head_dim_v) ... }`: the serving kernels of the sm_90a tier, for many queries.
#[macro_export]
macro_rules! for_each_serving_hopper_variant {
    ($callback:ident) => {
        $callback! {
            (serving_f16_d64_sm90a F16 64 64)
            (serving_f16_d128_sm90a F16 128 128)
            (serving_f16_d192x128_sm90a F16 192 128)
            (serving_f16_d256_sm90a F16 256 256)
            (serving_bf16_d64_sm90a Bf16 64 64)
            (serving_bf16_d128_sm90a Bf16 128 128)
            (serving_bf16_d192x128_sm90a Bf16 192 128)
            (serving_bf16_d256_sm90a Bf16 256 256)
        }
    };
}

/// Calls `$callback! { (name DType rows of a tile) ... }`: the kernels for latent caches (MLA).
#[macro_export]
macro_rules! for_each_latent_variant {
    ($callback:ident) => {
        $callback! {
            (mla_f16_m16_sm80 F16 16)
            (mla_f16_m64_sm80 F16 64)
            (mla_bf16_m16_sm80 Bf16 16)
            (mla_bf16_m64_sm80 Bf16 64)
        }
    };
}

/// Calls `$callback! { (name DType) ... }`: those of the sm_90a tier, for many rows.
#[macro_export]
macro_rules! for_each_latent_hopper_variant {
    ($callback:ident) => {
        $callback! {
            (mla_f16_m64_sm90a F16)
            (mla_bf16_m64_sm90a Bf16)
        }
    };
}

/// Calls `$callback! { (name DType) ... }`: the merging kernels.
#[macro_export]
macro_rules! for_each_merge_variant {
    ($callback:ident) => {
        $callback! {
            (merge_f16_sm80 F16)
            (merge_bf16_sm80 Bf16)
            (merge_f32_sm80 F32)
        }
    };
}

const fn serving_variant(name: &'static str, sharing: Sharing, tile: TileShape) -> ServingVariant {
    ServingVariant {
        entry: Entry {
            name,
            arch: Arch::Sm80,
            threads: tile.threads(),
            min_blocks: tile.min_blocks,
            shared_bytes: tile.shared().bytes,
        },
        sharing,
        tile,
    }
}

macro_rules! serving_table {
    ($(($name:ident $sharing:ident $dtype:ident $kv:ident $dqk:literal $dv:literal))*) => {
        const SEPARATE: &[ServingVariant] = &[$(serving_variant(
            stringify!($name),
            Sharing::$sharing,
            TileShape::serving(Sharing::$sharing, DType::$dtype, DType::$kv, $dqk, $dv),
        )),*];
    };
}
for_each_serving_variant!(serving_table);

macro_rules! latent_table {
    ($(($name:ident $dtype:ident $rows:literal))*) => {
        const LATENT: &[ServingVariant] = &[$(serving_variant(
            stringify!($name),
            Sharing::Columns,
            TileShape::latent(DType::$dtype, $rows),
        )),*];
    };
}
for_each_latent_variant!(latent_table);

const fn hopper_variant(name: &'static str, sharing: Sharing, tile: TileShape) -> ServingVariant {
    ServingVariant {
        entry: Entry {
            name,
            arch: Arch::Sm90a,
            threads: tile.threads() + WARPGROUP,
            min_blocks: tile.min_blocks,
            shared_bytes: tile.hopper_plan().bytes,
        },
        sharing,
        tile,
    }
}

macro_rules! hopper_table {
    ($(($name:ident $dtype:ident $dqk:literal $dv:literal))*) => {
        const HOPPER: &[ServingVariant] = &[$(hopper_variant(
            stringify!($name),
            Sharing::Rows,
            TileShape::serving_sm90(DType::$dtype, $dqk, $dv),
        )),*];
    };
}
for_each_serving_hopper_variant!(hopper_table);

macro_rules! latent_hopper_table {
    ($(($name:ident $dtype:ident))*) => {
        const LATENT_HOPPER: &[ServingVariant] = &[$(hopper_variant(
            stringify!($name),
            Sharing::Columns,
            TileShape::latent_sm90(DType::$dtype),
        )),*];
    };
}
for_each_latent_hopper_variant!(latent_hopper_table);

const SERVING: &[ServingVariant] = &{
    const TABLES: [&[ServingVariant]; 4] = [SEPARATE, LATENT, HOPPER, LATENT_HOPPER];
    const COUNT: usize = SEPARATE.len() + LATENT.len() + HOPPER.len() + LATENT_HOPPER.len();
    let mut all = [LATENT_HOPPER[0]; COUNT];
    let (mut table, mut i, mut count) = (0, 0, 0);
    while count < COUNT {
        if i == TABLES[table].len() {
            (table, i) = (table + 1, 0);
        } else {
            all[count] = TABLES[table][i];
            (i, count) = (i + 1, count + 1);
        }
    }
    all
};

macro_rules! merge_table {
    ($(($name:ident $dtype:ident))*) => {
        const MERGE: &[MergeVariant] = &[$(MergeVariant {
            entry: Entry {
                name: stringify!($name),
                arch: Arch::Sm80,
                threads: 32 * MERGE_ROWS,
                min_blocks: 8,
                shared_bytes: 0,
            },
            dtype: DType::$dtype,
        }),*];
    };
}
for_each_merge_variant!(merge_table);

/// Every serving kernel.
pub const fn serving_variants() -> &'static [ServingVariant] {
    SERVING
}

/// Every merging kernel.
pub const fn merge_variants() -> &'static [MergeVariant] {
    MERGE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_blocks_have_no_padding() {
        let lengths = 2 * 8 + 2 * 4;
        let pages = 3 * 8 + size_of::<Divisor>() + 4;
        let pair = 5 * 8;
        let partial = size_of::<TensorView>() + size_of::<LseView>() + 2 * 8;
        assert_eq!(size_of::<PartialView>(), partial);
        let head = 2 * 8;
        assert_eq!(
            size_of::<ServingParams>(),
            2 * size_of::<TensorView>()
                + 2 * 6 * 8
                + size_of::<LseView>()
                + partial
                + 2 * lengths
                + pages
                + 2 * size_of::<ScaleView>()
                + 2 * head
                + 2 * pair
                + 3 * 8
                + size_of::<Band>()
                + size_of::<Divisor>()
                + 12 * 4
        );
        assert_eq!(
            size_of::<MergeParams>(),
            partial
                + size_of::<TensorView>()
                + size_of::<LseView>()
                + head
                + lengths
                + size_of::<Divisor>()
                + 4 * 4
                + 4
        );
    }

    #[test]
    fn a_name_says_what_its_variant_is() {
        for variant in serving_variants() {
            let tile = &variant.tile;
            let (qk, v) = (tile.head_dim_qk, tile.head_dim_v);
            let dim = match (variant.sharing, qk == v) {
                (Sharing::Columns, _) => format!("m{}", tile.block_m),
                (_, true) => format!("d{qk}"),
                (_, false) => format!("d{qk}x{v}"),
            };
            let (sharing, dtype) = (variant.sharing.as_str(), tile.dtype.as_str());
            let kv = match tile.kv_dtype == tile.dtype {
                true => String::new(),
                false => format!("_{}", tile.kv_dtype.as_str()),
            };
            let arch = match variant.arch {
                Arch::Sm80 => "sm80",
                Arch::Sm90a => "sm90a",
            };
            assert_eq!(variant.name, format!("{sharing}_{dtype}{kv}_{dim}_{arch}"));
        }
        for variant in merge_variants() {
            assert_eq!(
                variant.name,
                format!("merge_{}_sm80", variant.dtype.as_str())
            );
        }
    }
}
