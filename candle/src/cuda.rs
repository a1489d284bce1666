//! Tensors on NVIDIA GPUs: on candle's own stream, in candle's own memory. Nothing is copied, and nothing waits for the device.

use std::sync::{Arc, Mutex};

use candle_core::{
    CudaDevice, CudaStorage, DType, Layout, Result, Storage,
    cuda_backend::{
        CudaDType, CudaStorageSlice,
        cudarc::driver::{
            CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, SyncOnDrop,
            ValidAsZeroBits,
        },
    },
};
use flashtile::{
    Device, Stream,
    cache::{AppendProblem, CachePair, CopyProblem, GatherProblem, RotaryPointers, RowsPointers},
    serving::ServingPointers,
};
use half::{bf16, f16};

use crate::{
    attention::Attention,
    cpu::Metadata,
    error::{bad, from_flashtile},
    into::{Locked, Named},
    plan::Planned,
    problem::Task,
};

/// Computes a task into new memory: out and, if the task wants it, the log-sum-exp.
pub(crate) fn run(
    attention: &Attention,
    task: &Task,
    operands: [(&CudaStorage, &Layout); 3],
) -> Result<(CudaStorage, Option<CudaStorage>)> {
    let device = &operands[0].0.device;
    // Kernels write the rows of queries, which may be fewer than there are tokens.
    let zeroed = task.problem.q_lengths.starts;
    let (out_shape, lse_shape) = (&task.out, &task.lse);
    let mut out = match task.dtype {
        DType::F16 => allocate::<f16>(device, out_shape.elem_count(), zeroed)?,
        DType::BF16 => allocate::<bf16>(device, out_shape.elem_count(), zeroed)?,
        _ => allocate::<f32>(device, out_shape.elem_count(), zeroed)?,
    };
    let mut lse = match task.problem.lse {
        true => Some(allocate::<f32>(device, lse_shape.elem_count(), zeroed)?),
        false => None,
    };
    let out_l = Layout::contiguous(out_shape);
    let lse_l = Layout::contiguous(lse_shape);
    let lse_memory = lse.as_mut().map(|lse| (lse, &lse_l));
    run_into(attention, task, operands, (&mut out, &out_l), lse_memory)?;
    Ok((out, lse))
}

/// Computes a task into memory that there is. The layouts are the task's.
pub(crate) fn run_into(
    attention: &Attention,
    task: &Task,
    operands: [(&CudaStorage, &Layout); 3],
    (out, out_l): (&mut CudaStorage, &Layout),
    lse: Option<(&mut CudaStorage, &Layout)>,
) -> Result<()> {
    let candle_device = operands[0].0.device.clone();
    let stream = &candle_device.cuda_stream();
    let device = device(stream.context())?;
    let plan = Planned::new(task, device.info()).map_err(from_flashtile)?;
    let workspace = match plan.workspace_bytes() {
        0 => None,
        // SAFETY: scratch memory, which the kernels write before they read it.
        bytes => Some(unsafe { candle_device.alloc::<u8>(bytes)? }),
    };
    if attention.checked {
        check_metadata(attention, task)?;
    }
    let others: Vec<_> = attention
        .others()
        .map(|(argument, tensor)| (argument, tensor.storage_and_layout()))
        .collect();

    // Guards of cudarc's: when they are dropped, after the launch, the new uses of the memory are recorded.
    let mut uses = Vec::new();
    let mut address = |argument, storage, layout| -> Result<u64> {
        let (address, used) = read_address(argument, storage, layout, stream)?;
        uses.push(used);
        Ok(address)
    };
    let [q, k, v] = operands;
    let mut pointers = ServingPointers {
        q: address("q", q.0, q.1)?,
        k: address("k", k.0, k.1)?,
        v: address("v", v.0, v.1)?,
        ..ServingPointers::default()
    };
    for (argument, (storage, layout)) in &others {
        let Storage::Cuda(storage) = &**storage else {
            return Err(elsewhere(argument));
        };
        let pointer = match *argument {
            "alibi_slopes" => &mut pointers.alibi,
            "sink" => &mut pointers.sink,
            "bias" => &mut pointers.bias,
            "mask" => &mut pointers.mask,
            "mm_prefix_ranges" => &mut pointers.ranges,
            "seqlens_q" => &mut pointers.q_starts,
            "seqlens_k" => &mut pointers.k_starts,
            "seqused_k" => &mut pointers.k_used,
            "k_scale" => &mut pointers.k_scale,
            "v_scale" => &mut pointers.v_scale,
            _ => &mut pointers.table,
        };
        *pointer = address(argument, storage, layout)?;
    }
    if let Some(workspace) = &workspace {
        let (address, used) = workspace.device_ptr(stream);
        pointers.workspace = address;
        uses.push(used);
    }
    let (out, _out_use) = write_address("out", out, out_l, stream)?;
    pointers.out = out;
    let _lse_use = match lse {
        Some((lse, layout)) => {
            let (address, used) = write_address("lse", lse, layout, stream)?;
            pointers.lse = Some(address);
            Some(used)
        }
        None => None,
    };
    // SAFETY: all memory is of the stream's device: candle's own, which layouts that candle made keep within, and which is borrowed or
    // locked until the launch is enqueued; what is freed or used later, candle and cudarc order after the launch by the guards. Outputs
    // and workspace are borrowed mutably or were just allocated, so nothing else overlaps them. The stream is alive.
    unsafe {
        plan.launch(
            &*device,
            Stream::from_raw(stream.cu_stream().cast()),
            &pointers,
        )
    }
    .map_err(from_flashtile)
}

