//! Tensor-core products of one warpgroup: four warps, 64 rows. Operands come from shared memory through
//! descriptors, the left one from registers too; sums stay in registers and are in flight until a wait.
//!
//! Fragments (w = warp of the group, g = lane / 4, t = lane % 4): sums hold rows 16w + g and 16w + g + 8,
//! columns 8j + 2t and 8j + 2t + 1, as `[j][(g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)]`. Manual: section 9.7.15.
//!
//! The products are `asm!`, since they have no intrinsic; fence, commit and wait are convergent intrinsics, which
//! keep the compiler from duplicating the block that they stand in.

use super::special;
use core::arch::asm;

unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.wgmma.fence.sync.aligned"]
    fn nvvm_fence();
    #[link_name = "llvm.nvvm.wgmma.commit_group.sync.aligned"]
    fn nvvm_commit_group();
    #[link_name = "llvm.nvvm.wgmma.wait_group.sync.aligned"]
    fn nvvm_wait_group(pending: u64);
}

/// `wgmma.fence`: before the first product, and wherever registers of a product were touched since the last one.
#[inline(always)]
pub fn fence() {
    // SAFETY: the callers are on control flow that is uniform over the warpgroup. So for the functions below.
    unsafe { nvvm_fence() }
}

/// `wgmma.commit_group`: closes the group of products issued so far.
#[inline(always)]
pub fn commit_group() {
    // SAFETY: as for `fence`.
    unsafe { nvvm_commit_group() }
}

/// `wgmma.wait_group PENDING`: all but the newest PENDING groups are done.
#[inline(always)]
pub fn wait_group<const PENDING: u64>() {
    // SAFETY: as for `fence`.
    unsafe { nvvm_wait_group(PENDING) }
}

/// A shared-memory descriptor. Its upper half is a constant of the operand's layout, so that only the lower half, which holds
/// the address, moves: additions of 32 bits. (Manual: section 9.7.15.5.1.2.2)
#[derive(Clone, Copy)]
pub struct Descriptor {
    lower: u32,
    upper: u32,
}

impl Descriptor {
    /// Of an operand at a 16-byte aligned shared address, in swizzled rows of `width` bytes (128, 64 or 32), eight of which follow
    /// each other without a gap. `leading_bytes`: from one block of columns to the next; ignored where rows are contiguous along the
    /// sum.
    #[inline(always)]
    pub const fn new(address: u32, width: u32, leading_bytes: u32) -> Self {
        let code = match width {
            128 => 1,
            64 => 2,
            _ => 3,
        };
        Self {
            // In a cluster, the address has the block's rank above its 18 bits.
            lower: ((address & 0x3_ffff) >> 4) | ((leading_bytes >> 4) << 16),
            upper: (8 * width / 16) | (code << 30),
        }
    }

    /// The same, of which the compiler knows nothing: what is derived from it is computed where it is used, not kept.
    #[inline(always)]
    pub fn anew(self) -> Self {
        Self {
            lower: special::opaque(self.lower),
            ..self
        }
    }

    /// The same, so many times so many bytes on. `bytes` is a constant multiple of 16.
    #[inline(always)]
    pub const fn advance(self, times: u32, bytes: u32) -> Self {
        Self {
            lower: self.lower + times * (bytes >> 4),
            ..self
        }
    }
}

/// Element types of operands.
pub struct F16;
/// bfloat16.
pub struct Bf16;
/// 8-bit floating point with 4 exponent bits.
pub struct E4m3;

