//! Scales of 8-bit inputs, as the kernels take them.

use flashtile_abi::{DType, ScaleView, hopper::SCALE_ROWS};

use super::{Pointers, check_pointer};
use crate::{
    error::{Error, Result},
    problem::Problem,
    scales::{ScaleLayout, ScaledTensor},
};

/// No block of rows is so long that two begin in one sequence.
const WHOLE_HEAD: u32 = 31;

/// Refuses scales of elements that have none, and blocks that no kernel takes.
pub(super) fn check(problem: &Problem) -> Result<()> {
    for scaled in problem.scaled() {
        let ScaledTensor {
            argument,
            tensor,
            layout,
        } = scaled;
        if layout == ScaleLayout::One {
            continue;
        }
        if problem.dtype != DType::E4m3 {
            return Err(Error::bad(
                argument,
                format!("no scales, since the inputs are {}", problem.dtype.as_str()),
                layout.to_string(),
            ));
        }
        if let ScaleLayout::PerBlock { rows } = layout
            && !(rows.is_power_of_two() && rows >= SCALE_ROWS)
        {
            return Err(Error::bad(
                argument,
                format!("blocks of a power of two of rows, at least {SCALE_ROWS}"),
                format!("blocks of {rows}"),
            ));
        }
        let bytes = layout
            .count(tensor)
            .and_then(|n| i64::try_from(n).ok()?.checked_mul(4));
        if bytes.is_none() {
            return Err(Error::bad(
                argument,
                "scales whose bytes can be counted in 63 bits",
                format!("shape {:?}", layout.shape(tensor)),
            ));
        }
    }
    Ok(())
}

/// The scales of q, k and v of a checked problem at these addresses.
pub(super) fn views(problem: &Problem, pointers: &Pointers) -> Result<[ScaleView; 3]> {
    let addresses = [pointers.q_scale, pointers.k_scale, pointers.v_scale];
    let mut views = [ScaleView::default(); 3];
    for ((view, scaled), address) in views.iter_mut().zip(problem.scaled()).zip(addresses) {
        *view = self::view(&scaled, address)?;
    }
    Ok(views)
}

fn view(scaled: &ScaledTensor<'_>, address: u64) -> Result<ScaleView> {
    let ScaledTensor {
        argument,
        tensor,
        layout,
    } = *scaled;
    if layout == ScaleLayout::One && address != 0 {
        return Err(Error::bad(
            argument,
            "no address, since the problem has no such scales",
            format!("{address:#x}"),
        ));
    }
    let count = layout.count(tensor).unwrap_or_default() as i64;
    let is_empty = tensor.is_empty() || count == 0;
    check_pointer(argument, is_empty, address, 4, 0, (count - 1).max(0))?;
    // Bytes from one head to the next, if heads have scales of their own, and which rows share one.
    let (of_head, shift) = match layout {
        ScaleLayout::One | ScaleLayout::PerTensor => (0, WHOLE_HEAD),
        ScaleLayout::PerHead => (4, WHOLE_HEAD),
        ScaleLayout::PerBlock { rows } => {
            let blocks = tensor.shape[1].div_ceil(rows as usize) as i64;
            (4 * blocks, rows.trailing_zeros())
        }
    };
    Ok(ScaleView {
        ptr: address,
        batch_stride: of_head.wrapping_mul(tensor.shape[2] as i64),
        head_stride: of_head,
        shift,
        padding: 0,
    })
}

#[cfg(test)]
mod tests {
    use flashtile_abi::{Algorithm, ScoreModKind, Variant, params::flags};

    use super::*;
    use crate::{
        DeviceInfo, OutDType, Scales, Shape,
        plan::{Chosen, hopper, validate},
    };

    fn problem(scales: Scales) -> Problem {
        let shape = Shape {
            batch: 2,
            seqlen_q: 300,
            seqlen_k: 1000,
            heads_q: 6,
            heads_kv: 3,
            head_dim_qk: 128,
            head_dim_v: 64,
        };
        Problem::contiguous(DType::E4m3, shape).scales(scales)
    }

    const BLOCKS: ScaleLayout = ScaleLayout::PerBlock { rows: 256 };

    /// The argument that a check names, with what it found.
    fn refused(problem: &Problem) -> (&'static str, String) {
        match validate::check_shapes(problem) {
            Err(Error::BadInput {
                argument, found, ..
            }) => (argument, found),
            other => panic!("{problem:?}: {other:?}"),
        }
    }

