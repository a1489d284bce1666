//! One attention problem with its layouts and its data, as a value.

use flashtile::{
    Algorithm, Arch, ArchChoice, CausalAlignment, DType, DeviceInfo, OutDType, Plan, Pointers,
    Problem, ScaleLayout, Scales, ScoreModKind, Shape, TensorLayout, Variant, Window,
};

use crate::data::Distribution;

/// How a tensor lies in its buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Memory order [batch, heads, seqlen, head_dim] instead of [batch, seqlen, heads, head_dim].
    pub heads_first: bool,
    /// Unused elements after each head_dim. 8 (4 for f32) keeps strides multiples of 16 bytes if
    /// head_dim does.
    pub pad: usize,
    /// Unused elements before the tensor: an odd number makes its address no multiple of 16 bytes.
    pub offset: usize,
    /// The sequence runs towards lower addresses.
    pub backwards: bool,
    /// All batches share one memory. Inputs only.
    pub broadcast: bool,
}

impl Placement {
    /// The layout of a tensor of this shape.
    pub fn layout(&self, shape: [usize; 4]) -> TensorLayout {
        let mut stride = (shape[3] + self.pad) as i64;
        let mut strides = [0, 0, 0, 1];
        let order = if self.heads_first {
            [1, 2, 0]
        } else {
            [2, 1, 0]
        };
        for dim in order {
            strides[dim] = stride;
            stride *= shape[dim].max(1) as i64;
        }
        if self.backwards {
            strides[1] = -strides[1];
        }
        if self.broadcast {
            strides[0] = 0;
        }
        TensorLayout { shape, strides }
    }
}

/// Everything that decides a result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// Which kernel.
    pub algorithm: Algorithm,
    /// Which tier.
    pub arch: ArchChoice,
    /// Element type of q, k and v.
    pub dtype: DType,
    /// Element type of out.
    pub out_dtype: OutDType,
    /// How many scales q, k and v have. For 8-bit elements only.
    pub scales: Scales,
    /// Sizes.
    pub shape: Shape,
    /// Causal mask.
    pub causal: Option<CausalAlignment>,
    /// Sliding window.
    pub window: Window,
    /// Factor of the scores.
    pub scale: Option<f32>,
    /// Cap of the scores.
    pub softcap: Option<f32>,
    /// How q, k, v and out lie in memory.
    pub placements: [Placement; 4],
    /// What the elements are.
    pub data: Distribution,
    /// Which elements exactly.
    pub seed: u64,
    /// Keys that no query sees, and values of tiles without a visible key, are infinite or NaN in memory.
    /// The result may not change.
    pub poison: bool,
}

/// One batch of `heads_q` heads over `heads_kv`, q and k and v of one head_dim.
pub fn sizes(seqlen_q: usize, seqlen_k: usize, heads: [usize; 2], head_dim: usize) -> Shape {
    Shape {
        batch: 1,
        seqlen_q,
        seqlen_k,
        heads_q: heads[0],
        heads_kv: heads[1],
        head_dim_qk: head_dim,
        head_dim_v: head_dim,
    }
}

impl Case {
    /// Fused, unmasked, contiguous, normally distributed.
    pub fn new(dtype: DType, shape: Shape) -> Self {
        Self {
            algorithm: Algorithm::Fused,
            arch: ArchChoice::Auto,
            dtype,
            out_dtype: OutDType::Same,
            scales: Scales::default(),
            shape,
            causal: None,
            window: Window::default(),
            scale: None,
            softcap: None,
            placements: [Placement::default(); 4],
            data: Distribution::Normal,
            seed: 0,
            poison: false,
        }
    }

    /// As [`Case::new`], with a kernel's algorithm, tier, element type and head dimensions; capped if the kernel always caps.
    pub fn of_variant(variant: &Variant, seqlen_q: usize, seqlen_k: usize) -> Self {
        let tile = &variant.tile;
        let shape = sizes(seqlen_q, seqlen_k, [1, 1], tile.head_dim_qk as usize);
        let mut case = Self::new(tile.dtype, shape)
            .algorithm(variant.algorithm)
            .arch(match variant.arch {
                Arch::Sm80 => ArchChoice::Sm80,
                Arch::Sm90a => ArchChoice::Sm90a,
            });
        case.shape.head_dim_v = tile.head_dim_v as usize;
        if variant.score_mod == ScoreModKind::Softcap {
            case.softcap = Some(3.0);
        }
        case
    }

    /// The same with another algorithm.
    #[must_use]
    pub fn algorithm(self, algorithm: Algorithm) -> Self {
        Self { algorithm, ..self }
    }

    /// The same on another tier.
    #[must_use]
    pub fn arch(self, arch: ArchChoice) -> Self {
        Self { arch, ..self }
    }

    /// The same with a causal mask.
    #[must_use]
    pub fn causal(self, alignment: CausalAlignment) -> Self {
        Self {
            causal: Some(alignment),
            ..self
        }
    }

    /// The same with a window.
    #[must_use]
    pub fn window(self, left: Option<u32>, right: Option<u32>) -> Self {
        Self {
            window: Window { left, right },
            ..self
        }
    }

    /// The same with a factor of the scores.
    #[must_use]
    pub fn scale(self, scale: f32) -> Self {
        Self {
            scale: Some(scale),
            ..self
        }
    }

    /// The same with a cap of the scores.
    #[must_use]
    pub fn softcap(self, softcap: f32) -> Self {
        Self {
            softcap: Some(softcap),
            ..self
        }
    }