/// Products whose sums are the fragments of 64 rows and N columns: `[[f32; 4]; N / 8]`.
pub trait Wgmma<T> {
    /// self = a * b, both from shared memory, contiguous along the sum.
    ///
    /// # Safety
    /// The descriptors describe operands inside the block's shared memory, which stay unchanged until a wait. The
    /// registers are not touched until then. So for the functions below.
    unsafe fn mm_ss(&mut self, a: Descriptor, b: Descriptor);
    /// self += a * b, both from shared memory, contiguous along the sum.
    ///
    /// # Safety
    /// As for [`mm_ss`](Self::mm_ss).
    unsafe fn mma_ss(&mut self, a: Descriptor, b: Descriptor);
    /// self = a * b, a from registers. 16-bit b: rows contiguous along its columns; 8-bit b: along the sum.
    ///
    /// # Safety
    /// As for [`mm_ss`](Self::mm_ss).
    unsafe fn mm_rs(&mut self, a: [u32; 4], b: Descriptor);
    /// self += a * b, as [`mm_rs`](Self::mm_rs).
    ///
    /// # Safety
    /// As for [`mm_ss`](Self::mm_ss).
    unsafe fn mma_rs(&mut self, a: [u32; 4], b: Descriptor);
    /// As [`mma_rs`](Self::mma_rs) if `keep`, else as [`mm_rs`](Self::mm_rs).
    ///
    /// # Safety
    /// As for [`mm_ss`](Self::mm_ss).
    unsafe fn mma_rs_if(&mut self, a: [u32; 4], b: Descriptor, keep: bool);
}

/// The registers of so many fragments, as `asm!` places.
macro_rules! registers {
    (8) => { "{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {9}, {10}, {11}, {12}, {13}, {14}, {15}, {16}, {17}, {18}, {19}, {20}, {21}, {22}, {23}, {24}, {25}, {26}, {27}, {28}, {29}, {30}, {31}" };
    (10) => { concat!(registers!(8), ", {32}, {33}, {34}, {35}, {36}, {37}, {38}, {39}") };
    (12) => { concat!(registers!(10), ", {40}, {41}, {42}, {43}, {44}, {45}, {46}, {47}") };
    (14) => { concat!(registers!(12), ", {48}, {49}, {50}, {51}, {52}, {53}, {54}, {55}") };
    (16) => { concat!(registers!(14), ", {56}, {57}, {58}, {59}, {60}, {61}, {62}, {63}") };
    (18) => { concat!(registers!(16), ", {64}, {65}, {66}, {67}, {68}, {69}, {70}, {71}") };
    (20) => { concat!(registers!(18), ", {72}, {73}, {74}, {75}, {76}, {77}, {78}, {79}") };
    (22) => { concat!(registers!(20), ", {80}, {81}, {82}, {83}, {84}, {85}, {86}, {87}") };
    (24) => { concat!(registers!(22), ", {88}, {89}, {90}, {91}, {92}, {93}, {94}, {95}") };
    (32) => { concat!(registers!(24), ", {96}, {97}, {98}, {99}, {100}, {101}, {102}, {103}, {104}, {105}, {106}, {107}, {108}, {109}, {110}, {111}, {112}, {113}, {114}, {115}, {116}, {117}, {118}, {119}, {120}, {121}, {122}, {123}, {124}, {125}, {126}, {127}") };
}

/// One product. `$way` is `inout`, or `out` where the sums start anew (`$scale_d` is then 0).
macro_rules! product_ss {
    ($way:ident $scale_d:literal $instruction:expr, $frags:tt, $tail:literal, [$($i:literal)*], $d:ident, $a:ident, $b:ident) => {
        asm!(
            concat!(
                "{{ .reg .b64 da, db; mov.b64 da, {{{a}, {la}}}; mov.b64 db, {{{b}, {lb}}}; ",
                $instruction, " {{", registers!($frags), "}}, da, db, ", $scale_d, $tail, "; }}"
            ),
            $($way(reg32) $d[$i][0], $way(reg32) $d[$i][1], $way(reg32) $d[$i][2], $way(reg32) $d[$i][3],)*
            a = in(reg32) $a.lower, la = in(reg32) $a.upper, b = in(reg32) $b.lower, lb = in(reg32) $b.upper,
            options(nostack)
        )
    };
}

