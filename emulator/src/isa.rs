//! The instruction set: every opcode with the modifiers and operands it takes.
//!
//! A row's modifiers are read from left to right. `.a|.b` is one of the two, `{.a}` may be left out, and a word in
//! capitals stands for a set of modifiers, listed in [`SETS`]. Operands are written `d` where the instruction writes, `x`
//! where it reads and writes, `[a]` where it takes an address, and with a `?` where one may be left out. What is not here
//! is an error of decoding: nothing is ever ignored because it is not known.

/// The part of the decoder, and of the machine, that a row belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Group {
    /// Integer arithmetic and logic.
    Integer,
    /// Floating-point arithmetic.
    Float,
    /// Comparison and selection.
    Compare,
    /// Conversion.
    Convert,
    /// Register moves and addresses.
    Move,
    /// Loads, stores and atomics.
    Memory,
    /// Control flow.
    Control,
    /// Barriers, fences and mbarriers.
    Sync,
    /// Exchange between lanes.
    Collective,
    /// Matrix fragments and tensor cores.
    Matrix,
    /// Matrix products of warpgroups.
    Wgmma,
    /// Asynchronous copies.
    Async,
    /// Bulk copies, with tensor maps or without.
    Bulk,
    /// Hints, which do nothing here.
    Hint,
}

/// A form of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The name before the modifiers.
    pub opcode: &'static str,
    /// The modifiers, as the module's documentation says.
    pub modifiers: &'static str,
    /// The operands.
    pub operands: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// Where it is decoded.
    pub group: Group,
}

/// The shapes of a wgmma: `.m64n8k16|.m64n16k16|...`.
macro_rules! shapes {
    ($k:literal) => {
        shapes!($k: 16 24 32 40 48 56 64 72 80 88 96 104 112 120 128 136 144 152 160 168 176 184 192 200 208 216 224 232
            240 248 256)
    };
    ($k:literal: $($n:literal)*) => {
        concat!(".m64n8", $k, $("|.m64n", $n, $k),*)
    };
}

/// Sets of modifiers, by the name that rows use.
pub const SETS: &[(&str, &str)] = &[
    ("INT", ".u16|.s16|.u32|.s32|.u64|.s64"),
    ("INT32", ".u32|.s32"),
    ("BITS", ".b16|.b32|.b64"),
    (
        "ANY",
        ".b16|.b32|.b64|.u16|.u32|.u64|.s16|.s32|.s64|.f16|.bf16|.f16x2|.bf16x2|.f32|.f64",
    ),
    (
        "MEM",
        ".b8|.u8|.s8|.b16|.u16|.s16|.b32|.u32|.s32|.b64|.u64|.s64|.f16|.bf16|.f16x2|.bf16x2|.f32|.f64",
    ),
    ("HALF", ".f16|.bf16|.f16x2|.bf16x2"),
    ("RND", ".rn|.rz|.rm|.rp"),
    ("CVTRND", ".rn|.rz|.rm|.rp|.rna|.rni|.rzi|.rmi|.rpi"),
    (
        "CMP",
        ".eq|.ne|.lt|.le|.gt|.ge|.lo|.ls|.hi|.hs|.equ|.neu|.ltu|.leu|.gtu|.geu|.num|.nan",
    ),
    ("BOOL", ".and|.or|.xor"),
    (
        "LDSPACE",
        ".global|.shared|.shared::cta|.shared::cluster|.local|.param|.param::entry|.const",
    ),
    (
        "STSPACE",
        ".global|.shared|.shared::cta|.shared::cluster|.local",
    ),
    ("SHARED", ".shared|.shared::cta"),
    ("ANYSHARED", ".shared|.shared::cta|.shared::cluster"),
    ("M64K8", shapes!("k8")),
    ("M64K16", shapes!("k16")),
    ("M64K32", shapes!("k32")),
    ("DIM", ".1d|.2d|.3d|.4d|.5d"),
    ("SCOPE", ".cta|.cluster|.gpu|.sys"),
    ("SEM", ".relaxed|.acquire|.release|.acq_rel"),
    ("LDCACHE", ".ca|.cg|.cs|.lu|.cv"),
    ("STCACHE", ".wb|.cg|.cs|.wt"),
    (
        "EVICT",
        ".L1::evict_normal|.L1::evict_unchanged|.L1::evict_first|.L1::evict_last|.L1::no_allocate",
    ),
    (
        "EVICT2",
        ".L2::evict_normal|.L2::evict_first|.L2::evict_last",
    ),
    ("HINT", ".L2::cache_hint"),
    ("PREFETCH", ".L2::64B|.L2::128B|.L2::256B"),
    ("VEC", ".v2|.v4|.v8"),
];

