//! Launches of split queries and keys.

use super::{
    agree,
    check::{check_exchange, check_workspace},
    context::{ContextParallel, ContextParallelPlan, Gathered, Step, Streams, Work},
    exchange::{DeviceRange, Exchange},
    piece::{Parts, Piece},
    shards::Chunk,
};
use crate::{
    Entry, Pointers,
    device::{Device, Stream},
    error::Result,
    plan::check_pointer,
};

impl ContextParallelPlan {
    /// The problem.
    pub fn problem(&self) -> &ContextParallel {
        &self.parallel
    }

    /// The rank that it was made for.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How often the ranks compute: with their own keys, and then with those that came around the ring. Keys that no rank's queries see
    /// are not sent. All keys at once are one step.
    pub fn steps(&self) -> usize {
        match &self.work {
            Work::Ring { steps, .. } => steps.len(),
            Work::AllGather { .. } => 1,
        }
    }

    /// Kernels of attention that a launch runs: one for each pair of chunks of which one sees the other, or for each chunk of queries.
    pub fn launches(&self) -> usize {
        match &self.work {
            Work::Ring { steps, .. } => steps.iter().map(|step| step.pieces.len()).sum(),
            Work::AllGather { pieces, .. } => pieces.len(),
        }
    }

    /// Bytes of scratch memory that a launch needs, aligned to 256: exactly those of other ranks' keys and of partial results.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes
    }

    /// The kernels that a launch runs, some more than once: load them before a graph capture ([`Device::load`]).
    pub fn kernels(&self) -> Vec<&'static Entry> {
        match &self.work {
            Work::Ring { steps, parts, .. } => {
                let pieces = steps.iter().flat_map(|step| &step.pieces);
                let pieces = pieces.map(|(piece, ..)| &piece.plan.variant().entry);
                pieces.chain(parts.iter().map(Parts::kernel)).collect()
            }
            Work::AllGather { pieces, .. } => {
                let variants = pieces.iter().map(|it| it.piece.plan.variant());
                variants.map(|variant| &variant.entry).collect()
            }
        }
    }

    /// Asks all ranks whether they have planned the same problem, before the first launch: ranks that wait for keys of other lengths
    /// than are sent wait forever, or compute nonsense. All ranks call it. Allocates, and waits for the answer.
    ///
    /// # Errors
    /// [`Error::BadInput`](crate::Error::BadInput) on every rank if one has planned another problem; the exchange's and the device's own errors.
    ///
    /// # Safety
    /// `stream` is a live stream of the device, which is this rank's in the exchange.
    pub unsafe fn agree(
        &self,
        device: &dyn Device,
        exchange: &dyn Exchange,
        stream: Stream,
    ) -> Result<()> {
        check_exchange(exchange, self.rank, self.parallel.keys.world())?;
        let ContextParallel {
            problem,
            queries,
            keys,
            circulation,
        } = &self.parallel;
        let shape = problem.shape();
        let sizes = [shape.batch, shape.heads_q, shape.heads_kv];
        let dims = [shape.head_dim_qk, shape.head_dim_v];
        let scores = (problem.softmax_scale().to_bits(), problem.softcap);
        let masks = (problem.causal, problem.window);
        let all = (sizes, dims, problem.dtype, scores, masks);
        let text = format!("{all:?} {queries:?} {keys:?} {circulation:?}");
        // SAFETY: the caller vouches for the stream.
        unsafe { agree::agree(device, exchange, stream, &text) }
    }

    /// Refuses addresses before anything is enqueued: a rank that fails half way leaves the others waiting.
    fn check(&self, pointers: &Pointers) -> Result<()> {
        let problem = &self.parallel.problem;
        let element = problem.dtype.bytes();
        let out = problem.out_element().bytes();
        for (argument, layout, ptr, bytes) in [
            ("q", &problem.q, pointers.q, element),
            ("k", &problem.k, pointers.k, element),
            ("v", &problem.v, pointers.v, element),
            ("out", &problem.out, pointers.out, out),
        ] {
            let (low, high) = layout.offsets().unwrap_or_default();
            check_pointer(argument, layout.is_empty(), ptr, bytes, low, high)?;
        }
        if let Some(lse) = pointers.lse {
            let numbers = problem.lse_shape().iter().product::<usize>();
            let last = numbers.max(1) as i64 - 1;
            check_pointer("lse", numbers == 0, lse, 4, 0, last)?;
        }
        check_workspace(pointers.workspace, self.workspace.bytes)?;
        match &self.work {
            Work::Ring { steps, parts, .. } => {
                for parts in parts {
                    parts.check(pointers)?;
                }
                for (at, step) in steps.iter().enumerate() {
                    let keys = self.keys_at(at, pointers);
                    for (piece, of_q, place) in &step.pieces {
                        let launch = self.of_piece(piece, &parts[*of_q], *place, keys, pointers);
                        piece.plan.params(&launch)?;
                    }
                }
                Ok(())
            }
            Work::AllGather { pieces, room } => pieces.iter().try_for_each(|it| {
                let launch = it.pointers(room, pointers);
                it.piece.plan.params(&launch).map(drop)
            }),
        }
    }

    /// Addresses of the keys and values of a step around the ring.
    fn keys_at(&self, step: usize, pointers: &Pointers) -> [u64; 2] {
        match (&self.work, step.checked_sub(1)) {
            (Work::Ring { rooms, .. }, Some(arrived)) => {
                rooms[arrived % 2].map(|offset| pointers.workspace + offset as u64)
            }
            _ => [pointers.k, pointers.v],
        }
    }

    fn of_piece(
        &self,
        piece: &Piece,
        parts: &Parts,
        place: usize,
        [k, v]: [u64; 2],
        pointers: &Pointers,
    ) -> Pointers {
        let (out, lse) = parts.part(pointers.workspace, place);
        // Scales, of which there are none, are refused if there are.
        Pointers {
            q_scale: pointers.q_scale,
            k_scale: pointers.k_scale,
            v_scale: pointers.v_scale,
            ..piece.pointers([pointers.q, k, v], out, Some(lse))
        }
    }

    /// Enqueues this rank's share: kernels on one stream, the exchange on the other. Does not allocate device memory and does not wait
    /// for the device. All ranks launch, as often and in the same order, each on its own device and with its own tensors.
    ///
    /// `pointers` are those of this rank's problem, `workspace` of [`ContextParallelPlan::workspace_bytes`], aligned to 256. While the
    /// exchange stream moves keys, the compute stream works with those of the step before; it ends when both have.
    ///
    /// # Errors
    /// As [`Plan::params`](crate::Plan::params), and for an exchange of other ranks than planned for, before anything is enqueued;
    /// whatever device and exchange say.
    ///
    /// # Safety
    /// As [`Plan::launch`](crate::Plan::launch), until the compute stream has come past the launch: the workspace is accessed by nothing
    /// else. Both streams are live streams of the device, which is this rank's in the exchange.
    pub unsafe fn launch(
        &self,
        device: &dyn Device,
        exchange: &dyn Exchange,
        streams: Streams,
        pointers: &Pointers,
    ) -> Result<()> {
        check_exchange(exchange, self.rank, self.parallel.keys.world())?;
        self.check(pointers)?;
        match &self.work {
            Work::Ring { steps, parts, .. } => {
                // SAFETY: the caller's, and the addresses are checked.
                unsafe { self.launch_ring(device, exchange, streams, pointers, (steps, parts)) }
            }
            Work::AllGather { pieces, room } => {
                let what = (&pieces[..], room);
                // SAFETY: as above.
                unsafe { self.launch_gathered(device, exchange, streams, pointers, what) }
            }
        }
    }

    /// # Safety
    /// As [`ContextParallelPlan::launch`], and the addresses are checked.
    unsafe fn launch_ring(
        &self,
        device: &dyn Device,
        exchange: &dyn Exchange,
        Streams {
            compute,
            exchange: moves,
        }: Streams,
        pointers: &Pointers,
        (steps, parts): (&[Step], &[Parts]),
    ) -> Result<()> {
        let world = self.parallel.keys.world();
        let (next, before) = ((self.rank + 1) % world, (self.rank + world - 1) % world);
        for (at, step) in steps.iter().enumerate() {
            if at > 0 {
                // SAFETY: the caller vouches for the streams, here and below. This step's keys have arrived.
                unsafe { device.order(moves, compute)? };
            }
            if let Some(following) = steps.get(at + 1) {
                // The room that the next keys go to was read by the step before this one; the first keys are the caller's.
                // SAFETY: as above.
                unsafe { device.order(compute, moves)? };
                let bytes = |rank| self.parallel.bytes_of(rank).map(Option::unwrap_or_default);
                let sent = self
                    .keys_at(at, pointers)
                    .into_iter()
                    .zip(bytes(step.keys_of));
                let received = self.keys_at(at + 1, pointers).into_iter();
                let received = received.zip(bytes(following.keys_of));
                let mut both = sent.zip(received);
                exchange.group(&mut || {
                    both.try_for_each(|(sent, received)| {
                        let range = |(address, bytes)| DeviceRange { address, bytes };
                        let (sent, received) = (range(sent), range(received));
                        // SAFETY: what is sent are this rank's keys or those in one room, and what is received goes to the other,
                        // which is as long as the longest that arrives there; nothing writes the one or reads the other before the
                        // streams' order allows it.
                        unsafe { exchange.send_receive(sent, next, received, before, moves) }
                    })
                })?;
            }
            let keys = self.keys_at(at, pointers);
            for (piece, of_q, place) in &step.pieces {
                let launch = self.of_piece(piece, &parts[*of_q], *place, keys, pointers);
                // SAFETY: the queries are the caller's; keys have arrived; the part is in the workspace, and nobody else's.
                unsafe { piece.plan.launch(device, compute, &launch)? };
            }
        }
        for parts in parts {
            // SAFETY: all parts are written, on the same stream; out and lse are the caller's.
            unsafe { parts.launch(device, compute, pointers)? };
        }
        Ok(())
    }

    /// # Safety
    /// As [`ContextParallelPlan::launch`], and the addresses are checked.
    unsafe fn launch_gathered(
        &self,
        device: &dyn Device,
        exchange: &dyn Exchange,
        Streams {
            compute,
            exchange: moves,
        }: Streams,
        pointers: &Pointers,
        (pieces, room): (&[Gathered], &[usize; 2]),
    ) -> Result<()> {
        let parallel = &self.parallel;
        let (keys, batch) = (&parallel.keys, parallel.problem.k.shape[0]);
        // SAFETY: the caller vouches for the streams, here and below.
        unsafe { device.order(compute, moves)? };
        // One sequence's keys of one chunk of each rank at a time, so that they come to lie in the order of the sequence.
        let row = parallel
            .bytes(1)
            .map(|bytes| bytes.unwrap_or(0) / batch.max(1));
        let tensors = [pointers.k, pointers.v].into_iter().zip(room).zip(row);
        let tokens = keys.tokens(self.rank);
        exchange.group(&mut || {
            for ((address, &room), row) in tensors.clone() {
                for b in 0..batch {
                    for (which, own) in keys.of(self.rank).iter().enumerate() {
                        let range = |address: u64, rows: usize, chunk: &Chunk| DeviceRange {
                            address: address.wrapping_add((rows * row) as u64),
                            bytes: chunk.tokens * row,
                        };
                        let send = range(address, b * tokens + own.first, own);
                        let receive = |rank: usize| {
                            let chunk = &keys.of(rank)[which];
                            let gathered = pointers.workspace + room as u64;
                            range(gathered, b * keys.total() + chunk.start, chunk)
                        };
                        // SAFETY: what is sent is the caller's; what is received has its place in the workspace, rank by rank.
                        unsafe { exchange.all_gather(send, &receive, moves)? };
                    }
                }
            }
            Ok(())
        })?;
        // SAFETY: as above.
        unsafe { device.order(moves, compute)? };
        for it in pieces {
            let launch = it.pointers(room, pointers);
            // SAFETY: queries, out and lse are the caller's, keys have arrived; chunks of queries have rows of their own.
            unsafe { it.piece.plan.launch(device, compute, &launch)? };
        }
        Ok(())
    }
}

impl Gathered {
    fn pointers(&self, room: &[usize; 2], pointers: &Pointers) -> Pointers {
        let [k, v] = room.map(|offset| pointers.workspace.wrapping_add(offset as u64));
        let out = pointers.out.wrapping_add_signed(self.of_out);
        let lse = pointers.lse.map(|lse| lse.wrapping_add(self.of_lse));
        Pointers {
            q_scale: pointers.q_scale,
            k_scale: pointers.k_scale,
            v_scale: pointers.v_scale,
            ..self.piece.pointers([pointers.q, k, v], out, lse)
        }
    }
}
