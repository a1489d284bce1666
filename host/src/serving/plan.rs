//! From a problem to a launch.

use flashtile_abi::{
    Divisor, MergeParams, ServingParams, ServingVariant, TensorView,
    serving::{
        CacheView, HeadView,
        flags::{K_ALIGNED, OUT_ALIGNED, Q_ALIGNED, V_ALIGNED},
        merge_flags,
    },
};

use super::{
    merge::MergeKernel,
    params::{params, partial_shape},
    pointers::ServingPointers,
    problem::ServingProblem,
    tiling, validate,
};
use crate::{
    DType, Entry,
    device::{Device, DeviceInfo, LaunchConfig, Stream},
    error::{Error, Result},
    plan::check_pointer,
};

/// What launches of a [`ServingProblem`] will do, decided once: the kernels, their grids, and their parameters save the addresses. Good
/// for every launch of the same problem on devices of the same kind, whatever the sequences' lengths are then: grids are made for the
/// longest that the problem allows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServingPlan {
    problem: ServingProblem,
    variant: &'static ServingVariant,
    config: LaunchConfig,
    params: ServingParams,
    /// Makes one of the parts that keys are split into.
    merge: Option<MergeKernel>,
    workspace: Workspace,
}

/// Where partial results are in the workspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Workspace {
    /// Bytes before the log-sum-exps.
    lse: usize,
    bytes: usize,
}

/// What all pieces of a workspace are aligned to, and the workspace itself.
const ALIGNMENT: usize = 256;

impl ServingProblem {
    /// Checks the problem and decides how to compute it on such a device. Touches no device, and no numbers that say where sequences
    /// are ([`ServingProblem::check_metadata`] checks them where the host has them).
    ///
    /// # Errors
    /// [`Error::BadInput`] names the argument that is wrong; [`Error::NoVariant`] what no kernel has; [`Error::NoDevice`] a device that
    /// cannot run the kernels.
    pub fn plan(&self, device: &DeviceInfo) -> Result<ServingPlan> {
        let sizes = validate::check(self)?;
        let variant = tiling::choose(self, &sizes, device)?;
        let tiling = tiling::share(self, &sizes, &variant.tile, device)?;
        let params = params(self, &sizes, &tiling)?;
        let (merge, workspace) = match tiling.splits {
            0 | 1 => (None, Workspace::default()),
            splits => {
                let workspace = Workspace::new(self, splits)?;
                (Some(merge(self, &params, splits, device)?), workspace)
            }
        };
        Ok(ServingPlan {
            problem: *self,
            variant,
            config: LaunchConfig {
                grid: [tiling.blocks, 1, 1],
                block: [variant.threads, 1, 1],
                shared_bytes: variant.shared_bytes,
                cluster: 1,
            },
            params,
            merge,
            workspace,
        })
    }
}

/// The merging kernel for so many parts of a launch.
pub(super) fn merge(
    problem: &ServingProblem,
    params: &ServingParams,
    count: u32,
    device: &DeviceInfo,
) -> Result<MergeKernel> {
    let variant = tiling::choose_merge(problem.dtype, device)?;
    let mut flags = merge_flags::PARTS_F32;
    if problem.out_element() == DType::F32 {
        flags |= merge_flags::OUT_F32;
    }
    let params = MergeParams {
        parts: params.partial,
        out: params.out,
        lse: params.lse,
        sink: HeadView::default(),
        lengths: params.q_lengths,
        heads: Divisor::new(params.heads_q),
        count,
        head_dim: params.head_dim_v,
        row_blocks: 0,
        flags,
    };
    MergeKernel::new(variant, params, problem.batch)
}

impl Workspace {
    fn new(problem: &ServingProblem, splits: u32) -> Result<Self> {
        let [blocks, rows, heads, dim] = partial_shape(problem);
        let product = |factors: &[usize]| {
            factors
                .iter()
                .try_fold(4usize, |bytes, &n| bytes.checked_mul(n))
        };
        let splits = splits as usize;
        let aligned = |bytes: usize| bytes.checked_next_multiple_of(ALIGNMENT);
        let lse = product(&[splits, blocks, rows, heads, dim]).and_then(aligned);
        let of_lse = product(&[splits, blocks, heads, rows]).and_then(aligned);
        let bytes = lse.and_then(|lse| lse.checked_add(of_lse?));
        match (lse, bytes) {
            (Some(lse), Some(bytes)) if i64::try_from(bytes).is_ok() => Ok(Self { lse, bytes }),
            _ => Err(Error::bad(
                "splits",
                "partial results whose bytes can be counted in 63 bits",
                format!("{splits} parts of shape {:?}", problem.out.shape),
            )),
        }
    }
}

impl ServingPlan {
    /// The problem.
    pub fn problem(&self) -> &ServingProblem {
        &self.problem
    }

