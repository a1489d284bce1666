//! Tensors of one problem on one device, and the plan that computes it.

use flashtile::{
    ArchChoice, Device, DeviceBuffer, Entry, Plan, Pointers, Problem, Result, Stream, TensorLayout,
    serving::{ServingPlan, ServingPointers},
};

use crate::{
    cell::{Cache, Cell},
    inputs::values,
};

/// What outputs hold before: NaN in every element type.
const UNWRITTEN: u8 = 0xff;

/// Seeds of q, k and v of a set of tensors.
pub fn seeds(set: usize) -> [u32; 3] {
    [1, 2, 3].map(|which| (4 * set + which) as u32)
}

/// A problem's plan, and one or more sets of its tensors.
pub struct Workload<'d> {
    device: &'d dyn Device,
    plan: Planned,
    /// q, k, v and out. There are no values where they are elements of keys.
    sets: Vec<[DeviceBuffer<'d>; 4]>,
    /// Where sequences are: starts of queries and of keys, lengths of keys, table.
    numbers: [DeviceBuffer<'d>; 4],
    workspace: DeviceBuffer<'d>,
}

/// What is launched.
enum Planned {
    Dense(Box<Plan>),
    Serving(Box<ServingPlan>),
}

impl Planned {
    fn workspace_bytes(&self) -> usize {
        match self {
            Self::Dense(plan) => plan.workspace_bytes(),
            Self::Serving(plan) => plan.workspace_bytes(),
        }
    }
}

impl std::fmt::Debug for Workload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload")
            .field("kernel", &self.kernel().name)
            .field("sets", &self.sets.len())
            .finish_non_exhaustive()
    }
}

/// Where page `at` of all sequences' pages in order is, out of `blocks`: nearly a golden section of them further than the one before, so
/// that neighbours are apart.
fn page_of(at: usize, blocks: usize) -> usize {
    let common = |mut a: usize, mut b: usize| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let first = (blocks as f64 * 0.618) as usize + 1;
    let step = (first..).find(|&step| common(step, blocks) == 1);
    (at as u128 * step.unwrap_or(1) as u128 % blocks.max(1) as u128) as usize
}

