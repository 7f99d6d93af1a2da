"""Every kernel with small blocks: several tiles and blocks of channels that do not divide the sizes."""

import itertools

import pytest
import torch
import triton
import triton.language as tl
from variants import Case, Variant, case, tangents_of

from stn_triton import launch, policy, reference, reference_tangent, splines, tuning
from stn_triton.kernels.block import tile_pixels
from stn_triton.kernels.structs import Constants, constants
from stn_triton.options import Options, Tangents

POINTS = tuple(splines.regular_points(2, 2))
IMAGES, VOLUMES = ((5, 9), (6, 5)), ((2, 3, 5), (3, 5, 2))
CALLS = {  # call and number of channels; a block has two
    "plain": (Variant(2, "bilinear", "zeros", "plain", False), 3),
    "fill": (Variant(2, "bilinear", "fill", "plain", True), 7),
    "nearest": (Variant(2, "nearest", "border", "plain", True), 7),
    "bicubic": (Variant(2, "bicubic", "border", "plain", False), 3),
    "reflection": (Variant(2, "bilinear", "reflection", "plain", True), 3),
    "many": (Variant(2, "bilinear", "zeros", "many", False), 3),
    "index": (Variant(2, "bilinear", "fill", "index", False), 3),
    "projective": (Variant(2, "bilinear", "fill", "projective", False), 3),
    "antialias": (Variant(2, "bilinear", "border", "antialias", False), 3),
    "volume": (Variant(3, "bilinear", "fill", "plain", False), 3),
    "volume antialias": (Variant(3, "nearest", "zeros", "antialias", True), 3),
    "tangent": (Variant(2, "bilinear", "zeros", "plain", False), 3),
    "tangent bicubic": (Variant(2, "bicubic", "fill", "plain", True), 3),
    "tangent projective": (Variant(2, "bilinear", "fill", "projective", True), 3),
    "tangent volume": (Variant(3, "bilinear", "fill", "plain", True), 3),
    "spline": (Variant(2, "bilinear", "fill", "many", False), 3),
    "spline tangent": (Variant(2, "bilinear", "border", "plain", True), 3),
    "scatter": (Variant(2, "bilinear", "reflection", "index", True), 3),
    "scatter spline": (Variant(2, "bilinear", "reflection", "index", True), 3),
    "scatter spline tangent": (Variant(2, "bilinear", "zeros", "plain", False), 7),
    "scatter volume": (Variant(3, "bilinear", "border", "plain", False), 3),
}


def arguments(name: str) -> tuple[Case, Options, Tangents | None]:
    variant, channels = CALLS[name]
    args = case(variant, channels, *(IMAGES if variant.dim == 2 else VOLUMES))
    options = variant.options()
    if "spline" in name:
        options = options._replace(points=POINTS)
        noise = torch.randn(len(args.theta), 4, 2, generator=torch.Generator().manual_seed(1))
        args = args._replace(theta=splines.coefficients(0.2 * noise, POINTS, torch.float64))
    return args, options, tangents_of(args) if "tangent" in name else None


def results(module, args, options, tangents):
    moved = () if tangents is None else (tangents,)
    tensors = (args.input, args.theta, args.fill, args.image_index, *moved)
    mask = (True, True, args.fill is not None)
    output = module.forward(*tensors, size=args.size, options=options)
    grads = module.backward(args.grad, *tensors, options=options, output_mask=mask)
    return {"output": output, "input": grads[0], "theta": grads[1], "fill": grads[2]}


@pytest.fixture
def blocks(request):
    """Blocks of two channels and 4 x 8 or 8 x 4 pixels; two such blocks per program where possible."""
    height, width = (4, 8) if request.param == "nchw" else (8, 4)
    run = 1 if request.param == "nchw" else 2
    used = set()

    def choose(bucket, _):
        used.add(bucket.kernel)
        config = {"BLOCK_C": 2, "RUN_C": run, "STEPS_C": 1 + bucket.has_steps()}
        return {**policy.default(bucket), **config, "BLOCK_H": height, "BLOCK_W": width}

    with tuning.choosing(choose):
        yield request.param, used
    torch.use_deterministic_algorithms(False)


# Interpreted kernels are slow: without a GPU each call has one layout, and each kernel two calls.
LAYOUTS = ("channels_last", "nchw")
PAIRS = [(name, LAYOUTS[i % 2]) for i, name in enumerate(CALLS)]
if torch.cuda.is_available():
    PAIRS = list(itertools.product(CALLS, LAYOUTS))