/// As [`product_ss`], the left operand in registers.
macro_rules! product_rs {
    (keep $keep:ident $instruction:expr, $frags:tt, $tail:literal, [$($i:literal)*], $d:ident, $a:ident, $b:ident) => {
        asm!(
            concat!(
                "{{ .reg .pred p; .reg .b64 db; setp.ne.b32 p, {keep}, 0; mov.b64 db, {{{b}, {lb}}}; ",
                $instruction, " {{", registers!($frags), "}}, {{{a0}, {a1}, {a2}, {a3}}}, db, p", $tail, "; }}"
            ),
            $(inout(reg32) $d[$i][0], inout(reg32) $d[$i][1], inout(reg32) $d[$i][2], inout(reg32) $d[$i][3],)*
            a0 = in(reg32) $a[0], a1 = in(reg32) $a[1], a2 = in(reg32) $a[2], a3 = in(reg32) $a[3],
            b = in(reg32) $b.lower, lb = in(reg32) $b.upper, keep = in(reg32) $keep as u32,
            options(nostack)
        )
    };
    ($way:ident $scale_d:literal $instruction:expr, $frags:tt, $tail:literal, [$($i:literal)*], $d:ident, $a:ident, $b:ident) => {
        asm!(
            concat!(
                "{{ .reg .b64 db; mov.b64 db, {{{b}, {lb}}}; ",
                $instruction, " {{", registers!($frags), "}}, {{{a0}, {a1}, {a2}, {a3}}}, db, ", $scale_d, $tail, "; }}"
            ),
            $($way(reg32) $d[$i][0], $way(reg32) $d[$i][1], $way(reg32) $d[$i][2], $way(reg32) $d[$i][3],)*
            a0 = in(reg32) $a[0], a1 = in(reg32) $a[1], a2 = in(reg32) $a[2], a3 = in(reg32) $a[3],
            b = in(reg32) $b.lower, lb = in(reg32) $b.upper,
            options(nostack)
        )
    };
}

macro_rules! shape {
    ($type:ident, $frags:tt, $instruction:expr, $ss_tail:literal, $rs_tail:literal, $list:tt) => {
        impl Wgmma<$type> for [[f32; 4]; $frags] {
            #[inline(always)]
            unsafe fn mm_ss(&mut self, a: Descriptor, b: Descriptor) {
                // SAFETY: the caller's promise; every output is written before a wait lets it be read.
                unsafe { product_ss!(out "0" $instruction, $frags, $ss_tail, $list, self, a, b) }
            }

            #[inline(always)]
            unsafe fn mma_ss(&mut self, a: Descriptor, b: Descriptor) {
                // SAFETY: the caller's promise.
                unsafe { product_ss!(inout "1" $instruction, $frags, $ss_tail, $list, self, a, b) }
            }

            #[inline(always)]
            unsafe fn mm_rs(&mut self, a: [u32; 4], b: Descriptor) {
                // SAFETY: as for `mm_ss`.
                unsafe { product_rs!(out "0" $instruction, $frags, $rs_tail, $list, self, a, b) }
            }

            #[inline(always)]
            unsafe fn mma_rs(&mut self, a: [u32; 4], b: Descriptor) {
                // SAFETY: the caller's promise.
                unsafe { product_rs!(inout "1" $instruction, $frags, $rs_tail, $list, self, a, b) }
            }

            #[inline(always)]
            unsafe fn mma_rs_if(&mut self, a: [u32; 4], b: Descriptor, keep: bool) {
                // SAFETY: the caller's promise.
                unsafe { product_rs!(keep keep $instruction, $frags, $rs_tail, $list, self, a, b) }
            }
        }
    };
}

macro_rules! shapes {
    ($($frags:tt $n:literal $list:tt)*) => { $(
        shape!(F16, $frags, concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.f16.f16"), ", 1, 1, 0, 0", ", 1, 1, 1", $list);
        shape!(Bf16, $frags, concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k16.f32.bf16.bf16"), ", 1, 1, 0, 0", ", 1, 1, 1", $list);
        shape!(E4m3, $frags, concat!("wgmma.mma_async.sync.aligned.m64n", $n, "k32.f32.e4m3.e4m3"), ", 1, 1", ", 1, 1", $list);
    )* };
}

shapes! {
    8 "64" [0 1 2 3 4 5 6 7]
    10 "80" [0 1 2 3 4 5 6 7 8 9]
    12 "96" [0 1 2 3 4 5 6 7 8 9 10 11]
    14 "112" [0 1 2 3 4 5 6 7 8 9 10 11 12 13]
    16 "128" [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]
    18 "144" [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17]
    20 "160" [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19]
    22 "176" [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21]
    24 "192" [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23]
    32 "256" [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31]
}
