//! Partial results over parts of the keys, made one by their log-sum-exps.

use flashtile_abi::{
    DType, MergeParams, MergeVariant,
    divide::Divisor,
    serving::{HeadView, Lengths, MERGE_ROWS, PartialView, merge_flags},
};

use super::tiling;
use crate::{
    device::{Device, DeviceBuffer, DeviceInfo, LaunchConfig, Stream},
    error::{Error, Result},
    extent::{Extent, check_address},
    layout::TensorLayout,
    plan::{MAX_GRID, lse_view, view},
    run::Outputs,
};

/// Merges attention over parts of the keys: `out = sum_p exp(lse_p - lse) out_p`, `lse = ln sum_p exp(lse_p)`. For cascades, shared
/// prefixes, and keys on several devices. A part whose log-sum-exp is -inf is not read; if all are, out is 0 and lse -inf.
///
/// Plain data: nothing is checked until it is planned.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use flashtile::{DType, EmulatorDevice, Error, TensorLayout, element};
/// use flashtile::serving::{MergeInputs, MergeProblem, merge};
///
/// // Two parts of one row of one head: the second weighs three times as much.
/// let problem = MergeProblem::new(DType::F32, 2, TensorLayout::contiguous([1, 1, 1, 2]));
/// let parts = element::encode(DType::F32, &[4.0, 0.0, 0.0, 8.0]);
/// let inputs = MergeInputs { parts: &parts, lse: &[0.0, 3f32.ln()], sink: &[] };
/// let merged = merge(&EmulatorDevice::new(), &problem, &inputs)?;
/// let out = element::gather(DType::F32, &merged.out, &problem.out)?;
/// assert!((out[0] - 1.0).abs() < 1e-6 && (out[1] - 6.0).abs() < 1e-6);
/// assert!((merged.lse.unwrap()[0] - 4f32.ln()).abs() < 1e-6);
/// # }
/// # Ok::<(), flashtile::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergeProblem {
    /// Element type of the parts: f16, bf16 or f32.
    pub dtype: DType,
    /// Element type of out: the parts', or one of the two is f32.
    pub out_dtype: DType,
    /// Number of parts.
    pub count: usize,
    /// One part's outputs [batch, rows, heads, head_dim].
    pub part: TensorLayout,
    /// Elements from one part to the next.
    pub part_stride: i64,
    /// Output, as a part. Its elements must not overlap.
    pub out: TensorLayout,
    /// Whether the merged log-sum-exp is wanted, f32 [batch, heads, rows]. Those of the parts are f32 [parts, batch, heads, rows].
    pub lse: bool,
    /// Whether there are sinks that the parts know nothing of, f32 `[heads]`.
    pub sink: bool,
}

/// Device addresses of one launch: of element 0 of each tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MergePointers {
    /// The parts' outputs.
    pub parts: u64,
    /// Their log-sum-exps, contiguous.
    pub parts_lse: u64,
    /// Output.
    pub out: u64,
    /// Merged log-sum-exp, contiguous. Needed exactly if the problem wants it.
    pub lse: Option<u64>,
    /// Sinks; 0 exactly if there are none.
    pub sink: u64,
}

/// The inputs in the host's memory, as [`Inputs`](crate::Inputs) has its tensors. All parts are in one slice, which starts at their
/// lowest element.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeInputs<'a> {
    /// The parts' outputs.
    pub parts: &'a [u8],
    /// Their log-sum-exps [parts, batch, heads, rows].
    pub lse: &'a [f32],
    /// Sinks; empty if there are none.
    pub sink: &'a [f32],
}

/// Extents of a problem's tensors; none of those that it does not have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MergeExtents {
    pub parts: Extent,
    pub parts_lse: Extent,
    pub out: Extent,
    pub lse: Option<Extent>,
    pub sink: Option<Extent>,
}

/// What a launch will do, decided once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MergePlan {
    problem: MergeProblem,
    pub(super) kernel: MergeKernel,
}

/// A merging kernel, its geometry, and its parameters save the addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct MergeKernel {
    pub variant: &'static MergeVariant,
    pub config: LaunchConfig,
    pub params: MergeParams,
}

