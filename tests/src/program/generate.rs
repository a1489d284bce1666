//! Programs from bytes.

use arbitrary::{Arbitrary, Result, Unstructured};

use super::{
    Access, Class, Collective, Guard, INPUT_WORDS, Lanes, Operand, Place, Program, Reg, SharedRead,
    SharedWrite, Statement, Trips,
    forms::{Kind, forms},
    text::{UPDATES, WIDTHS},
    warp::{Matrix, Operation, REDUCTIONS, SHUFFLES},
};

/// Most statements of a program.
const MOST_STATEMENTS: usize = 60;
/// Deepest nesting of branches and loops.
const MOST_DEPTH: usize = 3;
/// Deepest nesting of loops: their trips multiply.
const MOST_LOOPS: usize = 2;

/// Where a statement stands.
#[derive(Clone, Copy, Debug)]
struct Context {
    /// Lanes that are known to be there together; `None` where threads may have gone different ways.
    lanes: Option<Lanes>,
    /// All threads of the block are there, so that they may wait for each other.
    whole: bool,
    depth: usize,
    loops: usize,
    /// The innermost loop may be left.
    breaks: bool,
    /// The thread may end.
    exits: bool,
}

impl Context {
    /// Inside of something where threads may part.
    fn inside(self, lanes: Option<Lanes>) -> Self {
        Self {
            lanes,
            whole: false,
            depth: self.depth + 1,
            ..self
        }
    }
}

impl<'a> Arbitrary<'a> for Program {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let threads = match u.int_in_range(0..=5)? {
            0 => u.int_in_range(1..=32)?,
            1 => 96,
            2 | 3 => 64,
            _ => 32,
        };
        let blocks = u.int_in_range(1..=2)?;
        let dynamic = u.arbitrary()?;
        let mut input = Vec::with_capacity(INPUT_WORDS);
        // The rest repeats: few bytes of the fuzzer's make a whole buffer.
        let given = u.int_in_range(1..=INPUT_WORDS)?;
        for _ in 0..given {
            input.push(word(u)?);
        }
        for at in given..INPUT_WORDS {
            input.push(
                input[at % given]
                    .rotate_left(at as u32)
                    .wrapping_add(at as u32),
            );
        }
        let mut generator = Generator {
            left: MOST_STATEMENTS,
            threads,
        };
        let context = Context {
            lanes: Some(Lanes::All),
            whole: true,
            depth: 0,
            loops: 0,
            breaks: false,
            exits: false,
        };
        let body = generator.statements(u, context, MOST_STATEMENTS)?;
        let apart = Context {
            lanes: None,
            whole: false,
            exits: true,
            ..context
        };
        let tail = generator.statements(u, apart, 8)?;
        Ok(Self {
            blocks,
            threads,
            dynamic,
            input,
            body,
            tail,
        })
    }
}

impl Program {
    /// A program for each instruction on registers, which executes it several times on numbers from these bytes.
    ///
    /// # Errors
    /// None: where the bytes end, zeros follow.
    pub fn of_each_form(u: &mut Unstructured<'_>) -> Result<Vec<Self>> {
        let mut programs = Vec::new();
        for form in 0..forms().len() {
            let mut program = Self {
                blocks: 1,
                threads: 64,
                dynamic: false,
                input: (0..INPUT_WORDS).map(|_| word(u)).collect::<Result<_>>()?,
                body: Vec::new(),
                tail: Vec::new(),
            };
            let generator = Generator {
                left: 0,
                threads: 64,
            };
            for _ in 0..6 {
                program.body.push(generator.instruction(u, form)?);
            }
            programs.push(program);
        }
        Ok(programs)
    }
}

/// A number of 32 bits, often one where something changes.
fn word(u: &mut Unstructured<'_>) -> Result<u32> {
    const EDGES: [u32; 24] = [
        0,
        1,
        2,
        31,
        32,
        33,
        63,
        64,
        0x7f,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        // 1.0, 2^-126, the largest subnormal, 2^-149, the largest number, infinity, a NaN, 1 + half a unit of f16.
        0x3f80_0000,
        0x0080_0000,
        0x007f_ffff,
        0x8000_0001,
        0x7f7f_ffff,
        0xff80_0000,
        0x7fa0_0001,
        0x3f80_1000,
    ];
    Ok(match u.int_in_range(0..=3)? {
        0 => *u.choose(&EDGES)?,
        // A number near 1 of any sign, and pairs of halves near 1.
        1 => u.arbitrary::<u32>()? & 0x83ff_ffff | 0x3c00_0000,
        _ => u.arbitrary()?,
    })
}

