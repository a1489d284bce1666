//! The cases of `verify`: the same on every machine, named by what they are.

use std::collections::HashSet;

use flashtile::{
    Algorithm, CausalAlignment, DType, OutDType, Problem, ScoreModKind, Shape, TensorLayout,
    Window, element,
};

/// One problem with its data.
#[derive(Clone, Debug)]
pub struct Case {
    /// Says all that distinguishes the case.
    pub name: String,
    /// What is computed.
    pub problem: Problem,
    /// The kernel that must be chosen, where the case is there for its sake.
    pub kernel: Option<&'static str>,
    /// Inputs are uniform between minus this and this.
    amplitude: f32,
}

impl Case {
    /// Bytes of q, k and v.
    pub fn tensors(&self) -> [Vec<u8>; 3] {
        let problem = &self.problem;
        let mut seed = 0;
        [&problem.q, &problem.k, &problem.v].map(|layout| {
            seed += 1;
            let count = layout.span().unwrap_or(0);
            element::encode(problem.dtype, &noise(count, seed, self.amplitude))
        })
    }
}

/// Uniform in [-amplitude, amplitude), the same everywhere.
fn noise(count: usize, seed: u32, amplitude: f32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * amplitude
    };
    (0..count).map(|_| next()).collect()
}

/// How tensors lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    Contiguous,
    /// [batch, heads, seqlen, head_dim] in memory.
    HeadsFirst,
    /// One element of padding after each head, so that strides are no multiples of 16 bytes.
    Unaligned,
    /// Keys and values from last to first.
    Reversed,
    /// The same keys and values for every batch.
    Broadcast,
}

impl Layout {
    const ALL: [Self; 5] = [
        Self::Contiguous,
        Self::HeadsFirst,
        Self::Unaligned,
        Self::Reversed,
        Self::Broadcast,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "",
            Self::HeadsFirst => "-heads-first",
            Self::Unaligned => "-unaligned",
            Self::Reversed => "-reversed",
            Self::Broadcast => "-broadcast",
        }
    }

    fn apply(self, problem: &mut Problem) {
        let each = [
            &mut problem.q,
            &mut problem.k,
            &mut problem.v,
            &mut problem.out,
        ];
        match self {
            Self::Contiguous => {}
            Self::HeadsFirst => each.into_iter().for_each(|layout| {
                *layout = TensorLayout::heads_first(layout.shape);
            }),
            Self::Unaligned => each.into_iter().for_each(|layout| {
                let [_, seqlen, heads, dim] = layout.shape.map(|n| n as i64);
                let head = dim + 1;
                let row = heads * head + 1;
                layout.strides = [seqlen * row + 1, row, head, 1];
            }),
            Self::Reversed => {
                problem.k.strides[1] = -problem.k.strides[1];
                problem.v.strides[1] = -problem.v.strides[1];
            }
            Self::Broadcast => {
                problem.k.strides[0] = 0;
                problem.v.strides[0] = 0;
            }
        }
    }
}

/// Which keys queries see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mask {
    causal: Option<CausalAlignment>,
    window: Window,
}

const BOTTOM_RIGHT: Option<CausalAlignment> = Some(CausalAlignment::BottomRight);
const TOP_LEFT: Option<CausalAlignment> = Some(CausalAlignment::TopLeft);

const fn mask(causal: Option<CausalAlignment>, left: Option<u32>, right: Option<u32>) -> Mask {
    Mask {
        causal,
        window: Window { left, right },
    }
}

const FULL: Mask = mask(None, None, None);

const MASKS: [Mask; 8] = [
    FULL,
    mask(BOTTOM_RIGHT, None, None),
    mask(TOP_LEFT, None, None),
    mask(None, Some(3), Some(2)),
    mask(None, Some(70), None),
    mask(None, None, Some(0)),
    mask(BOTTOM_RIGHT, Some(40), Some(5)),
    mask(TOP_LEFT, Some(0), None),
];

/// A case before it has a name.
#[derive(Clone, Copy, Debug)]
struct Draft {
    algorithm: Algorithm,
    dtype: DType,
    batch: usize,
    /// Queries, keys.
    lens: (usize, usize),
    /// Of queries, of keys and values.
    heads: (usize, usize),
    /// Of queries and keys, of values.
    dims: (usize, usize),
    mask: Mask,
    softcap: Option<f32>,
    scale: Option<f32>,
    layout: Layout,
    out_f32: bool,
    amplitude: f32,
    kernel: Option<&'static str>,
}