impl MergeKernel {
    /// Of parameters without grid.
    pub fn new(
        variant: &'static MergeVariant,
        mut params: MergeParams,
        batch: usize,
    ) -> Result<Self> {
        let heads = params.heads.divisor;
        let rows = params.lengths.longest as u64 * u64::from(heads);
        let row_blocks = rows.div_ceil(u64::from(MERGE_ROWS));
        let blocks = row_blocks.checked_mul(batch as u64);
        let few = rows + u64::from(MERGE_ROWS) <= u64::from(Divisor::MAX_DIVIDEND);
        let blocks = blocks.filter(|&blocks| few && blocks <= MAX_GRID);
        let Some(blocks) = blocks else {
            return Err(Error::bad(
                "out",
                "fewer than 2^31 rows of a sequence in all heads, and so many blocks of rows",
                format!(
                    "{} rows in {heads} heads in {batch} sequences",
                    params.lengths.longest
                ),
            ));
        };
        params.row_blocks = row_blocks as u32;
        Ok(Self {
            variant,
            config: LaunchConfig {
                grid: [blocks as u32, 1, 1],
                block: [variant.threads, 1, 1],
                shared_bytes: variant.shared_bytes,
                cluster: 1,
            },
            params,
        })
    }
}

impl MergeProblem {
    /// Contiguous parts that follow each other, merged into one like them, with its log-sum-exp.
    pub fn new(dtype: DType, count: usize, part: TensorLayout) -> Self {
        Self {
            dtype,
            out_dtype: dtype,
            count,
            part,
            part_stride: part
                .span()
                .and_then(|n| i64::try_from(n).ok())
                .unwrap_or(i64::MAX),
            out: TensorLayout::contiguous(part.shape),
            lse: true,
            sink: false,
        }
    }

    /// Checks the problem and decides how to compute it on such a device. Touches no device.
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong; [`Error::NoVariant`] and [`Error::NoDevice`] as
    /// [`Problem::plan`](crate::Problem::plan).
    pub fn plan(&self, device: &DeviceInfo) -> Result<MergePlan> {
        let kernel_dtype = match (self.dtype, self.out_dtype) {
            (parts, out) if parts == out => parts,
            (DType::F32, out) => out,
            (parts, DType::F32) => parts,
            (parts, out) => {
                return Err(Error::bad(
                    "out_dtype",
                    format!(
                        "{} or f32, since the parts are {}",
                        parts.as_str(),
                        parts.as_str()
                    ),
                    out.as_str(),
                ));
            }
        };
        if kernel_dtype == DType::E4m3 {
            return Err(Error::bad("dtype", "f16, bf16 or f32", "e4m3"));
        }
        let [batch, rows, heads, dim] = self.part.shape;
        if self.out.shape != self.part.shape {
            return Err(Error::bad(
                "out",
                format!("shape {:?}", self.part.shape),
                format!("shape {:?}", self.out.shape),
            ));
        }
        self.part.check("parts", self.dtype.bytes())?;
        self.out.check("out", self.out_dtype.bytes())?;
        self.out.check_distinct("out")?;
        let small = |n: usize| i32::try_from(n).is_ok();
        let lse_bytes = [self.count, batch, heads, rows]
            .iter()
            .try_fold(4i64, |product, &n| {
                product.checked_mul(i64::try_from(n).ok()?)
            });
        let sound = [self.count, batch, rows, heads, dim].into_iter().all(small)
            && heads > 0
            && dim > 0
            && self.span().is_some()
            && lse_bytes.is_some();
        if !sound {
            return Err(Error::bad(
                "parts",
                "at least one head of at least one element, and bytes that can be counted in 63 bits",
                format!(
                    "{} parts of shape {:?}, {} elements apart",
                    self.count, self.part.shape, self.part_stride
                ),
            ));
        }
        let variant = tiling::choose_merge(kernel_dtype, device)?;
        let lse = lse_view(heads, rows);
        let mut flags = 0;
        if self.dtype == DType::F32 {
            flags |= merge_flags::PARTS_F32;
        }
        if self.out_dtype == DType::F32 {
            flags |= merge_flags::OUT_F32;
        }
        let params = MergeParams {
            parts: PartialView {
                out: view(&self.part, self.dtype.bytes()),
                out_stride: self.part_stride * i64::from(self.dtype.bytes()),
                lse,
                lse_stride: (batch * heads * rows) as i64 * 4,
            },
            out: view(&self.out, self.out_dtype.bytes()),
            lse,
            sink: HeadView::default(),
            lengths: Lengths {
                starts: 0,
                used: 0,
                tokens: rows as i32,
                longest: rows as i32,
            },
            heads: Divisor::new(heads as u32),
            count: self.count as u32,
            head_dim: dim as u32,
            row_blocks: 0,
            flags,
        };
        Ok(MergePlan {
            problem: *self,
            kernel: MergeKernel::new(variant, params, batch)?,
        })
    }

