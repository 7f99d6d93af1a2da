"""Tensors of more than 2^31 elements, axes of more than 65,535, and impossible sizes.

Interpreted kernels address such tensors too, mapped from empty files. Either all programs run on few pixels
that lie far apart, or a few programs of a launch run over billions of pixels.
"""

import contextlib
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
import uninterpreted
import variants
from sparse import SomePrograms, Sparse
from torch.autograd.profiler import profile

import stn_triton
from stn_triton import kernels, launch, limits, ops, policy, tuning
from stn_triton.check import oracle
from stn_triton.check.fused import is_fused
from stn_triton.options import DEFAULT, Options, Tangents

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="sparse files are for the interpreter")


@pytest.fixture
def sparse(tmp_path):
    return Sparse(tmp_path)


class NoMemory(profile):
    """Fails if anything is allocated or computed, for calls that must raise before.

    Based on the profiler, which sees allocations within the operators. A dispatch mode is off there.
    """

    def __exit__(self, *error):
        super().__exit__(*error)
        names = {event.name for event in self.function_events}
        names -= {"aten::expand", "aten::as_strided", "stn_triton::affine_grid_sample"}
        assert not names, f"before it was refused the call did {sorted(names)}"


def call(function, size, device="cpu", dtype=torch.float32, input=None, within=None, **options):
    input = torch.ones(2, 3, 2, 2, dtype=dtype, device=device) if input is None else input
    rows = {"perspective_grid_sample": (3, 3), "thin_plate_spline_grid_sample": (4, 2)}
    theta = torch.ones(1, *rows.get(function.__name__, (2, 3)), device=input.device)
    with within or contextlib.nullcontext():
        return function(input, theta, size, **options)


FUNCTIONS = (
    stn_triton.affine_grid_sample,
    stn_triton.perspective_grid_sample,
    stn_triton.thin_plate_spline_grid_sample,
)