/// Copies what says where sequences are to the host, and checks it there.
fn check_metadata(attention: &Attention, task: &Task) -> Result<()> {
    let mut here = attention.clone();
    let lengths = [&mut here.q_starts, &mut here.k_starts, &mut here.k_used];
    let lengths = lengths.into_iter().flatten().map(|it| &mut it.numbers);
    let others = [&mut here.table, &mut here.ranges].into_iter().flatten();
    for tensor in lengths.chain(others) {
        *tensor = tensor.to_device(&candle_core::Device::Cpu)?;
    }
    let metadata = Metadata::new(&here, &task.problem)?;
    let checked = task.problem.check_metadata(&metadata.inputs());
    checked.map_err(from_flashtile)
}

/// A tensor that is written, what errors call it, and its layout.
pub(crate) type Written<'a> = (&'static str, &'a mut CudaStorage, &'a Layout);

/// Launches something on tensors, whose addresses it gets by their names: 0 where there is none.
fn launch(
    reads: &[Named<'_>],
    written: Vec<Written<'_>>,
    launch: impl FnOnce(&dyn Device, Stream, &dyn Fn(&str) -> u64) -> flashtile::Result<()>,
) -> Result<()> {
    let Some((_, first, _)) = written.first() else {
        return Ok(());
    };
    let stream = &first.device.cuda_stream();
    let device = device(stream.context())?;
    let tensors: Vec<_> = reads.iter().map(|(_, tensor)| *tensor).collect();
    let locked = Locked::new(&tensors);
    // Guards of cudarc's: when they are dropped, after the launch, the new uses of the memory are recorded.
    let mut uses = Vec::new();
    let mut addresses = Vec::new();
    for (index, (argument, tensor)) in reads.iter().enumerate() {
        let Storage::Cuda(storage) = locked.storage(index) else {
            return Err(elsewhere(argument));
        };
        let (address, used) = read_address(argument, storage, tensor.layout(), stream)?;
        addresses.push((*argument, address));
        uses.push(used);
    }
    for (argument, storage, layout) in written {
        let (address, used) = write_address(argument, storage, layout, stream)?;
        addresses.push((argument, address));
        uses.push(used);
    }
    let address = |name: &str| {
        let found = addresses.iter().find(|(argument, _)| *argument == name);
        found.map_or(0, |(_, address)| *address)
    };
    let stream = Stream::from_raw(stream.cu_stream().cast());
    launch(&*device, stream, &address).map_err(from_flashtile)
}

/// What appending and gathering bind alike.
fn rows(address: &dyn Fn(&str) -> u64) -> RowsPointers {
    RowsPointers {
        k: address("k"),
        v: address("v"),
        k_cache: address("k_cache"),
        v_cache: address("v_cache"),
        k_scale: address("k_scale"),
        v_scale: address("v_scale"),
        slots: address("slot_mapping"),
        used: address("seqused"),
        table: address("block_table"),
        ..RowsPointers::default()
    }
}

/// Writes rows into caches.
pub(crate) fn append(
    problem: &AppendProblem,
    reads: &[Named<'_>],
    written: Vec<Written<'_>>,
) -> Result<()> {
    launch(reads, written, |device, stream, address| {
        let rows = RowsPointers {
            first: address("seqlens"),
            ..rows(address)
        };
        let rotary = RotaryPointers {
            cos: address("cos"),
            sin: address("sin"),
            positions: address("positions"),
            q: address("q"),
            q_out: address("q_out"),
        };
        let plan = problem.plan(device.info())?;
        // SAFETY: all memory is of the stream's device: candle's own, which layouts that candle made keep within, and which is locked until
        // the launch is enqueued; what is freed or used later, candle and cudarc order after the launch by the guards. What is written is
        // locked for that, and shares its storage with nothing else.
        unsafe { plan.launch(device, stream, &rows, &rotary) }
    })
}

/// Reads rows from caches.
pub(crate) fn gather(
    problem: &GatherProblem,
    reads: &[Named<'_>],
    written: Vec<Written<'_>>,
) -> Result<()> {
    launch(reads, written, |device, stream, address| {
        let rows = RowsPointers {
            starts: address("seqlens"),
            ..rows(address)
        };
        let plan = problem.plan(device.info())?;
        // SAFETY: as in `append`.
        unsafe { plan.launch(device, stream, &rows) }
    })
}

/// Copies blocks, from `src` or within `dst`.
pub(crate) fn copy_blocks(
    problem: &CopyProblem,
    reads: &[Named<'_>],
    written: Vec<Written<'_>>,
) -> Result<()> {
    launch(reads, written, |device, stream, address| {
        let (src, dst) = (address("src"), address("dst"));
        let src = if src == 0 { dst } else { src };
        let plan = problem.plan(device.info())?;
        // SAFETY: as in `append`.
        unsafe { plan.launch(device, stream, address("pairs"), &[CachePair { src, dst }]) }
    })
}

/// flashtile's device of a context of candle's: made once, since it holds the kernels that the driver has compiled.
fn device(context: &Arc<CudaContext>) -> Result<Arc<flashtile::CudaDevice>> {
    type Known = Vec<(Arc<CudaContext>, Arc<flashtile::CudaDevice>)>;
    static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().unwrap_or_else(|poison| poison.into_inner());
    let same = |(other, _): &&(Arc<CudaContext>, _)| other.cu_ctx() == context.cu_ctx();
    if let Some((_, device)) = known.iter().find(same) {
        return Ok(device.clone());
    }
    // SAFETY: the context is alive and stays so: it is kept beside the device.
    let device = unsafe { flashtile::CudaDevice::from_raw_context(context.cu_ctx().cast()) };
    let device = Arc::new(device.map_err(from_flashtile)?);
    known.push((context.clone(), device.clone()));
    Ok(device)
}

fn allocate<T: CudaDType + DeviceRepr + ValidAsZeroBits>(
    device: &CudaDevice,
    elements: usize,
    zeroed: bool,
) -> Result<CudaStorage> {
    // The driver has no memory of 0 bytes.
    let elements = elements.max(1);
    let slice = match zeroed {
        true => device.alloc_zeros::<T>(elements)?,
        // SAFETY: the kernel writes every element, and any bits are a number.
        false => unsafe { device.alloc::<T>(elements)? },
    };
    Ok(CudaStorage::wrap_cuda_slice(slice, device.clone()))
}

/// Address of a tensor's first element, to be read.
fn read_address<'a>(
    argument: &str,
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(u64, SyncOnDrop<'a>)> {
    if storage.device.cuda_stream().context().cu_ctx() != stream.context().cu_ctx() {
        return Err(elsewhere(argument));
    }
    fn start<'a, T>(
        slice: &'a CudaSlice<T>,
        stream: &'a CudaStream,
    ) -> (u64, usize, SyncOnDrop<'a>) {
        let (address, used) = slice.device_ptr(stream);
        (address, size_of::<T>(), used)
    }
    let (address, bytes, used) = match &storage.slice {
        CudaStorageSlice::F16(slice) => start(slice, stream),
        CudaStorageSlice::BF16(slice) => start(slice, stream),
        CudaStorageSlice::F32(slice) => start(slice, stream),
        CudaStorageSlice::F8E4M3(slice) => start(slice, stream),
        CudaStorageSlice::U8(slice) => start(slice, stream),
        CudaStorageSlice::U32(slice) => start(slice, stream),
        CudaStorageSlice::I32(slice) => start(slice, stream),
        CudaStorageSlice::I64(slice) => start(slice, stream),
        _ => {
            return Err(bad(
                argument,
                "f16, bf16, f32, f8e4m3, u8, u32, i32 or i64",
                "another type",
            ));
        }
    };
    Ok((address + (layout.start_offset() * bytes) as u64, used))
}

/// Address of an output's first element, to be written.
fn write_address<'a>(
    argument: &str,
    storage: &'a mut CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
) -> Result<(u64, SyncOnDrop<'a>)> {
    if storage.device.cuda_stream().context().cu_ctx() != stream.context().cu_ctx() {
        return Err(elsewhere(argument));
    }
    fn start<'a, T>(
        slice: &'a mut CudaSlice<T>,
        stream: &'a CudaStream,
    ) -> (u64, usize, SyncOnDrop<'a>) {
        let (address, used) = slice.device_ptr_mut(stream);
        (address, size_of::<T>(), used)
    }
    let (address, bytes, used) = match &mut storage.slice {
        CudaStorageSlice::F16(slice) => start(slice, stream),
        CudaStorageSlice::BF16(slice) => start(slice, stream),
        CudaStorageSlice::F32(slice) => start(slice, stream),
        CudaStorageSlice::F8E4M3(slice) => start(slice, stream),
        CudaStorageSlice::U8(slice) => start(slice, stream),
        _ => {
            return Err(bad(
                argument,
                "f16, bf16, f32, f8e4m3 or u8",
                "another type",
            ));
        }
    };
    Ok((address + (layout.start_offset() * bytes) as u64, used))
}

fn elsewhere(argument: &str) -> candle_core::Error {
    bad(
        argument,
        "a tensor on the GPU of q",
        "one that is elsewhere",
    )
}
