"""Number of output pixels that a gather tries. Needless ones show here only, missed ones in gradients.

If a change of the kernels lowers a number, update it here.
"""

from collections import Counter

import pytest
import torch

from stn_triton import launch, policy, tuning
from stn_triton.kernels import backward, walk
from stn_triton.options import Options

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="counts what Triton's interpreter calls")
# Function called once per item of each loop.
CALLED = {"matrices": (backward, "walk"), "pixels": (walk, "visit")}


@pytest.fixture
def tried(monkeypatch):
    """Count the runs of the bodies of the loops, in programs of 8 x 8 input pixels."""
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
    with tuning.choosing(lambda bucket, _: {**policy.default(bucket), **blocks}):
        yield counts
    torch.use_deterministic_algorithms(False)


def gather(theta, options, size_in, size, channels=1):
    theta = torch.as_tensor(theta, dtype=torch.float32)
    theta = theta if theta.ndim == 3 else theta[None]
    grad, image = torch.ones(len(theta), channels, *size), torch.ones(1, channels, *size_in)
    launch.backward(grad, image, theta, options=options, output_mask=(True, False, False))


MANY = 5  # channels; squares are used for fewer
MAPS = {
    "identity": [[1, 0, 0], [0, 1, 0]],
    "rotation": [[0.83, -0.55, 0.1], [0.55, 0.83, -0.2]],
    "shrink": [[2.03, 0.11, 0.013], [0.07, 1.97, 0.031]],
    "zoom": [[0.31, 0.05, 0.21], [-0.04, 0.27, 0.07]],
    "singular": [[1, 1, 0], [1, 1, 0]],
    "outside": [[1, 0, 5], [0, 1, 0]],
}
# Output pixels tried in six tiles: for single input pixels, and for squares of 2 x 2.
TRIED = {
    ("nearest", "zeros", "rotation"): (8, 8),
    ("nearest", "zeros", "shrink"): (4, 4),
    ("nearest", "border", "rotation"): (12, 12),
    ("nearest", "border", "shrink"): (48, 48),
    ("bilinear", "zeros", "identity"): (24, 30),
    ("bilinear", "zeros", "rotation"): (24, 48),
    ("bilinear", "zeros", "shrink"): (9, 9),
    ("bilinear", "zeros", "zoom"): (75, 119),
    ("bilinear", "zeros", "singular"): (84, 126),
    ("bilinear", "zeros", "outside"): (0, 0),
    ("bilinear", "border", "identity"): (24, 30),
    ("bilinear", "border", "rotation"): (32, 46),
    ("bilinear", "border", "shrink"): (51, 65),
    ("bilinear", "border", "zoom"): (47, 75),
    ("bilinear", "border", "singular"): (80, 86),
    ("bilinear", "border", "outside"): (48, 60),
    ("bicubic", "zeros", "rotation"): (88, 88),
    ("bicubic", "border", "rotation"): (74, 74),
}


@pytest.mark.parametrize(("mode", "padding_mode", "name"), TRIED)
@pytest.mark.sample(4)
def test_of_images(tried, mode, padding_mode, name):
    options, found = Options(mode, padding_mode), []
    for channels in (MANY, 1):
        tried.clear()
        gather(MAPS[name], options, (9, 18), (10, 12), channels)
        found.append(tried["pixels"])
    assert tuple(found) == TRIED[mode, padding_mode, name]


@pytest.mark.parametrize(
    ("mode", "theta", "size", "pixels", "squares"),
    [
        ("bilinear", [[1, 0, 0], [0, 1, 0]], (8, 16), 2 * 2, 3 * 3),
        ("bilinear", [[1, 0, 0.125], [0, 1, -0.25]], (8, 16), 2 * 2, 3 * 3),
        ("bilinear", [[1, 0, 0.03], [0, 1, 0.21]], (8, 16), 2 * 2, 3 * 3),
        ("bilinear", [[-1, 0, 0], [0, -1, 0]], (8, 16), 2 * 2, 3 * 3),
        ("bilinear", [[1, 0, 0], [0, 1, 0]], (16, 32), 4 * 4, 6 * 6),
        ("bicubic", [[1, 0, 0], [0, 1, 0]], (8, 16), 4 * 4, 4 * 4),
    ],
)
def test_where_one_end_of_the_support_is_open(tried, mode, theta, size, pixels, squares):
    """Shifts, flips and an exact enlargement; counts are per tile, of two tiles."""
    for channels, expected in ((MANY, pixels), (1, squares)):
        tried.clear()
        gather(theta, Options(mode), (8, 16), size, channels)
        assert tried["pixels"] == 2 * expected


@pytest.mark.parametrize(
    ("padding_mode", "antialias", "channels", "matrices", "pixels"),
    [
        ("zeros", False, MANY, 15, 90),
        ("border", False, MANY, 46, 180),
        ("zeros", True, MANY, 19, 99),
        ("zeros", False, 1, 15, 153),
    ],
)
@pytest.mark.sample(2)
def test_of_many_matrices(tried, padding_mode, antialias, channels, matrices, pixels):
    """Nine crops along a diagonal, most of which miss a given tile of the six."""
    theta = torch.tensor([[0.3, 0.05, 0], [-0.05, 0.3, 0]]).repeat(9, 1, 1)
    theta[:, 0, 2] = torch.linspace(-1.2, 1.2, 9)
    theta[:, 1, 2] = torch.linspace(0.7, -0.7, 9)
    theta *= 4 if antialias else 1
    gather(theta, Options("bilinear", padding_mode, False, antialias), (9, 18), (4, 4), channels)
    assert (tried["matrices"], tried["pixels"]) == (matrices, pixels)
