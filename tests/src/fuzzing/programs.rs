//! The emulator against plain Rust.

use arbitrary::{Arbitrary, Unstructured};
use flashtile_emulator::{AsyncTiming, Emulator, Launch, LaunchError, Module, Options};

use super::options;
use crate::program::{Memory, Program, evaluate, render};

/// Any bytes as a random valid program: the emulator leaves the very bits that plain Rust computes, with asynchronous
/// copies late and early.
pub fn emulator(data: &[u8]) {
    let Ok(program) = Program::arbitrary(&mut Unstructured::new(data)) else {
        return;
    };
    check(&program);
}

/// Runs a program both ways.
///
/// # Panics
/// If the emulator refuses it, or leaves other bits.
pub fn check(program: &Program) {
    let text = render(program);
    let expected = evaluate(program);
    let module =
        Module::parse(&text).unwrap_or_else(|error| panic!("{error}\n{}", shown(program, &text)));
    let timings = match text.contains("cp.async") {
        true => &[AsyncTiming::Late, AsyncTiming::Early][..],
        false => &[AsyncTiming::Late],
    };
    for &timing in timings {
        let found = launch(program, &module, timing)
            .unwrap_or_else(|error| panic!("{error}\n{}", shown(program, &text)));
        if found != expected {
            let difference = difference(program, &found, &expected);
            panic!("{difference}\n{}", shown(program, &text));
        }
    }
}

fn launch(program: &Program, module: &Module, timing: AsyncTiming) -> Result<Memory, LaunchError> {
    let device = Emulator::new(Options {
        async_copies: timing,
        ..options()
    });
    let mut memory = Memory::before(program);
    let input: Vec<u8> = program
        .input
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    // Allocations end with what is in them: beyond, every access faults.
    let upload = |bytes: &[u8]| -> Result<u64, LaunchError> {
        let address = device.allocate(bytes.len() as u64)?;
        device.write(address, bytes)?;
        Ok(address)
    };
    let addresses = [
        upload(&input)?,
        upload(&memory.own)?,
        upload(&memory.cells)?,
        upload(&memory.dump)?,
    ];
    let launch = Launch {
        grid: [program.blocks as u32, 1, 1],
        block: [program.threads as u32, 1, 1],
        cluster: None,
        dynamic_shared: program.dynamic_shared(),
        params: &addresses.map(u64::to_le_bytes).concat(),
    };
    device.launch(module, "k", &launch)?;
    let parts = [&mut memory.own, &mut memory.cells, &mut memory.dump];
    for (part, address) in parts.into_iter().zip(&addresses[1..]) {
        device.read(*address, part)?;
    }
    Ok(memory)
}

/// The first place where two memories differ.
fn difference(program: &Program, found: &Memory, expected: &Memory) -> String {
    for (name, found, expected) in [
        ("own", &found.own, &expected.own),
        ("cells", &found.cells, &expected.cells),
        ("dump", &found.dump, &expected.dump),
    ] {
        if let Some(at) = found.iter().zip(expected).position(|(a, b)| a != b) {
            let threads = program.blocks * program.threads;
            let each = found.len() / threads.max(1);
            let end = (at + 8).min(found.len());
            return format!(
                "{name}: byte {at} (of thread {}, its byte {}) is {:02x?}, expected {:02x?}",
                at / each.max(1),
                at % each.max(1),
                &found[at..end],
                &expected[at..end]
            );
        }
    }
    "no difference".into()
}

fn shown(program: &Program, text: &str) -> String {
    format!(
        "{} blocks of {} threads, input {:x?}\n{text}",
        program.blocks, program.threads, program.input
    )
}