    /// Offsets in elements of the lowest and the highest element of all parts. `None` on overflow, of bytes too.
    fn offsets(&self) -> Option<(i64, i64)> {
        let (mut low, mut high) = self.part.offsets()?;
        let parts = i64::try_from(self.count.max(1) - 1).ok()?;
        let last = parts.checked_mul(self.part_stride)?;
        low = low.checked_add(last.min(0))?;
        high = high.checked_add(last.max(0))?;
        let bytes = i64::from(self.dtype.bytes());
        self.part_stride.checked_mul(bytes)?;
        high.checked_sub(low)?.checked_add(1)?.checked_mul(bytes)?;
        Some((low, high))
    }

    /// Elements from the lowest to the highest of all parts.
    fn span(&self) -> Option<usize> {
        let (low, high) = self.offsets()?;
        match self.part.is_empty() || self.count == 0 {
            true => Some(0),
            false => usize::try_from(high - low + 1).ok(),
        }
    }

    /// The problem has passed its checks.
    pub(crate) fn extents(&self) -> MergeExtents {
        let no_parts = self.part.is_empty() || self.count == 0;
        let rows = self.rows();
        MergeExtents {
            parts: Extent::new(self.offsets(), no_parts, self.dtype.bytes()),
            parts_lse: Extent::numbers(rows.saturating_mul(self.count), 4),
            out: Extent::tensor(&self.out, self.out_dtype.bytes()),
            lse: self.lse.then(|| Extent::numbers(rows, 4)),
            sink: self.sink.then(|| Extent::numbers(self.part.shape[2], 4)),
        }
    }

    /// Rows of all heads and sequences.
    fn rows(&self) -> usize {
        self.part.shape[..3].iter().product()
    }
}

impl MergePlan {
    /// The problem.
    pub fn problem(&self) -> &MergeProblem {
        &self.problem
    }

    /// The kernel.
    pub fn variant(&self) -> &'static MergeVariant {
        self.kernel.variant
    }

    /// The same for log-sum-exps that are some rows of a tensor [batch, heads, rows].
    pub(crate) fn with_lse_rows(mut self, rows: usize) -> Self {
        self.kernel.params.lse = lse_view(self.problem.part.shape[2], rows);
        self
    }

    /// Grid, block and dynamic shared memory of the kernel.
    pub fn config(&self) -> &LaunchConfig {
        &self.kernel.config
    }

    /// The kernel's parameters for these addresses.
    ///
    /// # Errors
    /// As [`Plan::params`](crate::Plan::params).
    pub fn params(&self, pointers: &MergePointers) -> Result<MergeParams> {
        let problem = &self.problem;
        let mut params = self.kernel.params;
        let has = problem.extents();
        check_wanted("lse", problem.lse, pointers.lse.is_some())?;
        for (argument, extent, ptr) in [
            ("parts", Some(has.parts), pointers.parts),
            ("parts_lse", Some(has.parts_lse), pointers.parts_lse),
            ("out", Some(has.out), pointers.out),
            ("lse", has.lse, pointers.lse.unwrap_or(0)),
            ("sink", has.sink, pointers.sink),
        ] {
            check_address(argument, extent, ptr)?;
        }
        params.lse.ptr = pointers.lse.unwrap_or(0);
        params.parts.out.ptr = pointers.parts;
        params.parts.lse.ptr = pointers.parts_lse;
        params.out.ptr = pointers.out;
        params.sink.ptr = pointers.sink;
        Ok(params)
    }

    /// Enqueues the kernel on a stream. Does not allocate and does not wait, as [`Plan::launch`](crate::Plan::launch).
    ///
    /// # Errors
    /// As [`MergePlan::params`], and whatever the device says.
    ///
    /// # Safety
    /// As [`Plan::launch`](crate::Plan::launch).
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        pointers: &MergePointers,
    ) -> Result<()> {
        let MergeKernel {
            variant, config, ..
        } = &self.kernel;
        if config.grid[0] == 0 {
            return Ok(());
        }
        let params = self.params(pointers)?;
        // SAFETY: the caller vouches for the addresses and the stream; the parameters are those of the variant's entry point, and the
        // plan's geometry keeps the kernel within the tensors.
        unsafe { device.launch(variant, config, params.as_bytes(), stream) }
    }
}