struct Generator {
    /// Statements that may still be made.
    left: usize,
    threads: usize,
}

impl Generator {
    fn statements(
        &mut self,
        u: &mut Unstructured<'_>,
        at: Context,
        most: usize,
    ) -> Result<Vec<Statement>> {
        let mut statements = Vec::new();
        while statements.len() < most && self.left > 0 && !u.is_empty() {
            // One of sixteen ends the list, so that lists inside of lists are short.
            if u.ratio(1, 16)? && at.depth > 0 {
                break;
            }
            self.left -= 1;
            statements.push(self.statement(u, at)?);
        }
        Ok(statements)
    }

    fn statement(&mut self, u: &mut Unstructured<'_>, at: Context) -> Result<Statement> {
        let nested = at.depth < MOST_DEPTH;
        Ok(match u.int_in_range(0..=31)? {
            0 | 1 => Statement::Load(place(u)?, access(u)?, self.maybe(u)?),
            2 | 3 => {
                let place = *u.choose(&[Place::Own, Place::Local])?;
                Statement::Store(place, access(u)?, self.maybe(u)?)
            }
            4 => Statement::Update(u.choose_index(UPDATES.len())?, register(u)?, self.maybe(u)?),
            5 | 6 if nested => self.branch(u, at)?,
            7 | 8 if nested && at.loops < MOST_LOOPS => self.repeat(u, at)?,
            9 if nested => {
                let cases = 1 << u.int_in_range(0..=2)?;
                let selector = register(u)?;
                let sides = (0..cases).map(|_| self.statements(u, at.inside(None), 3));
                Statement::Switch(selector, sides.collect::<Result<_>>()?)
            }
            10 if at.breaks => Statement::Break(guard(u)?),
            11 if at.exits => Statement::Exit(guard(u)?),
            12..=14 if let Some(lanes) = at.lanes => {
                Statement::Collective(self.collective(u, lanes)?)
            }
            15 if at.whole => Statement::Reduce(
                u.int_in_range(0..=2)?,
                guard(u)?,
                u.choose_index(Class::P.count())?,
            ),
            16 | 17 if at.whole => self.exchange(u, at)?,
            18 if at.whole && self.threads.is_multiple_of(32) => Statement::Matrix(matrix(u)?),
            _ => {
                let form = u.choose_index(forms().len())?;
                self.instruction(u, form)?
            }
        })
    }

    fn instruction(&self, u: &mut Unstructured<'_>, form: usize) -> Result<Statement> {
        let chosen = &forms()[form];
        let mut from = Vec::new();
        for &kind in &chosen.from {
            from.push(operand(u, kind)?);
        }
        Ok(Statement::Compute {
            form,
            guard: self.maybe(u)?,
            to: u.choose_index(chosen.to.count())?,
            from,
        })
    }

    /// A guard, for one instruction of four.
    fn maybe(&self, u: &mut Unstructured<'_>) -> Result<Option<Guard>> {
        Ok(match u.ratio(1, 4)? {
            true => Some(guard(u)?),
            false => None,
        })
    }

    fn branch(&mut self, u: &mut Unstructured<'_>, at: Context) -> Result<Statement> {
        let condition = guard(u)?;
        let ballot = match at.lanes {
            Some(lanes) if u.arbitrary()? => Some((at.depth, lanes)),
            _ => None,
        };
        let lanes = ballot.map(|(mask, _)| Lanes::Ballot(mask));
        Ok(Statement::If {
            condition,
            ballot,
            then: self.statements(u, at.inside(lanes), 6)?,
            otherwise: self.statements(u, at.inside(None), 4)?,
        })
    }

    fn repeat(&mut self, u: &mut Unstructured<'_>, at: Context) -> Result<Statement> {
        let trips = match u.arbitrary()? {
            true => Trips::Fixed(u.int_in_range(0..=4)?),
            false => Trips::Register(register(u)?),
        };
        let breaks: bool = u.arbitrary()?;
        let together = matches!(trips, Trips::Fixed(_)) && !breaks;
        let inside = Context {
            whole: at.whole && together,
            lanes: at.lanes.filter(|_| together),
            depth: at.depth + 1,
            loops: at.loops + 1,
            breaks,
            ..at
        };
        Ok(Statement::Loop {
            trips,
            at_end: u.arbitrary()?,
            body: self.statements(u, inside, 6)?,
        })
    }