    /// The same with f32 output.
    #[must_use]
    pub fn out_f32(self) -> Self {
        Self {
            out_dtype: OutDType::F32,
            ..self
        }
    }

    /// The same with so many scales of each of q, k and v.
    #[must_use]
    pub fn scales(self, layout: ScaleLayout) -> Self {
        Self {
            scales: Scales::all(layout),
            ..self
        }
    }

    /// The same with other elements.
    #[must_use]
    pub fn data(self, data: Distribution, seed: u64) -> Self {
        Self { data, seed, ..self }
    }

    /// The same with so many heads of queries, over so many of keys and values.
    #[must_use]
    pub fn heads(mut self, queries: usize, keys: usize) -> Self {
        (self.shape.heads_q, self.shape.heads_kv) = (queries, keys);
        self
    }

    /// The same with tensors that the copy engine of the sm_90a tier can address: their rows begin at multiples of 16 bytes, behind gaps
    /// if need be, and their strides are positive.
    #[must_use]
    pub fn addressable(mut self) -> Self {
        for (at, [.., dim]) in self.shapes().into_iter().enumerate() {
            let aligned = 16 / self.element(at).bytes() as usize;
            let placement = &mut self.placements[at];
            *placement = Placement {
                heads_first: placement.heads_first,
                pad: (dim + placement.pad).next_multiple_of(aligned) - dim,
                offset: placement.offset.next_multiple_of(aligned),
                ..Placement::default()
            };
        }
        self
    }

    /// Element type of q, k, v or out, by number.
    pub fn element(&self, tensor: usize) -> DType {
        match tensor {
            3 => self.out_element(),
            _ => self.dtype,
        }
    }

    /// Shapes of q, k, v and out.
    pub fn shapes(&self) -> [[usize; 4]; 4] {
        let s = &self.shape;
        [
            [s.batch, s.seqlen_q, s.heads_q, s.head_dim_qk],
            [s.batch, s.seqlen_k, s.heads_kv, s.head_dim_qk],
            [s.batch, s.seqlen_k, s.heads_kv, s.head_dim_v],
            [s.batch, s.seqlen_q, s.heads_q, s.head_dim_v],
        ]
    }

    /// Element type of out.
    pub fn out_element(&self) -> DType {
        self.contiguous_problem().out_element()
    }

    /// The problem as it is launched, log-sum-exp included.
    pub fn problem(&self) -> Problem {
        self.problem_with(|placement, shape| placement.layout(shape))
    }

    /// The same problem over tensors without gaps: what the oracle is asked, so that it depends on
    /// no layout.
    pub fn contiguous_problem(&self) -> Problem {
        self.problem_with(|_, shape| TensorLayout::contiguous(shape))
    }

    fn problem_with(&self, layout: impl Fn(&Placement, [usize; 4]) -> TensorLayout) -> Problem {
        let shapes = self.shapes();
        let [q, k, v, out] = std::array::from_fn(|i| layout(&self.placements[i], shapes[i]));
        let mut problem = Problem::new(self.dtype, q, k, v, out)
            .out_dtype(self.out_dtype)
            .scales(self.scales)
            .lse(true)
            .algorithm(self.algorithm)
            .arch(self.arch)
            .window(self.window.left, self.window.right);
        problem.causal = self.causal;
        problem.scale = self.scale;
        problem.softcap = self.softcap;
        problem
    }

    /// What the library plans for the emulator, before it knows addresses.
    ///
    /// # Errors
    /// What the library says of the problem.
    pub fn plan(&self) -> flashtile::Result<Plan> {
        self.problem().plan(&DeviceInfo::emulator())
    }

    /// The kernel that computes it on the emulator.
    ///
    /// # Errors
    /// What the library says of the problem.
    pub fn planned(&self) -> flashtile::Result<&'static Variant> {
        let (problem, plan) = (self.problem(), self.plan()?);
        // Buffers begin at multiples of 256; only what follows counts.
        let layouts = [problem.q, problem.k, problem.v, problem.out];
        let [q, k, v, out] = std::array::from_fn(|i| {
            let first = match layouts[i].is_empty() {
                true => 0,
                false => self.placements[i].offset + layouts[i].index([0; 4]),
            };
            256 + first as u64 * u64::from(self.element(i).bytes())
        });
        plan.variant_for(&Pointers {
            q,
            k,
            v,
            out,
            ..Pointers::default()
        })
    }

    /// The kernel that computes it on the emulator.
    ///
    /// # Panics
    /// If the library refuses the problem: for cases that the program itself made.
    pub fn variant(&self) -> &'static Variant {
        match self.planned() {
            Ok(variant) => variant,
            Err(error) => panic!("{self}: {error}"),
        }
    }

    /// Bytes that running and judging the case takes, roughly; `None` past 64 bits or past strides of
    /// 62 bits. To be asked before anything is made of a case that a user typed.
    pub fn bytes(&self) -> Option<u64> {
        let mut bytes = 0u64;
        for (shape, placement) in self.shapes().into_iter().zip(&self.placements) {
            let row = shape[3].checked_add(placement.pad)?;
            let elements = shape[..3]
                .iter()
                .try_fold(row, |product, &extent| product.checked_mul(extent.max(1)))?
                .checked_add(placement.offset)?;
            // On the host and on the device, and in f32 and f64 for the judgement.
            let all = u64::try_from(elements).ok()?.checked_mul(32)?;
            bytes = bytes.checked_add(all)?;
        }
        (bytes < 1 << 62).then_some(bytes)
    }
}
