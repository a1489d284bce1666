//! Decodes every entry of the PTX files given, and says how much of the machine each needs.

use std::time::Instant;

use flashtile_emulator::Module;

fn main() {
    let mut failed = false;
    for path in std::env::args().skip(1) {
        let start = Instant::now();
        let module = match std::fs::read_to_string(&path)
            .map_err(|e| e.to_string())
            .and_then(|text| Module::parse(&text).map_err(|e| e.to_string()))
        {
            Ok(module) => module,
            Err(error) => {
                println!("{path}: {error}");
                failed = true;
                continue;
            }
        };
        for entry in module.entries() {
            match module.decode(&entry.name) {
                Ok(()) => {
                    println!(
                        "{path}: {}: {} bytes of parameters, {} bytes of static shared memory, blocks of {:?} threads at most, clusters \
                         of {:?} blocks, {:.1} ms",
                        entry.name,
                        entry.params_size,
                        entry.static_shared,
                        entry.max_threads.unwrap_or([1024, 1, 1]),
                        entry.cluster.unwrap_or([1; 3]),
                        start.elapsed().as_secs_f64() * 1e3
                    );
                }
                Err(error) => {
                    println!("{path}: {}: {error}", entry.name);
                    failed = true;
                }
            }
        }
    }
    std::process::exit(i32::from(failed));
}
