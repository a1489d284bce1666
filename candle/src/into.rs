//! Outputs into tensors of the caller's.

use std::cell::RefCell;

use candle_core::{
    CpuStorage, CudaStorage, DType, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor,
};

use crate::{attention::Attention, cpu, error::bad, problem::Task};

/// A tensor's memory, to be written.
pub(crate) enum Memory<'a> {
    Cpu(&'a mut CpuStorage),
    Cuda(&'a mut CudaStorage),
}

impl Memory<'_> {
    fn reborrow(&mut self) -> Memory<'_> {
        match self {
            Self::Cpu(storage) => Memory::Cpu(storage),
            Self::Cuda(storage) => Memory::Cuda(storage),
        }
    }
}

/// See [`Attention::forward_into`].
pub(crate) fn forward(
    attention: &Attention,
    inputs: [&Tensor; 3],
    out: &Tensor,
    lse: Option<&Tensor>,
) -> Result<()> {
    let task = Task::new(
        attention,
        inputs.map(Tensor::dtype),
        inputs.map(Tensor::layout),
        Some(out.layout()),
        lse.is_some(),
    )?;
    if out.dtype() != task.dtype {
        return Err(bad("out", task.dtype.as_str(), out.dtype().as_str()));
    }
    if let Some(lse) = lse {
        if lse.dtype() != DType::F32 {
            return Err(bad("lse", "f32", lse.dtype().as_str()));
        }
        if lse.shape() != &task.lse {
            return Err(bad(
                "lse",
                format!("shape {:?}", task.lse),
                format!("shape {:?}", lse.shape()),
            ));
        }
        if !lse.is_contiguous() {
            return Err(bad(
                "lse",
                "a contiguous tensor",
                format!("strides {:?}", lse.stride()),
            ));
        }
    }
    let outputs = [Some(("out", out)), lse.map(|lse| ("lse", lse))];
    let written: Vec<_> = outputs.into_iter().flatten().collect();
    let named = ["q", "k", "v"].into_iter().zip(inputs);
    let read: Vec<_> = named.chain(attention.others()).collect();
    check_writes(&written, &read)?;

    if out.elem_count() == 0 {
        // Nothing to write, which candle does not do; the numbers are checked all the same.
        return attention.forward(inputs[0], inputs[1], inputs[2]).map(drop);
    }
    let locked = Locked::new(&inputs);
    let storages = [0, 1, 2].map(|index| locked.storage(index));
    let [q_l, k_l, v_l] = inputs.map(Tensor::layout);
    write(out, |memory, out_l| match (storages, memory) {
        ([Storage::Cpu(q), Storage::Cpu(k), Storage::Cpu(v)], Memory::Cpu(to)) => {
            let operands = [(q, q_l), (k, k_l), (v, v_l)];
            let outputs = cpu::run(attention, &task.packed(), operands)?;
            let rows = cpu::storage(task.dtype, &outputs.out);
            let (Some(lse), Some(numbers)) = (lse, outputs.lse) else {
                return cpu::write_rows(to, out_l.start_offset(), &task.problem.out, &rows);
            };
            write(lse, |memory, lse_l| match memory {
                Memory::Cpu(CpuStorage::F32(to)) => {
                    to[lse_l.start_offset()..][..numbers.len()].copy_from_slice(&numbers);
                    Ok(())
                }
                _ => Err(elsewhere("lse")),
            })?;
            cpu::write_rows(to, out_l.start_offset(), &task.problem.out, &rows)
        }
        #[cfg(feature = "cuda")]
        ([Storage::Cuda(q), Storage::Cuda(k), Storage::Cuda(v)], Memory::Cuda(to)) => {
            let operands = [(q, q_l), (k, k_l), (v, v_l)];
            let Some(lse) = lse else {
                return crate::cuda::run_into(attention, &task, operands, (to, out_l), None);
            };
            write(lse, |memory, lse_l| match memory {
                Memory::Cuda(lse) => {
                    let lse = Some((lse, lse_l));
                    crate::cuda::run_into(attention, &task, operands, (&mut *to, out_l), lse)
                }
                Memory::Cpu(_) => Err(elsewhere("lse")),
            })
        }
        _ => Err(elsewhere("out")),
    })
}