macro_rules! rows {
    ($($group:ident { $($opcode:literal $modifiers:literal $operands:literal $doc:literal;)* })*) => {
        /// Every form of every instruction.
        pub const ROWS: &[Row] = &[$($(Row {
            opcode: $opcode,
            modifiers: $modifiers,
            operands: $operands,
            doc: $doc,
            group: Group::$group,
        },)*)*];
    };
}

rows! {
    Integer {
        "add" "{.sat} INT" "d a b" "Sum.";
        "add" ".cc .u32|.s32|.b32|.u64|.s64|.b64" "d a b" "Sum, with the carry out.";
        "addc" "{.cc} .u32|.s32|.b32|.u64|.s64|.b64" "d a b" "Sum with the carry in.";
        "sub" "{.sat} INT" "d a b" "Difference.";
        "sub" ".cc .u32|.s32|.b32|.u64|.s64|.b64" "d a b" "Difference, with the borrow out.";
        "subc" "{.cc} .u32|.s32|.b32|.u64|.s64|.b64" "d a b" "Difference with the borrow in.";
        "mul" ".lo|.hi|.wide INT" "d a b" "Product: low half, high half or all.";
        "mad" ".lo|.hi|.wide {.sat} INT" "d a b c" "Product and sum.";
        "mad" ".lo|.hi .cc .u32|.s32|.u64|.s64" "d a b c" "Product and sum, with the carry out.";
        "madc" ".lo|.hi {.cc} .u32|.s32|.u64|.s64" "d a b c" "Product and sum with the carry in.";
        "mul24" ".lo|.hi INT32" "d a b" "Product of the low 24 bits.";
        "mad24" ".lo|.hi INT32" "d a b c" "Product of the low 24 bits, and sum.";
        "div" "INT" "d a b" "Quotient.";
        "rem" "INT" "d a b" "Remainder.";
        "sad" "INT" "d a b c" "Absolute difference and sum.";
        "abs" ".s16|.s32|.s64" "d a" "Absolute value.";
        "neg" ".s16|.s32|.s64" "d a" "Negation.";
        "min" "INT" "d a b" "Lesser.";
        "max" "INT" "d a b" "Greater.";
        "min" ".relu .s32" "d a b" "Lesser, or 0 if that is negative.";
        "max" ".relu .s32" "d a b" "Greater, or 0 if that is negative.";
        "and" ".pred|.b16|.b32|.b64" "d a b" "Bitwise and.";
        "or" ".pred|.b16|.b32|.b64" "d a b" "Bitwise or.";
        "xor" ".pred|.b16|.b32|.b64" "d a b" "Bitwise exclusive or.";
        "not" ".pred|.b16|.b32|.b64" "d a" "Bitwise complement.";
        "cnot" "BITS" "d a" "Whether it is zero.";
        "shl" "BITS" "d a b" "Shift left; 0 past the width.";
        "shr" ".b16|.b32|.b64|.u16|.u32|.u64|.s16|.s32|.s64" "d a b" "Shift right; the sign or 0 past the width.";
        "shf" ".l|.r .clamp|.wrap .b32" "d a b c" "Shift of a pair of registers.";
        "lop3" ".b32" "d a b c i" "Any logic function of three operands.";
        "bfe" ".u32|.s32|.u64|.s64" "d a b c" "Takes a bit field out.";
        "bfi" ".b32|.b64" "d a b c e" "Puts a bit field in.";
        "bmsk" ".clamp|.wrap .b32" "d a b" "Mask of a bit field.";
        "szext" ".clamp|.wrap INT32" "d a b" "Extends from a number of bits.";
        "brev" ".b32|.b64" "d a" "Bits in reverse.";
        "clz" ".b32|.b64" "d a" "Leading zeros.";
        "popc" ".b32|.b64" "d a" "Ones.";
        "bfind" "{.shiftamt} .u32|.s32|.u64|.s64" "d a" "Highest significant bit.";
        "fns" ".b32" "d a b c" "The n-th set bit.";
        "prmt" ".b32 {.f4e|.b4e|.rc8|.ecl|.ecr|.rc16}" "d a b c" "Bytes of two registers, permuted.";
        "dp4a" "INT32 INT32" "d a b c" "Four-way byte dot product and sum.";
        "dp2a" ".lo|.hi INT32 INT32" "d a b c" "Two-way dot product and sum.";
    }
    Float {
        "add" "{RND} {.ftz} {.sat} .f32" "d a b" "Sum.";
        "add" "{RND} .f64" "d a b" "Sum.";
        "add" "{.rn} {.ftz} {.sat} HALF" "d a b" "Sum.";
        "sub" "{RND} {.ftz} {.sat} .f32" "d a b" "Difference.";
        "sub" "{RND} .f64" "d a b" "Difference.";
        "sub" "{.rn} {.ftz} {.sat} HALF" "d a b" "Difference.";
        "mul" "{RND} {.ftz} {.sat} .f32" "d a b" "Product.";
        "mul" "{RND} .f64" "d a b" "Product.";
        "mul" "{.rn} {.ftz} {.sat} HALF" "d a b" "Product.";
        "fma" "RND {.ftz} {.sat} .f32" "d a b c" "Product and sum, rounded once.";
        "fma" "RND .f64" "d a b c" "Product and sum, rounded once.";
        "fma" ".rn {.ftz} {.sat} {.relu} HALF" "d a b c" "Product and sum, rounded once.";
        "mad" "RND {.ftz} {.sat} .f32" "d a b c" "The same as fma.";
        "mad" "RND .f64" "d a b c" "The same as fma.";
        "div" ".approx|.full|.rn|.rz|.rm|.rp {.ftz} .f32" "d a b" "Quotient.";
        "div" "RND .f64" "d a b" "Quotient.";
        "abs" "{.ftz} .f32|.f64|.f16|.bf16|.f16x2|.bf16x2" "d a" "Absolute value.";
        "neg" "{.ftz} .f32|.f64|.f16|.bf16|.f16x2|.bf16x2" "d a" "Negation.";
        "min" "{.ftz} {.NaN} {.xorsign.abs} .f32|.f64|.f16|.bf16|.f16x2|.bf16x2" "d a b c?" "Lesser.";
        "max" "{.ftz} {.NaN} {.xorsign.abs} .f32|.f64|.f16|.bf16|.f16x2|.bf16x2" "d a b c?" "Greater.";
        "rcp" ".approx|.rn|.rz|.rm|.rp {.ftz} .f32" "d a" "Reciprocal.";
        "rcp" "RND .f64" "d a" "Reciprocal.";
        "rcp" ".approx .ftz .f64" "d a" "Reciprocal, rough.";
        "sqrt" ".approx|.rn|.rz|.rm|.rp {.ftz} .f32" "d a" "Square root.";
        "sqrt" "RND .f64" "d a" "Square root.";
        "rsqrt" ".approx {.ftz} .f32" "d a" "Reciprocal square root.";
        "sin" ".approx {.ftz} .f32" "d a" "Sine.";
        "cos" ".approx {.ftz} .f32" "d a" "Cosine.";
        "lg2" ".approx {.ftz} .f32" "d a" "Binary logarithm.";
        "ex2" ".approx {.ftz} .f32" "d a" "Power of two.";
        "ex2" ".approx {.ftz} HALF" "d a" "Power of two.";
        "tanh" ".approx .f32|.f16|.bf16|.f16x2|.bf16x2" "d a" "Hyperbolic tangent.";
        "copysign" ".f32|.f64" "d a b" "The sign of one on the magnitude of the other.";
        "testp" ".finite|.infinite|.number|.notanumber|.normal|.subnormal .f32|.f64" "d a" "Class of a value.";
    }
    Compare {
        "setp" "CMP {BOOL} {.ftz} ANY" "d a b c?" "Predicate of a comparison.";
        "set" "CMP {BOOL} {.ftz} .u32|.s32|.f32|.b32|.u16|.f16|.bf16 ANY" "d a b c?" "Register of a comparison.";
        "selp" "ANY" "d a b c" "One of two by a predicate.";
        "slct" "{.ftz} ANY .s32|.f32" "d a b c" "One of two by a sign.";
    }
    Convert {
        "cvt" "{CVTRND} {.ftz} {.sat} .u8|.s8|.u16|.s16|.u32|.s32|.u64|.s64|.f16|.bf16|.f32|.f64 .u8|.s8|.u16|.s16|.u32|.s32|.u64|.s64|.f16|.bf16|.f32|.f64" "d a" "Conversion.";
        "cvt" ".rn|.rz {.relu} {.satfinite} .f16|.bf16 .f32" "d a" "Conversion to 16 bits.";
        "cvt" ".rn|.rz {.relu} {.satfinite} .f16x2|.bf16x2 .f32" "d a b" "Conversion of two to 16 bits.";
        "cvt" ".rna|.rn|.rz {.relu} {.satfinite} .tf32 .f32" "d a" "Conversion to tf32.";
        "cvt" ".rn .satfinite {.relu} .e4m3x2|.e5m2x2 .f32" "d a b" "Conversion of two to 8 bits.";
        "cvt" ".rn .satfinite {.relu} .e4m3x2|.e5m2x2 .f16x2" "d a" "Conversion of two to 8 bits.";
        "cvt" ".rn {.relu} .f16x2 .e4m3x2|.e5m2x2" "d a" "Conversion of two from 8 bits.";
        "cvt.pack" ".sat .u16|.s16|.u8|.s8 .s32 {.b32}" "d a b c?" "Two integers, saturated and packed.";
    }
    Move {
        "mov" ".pred" "d a" "Copy of a predicate.";
        "mov" ".b16|.b32|.b64|.u16|.u32|.u64|.s16|.s32|.s64|.f32|.f64|.f16|.bf16|.f16x2|.bf16x2" "d a" "Copy, packing or unpacking.";
        "cvta" "{.to} .global|.shared|.shared::cta|.shared::cluster|.local|.param|.const .u32|.u64" "d a" "Between an address and its generic form.";
        "mapa" "{.shared::cluster} .u32|.u64" "d a b" "The address of the same place in another block of the cluster.";
        "getctarank" "{.shared::cluster} .u32|.u64" "d a" "The rank of an address's block.";
        "isspacep" ".global|.shared|.shared::cta|.shared::cluster|.local|.param|.const" "d a" "Whether a generic address is in a space.";
    }
    Memory {
        "ld" "{.weak} {LDSPACE} {LDCACHE} {EVICT} {EVICT2} {HINT} {PREFETCH} {VEC} MEM" "d [a] h?" "Load.";
        "ld" ".volatile {LDSPACE} {PREFETCH} {VEC} MEM" "d [a]" "Load.";
        "ld" ".relaxed|.acquire SCOPE {LDSPACE} {EVICT} {EVICT2} {HINT} {PREFETCH} {VEC} MEM" "d [a] h?" "Load.";
        "ld" ".global {LDCACHE} .nc {EVICT} {EVICT2} {HINT} {PREFETCH} {VEC} MEM" "d [a] h?" "Load of what nobody writes.";
        "ldu" "{.global} {VEC} MEM" "d [a]" "Uniform load.";
        "st" "{.weak} {STSPACE} {STCACHE} {EVICT} {EVICT2} {HINT} {VEC} MEM" "[a] b h?" "Store.";
        "st" ".volatile {STSPACE} {VEC} MEM" "[a] b" "Store.";
        "st" ".relaxed|.release SCOPE {STSPACE} {EVICT} {EVICT2} {HINT} {VEC} MEM" "[a] b h?" "Store.";
        "atom" "{SEM} {SCOPE} {.global|.shared|.shared::cta|.shared::cluster} .and|.or|.xor|.exch|.add|.inc|.dec|.min|.max {.noftz} {HINT} .b32|.b64|.u32|.u64|.s32|.s64|.f32|.f64|.f16|.bf16|.f16x2|.bf16x2" "d [a] b h?" "Atomic update.";
        "atom" "{SEM} {SCOPE} {.global|.shared|.shared::cta|.shared::cluster} .cas .b16|.b32|.b64|.u32|.u64|.s32|.s64" "d [a] b c" "Atomic compare and swap.";
        "red" "{SEM} {SCOPE} {.global|.shared|.shared::cta|.shared::cluster} .and|.or|.xor|.add|.inc|.dec|.min|.max {.noftz} {HINT} .b32|.b64|.u32|.u64|.s32|.s64|.f32|.f64|.f16|.bf16|.f16x2|.bf16x2" "[a] b h?" "Atomic update without a result.";
    }
    Control {
        "bra" "{.uni}" "t" "Branch.";
        "brx.idx" "{.uni}" "a t" "Branch to an entry of a table.";
        "ret" "{.uni}" "" "End of the thread.";
        "exit" "" "" "End of the thread.";
        "trap" "" "" "Abort.";
        "brkpt" "" "" "Breakpoint.";
    }
    Sync {
        "bar.sync" "" "a b?" "Barrier of the block.";
        "bar.arrive" "" "a b" "Arrival at a barrier.";
        "bar.red" ".popc .u32" "d a b? c?" "Barrier with a count of predicates.";
        "bar.red" ".and|.or .pred" "d a b? c?" "Barrier with a reduction of predicates.";
        "bar.cta.sync" "" "a b?" "Barrier of the block.";
        "bar.cta.arrive" "" "a b" "Arrival at a barrier.";
        "bar.cta.red" ".popc .u32" "d a b? c?" "Barrier with a count of predicates.";
        "bar.cta.red" ".and|.or .pred" "d a b? c?" "Barrier with a reduction of predicates.";
        "barrier.sync" "{.aligned}" "a b?" "Barrier of the block.";
        "barrier.arrive" "{.aligned}" "a b" "Arrival at a barrier.";
        "barrier.red" ".popc {.aligned} .u32" "d a b? c?" "Barrier with a count of predicates.";
        "barrier.red" ".and|.or {.aligned} .pred" "d a b? c?" "Barrier with a reduction of predicates.";
        "barrier.cta.sync" "{.aligned}" "a b?" "Barrier of the block.";
        "barrier.cta.arrive" "{.aligned}" "a b" "Arrival at a barrier.";
        "barrier.cta.red" ".popc {.aligned} .u32" "d a b? c?" "Barrier with a count of predicates.";
        "barrier.cta.red" ".and|.or {.aligned} .pred" "d a b? c?" "Barrier with a reduction of predicates.";
        "barrier.cluster.arrive" "{.release|.relaxed} {.aligned}" "" "Arrival at the cluster's barrier.";
        "barrier.cluster.wait" "{.acquire} {.aligned}" "" "Waits at the cluster's barrier.";
        "bar.warp.sync" "" "m" "Barrier of lanes.";
        "membar" ".cta|.gl|.sys|.gpu" "" "Fence.";
        "fence" "{.sc|.acq_rel|.acquire|.release} SCOPE" "" "Fence.";
        "fence.proxy" ".alias|.async.global|.async.shared::cta|.async.shared::cluster|.async" "" "Fence between proxies.";
        "fence.proxy.tensormap::generic" ".release SCOPE" "" "Fence after changes of tensor maps.";
        "fence.proxy.tensormap::generic" ".acquire SCOPE" "[a] i" "Fence before uses of a tensor map.";
        "fence.mbarrier_init" ".release.cluster" "" "Fence after initialising mbarriers.";
        "mbarrier.init" "{SHARED} .b64" "[a] b" "Makes an mbarrier.";
        "mbarrier.inval" "{SHARED} .b64" "[a]" "Ends an mbarrier.";
        "mbarrier.arrive" "{.release|.relaxed} {.cta|.cluster} {ANYSHARED} .b64" "d [a] b?" "Arrives.";
        "mbarrier.arrive.noComplete" "{.release|.relaxed} {.cta} {SHARED} .b64" "d [a] b" "Arrives, without ending the phase.";
        "mbarrier.arrive.expect_tx" "{.release|.relaxed} {.cta|.cluster} {ANYSHARED} .b64" "d [a] b" "Expects bytes, and arrives.";
        "mbarrier.arrive_drop" "{.release|.relaxed} {.cta|.cluster} {ANYSHARED} .b64" "d [a] b?" "Arrives for good.";
        "mbarrier.expect_tx" "{.relaxed} {.cta|.cluster} {ANYSHARED} .b64" "[a] b" "Expects bytes.";
        "mbarrier.complete_tx" "{.relaxed} {.cta|.cluster} {ANYSHARED} .b64" "[a] b" "Counts bytes as arrived.";
        "mbarrier.test_wait" "{.acquire|.relaxed} {.cta|.cluster} {SHARED} .b64" "d [a] b" "Whether a phase has ended.";
        "mbarrier.test_wait.parity" "{.acquire|.relaxed} {.cta|.cluster} {SHARED} .b64" "d [a] b" "Whether a phase has ended.";
        "mbarrier.try_wait" "{.acquire|.relaxed} {.cta|.cluster} {SHARED} .b64" "d [a] b h?" "Waits a little for a phase to end.";
        "mbarrier.try_wait.parity" "{.acquire|.relaxed} {.cta|.cluster} {SHARED} .b64" "d [a] b h?" "Waits a little for a phase to end.";
        "mbarrier.pending_count" ".b64" "d b" "Pending arrivals of a state.";
        "cp.async.mbarrier.arrive" "{.noinc} {SHARED} .b64" "[a]" "Arrives when the thread's copies have.";
    }
    Collective {
        "shfl.sync" ".up|.down|.bfly|.idx .b32" "d a b c m" "Another lane's value.";
        "vote.sync" ".all|.any|.uni .pred" "d a m" "What the lanes agree on.";
        "vote.sync" ".ballot .b32" "d a m" "Every lane's predicate.";
        "match.any.sync" ".b32|.b64" "d a m" "The lanes with the same value.";
        "match.all.sync" ".b32|.b64" "d a m" "Whether all have the same value.";
        "redux.sync" ".add|.min|.max INT32" "d a m" "Reduction over lanes.";
        "redux.sync" ".and|.or|.xor .b32" "d a m" "Reduction over lanes.";
        "activemask" ".b32" "d" "The lanes that execute it.";
        "elect.sync" "" "d m" "One of the lanes.";
    }
    Matrix {
        "ldmatrix.sync.aligned" ".m8n8 .x1|.x2|.x4 {.trans} {SHARED} .b16" "d [a]" "Loads 8x8 matrices.";
        "stmatrix.sync.aligned" ".m8n8 .x1|.x2|.x4 {.trans} {SHARED} .b16" "[a] b" "Stores 8x8 matrices.";
        "movmatrix.sync.aligned" ".m8n8 .trans .b16" "d a" "Transposes an 8x8 matrix.";
        "mma.sync.aligned" ".m16n8k16|.m16n8k8 .row .col .f32 .f16 .f16 .f32" "d a b c" "Matrix product and sum.";
        "mma.sync.aligned" ".m16n8k16|.m16n8k8 .row .col .f16 .f16 .f16 .f16" "d a b c" "Matrix product and sum.";
        "mma.sync.aligned" ".m16n8k16|.m16n8k8 .row .col .f32 .bf16 .bf16 .f32" "d a b c" "Matrix product and sum.";
        "mma.sync.aligned" ".m16n8k4|.m16n8k8 .row .col .f32 .tf32 .tf32 .f32" "d a b c" "Matrix product and sum.";
        "mma.sync.aligned" ".m16n8k32 .row .col .f32 .e4m3|.e5m2 .e4m3|.e5m2 .f32" "d a b c" "Matrix product and sum.";
        "mma.sync.aligned" ".m16n8k16|.m16n8k32 .row .col {.satfinite} .s32 .s8|.u8 .s8|.u8 .s32" "d a b c" "Matrix product and sum.";
    }
    Wgmma {
        "wgmma.mma_async.sync.aligned" "M64K16 .f32 .f16 .f16" "x a b p i i i? i?" "Matrix product of a warpgroup.";
        "wgmma.mma_async.sync.aligned" "M64K16 .f32 .bf16 .bf16" "x a b p i i i? i?" "Matrix product of a warpgroup.";
        "wgmma.mma_async.sync.aligned" "M64K16 .f16 .f16 .f16" "x a b p i i i? i?" "Matrix product of a warpgroup.";
        "wgmma.mma_async.sync.aligned" "M64K8 .f32 .tf32 .tf32" "x a b p i i" "Matrix product of a warpgroup.";
        "wgmma.mma_async.sync.aligned" "M64K32 .f32|.f16 .e4m3|.e5m2 .e4m3|.e5m2" "x a b p i i" "Matrix product of a warpgroup.";
        "wgmma.fence.sync.aligned" "" "" "Orders accesses to registers before products.";
        "wgmma.commit_group.sync.aligned" "" "" "Ends a group of products.";
        "wgmma.wait_group.sync.aligned" "" "i" "Waits until few groups are left.";
        "setmaxnreg" ".inc|.dec .sync .aligned .u32" "i" "Asks for registers, or gives some back.";
    }
    Async {
        "cp.async" ".ca {SHARED} .global {HINT} {PREFETCH}" "[a] [b] i c? h?" "Asynchronous copy.";
        "cp.async" ".cg {SHARED} .global {HINT} {PREFETCH}" "[a] [b] i c? h?" "Asynchronous copy.";
        "cp.async.commit_group" "" "" "Ends a group of copies.";
        "cp.async.wait_group" "" "i" "Waits until few groups are left.";
        "cp.async.wait_all" "" "" "Waits for all copies.";
    }
    Bulk {
        "cp.async.bulk" ".shared::cluster|.shared::cta .global .mbarrier::complete_tx::bytes {.multicast::cluster} {HINT}" "[a] [b] c [e] n? h?" "Bulk copy from global memory.";
        "cp.async.bulk" ".shared::cluster .shared::cta .mbarrier::complete_tx::bytes" "[a] [b] c [e]" "Bulk copy to a block of the cluster.";
        "cp.async.bulk" ".global .shared::cta .bulk_group {HINT}" "[a] [b] c h?" "Bulk copy to global memory.";
        "cp.reduce.async.bulk" ".global .shared::cta .bulk_group {HINT} .and|.or|.xor|.add|.inc|.dec|.min|.max {.noftz} .b32|.b64|.u32|.u64|.s32|.s64|.f32|.f64|.f16|.bf16" "[a] [b] c h?" "Bulk update of global memory.";
        "cp.async.bulk.tensor" "DIM .shared::cluster|.shared::cta .global {.tile} .mbarrier::complete_tx::bytes {.multicast::cluster} {HINT}" "[a] [b] [e] n? h?" "Load of a box of a tensor.";
        "cp.async.bulk.tensor" "DIM .global .shared::cta {.tile} .bulk_group {HINT}" "[a] [b] h?" "Store of a box of a tensor.";
        "cp.reduce.async.bulk.tensor" "DIM .global .shared::cta .and|.or|.xor|.add|.inc|.dec|.min|.max {.tile} .bulk_group {HINT}" "[a] [b] h?" "Update of a box of a tensor.";
        "cp.async.bulk.commit_group" "" "" "Ends a group of bulk copies.";
        "cp.async.bulk.wait_group" "{.read}" "i" "Waits until few groups are left, or left to be read.";
        "cp.async.bulk.prefetch" ".L2 .global {HINT}" "[a] b h?" "Prefetch.";
        "cp.async.bulk.prefetch.tensor" "DIM .L2 .global {.tile} {HINT}" "[a] h?" "Prefetch of a box of a tensor.";
    }
    Hint {
        "prefetch" "{.global|.local} .L1|.L2|.L2::evict_last|.L2::evict_normal" "[a]" "Prefetch.";
        "prefetch" "{.param|.const} .tensormap" "[a]" "Prefetch of a tensor map.";
        "prefetchu" ".L1" "[a]" "Prefetch.";
        "applypriority" "{.global} .L2::evict_normal" "[a] i" "Cache hint.";
        "discard" "{.global} .L2" "[a] i" "Cache hint.";
        "createpolicy.fractional" ".L2::evict_last|.L2::evict_normal|.L2::evict_first|.L2::evict_unchanged {.L2::evict_first|.L2::evict_unchanged} .b64" "d a?" "Makes a cache policy.";
        "nanosleep" ".u32" "a" "Lets others run.";
        "griddepcontrol" ".wait|.launch_dependents" "" "Programmatic dependent launch.";
        "pmevent" "{.mask}" "i" "Profiler event.";
    }
}