class TestSizes:
    @pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)])
    @pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
    @pytest.mark.parametrize(
        ("size", "error", "parts"),
        [
            ((2**31, 1), ValueError, ["2**24 on each axis", "fp64", "(2147483648, 1)"]),
            ((1, 2**24 + 1), ValueError, ["2**24 on each axis", "(1, 16777217)"]),
            ((2**40, 2**40), ValueError, ["2**24", "(1099511627776, 1099511627776)"]),
            ((2**62, 2**62), ValueError, ["2**24", f"({2**62}, {2**62})"]),
            (10**30, ValueError, ["2**24", f"({10**30}, {10**30})"]),
            ((-(2**63), 2), ValueError, ["positive", f"({-(2**63)}, 2)"]),
            ((-1, 2), ValueError, ["positive", "(-1, 2)"]),
            ((True, 2), TypeError, ["two ints", "True of type bool"]),
            (True, TypeError, ["an int", "True of type bool"]),
            ((2.0**31, 2), TypeError, ["two ints", "of type float"]),
        ],
        ids=str,
    )
    def test_that_cannot_be_are_refused_by_name_and_value(self, function, device, size, error, parts):
        input = torch.ones(2, 3, 2, 2, device=device)
        with pytest.raises(error) as raised:
            call(function, size, input=input, within=NoMemory())
        message = str(raised.value)
        assert message.startswith("size must be")
        assert all(part in message for part in parts), message

    def test_fp64_and_antialias_have_limits_of_their_own(self):
        assert call(FUNCTIONS[0], (1, 2**30), "meta", torch.float64).shape == (2, 3, 1, 2**30)
        assert call(FUNCTIONS[0], (1, 2**24), "meta").shape == (2, 3, 1, 2**24)
        for options in ({"dtype": torch.float64}, {"dtype": torch.float64, "antialias": True}):
            with pytest.raises(ValueError, match=r"size must be at most 2\*\*(30|24) on each axis"):
                call(FUNCTIONS[0], (2**30 + 1, 1), "meta", **options)

    def test_outputs_without_an_address_are_refused(self):
        message = (
            r"size must give an output of at most 2\*\*56 elements, got \(16777216, 16777216\) for 512 maps"
        )
        with pytest.raises(ValueError, match=message):
            call(FUNCTIONS[0], 2**24, input=torch.ones(1, 1, 1, 1, device="meta").expand(512, 1, 1, 1))

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    @pytest.mark.parametrize(
        ("shape", "dtype", "expected"),
        [
            ((1, 1, 1, 2**31), torch.uint8, r"at most 2\*\*24 pixels on each axis .*fp64"),
            ((1, 1, 2**24 + 1, 1), torch.float32, r"at most 2\*\*24 pixels on each axis .*fp64"),
            ((1, 1, 2**30 + 1, 1), torch.float64, r"at most 2\*\*30 pixels on each axis"),
            ((1, 2**31, 1, 1), torch.float16, r"fewer than 2\*\*31 channels"),
        ],
    )
    def test_inputs_that_cannot_be_are_refused_by_name_and_shape(self, device, shape, dtype, expected):
        input = torch.ones(1, 1, 1, 1, dtype=dtype, device=device).expand(shape)
        shown = str(shape).replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(ValueError, match=f"input must have {expected}.*, got shape {shown}"):
            call(FUNCTIONS[0], 2, input=input, within=NoMemory())

    @pytest.mark.parametrize("device", ["cpu", "meta", pytest.param("cuda", marks=pytest.mark.gpu)])
    @pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
    def test_what_is_allocated_within_an_operator_is_seen(self, function, device):
        """`NoMemory` sees allocations; otherwise the two tests above could not fail."""
        input = torch.ones(2, 3, 2, 2, device=device)
        with pytest.raises(AssertionError, match="aten::empty"):
            call(function, 2, input=input, within=NoMemory())

    def test_direct_calls_of_operators_raise_too(self):
        """Compiled and exported programs call the operators without the public functions."""
        long, theta = torch.ones(1, 1, 1, 1).expand(1, 1, 1, 2**25), torch.ones(1, 2, 3)
        grad = torch.ones(1, 1, 2, 2)
        calls = (
            lambda: ops.affine_grid_sample(long, theta, None, None, [2, 2], *DEFAULT),
            lambda: ops.affine_grid_sample_backward(grad, long, theta, None, None, *DEFAULT, [True] * 3),
            lambda: ops.affine_grid_sample_tangent(
                long, theta, None, None, None, theta, None, [2, 2], *DEFAULT
            ),
            lambda: ops.affine_grid_sample_tangent_backward(
                grad, long, theta, None, None, None, theta, None, *DEFAULT, [True] * 3
            ),
        )
        for run in calls:
            with pytest.raises(ValueError, match=r"input must have at most 2\*\*24 pixels"):
                run()

    def test_the_limit_is_where_fp32_cannot_tell_pixels_apart(self):
        """Compare centred coordinates of the last pixels of an axis, as kernels compute them."""

        def is_exact(size):
            index = torch.arange(size - 4, size)
            centred = index.float() - 0.5 * torch.tensor(size - 1).float()
            return torch.equal(centred.double(), index.double() - (size - 1) / 2)

        assert is_exact(limits.LARGEST_EXTENT)
        assert not is_exact(limits.LARGEST_EXTENT + 2)

    @pytest.mark.parametrize(
        ("kernel", "message"),
        [
            ("forward_kernel", "size must give .* an output of shape {}; call with fewer thetas or channels"),
            (
                "backward_kernel",
                "input must give .* an input of shape {}; call with fewer images or channels",
            ),
            ("scatter_kernel", "size must give .* an output of shape {}; call with fewer thetas or channels"),
            ("settle_kernel", "input must give .* an input of shape {}; call with fewer images or channels"),
        ],
    )
    def test_too_many_tiles_for_one_launch_are_refused(self, monkeypatch, kernel, message):
        """The launch raises: results are allocated by then, but nothing is computed."""
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        input = torch.ones(1, 1, 1, 1, device="meta").expand(2**31, 1, 1, 1)
        theta = torch.ones(1, 2, 3, device="meta").expand(2**31, 2, 3)
        message = message.format(r"\(2147483648, 1, 1, 1\)")
        options = Options("bilinear", "zeros", points=(-1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0))
        runs = {
            "forward_kernel": lambda: launch.forward(input, theta, size=(1, 1)),
            "backward_kernel": lambda: launch.backward(input, input, theta),
            "scatter_kernel": lambda: launch.backward(
                input, input[:1], theta[..., :1].expand(-1, 2, 7), options=options
            ),
            "settle_kernel": lambda: launch.backward(
                input[:1], input, theta[:1], image_index=theta[0, 0, :1].long(), gathers=False
            ),
        }
        with pytest.raises(ValueError, match=message) as raised:
            runs[kernel]()
        assert "at most 2147483647 tiles in one launch, got 2147483648" in str(raised.value)