/// A tensor and what errors call it.
pub(crate) type Named<'a> = (&'static str, &'a Tensor);

/// Refuses to read tensors whose gradient would be lost, and outputs that share their storage with each other or with what is read: also
/// what would wait for itself, since outputs are locked for writing while the others are read.
pub(crate) fn check_writes(written: &[Named<'_>], read: &[Named<'_>]) -> Result<()> {
    if let Some((name, _)) = read.iter().find(|(_, tensor)| tensor.track_op()) {
        return Err(bad(
            name,
            "a tensor without gradients (`detach`), since writes into tensors are not tracked",
            "one that candle tracks",
        ));
    }
    for (index, (output, tensor)) in written.iter().enumerate() {
        for (name, other) in read.iter().chain(&written[..index]) {
            if memory(other) == memory(tensor) {
                return Err(bad(
                    output,
                    "a tensor with storage of its own",
                    format!("one that shares its storage with {name}"),
                ));
            }
        }
    }
    Ok(())
}

/// Tensors, locked for reading. Those of one storage share its lock: waiting for it twice could be waiting for ever.
pub(crate) struct Locked<'a> {
    guards: Vec<(usize, StorageRef<'a>)>,
    of: Vec<usize>,
}

impl<'a> Locked<'a> {
    pub fn new(inputs: &[&'a Tensor]) -> Self {
        let of: Vec<_> = inputs.iter().map(|tensor| memory(tensor)).collect();
        let mut guards: Vec<(usize, StorageRef<'a>)> = Vec::with_capacity(inputs.len());
        for (tensor, of) in inputs.iter().zip(&of) {
            if guards.iter().all(|(key, _)| key != of) {
                guards.push((*of, tensor.storage_and_layout().0));
            }
        }
        Self { guards, of }
    }

    /// One tensor's.
    pub fn storage(&self, index: usize) -> &Storage {
        let of = self.of[index];
        let position = self.guards.iter().position(|(key, _)| *key == of);
        // Each has a guard: see `new`.
        &self.guards[position.unwrap_or_default()].1
    }

    /// One tensor's, on the CPU.
    pub fn cpu(&self, argument: &str, index: usize) -> Result<&CpuStorage> {
        match self.storage(index) {
            Storage::Cpu(storage) => Ok(storage),
            _ => Err(elsewhere(argument)),
        }
    }
}

pub(crate) fn elsewhere(argument: &str) -> candle_core::Error {
    bad(
        argument,
        "all tensors on one device, the CPU or a GPU",
        "another device",
    )
}

/// What tensors with the same storage have in common.
fn memory(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

/// Calls a function with a tensor's memory, locked for writing.
fn write(tensor: &Tensor, function: impl FnMut(Memory<'_>, &Layout) -> Result<()>) -> Result<()> {
    tensor.inplace_op1(&Write(RefCell::new(function)))
}

/// What is done with the memory of up to three tensors.
type WithMemory<'f> = &'f mut dyn FnMut([Option<Memory<'_>>; 3]) -> Result<()>;

/// Calls a function with the memory of up to three tensors, locked for writing: the first of them there is. Each has storage of its own.
pub(crate) fn write_up_to_three(
    tensors: [Option<&Tensor>; 3],
    function: WithMemory<'_>,
) -> Result<()> {
    let [first, second, third] = tensors;
    optional(first, &mut |mut first| {
        optional(second, &mut |mut second| {
            optional(third, &mut |third| {
                let first = first.as_mut().map(Memory::reborrow);
                let second = second.as_mut().map(Memory::reborrow);
                function([first, second, third])
            })
        })
    })
}

fn optional(
    tensor: Option<&Tensor>,
    function: &mut dyn FnMut(Option<Memory<'_>>) -> Result<()>,
) -> Result<()> {
    match tensor {
        Some(tensor) => write(tensor, |memory, _| function(Some(memory))),
        None => function(None),
    }
}

struct Write<F>(RefCell<F>);

impl<F: FnMut(Memory<'_>, &Layout) -> Result<()>> InplaceOp1 for Write<F> {
    fn name(&self) -> &'static str {
        "flash-attn"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        (self.0.borrow_mut())(Memory::Cpu(storage), layout)
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        (self.0.borrow_mut())(Memory::Cuda(storage), layout)
    }
}
