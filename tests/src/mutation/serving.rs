//! Problems of inference engines, for kernels under mutation.

use std::sync::OnceLock;

use flashtile::{
    DType, DeviceInfo, Outputs, ServingVariant, TensorLayout, element,
    reference::ErrorBound,
    serving::{BiasType, ServingPlan, ServingPointers},
};

use super::{
    judge::Cause,
    place::Addresses,
    serving_problems::{Problem, problems},
    work::{Buffer, Images, Left, Step, Work, distance},
};
use crate::serving::{Built, Cache, GAP, bound, judge_by};

/// A problem with its tensors and its plan.
pub(super) struct Serving {
    problem: Problem,
    built: Built,
    images: Images,
    plan: ServingPlan,
    bound: OnceLock<ErrorBound>,
}

/// Where tensors are among the inputs: q, k, v, bias and mask; numbers; floats.
const NUMBERS: usize = 5;
const FLOATS: usize = NUMBERS + 6;

/// The problems of a variant.
pub(super) fn works(variant: &'static ServingVariant) -> Result<Vec<Box<dyn Work>>, String> {
    let all = problems(variant).into_iter();
    all.map(|problem| {
        let work = Serving::new(problem)?;
        let chosen = work.plan.variant().name;
        match chosen == variant.name {
            true => Ok(Box::new(work) as Box<dyn Work>),
            false => Err(format!("{}: computed by {chosen}", work.text())),
        }
    })
    .collect()
}

impl Serving {
    pub(super) fn new(problem: Problem) -> Result<Self, String> {
        let case = &problem.case;
        let mut built = match problem.rows_apart {
            // Rows of the widest elements decide.
            true => Built::with_rows(case, &|dim, dtype| {
                let bytes = dtype.bytes() as usize;
                distance(dim * bytes + Problem::OFFSET) / bytes
            }),
            false => Built::of(case),
        };
        built.problem.lse = problem.lse;
        if let Some(factor) = problem.spoilt {
            let row = 0..case.dims[0];
            for at in row {
                let x = factor * element::read(case.dtype, &built.tensors[0], at);
                element::write(case.dtype, &mut built.tensors[0], at, x);
            }
        }
        let (mut bias, mut mask) = (built.tensors[3].clone(), built.tensors[4].clone());
        let [mut bias_row, mut mask_row] = [0, 0];
        if problem.rows_apart {
            let shape = &mut built.problem;
            if let Some(layout) = &mut shape.bias {
                let bytes = match layout.element {
                    BiasType::Same => shape.dtype.bytes(),
                    BiasType::F32 => 4,
                };
                (bias, bias_row) = rows_apart(&bias, layout.tensor(), bytes, &mut layout.strides);
            }
            if let Some(layout) = &mut shape.mask {
                let (tensor, bytes) = (layout.tensor(), layout.element_bytes());
                (mask, mask_row) = rows_apart(&mask, tensor, bytes, &mut layout.strides);
            }
        }
        (built.tensors[3], built.tensors[4]) = (bias.clone(), mask.clone());
        let pairs = |bytes: Vec<u8>, row| match row {
            0 => Buffer::whole(bytes),
            _ => Buffer::rows(bytes, row),
        };
        let (bias, mask) = (pairs(bias, bias_row), pairs(mask, mask_row));
        let plan = built.problem.plan(&DeviceInfo::emulator());
        let plan = plan.map_err(|error| format!("{case}: {error}"))?;
        let shape = &built.problem;
        let tensor = |bytes: &[u8], dim: usize, dtype: DType| {
            if bytes.is_empty() {
                return Buffer::whole(Vec::new());
            }
            let offset = problem.offset(dtype);
            let bytes = [&vec![GAP; offset], bytes].concat();
            match problem.rows_apart {
                true => {
                    let row = distance(dim * dtype.bytes() as usize + Problem::OFFSET);
                    Buffer::rows(bytes, row)
                }
                false => Buffer::whole(bytes),
            }
        };
        let words = |words: Vec<[u8; 4]>| Buffer::whole(words.concat());
        let [q, k, v, ..] = &built.tensors;
        // The first page is in no table.
        let nobodys = match (case.cache, problem.rows_apart) {
            (Cache::Paged(page), true) => page * case.heads_kv,
            _ => 0,
        };
        let kv_dtype = shape.kv_dtype;
        let tensors = [
            tensor(q, case.dims[0], case.dtype),
            tensor(k, case.dims[0], kv_dtype).without(nobodys),
            tensor(v, case.dims[1], kv_dtype).without(nobodys),
            bias,
            mask,
        ];
        let numbers = built.numbers.iter();
        let numbers = numbers.map(|all| words(all.iter().map(|x| x.to_le_bytes()).collect()));
        let floats = built.floats.iter();
        let floats = floats.map(|all| words(all.iter().map(|x| x.to_le_bytes()).collect()));
        let out_dtype = shape.out_element();
        let out = vec![GAP; shape.out.span().unwrap_or(0) * out_dtype.bytes() as usize];
        // There is a log-sum-exp even if none is wanted: it must stay as it is.
        let lse = vec![GAP; 4 * shape.lse_shape().iter().product::<usize>()];
        let images = Images {
            inputs: tensors.into_iter().chain(numbers).chain(floats).collect(),
            outputs: vec![tensor(&out, case.dims[1], out_dtype), Buffer::whole(lse)],
            scratch: plan.workspace_bytes(),
        };
        Ok(Self {
            problem,
            built,
            images,
            plan,
            bound: OnceLock::new(),
        })
    }
}

