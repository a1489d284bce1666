//! Dense problems, for kernels under mutation.

use std::sync::OnceLock;

use flashtile::{
    DeviceInfo, Plan, Pointers, Variant,
    device::emulator::tensor_map,
    reference::{ErrorBound, Reference},
};

use super::{
    judge::Cause,
    place::Addresses,
    problems::{Problem, problems},
    work::{Buffer, Images, Left, Step, Work},
};
use crate::{
    data::Tensors,
    memory::{Image, images, lse_image, scale_image, scale_origin},
};

/// A problem with its tensors and its plan.
struct Dense {
    problem: Problem,
    tensors: Tensors,
    /// q, k, v and out.
    layouts: [Image; 4],
    images: Images,
    plan: Plan,
    bound: OnceLock<(Reference, ErrorBound)>,
}

/// The problems of a variant.
pub(super) fn works(variant: &'static Variant) -> Result<Vec<Box<dyn Work>>, String> {
    let all = problems(variant).into_iter();
    all.map(|problem| Ok(Box::new(Dense::new(variant, problem)?) as Box<dyn Work>))
        .collect()
}

impl Dense {
    fn new(variant: &'static Variant, problem: Problem) -> Result<Self, String> {
        let case = &problem.case;
        let fail = |reason: String| format!("{case}: {reason}");
        // Of several kernels that are wide enough the host picks the narrowest. The others are right too.
        let plan = case
            .problem()
            .lse(problem.lse)
            .plan_variant(&DeviceInfo::emulator(), variant);
        let plan = plan.map_err(|error| fail(error.to_string()))?;
        let tensors = problem.tensors();
        let layouts = images(case, &tensors);
        let buffer = |image: &Image| match problem.rows_apart {
            true => Buffer::rows(image.bytes.clone(), Problem::ROW_DISTANCE),
            false => Buffer::whole(image.bytes.clone()),
        };
        let scales = tensors.scales.iter();
        let scales = scales.map(|scales| Buffer::whole(scale_image(scales)));
        // There is a log-sum-exp even if none is wanted: it must stay as it is.
        let lse = lse_image(case.shape.batch * case.shape.heads_q * case.shape.seqlen_q);
        let images = Images {
            inputs: layouts[..3].iter().map(buffer).chain(scales).collect(),
            outputs: vec![buffer(&layouts[3]), Buffer::whole(lse)],
            scratch: 0,
        };
        Ok(Self {
            problem,
            tensors,
            layouts,
            images,
            plan,
            bound: OnceLock::new(),
        })
    }
}

impl Work for Dense {
    fn text(&self) -> String {
        let lse = if self.problem.lse {
            ""
        } else {
            " (without lse)"
        };
        format!("{}{lse}", self.problem.case)
    }

    fn images(&self) -> &Images {
        &self.images
    }

    fn launches(&self, at: &Addresses) -> Result<Vec<Step>, String> {
        let [q, k, v] = std::array::from_fn(|i| self.layouts[i].origin(at.inputs[i]));
        let scales = &self.tensors.scales;
        let [q_scale, k_scale, v_scale] =
            std::array::from_fn(|i| scale_origin(&scales[i], at.inputs[3 + i]));
        let pointers = Pointers {
            q,
            k,
            v,
            out: self.layouts[3].origin(at.outputs[0]),
            lse: self.problem.lse.then_some(at.outputs[1]),
            q_scale,
            k_scale,
            v_scale,
            ..Pointers::default()
        };
        let prepared = self.plan.prepare_with(&pointers, tensor_map);
        let prepared = prepared.map_err(|error| error.to_string())?;
        Ok(vec![Step {
            kernel: &prepared.variant.entry,
            config: prepared.config,
            params: prepared.params.as_bytes().to_vec(),
        }])
    }

    fn judge(&self, left: &Left) -> Option<(Cause, String)> {
        let (out_bytes, lse_bytes) = (&left[0], &left[1]);
        let out = match self.layouts[3].values(out_bytes) {
            Ok(out) => out,
            Err(at) => {
                let text = format!("element {at} of out's buffer is no output");
                return Some((Cause::Stray, text));
            }
        };
        if !self.problem.lse && *lse_bytes != self.images.outputs[1].bytes {
            return Some((Cause::Stray, "a log-sum-exp that nobody wanted".into()));
        }
        let case = &self.problem.case;
        let (reference, bound) = self.bound.get_or_init(|| {
            (
                crate::oracle(case, &self.tensors),
                crate::bound(case, &self.tensors),
            )
        });
        let (words, _) = lse_bytes.as_chunks::<4>();
        let lse: Vec<f32> = words.iter().map(|&word| f32::from_le_bytes(word)).collect();
        let wanted = if self.problem.lse {
            &reference.lse[..]
        } else {
            &[]
        };
        let found = [
            ("out", largest(&out, &reference.out), bound.max_abs),
            (
                "out's mean square",
                root_mean_square(&out, &reference.out),
                bound.rms,
            ),
            ("lse", largest(&lse, wanted), bound.lse_max_abs),
        ];
        let wrong = found.iter().find(|(_, error, bound)| error > bound);
        Some(match wrong {
            Some((what, error, bound)) => (
                Cause::Wrong,
                format!("{what} is off by {error:.3e}, bound {bound:.3e}"),
            ),
            None => (Cause::Bits, "other bits, within the bounds".into()),
        })
    }
}

/// Errors of a result; infinite where one side is NaN or infinite and the other is not the same.
fn errors(result: &[f32], reference: &[f64]) -> impl Iterator<Item = f64> {
    result.iter().zip(reference).map(|(&x, &r)| {
        let x = f64::from(x);
        match () {
            () if x == r || (x.is_nan() && r.is_nan()) => 0.0,
            () if x.is_finite() && r.is_finite() => (x - r).abs(),
            () => f64::INFINITY,
        }
    })
}

fn largest(result: &[f32], reference: &[f64]) -> f64 {
    errors(result, reference).fold(0.0, f64::max)
}

fn root_mean_square(result: &[f32], reference: &[f64]) -> f64 {
    let squares: f64 = errors(result, reference).map(|error| error * error).sum();
    (squares / result.len().max(1) as f64).sqrt()
}
