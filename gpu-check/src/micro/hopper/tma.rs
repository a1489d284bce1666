//! The copy engine: one box at a time.

use flashtile_emulator::{ElementType, Swizzle, TensorMap};

use super::super::{Buffer, Map, Place, Promise, Target, Test, inputs::Noise};
use super::{Body, numbered};
use crate::compare::Format;

/// Threads of these tests' blocks.
const THREADS: u32 = 128;

/// The kernels' load, and the same without a hint.
pub(super) const LOAD: &str = "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint";
const LOAD_WITHOUT_HINT: &str =
    "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes";
/// The kernels' store.
const STORE: &str = "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group";

/// Cache hints that the kernels give.
const EVICT_FIRST: u64 = 0x12f0_0000_0000_0000;
pub(super) const EVICT_LAST: u64 = 0x14f0_0000_0000_0000;

/// Every test of this kind.
pub fn tests() -> Vec<Test> {
    let mut tests: Vec<_> = loads().iter().map(Load::test).collect();
    tests.extend(stores().iter().map(Store::test));
    tests
}

/// A tensor [batch, seqlen, heads, head_dim], contiguous, as the kernels describe it: 2^pack heads share the rows of a box, which
/// is `width` bytes wide.
#[derive(Clone, Copy)]
pub(super) struct Tensor {
    element: ElementType,
    shape: [u64; 4],
    pack: u32,
    rows: u32,
    width: u32,
}

impl Tensor {
    pub(super) const fn bf16(shape: [u64; 4], rows: u32, width: u32) -> Self {
        Self {
            element: ElementType::Bf16,
            shape,
            pack: 0,
            rows,
            width,
        }
    }

    pub(super) fn map(&self) -> TensorMap {
        let [batch, seqlen, heads, dim] = self.shape;
        let (bytes, packed) = (u64::from(self.element.bytes()), 1 << self.pack);
        let (head, row) = (dim * bytes, heads * dim * bytes);
        swizzled(TensorMap::new(
            self.element,
            0,
            &[dim, packed, seqlen, heads / packed, batch],
            &[head, row, head * packed, seqlen * row],
            &[
                self.width / self.element.bytes(),
                packed as u32,
                self.rows >> self.pack,
                1,
                1,
            ],
        ))
    }

    /// Bytes of the tensor.
    pub(super) fn bytes(&self) -> u64 {
        self.shape.iter().product::<u64>() * u64::from(self.element.bytes())
    }
}

/// A map with the swizzle that is as wide as its boxes.
fn swizzled(map: TensorMap) -> TensorMap {
    let swizzle = match map.box_dims[0] * map.element_type.bytes() {
        128 => Swizzle::B128,
        64 => Swizzle::B64,
        _ => Swizzle::B32,
    };
    TensorMap { swizzle, ..map }
}

/// Bytes that a box takes in shared memory.
pub(super) fn box_bytes(map: &TensorMap) -> u32 {
    map.box_dims.iter().product::<u32>() * map.element_type.bytes()
}

/// Registers `%r10` to `%r14` with a box's coordinates.
pub(super) fn coordinates(at: [i32; 5]) -> String {
    let each = at.iter().enumerate();
    each.map(|(n, c)| format!("mov.b32 %r{}, {c};\n", 10 + n))
        .collect()
}

/// One load.
struct Load {
    name: String,
    map: TensorMap,
    at: [i32; 5],
    /// Bytes from the beginning of the array, which is at a multiple of 1024.
    to: u32,
    place: Place,
    hint: Option<u64>,
    /// Bytes of global memory that are numbered.
    bytes: u64,
    promise: Promise,
}

impl Load {
    fn new(name: &str, map: TensorMap, at: [i32; 5], bytes: u64) -> Self {
        Self {
            name: format!("TMA load, {name}"),
            map,
            at,
            to: 0,
            place: Place::Parameter,
            hint: Some(EVICT_LAST),
            bytes,
            promise: Promise::Exact,
        }
    }

    fn of(name: &str, tensor: Tensor, at: [i32; 5]) -> Self {
        Self::new(name, tensor.map(), at, tensor.bytes())
    }

