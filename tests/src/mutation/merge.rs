//! Partial results, for merging kernels under mutation.

use flashtile::{
    DType, DeviceInfo, MergeVariant, Outputs,
    serving::{MergePlan, MergePointers, Splits},
};
use flashtile_verify::serving::{BuiltMerge, MergeCase};

use super::{
    judge::Cause,
    place::Addresses,
    serving::Serving,
    serving_problems::Problem,
    work::{Buffer, Images, Left, Step, Work, distance},
};
use crate::serving::{Cache, GAP, Queries, ServingCase, judge_merge};

/// Parts by chance.
struct Merge {
    case: MergeCase,
    built: BuiltMerge,
    images: Images,
    plan: MergePlan,
}

/// The problems of a kernel: parts that are given, and those of attention over keys that are split.
pub(super) fn works(variant: &'static MergeVariant) -> Result<Vec<Box<dyn Work>>, String> {
    let mut works: Vec<Box<dyn Work>> = Vec::new();
    for case in MergeCase::of_variant(variant) {
        works.push(Box::new(Merge::new(variant, case)?));
    }
    if variant.dtype == DType::F32 {
        return Ok(works);
    }
    let case = ServingCase {
        q_per_kv: 3,
        queries: Queries::PackedUsed,
        cache: Cache::Paged(16),
        room: 2,
        sink: true,
        splits: Splits::Keys(64),
        seed: 3,
        ..ServingCase::new(variant.dtype, &[[2, 130], [1, 3], [0, 70], [2, 0]], 20)
    };
    let dense = ServingCase {
        queries: Queries::DenseUsed,
        sink: false,
        wide_out: true,
        ..case.clone()
    };
    for case in [case, dense] {
        works.push(Box::new(Serving::new(Problem::of(case.clone()))?));
        for seed in 0..4 {
            let case = ServingCase {
                hostile: true,
                seed,
                ..case.clone()
            };
            works.push(Box::new(Serving::new(Problem::of(case))?));
        }
    }
    Ok(works)
}

impl Merge {
    /// Rows are apart, so that nothing beyond one can be read or written.
    fn new(variant: &'static MergeVariant, case: MergeCase) -> Result<Self, String> {
        let [batch, rows, heads, dim] = case.shape;
        let row = |dim: usize, dtype: DType| distance(dim * dtype.bytes() as usize);
        let elements = |dim: usize, dtype: DType| row(dim, dtype) / dtype.bytes() as usize;
        let built = BuiltMerge::with_rows(&case, &elements);
        let plan = built.problem.plan(&DeviceInfo::emulator());
        let plan = plan.map_err(|error| format!("{case}: {error}"))?;
        if plan.variant() != variant {
            return Err(format!("{case}: merged by {}", plan.variant().name));
        }
        let floats = |all: &[f32]| {
            let words: Vec<_> = all.iter().map(|x| x.to_le_bytes()).collect();
            Buffer::whole(words.concat())
        };
        let rows_of = |bytes: Vec<u8>, dtype| match bytes.is_empty() {
            true => Buffer::whole(bytes),
            false => Buffer::rows(bytes, row(dim, dtype)),
        };
        let span = built.problem.out.span().unwrap_or(0);
        let out = vec![GAP; span * case.out_dtype.bytes() as usize];
        let lse = vec![GAP; 4 * batch * heads * rows];
        let images = Images {
            inputs: vec![
                rows_of(built.parts.clone(), case.dtype),
                floats(&built.lse),
                floats(&built.sink),
            ],
            outputs: vec![rows_of(out, case.out_dtype), Buffer::whole(lse)],
            scratch: 0,
        };
        Ok(Self {
            case,
            built,
            images,
            plan,
        })
    }
}

impl Work for Merge {
    fn text(&self) -> String {
        self.case.to_string()
    }

    fn images(&self) -> &Images {
        &self.images
    }

    fn launches(&self, at: &Addresses) -> Result<Vec<Step>, String> {
        let input = |i: usize| match self.images.inputs[i].bytes.is_empty() {
            true => 0,
            false => at.inputs[i],
        };
        let pointers = MergePointers {
            parts: input(0),
            parts_lse: input(1),
            sink: input(2),
            out: at.outputs[0],
            lse: self.case.lse.then_some(at.outputs[1]),
        };
        let params = self.plan.params(&pointers);
        let params = params.map_err(|error| error.to_string())?;
        Ok(vec![Step {
            kernel: &self.plan.variant().entry,
            config: *self.plan.config(),
            params: params.as_bytes().to_vec(),
        }])
    }

    fn judge(&self, left: &Left) -> Option<(Cause, String)> {
        if !self.case.lse && left[1] != self.images.outputs[1].bytes {
            return Some((Cause::Stray, "a log-sum-exp that nobody wanted".into()));
        }
        let (words, _) = left[1].as_chunks::<4>();
        let lse = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        let outputs = Outputs {
            out: left[0].clone(),
            lse: self.case.lse.then_some(lse),
        };
        Some(
            match judge_merge(&self.built.problem, &self.built.inputs(), &outputs) {
                Err(reason) => (Cause::Wrong, reason),
                Ok(()) => (Cause::Bits, "other bits, within the bounds".into()),
            },
        )
    }
}