/// The longest prefix of the text's opcode that is the name of a row decides the rows; of those, the first whose
/// modifiers fit is the form.
pub(crate) fn find(text: &str) -> Result<(&'static Row, Vec<&str>), String> {
    let named = |name: &str| ROWS.iter().any(|row| row.opcode == name);
    let mut name = text;
    while !named(name) {
        match name.rfind('.') {
            Some(dot) => name = &name[..dot],
            None => return Err(format!("unknown instruction `{name}`")),
        }
    }
    let mut best = "";
    let mut shorter = name;
    // A shorter name may be meant if the longer one's modifiers don't fit: `mbarrier.arrive.expect_tx` has both.
    loop {
        for row in ROWS.iter().filter(|row| row.opcode == shorter) {
            match fits(row.modifiers, &text[shorter.len()..]) {
                Ok(found) => return Ok((row, found)),
                Err(rest) if best.is_empty() || rest.len() < best.len() => best = rest,
                Err(_) => {}
            }
        }
        match shorter.rfind('.') {
            Some(dot) => shorter = &shorter[..dot],
            None => break,
        }
    }
    Err(if best.is_empty() {
        format!("`{text}` lacks a modifier")
    } else {
        format!("`{name}` does not take `{best}` here")
    })
}

/// Reads modifiers; an error is the rest of the text that does not fit.
fn fits<'t>(pattern: &str, text: &'t str) -> Result<Vec<&'t str>, &'t str> {
    let mut found = Vec::new();
    let mut rest = text;
    for slot in pattern.split_ascii_whitespace() {
        let optional = slot.starts_with('{');
        let slot = slot.trim_matches(['{', '}']);
        let options = SETS
            .iter()
            .find(|(name, _)| *name == slot)
            .map_or(slot, |(_, options)| options);
        let option = options.split('|').find(|option| {
            rest.strip_prefix(option)
                .is_some_and(|after| after.is_empty() || after.starts_with('.'))
        });
        match option {
            Some(option) => {
                found.push(&rest[..option.len()]);
                rest = &rest[option.len()..];
            }
            None if optional => {}
            None => return Err(rest),
        }
    }
    if rest.is_empty() {
        Ok(found)
    } else {
        Err(rest)
    }
}

/// The instruction set as text, one form a line.
#[must_use]
pub fn listing() -> String {
    ROWS.iter()
        .map(|r| {
            format!(
                "{}{} {}: {}\n",
                r.opcode,
                r.modifiers.replace(' ', ""),
                r.operands,
                r.doc
            )
        })
        .collect()
}
