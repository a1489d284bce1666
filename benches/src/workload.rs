//! Tensors of one problem on one device, and the plan that computes it.

use flashtile::{Device, DeviceBuffer, Plan, Pointers, Problem, Result, Stream, TensorLayout};

use crate::inputs::values;

/// What outputs hold before: NaN in every element type.
const UNWRITTEN: u8 = 0xff;

/// Seeds of q, k and v of a set of tensors.
pub fn seeds(set: usize) -> [u32; 3] {
    [1, 2, 3].map(|which| (4 * set + which) as u32)
}

/// A problem's plan, and one or more sets of its tensors.
pub struct Workload<'d> {
    device: &'d dyn Device,
    plan: Plan,
    sets: Vec<[DeviceBuffer<'d>; 4]>,
    workspace: DeviceBuffer<'d>,
}

impl std::fmt::Debug for Workload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload")
            .field("problem", self.plan.problem())
            .field("sets", &self.sets.len())
            .finish_non_exhaustive()
    }
}

impl<'d> Workload<'d> {
    /// Plans a problem with contiguous tensors and uploads one set of random ones.
    ///
    /// # Errors
    /// What planning or the device says.
    pub fn new(device: &'d dyn Device, problem: &Problem) -> Result<Self> {
        Self::with_sets(device, problem, 1)
    }

    /// As [`Workload::new`], with so many sets (at least one), each of other numbers.
    ///
    /// # Errors
    /// As [`Workload::new`].
    pub fn with_sets(device: &'d dyn Device, problem: &Problem, count: usize) -> Result<Self> {
        let plan = problem.plan(device.info())?;
        device.load(plan.variant())?;
        let bytes = problem.out_element().bytes() as usize;
        let upload = |layout: &TensorLayout, seed: u32| {
            let count = layout.elements().unwrap_or(0);
            DeviceBuffer::from_bytes(device, &values(problem.dtype, count, seed))
        };
        let set = |set: usize| -> Result<_> {
            let [q, k, v] = seeds(set);
            Ok([
                upload(&problem.q, q)?,
                upload(&problem.k, k)?,
                upload(&problem.v, v)?,
                DeviceBuffer::uninitialized(device, problem.out.elements().unwrap_or(0) * bytes)?,
            ])
        };
        let workload = Self {
            device,
            sets: (0..count.max(1)).map(set).collect::<Result<_>>()?,
            workspace: DeviceBuffer::uninitialized(device, plan.workspace_bytes())?,
            plan,
        };
        workload.poison()?;
        Ok(workload)
    }

    /// Fills all outputs with NaN.
    ///
    /// # Errors
    /// What the device says.
    pub fn poison(&self) -> Result<()> {
        self.device.synchronize()?;
        for [.., out] in &self.sets {
            if !out.is_empty() {
                // SAFETY: the buffer is allocated and has so many bytes, and the device is idle.
                unsafe { self.device.fill(out.address(), out.len(), UNWRITTEN)? };
            }
        }
        Ok(())
    }

    /// Enqueues one launch on the default stream, over the first set.
    ///
    /// # Errors
    /// What the device says.
    pub fn launch(&self) -> Result<()> {
        self.launch_set(0, Stream::DEFAULT)
    }

    /// Enqueues one launch over a set (counted round and round) on a stream of the device.
    ///
    /// # Errors
    /// What the device says.
    pub(crate) fn launch_set(&self, set: usize, stream: Stream) -> Result<()> {
        let [q, k, v, out] = &self.sets[set % self.sets.len()];
        let pointers = Pointers {
            q: q.address(),
            k: k.address(),
            v: v.address(),
            out: out.address(),
            workspace: self.workspace.address(),
            ..Pointers::default()
        };
        // SAFETY: the buffers have the sizes of the problem's contiguous tensors and live in self. They are freed when
        // the device is idle (that is what dropping a buffer waits for). Launches that share the workspace or
        // an output are on one stream, so one after the other. The stream is the crate's own, and alive.
        unsafe { self.plan.launch(self.device, stream, &pointers) }
    }

    /// The first set's output, once the device is idle.
    ///
    /// # Errors
    /// A fault of a kernel before.
    pub fn output(&self) -> Result<Vec<u8>> {
        self.sets[0][3].to_vec()
    }

    /// Sets of tensors.
    pub fn sets(&self) -> usize {
        self.sets.len()
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}