    /// The attention kernel.
    pub fn variant(&self) -> &'static ServingVariant {
        self.variant
    }

    /// The kernels that a launch runs, in order: load them before a graph capture ([`Device::load`]).
    pub fn kernels(&self) -> impl Iterator<Item = &'static Entry> {
        let merge = self.merge.map(|merge| &merge.variant.entry);
        std::iter::once(&self.variant.entry).chain(merge)
    }

    /// Grid, block and dynamic shared memory of the attention kernel.
    pub fn config(&self) -> &LaunchConfig {
        &self.config
    }

    /// Those of the merging kernel, if keys are split.
    pub fn merge_config(&self) -> Option<&LaunchConfig> {
        self.merge.as_ref().map(|merge| &merge.config)
    }

    /// Parts that the keys are split into.
    pub fn splits(&self) -> u32 {
        self.params.splits
    }

    /// Whether there is nothing to compute (no sequence, or none with room for a query): [`ServingPlan::launch`] then returns without
    /// touching the device.
    pub fn is_empty(&self) -> bool {
        self.config.grid[0] == 0
    }

    /// Bytes of scratch memory that a launch needs, aligned to 256: exactly those of the partial results, 0 if keys are not split.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes
    }

    /// The parameters of the attention kernel, with addresses 0 and no alignment flags.
    pub(super) fn params_template(&self) -> &ServingParams {
        &self.params
    }

    /// The parameters of the attention kernel, and of the merging kernel if keys are split, for these addresses.
    ///
    /// # Errors
    /// [`Error::BadInput`] for an address that is 0 although the tensor has elements, not 0 although the problem has no such tensor, not
    /// a multiple of the element's size, or from which the tensor would leave the address space.
    pub fn params(
        &self,
        pointers: &ServingPointers,
    ) -> Result<(ServingParams, Option<MergeParams>)> {
        let problem = &self.problem;
        pointers.check(problem)?;
        let mut params = self.params;
        params.q.ptr = pointers.q;
        params.k.ptr = pointers.k;
        params.v.ptr = match problem.latent {
            true => pointers.k,
            false => pointers.v,
        };
        params.out.ptr = pointers.out;
        params.lse.ptr = pointers.lse.unwrap_or(0);
        params.q_lengths.starts = pointers.q_starts;
        params.q_lengths.used = pointers.q_used;
        params.k_lengths.starts = pointers.k_starts;
        params.k_lengths.used = pointers.k_used;
        params.pages.table = pointers.table;
        params.k_scale.ptr = pointers.k_scale;
        params.v_scale.ptr = match problem.latent {
            true => pointers.k_scale,
            false => pointers.v_scale,
        };
        params.alibi.ptr = pointers.alibi;
        params.bias.ptr = pointers.bias;
        params.mask.ptr = pointers.mask;
        params.ranges.ptr = pointers.ranges;
        let tensor = |view: &TensorView| {
            [
                view.ptr as i64,
                view.batch_stride,
                view.row_stride,
                view.head_stride,
            ]
        };
        let aligned = |numbers: &[i64]| numbers.iter().all(|x| x % 16 == 0);
        let element = i64::from(problem.kv_dtype.bytes());
        let cache = |view: &CacheView| {
            let numbers = [
                view.ptr as i64,
                view.block_stride,
                view.row_stride,
                view.head_stride,
                view.chunk_stride,
            ];
            view.element_stride == element && aligned(&numbers)
        };
        for (flag, is_aligned) in [
            (Q_ALIGNED, aligned(&tensor(&params.q))),
            (K_ALIGNED, cache(&params.k)),
            (V_ALIGNED, cache(&params.v)),
            (OUT_ALIGNED, aligned(&tensor(&params.out))),
        ] {
            if is_aligned {
                params.flags |= flag;
            }
        }
        let Some(merge) = &self.merge else {
            params.sink.ptr = pointers.sink;
            return Ok((params, None));
        };
        if !self.is_empty() {
            let last = (self.workspace.bytes - 1) as i64;
            let none = self.workspace.bytes == 0;
            check_pointer("workspace", none, pointers.workspace, 1, 0, last)?;
            if !pointers.workspace.is_multiple_of(ALIGNMENT as u64) {
                return Err(Error::bad(
                    "workspace",
                    format!("an address that is a multiple of {ALIGNMENT}"),
                    format!("{:#x}", pointers.workspace),
                ));
            }
        }
        params.partial.out.ptr = pointers.workspace;
        params.partial.lse.ptr = pointers.workspace + self.workspace.lse as u64;
        let mut merge = merge.params;
        merge.parts = params.partial;
        merge.out.ptr = params.out.ptr;
        merge.lse.ptr = params.lse.ptr;
        // The parts know nothing of the sink.
        merge.sink.ptr = pointers.sink;
        merge.lengths = params.q_lengths;
        Ok((params, Some(merge)))
    }

    /// Enqueues the kernels on a stream. Does not allocate, wait, or read what the device holds, so that the call can be captured in a
    /// CUDA graph and replayed with other lengths, starts and pages (call [`Device::load`] on [`ServingPlan::kernels`] beforehand).
    ///
    /// # Errors
    /// As [`ServingPlan::params`], and whatever the device says. A kernel's own faults may surface only at a later call.
    ///
    /// # Safety
    /// Every address must be that of device memory which holds the tensor's whole extent, stays allocated until the kernels have
    /// finished, and is neither written (inputs) nor accessed at all (out, lse, workspace) by anything else meanwhile; out, lse and
    /// workspace overlap no other tensor. `stream` must be a live stream of the device. Whatever lengths, starts, pages and ranges
    /// are, nothing outside of the tensors is accessed.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        stream: Stream,
        pointers: &ServingPointers,
    ) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        let (params, merge) = self.params(pointers)?;
        // SAFETY: the caller's promise.
        unsafe { self.enqueue(device, stream, &params, merge.as_ref()) }
    }

    /// Enqueues the kernels with their parameters.
    ///
    /// # Safety
    /// As [`ServingPlan::launch`]; the parameters are this plan's.
    pub(super) unsafe fn enqueue(
        &self,
        device: &dyn Device,
        stream: Stream,
        params: &ServingParams,
        merge: Option<&MergeParams>,
    ) -> Result<()> {
        // SAFETY: the caller vouches for the addresses and the stream; the parameters are those of the variant's entry point, and the
        // plan's geometry keeps the kernel within the tensors.
        unsafe { device.launch(self.variant, &self.config, params.as_bytes(), stream)? };
        if let (Some(kernel), Some(params)) = (&self.merge, merge) {
            // SAFETY: as above; the parts are in the workspace, for which the caller vouches.
            unsafe {
                device.launch(kernel.variant, &kernel.config, params.as_bytes(), stream)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ArchChoice, CausalAlignment, TensorLayout,
        serving::{BiasType, CacheLayout, MaskType, PageTable, PairLayout, Splits},
    };
    use flashtile_abi::serving::flags::MODIFIED;

    /// One new token for each of some sequences, over pages of 16.
    fn decode(batch: usize, heads: [usize; 2], dim: usize) -> ServingProblem {
        let [heads_q, heads_kv] = heads;
        let cache = CacheLayout::contiguous([999, 16, heads_kv, dim]);
        ServingProblem::new(
            DType::Bf16,
            batch,
            TensorLayout::contiguous([batch, 1, heads_q, dim]),
            cache,
            cache,
        )
        .pages(PageTable::contiguous(256))
        .k_used(4096)
        .lse(true)
    }

    fn h200() -> DeviceInfo {
        DeviceInfo {
            kind: crate::DeviceKind::Cuda,
            multiprocessors: 132,
            ..DeviceInfo::emulator()
        }
    }

    #[test]
    fn few_rows_have_their_kernels() {
        for (queries, heads, name) in [
            (1, [32, 8], "decode_bf16_d128_sm80"),
            (16, [4, 4], "decode_bf16_d128_sm80"),
            (17, [4, 4], "serving_bf16_d128_sm80"),
            (3, [48, 8], "serving_bf16_d128_sm80"),
            (2, [48, 8], "decode_bf16_d128_sm80"),
        ] {
            let mut problem = decode(2, heads, 100);
            problem.q = TensorLayout::contiguous([2, queries, heads[0], 100]);
            problem.out = problem.q;
            problem.q_lengths.longest = queries;
            assert_eq!(problem.plan(&h200()).unwrap().variant().name, name);
        }
    }

    /// Wide latent caches: rows that the smallest tile does not take go to Hopper's, where there is one, unless the problem says otherwise.
    #[test]
    fn latent_caches_have_kernels_of_both_tiers() {
        let cache = CacheLayout::contiguous([999, 64, 1, 576]);
        let hopper = h200();
        let mut ampere = h200();
        ampere.compute_capability = (8, 0);
        let name = |device: &DeviceInfo, heads, arch, width| {
            let q = TensorLayout::contiguous([2, 1, heads, 64 + width]);
            let mut cache = cache;
            cache.shape[3] = 64 + width;
            let problem = ServingProblem::latent(DType::Bf16, 2, q, cache, width)
                .pages(PageTable::contiguous(64))
                .k_used(4096)
                .arch(arch);
            problem.plan(device).map(|plan| plan.variant().name)
        };
        let auto = ArchChoice::Auto;
        for heads in [17, 64, 65, 128] {
            assert_eq!(name(&hopper, heads, auto, 512), Ok("mla_bf16_m64_sm90a"));
            assert_eq!(
                name(&hopper, heads, ArchChoice::Sm80, 512),
                Ok("mla_bf16_m64_sm80")
            );
            assert_eq!(name(&ampere, heads, auto, 512), Ok("mla_bf16_m64_sm80"));
        }
        for heads in [1, 16] {
            assert_eq!(name(&hopper, heads, auto, 512), Ok("mla_bf16_m16_sm80"));
            assert_eq!(
                name(&hopper, heads, ArchChoice::Sm90a, 512),
                Ok("mla_bf16_m64_sm90a")
            );
        }
        // Narrow ones have the kernels of keys and values that are apart.
        assert_eq!(
            name(&hopper, 64, auto, 128),
            Ok("serving_bf16_d192x128_sm80")
        );
        assert_eq!(
            name(&hopper, 65, auto, 128),
            Ok("serving_bf16_d192x128_sm90a")
        );
        assert!(name(&ampere, 64, ArchChoice::Sm90a, 512).is_err());
    }

    /// The workspace is that of the parts: f32 rows of whole 16 bytes, and their log-sum-exps.
    #[test]
    fn a_workspace_is_as_long_as_the_parts() {
        let plan = |splits| {
            let problem = decode(3, [6, 2], 70).splits(splits);
            problem.plan(&h200()).unwrap()
        };
        assert_eq!(plan(Splits::One).workspace_bytes(), 0);
        assert_eq!(plan(Splits::One).kernels().count(), 1);
        let split = plan(Splits::Keys(1000));
        // Of 64 keys each, as the tile has: 1024 in each part.
        assert_eq!(split.splits(), 4);
        let rows = 4 * 3 * 6;
        let aligned = |bytes: usize| bytes.next_multiple_of(256);
        assert_eq!(
            split.workspace_bytes(),
            aligned(rows * 72 * 4) + aligned(rows * 4)
        );
        assert_eq!(split.kernels().count(), 2);
    }

    #[test]
    fn a_small_batch_is_split_until_the_device_is_full() {
        let splits = |batch| {
            let problem = decode(batch, [32, 8], 128);
            problem.plan(&h200()).unwrap().splits()
        };
        // 64 tiles of keys: at most 16 parts.
        assert_eq!(splits(1), 16);
        assert!((2..=5).contains(&splits(8)), "{}", splits(8));
        assert_eq!(splits(64), 1);
    }

    #[test]
    fn modified_scores_are_flagged() {
        let flags = |problem: &ServingProblem| problem.plan(&h200()).unwrap().params.flags;
        let plain = decode(1, [1, 1], 64);
        assert_eq!(flags(&plain) & MODIFIED, 0);
        assert_eq!(
            flags(&plain.causal(CausalAlignment::BottomRight)) & MODIFIED,
            0
        );
        for problem in [
            plain.softcap(1.0),
            plain.alibi(false),
            plain.scale(0.0),
            plain.scale(-1.0),
            plain.scale(f32::MAX),
            plain.scale(f32::MIN_POSITIVE / 4.0),
            plain.bias(PairLayout::bias(BiasType::Same, [1; 4])),
            plain.mask(PairLayout::mask(MaskType::Byte, [1; 4])),
        ] {
            assert_ne!(flags(&problem) & MODIFIED, 0, "{problem:?}");
        }
    }

    #[test]
    fn aligned_rows_are_flagged() {
        let flags = |k, v, ptr| {
            let mut problem = decode(1, [1, 1], 64);
            (problem.k, problem.v) = (k, v);
            let plan = problem.splits(Splits::One).plan(&h200()).unwrap();
            let pointers = ServingPointers {
                q: 0x1000,
                k: ptr,
                v: ptr,
                out: 0x1000,
                lse: Some(0x1000),
                k_used: 0x1000,
                table: 0x1000,
                ..ServingPointers::default()
            };
            let (params, _) = plan.params(&pointers).unwrap();
            params.flags & (K_ALIGNED | V_ALIGNED)
        };
        let shape = [999, 16, 1, 64];
        let plain = CacheLayout::contiguous(shape);
        assert_eq!(flags(plain, plain, 0x1000), K_ALIGNED | V_ALIGNED);
        assert_eq!(flags(plain, plain, 0x1008), 0);
        // vLLM's keys are made of whole pieces, its values of single elements.
        let (keys, values) = (
            CacheLayout::chunked_keys(DType::F16, shape),
            CacheLayout::transposed(shape),
        );
        assert_eq!(flags(keys, values, 0x1000), K_ALIGNED);
        let mut odd = plain;
        odd.strides[1] += 1;
        assert_eq!(flags(odd, plain, 0x1000), V_ALIGNED);
    }
}