SLOW = ("bicubic", "antialias", "volume antialias", "tangent bicubic", "tangent volume", "scatter volume")
PAIRS = [pytest.param(*pair, marks=[pytest.mark.full] if pair[0] in SLOW else []) for pair in PAIRS]


@pytest.mark.parametrize(("name", "blocks"), PAIRS, indirect=["blocks"])
def test_equal_plain_pytorch(device, blocks, name):
    """Compare in fp64, where rounding cannot hide a mistake."""
    layout, used = blocks
    args, options, tangents = arguments(name)
    torch.use_deterministic_algorithms("scatter" not in name)  # also fills new memory with NaN
    expected = results(reference if tangents is None else reference_tangent, args, options, tangents)
    form = torch.contiguous_format
    if layout == "channels_last":
        form = torch.channels_last if args.input.ndim == 4 else torch.channels_last_3d
    place = lambda t: None if t is None else t.to(device)  # noqa: E731
    here = args.to(device, torch.float64, form)
    moved = None
    if tangents is not None:
        moved = Tangents(place(tangents.input).contiguous(memory_format=form), *map(place, tangents[1:]))
    actual = results(launch, here, options, moved)
    assert {"forward"} < used
    for part, value in expected.items():
        if value is not None:
            torch.testing.assert_close(
                actual[part].cpu(), value, rtol=1e-10, atol=1e-10, msg=lambda m, part=part: f"{part}: {m}"
            )


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("mode", "padding", "kind"),
    [
        ("bilinear", "zeros", "plain"),
        ("bilinear", "border", "plain"),
        ("bilinear", "reflection", "plain"),
        ("bilinear", "fill", "plain"),
        ("bicubic", "border", "plain"),
        ("bicubic", "fill", "plain"),
        ("bilinear", "zeros", "index"),
    ],
)
@pytest.mark.sample(5)
def test_three_channels_in_a_block_of_their_own(device, monkeypatch, mode, padding, kind, form):
    """Three is the only block size that is no power of two. A fourth channel would be of the next image."""
    used = []

    def configuration(bucket, *_):
        used.append(bucket.kernel)
        return policy.blocks(3, 1, 1, 8, 8, 1 if bucket.is_gather() else 2)

    monkeypatch.setattr(tuning, "configuration", configuration)
    args = case(Variant(2, mode, padding, kind, False), 3, *IMAGES)
    options = Options(mode, padding)
    expected = results(reference, args, options, None)
    actual = results(launch, args.to(device, torch.float64, form), options, None)
    backward = (
        ("backward",) if kind == "plain" and policy.share_a_kernel(mode) else ("backward_input", "theta")
    )
    if padding == "reflection":
        backward = ("scatter",)
    assert {*used} >= {"forward", *backward}
    for part, value in expected.items():
        if value is not None:
            torch.testing.assert_close(actual[part].cpu(), value, rtol=1e-10, atol=1e-10)


@triton.jit
def tile_kernel(x_ptr, y_ptr, K: tl.constexpr):
    pixels = tile_pixels((tl.program_id(0), 5), K)
    lanes = tl.arange(0, K.PIXELS)
    tl.store(x_ptr + lanes, pixels[0])
    tl.store(y_ptr + lanes, pixels[1])


@pytest.mark.parametrize("tile", [(8, 8), (8, 32), (16, 16), (4, 8), (2, 16)])
def test_a_warp_takes_a_patch_of_four_rows(device, tile):
    """Together the warps take each pixel once."""
    x, y = (torch.empty(tile[0] * tile[1], dtype=torch.int32, device=device) for _ in range(2))
    ones = dict.fromkeys(Constants._fields, 1)
    tile_kernel[(1,)](x, y, constants(**{**ones, "DIM": 2, "BLOCK_H": tile[0], "BLOCK_W": tile[1]}))
    pixels = set(zip(x.tolist(), y.tolist(), strict=True))
    assert pixels == {(i, 5 + j) for i in range(tile[1]) for j in range(tile[0])}
    for warp in zip(x.view(-1, 32), y.view(-1, 32), strict=True):
        width, height = (int(axis.max() - axis.min()) + 1 for axis in warp)
        assert (height, width) == ((4, 8) if tile[0] >= 4 else (2, 16))