    fn test(&self) -> Test {
        let bytes = box_bytes(&self.map);
        let region = (self.to + bytes).next_multiple_of(16 * THREADS);
        let mut body = Body::new(THREADS);
        body.blank(region).init(&[1]).sync();
        body.first_thread(|body| {
            body.add(Test::map_address(self.place, 0, "%d10"));
            body.add("prefetch.tensormap [%d10];");
            body.add(coordinates(self.at)).add(format!(
                "add.u32 %r15, %r2, {};\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], {bytes};",
                self.to
            ));
            let from = "[%r15], [%d10, {%r10, %r11, %r12, %r13, %r14}], [%r3]";
            match self.hint {
                Some(hint) => {
                    body.add(format!("mov.b64 %d11, {hint};\n{LOAD} {from}, %d11;"));
                }
                None => {
                    body.add(format!("{LOAD_WITHOUT_HINT} {from};"));
                }
            }
        });
        body.wait("%r3", "0", 1);
        count_missing(&mut body, bytes);
        body.finish(region);
        let mut test = Test::in_memory(
            &self.name,
            Target::Sm90a,
            &body.text,
            (1, THREADS),
            (body.words(region), Format::Bits),
            self.input(),
        );
        test.declarations = Body::shared(region, 1);
        test.maps.push(Map {
            tensor: self.map.clone(),
            of: Buffer::Input,
            place: self.place,
        });
        test.promise(self.promise)
    }

    fn input(&self) -> Vec<u32> {
        let words = self.bytes.div_ceil(4) as u32;
        if self.map.element_type.bytes() == 2 {
            return numbered(words);
        }
        let mut noise = Noise::of(&self.name);
        (0..words).map(|_| noise.next32()).collect()
    }
}

/// After a wait for an mbarrier that took too long: how many of the bytes did not come, 0x8000_0000 more than that is the first
/// thread's status.
fn count_missing(body: &mut Body, bytes: u32) {
    body.add("setp.eq.u32 %p8, %r50, 0;")
        .unless("@%p8", |body| {
            body.first_thread(|body| {
                let (again, done) = (body.label(), body.label());
                body.add(format!(
                    "mov.u32 %r51, 0;\n{again}: add.u32 %r51, %r51, 16;\n\
                     mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r3], 16;\n\
                     mbarrier.test_wait.parity.shared::cta.b64 %p11, [%r3], 0;\n@%p11 bra {done};\n\
                     setp.lt.u32 %p11, %r51, {bytes};\n@%p11 bra {again};\nmov.u32 %r51, 0xffff;\n\
                     {done}: or.b32 %r50, %r51, 0x80000000;"
                ));
            });
        });
    body.add("bar.warp.sync 0xffffffff;");
}

