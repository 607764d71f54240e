"""ModelNet10 and ModelNet40: OFF meshes as voxels."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from rankfold._progress import track
from rankfold.errors import DataError, MissingExtra
from rankfold.zoo.array_cache import cached
from rankfold.zoo.data_sets import DATA_SETS, find_files
from rankfold.zoo.samples import SampleArray

_SIZE = 32


def modelnet(kind: str, path: str, split: str) -> SampleArray:
    """Return the bool voxels ``(N, 1, 32, 32, 32)`` and labels of a split of ModelNet (Wu et al. 2015).

    The folder holds ``<class>/train/<name>.off`` and ``<class>/test/<name>.off``, also in ``ModelNet10`` or
    ``ModelNet40``. Labels number the classes in alphabetical order. Each mesh is scaled until its longest side fills 30
    voxels, centered, and filled inside; the axes are x, y and z. Voxels are cached.
    """
    title, classes = DATA_SETS[kind].title, DATA_SETS[kind].classes
    files = find_files(kind, path, split, f"*/{split}/*.off", f"{title}/*/{split}/*.off")
    names = sorted({file.parent.parent.name for file in files})
    if len(names) != classes:
        raise DataError(f"{path!r} has {split} meshes of {len(names)} classes, {title} has {classes}. Unpack it again.")
    labels = torch.tensor([names.index(file.parent.parent.name) for file in files], dtype=torch.int64, device="cpu")
    return cached(f"{kind}-{split}", files, lambda: SampleArray(_decode(files), labels))


def _decode(files: list[Path]) -> torch.Tensor:
    trimesh = _trimesh()
    grids = np.zeros((len(files), 1, _SIZE, _SIZE, _SIZE), bool)
    for grid, file in zip(grids, track(files, "voxels"), strict=True):
        try:
            grid[0] = _voxels(trimesh, file)
        # A damaged mesh can raise almost any error.
        except Exception as error:
            raise DataError(
                f"{str(file)!r} cannot be read as a mesh: {error or type(error).__name__}. Unpack it again."
            ) from error
    return torch.from_numpy(grids)


def _voxels(trimesh: ModuleType, file: Path) -> np.ndarray:
    """Return the voxels ``(32, 32, 32)`` on and inside the surface of a mesh."""
    from scipy.ndimage import binary_fill_holes

    mesh = trimesh.load_mesh(file, process=False)
    mesh.remove_unreferenced_vertices()
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    # Slightly less than 30 voxels: the highest vertices would otherwise begin another one.
    scale = (_SIZE - 2 - 1e-6) / (high - low).max()
    if not np.isfinite(scale):
        raise ValueError("it has no extent")
    # Edges of at most half a voxel leave no hole in the surface.
    points, _ = trimesh.remesh.subdivide_to_size((mesh.vertices - (low + high) / 2) * scale, mesh.faces, max_edge=0.5)
    grid = np.zeros((_SIZE, _SIZE, _SIZE), bool)
    grid[tuple((points + _SIZE / 2).astype(int).T)] = True
    return np.asarray(binary_fill_holes(grid))


def _trimesh() -> ModuleType:
    try:
        import trimesh
    except ImportError as error:
        raise MissingExtra("reading meshes", "datasets", "trimesh") from error
    return trimesh
