//! Scales of 8-bit tensors in a file: optional tensors, whose rank says how many rows share one.

use flashtile::{Problem, ScaleLayout, TensorLayout};
use safetensors::{Dtype, tensor::Metadata};

use super::Span;
use crate::failure::{Failure, Result};

/// The tensors that hold scales: those of q, k and v.
const NAMES: [&str; 3] = ["q_scale", "k_scale", "v_scale"];

/// Rows of a block unless an option says another number.
const DEFAULT_ROWS: u32 = 128;

/// The option that says it.
const OPTION: &str = "--scale-block";

/// Scales of a tensor.
#[derive(Clone, Debug)]
pub(super) struct ScaleTensor {
    pub(super) data: Span,
    pub(super) shape: Vec<usize>,
}

impl ScaleTensor {
    /// How many scales there are, as far as their rank says.
    fn layout(&self, rows: u32) -> ScaleLayout {
        match self.shape.len() {
            0 | 1 => ScaleLayout::PerTensor,
            2 => ScaleLayout::PerHead,
            _ => ScaleLayout::PerBlock { rows },
        }
    }
}

/// The scales that a file has.
pub(super) fn find(metadata: &Metadata, data_begin: u64) -> Result<[Option<ScaleTensor>; 3]> {
    let mut found = [const { None }; 3];
    for (name, found) in NAMES.into_iter().zip(&mut found) {
        let Some(info) = metadata.info(name) else {
            continue;
        };
        if info.dtype != Dtype::F32 {
            return Err(Failure::bad(name, "F32", format!("{:?}", info.dtype)));
        }
        if info.shape.len() > 3 {
            return Err(Failure::bad(
                name,
                "shape [1], [batch, heads] or [batch, heads, blocks]",
                format!("shape {:?}", info.shape),
            ));
        }
        *found = Some(ScaleTensor {
            data: Span::new(name, info, data_begin),
            shape: info.shape.clone(),
        });
    }
    Ok(found)
}

/// How many scales q, k and v have.
pub(super) fn layouts(
    scales: &[Option<ScaleTensor>; 3],
    rows: Option<u32>,
) -> Result<[ScaleLayout; 3]> {
    let of_blocks = |scales: &ScaleTensor| scales.shape.len() == 3;
    if rows.is_some() && !scales.iter().flatten().any(of_blocks) {
        return Err(Failure::bad(
            OPTION,
            "a tensor q_scale, k_scale or v_scale of shape [batch, heads, blocks]",
            "none",
        ));
    }
    let rows = rows.unwrap_or(DEFAULT_ROWS);
    let layout = |scales: &Option<ScaleTensor>| {
        let layout = scales.as_ref().map(|scales| scales.layout(rows));
        layout.unwrap_or_default()
    };
    Ok(scales.each_ref().map(layout))
}

/// Refuses scales of other shapes than a checked problem's.
pub(super) fn check(scales: &[Option<ScaleTensor>; 3], problem: &Problem) -> Result<()> {
    let tensors = [
        (&problem.q, problem.scales.q),
        (&problem.k, problem.scales.k),
        (&problem.v, problem.scales.v),
    ];
    for (scales, (tensor, layout)) in scales.iter().zip(tensors) {
        let Some(scales) = scales else { continue };
        // A scalar is as good as one number.
        let fits = scales.shape.is_empty() || scales.shape == layout.shape(tensor);
        if !fits {
            return Err(Failure::bad(
                scales.data.name,
                expected(tensor, layout),
                format!("shape {:?}", scales.shape),
            ));
        }
    }
    Ok(())
}

/// The shapes that a tensor's scales may have.
fn expected(tensor: &TensorLayout, layout: ScaleLayout) -> String {
    let rows = match layout {
        ScaleLayout::PerBlock { rows } => rows,
        _ => DEFAULT_ROWS,
    };
    let shape = |layout: ScaleLayout| format!("{:?} ({layout})", layout.shape(tensor));
    format!(
        "shape {}, {} or {}",
        shape(ScaleLayout::PerTensor),
        shape(ScaleLayout::PerHead),
        shape(ScaleLayout::PerBlock { rows })
    )
}