    fn collective(&self, u: &mut Unstructured<'_>, lanes: Lanes) -> Result<Collective> {
        // A shuffle must not read a lane that does not take part.
        let shuffles = match lanes {
            Lanes::All if self.threads.is_multiple_of(32) => SHUFFLES.len(),
            Lanes::All => 1,
            Lanes::Ballot(_) => 0,
        };
        let operation = match u.int_in_range(0..=11)? {
            0 => Operation::All,
            1 => Operation::Any,
            2 => Operation::Uniform,
            3 => Operation::Ballot,
            4 => Operation::MatchAny,
            5 => Operation::MatchAnyWide,
            6 => Operation::MatchAll,
            8.. if shuffles > 0 => {
                Operation::Shuffle(u.choose_index(shuffles)?, *u.choose(&[32, 16, 8, 4])?)
            }
            _ => Operation::Reduction(u.choose_index(REDUCTIONS.len())?),
        };
        let classes = match operation {
            Operation::All | Operation::Any | Operation::Uniform => [Class::P, Class::R],
            Operation::MatchAnyWide => [Class::R, Class::D],
            _ => [Class::R, Class::R],
        };
        Ok(Collective {
            operation,
            lanes,
            to: u.choose_index(classes[0].count())?,
            from: [u.choose_index(classes[1].count())?, register(u)?],
            guard: guard(u)?,
        })
    }

    fn exchange(&mut self, u: &mut Unstructured<'_>, at: Context) -> Result<Statement> {
        let write = match u.ratio(1, 3)? {
            true => {
                let bytes = *u.choose(&[4, 8, 16])?;
                let apart = Context {
                    lanes: None,
                    whole: false,
                    ..at
                };
                SharedWrite::Copy {
                    bytes,
                    read: u.int_in_range(0..=bytes)?,
                    index: register(u)?,
                    meanwhile: self.statements(u, apart, 2)?,
                }
            }
            false => {
                let count = u.int_in_range(1..=2)?;
                SharedWrite::Stores((0..count).map(|_| access(u)).collect::<Result<_>>()?)
            }
        };
        let mut reads = Vec::new();
        for _ in 0..u.int_in_range(1..=3)? {
            reads.push(match self.threads.is_multiple_of(32) && u.ratio(1, 3)? {
                true => SharedRead::Matrix {
                    count: *u.choose(&[1, 2, 4])?,
                    transposed: u.arbitrary()?,
                    row: register(u)?,
                    first: register(u)?,
                },
                false => SharedRead::Load(access(u)?),
            });
        }
        Ok(Statement::Exchange {
            write,
            reads,
            barrier: u.int_in_range(0..=15)?,
        })
    }
}

/// Number of a 32-bit register.
fn register(u: &mut Unstructured<'_>) -> Result<usize> {
    u.choose_index(Class::R.count())
}

fn guard(u: &mut Unstructured<'_>) -> Result<Guard> {
    Ok(Guard {
        predicate: u.choose_index(Class::P.count())?,
        negated: u.arbitrary()?,
    })
}

fn place(u: &mut Unstructured<'_>) -> Result<Place> {
    Ok(*u.choose(&[Place::Input, Place::Own, Place::Local])?)
}

fn access(u: &mut Unstructured<'_>) -> Result<Access> {
    let width = u.choose_index(WIDTHS.len())?;
    Ok(Access {
        width,
        first: u.choose_index(WIDTHS[width].class.count())?,
        index: register(u)?,
        spelling: u.int_in_range(0..=7)?,
    })
}

fn operand(u: &mut Unstructured<'_>, kind: Kind) -> Result<Operand> {
    let class = kind.class();
    let immediate = u.ratio(1, 6)?;
    Ok(match kind {
        Kind::Below(end) => Operand::Integer(u.int_in_range(0..=end - 1)?),
        Kind::H if immediate => Operand::Integer(u64::from(word(u)?) & class.mask()),
        Kind::R if immediate => Operand::Integer(word(u)?.into()),
        Kind::D if immediate => Operand::Integer(u64::from(word(u)?) << 32 | u64::from(word(u)?)),
        Kind::F if immediate => Operand::Single(word(u)?),
        Kind::G if immediate => Operand::Double(u64::from(word(u)?) << 32 | u64::from(word(u)?)),
        _ => Operand::Reg(Reg {
            class,
            number: u.choose_index(class.count())?,
        }),
    })
}

fn matrix(u: &mut Unstructured<'_>) -> Result<Matrix> {
    let integer = u.arbitrary()?;
    let mut registers = [0; 4];
    for first in &mut registers {
        *first = register(u)?;
    }
    Ok(Matrix {
        integer,
        long: integer && u.arbitrary()?,
        signed: u.arbitrary()?,
        registers,
    })
}