const DRAFT: Draft = Draft {
    algorithm: Algorithm::Fused,
    dtype: DType::F16,
    batch: 1,
    lens: (20, 70),
    heads: (2, 1),
    dims: (64, 64),
    mask: FULL,
    softcap: None,
    scale: None,
    layout: Layout::Contiguous,
    out_f32: false,
    amplitude: 1.0,
    kernel: None,
};

impl Draft {
    fn name(&self) -> String {
        let (m, n) = self.lens;
        let (heads_q, heads_kv) = self.heads;
        let (qk, v) = self.dims;
        let mut name = format!(
            "{}-{}-b{}-q{m}-k{n}-h{heads_q}:{heads_kv}-d{qk}:{v}",
            self.algorithm.as_str(),
            self.dtype.as_str(),
            self.batch,
        );
        match self.mask.causal {
            Some(CausalAlignment::BottomRight) => name += "-causal",
            Some(CausalAlignment::TopLeft) => name += "-causal-top-left",
            None => {}
        }
        let side = |side: Option<u32>| side.map_or("-1".into(), |n| n.to_string());
        if self.mask.window != Window::default() {
            let Window { left, right } = self.mask.window;
            name += &format!("-window{},{}", side(left), side(right));
        }
        if let Some(cap) = self.softcap {
            name += &format!("-softcap{cap}");
        }
        if let Some(scale) = self.scale {
            name += &format!("-scale{scale}");
        }
        name += self.layout.name();
        if self.out_f32 {
            name += "-out-f32";
        }
        if self.amplitude != DRAFT.amplitude {
            name += &format!("-values{:e}", self.amplitude);
        }
        name
    }

    fn finish(self) -> Case {
        let shape = Shape {
            batch: self.batch,
            seqlen_q: self.lens.0,
            seqlen_k: self.lens.1,
            heads_q: self.heads.0,
            heads_kv: self.heads.1,
            head_dim_qk: self.dims.0,
            head_dim_v: self.dims.1,
        };
        let mut problem = Problem::contiguous(self.dtype, shape).lse(true);
        problem.algorithm = self.algorithm;
        problem.causal = self.mask.causal;
        problem.window = self.mask.window;
        problem.softcap = self.softcap;
        problem.scale = self.scale;
        if self.out_f32 {
            problem.out_dtype = OutDType::F32;
        }
        self.layout.apply(&mut problem);
        Case {
            name: self.name(),
            problem,
            kernel: self.kernel,
            amplitude: self.amplitude,
        }
    }
}

/// Drops cases of a name that was there before; the first is kept.
pub fn deduplicate(cases: &mut Vec<Case>) {
    let mut seen = HashSet::new();
    cases.retain(|case| seen.insert(case.name.clone()));
}

/// Every kernel once, then every feature on small shapes.
pub fn quick() -> Vec<Case> {
    let mut drafts: Vec<Draft> = flashtile::kernels().map(|k| of_kernel(&k)).collect();
    let f16 = DRAFT;
    let small = Draft {
        dims: (32, 32),
        ..DRAFT
    };
    // Lengths around the edges of tiles.
    for lens in [(1, 1), (128, 64), (129, 65), (127, 63), (1, 200), (130, 1)] {
        drafts.push(Draft { lens, ..f16 });
    }
    // Masks, some of which leave rows empty.
    for mask in MASKS {
        drafts.push(Draft { mask, ..small });
        let lens = (70, 20);
        drafts.push(Draft {
            mask,
            lens,
            ..small
        });
    }
    // Nothing to see, nothing to compute.
    for lens in [(5, 0), (0, 5), (0, 0)] {
        drafts.push(Draft { lens, ..small });
    }
    drafts.push(Draft { batch: 0, ..small });
    for heads in [(1, 1), (6, 2), (5, 1)] {
        drafts.push(Draft {
            heads,
            batch: 2,
            ..small
        });
    }
    for dims in [(1, 1), (7, 13), (33, 65), (100, 36), (24, 80)] {
        let dtype = [DType::F16, DType::Bf16, DType::F32][dims.0 % 3];
        drafts.push(Draft { dims, dtype, ..f16 });
    }
    for layout in Layout::ALL {
        for dtype in [DType::Bf16, DType::F32] {
            drafts.push(Draft {
                layout,
                dtype,
                batch: 2,
                ..small
            });
        }
    }
    for dtype in [DType::F16, DType::Bf16, DType::F32] {
        for amplitude in [1e4, 1e-6] {
            drafts.push(Draft {
                dtype,
                amplitude,
                ..small
            });
        }
        drafts.push(Draft {
            dtype,
            out_f32: true,
            ..small
        });
        for scale in [0.0, -0.3] {
            drafts.push(Draft {
                dtype,
                scale: Some(scale),
                ..small
            });
        }
    }
    for algorithm in [Algorithm::TwoPass, Algorithm::ThreePass] {
        for mask in MASKS {
            drafts.push(Draft {
                algorithm,
                mask,
                lens: (30, 50),
                ..small
            });
        }
        for dtype in [DType::F16, DType::Bf16, DType::F32] {
            let softcap = Some(2.5);
            drafts.push(Draft {
                algorithm,
                dtype,
                softcap,
                ..small
            });
        }
    }
    drafts.into_iter().map(Draft::finish).collect()
}

