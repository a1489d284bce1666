//! Attention as one of candle's operations.

use std::sync::{Arc, Mutex};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Storage, backend::BackendStorage};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;

use crate::{attention::Attention, cpu, problem::Task};

/// Where the log-sum-exp is left: candle's operations have one output.
pub(crate) type Slot = Arc<Mutex<Option<(Storage, Shape)>>>;

pub(crate) struct Operation {
    attention: Attention,
    lse: Option<Slot>,
}

impl Operation {
    pub fn new(attention: Attention, lse: Option<Slot>) -> Self {
        Self { attention, lse }
    }

    fn leave(&self, lse: Option<Storage>, shape: Shape) {
        if let (Some(slot), Some(lse)) = (&self.lse, lse) {
            *slot.lock().unwrap_or_else(|poison| poison.into_inner()) = Some((lse, shape));
        }
    }

    fn task<S: BackendStorage>(&self, operands: [(&S, &Layout); 3]) -> Result<Task> {
        Task::new(
            &self.attention,
            operands.map(|(storage, _)| storage.dtype()),
            operands.map(|(_, layout)| layout),
            None,
            self.lse.is_some(),
        )
    }
}

impl CustomOp3 for Operation {
    fn name(&self) -> &'static str {
        "flash-attn"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let operands = [(q, q_l), (k, k_l), (v, v_l)];
        let task = self.task(operands)?;
        let outputs = cpu::run(&self.attention, &task, operands)?;
        let lse = outputs.lse.map(|lse| Storage::Cpu(CpuStorage::F32(lse)));
        self.leave(lse, task.lse);
        Ok((cpu::storage(task.dtype, &outputs.out), task.out))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_l: &Layout,
        k: &CudaStorage,
        k_l: &Layout,
        v: &CudaStorage,
        v_l: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let operands = [(q, q_l), (k, k_l), (v, v_l)];
        let task = self.task(operands)?;
        let (out, lse) = crate::cuda::run(&self.attention, &task, operands)?;
        self.leave(lse.map(Storage::Cuda), task.lse);
        Ok((out, task.out))
    }
}
