//! Programs evaluated by plain Rust: statement after statement, each for all threads that are there.

use super::{
    Access, CELL_BYTES, Class, Collective, DUMP_BYTES, INPUT_WORDS, LOCAL_BYTES, Lanes, Memory,
    OWN_BYTES, Operand, Place, Program, SLOT_BYTES, SharedRead, SharedWrite, Statement, Trips,
    forms::{Form, forms},
    text::{UPDATES, WIDTHS, Width},
    warp::{Matrix, Operation, REDUCTIONS, holds, multiply, source},
};

/// What the program leaves in memory, which is as [`Memory::before`] when it starts.
pub fn evaluate(program: &Program) -> Memory {
    let mut memory = Memory::before(program);
    let input: Vec<u8> = program
        .input
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    for block in 0..program.blocks {
        let threads = (0..program.threads).map(|number| Thread::new(program, block, number));
        let mut run = Block {
            threads: threads.collect(),
            first: block * program.threads,
            shared: vec![0; program.threads * SLOT_BYTES],
            input: input.clone(),
            memory: &mut memory,
        };
        let mut active = vec![true; program.threads];
        run.statements(&program.body, &mut active);
        run.dump(&active);
        run.statements(&program.tail, &mut active);
        run.dump(&active);
    }
    memory
}

struct Thread {
    /// Registers by class.
    registers: [Vec<u64>; 4],
    /// Ballots of the branches around, by depth.
    masks: [u32; 4],
    local: [u8; LOCAL_BYTES],
    exited: bool,
}

impl Thread {
    fn new(program: &Program, block: usize, number: usize) -> Self {
        let global = block * program.threads + number;
        let words = &program.input[global * 5 % (INPUT_WORDS / 2)..];
        let mut words = words.iter().map(|&word| u64::from(word));
        let mut some = |class: Class| -> Vec<u64> { words.by_ref().take(class.count()).collect() };
        let mut r = some(Class::R);
        let d = some(Class::D)
            .into_iter()
            .zip(&r)
            .map(|(low, high)| high << 32 | low)
            .collect();
        let h = some(Class::H)
            .into_iter()
            .map(|word| word & 0xffff)
            .collect();
        let p = some(Class::P).into_iter().map(|word| word >> 31).collect();
        let lane = number % 32;
        r[0] = number as u64;
        r[1] = lane as u64;
        r[2] = block as u64;
        r[3] = (2u64 << lane) - 1;
        Self {
            registers: [p, h, r, d],
            masks: [0; 4],
            local: [0; LOCAL_BYTES],
            exited: false,
        }
    }

    fn get(&self, class: Class, number: usize) -> u64 {
        self.registers[class as usize][number]
    }

    fn set(&mut self, class: Class, number: usize, value: u64) {
        self.registers[class as usize][number] = value & class.mask();
    }

    fn r(&self, number: usize) -> u32 {
        self.get(Class::R, number) as u32
    }

    fn predicates(&self) -> &[u64] {
        &self.registers[Class::P as usize]
    }

    fn compute(&mut self, form: &Form, to: usize, from: &[Operand]) {
        let values: Vec<u64> = from
            .iter()
            .map(|operand| match *operand {
                Operand::Reg(reg) => self.get(reg.class, reg.number),
                Operand::Integer(x) | Operand::Double(x) => x,
                Operand::Single(x) => x.into(),
            })
            .collect();
        let value = (form.meaning)(&values);
        self.set(form.to, to, value);
    }

    /// Registers from memory.
    fn load(&mut self, width: &Width, first: usize, bytes: &[u8]) {
        for (number, part) in width.registers(first).zip(bytes.chunks(width.bytes)) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            let mut value = u64::from_le_bytes(word);
            if width.signed {
                let up = 64 - 8 * width.bytes;
                value = ((value << up) as i64 >> up) as u64;
            }
            self.set(width.class, number, value);
        }
    }

    /// Memory from registers.
    fn store(&self, width: &Width, first: usize) -> Vec<u8> {
        let words = width
            .registers(first)
            .map(|number| self.get(width.class, number).to_le_bytes());
        words
            .flat_map(|word| word[..width.bytes].to_vec())
            .collect()
    }
}

struct Block<'m> {
    threads: Vec<Thread>,
    /// Number of the first thread among those of all blocks.
    first: usize,
    shared: Vec<u8>,
    /// Nobody writes it.
    input: Vec<u8>,
    memory: &'m mut Memory,
}