fn loads() -> Vec<Load> {
    let heads64 = Tensor::bf16([2, 100, 3, 64], 64, 128);
    let heads80 = Tensor::bf16([2, 100, 2, 80], 64, 128);
    let mut loads = vec![
        Load::of("128-byte swizzle", heads64, [0, 0, 0, 1, 1]),
        Load::of(
            "64-byte swizzle",
            Tensor::bf16([2, 80, 2, 96], 64, 64),
            [32, 0, 5, 1, 1],
        ),
        Load::of(
            "32-byte swizzle",
            Tensor::bf16([2, 80, 2, 48], 64, 32),
            [16, 0, 5, 1, 1],
        ),
        Load {
            hint: None,
            ..Load::of("without a hint", heads64, [0, 0, 3, 2, 0])
        },
        Load {
            hint: Some(EVICT_FIRST),
            ..Load::of("evict first", heads64, [0, 0, 3, 2, 0])
        },
        // What lies outside arrives as zeros, and counts.
        Load::of("columns partly outside", heads80, [64, 0, 0, 1, 1]),
        Load::of("rows partly outside", heads64, [0, 0, 70, 1, 0]),
        Load::of("both partly outside", heads80, [64, 0, 70, 0, 1]),
        Load::of("columns all outside", heads80, [128, 0, 0, 0, 0]),
        Load::of("rows all outside", heads64, [0, 0, 128, 1, 0]),
        Load::of("a batch outside", heads64, [0, 0, 0, 0, 2]),
        Load::of("negative row", heads64, [0, 0, -8, 1, 1]),
        Load::of("negative column", heads64, [-16, 0, 0, 1, 1]),
    ];
    for pack in 1..=3 {
        let packed = Tensor {
            pack,
            ..Tensor::bf16([1, 40, 8, 64], 64, 128)
        };
        let name = format!("{} heads in a box", 1 << pack);
        loads.push(Load::of(&name, packed, [0, 0, 3, 0, 0]));
        let name = format!("{name}, rows partly outside");
        let row = 40 - (64 >> pack) + 3;
        loads.push(Load::of(&name, packed, [0, 0, row, (8 >> pack) - 1, 0]));
    }
    loads.extend(strides());
    // The permutation goes by the address in shared memory, not by the row of the box.
    for to in [128, 256, 512, 896, 1024] {
        let name = format!("to {to} bytes after a multiple of 1024");
        loads.push(Load {
            to,
            ..Load::of(&name, heads64, [0, 0, 1, 0, 0])
        });
    }
    for (name, element, width) in [
        ("8-bit elements, 128-byte swizzle", ElementType::U8, 128),
        ("8-bit elements, 64-byte swizzle", ElementType::U8, 64),
        ("f16", ElementType::F16, 128),
        ("f32", ElementType::F32, 128),
    ] {
        let tensor = Tensor {
            element,
            ..Tensor::bf16([1, 50, 2, 128], 64, width)
        };
        loads.push(Load::of(name, tensor, [0, 0, 5, 1, 0]));
    }
    for place in [Place::Parameter, Place::Global] {
        let rank2 = TensorMap {
            swizzle: Swizzle::None,
            ..TensorMap::new(
                ElementType::Bf16,
                0,
                &[64, 200, 1, 1, 1],
                &[128, 16, 16, 16],
                &[64, 64, 1, 1, 1],
            )
        };
        let name = format!("map in {place:?}, no swizzle").to_lowercase();
        let load = Load::new(&name, rank2, [0, 7, 0, 0, 0], 200 * 128);
        loads.push(Load { place, ..load });
        let name = format!("map in {place:?}, 128-byte swizzle").to_lowercase();
        let load = Load::of(&name, heads64, [0, 0, 9, 1, 0]);
        loads.push(Load { place, ..load });
    }
    loads
}

/// Tensors that do not lie as contiguous ones do.
fn strides() -> Vec<Load> {
    let map = |offset: u64, dims: [u64; 5], strides: [u64; 4]| TensorMap {
        address: offset,
        ..swizzled(TensorMap::new(
            ElementType::Bf16,
            0,
            &dims,
            &strides,
            &[64, 1, 64, 1, 1],
        ))
    };
    let load = |name: &str, map: TensorMap| Load::new(name, map, [0, 0, 2, 1, 1], 1 << 16);
    let mut loads = vec![
        // [batch, heads, seqlen, head_dim]
        load(
            "heads before positions",
            map(0, [64, 1, 70, 2, 3], [128, 128, 70 * 128, 2 * 70 * 128]),
        ),
        // [seqlen, batch, heads, head_dim]
        load(
            "positions before batches",
            map(0, [64, 1, 70, 2, 3], [128, 3 * 2 * 128, 128, 2 * 128]),
        ),
        // Strides that fall, and one that is no multiple of another.
        load(
            "strides in no order",
            map(0, [64, 1, 40, 2, 2], [1 << 15, 656, 144, 32768]),
        ),
        load(
            "a stride less than a row",
            map(0, [64, 1, 70, 2, 2], [16, 16, 4096, 8192]),
        ),
    ];
    for stride in [16, 128, 1 << 20, (1 << 40) - 16] {
        let name = format!("dimensions of 1 with a stride of {stride}");
        let one = map(0, [64, 1, 70, 1, 1], [stride, 128, stride, stride]);
        loads.push(Load::new(&name, one, [0, 0, 2, 0, 0], 70 * 128));
    }
    for offset in [16, 48, 64, 112] {
        let name = format!("base address {offset} bytes after a multiple of 256");
        loads.push(load(
            &name,
            map(offset, [64, 1, 70, 2, 2], [128, 384, 128, 70 * 384]),
        ));
    }
    // What nobody promises: the kernels do without.
    let repeated = map(0, [64, 1, 70, 2, 2], [128, 0, 4096, 8192]);
    let narrow = TensorMap {
        box_dims: vec![16, 1, 64, 1, 1],
        ..map(0, [64, 1, 70, 2, 2], [128, 256, 128, 70 * 256])
    };
    for (name, map) in [
        ("a stride of 0", repeated),
        ("rows of 32 bytes under a 128-byte swizzle", narrow),
    ] {
        loads.push(Load {
            promise: Promise::Unknown,
            ..load(name, map)
        });
    }
    loads
}

