//! The reader of safetensors files.

use std::io::Cursor;

use flashtile::{DeviceInfo, ErrorClass, cpu, serving};
use flashtile_cli::{failure::Result, input::Source};
use safetensors::tensor::Metadata;

use super::work;

/// Most multiplications of a problem that is computed.
const MOST_WORK: u128 = 1 << 16;

/// Any bytes as what `flashtile attend` is given: an error in one sentence, or tensors whose attention can be computed.
/// The bytes are taken as a whole file, and as a header that gets its size in front and its tensors' bytes behind.
pub fn safetensors(data: &[u8]) {
    check(attend(data));
    let sized = serde_json::from_slice::<Metadata>(data).map_or(0, |header| header.data_len());
    if sized <= 1 << 16 {
        let mut file = (data.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(data);
        // Bytes of finite numbers in every type.
        file.extend((0..sized).map(|n| (n % 61) as u8));
        check(attend(&file));
    }
}

fn check(outcome: Result<()>) {
    if let Err(failure) = outcome {
        assert_ne!(failure.exit_status(), 1, "{failure}");
        assert!(!failure.to_string().is_empty());
    }
}

/// As [`attend`], where the file has lengths, pages and the like.
fn serve(source: Source<Cursor<&[u8]>>, latent: Option<usize>) -> Result<()> {
    let contents = source.read_serving(latent)?;
    let (problem, inputs) = (contents.problem().lse(true), contents.inputs());
    match problem.plan(&DeviceInfo::emulator()) {
        Err(error) if error.class() == ErrorClass::BadInput => return Err(error.into()),
        _ => {}
    }
    problem.check_metadata(&inputs)?;
    let [_, _, heads, dim_qk] = problem.q.shape;
    let sizes = [
        problem.batch,
        problem.q_lengths.longest.max(1),
        problem.k_lengths.longest.max(1),
        heads,
        dim_qk.saturating_add(problem.v.shape[3]),
    ];
    let work = sizes
        .iter()
        .try_fold(1u128, |work, &n| work.checked_mul(n as u128));
    if work.is_some_and(|work| work <= MOST_WORK) {
        let outputs = serving::attention_cpu(&problem, &inputs)?;
        let width = problem.out_element().bytes() as usize;
        assert_eq!(Some(outputs.out.len() / width), problem.out.elements());
    }
    Ok(())
}

/// What the command does from the file to the result, on the CPU.
fn attend(file: &[u8]) -> Result<()> {
    let source = Source::new(Cursor::new(file), file.len() as u64, "in.safetensors")?;
    assert!(source.bytes() <= file.len() as u64);
    // As with --latent 3, where there are no values.
    let latent = source.check_values(None).is_err().then_some(3);
    if source.is_serving() || latent.is_some() {
        return serve(source, latent);
    }
    let problem = source.problem(None)?.lse(true);
    match problem.plan(&DeviceInfo::emulator()) {
        Err(error) if error.class() == ErrorClass::BadInput => return Err(error.into()),
        _ => {}
    }
    source.check_scales(&problem)?;
    let contents = source.read()?;
    if work(&problem).is_some_and(|work| work <= MOST_WORK) {
        let outputs = cpu::attention(&problem, &contents.inputs())?;
        assert_eq!(
            Some(outputs.out.len() / problem.out_element().bytes() as usize),
            problem.out.elements()
        );
    }
    Ok(())
}
