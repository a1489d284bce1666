use flashtile::{EmulatorDevice, device::emulator::Options};
use flashtile_emulator::AsyncTiming;
use flashtile_verify::{Case, Tensors, judge, memory::run};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let case: Case = a[1].parse().unwrap();
    let t = Tensors::of(&case);
    for timing in [
        AsyncTiming::Late,
        AsyncTiming::Early,
        AsyncTiming::Seeded(1),
        AsyncTiming::Seeded(2),
    ] {
        let d = EmulatorDevice::with_options(Options {
            memory_limit: 4 << 30,
            async_copies: timing,
            ..Options::default()
        });
        match run(&d, &case, &t) {
            Ok(r) => println!(
                "{timing:?}: {:?}",
                judge(&case, &t, &r).map_err(|e| e.lines().take(5).collect::<Vec<_>>().join("|"))
            ),
            Err(e) => println!(
                "{timing:?}: {}",
                e.to_string().chars().take(300).collect::<String>()
            ),
        }
    }
}