    #[test]
    fn scales_that_no_kernel_takes_are_named() {
        for rows in [0, 1, 64, 100, 129, 384, u32::MAX] {
            let mut bad = problem(Scales::all(BLOCKS));
            bad.scales.k = ScaleLayout::PerBlock { rows };
            assert_eq!(refused(&bad), ("k_scale", format!("blocks of {rows}")));
        }
        for rows in [128, 256, 1 << 31] {
            let good = problem(Scales::all(ScaleLayout::PerBlock { rows }));
            assert!(validate::check_shapes(&good).is_ok());
        }
        for dtype in [DType::F16, DType::Bf16, DType::F32] {
            let mut bad = problem(Scales::default());
            bad.dtype = dtype;
            assert!(validate::check_shapes(&bad).is_ok());
            bad.scales.v = ScaleLayout::PerHead;
            assert_eq!(refused(&bad), ("v_scale", "a scale for each head".into()));
        }
    }

    #[test]
    fn output_types_go_with_those_of_the_inputs() {
        use OutDType::{Bf16, F16, F32, Same};
        for (inputs, out, element) in [
            (DType::E4m3, Same, Some(DType::Bf16)),
            (DType::E4m3, Bf16, Some(DType::Bf16)),
            (DType::E4m3, F16, Some(DType::F16)),
            (DType::E4m3, F32, Some(DType::F32)),
            (DType::F16, F16, Some(DType::F16)),
            (DType::Bf16, Bf16, Some(DType::Bf16)),
            (DType::F32, F32, Some(DType::F32)),
            (DType::F16, Bf16, None),
            (DType::Bf16, F16, None),
            (DType::F32, F16, None),
        ] {
            let mut problem = problem(Scales::default()).out_dtype(out);
            problem.dtype = inputs;
            match element {
                Some(element) => {
                    assert!(validate::check_shapes(&problem).is_ok());
                    assert_eq!(problem.out_element(), element);
                }
                None => assert_eq!(refused(&problem).0, "out_dtype"),
            }
        }
    }

    /// A view's strides and shift lead to the scale that the layout's own index says, for every row.
    #[test]
    fn views_lead_to_each_rows_scale() {
        let pointers = Pointers {
            q_scale: 0x1000,
            k_scale: 0x2004,
            v_scale: 0x3000,
            ..Pointers::default()
        };
        let layouts = [
            ScaleLayout::PerTensor,
            ScaleLayout::PerHead,
            ScaleLayout::PerBlock { rows: 128 },
            BLOCKS,
            ScaleLayout::PerBlock { rows: 1 << 31 },
        ];
        for layout in layouts {
            let problem = problem(Scales::all(layout));
            let views = views(&problem, &pointers).unwrap();
            for (view, scaled) in views.iter().zip(problem.scaled()) {
                let [batch, seqlen, heads, _] = scaled.tensor.shape;
                for (b, h) in (0..batch).flat_map(|b| (0..heads).map(move |h| (b, h))) {
                    for row in 0..seqlen {
                        let strides = [view.batch_stride, view.head_stride, 4];
                        let at = [b as i64, h as i64, (row >> view.shift) as i64];
                        let offset: i64 = at.iter().zip(strides).map(|(n, by)| n * by).sum();
                        let index = layout.index(scaled.tensor, [b, row, h]).unwrap();
                        assert_eq!(offset, 4 * index as i64, "{layout} [{b}, {row}, {h}]");
                    }
                }
            }
            assert_eq!([views[0].ptr, views[1].ptr], [0x1000, 0x2004]);
        }
    }

    #[test]
    fn addresses_of_scales_are_checked() {
        let good = Pointers {
            q_scale: 0x1000,
            k_scale: 0x2000,
            v_scale: 0x3000,
            ..Pointers::default()
        };
        let argument = |problem: &Problem, pointers| match views(problem, &pointers) {
            Err(Error::BadInput { argument, .. }) => argument,
            other => panic!("{other:?}"),
        };
        for layout in [ScaleLayout::PerTensor, ScaleLayout::PerHead, BLOCKS] {
            let problem = problem(Scales::all(layout));
            assert!(views(&problem, &good).is_ok());
            for q_scale in [0, 0x1002, u64::MAX - 3] {
                assert_eq!(argument(&problem, Pointers { q_scale, ..good }), "q_scale");
            }
            assert_eq!(
                argument(&problem, Pointers { v_scale: 0, ..good }),
                "v_scale"
            );
        }
        let mut some = problem(Scales::all(BLOCKS));
        some.scales.k = ScaleLayout::One;
        assert_eq!(argument(&some, good), "k_scale");
        let found = views(&some, &Pointers { k_scale: 0, ..good }).unwrap();
        assert_eq!(found[1].ptr, 0);
        // Without keys there are no blocks of them.
        let mut none = problem(Scales::all(BLOCKS));
        (none.k.shape[1], none.v.shape[1]) = (0, 0);
        let pointers = Pointers {
            q_scale: 0x1000,
            ..Pointers::default()
        };
        assert!(views(&none, &pointers).is_ok());
    }

