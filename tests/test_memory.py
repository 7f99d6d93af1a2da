"""No kernel reads or writes anything but elements of its tensors, and every element of an output is written.

On a GPU guard bands show stray writes, and two kinds of poison in the gaps stray reads; in the interpreter each
address is compared with those of the elements, too. `tests/sanitize.py` has NVIDIA's tools look at compiled kernels.
"""

import math

import pytest
import torch
import triton
import triton.language as tl
from memory import Layout, Storage, Watch
from variants import Variant, case, tangents_of

from stn_triton import launch, splines
from stn_triton.options import MODES, PADDING_MODES, Options

POINTS = tuple(splines.regular_points(2, 2))
DENSE = ("forward_kernel", "backward_kernel")
APART = ("forward_kernel", "backward_kernel", "theta_kernel")
BOXES = ("forward_kernel", "reach_kernel", "boxes_kernel", "theta_kernel")
SCATTER = ("forward_kernel", "scatter_kernel", "theta_kernel")
CALLS = {  # what is called, and the kernels that it launches
    "plain": (Variant(2, "bilinear", "zeros", "plain", False), DENSE),
    "nearest": (Variant(2, "nearest", "border", "plain", True), DENSE),
    "bicubic fill": (Variant(2, "bicubic", "fill", "plain", False), (*DENSE, "fill_kernel")),
    "many": (Variant(2, "bilinear", "reflection", "many", True), APART),
    "index": (Variant(2, "bilinear", "fill", "index", False), (*APART, "fill_kernel")),
    "projective": (Variant(2, "bicubic", "border", "projective", False), DENSE),
    "antialias": (Variant(2, "bilinear", "border", "antialias", False), DENSE),
    "antialias index": (Variant(2, "nearest", "fill", "antialias index", True), (*DENSE, "fill_kernel")),
    "volume": (Variant(3, "bilinear", "fill", "plain", True), (*DENSE, "fill_kernel")),
    "volume reflection": (Variant(3, "nearest", "reflection", "many", False), DENSE),
    "volume antialias": (Variant(3, "bilinear", "zeros", "antialias", False), DENSE),
    "tangent": (Variant(2, "bilinear", "zeros", "plain", True), APART),
    "tangent fill": (Variant(2, "bicubic", "fill", "many", False), (*APART, "fill_kernel")),
    "tangent projective": (Variant(2, "bilinear", "border", "projective", False), APART),
    "tangent volume": (Variant(3, "bilinear", "reflection", "index", False), APART),
    "spline": (Variant(2, "bilinear", "zeros", "plain", False), BOXES),
    "spline many": (Variant(2, "bicubic", "reflection", "many", True), BOXES),
    "spline index": (Variant(2, "nearest", "border", "index", False), BOXES[:3]),
    "spline tangent": (Variant(2, "bilinear", "fill", "plain", False), (*BOXES, "fill_kernel")),
    "spline scatter": (Variant(2, "bicubic", "zeros", "index", False), SCATTER),
    "spline scatter tangent": (Variant(2, "bilinear", "border", "many", True), SCATTER),
}
LAYOUTS = {
    "dense": lambda shape: Layout.of(shape),
    "every second": lambda shape: Layout.of(shape, step=2, gap=1, offset=1),
    "channels_last": lambda shape: Layout.of(shape, channels_last=True),
    "channels_last with gaps": lambda shape: Layout.of(shape, channels_last=True, gap=3),
    "transposed": lambda shape: Layout(tuple(reversed(range(len(shape)))), (1,) * len(shape), (2,) * len(shape)),
    "expanded": lambda shape: Layout.of(shape)._replace(steps=(*(1,) * (len(shape) - 1), 0)),
}


SIZES = {2: ((3, 5), (4, 2)), 3: ((2, 3, 2), (1, 2, 3))}
# Interpreted kernels are slow: there, of each call two layouts, in turns.
EVERY = [(name, layout) for name in CALLS for layout in LAYOUTS]
PAIRS = EVERY if torch.cuda.is_available() else [p for i, p in enumerate(EVERY) if (i + i // 6) % 3 == 0]


def arguments(name, channels=2, dtype=torch.float32, device="cpu"):
    """Of a call: its tensors, the tangents among them, and options."""
    variant = CALLS[name][0]
    options = variant.options()
    args = case(variant, channels, *SIZES[variant.dim]).to(device, dtype)
    if "spline" in name:
        options = options._replace(points=POINTS)
        offsets = 0.3 * torch.randn(len(args.theta), 4, 2, generator=torch.Generator().manual_seed(5))
        args = args._replace(theta=splines.coefficients(offsets, POINTS, args.theta.dtype).to(device))
    tensors = {n: t for n, t in args._asdict().items() if isinstance(t, torch.Tensor)}
    if "tangent" in name:
        moved = tangents_of(args)._asdict()
        tensors |= {f"{n}_tangent": t for n, t in moved.items() if t is not None}
    return tensors, args.size, options


def run(tensors, size, options, mask=(True, True, True)):
    """Output, or its tangent, and all gradients."""
    moved = None
    if "theta_tangent" in tensors:
        moved = launch.Tangents(*(tensors.get(f"{n}_tangent") for n in ("input", "theta", "fill")))
    rest = tensors.get("fill"), tensors.get("image_index"), moved
    output = launch.forward(tensors["input"], tensors["theta"], size, options, *rest)
    mask = (*mask[:2], mask[2] and "fill" in tensors)
    pair = tensors["input"], tensors["theta"]
    return [output, *launch.backward(tensors["grad"], *pair, options, mask, *rest)]


def watched(tensors, size, options, layout, pattern, mask=(True, True, True)):
    """The same with all tensors laid out in poisoned storage; what was launched, if that can be seen."""
    storage, watch = Storage(pattern), Watch()
    placed = {n: storage.place(t, layout(t.shape)) for n, t in tensors.items()}
    with pytest.MonkeyPatch.context() as patch:
        if Watch.missing() is None:
            watch.start(patch)
        with storage:
            results = run(placed, size, options, mask)
    storage.check()
    return results, watch


@pytest.fixture
def order(request):
    """Scattering is for those who do not ask for a fixed order."""
    torch.use_deterministic_algorithms("scatter" not in request.node.callspec.params["name"])
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("order")
@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_nothing_but_elements_is_touched(device, name, layout):
    """What lies in the gaps does not matter; on a CPU nobody has looked."""
    tensors, size, options = arguments(name, device=device)
    expected = tensors
    if layout == "expanded":
        expected = {n: t[..., :1].expand_as(t) for n, t in tensors.items()}
    expected = run(expected, size, options)
    for pattern in (0, 1) if device.type == "cuda" else (0,):
        results, watch = watched(tensors, size, options, LAYOUTS[layout], pattern)
        for actual, plain in zip(results, expected, strict=True):
            if plain is not None:
                torch.testing.assert_close(actual, plain, rtol=1e-4, atol=1e-4)
        if Watch.missing() is None:
            assert set(watch.launches) == set(CALLS[name][1])
            assert watch.accesses > 100
