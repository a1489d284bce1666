//! Compiles a small kernel crate in a temporary folder. Needs a kernel toolchain and half a minute:
//! `cargo test -p flashtile-builder -- --ignored`.

use std::fs;
use std::path::Path;

use flashtile_builder::spec::EntrySpec;
use flashtile_builder::{Arch, Build, Builder, Error};

type Outcome = Result<(), Box<dyn std::error::Error>>;

const MANIFEST: &str = r#"
[package]
name = "small-kernels"
version = "0.1.0"
edition = "2024"
[lib]
crate-type = ["cdylib"]
[workspace]
"#;

const HEAD: &str = r#"
#![no_std]
#![allow(internal_features)]
#![feature(abi_ptx, asm_experimental_arch, stdarch_nvptx, link_llvm_intrinsics, abi_unadjusted)]
use core::arch::{asm, nvptx::_thread_idx_x};
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.all"]
    fn barrier(id: u32);
}
fn store(address: u64, value: u32) {
    unsafe { asm!("st.global.b32 [{0}], {1};", in(reg64) address, in(reg32) value) }
}
"#;

/// A table in constant memory, dynamic shared memory, and two barriers.
const GOOD: &str = r#"
static TABLE: [u32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];
#[unsafe(no_mangle)]
pub static small__barriers: u32 = 2;
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn small(out: u64, n: u32) {
    let thread = unsafe { _thread_idx_x() } as u32;
    let smem: u32;
    unsafe { asm!("mov.u32 {0}, flashtile_smem;", out(reg32) smem, options(pure, nomem, nostack)) };
    if thread < n {
        let value = TABLE[(thread & 7) as usize];
        unsafe { asm!("st.shared.b32 [{0}], {1};", in(reg32) smem + 4 * thread, in(reg32) value) };
    }
    unsafe { barrier(0) };
    let value: u32;
    unsafe { asm!("ld.shared.b32 {1}, [{0}];", in(reg32) smem + 4 * (thread ^ 1), out(reg32) value) };
    unsafe { barrier(0) };
    if thread < n {
        store(out + 4 * thread as u64, value);
    }
}
"#;

/// A bounds check, an access that does not say where, f64, and a wrong count of barriers.
const BAD: &str = r#"
static TABLE: [u32; 8] = [3, 1, 4, 1, 5, 9, 2, 6];
#[unsafe(no_mangle)]
pub static small__barriers: u32 = 1;
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn small(out: u64, n: u32) {
    let thread = unsafe { _thread_idx_x() } as u32;
    let double = unsafe { *(out as *const f64) } * 2.0;
    store(out, TABLE[n as usize] + thread + double.to_bits() as u32);
}
"#;

