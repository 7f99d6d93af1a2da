"""How many output pixels a gather tries: one that it misses shows in gradients, needless ones show only here.

A number that falls is progress, to be recorded.
"""

from collections import Counter

import pytest
import torch

from stn_triton import launch, splines, tuning
from stn_triton.kernels import backward, boxes, walk
from stn_triton.options import Options

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts what Triton's interpreter calls")
# Called once for each of them.
CALLED = {
    "matrices": (backward, "walk"),
    "ranges": (walk, "row_range"),
    "pixels": (walk, "visit"),
    "chunks": (boxes, "chunk_origin"),
    "tiles": (boxes, "pixels_of"),
}


@pytest.fixture
def tried(monkeypatch):
    """How often the bodies of the loops ran, in programs of 8 x 8 input pixels."""
    counts = Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name, (module, function) in CALLED.items():
        monkeypatch.setattr(module, function, counted(name, getattr(module, function)))
    blocks = {"BLOCK_H": 8, "BLOCK_W": 8}
    torch.use_deterministic_algorithms(True)
    with tuning.choosing(lambda bucket, _: {**tuning.default(bucket), **blocks}):
        yield counts
    torch.use_deterministic_algorithms(False)


def gather(theta, options, size_in, size, images=1):
    theta = torch.as_tensor(theta, dtype=torch.float32)
    theta = theta if theta.ndim == 3 else theta[None]
    grad, image = torch.ones(len(theta), 1, *size), torch.ones(images, 1, *size_in)
    launch.backward(grad, image, theta, options, (True, False, False))


MAPS = {
    "identity": [[1, 0, 0], [0, 1, 0]],
    "rotation": [[0.83, -0.55, 0.1], [0.55, 0.83, -0.2]],
    "shrink": [[2.03, 0.11, 0.013], [0.07, 1.97, 0.031]],
    "zoom": [[0.31, 0.05, 0.21], [-0.04, 0.27, 0.07]],
    "singular": [[1, 1, 0], [1, 1, 0]],
    "outside": [[1, 0, 5], [0, 1, 0]],
}
# Ranges of rows that were looked for, one per tile; and pixels.
TRIED = {
    ("nearest", "zeros", "rotation"): (6, 8),
    ("nearest", "zeros", "shrink"): (6, 4),
    ("nearest", "border", "rotation"): (6, 12),
    ("nearest", "border", "shrink"): (6, 48),
    ("bilinear", "zeros", "identity"): (6, 24),
    ("bilinear", "zeros", "rotation"): (6, 24),
    ("bilinear", "zeros", "shrink"): (6, 9),
    ("bilinear", "zeros", "zoom"): (6, 75),
    ("bilinear", "zeros", "singular"): (6, 84),
    ("bilinear", "zeros", "outside"): (6, 0),
    ("bilinear", "border", "identity"): (6, 24),
    ("bilinear", "border", "rotation"): (6, 32),
    ("bilinear", "border", "shrink"): (6, 51),
    ("bilinear", "border", "zoom"): (6, 47),
    ("bilinear", "border", "singular"): (6, 80),
    ("bilinear", "border", "outside"): (6, 48),
    ("bicubic", "zeros", "rotation"): (6, 88),
    ("bicubic", "border", "rotation"): (6, 74),
}


@pytest.mark.parametrize(("mode", "padding_mode", "name"), TRIED)
def test_of_images(tried, mode, padding_mode, name):
    gather(MAPS[name], Options(mode, padding_mode), (9, 18), (10, 12))
    assert (tried["ranges"], tried["pixels"]) == TRIED[mode, padding_mode, name]


@pytest.mark.parametrize(
    ("padding_mode", "antialias", "matrices", "pixels"),
    [("zeros", False, 15, 90), ("border", False, 46, 180), ("zeros", True, 19, 99)],
)
def test_of_many_matrices(tried, padding_mode, antialias, matrices, pixels):
    """Nine crops along a diagonal, of which most do not reach each of the six tiles."""
    theta = torch.tensor([[0.3, 0.05, 0], [-0.05, 0.3, 0]]).repeat(9, 1, 1)
    theta[:, 0, 2] = torch.linspace(-1.2, 1.2, 9)
    theta[:, 1, 2] = torch.linspace(0.7, -0.7, 9)
    theta *= 4 if antialias else 1
    gather(theta, Options("bilinear", padding_mode, False, antialias), (9, 18), (4, 4))
    assert (tried["matrices"], tried["pixels"]) == (matrices, pixels)


def test_of_splines(tried):
    """Chunks of 16 x 32 output pixels, tiles of 2 x 4."""
    points = tuple(splines.regular_points(3, 3))
    offsets = torch.linspace(-0.3, 0.3, 18).view(1, 9, 2).sin() ** 2
    theta = splines.coefficients(offsets, points, torch.float32)
    gather(theta, Options(points=points), (12, 24), (20, 40))
    assert (tried["chunks"], tried["tiles"]) == (16, 137)
