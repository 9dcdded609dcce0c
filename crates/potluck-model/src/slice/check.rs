//! Which cuts are legal, without making a plan.

use potluck_core::{LayerRange, Manifest};

use super::{CutError, metadata, tensors};
use crate::{
    Admission, Cuts, Family,
    family::{self, Window},
};

/// Whether the layers can be a stage of the model: cheap, for planners that try many.
///
/// # Errors
/// As [`plan`](super::plan).
pub fn check_range(manifest: &Manifest, layers: LayerRange) -> Result<(), CutError> {
    crate::check(manifest)?;
    let (family, of) = (Family::of(manifest), manifest.layers());
    if let Admission::Refused(reason) = family.admission {
        return Err(CutError::Refused { architecture: manifest.architecture().into(), reason });
    }
    if layers.end() > of {
        return Err(CutError::NoSuchLayers { layers, of });
    }
    if layers.count() < of {
        check_boundary(manifest, &family.cuts, layers.start())?;
        check_boundary(manifest, &family.cuts, layers.end())?;
        metadata::check_lists(manifest)?;
        tensors::check_shared(manifest)?;
        if family::counted(manifest.architecture()).contains(&layers.count()) {
            return Err(CutError::Count { count: layers.count() });
        }
    }
    check_window(manifest, &family, layers)
}

/// For each boundary inside the model, 1 to n - 1, whether it may be cut there.
///
/// A cut that is legal here can still make a stage that is not (one without a window layer, say): see [`check_range`].
pub fn legal_cuts(manifest: &Manifest) -> Vec<Result<(), CutError>> {
    let of = manifest.layers().min(crate::ENGINE_LAYERS_MAX);
    let sound = check_any(manifest);
    let cuts = Family::of(manifest).cuts;
    (1..of).map(|layer| sound.clone().and_then(|()| check_boundary(manifest, &cuts, layer))).collect()
}

/// What stands against any cut at all.
fn check_any(manifest: &Manifest) -> Result<(), CutError> {
    crate::check(manifest)?;
    if let Admission::Refused(reason) = Family::of(manifest).admission {
        return Err(CutError::Refused { architecture: manifest.architecture().into(), reason });
    }
    metadata::check_lists(manifest)?;
    tensors::check_shared(manifest)
}

fn check_boundary(manifest: &Manifest, cuts: &Cuts, layer: u32) -> Result<(), CutError> {
    match *cuts {
        Cuts::Never(ref reason) => {
            Err(CutError::Never { architecture: manifest.architecture().into(), reason: reason.clone() })
        }
        Cuts::Multiples(period) if layer < manifest.layers() && !layer.is_multiple_of(period) => {
            Err(CutError::Boundary { layer, period })
        }
        Cuts::Multiples(_) | Cuts::Anywhere => Ok(()),
    }
}

fn check_window(manifest: &Manifest, family: &Family, layers: LayerRange) -> Result<(), CutError> {
    let removable = matches!(family.window, Window::Periodic { removable: true, .. });
    match family::window_layers(manifest) {
        Some(windows) if !removable && !any_window(&windows, layers) => Err(CutError::NoWindow { layers }),
        _ => Ok(()),
    }
}

/// True if one of the layers has a window.
pub(super) fn any_window(windows: &[bool], layers: LayerRange) -> bool {
    (layers.start()..layers.end()).any(|layer| windows.get(layer as usize).copied().unwrap_or(false))
}