/// A struct of four tensor maps and a number, a warpgroup that gives registers away, a barrier that some only arrive at.
const HOPPER: &str = r#"
unsafe extern "unadjusted" {
    #[link_name = "llvm.nvvm.barrier.cta.sync.aligned.count"]
    fn barrier_sync(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.barrier.cta.arrive.aligned.count"]
    fn barrier_arrive(id: u32, threads: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.dec.sync.aligned.u32"]
    fn give_registers(registers: u32);
    #[link_name = "llvm.nvvm.setmaxnreg.inc.sync.aligned.u32"]
    fn take_registers(registers: u32);
    #[link_name = "llvm.nvvm.shfl.sync.idx.i32"]
    fn shuffle(mask: u32, value: u32, lane: u32, clamp: u32) -> u32;
}
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Params {
    maps: [[u64; 16]; 4],
    out: u64,
    count: u32,
}
#[unsafe(no_mangle)]
pub static small__barriers: u32 = 2;
#[unsafe(no_mangle)]
pub unsafe extern "ptx-kernel" fn small(params: Params) {
    let thread = unsafe { _thread_idx_x() } as u32;
    let warpgroup = unsafe { shuffle(u32::MAX, thread >> 7, 0, 31) };
    let maps: u64;
    unsafe { asm!("mov.b64 {0}, small_param_0; cvta.param.u64 {0}, {0};", out(reg64) maps, options(pure, nomem, nostack)) };
    let smem: u32;
    unsafe { asm!("mov.u32 {0}, flashtile_smem;", out(reg32) smem, options(pure, nomem, nostack)) };
    if warpgroup == 0 {
        unsafe { give_registers(24) };
        if thread == 0 {
            for map in 0..4 {
                unsafe {
                    asm!(
                        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [{1}, {{{2}, {2}}}], [{3}];",
                        in(reg32) smem + 1024 * (map + 1), in(reg64) maps + 128 * map as u64, in(reg32) params.count, in(reg32) smem
                    )
                };
            }
        }
        unsafe { barrier_arrive(1, 256) };
    } else {
        unsafe { take_registers(240) };
        unsafe { barrier_sync(1, 256) };
        store(params.out + 4 * thread as u64, thread);
    }
}
"#;

fn compile(folder: &Path, kernel: &str) -> Result<Build, Box<dyn std::error::Error>> {
    compile_for(Arch::Sm80, 64, folder, kernel)
}

fn compile_for(
    arch: Arch,
    threads: u32,
    folder: &Path,
    kernel: &str,
) -> Result<Build, Box<dyn std::error::Error>> {
    Ok(builder_for(arch, threads, folder, kernel)?.build()?)
}

fn builder_for(
    arch: Arch,
    threads: u32,
    folder: &Path,
    kernel: &str,
) -> Result<Builder, std::io::Error> {
    fs::create_dir_all(folder.join("kernels/src"))?;
    fs::write(folder.join("kernels/Cargo.toml"), MANIFEST)?;
    fs::write(folder.join("kernels/src/lib.rs"), format!("{HEAD}{kernel}"))?;
    let spec = EntrySpec {
        name: "small".into(),
        arch: arch.as_str(),
        threads,
        min_blocks: 256 / threads,
        shared_bytes: 256,
        allow_f64: false,
        work: None,
        loop_limit: None,
    };
    Ok(Builder::new(folder.join("kernels")).entries(vec![spec]))
}

#[test]
#[ignore = "needs a kernel toolchain and half a minute"]
fn the_same_ptx_wherever_the_checkout_lies() -> Outcome {
    let (here, there) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let first = compile(here.path(), GOOD)?;
    let ptx = &first.kernels[0].ptx;
    assert!(
        ptx.contains("\n.maxntid 64, 1, 1\n.minnctapersm 4\n"),
        "{ptx}"
    );
    assert!(
        ptx.contains("\n.extern .shared .align 1024 .b8 flashtile_smem[];\n"),
        "{ptx}"
    );
    assert!(ptx.contains(" small_kernels__TABLE__0[32] = "), "{ptx}");
    assert_eq!(first.kernels[0].params_bytes, 12);
    let second = compile(&there.path().join("deeper/in it"), GOOD)?;
    assert_eq!(first, second);
    Ok(())
}

#[test]
#[ignore = "needs a kernel toolchain and half a minute"]
fn what_hopper_needs_comes_through() -> Outcome {
    let folder = tempfile::tempdir()?;
    let build = compile_for(Arch::Sm90a, 256, folder.path(), HOPPER)?;
    let kernel = &build.kernels[0];
    let ptx = &kernel.ptx;
    for expected in [
        "\n.target sm_90a\n",
        "\t.param .align 64 .b8 small_param_0[528]\n",
        "\n.maxntid 256, 1, 1\n.minnctapersm 1\n",
        "bar.arrive ",
        "setmaxnreg.dec.sync.aligned.u32",
    ] {
        assert!(ptx.contains(expected), "{expected}: {ptx}");
    }
    assert_eq!(kernel.params_bytes, 528);
    if let Some(facts) = &kernel.facts {
        assert_eq!(facts.setmaxnreg, [24, 240]);
        assert_eq!((facts.stack_bytes, facts.notes.len()), (0, 0), "{facts:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs a kernel toolchain and half a minute"]
fn a_warning_is_an_error_where_that_is_asked_for() -> Outcome {
    let folder = tempfile::tempdir()?;
    let builder = |kernel| builder_for(Arch::Sm80, 64, folder.path(), kernel);
    let plain = builder(GOOD)?.build()?;
    let denied = builder(GOOD)?.deny_warnings(true).build()?;
    assert_eq!(plain.kernels[0].ptx, denied.kernels[0].ptx);
    let unused = format!("{GOOD}fn forgotten() {{}}");
    let with_warning = builder(&unused)?.build()?;
    assert_eq!(plain.kernels[0].ptx, with_warning.kernels[0].ptx);
    let error = builder(&unused)?.deny_warnings(true).build();
    assert!(
        matches!(&error, Err(Error::Compile { stderr, .. }) if stderr.contains("`forgotten`")),
        "{error:?}"
    );
    Ok(())
}

#[test]
#[ignore = "needs a kernel toolchain and half a minute"]
fn what_must_not_be_in_a_kernel_is_named() -> Outcome {
    let folder = tempfile::tempdir()?;
    let error = compile(folder.path(), BAD).err().ok_or("it was accepted")?;
    let text = error.to_string();
    for expected in [
        "core::panicking::panic_bounds_check is not inlined",
        "small: source has 1 barriers, PTX has 0",
        "small: calls core::panicking::panic_bounds_check",
        "memory accesses without a state space: ld.b64",
        "instructions in f64: ",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let error = compile(folder.path(), "fn broken( {")
        .err()
        .ok_or("it was accepted")?;
    let error = error.downcast::<Error>()?;
    assert!(
        matches!(&*error, Error::Compile { stderr, .. } if stderr.contains("src/lib.rs")),
        "{error}"
    );
    Ok(())
}
