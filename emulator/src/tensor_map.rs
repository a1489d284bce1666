//! Tensor maps: what the tensor memory accelerator (TMA) knows of a tensor in global memory, in 128 bytes.
//!
//! On a GPU the driver's `cuTensorMapEncodeTiled` makes them. [`TensorMap::encode`] is the emulator's own: the same
//! arguments, the same rules, and as far as it is known the same bytes. The layout is not documented, but ptxas lowers
//! `tensormap.replace` to loads and stores of its fields:
//!
//! | bytes | content |
//! |---|---|
//! | 0x00, 8 bytes | address |
//! | 0x08, 4 bytes | bits 4 to 6: rank - 1; 7 to 10: element type; 11, 12: interleave; 13, 14: swizzle; 15: NaN for what is out of bounds; 16: tf32; 21: always set |
//! | 0x0c + 4 i, i < 4 | low 32 bits of stride i / 16 |
//! | 0x1c, 2 bytes | 4 bits a stride: the high ones |
//! | 0x20 + 4 i, i < 5 | dimension i - 1 |
//! | 0x34, 2 bytes | 3 bits a dimension: element stride - 1 |
//! | 0x37 + i, i < 5 | box dimension i - 1 |
//!
//! Where the driver keeps the L2 promotion is not known: it is checked here, and not kept.

use thiserror::Error;

/// Bytes of a tensor map.
pub const TENSOR_MAP_BYTES: usize = 128;
/// What the address of a tensor map must be a multiple of.
pub(crate) const TENSOR_MAP_ALIGN: u64 = 64;
/// Most dimensions.
pub(crate) const MOST_DIMS: usize = 5;

/// Set in all maps that the driver makes.
const ALWAYS: u32 = 1 << 21;
const NAN: u32 = 1 << 15;
const TF32: u32 = 1 << 16;
/// Bits of the word at 0x08 that have a meaning.
const KNOWN: u32 = 0x7 << 4 | 0xf << 7 | 0x3 << 13 | NAN | TF32 | ALWAYS;

/// The type of a tensor's elements: `CUtensorMapDataType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs)]
pub enum ElementType {
    U8,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F64,
    Bf16,
    /// f32 whose subnormal numbers are flushed to zero on the way.
    F32Ftz,
    /// f32 that is rounded to tf32 on the way.
    Tf32,
    /// Both.
    Tf32Ftz,
}

impl ElementType {
    /// All of them, in the order of the driver's enumeration.
    pub const ALL: [ElementType; 13] = [
        ElementType::U8,
        ElementType::U16,
        ElementType::U32,
        ElementType::S32,
        ElementType::U64,
        ElementType::S64,
        ElementType::F16,
        ElementType::F32,
        ElementType::F64,
        ElementType::Bf16,
        ElementType::F32Ftz,
        ElementType::Tf32,
        ElementType::Tf32Ftz,
    ];

    /// Bytes of an element.
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            ElementType::U8 => 1,
            ElementType::U16 | ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::U64 | ElementType::S64 | ElementType::F64 => 8,
            _ => 4,
        }
    }

    fn is_float(self) -> bool {
        !matches!(
            self,
            ElementType::U8
                | ElementType::U16
                | ElementType::U32
                | ElementType::S32
                | ElementType::U64
                | ElementType::S64
        )
    }

    /// The code in the map, and whether the tf32 bit is set.
    fn code(self) -> (u32, bool) {
        match self {
            ElementType::U8 => (0, false),
            ElementType::U16 => (1, false),
            ElementType::U32 => (2, false),
            ElementType::S32 => (3, false),
            ElementType::U64 => (4, false),
            ElementType::S64 => (5, false),
            ElementType::F16 => (6, false),
            ElementType::F32 => (7, false),
            ElementType::F32Ftz => (8, false),
            ElementType::F64 => (9, false),
            ElementType::Bf16 => (10, false),
            ElementType::Tf32 => (7, true),
            ElementType::Tf32Ftz => (8, true),
        }
    }
}