    /// Inputs are bytes to the copy engine; the output has elements of its own, and rows as wide as these are.
    #[test]
    fn what_a_launch_is_told_of_elements_and_output() {
        let variant: &'static Variant = Box::leak(Box::new(Variant::sm90(
            "none",
            Algorithm::Fused,
            DType::E4m3,
            128,
            128,
            ScoreModKind::None,
        )));
        let device = DeviceInfo::emulator();
        let pointers = Pointers {
            q: 0x1000,
            k: 0x2000,
            v: 0x3000,
            out: 0x4000,
            ..Pointers::default()
        };
        let table = [
            (OutDType::Same, DType::Bf16, 0),
            (OutDType::F16, DType::F16, flags::OUT_F16),
            (OutDType::F32, DType::F32, flags::OUT_F32),
        ];
        for (out_dtype, element, flag) in table {
            let problem = problem(Scales::default()).out_dtype(out_dtype);
            let (shape, softmax) = (
                validate::check_shapes(&problem).unwrap(),
                validate::softmax(&problem).unwrap(),
            );
            let chosen = Chosen::new(&problem, &shape, &softmax, variant, &device).unwrap();
            assert_eq!(chosen.params.flags, flag);
            assert_eq!(chosen.params.q.row_stride, 6 * 128);
            let out_row = 6 * 64 * i64::from(element.bytes());
            assert_eq!(chosen.params.out.row_stride, out_row);
            let [q, k, v, out] =
                hopper::tensor_maps(&problem, variant, &chosen.schedule, &pointers);
            for (map, row_bytes) in [(q, 6 * 128), (k, 3 * 128), (v, 3 * 64)] {
                assert_eq!((map.dtype, map.swizzle), (DType::E4m3, 128));
                assert_eq!((map.extents[0], map.strides[1]), (128, row_bytes));
                assert!(crate::device::emulator::tensor_map(&map).is_ok());
            }
            if element != DType::F32 {
                assert_eq!((out.dtype, out.swizzle, out.extents[0]), (element, 128, 64));
                assert_eq!(out.strides[1], out_row as u64);
                assert!(crate::device::emulator::tensor_map(&out).is_ok());
            }
        }
    }

    #[test]
    fn rows_that_the_copy_engine_cannot_take_are_told_by_their_own_elements() {
        let with = |dim: usize, out_dtype| {
            let mut problem = problem(Scales::default()).out_dtype(out_dtype);
            for layout in [&mut problem.v, &mut problem.out] {
                let [batch, seqlen, heads, _] = layout.shape;
                *layout = crate::TensorLayout::contiguous([batch, seqlen, heads, dim]);
            }
            hopper::obstacle(&problem).map(|obstacle| obstacle.to_string())
        };
        // A head of v has 24 bytes, one of a 16-bit output 48.
        let found = with(24, OutDType::Same).unwrap();
        assert!(
            found.starts_with("v: ") && found.ends_with("72 bytes"),
            "{found}"
        );
        assert_eq!(with(16, OutDType::Same), None);
        // A row of v is padded to 16 bytes; one of the output has 2 * 3 bytes a head.
        let mut problem = problem(Scales::default());
        let [batch, seqlen, heads, _] = problem.v.shape;
        problem.v.shape[3] = 3;
        problem.v.strides = [16 * seqlen as i64 * 4, 64, 16, 1];
        assert_eq!((batch, heads), (2, 3));
        let [batch, seqlen, heads, _] = problem.out.shape;
        problem.out = crate::TensorLayout::contiguous([batch, seqlen, heads, 3]);
        let found = hopper::obstacle(&problem).unwrap().to_string();
        assert!(found.starts_with("out: "), "{found}");
        assert_eq!(hopper::obstacle(&problem.out_dtype(OutDType::F32)), None);
    }
}
