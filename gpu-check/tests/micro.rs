//! The micro-tests themselves: they run on the emulator, they assemble, and they find what is planted.

use std::{collections::HashSet, fs, process::Command};

use flashtile_emulator::{Options, TENSOR_MAP_BYTES, TensorMap};
use flashtile_gpu_check::{
    dense,
    machine::{Emulated, Machine, models},
    maps,
    micro::{Access, Promise, Target, Test, all, module},
    report::{Outcome, Verdict, judge},
};

fn device() -> Emulated {
    Emulated::new("in place of a GPU", Default::default())
}

#[test]
fn the_emulator_agrees_with_itself() {
    let (device, models) = (device(), models());
    let wrong: Vec<_> = (all().iter())
        .map(|test| judge(&device, &models, test))
        .filter(|outcome| !matches!(outcome.verdict, Verdict::Identical | Verdict::Answered))
        .filter_map(|outcome| outcome.line())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A result that nothing computes would agree with itself too.
#[test]
fn results_depend_on_the_inputs() {
    // The same in every warp, or zero always.
    let constant = ["activemask.b32", "elect.sync", "lop3.b32, 0"];
    let constant = |name: &str| {
        constant.contains(&name)
            || name.ends_with("source size 0")
            // Zeros arrive, and nothing is written.
            || name.starts_with("TMA ") && name.contains("all outside")
            || name == "TMA load, a batch outside"
            // Every block of four words counts the same rounds.
            || name == "cluster, arrivals at both blocks' barriers"
    };
    let device = device();
    // Of what nobody knows, the emulator refuses some.
    let known = |test: &&Test| test.promise != Promise::Unknown;
    for test in all()
        .iter()
        .filter(known)
        .filter(|test| !constant(&test.name))
    {
        let output = device.run(test).unwrap();
        let differs = (0..test.outs.len()).any(|word| {
            let values: HashSet<u32> = output
                .iter()
                .skip(word)
                .step_by(test.outs.len())
                .copied()
                .collect();
            values.len() > 1
        });
        assert!(differs, "{}", test.name);
    }
}

/// Tests of several threads that wait for each other: those that write and read memory by themselves.
fn of_hopper() -> Vec<Test> {
    let tests = all().into_iter();
    let hopper = tests.filter(|test| test.access == Access::Memory);
    hopper
        .filter(|test| test.promise != Promise::Unknown)
        .collect()
}

/// What they do is right: no race, nothing read that was not written, no wait left behind.
#[test]
fn the_sanitizer_finds_nothing_in_tests_of_several_threads() {
    let options = Options {
        sanitize: true,
        ..Options::default()
    };
    let device = Emulated::new("sanitizing", options);
    let found: Vec<_> = (of_hopper().iter())
        .filter_map(|test| Some(format!("{}: {}", test.name, device.run(test).err()?)))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Waits end by themselves, before their time is over: the status of every thread is 0.
#[test]
fn no_wait_is_given_up() {
    let device = device();
    let mut waiting = 0;
    for test in of_hopper() {
        let status = test.ptx().contains("st.global.u32 [%d20], %r50;");
        let pair = test.ptx().contains("{%r50, %r30}");
        if !status && !pair {
            continue;
        }
        waiting += 1;
        let output = device.run(&test).unwrap();
        let block = test.block as usize * test.outs.len();
        for words in output.chunks(block) {
            let statuses: Vec<_> = match pair {
                true => words.iter().step_by(2).collect(),
                false => words[..test.block as usize].iter().collect(),
            };
            assert!(statuses.iter().all(|&&it| it == 0), "{}", test.name);
        }
    }
    assert!(waiting > 40, "{waiting}");
}

/// A load whose bytes are announced as more than come: the wait is given up, and the status says how many are missing.
#[test]
fn missing_bytes_are_counted() {
    let mut test = named("TMA load, 128-byte swizzle");
    let said = "expect_tx.shared::cta.b64 _, [%r3], 8192;";
    assert!(test.body.contains(said));
    test.body = test.body.replace(said, &said.replace("8192", "8224"));
    // The emulator calls a wait that nobody ends a deadlock, unless time is over at once.
    test.body = test.body.replace(
        "setp.lt.u64 %p11, %d21, 20000000;",
        "setp.lt.u64 %p11, %d21, 0;",
    );
    let output = device().run(&test).unwrap();
    assert_eq!(output[0], 0x8000_0020);
}

/// The opcodes of PTX text, with their modifiers.
fn opcodes(text: &str) -> HashSet<String> {
    let instructions = text
        .lines()
        .map(str::trim)
        .filter(|line| line.ends_with(';'));
    let opcode = |line: &str| {
        let line = match line.strip_prefix('@') {
            Some(guarded) => guarded.split_once(' ')?.1,
            None => line,
        };
        let word = line.split([' ', '\t', ';']).next()?;
        word.starts_with(|c: char| c.is_ascii_lowercase())
            .then(|| word.to_owned())
    };
    instructions.filter_map(opcode).collect()
}

/// Coverage by construction: what a kernel computes with is compared. Moves, plain loads and stores, and control flow
/// are left to the kernels' own tests.
#[test]
fn every_instruction_of_the_kernels_is_compared() {
    let tested: HashSet<String> = all().iter().flat_map(|test| opcodes(&test.ptx())).collect();
    let plain = [
        "bra",
        "bra.uni",
        "brx.idx",
        "ret",
        "or.pred",
        "and.pred",
        "xor.pred",
        "not.pred",
        "mov.pred",
        "bar.warp.sync",
    ];
    let mut missing = Vec::new();
    for kernel in flashtile::kernels() {
        for opcode in opcodes(&flashtile::ptx(kernel.entry).unwrap()) {
            let plain = plain.contains(&opcode.as_str())
                || ["ld.", "st.", "mov."]
                    .iter()
                    .any(|name| opcode.starts_with(name));
            if !plain && !tested.contains(&opcode) {
                missing.push(opcode);
            }
        }
    }
    missing.sort();
    missing.dedup();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn names_are_unique() {
    let tests = all();
    let names: HashSet<_> = tests.iter().map(|test| &test.name).collect();
    assert_eq!(names.len(), tests.len());
    assert!(tests.len() > 300);
}

/// The emulator with one output bit of one test wrong.
struct Broken {
    inner: Emulated,
    word: usize,
    bit: u32,
}

impl Machine for Broken {
    fn name(&self) -> String {
        "broken".into()
    }

    fn capability(&self) -> (u32, u32) {
        self.inner.capability()
    }

    fn run(&self, test: &Test) -> Result<Vec<u32>, String> {
        let mut output = self.inner.run(test)?;
        output[self.word] ^= 1 << self.bit;
        Ok(output)
    }

    fn encode(&self, map: &TensorMap) -> Result<[u8; TENSOR_MAP_BYTES], String> {
        self.inner.encode(map)
    }
}

fn named(name: &str) -> Test {
    let found = all().into_iter().find(|test| test.name == name);
    found.unwrap_or_else(|| panic!("no test is called {name}"))
}

fn with_bit(name: &str, word: usize, bit: u32) -> Outcome {
    let device = Broken {
        inner: device(),
        word,
        bit,
    };
    judge(&device, &models(), &named(name))
}

#[test]
fn a_planted_difference_is_found() {
    // Exact: thread 5, first of two words.
    let found = with_bit("shfl.sync.idx.b32", 10, 3);
    assert_eq!(found.verdict, Verdict::Different);
    let comparison = found.comparison.as_ref().unwrap();
    assert_eq!((comparison.differing, comparison.incomparable), (1, 1));
    let sample = &comparison.samples[0];
    assert_eq!(
        (sample.thread, sample.word, sample.input.len(), sample.ulp),
        (5, 0, 3, None)
    );
    assert!(found.line().unwrap().contains("thread 5"));

    // An approximation: one unit is allowed, 2^14 are not. Thread 8 computes 2^1.
    let found = with_bit("ex2.approx.ftz.f32", 8, 0);
    assert_eq!(found.verdict, Verdict::Allowed);
    assert_eq!(found.comparison.unwrap().max_ulp, 1);
    assert_eq!(
        with_bit("ex2.approx.ftz.f32", 8, 20).verdict,
        Verdict::Different
    );

    // A sum whose order is open: the report says how many differ from which model.
    let found = with_bit(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, ordinary",
        77,
        0,
    );
    assert_eq!(found.verdict, Verdict::Allowed);
    assert_eq!((found.models[0].differing, found.models[0].max_ulp), (1, 1));
}

/// Another word of a test that reads and writes memory by itself: the report keeps all that the device gave.
#[test]
fn a_planted_difference_in_memory_is_kept_whole() {
    let found = with_bit("TMA load, rows partly outside", 200, 7);
    assert_eq!(found.verdict, Verdict::Different);
    let comparison = found.comparison.as_ref().unwrap();
    assert_eq!(comparison.differing, 1);
    assert_eq!(found.words.len(), comparison.words);
}

/// A driver whose maps have other bits, and that refuses some.
struct Driver(Emulated);

impl Machine for Driver {
    fn name(&self) -> String {
        "driver".into()
    }

    fn capability(&self) -> (u32, u32) {
        (9, 0)
    }

    fn run(&self, _: &Test) -> Result<Vec<u32>, String> {
        Err("no".into())
    }

    fn encode(&self, map: &TensorMap) -> Result<[u8; TENSOR_MAP_BYTES], String> {
        if map.dims.len() == 1 || map.strides.contains(&0) {
            return Err("no".into());
        }
        let mut bytes = self.0.encode(map)?;
        bytes[10] ^= 0x20;
        Ok(bytes)
    }
}

#[test]
fn tensor_maps_of_a_driver_are_compared() {
    let same = maps::run(&device(), &device());
    assert!(same.iter().all(|map| map.ok() && map.differing.is_empty()));
    let found = maps::run(&Driver(device()), &device());
    let named = |name: &str| found.iter().find(|map| map.name == name).unwrap();
    // Another layout is no mistake of the driver's; the report shows it.
    let kernels = named("as the kernels");
    assert!(kernels.ok());
    let [(at, there, here)] = kernels.differing[..] else {
        panic!("{kernels:?}");
    };
    assert_eq!((at, there ^ here), (10, 0x20));
    assert!(kernels.line().contains("OTHER BYTES 0x0a: "));
    // What is documented to be good must be taken, and only that.
    assert!(!named("rank 1").ok());
    assert!(named("a stride of 0").ok());
    assert!(named("a stride of 0").line().contains("REFUSED"));
}

#[test]
fn experiments_report_what_the_device_gave() {
    let found = judge(
        &device(),
        &models(),
        &named("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, experiments"),
    );
    assert!(found.answers.iter().all(|answer| answer.uniform));
    let answer = |name: &str| {
        let found = found
            .answers
            .iter()
            .find(|answer| answer.experiment == name);
        u32::from_str_radix(
            &found
                .unwrap_or_else(|| panic!("no experiment `{name}`"))
                .device,
            16,
        )
        .unwrap()
    };
    // What the emulator's own way of summing gives: one by one, ascending, rounded to nearest.
    assert_eq!(answer("1 and 2^-24, tie to even"), 0x3f80_0000);
    assert_eq!(answer("1 + u and 2^-24, tie to even"), 0x3f80_0002);
    assert_eq!(answer("1 and 2 times 2^-24"), 0x3f80_0000);
    assert_eq!(
        f32::from_bits(answer("2^14, -2^14, and 2^-14 at 9")),
        2f32.powi(-14)
    );
    assert_eq!(
        f32::from_bits(answer("2^14 at 0, -2^14 at 9, c = 2^-14")),
        0.0
    );
    assert_eq!(answer("2^-149 twice"), 2);
    // A lane that has another sum than the others does not go unseen.
    let odd = with_bit(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32, experiments",
        130,
        0,
    );
    assert_eq!(
        odd.answers.iter().filter(|answer| !answer.uniform).count(),
        1
    );
}

struct Old;

impl Machine for Old {
    fn name(&self) -> String {
        "old".into()
    }

    fn capability(&self) -> (u32, u32) {
        (8, 6)
    }

    fn run(&self, test: &Test) -> Result<Vec<u32>, String> {
        match test.target {
            Target::Sm80 => Err("no".into()),
            _ => panic!("{} is too new", test.name),
        }
    }

    fn encode(&self, _: &TensorMap) -> Result<[u8; TENSOR_MAP_BYTES], String> {
        Err("no".into())
    }
}

#[test]
fn what_a_device_lacks_is_skipped_and_what_it_refuses_fails() {
    let old = Old;
    assert_eq!(
        judge(&old, &models(), &named("elect.sync")).verdict,
        Verdict::Skipped
    );
    let refused = judge(&old, &models(), &named("prmt.b32"));
    assert_eq!(refused.verdict, Verdict::Failed);
    assert!(refused.line().unwrap().contains("old: no"));
}

#[test]
fn sweeps_run_and_find_what_is_planted() {
    let (there, here) = (device(), &models()[0]);
    for sweep in dense::sweeps(4096) {
        let (section, _) = dense::run(&there, here, &sweep).unwrap();
        assert_eq!(
            (section.by_ulp, section.nan_bits, section.incomparable),
            ([0; 4], 0, 0),
            "{}",
            section.line()
        );
        assert_eq!(section.count, sweep.count);
    }
    let broken = Broken {
        inner: device(),
        word: 100,
        bit: 2,
    };
    let sweep = dense::sweeps(4096)[0];
    let (section, _) = dense::run(&broken, here, &sweep).unwrap();
    assert_eq!(
        (section.by_ulp, section.max_ulp, section.within),
        ([0, 0, 0, 1], 4, Some(false))
    );
    assert_eq!(section.at, sweep.start + 100 * sweep.step);
}

#[test]
fn everything_assembles() {
    let Some(ptxas) = std::env::var_os("FLASHTILE_PTXAS") else {
        println!("skipped: FLASHTILE_PTXAS is not set");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let tests = all();
    for target in Target::ALL {
        let path = folder.path().join(target.name()).with_extension("ptx");
        fs::write(&path, module(&tests, target)).unwrap();
        let arch = format!("-arch={}", target.name());
        let output = Command::new(&ptxas)
            .args([&arch, "-O1", "-o", "/dev/null"])
            .arg(&path)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {log}", target.name());
    }
}