/// How 16-byte pieces are permuted in shared memory, as a function of the shared address: `CUtensorMapSwizzle`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Swizzle {
    /// Not at all.
    #[default]
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

impl Swizzle {
    const ALL: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

    /// The bits of a shared address that, shifted right by 3, change it: 16-byte pieces of a span are permuted by the
    /// number of the 128-byte line that they are in. (PTX ISA 5.5.7)
    pub(crate) fn mask(self) -> u64 {
        match self {
            Swizzle::None => 0,
            Swizzle::B32 => 0x80,
            Swizzle::B64 => 0x180,
            Swizzle::B128 => 0x380,
        }
    }

    /// Bytes of the rows within which pieces are permuted; `None`: no limit.
    pub(crate) fn span(self) -> Option<u32> {
        match self {
            Swizzle::None => None,
            Swizzle::B32 => Some(32),
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }
}

/// How much L2 fetches at once: `CUtensorMapL2promotion`. Only a hint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(missing_docs)]
pub enum L2Promotion {
    #[default]
    None,
    B64,
    B128,
    B256,
}

/// What a load gives for elements outside of the tensor: `CUtensorMapFloatOOBfill`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OobFill {
    /// Zero.
    #[default]
    Zero,
    /// NaN; only of floating-point types.
    Nan,
}

/// The arguments of `cuTensorMapEncodeTiled`, without interleaving. Dimension 0 is the innermost, whose elements are
/// contiguous; the rank is the number of [`dims`](Self::dims), 1 to 5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// Type of the elements.
    pub element_type: ElementType,
    /// Address of the first element, a multiple of 16.
    pub address: u64,
    /// Elements in each dimension, 1 to 2^32.
    pub dims: Vec<u64>,
    /// Bytes from an element to the next in dimensions 1, 2...: multiples of 16 below 2^40. One less than dimensions.
    pub strides: Vec<u64>,
    /// Elements of a box, which is what one instruction moves: 1 to 256 in each dimension. The innermost is a multiple of
    /// 16 bytes.
    pub box_dims: Vec<u32>,
    /// Every how many-th element of a box is moved, 1 to 8 in each dimension. That of dimension 0 is checked, and ignored.
    pub element_strides: Vec<u32>,
    /// Permutation in shared memory. The innermost box dimension has at most its span.
    pub swizzle: Swizzle,
    /// A hint, which is not kept.
    pub l2_promotion: L2Promotion,
    /// What is loaded for elements outside.
    pub oob_fill: OobFill,
}

/// Arguments that make no tensor map, or bytes that are none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{argument}: {reason}")]
pub struct TensorMapError {
    /// The argument of `cuTensorMapEncodeTiled`, or `tensorMap` for bytes.
    pub argument: String,
    /// What is wrong with it.
    pub reason: String,
}

fn wrong<T>(argument: impl Into<String>, reason: impl Into<String>) -> Result<T, TensorMapError> {
    Err(TensorMapError {
        argument: argument.into(),
        reason: reason.into(),
    })
}

impl TensorMap {
    /// A map with element strides of 1, no swizzle and zeros outside.
    #[must_use]
    pub fn new(
        element_type: ElementType,
        address: u64,
        dims: &[u64],
        strides: &[u64],
        box_dims: &[u32],
    ) -> Self {
        TensorMap {
            element_type,
            address,
            dims: dims.to_vec(),
            strides: strides.to_vec(),
            box_dims: box_dims.to_vec(),
            element_strides: vec![1; box_dims.len()],
            swizzle: Swizzle::None,
            l2_promotion: L2Promotion::None,
            oob_fill: OobFill::Zero,
        }
    }