/// The rows of `batch` sequences, without gaps, as `blocks` pages of `page` bytes: each sequence begins a page of its own.
fn into_pages(rows: &[u8], batch: usize, page: usize, blocks: usize) -> Vec<u8> {
    let mut pages = vec![0; blocks * page];
    let per_sequence = blocks / batch.max(1);
    let sequence = rows.len() / batch.max(1);
    for (b, rows) in rows.chunks(sequence.max(1)).enumerate() {
        for (at, rows) in rows.chunks(page.max(1)).enumerate() {
            let first = page_of(b * per_sequence + at, blocks) * page;
            pages[first..first + rows.len()].copy_from_slice(rows);
        }
    }
    pages
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
        let sets = (0..count.max(1)).map(set).collect::<Result<_>>()?;
        Self::planned(device, Planned::Dense(Box::new(plan)), sets, [&[]; 4])
    }

    /// A cell's tensors, so many sets (at least one), each of other numbers.
    ///
    /// # Errors
    /// As [`Workload::new`].
    pub fn of_cell(
        device: &'d dyn Device,
        cell: &Cell,
        arch: ArchChoice,
        count: usize,
    ) -> Result<Self> {
        let Some(problem) = cell.serving_problem(arch) else {
            return Self::with_sets(device, &cell.problem(arch), count);
        };
        let plan = problem.plan(device.info())?;
        for kernel in plan.kernels() {
            device.load(kernel)?;
        }
        let s = &cell.shape;
        let width = cell.dtype.bytes() as usize;
        let blocks = problem.k.shape[0];
        let cache = |dim: usize, seed: u32| {
            let elements = s.batch * s.seqlen_k * s.heads_kv * dim;
            let rows = values(cell.dtype, elements, seed);
            let bytes = match cell.cache {
                Cache::Dense | Cache::Packed => rows,
                Cache::Pages(page) | Cache::Latent(page) => {
                    into_pages(&rows, s.batch, page * s.heads_kv * dim * width, blocks)
                }
            };
            DeviceBuffer::from_bytes(device, &bytes)
        };
        let out = s.batch * s.seqlen_q * s.heads_q * s.head_dim_v;
        let out = out * problem.out_element().bytes() as usize;
        let set = |set: usize| -> Result<_> {
            let [q, k, v] = seeds(set);
            let queries = s.batch * s.seqlen_q * s.heads_q * s.head_dim_qk;
            Ok([
                DeviceBuffer::from_bytes(device, &values(cell.dtype, queries, q))?,
                cache(s.head_dim_qk, k)?,
                match cell.cache {
                    Cache::Latent(_) => DeviceBuffer::uninitialized(device, 0)?,
                    _ => cache(s.head_dim_v, v)?,
                },
                DeviceBuffer::uninitialized(device, out)?,
            ])
        };
        let sets = (0..count.max(1)).map(set).collect::<Result<_>>()?;
        let starts = |tokens: usize| (0..=s.batch).map(|b| (b * tokens) as i32).collect();
        let none = Vec::new;
        let numbers: [Vec<i32>; 4] = match cell.cache {
            Cache::Packed => [starts(s.seqlen_q), starts(s.seqlen_k), none(), none()],
            Cache::Pages(_) | Cache::Latent(_) => {
                let used = vec![s.seqlen_k as i32; s.batch];
                let table = (0..blocks).map(|at| page_of(at, blocks) as i32).collect();
                [none(), none(), used, table]
            }
            Cache::Dense => [none(), none(), none(), none()],
        };
        let numbers: [&[i32]; 4] = std::array::from_fn(|at| &numbers[at][..]);
        Self::planned(device, Planned::Serving(Box::new(plan)), sets, numbers)
    }

    fn planned(
        device: &'d dyn Device,
        plan: Planned,
        sets: Vec<[DeviceBuffer<'d>; 4]>,
        numbers: [&[i32]; 4],
    ) -> Result<Self> {
        let upload = |numbers: &[i32]| {
            let words: Vec<_> = numbers.iter().map(|x| x.to_le_bytes()).collect();
            DeviceBuffer::from_bytes(device, &words.concat())
        };
        let [q_starts, k_starts, k_used, table] = numbers.map(upload);
        let workload = Self {
            device,
            sets,
            numbers: [q_starts?, k_starts?, k_used?, table?],
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
        let [q, k, v, out] = self.sets[set % self.sets.len()].each_ref();
        let [q, k, v, out] = [q, k, v, out].map(DeviceBuffer::address);
        let workspace = self.workspace.address();
        let [q_starts, k_starts, k_used, table] =
            self.numbers.each_ref().map(DeviceBuffer::address);
        // SAFETY: the buffers have the sizes of the problem's tensors and live in self. They are freed when
        // the device is idle (that is what dropping a buffer waits for). Launches that share the workspace or
        // an output are on one stream, so one after the other. The stream is the crate's own, and alive.
        unsafe {
            match &self.plan {
                Planned::Dense(plan) => {
                    let pointers = Pointers {
                        q,
                        k,
                        v,
                        out,
                        workspace,
                        ..Pointers::default()
                    };
                    plan.launch(self.device, stream, &pointers)
                }
                Planned::Serving(plan) => {
                    let pointers = ServingPointers {
                        q,
                        k,
                        v,
                        out,
                        q_starts,
                        k_starts,
                        k_used,
                        table,
                        workspace,
                        ..ServingPointers::default()
                    };
                    plan.launch(self.device, stream, &pointers)
                }
            }
        }
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

    /// The kernel that computes attention.
    pub fn kernel(&self) -> &'static Entry {
        match &self.plan {
            Planned::Dense(plan) => &plan.variant().entry,
            Planned::Serving(plan) => &plan.variant().entry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_a_place_of_its_own() {
        for blocks in [1, 2, 3, 4, 6, 100, 4096] {
            let mut places: Vec<_> = (0..blocks).map(|at| page_of(at, blocks)).collect();
            places.sort_unstable();
            assert!(places.into_iter().eq(0..blocks), "{blocks}");
        }
    }

    #[test]
    fn rows_are_found_by_their_pages() {
        // Two sequences of five rows of a byte, in pages of two.
        let rows: Vec<u8> = (1..=10).collect();
        let pages = into_pages(&rows, 2, 2, 6);
        for (at, &row) in rows.iter().enumerate() {
            let (b, j) = (at / 5, at % 5);
            assert_eq!(pages[page_of(3 * b + j / 2, 6) * 2 + j % 2], row);
        }
        assert_eq!(pages.iter().filter(|&&row| row == 0).count(), 2);
    }
}