/// One store.
struct Store {
    name: String,
    map: TensorMap,
    at: [i32; 5],
    /// Bytes from the beginning of the array.
    from: u32,
    /// Bytes of the tensor in global memory.
    bytes: u64,
    /// Whether the source is overwritten once it has been read.
    overwrites: bool,
}

impl Store {
    fn of(name: &str, tensor: Tensor, at: [i32; 5]) -> Self {
        Self {
            name: format!("TMA store, {name}"),
            map: tensor.map(),
            at,
            from: 0,
            bytes: tensor.bytes(),
            overwrites: false,
        }
    }

    fn test(&self) -> Test {
        let bytes = box_bytes(&self.map);
        let region = (self.from + bytes).next_multiple_of(16 * THREADS);
        let mut body = Body::new(THREADS);
        body.fill(region, "%d1").sync();
        body.first_thread(|body| {
            body.add(Test::map_address(Place::Parameter, 0, "%d10"));
            body.add(coordinates(self.at)).add(format!(
                "add.u32 %r15, %r2, {};\n{STORE} [%d10, {{%r10, %r11, %r12, %r13, %r14}}], [%r15];\n\
                 cp.async.bulk.commit_group;\ncp.async.bulk.wait_group.read 0;",
                self.from
            ));
            if self.overwrites {
                let again = body.label();
                body.add(format!(
                    "mov.u32 %r51, 0;\n{again}: add.u32 %r52, %r15, %r51;\nst.shared.u32 [%r52], %r0;\n\
                     add.u32 %r51, %r51, 4;\nsetp.lt.u32 %p10, %r51, {bytes};\n@%p10 bra {again};"
                ));
            }
            body.add("cp.async.bulk.wait_group 0;");
        });
        let words = self.bytes.div_ceil(4 * u64::from(THREADS)) as usize;
        let mut test = Test::in_memory(
            &self.name,
            Target::Sm90a,
            &body.text,
            (1, THREADS),
            (words, Format::Bits),
            numbered(region / 4),
        );
        test.declarations = Body::shared(region, 1);
        test.maps.push(Map {
            tensor: self.map.clone(),
            of: Buffer::Output,
            place: Place::Parameter,
        });
        test
    }
}

fn stores() -> Vec<Store> {
    let heads64 = Tensor::bf16([2, 80, 2, 64], 64, 128);
    let heads80 = Tensor::bf16([2, 80, 2, 80], 64, 128);
    let mut stores = vec![
        Store::of("128-byte swizzle", heads64, [0, 0, 0, 1, 1]),
        Store::of(
            "64-byte swizzle",
            Tensor::bf16([1, 80, 2, 96], 64, 64),
            [32, 0, 5, 1, 0],
        ),
        Store::of(
            "32-byte swizzle",
            Tensor::bf16([1, 80, 2, 48], 64, 32),
            [16, 0, 5, 1, 0],
        ),
        // What lies outside is not written.
        Store::of("columns partly outside", heads80, [64, 0, 0, 1, 1]),
        Store::of("rows partly outside", heads64, [0, 0, 50, 1, 0]),
        Store::of("both partly outside", heads80, [64, 0, 50, 0, 1]),
        Store::of("columns all outside", heads80, [128, 0, 0, 0, 0]),
        Store::of("rows all outside", heads64, [0, 0, 128, 1, 0]),
        Store {
            overwrites: true,
            ..Store::of(
                "source overwritten after wait_group.read",
                heads64,
                [0, 0, 7, 0, 1],
            )
        },
        Store {
            from: 512,
            ..Store::of(
                "from 512 bytes after a multiple of 1024",
                heads64,
                [0, 0, 7, 0, 1],
            )
        },
    ];
    for pack in [1, 3] {
        let packed = Tensor {
            pack,
            ..Tensor::bf16([1, 40, 8, 64], 64, 128)
        };
        let name = format!("{} heads in a box, rows partly outside", 1 << pack);
        let row = 40 - (64 >> pack) + 3;
        stores.push(Store::of(&name, packed, [0, 0, row, (8 >> pack) - 1, 0]));
    }
    stores
}
