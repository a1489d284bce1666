//! Hopper: what the kernels of the sm_90a tier assume of the copy engine, the tensor cores and the blocks of a cluster, one
//! assumption at a time.
//!
//! Most of these tests are kernels of one or a few blocks that read and write memory by themselves ([`Access::Memory`]
//! (super::Access::Memory)). No wait in them lasts: one that takes too long ends, and the thread's status says so, so that a wrong
//! assumption shows in the results and not as a hang. A block's output begins with its threads' [`status`](Body::finish).

pub mod cluster;
pub mod pipeline;
pub mod registers;
pub mod sums;
pub mod tma;
pub mod wgmma;

/// Nanoseconds that a wait lasts at most.
const PATIENCE: u64 = 20_000_000;

/// Byte that shared memory holds before, where nothing else does.
const BLANK: u32 = 0xeeee_eeee;

/// A body under construction. `%r2` is the address of the array `s`, `%r3` that of the mbarriers, `%r50` the thread's status; `%r51`
/// to `%r59`, `%d20` to `%d29` and `%p10` to `%p15` are for the pieces here.
struct Body {
    text: String,
    labels: usize,
    /// Threads of the block.
    threads: u32,
}

impl Body {
    fn new(threads: u32) -> Self {
        Self {
            text: "mov.u32 %r2, s;\nmov.u32 %r3, bars;\nmov.u32 %r50, 0;\n".into(),
            labels: 0,
            threads,
        }
    }

    /// What the entry declares: the array, aligned to 1024, and mbarriers.
    fn shared(bytes: u32, barriers: u32) -> String {
        format!(".shared .align 1024 .b8 s[{bytes}];\n.shared .align 8 .b64 bars[{barriers}];")
    }

    /// Adds instructions.
    fn add(&mut self, text: impl AsRef<str>) -> &mut Self {
        self.text += text.as_ref();
        if !self.text.ends_with('\n') {
            self.text.push('\n');
        }
        self
    }

    fn label(&mut self) -> String {
        self.labels += 1;
        format!("L{}", self.labels)
    }

    /// Instructions that some threads execute: those for which `%p9` is false.
    fn unless(&mut self, test: &str, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let skip = self.label();
        self.add(format!("{test} bra {skip};"));
        inner(self);
        self.add(format!("{skip}:"))
    }

    /// Instructions of the block's first thread.
    fn first_thread(&mut self, inner: impl FnOnce(&mut Self)) -> &mut Self {
        self.add("setp.ne.u32 %p9, %r0, 0;");
        self.unless("@%p9", inner)
    }

    /// All threads, each a part: 16 bytes at `%r51` from the beginning of the array, `bytes` in all.
    fn sixteens(&mut self, bytes: u32, each: &str) -> &mut Self {
        let (again, done) = (self.label(), self.label());
        let step = 16 * self.threads;
        self.add(format!(
            "shl.b32 %r51, %r0, 4;\n{again}: setp.ge.u32 %p10, %r51, {bytes};\n@%p10 bra {done};\n\
             add.u32 %r52, %r2, %r51;\n{each}add.u32 %r51, %r51, {step};\nbra {again};\n{done}:"
        ))
    }

    /// Sets the beginning of the array.
    fn blank(&mut self, bytes: u32) -> &mut Self {
        let each = format!(
            "mov.b32 %r53, {BLANK};\nst.shared.v4.b32 [%r52], {{%r53, %r53, %r53, %r53}};\n"
        );
        self.sixteens(bytes, &each)
    }

    /// Copies from the address in a register of 64 bits to the beginning of the array.
    fn fill(&mut self, bytes: u32, from: &str) -> &mut Self {
        let each = format!(
            "cvt.u64.u32 %d20, %r51;\nadd.s64 %d20, {from}, %d20;\n\
             ld.global.v4.b32 {{%r53, %r54, %r55, %r56}}, [%d20];\n\
             st.shared.v4.b32 [%r52], {{%r53, %r54, %r55, %r56}};\n"
        );
        self.sixteens(bytes, &each)
    }

    /// Makes the mbarriers, for so many arrivals each.
    fn init(&mut self, counts: &[u32]) -> &mut Self {
        self.first_thread(|body| {
            for (n, count) in counts.iter().enumerate() {
                body.add(format!(
                    "mov.b32 %r51, {count};\nmbarrier.init.shared::cta.b64 [%r3+{}], %r51;",
                    8 * n
                ));
            }
            body.add("fence.mbarrier_init.release.cluster;");
        })
    }

    /// What was written is there for the other threads, and for the copy engine and the tensor cores.
    fn sync(&mut self) -> &mut Self {
        self.add("fence.proxy.async.shared::cta;\nbar.sync 0;")
    }

    /// Waits until the phase of this parity has ended, but not for ever: then the status is `code`. A thread whose status is bad does
    /// not wait.
    fn wait(&mut self, barrier: &str, parity: &str, code: u32) -> &mut Self {
        let (again, done) = (self.label(), self.label());
        self.add(format!(
            "setp.ne.u32 %p10, %r50, 0;\n@%p10 bra {done};\nmov.u64 %d20, %globaltimer;\n\
             {again}: mbarrier.try_wait.parity.shared::cta.b64 %p11, [{barrier}], {parity};\n@%p11 bra {done};\n\
             mov.u64 %d21, %globaltimer;\nsub.s64 %d21, %d21, %d20;\nsetp.lt.u64 %p11, %d21, {PATIENCE};\n@%p11 bra {again};\n\
             mov.u32 %r50, {code};\n{done}:\nbar.warp.sync 0xffffffff;"
        ))
    }

    /// Writes every thread's status, 0 if all is well, to the beginning of the block's output, and after them the beginning of the
    /// array.
    fn finish(&mut self, bytes: u32) -> &mut Self {
        let statuses = 4 * self.threads;
        self.add(
            "mul.wide.u32 %d20, %r0, 4;\nadd.s64 %d20, %d0, %d20;\nst.global.u32 [%d20], %r50;",
        );
        let each = format!(
            "ld.shared.v4.b32 {{%r53, %r54, %r55, %r56}}, [%r52];\ncvt.u64.u32 %d20, %r51;\nadd.s64 %d20, %d0, %d20;\n\
             st.global.v4.b32 [%d20+{statuses}], {{%r53, %r54, %r55, %r56}};\n"
        );
        self.sixteens(bytes, &each)
    }

    /// Words of output of each thread that [`finish`](Self::finish) takes.
    fn words(&self, bytes: u32) -> usize {
        1 + bytes.div_ceil(4 * self.threads) as usize
    }
}

/// So many words of 16-bit elements, of which each has its number, from 1 on.
fn numbered(words: u32) -> Vec<u32> {
    (0..words)
        .map(|n| (2 * n + 2) << 16 | (2 * n + 1))
        .collect()
}