/// The case that a kernel, and no other, computes.
fn of_kernel(kernel: &flashtile::Kernel) -> Draft {
    let variant = kernel.variant;
    let tile = &variant.tile;
    Draft {
        algorithm: variant.algorithm,
        dtype: tile.dtype,
        dims: (tile.head_dim_qk as usize, tile.head_dim_v as usize),
        lens: (17, tile.block_n as usize + 3),
        heads: (1, 1),
        mask: mask(BOTTOM_RIGHT, None, None),
        softcap: (variant.score_mod == ScoreModKind::Softcap).then_some(15.0),
        kernel: Some(variant.name),
        ..DRAFT
    }
}

/// Algorithms x dtypes x masks x lengths, the rest in rotation.
pub fn full() -> Vec<Case> {
    let dims = [
        (32, 32),
        (64, 64),
        (40, 56),
        (96, 96),
        (128, 128),
        (192, 128),
        (256, 256),
        (17, 5),
        (80, 80),
        (129, 3),
        (5, 250),
    ];
    let heads = [(1, 1), (4, 2), (3, 1)];
    let lens = [(1, 1), (37, 70), (65, 33), (130, 129), (16, 200)];
    let mut cases = Vec::new();
    let mut turn = 0;
    for algorithm in Algorithm::ALL {
        for dtype in [DType::F16, DType::Bf16, DType::F32] {
            for mask in MASKS {
                for lens in lens {
                    let draft = Draft {
                        algorithm,
                        dtype,
                        mask,
                        lens,
                        dims: dims[turn % dims.len()],
                        heads: heads[turn % heads.len()],
                        batch: 1 + turn % 2,
                        layout: Layout::ALL[turn / 2 % Layout::ALL.len()],
                        softcap: (turn % 4 == 1).then_some(4.0),
                        out_f32: turn % 3 == 2,
                        amplitude: if turn % 7 == 3 { 1e4 } else { 1.0 },
                        ..DRAFT
                    };
                    cases.push(draft.finish());
                    turn += 1;
                }
            }
        }
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;
    use flashtile::DeviceInfo;

    #[test]
    fn every_case_has_a_kernel_and_a_name_of_its_own() {
        let mut cases = quick();
        cases.extend(full());
        let count = cases.len();
        deduplicate(&mut cases);
        assert!(cases.len() + 10 > count, "{} of {count}", cases.len());
        for case in &cases {
            let plan = case.problem.plan(&DeviceInfo::emulator());
            let variant = plan.map(|plan| plan.variant().name);
            match (variant, case.kernel) {
                (Ok(chosen), Some(expected)) => assert_eq!(chosen, expected),
                (Ok(_), None) => {}
                (Err(error), _) => panic!("{}: {error}", case.name),
            }
        }
    }

    #[test]
    fn the_quick_sweep_covers_every_kernel() {
        let cases = quick();
        for kernel in flashtile::kernels() {
            let name = kernel.variant.name;
            assert!(cases.iter().any(|case| case.kernel == Some(name)), "{name}");
        }
    }
}