COMPILED = Path(__file__).parent / "compiled_offsets.py"


@pytest.mark.full
class TestCompiledOffsets:
    """Index widths in the intermediate representation of every kernel, for small and large tensors."""

    @pytest.fixture(scope="class")
    @classmethod
    def kernels(cls):
        done = uninterpreted.python(COMPILED, timeout=600, PYTHONPATH=str(uninterpreted.ROOT))
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        assert {kernel["kernel"] for kernel in found} == {
            *("forward", "backward", "backward_input", "theta", "fill"),
            *("scatter", "scatter_input", "exact", "settle_kernel"),
        }
        return found

    def test_images_channels_and_matrices_are_always_found_by_64_bits(self, kernels):
        seen = set()
        for kernel in kernels:
            for name, widths in kernel["strides"].items():
                of_maps = ("theta_strides.0", "theta_tangent_strides.0")
                if name.endswith(("stride_n", "stride_c", "fill_stride", "fill_tangent_stride", *of_maps)):
                    assert widths == [64], (kernel["kernel"], name)
                    seen.add(name)
        tensors = ("input", "output", "grad_input", "grad_output", "input_tangent")
        assert {f"{t}_stride_{axis}" for t in tensors for axis in "nc"} <= seen
        assert {*of_maps, "fill_stride", "fill_tangent_stride"} <= seen

    def test_pixels_are_found_by_64_bits_where_the_launcher_says_so(self, kernels):
        tensors = ("input", "output", "grad_input", "grad_output", "input_tangent")
        seen = set()
        for kernel in kernels:
            for name, widths in kernel["strides"].items():
                if name.partition("_strides.")[0] in tensors:
                    # Exact kernels may have a second width: they add the number of a pixel to an offset.
                    least = 64 if kernel["is_far"] else 32
                    assert widths[0] == least, (kernel["kernel"], name)
                    assert len(widths) == 1 or kernel["is_exact"]
                    seen.add((kernel["dim"], name, kernel["is_far"]))
        # The stride of columns is 1 in these images, and compiled in.
        for tensor, is_far in itertools.product(tensors, (False, True)):
            volumes = {(3, f"{tensor}_strides.{axis}", is_far) for axis in (0, 1)}
            assert volumes <= seen
            assert (2, f"{tensor}_strides.0", is_far) in seen or tensor == "input_tangent"

    def test_what_programs_leave_is_found_by_64_bits(self, kernels):
        seen = set()
        for kernel in kernels:
            for name, widths in kernel["pointers"].items():
                # The other tensors are short: one number per image or point.
                if name not in ("image_index_ptr", "starts_ptr", "points_ptr", "limits_ptr"):
                    assert widths == [64], (kernel["kernel"], name)
                    seen.add(name)
        assert {"partial_ptr", "whole_ptr", "order_ptr"} <= seen


class Layout(NamedTuple):
    """Strides of images and volumes with few pixels, far apart."""

    n: int
    c: int
    pixel: tuple[int, int, int]
    """Along z, y, x."""
    memory_format: str = "nchw"

    def strides(self, dim):
        return (self.n, self.c, *self.pixel[3 - dim :])


LAYOUTS = {
    "images and channels": Layout(2**33, 2**31 + 8, (64, 8, 1)),
    "rows": Layout(2**35, 2, (2**33, 2**30, 8)),
    "columns": Layout(2**34, 1, (128, 16, 2**30), "channels_last"),
}


class Far(NamedTuple):
    variant: variants.Variant
    layout: str
    has_tangents: bool = False

    def name(self):
        return f"{self.variant.name()}-{self.layout}"