impl Block<'_> {
    fn statements(&mut self, statements: &[Statement], active: &mut [bool]) {
        for statement in statements {
            self.statement(statement, active);
        }
    }

    /// Numbers of the active threads.
    fn numbers(active: &[bool]) -> Vec<usize> {
        (0..active.len()).filter(|&n| active[n]).collect()
    }

    /// Those of the active threads for which a guard holds.
    fn guarded(&self, active: &[bool], guard: Option<super::Guard>) -> Vec<usize> {
        let mut numbers = Self::numbers(active);
        if let Some(guard) = guard {
            numbers.retain(|&n| holds(guard, self.threads[n].predicates()));
        }
        numbers
    }

    fn statement(&mut self, statement: &Statement, active: &mut [bool]) {
        match statement {
            Statement::Compute {
                form,
                guard,
                to,
                from,
            } => {
                for n in self.guarded(active, *guard) {
                    self.threads[n].compute(&forms()[*form], *to, from);
                }
            }
            Statement::Load(place, access, guard) => {
                for n in self.guarded(active, *guard) {
                    let width = WIDTHS[access.width];
                    let bytes = self.element(n, *place, access).to_vec();
                    self.threads[n].load(&width, access.first, &bytes);
                }
            }
            Statement::Store(place, access, guard) => {
                for n in self.guarded(active, *guard) {
                    let bytes = self.threads[n].store(&WIDTHS[access.width], access.first);
                    self.element(n, *place, access).copy_from_slice(&bytes);
                }
            }
            Statement::Update(which, from, guard) => {
                for n in self.guarded(active, *guard) {
                    let value = self.threads[n].r(*from);
                    update(&mut self.memory.cells, *which, value);
                }
            }
            Statement::If {
                condition,
                ballot,
                then,
                otherwise,
            } => {
                let taken = self.guarded(active, Some(*condition));
                if let Some((mask, _)) = ballot {
                    for n in Self::numbers(active) {
                        let warp = taken.iter().filter(|&&other| other / 32 == n / 32);
                        self.threads[n].masks[*mask] =
                            warp.fold(0, |all, other| all | 1 << (other % 32));
                    }
                }
                let mut yes = vec![false; active.len()];
                taken.iter().for_each(|&n| yes[n] = true);
                let mut no: Vec<bool> = active.iter().zip(&yes).map(|(&a, &y)| a && !y).collect();
                self.statements(then, &mut yes);
                self.statements(otherwise, &mut no);
                for (n, active) in active.iter_mut().enumerate() {
                    *active = yes[n] || no[n];
                }
            }
            Statement::Loop {
                trips,
                at_end,
                body,
            } => {
                let count = |thread: &Thread| match *trips {
                    Trips::Fixed(n) => n,
                    Trips::Register(r) => thread.r(r) & 3,
                };
                let counts: Vec<u32> = self.threads.iter().map(count).collect();
                let mut inside = active.to_vec();
                for turn in 0.. {
                    let more = |n: usize| counts[n] + u32::from(*at_end) > turn;
                    inside
                        .iter_mut()
                        .enumerate()
                        .for_each(|(n, inside)| *inside &= more(n));
                    if !inside.contains(&true) {
                        break;
                    }
                    self.statements(body, &mut inside);
                }
                // Those that left the loop are there again, those that ended are not.
                for (n, active) in active.iter_mut().enumerate() {
                    *active &= !self.threads[n].exited;
                }
            }
            Statement::Break(guard) => {
                for n in self.guarded(active, Some(*guard)) {
                    active[n] = false;
                }
            }
            Statement::Switch(selector, cases) => {
                let before = active.to_vec();
                active.fill(false);
                let chosen: Vec<usize> = self
                    .threads
                    .iter()
                    .map(|thread| thread.r(*selector) as usize % cases.len())
                    .collect();
                for (number, case) in cases.iter().enumerate() {
                    let mut inside: Vec<bool> = before
                        .iter()
                        .zip(&chosen)
                        .map(|(&there, &c)| there && c == number)
                        .collect();
                    self.statements(case, &mut inside);
                    active
                        .iter_mut()
                        .zip(inside)
                        .for_each(|(active, inside)| *active |= inside);
                }
            }
            Statement::Exit(guard) => {
                for n in self.guarded(active, Some(*guard)) {
                    active[n] = false;
                    self.threads[n].exited = true;
                }
            }
            Statement::Collective(collective) => self.collective(collective, active),
            Statement::Reduce(operation, guard, to) => {
                let count = self.guarded(active, Some(*guard)).len();
                let (class, value) = match operation {
                    0 => (Class::R, count as u64),
                    1 => (Class::P, u64::from(count == self.threads.len())),
                    _ => (Class::P, u64::from(count > 0)),
                };
                self.threads
                    .iter_mut()
                    .for_each(|thread| thread.set(class, *to, value));
            }
            Statement::Exchange { write, reads, .. } => {
                self.write_shared(write, active);
                reads.iter().for_each(|read| self.read_shared(read));
            }
            Statement::Matrix(matrix) => self.matrix(matrix),
        }
    }

    /// The bytes that an access moves.
    fn element(&mut self, n: usize, place: Place, access: &Access) -> &mut [u8] {
        let total = WIDTHS[access.width].total();
        let index = self.threads[n].r(access.index) as usize;
        let (bytes, first, size): (&mut [u8], _, _) = match place {
            Place::Input => (&mut self.input, 0, INPUT_WORDS * 4),
            Place::Own => (
                &mut self.memory.own,
                (self.first + n) * OWN_BYTES,
                OWN_BYTES,
            ),
            Place::Local => (&mut self.threads[n].local, 0, LOCAL_BYTES),
        };
        &mut bytes[first + index % (size / total) * total..][..total]
    }

    /// The lanes of each warp that are there.
    fn warps(active: &[bool]) -> Vec<Vec<usize>> {
        let warps = active.len().div_ceil(32);
        let mut lanes = vec![Vec::new(); warps];
        Self::numbers(active)
            .into_iter()
            .for_each(|n| lanes[n / 32].push(n));
        lanes
    }

    fn collective(&mut self, c: &Collective, active: &[bool]) {
        for lanes in Self::warps(active) {
            let Some(&some) = lanes.first() else { continue };
            let mask = lanes.iter().fold(0u32, |all, n| all | 1 << (n % 32));
            if let Lanes::Ballot(depth) = c.lanes {
                assert_eq!(
                    mask, self.threads[some].masks[depth],
                    "the generator's ballot is wrong"
                );
            }
            let values: Vec<u64> = lanes
                .iter()
                .map(|&n| match c.operation {
                    Operation::MatchAnyWide => self.threads[n].get(Class::D, c.from[0]),
                    _ => self.threads[n].get(Class::R, c.from[0]),
                })
                .collect();
            let votes: Vec<bool> = lanes
                .iter()
                .map(|&n| holds(c.guard, self.threads[n].predicates()))
                .collect();
            let mask_of = |chosen: &dyn Fn(usize) -> bool| {
                let chosen = (0..lanes.len()).filter(|&i| chosen(i));
                chosen.fold(0u64, |all, i| all | 1 << (lanes[i] % 32))
            };
            let results: Vec<(Class, u64)> = (0..lanes.len())
                .map(|i| match c.operation {
                    Operation::All => (Class::P, u64::from(!votes.contains(&false))),
                    Operation::Any => (Class::P, u64::from(votes.contains(&true))),
                    Operation::Uniform => (
                        Class::P,
                        u64::from(votes.iter().all(|&vote| vote == votes[0])),
                    ),
                    Operation::Ballot => (Class::R, mask_of(&|j| votes[j])),
                    Operation::MatchAny | Operation::MatchAnyWide => {
                        (Class::R, mask_of(&|j| values[j] == values[i]))
                    }
                    Operation::MatchAll => {
                        let same = values.iter().all(|&value| value == values[0]);
                        (Class::R, if same { mask.into() } else { 0 })
                    }
                    Operation::Reduction(which) => {
                        let words = values.iter().map(|&value| value as u32);
                        let sum = words.reduce(REDUCTIONS[which].1).unwrap_or_default();
                        (Class::R, sum.into())
                    }
                    Operation::Shuffle(mode, size) => {
                        let b = self.threads[lanes[i]].r(c.from[1]);
                        let from = source(mode, size, (lanes[i] % 32) as u32, b);
                        (Class::R, values[from as usize])
                    }
                })
                .collect();
            for (n, (class, value)) in lanes.into_iter().zip(results) {
                self.threads[n].set(class, c.to, value);
            }
        }
    }

    fn write_shared(&mut self, write: &SharedWrite, active: &mut [bool]) {
        match write {
            SharedWrite::Stores(stores) => {
                for store in stores {
                    let width = WIDTHS[store.width];
                    for (n, thread) in self.threads.iter().enumerate() {
                        let part = thread.r(store.index) as usize % (SLOT_BYTES / width.total());
                        let at = n * SLOT_BYTES + part * width.total();
                        let bytes = thread.store(&width, store.first);
                        self.shared[at..at + bytes.len()].copy_from_slice(&bytes);
                    }
                }
            }
            SharedWrite::Copy {
                bytes,
                read,
                index,
                meanwhile,
            } => {
                for (n, thread) in self.threads.iter().enumerate() {
                    let at = thread.r(*index) as usize % (self.input.len() / bytes) * bytes;
                    let slot = &mut self.shared[n * SLOT_BYTES..][..*bytes];
                    slot.fill(0);
                    slot[..*read].copy_from_slice(&self.input[at..at + read]);
                }
                self.statements(meanwhile, active);
            }
        }
    }

    fn read_shared(&mut self, read: &SharedRead) {
        match *read {
            SharedRead::Load(access) => {
                let width = WIDTHS[access.width];
                let parts = self.shared.len() / width.total();
                for thread in &mut self.threads {
                    let at = thread.r(access.index) as usize % parts * width.total();
                    thread.load(&width, access.first, &self.shared[at..at + width.total()]);
                }
            }
            SharedRead::Matrix {
                count,
                transposed,
                row,
                first,
            } => {
                let slots = self.threads.len();
                for warp in self.threads.chunks_mut(32) {
                    let rows: Vec<usize> = warp
                        .iter()
                        .map(|thread| thread.r(row) as usize % slots)
                        .collect();
                    let element = |matrix: usize, row: usize, column: usize| {
                        let at = rows[8 * matrix + row] * SLOT_BYTES + 2 * column;
                        u32::from(u16::from_le_bytes([self.shared[at], self.shared[at + 1]]))
                    };
                    for (lane, thread) in warp.iter_mut().enumerate() {
                        for matrix in 0..count {
                            let (own, pair) = (lane / 4, lane % 4 * 2);
                            let [low, high] = [pair, pair + 1].map(|other| match transposed {
                                true => element(matrix, other, own),
                                false => element(matrix, own, other),
                            });
                            let number = (first + matrix) % Class::R.count();
                            thread.set(Class::R, number, u64::from(high << 16 | low));
                        }
                    }
                }
            }
        }
    }

    fn matrix(&mut self, m: &Matrix) {
        let sizes = m.sizes();
        for warp in self.threads.chunks_mut(32) {
            let [a, b, c]: [Vec<Vec<u32>>; 3] = std::array::from_fn(|i| {
                let numbers = |n| (m.registers[i] + n) % Class::R.count();
                let fragment =
                    |thread: &Thread| (0..sizes[i]).map(|n| thread.r(numbers(n))).collect();
                warp.iter().map(fragment).collect()
            });
            for (thread, results) in warp.iter_mut().zip(multiply(m, &a, &b, &c)) {
                for (n, value) in results.into_iter().enumerate() {
                    thread.set(
                        Class::R,
                        (m.registers[3] + n) % Class::R.count(),
                        value.into(),
                    );
                }
            }
        }
    }

    fn dump(&mut self, active: &[bool]) {
        for n in Self::numbers(active) {
            let thread = &self.threads[n];
            let mut bytes = Vec::new();
            for (class, size) in [(Class::D, 8), (Class::R, 4), (Class::H, 2), (Class::P, 1)] {
                for &value in &thread.registers[class as usize] {
                    bytes.extend_from_slice(&value.to_le_bytes()[..size]);
                }
            }
            let at = (self.first + n) * DUMP_BYTES;
            self.memory.dump[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

/// An update of a cell. Each cell has updates of one kind, which commute.
fn update(cells: &mut [u8], which: usize, value: u32) {
    let (operation, ty, at) = UPDATES[which];
    if ty == "u64" {
        let cell: &mut [u8] = &mut cells[at..CELL_BYTES];
        let old = cell
            .iter()
            .rev()
            .fold(0u64, |all, &byte| all << 8 | u64::from(byte));
        let sum = old.wrapping_add(i64::from(value as i32) as u64);
        cell.copy_from_slice(&sum.to_le_bytes());
        return;
    }
    let cell = &mut cells[at..at + 4];
    let old = cell
        .iter()
        .rev()
        .fold(0u32, |all, &byte| all << 8 | u32::from(byte));
    let new = match (operation, ty) {
        ("add", _) => old.wrapping_add(value),
        ("min", _) => (old as i32).min(value as i32) as u32,
        ("max", _) => old.max(value),
        ("and", _) => old & value,
        ("or", _) => old | value,
        _ => old ^ value,
    };
    cell.copy_from_slice(&new.to_le_bytes());
}
