//! Outputs into tensors of the caller's.

use std::cell::RefCell;

use candle_core::{
    CpuStorage, CudaStorage, DType, InplaceOp1, Layout, Result, Storage, StorageRef, Tensor,
};

use crate::{attention::Attention, cpu, error::bad, problem::Task};

/// A tensor's memory, to be written.
pub(crate) enum Memory<'a> {
    Cpu(&'a mut CpuStorage),
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "for GPUs"))]
    Cuda(&'a mut CudaStorage),
}

/// See [`Attention::forward_into`].
pub(crate) fn forward(
    attention: &Attention,
    inputs: [&Tensor; 3],
    out: &Tensor,
    lse: Option<&Tensor>,
) -> Result<()> {
    let named = || ["q", "k", "v"].into_iter().zip(inputs);
    if let Some((name, _)) = named()
        .chain(attention.others())
        .find(|(_, t)| t.track_op())
    {
        return Err(bad(
            name,
            "a tensor without gradients (`detach`), since writes into tensors are not tracked",
            "one that candle tracks",
        ));
    }
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
    for (index, (output, written)) in outputs
        .iter()
        .enumerate()
        .filter_map(|(i, o)| Some((i, (*o)?)))
    {
        let other_output = outputs[..index].iter().flatten().copied();
        for (name, tensor) in named().chain(attention.others()).chain(other_output) {
            // Also what would wait for itself: outputs are locked for writing while the others are read.
            if memory(tensor) == memory(written) {
                return Err(bad(
                    output,
                    "a tensor with storage of its own",
                    format!("one that shares its storage with {name}"),
                ));
            }
        }
    }

    if out.elem_count() == 0 {
        // Nothing to write, which candle does not do; the numbers are checked all the same.
        return attention.forward(inputs[0], inputs[1], inputs[2]).map(drop);
    }
    let locked = Locked::new(inputs);
    let storages = locked.storages();
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

/// q, k and v, locked for reading. Tensors of one storage share its lock: waiting for it twice could be waiting for ever.
struct Locked<'a> {
    guards: Vec<(usize, StorageRef<'a>)>,
    of: [usize; 3],
}

impl<'a> Locked<'a> {
    fn new(inputs: [&'a Tensor; 3]) -> Self {
        let of = inputs.map(memory);
        let mut guards: Vec<(usize, StorageRef<'a>)> = Vec::with_capacity(3);
        for (tensor, of) in inputs.into_iter().zip(of) {
            if guards.iter().all(|(key, _)| *key != of) {
                guards.push((of, tensor.storage_and_layout().0));
            }
        }
        Self { guards, of }
    }

    fn storages(&self) -> [&Storage; 3] {
        self.of.map(|of| {
            let position = self.guards.iter().position(|(key, _)| *key == of);
            // Each has a guard: see `new`.
            &*self.guards[position.unwrap_or_default()].1
        })
    }
}

fn elsewhere(argument: &str) -> candle_core::Error {
    bad(
        argument,
        "q, k, v and outputs on one device, the CPU or a GPU",
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