    /// Checks the rules of `cuTensorMapEncodeTiled`. Of its documentation, this is not checked: that each stride is a
    /// multiple of the one before it. The driver takes maps whose strides are not.
    ///
    /// # Errors
    ///
    /// The first argument that breaks a rule.
    pub fn check(&self) -> Result<(), TensorMapError> {
        let rank = self.dims.len();
        if rank == 0 || rank > MOST_DIMS {
            return wrong("tensorRank", format!("{rank} is not in 1..=5"));
        }
        let lengths = [
            ("globalStrides", self.strides.len(), rank - 1),
            ("boxDim", self.box_dims.len(), rank),
            ("elementStrides", self.element_strides.len(), rank),
        ];
        for (argument, have, need) in lengths {
            if have != need {
                let reason = format!("{have} numbers, a tensor of rank {rank} needs {need}");
                return wrong(argument, reason);
            }
        }
        if !self.address.is_multiple_of(16) {
            let reason = format!("{:#x} is not a multiple of 16", self.address);
            return wrong("globalAddress", reason);
        }
        for (n, &dim) in self.dims.iter().enumerate() {
            if dim == 0 || dim > 1 << 32 {
                return wrong(
                    format!("globalDim[{n}]"),
                    format!("{dim} is not in 1..=2^32"),
                );
            }
        }
        for (n, &stride) in self.strides.iter().enumerate() {
            if !stride.is_multiple_of(16) || stride >= 1 << 40 {
                let reason = format!("{stride} is not a multiple of 16 below 2^40");
                return wrong(format!("globalStrides[{n}]"), reason);
            }
        }
        for (n, &dim) in self.box_dims.iter().enumerate() {
            if dim == 0 || dim > 256 {
                return wrong(format!("boxDim[{n}]"), format!("{dim} is not in 1..=256"));
            }
        }
        for (n, &stride) in self.element_strides.iter().enumerate() {
            if stride == 0 || stride > 8 {
                let reason = format!("{stride} is not in 1..=8");
                return wrong(format!("elementStrides[{n}]"), reason);
            }
        }
        let inner = self.inner_bytes();
        if !inner.is_multiple_of(16) {
            return wrong(
                "boxDim[0]",
                format!("{inner} bytes are not a multiple of 16"),
            );
        }
        if let Some(span) = self.swizzle.span()
            && inner > span
        {
            let reason = format!("{inner} bytes of a box's row do not fit its span of {span}");
            return wrong("swizzle", reason);
        }
        if self.oob_fill == OobFill::Nan && !self.element_type.is_float() {
            return wrong("oobFill", "integers have no NaN");
        }
        Ok(())
    }

    /// Bytes of a box's innermost dimension.
    pub(crate) fn inner_bytes(&self) -> u32 {
        self.box_dims[0] * self.element_type.bytes()
    }

    /// Elements that an instruction moves in each dimension.
    pub(crate) fn moved(&self) -> [u32; MOST_DIMS] {
        let mut moved = [1; MOST_DIMS];
        for (n, moved) in moved.iter_mut().enumerate().take(self.dims.len()) {
            // Without interleaving, the innermost dimension is always dense.
            let step = if n == 0 { 1 } else { self.element_strides[n] };
            *moved = self.box_dims[n].div_ceil(step);
        }
        moved
    }

    /// Bytes that an instruction moves.
    pub(crate) fn moved_bytes(&self) -> u64 {
        let moved: u64 = self.moved().map(u64::from).iter().product();
        moved * u64::from(self.element_type.bytes())
    }