/// The elements of a tensor without gaps, whose rows become so far apart as allocations are, and bytes from one to the next.
fn rows_apart(
    bytes: &[u8],
    tensor: TensorLayout,
    element: u32,
    strides: &mut [i64; 4],
) -> (Vec<u8>, usize) {
    let [_, heads, rows, elements] = tensor.shape;
    let width = elements * element as usize;
    let row = distance(width);
    let mut apart = Vec::new();
    for bytes in bytes.chunks(width) {
        apart.resize(apart.len().next_multiple_of(row), GAP);
        apart.extend(bytes);
    }
    let row_stride = (row / element as usize) as i64;
    *strides = [
        row_stride * (heads * rows) as i64,
        row_stride * rows as i64,
        row_stride,
        1,
    ];
    (apart, row)
}

impl Work for Serving {
    fn text(&self) -> String {
        let Problem {
            case,
            lse,
            rows_apart,
            unaligned,
            spoilt,
        } = &self.problem;
        let special = [
            (!lse, "without lse"),
            (*rows_apart, "rows apart"),
            (*unaligned, "unaligned"),
            (spoilt.is_some(), "a large query"),
        ];
        let special: Vec<_> = special.iter().filter(|(is, _)| *is).collect();
        let special: String = special
            .iter()
            .map(|(_, what)| format!(" ({what})"))
            .collect();
        format!("{case}{special}")
    }

    fn images(&self) -> &Images {
        &self.images
    }

    fn launches(&self, at: &Addresses) -> Result<Vec<Step>, String> {
        let shape = &self.built.problem;
        let input = |i: usize| match self.images.inputs[i].bytes.is_empty() {
            true => 0,
            false => at.inputs[i],
        };
        let tensor = |i: usize, dtype| match input(i) {
            0 => 0,
            address => address + self.problem.offset(dtype) as u64,
        };
        let pointers = ServingPointers {
            q: tensor(0, shape.dtype),
            k: tensor(1, shape.kv_dtype),
            v: tensor(2, shape.kv_dtype),
            out: at.outputs[0] + self.problem.offset(shape.out_element()) as u64,
            lse: shape.lse.then_some(at.outputs[1]),
            q_starts: input(NUMBERS),
            q_used: input(NUMBERS + 1),
            k_starts: input(NUMBERS + 2),
            k_used: input(NUMBERS + 3),
            table: input(NUMBERS + 4),
            ranges: input(NUMBERS + 5),
            alibi: input(FLOATS),
            sink: input(FLOATS + 1),
            k_scale: input(FLOATS + 2),
            v_scale: input(FLOATS + 3),
            bias: input(3),
            mask: input(4),
            workspace: at.scratch,
        };
        let params = self.plan.params(&pointers);
        let (params, merge) = params.map_err(|error| error.to_string())?;
        let attention = Step {
            kernel: &self.plan.variant().entry,
            config: *self.plan.config(),
            params: params.as_bytes().to_vec(),
        };
        let kernel = self.plan.kernels().nth(1);
        let merge = merge.zip(kernel).zip(self.plan.merge_config());
        let merge = merge.map(|((params, kernel), config)| Step {
            kernel,
            config: *config,
            params: params.as_bytes().to_vec(),
        });
        Ok(std::iter::once(attention).chain(merge).collect())
    }

    fn judge(&self, left: &Left) -> Option<(Cause, String)> {
        let (case, built) = (&self.problem.case, &self.built);
        let offset = self.problem.offset(built.problem.out_element());
        if !built.problem.lse && left[1] != self.images.outputs[1].bytes {
            return Some((Cause::Stray, "a log-sum-exp that nobody wanted".into()));
        }
        // What such numbers give is nobody's business, only what is accessed on the way.
        (!case.hostile).then_some(())?;
        let (words, _) = left[1].as_chunks::<4>();
        let lse: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        let outputs = Outputs {
            out: left[0].get(offset..).unwrap_or_default().to_vec(),
            lse: built.problem.lse.then_some(lse),
        };
        let before = left[0].iter().take(offset).all(|&byte| byte == GAP);
        if let Err(what) = built.check_untouched(&outputs) {
            return Some((Cause::Stray, format!("{what} was written")));
        }
        if !before {
            return Some((Cause::Stray, "what is before out was written".into()));
        }
        let bound = || *self.bound.get_or_init(|| bound(case, built));
        Some(match judge_by(case, built, &outputs, bound) {
            Err(reason) => (Cause::Wrong, reason),
            Ok(()) => (Cause::Bits, "other bits, within the bounds".into()),
        })
    }
}