/// Refuses an address of what the problem does not have, or none of what it has.
pub(super) fn check_wanted(argument: &'static str, wanted: bool, given: bool) -> Result<()> {
    match (wanted, given) {
        (true, false) => Err(Error::bad(
            argument,
            "an address, since the problem wants it",
            "none",
        )),
        (false, true) => Err(Error::bad(
            argument,
            "no address, since the problem does not want it",
            "one",
        )),
        _ => Ok(()),
    }
}

/// Merges on a device: uploads, runs, downloads, and frees what it allocated.
///
/// # Errors
/// As [`MergeProblem::plan`], [`Error::BadInput`] for slices that are too short, and the device's own errors.
pub fn merge(
    device: &dyn Device,
    problem: &MergeProblem,
    inputs: &MergeInputs<'_>,
) -> Result<Outputs> {
    let plan = problem.plan(device.info())?;
    let has = problem.extents();
    let numbers = |argument, wanted: Option<Extent>, found: &[f32]| {
        let wanted = wanted.map_or(0, |extent| extent.bytes() / 4);
        match found.len() < wanted {
            true => Err(Error::bad(
                argument,
                format!("a length of at least {wanted}"),
                found.len().to_string(),
            )),
            false => upload(device, &found[..wanted]),
        }
    };
    let parts = DeviceBuffer::from_bytes(device, has.parts.of("parts", inputs.parts)?)?;
    let parts_lse = numbers("parts_lse", Some(has.parts_lse), inputs.lse)?;
    let sink = numbers("sink", has.sink, inputs.sink)?;
    let out = DeviceBuffer::zeroed(device, has.out.bytes())?;
    let lse = match has.lse {
        Some(lse) => Some(DeviceBuffer::zeroed(device, lse.bytes())?),
        None => None,
    };
    let pointers = MergePointers {
        parts: has.parts.origin(parts.address()),
        parts_lse: parts_lse.address(),
        out: has.out.origin(out.address()),
        lse: lse.as_ref().map(DeviceBuffer::address),
        sink: sink.address(),
    };
    // SAFETY: every buffer is allocated on this device, holds its tensor's whole extent (inputs were checked, the others sized by it),
    // and is only read again after the device is idle.
    unsafe { plan.launch(device, Stream::DEFAULT, &pointers)? };
    device.synchronize()?;
    Ok(Outputs {
        out: out.to_vec()?,
        lse: lse.map(|lse| download(&lse)).transpose()?,
    })
}

/// Numbers of four bytes.
pub(super) trait Word: Copy {
    fn bytes(self) -> [u8; 4];
}

impl Word for f32 {
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

impl Word for i32 {
    fn bytes(self) -> [u8; 4] {
        self.to_le_bytes()
    }
}

/// Device memory that holds these numbers.
pub(super) fn upload<'d, T: Word>(
    device: &'d dyn Device,
    numbers: &[T],
) -> Result<DeviceBuffer<'d>> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|&x| x.bytes()).collect();
    DeviceBuffer::from_bytes(device, &bytes)
}

/// The numbers that device memory holds.
pub(super) fn download(buffer: &DeviceBuffer<'_>) -> Result<Vec<f32>> {
    let bytes = buffer.to_vec()?;
    let (words, _) = bytes.as_chunks::<4>();
    Ok(words.iter().map(|&word| f32::from_le_bytes(word)).collect())
}