PLAIN = variants.Variant(2, "bilinear", "fill", "plain", False)
SPLINE = PLAIN._replace(kind="spline")
FAR = [
    *(Far(PLAIN, layout, True) for layout in LAYOUTS),
    Far(SPLINE, "images and channels"),
    Far(PLAIN._replace(mode="nearest", padding_mode="reflection", kind="many"), "images and channels"),
    Far(PLAIN._replace(mode="bicubic", padding_mode="border"), "columns"),
    Far(PLAIN._replace(padding_mode="zeros", kind="projective"), "rows"),
    Far(PLAIN._replace(dim=3, padding_mode="zeros", kind="index"), "rows"),
]


@interpreted
@pytest.mark.full
class TestFarApart:
    """A few pixels spread over gigabytes have the same bits as pixels side by side."""

    def case(self, variant):
        if variant.kind != "spline":
            return variants.case(variant, channels=3), variant.options()
        case = variants.case(variant._replace(kind="plain"), channels=3)
        points = (-1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
        offsets = 0.2 * torch.rand(2, 4, 2, dtype=torch.float64)
        theta = stn_triton.splines.coefficients(offsets, points, torch.float32)
        return case._replace(theta=theta), Options("bilinear", "fill", points=points)

    def results(self, case, options, *tangents):
        mask = (True, True, case.fill is not None)
        for moved in (None, *tangents):
            tensors = (case.input, case.theta, case.fill, case.image_index, moved)
            yield launch.forward(*tensors, size=case.size, options=options)
            yield from launch.backward(case.grad, *tensors, options=options, output_mask=mask)

    @pytest.mark.parametrize("far", FAR, ids=Far.name)
    def test_results_are_those_of_tensors_side_by_side(self, sparse, far, monkeypatch):
        variant, layout, has_tangents = far
        # Deterministic sums need a dense grad_input, and this one is spread.
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: False)
        case, options = self.case(variant)
        form = torch.contiguous_format
        if LAYOUTS[layout].memory_format == "channels_last":
            form = {2: torch.channels_last, 3: torch.channels_last_3d}[variant.dim]
        near = case.to("cpu", torch.float32, form)
        tangents = variants.tangents_of(near)
        tangents = tangents._replace(input=tangents.input.contiguous(memory_format=form))
        expected = list(self.results(near, options, *[tangents] * has_tangents))

        strides = LAYOUTS[layout].strides(variant.dim)
        far_theta = (2**36, 2**33, 2**30)  # the third column lies 2^31 elements on
        far = near._replace(
            input=sparse.like(near.input, strides),
            theta=sparse.like(near.theta, far_theta),
            grad=sparse.like(near.grad, strides),
            fill=None if near.fill is None else sparse.like(near.fill, (2**30,)),
        )
        moved = Tangents(
            sparse.like(tangents.input, strides),
            sparse.like(tangents.theta, far_theta),
            None if tangents.fill is None else sparse.like(tangents.fill, (2**30,)),
        )

        def make(shape, dtype, memory_format):
            return sparse.strided(shape, strides, dtype)

        with sparse.allocating(make):
            actual = list(self.results(far, options, *[moved] * has_tangents))
        assert sum(t is not None and t.dim() > 3 for t in expected) >= 2
        for one, other in zip(actual, expected, strict=True):
            assert (one is None) == (other is None)
            assert one is None or torch.equal(one, other)


# Shapes of more than 2^31 elements each.
SHAPES = {
    "images": (70_001, 3, 102, 103),
    "channels": (1, 70_003, 182, 181),
    "pixels": (1, 1, 46_345, 46_343),
    "volume": (1, 2, 1030, 1031, 1033),
    "slices": (1, 1, 1291, 1290, 1295),
    "a long row": (129, 1, 1, 2**24),
}