    /// The map's bytes.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    pub fn encode(&self) -> Result<[u8; TENSOR_MAP_BYTES], TensorMapError> {
        self.check()?;
        let mut bytes = [0; TENSOR_MAP_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0x00, &self.address.to_le_bytes());
        let (code, tf32) = self.element_type.code();
        let nan = self.oob_fill == OobFill::Nan;
        let word = (self.dims.len() as u32 - 1) << 4
            | code << 7
            | (self.swizzle as u32) << 13
            | if nan { NAN } else { 0 }
            | if tf32 { TF32 } else { 0 }
            | ALWAYS;
        put(0x08, &word.to_le_bytes());
        let mut high = 0u16;
        for (n, &stride) in self.strides.iter().enumerate() {
            put(0x0c + 4 * n, &((stride >> 4) as u32).to_le_bytes());
            high |= ((stride >> 36) as u16 & 0xf) << (4 * n);
        }
        put(0x1c, &high.to_le_bytes());
        let mut steps = 0u16;
        for n in 0..self.dims.len() {
            put(0x20 + 4 * n, &((self.dims[n] - 1) as u32).to_le_bytes());
            steps |= (self.element_strides[n] as u16 - 1) << (3 * n);
            put(0x37 + n, &[(self.box_dims[n] - 1) as u8]);
        }
        put(0x34, &steps.to_le_bytes());
        Ok(bytes)
    }

    /// The arguments that [`encode`](Self::encode) made these bytes of; the hint is lost.
    ///
    /// # Errors
    ///
    /// No arguments give these bytes.
    pub fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Result<TensorMap, TensorMapError> {
        fn number<const N: usize>(bytes: &[u8; TENSOR_MAP_BYTES], at: usize) -> u64 {
            let mut word = [0; 8];
            word[..N].copy_from_slice(&bytes[at..at + N]);
            u64::from_le_bytes(word)
        }
        let word = number::<4>(bytes, 0x08) as u32;
        let rank = 1 + (word >> 4 & 7) as usize;
        let code = (word >> 7 & 0xf, word & TF32 != 0);
        let element_type = ElementType::ALL.into_iter().find(|t| t.code() == code);
        let (Some(element_type), true, true) =
            (element_type, word & ALWAYS != 0, word & !KNOWN == 0)
        else {
            let reason = format!("the word {word:#x} at offset 8 is none that an encoder writes");
            return wrong("tensorMap", reason);
        };
        if rank > MOST_DIMS {
            return wrong("tensorMap", format!("it has {rank} dimensions"));
        }
        let high = number::<2>(bytes, 0x1c);
        let steps = number::<2>(bytes, 0x34);
        let stride =
            |n: usize| number::<4>(bytes, 0x0c + 4 * n) << 4 | (high >> (4 * n) & 0xf) << 36;
        let map = TensorMap {
            element_type,
            address: number::<8>(bytes, 0x00),
            dims: (0..rank)
                .map(|n| number::<4>(bytes, 0x20 + 4 * n) + 1)
                .collect(),
            strides: (0..rank - 1).map(stride).collect(),
            box_dims: (0..rank).map(|n| u32::from(bytes[0x37 + n]) + 1).collect(),
            element_strides: (0..rank)
                .map(|n| (steps >> (3 * n) & 7) as u32 + 1)
                .collect(),
            swizzle: Swizzle::ALL[(word >> 13 & 3) as usize],
            l2_promotion: L2Promotion::None,
            oob_fill: if word & NAN != 0 {
                OobFill::Nan
            } else {
                OobFill::Zero
            },
        };
        // What it would be encoded to tells of stray bits in the parts that no field uses.
        if map.encode()? != *bytes {
            return wrong("tensorMap", "bits are set that no encoder sets");
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A valid map.
    fn maps() -> impl Strategy<Value = TensorMap> {
        let numbers = (
            prop::collection::vec(1u64..=1 << 32, 5),
            prop::collection::vec(0u64..1 << 36, 4),
            prop::collection::vec(1u32..=256, 5),
            prop::collection::vec(1u32..=8, 5),
        );
        let choices = (
            0usize..13,
            1usize..=5,
            0usize..4,
            any::<bool>(),
            0u64..1 << 52,
        );
        (numbers, choices).prop_map(|((dims, strides, boxes, steps), choices)| {
            let (kind, rank, swizzle, nan, address) = choices;
            let element_type = ElementType::ALL[kind];
            let swizzle = Swizzle::ALL[swizzle];
            let sixteen = 16 / element_type.bytes();
            let most = swizzle
                .span()
                .map_or(256, |span| span / element_type.bytes());
            let mut box_dims = boxes[..rank].to_vec();
            box_dims[0] = (box_dims[0].min(most) / sixteen * sixteen).max(sixteen);
            let nan = nan && element_type.is_float();
            TensorMap {
                element_type,
                address: address * 16,
                dims: dims[..rank].to_vec(),
                strides: strides[..rank - 1].iter().map(|s| s * 16).collect(),
                box_dims,
                element_strides: steps[..rank].to_vec(),
                swizzle,
                l2_promotion: L2Promotion::None,
                oob_fill: if nan { OobFill::Nan } else { OobFill::Zero },
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(map in maps()) {
            prop_assert_eq!(TensorMap::decode(&map.encode().unwrap()), Ok(map));
        }

        /// Decoding never panics, and takes nothing that encoding does not give.
        #[test]
        fn other_bytes_are_refused(map in maps(), at in 0usize..128, byte in any::<u8>()) {
            let mut bytes = map.encode().unwrap();
            bytes[at] = byte;
            if let Ok(other) = TensorMap::decode(&bytes) {
                prop_assert_eq!(other.encode().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn fields_are_where_ptxas_puts_them() {
        let mut map = TensorMap::new(
            ElementType::Bf16,
            0x7000_1234_5670,
            &[64, 1 << 32, 7],
            &[128, 0xab_cdef_0120],
            &[64, 100, 2],
        );
        map.element_strides = vec![1, 2, 8];
        map.swizzle = Swizzle::B128;
        map.oob_fill = OobFill::Nan;
        let bytes = map.encode().unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!([word(0), word(4)], [0x1234_5670, 0x7000]);
        assert_eq!(word(8), 2 << 4 | 10 << 7 | 3 << 13 | 1 << 15 | 1 << 21);
        assert_eq!([word(0x0c), word(0x10), word(0x1c)], [8, 0xbcde_f012, 0xa0]);
        assert_eq!([word(0x20), word(0x24), word(0x28)], [63, u32::MAX, 6]);
        assert_eq!(bytes[0x34..0x3c], [0x08 | 0xc0, 0x01, 0, 63, 99, 1, 0, 0]);
        assert!(bytes[0x3c..].iter().all(|&b| b == 0));
        assert!(TensorMap::decode(&[0; 128]).is_err());
        assert!(TensorMap::decode(&[0xff; 128]).is_err());
    }

    #[test]
    fn every_argument_is_checked() {
        let good = TensorMap::new(ElementType::F16, 4096, &[64, 8], &[128], &[64, 8]);
        good.check().unwrap();
        let bad = |argument: &str, change: &dyn Fn(&mut TensorMap)| {
            let mut map = good.clone();
            change(&mut map);
            let error = map.encode().unwrap_err();
            assert_eq!(error.argument, argument, "{error}");
        };
        bad("tensorRank", &|m| m.dims.clear());
        bad("tensorRank", &|m| m.dims = vec![1; 6]);
        bad("globalStrides", &|m| m.strides.clear());
        bad("boxDim", &|m| m.box_dims.push(1));
        bad("elementStrides", &|m| m.element_strides.push(1));
        bad("globalAddress", &|m| m.address += 8);
        bad("globalDim[1]", &|m| m.dims[1] = 0);
        bad("globalDim[0]", &|m| m.dims[0] = (1 << 32) + 1);
        bad("globalStrides[0]", &|m| m.strides[0] = 120);
        bad("globalStrides[0]", &|m| m.strides[0] = 1 << 40);
        bad("boxDim[1]", &|m| m.box_dims[1] = 0);
        bad("boxDim[1]", &|m| m.box_dims[1] = 257);
        bad("boxDim[0]", &|m| m.box_dims[0] = 7);
        bad("elementStrides[1]", &|m| m.element_strides[1] = 9);
        bad("elementStrides[0]", &|m| m.element_strides[0] = 0);
        bad("swizzle", &|m| m.swizzle = Swizzle::B64);
        bad("oobFill", &|m| {
            m.element_type = ElementType::U16;
            m.oob_fill = OobFill::Nan;
        });
    }
}
