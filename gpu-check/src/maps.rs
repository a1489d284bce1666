//! Tensor maps: the bytes that a driver makes, beside the emulator's. Nobody promises a layout; the emulator's is read off from
//! public sources, so that where the bytes differ it has to learn. On a GPU kernels get the driver's, whatever they look like.

use flashtile_emulator::{ElementType, L2Promotion, OobFill, Swizzle, TENSOR_MAP_BYTES, TensorMap};
use serde::Serialize;

use crate::machine::Machine;

/// Arguments, and what both sides made of them.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// What is special about the arguments.
    pub name: &'static str,
    /// The device's bytes, in hexadecimal, or why it refuses.
    pub device: Result<String, String>,
    /// The emulator's.
    pub emulator: Result<String, String>,
    /// Where bytes differ: offset, the device's, the emulator's.
    pub differing: Vec<(usize, u8, u8)>,
    /// Whether the driver's documentation says that the arguments are good.
    pub documented: bool,
}

impl Outcome {
    /// Whether the device takes what the emulator takes.
    pub fn ok(&self) -> bool {
        !self.documented || self.device.is_ok() == self.emulator.is_ok()
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let found = match (&self.device, &self.emulator) {
            (Ok(_), Ok(_)) if self.differing.is_empty() => "the same bytes".into(),
            (Ok(_), Ok(_)) => {
                let byte = |(at, device, emulator): &(usize, u8, u8)| {
                    format!("{at:#04x}: {device:02x}, emulator {emulator:02x}")
                };
                let bytes: Vec<_> = self.differing.iter().map(byte).collect();
                format!("OTHER BYTES {}", bytes.join("; "))
            }
            (Ok(_), Err(error)) => format!("taken; the emulator refuses: {error}"),
            (Err(error), Ok(_)) => format!("REFUSED: {error}"),
            (Err(error), Err(_)) => format!("refused by both: {error}"),
        };
        format!("{}: {found}", self.name)
    }
}

/// Every map is encoded for the same address, of which nothing is read.
const ADDRESS: u64 = 0x7f12_3456_7000;

/// The arguments: as the kernels give them, then each on its own with another value. (Name, arguments, whether they are documented
/// to be good.)
fn specs() -> Vec<(&'static str, TensorMap, bool)> {
    let kernels = TensorMap {
        swizzle: Swizzle::B128,
        l2_promotion: L2Promotion::B128,
        ..TensorMap::new(
            ElementType::Bf16,
            ADDRESS,
            &[128, 1, 1000, 8, 2],
            &[2048, 2048, 256, 2_048_000],
            &[64, 1, 64, 1, 1],
        )
    };
    let with = |change: fn(&mut TensorMap)| {
        let mut map = kernels.clone();
        change(&mut map);
        map
    };
    let rank = |dims: &[u64], strides: &[u64], extents: &[u32]| TensorMap {
        l2_promotion: L2Promotion::None,
        ..TensorMap::new(ElementType::Bf16, ADDRESS, dims, strides, extents)
    };
    vec![
        ("as the kernels", kernels.clone(), true),
        ("f16", with(|map| map.element_type = ElementType::F16), true),
        (
            "bytes, as e4m3",
            with(|map| {
                map.element_type = ElementType::U8;
                map.box_dims[0] = 128;
            }),
            true,
        ),
        (
            "64-byte swizzle",
            with(|map| {
                map.swizzle = Swizzle::B64;
                map.box_dims[0] = 32;
            }),
            true,
        ),
        (
            "32-byte swizzle",
            with(|map| {
                map.swizzle = Swizzle::B32;
                map.box_dims[0] = 16;
            }),
            true,
        ),
        ("no swizzle", with(|map| map.swizzle = Swizzle::None), true),
        (
            "no L2 promotion",
            with(|map| map.l2_promotion = L2Promotion::None),
            true,
        ),
        (
            "L2 promotion of 64 bytes",
            with(|map| map.l2_promotion = L2Promotion::B64),
            true,
        ),
        (
            "L2 promotion of 256 bytes",
            with(|map| map.l2_promotion = L2Promotion::B256),
            true,
        ),
        ("NaN outside", with(|map| map.oob_fill = OobFill::Nan), true),
        (
            "four heads in a box",
            with(|map| {
                map.dims = vec![128, 4, 1000, 2, 2];
                map.box_dims = vec![64, 4, 16, 1, 1];
                map.strides = vec![256, 2048, 1024, 2_048_000];
            }),
            true,
        ),
        (
            "element strides",
            with(|map| map.element_strides = vec![1, 1, 2, 1, 1]),
            true,
        ),
        (
            "large extents and strides",
            with(|map| {
                map.dims = vec![1 << 32, 1, 3, 5, 7];
                map.strides = vec![(1 << 40) - 16; 4];
            }),
            true,
        ),
        ("rank 1", rank(&[4096], &[], &[64]), true),
        ("rank 2", rank(&[64, 9], &[128], &[64, 8]), true),
        ("rank 3", rank(&[64, 9, 3], &[128, 1152], &[64, 8, 1]), true),
        // What is not documented, or is documented not to be good and known to be taken.
        (
            "strides in no order",
            with(|map| map.strides = vec![4096, 272, 512, 65_536]),
            false,
        ),
        ("a stride of 0", with(|map| map.strides[0] = 0), false),
        (
            "rows of 32 bytes under a 128-byte swizzle",
            with(|map| map.box_dims[0] = 16),
            false,
        ),
    ]
}

/// Encodes everything on both.
pub fn run(device: &dyn Machine, emulator: &dyn Machine) -> Vec<Outcome> {
    let hex = |bytes: &[u8; TENSOR_MAP_BYTES]| {
        let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        digits.concat()
    };
    let each = |(name, map, documented): (&'static str, TensorMap, bool)| {
        let (device, emulator) = (device.encode(&map), emulator.encode(&map));
        let differing = match (&device, &emulator) {
            (Ok(device), Ok(emulator)) => {
                let pairs = device.iter().zip(emulator).enumerate();
                let differ = pairs.filter(|(_, (a, b))| a != b);
                differ.map(|(at, (&a, &b))| (at, a, b)).collect()
            }
            _ => Vec::new(),
        };
        Outcome {
            name,
            device: device.as_ref().map(hex).map_err(Clone::clone),
            emulator: emulator.as_ref().map(hex).map_err(Clone::clone),
            differing,
            documented,
        }
    };
    specs().into_iter().map(each).collect()
}