@interpreted
@pytest.mark.full
class TestBillionsOfPixels:
    """A few programs of a launch over dense tensors of more than 2^31 elements."""

    def tile(self, program, shape, config):
        """Return the slices that a program owns, computed in Python integers, which cannot overflow."""
        _, c, *pixels = shape
        depth, height, width = (1, *pixels)[-3:]
        block_c = config["BLOCK_C"] * config["STEPS_C"]
        tiles_w = -(-width // config["BLOCK_W"])
        tiles = tiles_w * -(-height // config["BLOCK_H"])
        rest, tile = divmod(program, tiles)
        rest, z = divmod(rest, depth)
        image, channel = divmod(rest, -(-c // block_c))
        y, x = divmod(tile, tiles_w)
        corner = (channel * block_c, y * config["BLOCK_H"], x * config["BLOCK_W"])
        ends = (block_c, config["BLOCK_H"], config["BLOCK_W"])
        channels, rows, columns = (slice(a, a + b) for a, b in zip(corner, ends, strict=True))
        return (image, channels, *((z,) if len(pixels) == 3 else ()), rows, columns)

    @pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
    @pytest.mark.parametrize("name", SHAPES)
    @pytest.mark.parametrize("kernel", ["forward", "backward", "scatter"])
    def test_the_identity_copies_the_first_a_middle_and_the_last_tile(
        self, sparse, monkeypatch, kernel, name, channels_last
    ):
        shape = SHAPES[name]
        if kernel == "backward" and len(shape) == 5:
            pytest.skip("gradients of volumes are scattered")
        assert math.prod(shape) > 2**31
        dim = len(shape) - 2
        form = torch.contiguous_format
        if channels_last:
            if shape[1] == 1:
                pytest.skip("one channel has no layout")
            form = {2: torch.channels_last, 3: torch.channels_last_3d}[dim]
        # Scattering adds in fp32, so that fp32 needs no further copy of billions of elements.
        dtype = torch.float32 if kernel == "scatter" else torch.float16
        source = sparse.empty(shape, dtype, form)
        theta = torch.eye(dim, dim + 1).expand(shape[0], dim, dim + 1)
        ran, configs = [], []

        def choose(programs):
            for program in (0, programs // 2 + 1, programs - 1):
                tile = self.tile(program, shape, configs[-1])
                part = source[tile]
                assert part.numel() > 0
                part.copy_(1 + torch.rand(part.shape))
                ran.append(tile)
                yield program

        def chooser(bucket, run):
            configs.append(policy.default(bucket))
            return configs[-1]

        patched, room = f"{kernel}_kernel", getattr(kernels, kernel)
        monkeypatch.setattr(room, patched, SomePrograms(getattr(room, patched), choose))
        with tuning.choosing(chooser), sparse.allocating(sparse.empty):
            if kernel == "forward":
                result = launch.forward(source, theta, size=shape[2:])
            else:
                input = torch.zeros(1, 1, *[1] * dim, dtype=dtype).expand(shape)
                monkeypatch.setattr(launch, "memory_format", lambda *_: form)
                monkeypatch.setattr(launch, "_form_to_copy_to", lambda *_: None)  # 4 GB
                monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: tensor)  # a new file is zeros
                mask, gathers = (True, False, False), kernel == "backward"
                result, *_ = launch.backward(source, input, theta, output_mask=mask, gathers=gathers)
        assert result.shape == shape
        assert len(ran) == 3
        for tile in ran:
            assert torch.equal(result[tile], source[tile])
            assert result[tile].min() >= 1

    def test_there_is_one_grid_axis_which_counts_to_2_31(self, sparse, monkeypatch):
        """Only the first axis of a GPU's grid may have 2^31 programs; `SomePrograms` checks for others."""
        counted = []
        some = SomePrograms(kernels.forward.forward_kernel, lambda n: counted.append(n) or ())
        monkeypatch.setattr(kernels.forward, "forward_kernel", some)
        theta = torch.eye(2, 3).expand(2**31 - 1, 2, 3)
        input = torch.zeros(1, 1, 1, 1, dtype=torch.uint8)
        with sparse.allocating(sparse.empty):
            launch.forward(input.expand(2**31 - 1, 1, 1, 1), theta, size=(1, 1))
            launch.forward(input.expand(65_537, 65_537, 1, 1), theta[:65_537], size=(1, 1))
        assert counted[0] == 2**31 - 1
        assert counted[1] > 65_537


@interpreted
class TestOnACpu:
    """The plain PyTorch path, whose sampler must use 64-bit indices too."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(
        ("mode", "shape"),
        [
            *((mode, (1, 1, 46_345, 46_343)) for mode in ("bilinear", "nearest", "bicubic")),
            ("bilinear", (1, 33, 8192, 8192)),
            ("bilinear", (33, 1, 8192, 8192)),
        ],
        ids=str,
    )
    def test_the_far_corner_is_that_of_a_crop(self, sparse, shape, mode, dtype):
        """The last 8 x 8 pixels of the last channel of the last image, shifted by a quarter of a pixel."""
        input = sparse.empty(shape, dtype)
        assert input.numel() > 2**31
        corner = input[-1:, -1:, -16:, -16:]
        corner.copy_(torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=dtype))
        height, width = shape[2:]
        far = torch.tensor(
            [[[8 / width, 0, 1 - 8.5 / width], [0, 8 / height, 1 - 8.5 / height]]], dtype=dtype
        )
        near = torch.tensor([[[0.5, 0, 0.5 - 0.5 / 16], [0, 0.5, 0.5 - 0.5 / 16]]], dtype=dtype)
        index = torch.tensor([shape[0] - 1])
        theta = far.clone().requires_grad_()
        actual = stn_triton.affine_grid_sample(input, theta, 8, mode=mode, image_index=index)[:, -1:]
        near.requires_grad_()
        expected = stn_triton.affine_grid_sample(corner.contiguous(), near, 8, mode=mode)
        # Error of positions: among 46,343 pixels, fp32 resolves 1/200 of a pixel.
        tolerance = {torch.float32: 3e-2, torch.float64: 1e-9}[dtype]
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
        if dtype == torch.float64 or shape[2] == 8192:  # otherwise PyTorch computes gradients of all pixels
            actual.sum().backward(), expected.sum().backward()
            scale = torch.tensor([width / 16, height / 16], dtype=dtype)
            # A shift in normalised coordinates moves by more pixels in the larger image.
            torch.testing.assert_close(
                theta.grad[..., 2], near.grad[..., 2] * scale, atol=0, rtol=100 * tolerance
            )

    def test_a_plane_of_a_volume(self, sparse):
        input = sparse.empty(SHAPES["slices"], torch.float32)
        corner = input[:, :, -2:, -2:, -2:]
        corner.copy_(torch.arange(8.0).view(corner.shape) + 1)
        scales = [2 / n for n in reversed(SHAPES["slices"][2:])]
        theta = torch.tensor([[[*[0.0] * k, s, *[0.0] * (2 - k), 1 - s] for k, s in enumerate(scales)]])
        actual = stn_triton.affine_grid_sample(input, theta, 2)
        torch.testing.assert_close(actual, corner, atol=0.02, rtol=0)


def slopes_at_few_pixels(input, theta, grad):
    """Compute the oracle's grad_theta (2, 3) of a bilinear call, from the few pixels that are sampled."""
    size_in, size_out = (tuple(reversed(t.shape[1:])) for t in (input, grad))
    options, fused = Options(), is_fused(input.device)
    place = oracle._place(theta.cpu(), size_in, size_out, options, (1, 1), (0, 0), fused)
    taps = [oracle._taps(p, n, options) for p, n in zip(place.positions, size_in, strict=True)]
    along = torch.zeros(2, *grad.shape[1:], dtype=torch.float64)
    for (x, weight_x, slope_x), (y, weight_y, slope_y) in itertools.product(*taps):
        inside = (x >= 0) & (x < size_in[0]) & (y >= 0) & (y < size_in[1])
        row, column = (t.where(inside, 0).long().to(input.device) for t in (y, x))
        product = (input[:, row, column].double() * grad.double()).sum(0).cpu().where(inside, 0)
        along += product * torch.stack((slope_x * weight_y, weight_x * slope_y))
    columns = torch.stack((*place.base, torch.ones_like(place.base[0]))).double()
    return torch.einsum("ahw,bhw->ab", along, columns) * place.scales


@pytest.mark.full
def test_slopes_at_few_pixels_are_the_oracle_s_and_the_kernels(device):
    """Check `slopes_at_few_pixels`, which the test of 2^31 elements uses, on small shapes."""
    input, grad = (torch.randn(2, 3, *size).half().to(device) for size in ((102, 103), (5, 5)))
    theta = torch.tensor([[[0.5, 0.1, 0.4], [-0.1, 0.5, 0.4]]], device=device).repeat(2, 1, 1)
    slopes = torch.stack([slopes_at_few_pixels(*each) for each in zip(input, theta, grad, strict=True)])
    expected = oracle.solve(input, theta, (5, 5), grad, dtype=torch.float32).grad_theta.cpu()
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=1e-12)
    _, grad_theta, _ = launch.backward(grad, input, theta)
    assert (grad_theta.cpu() - slopes).abs().max() <= 1e-3 * slopes.abs().max()


@pytest.mark.gpu
class TestOnAGpu:
    """Inputs or outputs of more than 2^31 elements; the identity is in test_gpu.py."""

    def needs(self, gigabytes):
        if torch.cuda.mem_get_info()[0] < gigabytes * 2**30:
            pytest.skip(
                f"needs {gigabytes} GiB of GPU memory, free are {torch.cuda.mem_get_info()[0] / 2**30:.0f}"
            )

    def crop(self, theta, rows, columns, size):
        """Return the matrix for a part of the output, in fp64."""
        height, width = size
        scale = [len(columns) / width, len(rows) / height]
        shift = [(columns.start + columns.stop) / width - 1, (rows.start + rows.stop) / height - 1]
        part = torch.tensor(
            [[scale[0], 0, shift[0]], [0, scale[1], shift[1]], [0, 0, 1]], dtype=torch.float64
        )
        return theta.double().cpu() @ part

    @pytest.mark.parametrize("mode", ["bilinear", "nearest"])
    def test_an_output_of_2_31_pixels(self, mode):
        self.needs(3)
        size = (46_350, 46_351)
        assert math.prod(size) > 2**31
        input = torch.randint(256, (1, 1, 300, 400), dtype=torch.uint8, device="cuda")
        theta = torch.tensor([[[0.9, -0.3, 0.05], [0.2, 0.8, -0.1]]], device="cuda")
        output = stn_triton.affine_grid_sample(input, theta, size, mode=mode)
        for rows, columns in ((range(64), range(64)), (range(46_286, 46_350), range(46_287, 46_351))):
            expected = stn_triton.affine_grid_sample(
                input.double(), self.crop(theta, rows, columns, size).cuda(), 64, mode=mode
            )
            actual = output[..., rows.start : rows.stop, columns.start : columns.stop].double()
            wrong = (actual - expected).abs() > (1.5 if mode == "bilinear" else 0)
            assert (
                wrong.float().mean() < 0.01
            )  # a position on an edge between pixels may round to either side

    @pytest.mark.parametrize(
        "shape", [(70_001, 3, 102, 103), (1, 70_003, 182, 181), (1, 1, 46_345, 46_343)], ids=str
    )
    def test_an_input_of_2_31_elements_and_its_gradients(self, shape):
        self.needs(48)  # mostly for the fp32 planes of the pair
        input = torch.rand(shape, dtype=torch.float16, device="cuda")
        n = shape[0]
        theta = torch.tensor([[[0.5, 0.1, 0.4], [-0.1, 0.5, 0.4]]], device="cuda").repeat(n, 1, 1)
        input.requires_grad_(), theta.requires_grad_()
        output = stn_triton.affine_grid_sample(input, theta, 5)
        grad = torch.rand_like(output)
        grad_input, grad_theta = torch.autograd.grad(output, (input, theta), grad)
        for image in {0, n - 1}:
            part = input.detach()[image : image + 1, -2:].float().requires_grad_()
            matrix = theta.detach()[image : image + 1].clone().requires_grad_()
            grid = F.affine_grid(matrix, (1, part.shape[1], 5, 5), False)
            expected = F.grid_sample(part, grid, align_corners=False)
            near = part.shape[-1] * 2**-20 + 1e-2
            torch.testing.assert_close(output[image : image + 1, -2:].float(), expected, atol=near, rtol=0)
            (expected_grad,) = torch.autograd.grad(expected, part, grad[image : image + 1, -2:].float())
            wrong = grad_input[image : image + 1, -2:].float().sub_(expected_grad).abs_().max()
            assert wrong <= 2 * near
            slopes = slopes_at_few_pixels(input.detach()[image], theta.detach()[image], grad[image])
            wrong = grad_theta[image].cpu().double().sub_(slopes).abs_().max()
            assert wrong <= 1e-3 * slopes.abs().max()
