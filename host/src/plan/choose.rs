//! Which kernel computes a problem.

use flashtile_abi::{Arch, ScoreModKind, Variant, variants};

use crate::{
    device::{DeviceInfo, DeviceKind},
    error::{Error, Result},
    plan::Obstacle,
    problem::Problem,
};

/// The smallest kernel of a tier (by padded head dimensions) that computes the problem on the device.
pub(crate) fn choose(
    problem: &Problem,
    capped: bool,
    device: &DeviceInfo,
    arch: Arch,
) -> Result<&'static Variant> {
    let [q, v] = [problem.q.shape[3], problem.v.shape[3]];
    let missing = |missing: String| Error::NoVariant {
        algorithm: problem.algorithm,
        arch,
        dtype: problem.dtype,
        missing,
    };
    supports(device, arch)?;

    // Requirement by requirement, so that the message names the first that nothing meets.
    let of_kind = || of_kind(problem, arch);
    if of_kind().next().is_none() {
        return Err(missing(
            "this algorithm has no kernel of this element type".into(),
        ));
    }
    let capping = || of_kind().filter(|x| fits_cap(x.score_mod, capped));
    if capping().next().is_none() {
        return Err(missing(match capped {
            true => "none of them caps scores (softcap)".into(),
            false => "all of them cap scores (softcap)".into(),
        }));
    }
    let wide = || {
        capping().filter(|x| x.tile.head_dim_qk as usize >= q && x.tile.head_dim_v as usize >= v)
    };
    if wide().next().is_none() {
        let widest = capping()
            .map(|x| (x.tile.head_dim_qk, x.tile.head_dim_v))
            .max();
        let (widest_qk, widest_v) = widest.unwrap_or_default();
        return Err(missing(format!(
            "head_dim_qk {q} with head_dim_v {v} is beyond the widest, {widest_qk} with {widest_v}"
        )));
    }
    wide()
        .filter(|x| x.shared_bytes <= device.shared_bytes_per_block)
        .min_by_key(|x| x.tile.head_dim_qk + x.tile.head_dim_v)
        .ok_or_else(|| {
            missing(format!(
                "each needs more shared memory than the {} bytes a block has on {}",
                device.shared_bytes_per_block, device.name
            ))
        })
}

/// A tier's kernels of the problem's algorithm and element type.
fn of_kind(problem: &Problem, arch: Arch) -> impl Iterator<Item = &'static Variant> {
    let kind = (problem.algorithm, problem.dtype);
    let of_arch = variants().iter().filter(move |x| x.arch == arch);
    of_arch.filter(move |x| (x.algorithm, x.tile.dtype) == kind)
}

/// Why a problem cannot have its kernel of the sm_90a tier, if that is the driver's fault alone.
pub(crate) fn driver_obstacle(
    problem: &Problem,
    capped: bool,
    device: &DeviceInfo,
) -> Option<Obstacle> {
    let obstacle = Obstacle::of_driver(device)?;
    let newer = DeviceInfo {
        driver_lacks: None,
        ..device.clone()
    };
    choose(problem, capped, &newer, Arch::Sm90a)
        .is_ok()
        .then_some(obstacle)
}

/// The error of the sm_80 tier with the reason for which it had to be that one, if the sm_90a tier has a kernel for the problem;
/// or the error of the sm_90a tier, if it alone has kernels of this kind.
pub(crate) fn name_both(
    error: Error,
    problem: &Problem,
    capped: bool,
    device: &DeviceInfo,
    obstacle: Option<Obstacle>,
) -> Error {
    let Error::NoVariant {
        algorithm,
        arch,
        dtype,
        missing,
    } = error
    else {
        return error;
    };
    let hopper = Arch::Sm90a;
    // The emulator runs every tier.
    let of_hopper = choose(problem, capped, &DeviceInfo::emulator(), hopper);
    if of_kind(problem, arch).next().is_none()
        && of_kind(problem, hopper).next().is_some()
        && let Err(error) = of_hopper
    {
        return error;
    }
    let reason = match supports(device, hopper) {
        _ if of_hopper.is_err() => None,
        Err(Error::NoDevice { reason }) => Some(reason),
        _ => obstacle.map(|obstacle| obstacle.to_string()),
    };
    Error::NoVariant {
        algorithm,
        arch,
        dtype,
        missing: match reason {
            Some(reason) => format!("{missing}; {} has one, but {reason}", hopper.as_str()),
            None => missing,
        },
    }
}

/// Refuses a kernel that does not compute the problem, or does not run on the device.
pub(crate) fn computes(
    problem: &Problem,
    capped: bool,
    device: &DeviceInfo,
    variant: &Variant,
) -> Result<()> {
    supports(device, variant.arch)?;
    let [q, v] = [problem.q.shape[3], problem.v.shape[3]];
    let tile = &variant.tile;
    let wanted = (problem.algorithm, problem.dtype) == (variant.algorithm, tile.dtype)
        && fits_cap(variant.score_mod, capped)
        && q <= tile.head_dim_qk as usize
        && v <= tile.head_dim_v as usize
        && variant.shared_bytes <= device.shared_bytes_per_block;
    match wanted {
        true => Ok(()),
        false => Err(Error::NoVariant {
            algorithm: problem.algorithm,
            arch: variant.arch,
            dtype: problem.dtype,
            missing: format!("{} is a kernel for other problems", variant.name),
        }),
    }
}

/// Whether a kernel with this score modification computes capped or uncapped scores.
fn fits_cap(kind: ScoreModKind, capped: bool) -> bool {
    match kind {
        ScoreModKind::None => !capped,
        ScoreModKind::Softcap => capped,
        ScoreModKind::OptionalSoftcap => true,
    }
}

/// Refuses a device that cannot run code of the target.
pub(crate) fn supports(device: &DeviceInfo, arch: Arch) -> Result<()> {
    let (major, minor) = device.compute_capability;
    let runs = match (device.kind, arch) {
        (DeviceKind::Emulator, _) => true,
        (_, Arch::Sm80) => major >= 8,
        (_, Arch::Sm90a) => (major, minor) == (9, 0),
    };
    if runs {
        return match arch {
            Arch::Sm80 => Ok(()),
            Arch::Sm90a => Obstacle::of_driver(device).map_or(Ok(()), |it| Err(it.error())),
        };
    }
    let wanted = match arch {
        Arch::Sm80 => "8.0 or later (Ampere)",
        Arch::Sm90a => "9.0 exactly (Hopper)",
    };
    Err(Error::NoDevice {
        reason: format!(
            "{} has compute capability {major}.{minor}; {} kernels need {wanted}",
            device.name,
            arch.as_str()
        ),
    })
}
