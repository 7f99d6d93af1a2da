"""The public function on CPU tensors, against PyTorch's affine_grid and grid_sample (the pair)."""

import doctest
import math
import os
import pathlib
import subprocess
import sys
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import stn_triton
from stn_triton import affine_grid_sample, functional, options, thin_plate_spline_grid_sample

FORWARD = torch.ops.stn_triton.affine_grid_sample.default
BACKWARD = torch.ops.stn_triton.affine_grid_sample_backward.default
NCHW, CHANNELS_LAST = torch.contiguous_format, torch.channels_last
DTYPES = options.THETA_DTYPES

MAPS = {
    "near identity": (1.021, 0.013, 0.017, -0.011, 0.987, 0.029),
    "rotate 20": (0.940, -0.342, 0.013, 0.342, 0.940, -0.041),
    "rotate 98 and zoom in": (-0.043, -0.307, 0.21, 0.307, -0.043, 0.007),
    "shrink, most of it outside": (2.03, 0.11, 0.013, 0.07, 1.97, 0.031),
    "anisotropic": (0.213, 0.017, 0.011, 0.023, 2.91, 0.029),
    "shear": (1.013, 1.917, 0.023, 0.011, 0.983, 0.047),
}
SIZES = {
    "odd, same size": ((9, 17), None),
    "even to odd": ((8, 16), (7, 19)),
    "upsampled": ((5, 6), (13, 11)),
    "one row, where align_corners divides by zero": ((1, 7), (5, 1)),
}


def maps(n=None, dtype=torch.float64) -> Tensor:
    return torch.tensor(list(MAPS.values())[:n], dtype=dtype).view(-1, 2, 3)


def randn(*shape: int, seed=0, dtype=torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def nhwc(*shape: int, dtype=torch.float64) -> Tensor:
    return randn(*shape, dtype=dtype).to(memory_format=CHANNELS_LAST)


# A tensor of every layout in the dtype given, and the memory format that its output must have.
LAYOUTS = {
    "NCHW": (lambda dtype: randn(6, 3, 9, 17, dtype=dtype), NCHW),
    "channels_last": (lambda dtype: nhwc(6, 3, 9, 17, dtype=dtype), CHANNELS_LAST),
    "sliced: an offset, and gaps on every axis": (
        lambda dtype: randn(7, 5, 11, 36, dtype=dtype)[1:, 1:4, 2:, 1:35:2],
        NCHW,
    ),
    "sliced channels_last": (lambda dtype: nhwc(6, 8, 11, 17, dtype=dtype)[:, 2:5, 1:10], CHANNELS_LAST),
    "transposed, rows innermost": (lambda dtype: randn(6, 3, 17, 9, dtype=dtype).transpose(2, 3), NCHW),
    "batch innermost": (lambda dtype: randn(3, 9, 17, 6, dtype=dtype).permute(3, 0, 1, 2), NCHW),
    "one image expanded": (lambda dtype: randn(1, 3, 9, 17, dtype=dtype).expand(6, -1, -1, -1), NCHW),
    "one channel expanded": (lambda dtype: randn(6, 1, 9, 17, dtype=dtype).expand(-1, 3, -1, -1), NCHW),
    "one number expanded": (lambda dtype: randn(1, 1, 1, 1, dtype=dtype).expand(6, 3, 9, 17), NCHW),
    # From here on some axes have length 0 or 1, where strides have no meaning.
    "one channel": (lambda dtype: nhwc(6, 1, 9, 17, dtype=dtype), NCHW),
    "one row": (lambda dtype: nhwc(6, 3, 1, 17, dtype=dtype), CHANNELS_LAST),
    "one column": (lambda dtype: nhwc(6, 3, 9, 1, dtype=dtype), CHANNELS_LAST),
    "one pixel": (lambda dtype: nhwc(6, 3, 1, 1, dtype=dtype), NCHW),
    "one image": (lambda dtype: nhwc(1, 3, 9, 17, dtype=dtype), CHANNELS_LAST),
    "no images": (lambda dtype: randn(0, 3, 9, 17, dtype=dtype), NCHW),
    "no images, channels_last": (lambda dtype: nhwc(6, 3, 9, 17, dtype=dtype)[:0], CHANNELS_LAST),
    "no channels": (lambda dtype: randn(6, 0, 9, 17, dtype=dtype), NCHW),
}


class Results(NamedTuple):
    output: Tensor
    grad_input: Tensor
    grad_theta: Tensor


def eager_pair(input, theta, size=None, align_corners=False):
    shape = [*input.shape[:2], *(size or input.shape[2:])]
    grid = F.affine_grid(theta, shape, align_corners)
    return F.grid_sample(input, grid, align_corners=align_corners)


def differentiate(function, input, theta, size=None, align_corners=False, grad=None) -> Results:
    """Compute the output and both gradients, for a random grad_output."""
    input, theta = input.detach().requires_grad_(), theta.detach().requires_grad_()
    output = function(input, theta, size, align_corners=align_corners)
    if grad is None:
        grad = randn(*output.shape, seed=1).to(output.dtype)
    return Results(output.detach(), *torch.autograd.grad(output, (input, theta), grad))


def kink_distance(theta, size_in, size, align_corners) -> float:
    """Return the least distance, in pixels, of a coordinate to an integer, where gradients jump."""
    grid = F.affine_grid(theta.double(), [len(theta), 1, *(size or size_in)], align_corners)
    distances = [math.inf]
    for axis, extent in enumerate(reversed(size_in)):
        if extent == 1 and align_corners:
            continue  # one pixel and no width: the coordinate is constant, its gradient zero
        x = grid[..., axis] + 1
        x = x * (extent - 1) / 2 if align_corners else (x * extent - 1) / 2
        x = x[(x > -1.5) & (x < extent + 0.5)]
        distances.extend((x - x.round()).abs().flatten().tolist())
    return min(distances)


def smooth_maps(size_in, size=None, align_corners=False, dtype=torch.float64, n=None) -> Tensor:
    """Shift each of MAPS a little until every coordinate is well away from kinks."""
    shifted = []
    for theta in maps(n, dtype).split(1):
        step = torch.tensor([0, 0, 0.0037], dtype=dtype)
        for _ in range(100):
            if kink_distance(theta, size_in, size, align_corners) > 1e-3:
                break
            theta = theta + step
        else:
            raise AssertionError("no shift avoids the kinks")
        shifted.append(theta)
    return torch.cat(shifted)


def error(actual, truth) -> float:
    return (actual.double() - truth).abs().max().item()


def assert_within_budget(actual: Results, input, theta, size=None, align_corners=False):
    """Check that errors are at most twice those of the pair in fp32, plus the rounding to the dtype."""
    grad = randn(*actual.output.shape, seed=1).to(actual.output.dtype)
    truth = differentiate(eager_pair, input.double(), theta.double(), size, align_corners, grad.double())
    eager = differentiate(eager_pair, input.float(), theta.float(), size, align_corners, grad.float())
    for name, mine, exact, pair in zip(Results._fields, actual, truth, eager, strict=True):
        budget = 2 * error(pair, exact) + torch.finfo(mine.dtype).eps / 2 * exact.abs()
        excess = ((mine.double() - exact).abs() - budget).max().item()
        assert excess <= 0, f"{name} exceeds its budget of {budget.max().item():.3g} by {excess:.3g}"


class Recorder(TorchDispatchMode):
    """Records the operators that reach the dispatcher, with their arguments."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append((func, args))
        return func(*args, **(kwargs or {}))

    def arguments(self, op):
        return [args for func, args in self.calls if func is op]


@pytest.fixture(params=["eager", "compiled"])
def sample(request):
    """The public function, once as it is and once compiled as one graph."""
    if request.param == "eager":
        return affine_grid_sample
    torch._dynamo.reset()
    return torch.compile(affine_grid_sample, backend="aot_eager", fullgraph=True)


@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior has changed for unit-size")
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
class TestAgainstTheEagerPair:
    def test_output_and_gradients_are_within_the_error_budget(self, sample, sizes, align_corners):
        size_in, size = sizes
        input = randn(len(MAPS), 3, *size_in, dtype=torch.float32)
        theta = smooth_maps(size_in, size, align_corners, torch.float32)
        actual = differentiate(sample, input, theta, size, align_corners)
        assert_within_budget(actual, input, theta, size, align_corners)

    def test_fp64_images_are_sampled_in_fp64(self, sizes, align_corners):
        size_in, size = sizes
        theta = smooth_maps(size_in, size, align_corners)
        arguments = randn(len(MAPS), 3, *size_in), theta, size, align_corners
        exact = differentiate(eager_pair, *arguments)
        actual = differentiate(affine_grid_sample, *arguments)
        single = differentiate(eager_pair, arguments[0].float(), arguments[1].float(), *arguments[2:])
        for name, mine, pair, rough in zip(Results._fields, actual, exact, single, strict=True):
            assert mine.dtype == torch.float64
            # One rounding to fp32 would be as bad as the pair in fp32; fp64 has 2**-29 of that error.
            assert error(mine, pair) < 2**-20 * error(rough, pair), name


@pytest.mark.parametrize("theta_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("input_dtype", DTYPES, ids=str)
def test_every_pair_of_dtypes_rounds_only_at_the_end(input_dtype, theta_dtype):
    input = randn(len(MAPS), 3, 8, 16, dtype=input_dtype)
    theta = smooth_maps((8, 16), (7, 19), dtype=theta_dtype)
    actual = differentiate(affine_grid_sample, input, theta, (7, 19))
    assert [t.dtype for t in actual] == [input_dtype, input_dtype, theta_dtype]
    assert_within_budget(actual, input, theta, (7, 19))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_of_the_input_change_no_bit(layout, dtype):
    make, memory_format = LAYOUTS[layout]
    input = make(dtype)  # bf16 is computed in a copy; fp32 reaches the sampler with its own strides
    theta = maps(len(input), torch.float32)
    actual = differentiate(affine_grid_sample, input, theta, (7, 11))
    expected = differentiate(affine_grid_sample, input.clone(memory_format=NCHW), theta, (7, 11))
    for name, mine, dense in zip(Results._fields, actual, expected, strict=True):
        assert torch.equal(mine, dense), name
    assert actual.output.is_contiguous(memory_format=memory_format)
    assert actual.grad_input.is_contiguous(memory_format=memory_format)


THETA_LAYOUTS = {
    "sliced from homogeneous matrices": lambda theta: F.pad(theta, (0, 0, 0, 1))[:, :2],
    "transposed": lambda theta: theta.transpose(1, 2).contiguous().transpose(1, 2),
    "an offset, and a gap": lambda theta: F.pad(theta, (1, 4))[:, :, 1:4],
    "one matrix expanded": lambda theta: theta[:1].expand_as(theta),
}


@pytest.mark.parametrize("layout", THETA_LAYOUTS)
def test_strides_of_theta_change_no_bit(layout):
    input, theta = (
        randn(len(MAPS), 3, 8, 16, dtype=torch.float32),
        THETA_LAYOUTS[layout](maps(dtype=torch.float32)),
    )
    actual = differentiate(affine_grid_sample, input, theta)
    expected = differentiate(affine_grid_sample, input, theta.clone(memory_format=NCHW))
    for name, mine, dense in zip(Results._fields, actual, expected, strict=True):
        assert torch.equal(mine, dense), name


GRADS = {
    "expanded, as sum() gives it": lambda shape: randn(1, 1, 1, 1).float().expand(shape),
    "channels_last": lambda shape: randn(*shape).float().to(memory_format=CHANNELS_LAST),
    "transposed": lambda shape: randn(*shape).float().transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", GRADS)
def test_strides_of_the_incoming_gradient_change_no_bit(layout):
    input, theta = randn(len(MAPS), 3, 8, 16, dtype=torch.float32), maps(dtype=torch.float32)
    grad = GRADS[layout](input.shape)
    actual = differentiate(affine_grid_sample, input, theta, grad=grad)
    expected = differentiate(affine_grid_sample, input, theta, grad=grad.clone(memory_format=NCHW))
    for name, mine, dense in zip(Results._fields, actual, expected, strict=True):
        assert torch.equal(mine, dense), name


def test_an_axis_of_one_pixel_warns_in_the_pair_alone():
    image, theta = torch.rand(1, 1, 5, 4), torch.tensor([[[1.0, 0.1, 0.2], [0.1, 0.9, 0.1]]])
    with pytest.warns(UserWarning, match="unit-size grids"):
        grid = F.affine_grid(theta, (1, 1, 1, 3), align_corners=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        output = affine_grid_sample(image, theta, (1, 3), align_corners=True)
    torch.testing.assert_close(output, F.grid_sample(image, grid, align_corners=True))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (None, (4, 5)),
        (3, (3, 3)),
        ((3, 6), (3, 6)),
        ([3, 6], (3, 6)),
        (torch.Size((3, 6)), (3, 6)),
    ],
    ids=repr,
)
def test_size_is_read_as_interpolate_does(sample, size, expected):
    input, theta = randn(2, 3, 4, 5), maps(2)
    output = sample(input, theta, size)
    assert output.shape == (2, 3, *expected)
    assert output.shape == F.interpolate(input, size or input.shape[2:]).shape
    torch.testing.assert_close(output, eager_pair(input, theta, expected))


@pytest.mark.parametrize(("n", "c"), [(0, 3), (2, 0), (0, 0)])
def test_empty_batches_and_no_channels_give_empty_outputs_and_zero_gradients(sample, n, c):
    input, theta = torch.empty(n, c, 4, 5), maps(2, torch.float32)[:n]
    actual = differentiate(sample, input, theta, (3, 6))
    assert actual.output.shape == (n, c, 3, 6)
    assert torch.equal(actual.grad_input, torch.zeros(n, c, 4, 5))
    assert torch.equal(actual.grad_theta, torch.zeros(n, 2, 3))


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)])
def test_only_wanted_gradients_are_computed(needs):
    input, theta = randn(2, 3, 4, 5), maps(2)
    both = differentiate(affine_grid_sample, input, theta)[1:]
    leaves = [t.clone().requires_grad_(n) for t, n in zip((input, theta), needs, strict=True)]
    output = affine_grid_sample(*leaves)
    with Recorder() as recorder:
        output.backward(randn(*output.shape, seed=1))
    (arguments,) = recorder.arguments(BACKWARD)
    assert list(arguments[-1]) == [*needs, False]
    for leaf, need, expected in zip(leaves, needs, both, strict=True):
        assert torch.equal(leaf.grad, expected) if need else leaf.grad is None


def test_nothing_is_kept_for_a_backward_that_nobody_wants():
    input, theta = randn(2, 3, 4, 5), maps(2)
    assert affine_grid_sample(input, theta).grad_fn is None
    with torch.no_grad():
        assert affine_grid_sample(input.requires_grad_(), theta).grad_fn is None


def test_one_call_is_one_operator():
    with Recorder() as recorder:
        affine_grid_sample(randn(2, 3, 4, 5), maps(2), 7)
    assert FORWARD in [func for func, _ in recorder.calls]
    made = [func for func, _ in recorder.calls if func.namespace != "aten" or "grid" in str(func)]
    assert made == [FORWARD]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_changes_nothing(sample, dtype):
    input, theta = randn(len(MAPS), 3, 9, 17).to(dtype), maps(dtype=torch.float32)
    expected = differentiate(affine_grid_sample, input, theta)
    with torch.autocast("cpu", torch.bfloat16):
        actual = differentiate(sample, input, theta)
    for name, mine, plain in zip(Results._fields, actual, expected, strict=True):
        assert mine.dtype == plain.dtype, name
        assert torch.equal(mine, plain), name


@pytest.mark.parametrize("align_corners", [False, True])
def test_gradients_pass_gradcheck(align_corners):
    input, size = randn(3, 2, 4, 5), (3, 6)
    theta = smooth_maps((4, 5), size, align_corners, n=3)
    assert torch.autograd.gradcheck(
        lambda input, theta: affine_grid_sample(input, theta, size, align_corners=align_corners),
        (input.requires_grad_(), theta.requires_grad_()),
        check_batched_grad=True,
    )


INPUT, THETA = torch.zeros(2, 3, 4, 5), torch.zeros(2, 2, 3)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # a prototype
    NESTED, JAGGED = (
        torch.nested.nested_tensor([INPUT[0], INPUT[0, :2]], layout=layout)
        for layout in (torch.strided, torch.jagged)
    )
SIZE = "two ints (H_out, W_out)"
# Arguments that differ from a valid call, the error, and parts of its message besides the name.
BAD = {
    "input is a list": ({"input": [1.5]}, TypeError, ["torch.Tensor", "[1.5]", "list"]),
    "theta is None": ({"theta": None}, TypeError, ["torch.Tensor", "None"]),
    "input is sparse": ({"input": INPUT.to_sparse()}, TypeError, ["strided", "torch.sparse_coo"]),
    "mode of labels": ({"mode": "bilinear", "input": INPUT.char()}, ValueError, ["torch.int8", "'bilinear'"]),
    "complex input": ({"input": INPUT.cfloat()}, TypeError, ["torch.bfloat16", "torch.complex64"]),
    "integer theta": ({"theta": THETA.long()}, TypeError, ["floating", "torch.int64"]),
    "complex theta": ({"theta": THETA.cfloat()}, TypeError, ["floating", "torch.complex64"]),
    "input without a batch": ({"input": INPUT[0]}, ValueError, ["(N, C, H_in, W_in)", "(3, 4, 5)"]),
    "six dimensions": ({"input": INPUT[None, None]}, ValueError, ["(N, C, D_in,", "(1, 1, 2, 3, 4, 5)"]),
    "no rows": ({"input": INPUT[:, :, :0]}, ValueError, ["one pixel", "(2, 3, 0, 5)"]),
    "no columns": ({"input": INPUT[..., :0]}, ValueError, ["one pixel", "(2, 3, 4, 0)"]),
    "theta without a batch": ({"theta": THETA[0]}, ValueError, ["(N, 2, 3)", "(2, 3)"]),
    "homogeneous theta": ({"theta": torch.zeros(2, 3, 3)}, ValueError, ["(N, 2, 3)", "(2, 3, 3)"]),
    "theta for a volume": ({"theta": torch.zeros(2, 3, 4)}, ValueError, ["(N, 2, 3)", "(2, 3, 4)"]),
    "theta without translation": ({"theta": torch.zeros(2, 2, 2)}, ValueError, ["(N, 2, 3)", "(2, 2, 2)"]),
    "three thetas for two images": ({"theta": torch.zeros(3, 2, 3)}, ValueError, ["(2, ...)", "(3, 2, 3)"]),
    "three times four thetas": ({"theta": torch.zeros(3, 4, 2, 3)}, ValueError, ["(2, ...)", "(3, 4, 2, 3)"]),
    "matrix of a volume for an image": ({"theta": torch.zeros(2, 3, 4)}, ValueError, ["2, 3)", "(2, 3, 4)"]),
    "matrix of an image for a volume": (
        {"theta": THETA, "input": torch.zeros(2, 3, 4, 5, 6)},
        ValueError,
        ["(N, 3, 4)", "(2, 2, 3)"],
    ),
    "theta elsewhere": ({"theta": THETA.to("meta")}, ValueError, ["device", "cpu", "meta"]),
    "size zero": ({"size": 0}, ValueError, ["positive", "0"]),
    "negative width": ({"size": (4, -5)}, ValueError, ["positive", "(4, -5)"]),
    "size too large to count": ({"size": (4, 2**31)}, ValueError, ["2**24", "(4, 2147483648)"]),
    "one extent": ({"size": (4,)}, ValueError, [SIZE, "(4,)"]),
    "affine_grid's size": ({"size": (2, 3, 4, 5)}, ValueError, [SIZE, "(2, 3, 4, 5)", "without (N, C)"]),
    "size is a float": ({"size": 2.5}, TypeError, [SIZE, "2.5", "float"]),
    "size is a str": ({"size": "45"}, TypeError, [SIZE, "'45'", "str"]),
    "size is bytes": ({"size": b"45"}, TypeError, [SIZE, "b'45'", "bytes"]),
    "size is a bool": ({"size": True}, TypeError, [SIZE, "True", "bool"]),
    "size is a bool tensor": ({"size": torch.tensor(True)}, TypeError, [SIZE, "tensor(True)"]),
    "size is a bool of NumPy": ({"size": np.True_}, TypeError, [SIZE, "True_"]),
    "size is a floating tensor": ({"size": torch.tensor(2.0)}, TypeError, [SIZE, "tensor(2.)"]),
    "size is a matrix": ({"size": np.ones((2, 2), int)}, TypeError, [SIZE, "ndarray"]),
    "size without values": ({"size": torch.tensor(2, device="meta")}, TypeError, [SIZE, "meta"]),
    "an extent is a float": ({"size": (4, 5.0)}, TypeError, [SIZE, "5.0", "float"]),
    "two extents for a volume": (
        {"size": (4, 5), "input": torch.zeros(2, 3, 4, 5, 6), "theta": torch.zeros(2, 3, 4)},
        ValueError,
        ["three ints (D_out, H_out, W_out)", "(4, 5)"],
    ),
    "an unknown mode": ({"mode": "cubic"}, ValueError, ["'bicubic'", "'cubic'"]),
    "bicubic volume": (
        {"mode": "bicubic", "input": torch.zeros(2, 3, 4, 5, 6), "theta": torch.zeros(2, 3, 4)},
        ValueError,
        ["'nearest'", "'bicubic'"],
    ),
    "mode is not a str": ({"mode": 0}, TypeError, ["str", "0", "int"]),
    "an unknown padding_mode": ({"padding_mode": "edge"}, ValueError, ["'border'", "'edge'"]),
    "padding_mode is not a str": ({"padding_mode": None}, TypeError, ["str", "None"]),
    "align_corners is an int": ({"align_corners": 1}, TypeError, ["bool", "1", "int"]),
    "align_corners is NumPy's 1": ({"align_corners": np.int64(1)}, TypeError, ["bool", "1", "int64"]),
    "antialias is an int": ({"antialias": 2}, TypeError, ["bool", "2", "int"]),
    "size too large for antialias": (
        {"size": (4, 2**25), "antialias": True},
        ValueError,
        ["2**24 on each axis with antialias", "(4, 33554432)"],
    ),
    "fill without a value": ({"fill_value": None, "padding_mode": "fill"}, TypeError, ["number", "None"]),
    "a fill value without fill": ({"fill_value": 0.5}, ValueError, ["'fill'", "0.5"]),
    "two fill values for three channels": (
        {"fill_value": torch.zeros(2), "padding_mode": "fill"},
        ValueError,
        ["(3,)", "(2,)"],
    ),
    "theta of a homography": (
        {"theta": torch.zeros(2, 3, 3)},
        ValueError,
        ["(N, 2, 3)", "(2, 3, 3): for homographies call perspective_grid_sample"],
    ),
    "theta of one map": (
        {"theta": THETA[0]},
        ValueError,
        ["(N, 2, 3)", "(2, 3): one for all images is theta[None]"],
    ),
    "fill values of bools": (
        {"fill_value": torch.zeros(3).bool(), "padding_mode": "fill"},
        TypeError,
        ["floating", "torch.bool"],
    ),
    "index of another dtype": (
        {"image_index": torch.zeros(2, dtype=torch.int32)},
        TypeError,
        ["torch.int64", "torch.int32"],
    ),
    "index of another length": (
        {"image_index": torch.zeros(3, dtype=torch.int64)},
        ValueError,
        ["(2,)", "(3,)"],
    ),
    "two fill values in a list for three channels": (
        {"fill_value": [0.5, 0.5], "padding_mode": "fill"},
        ValueError,
        ["3 values", "[0.5, 0.5]"],
    ),
    "fill value beyond fp64": (
        {"fill_value": 10**400, "padding_mode": "fill"},
        TypeError,
        ["number", "1000", "type int"],
    ),
    "a fill value whose gradient would be lost": (
        {"fill_value": [torch.tensor(0.25, requires_grad=True), 0.5, 0.0], "padding_mode": "fill"},
        TypeError,
        ["gradient", "tensor(0.2500"],
    ),
    "fill values in a matrix": (
        {"fill_value": np.ones((3, 1)), "padding_mode": "fill"},
        TypeError,
        ["number", "ndarray"],
    ),
    "nested input": ({"input": NESTED}, TypeError, ["nested tensor", "to_padded_tensor"]),
    "jagged theta": ({"theta": JAGGED}, TypeError, ["nested tensor", "to_padded_tensor"]),
    "jagged image_index": ({"image_index": JAGGED}, TypeError, ["nested tensor", "to_padded_tensor"]),
    "fill value is a str": ({"fill_value": "0", "padding_mode": "fill"}, TypeError, ["number", "'0'"]),
    "index and many thetas": (
        {"theta": torch.zeros(2, 4, 2, 3), "image_index": torch.zeros(2, dtype=torch.int64)},
        ValueError,
        ["(M, 2, 3)", "(2, 4, 2, 3)"],
    ),
    "gradients of rounded bytes": (
        {"theta": THETA.clone().requires_grad_(), "input": INPUT.byte()},
        ValueError,
        ["uint8", "no_grad"],
    ),
}


@pytest.mark.parametrize(("changed", "kind", "parts"), BAD.values(), ids=BAD)
def test_bad_arguments_are_named_before_anything_runs(changed, kind, parts):
    name = next(iter(changed))
    with Recorder() as recorder, pytest.raises((TypeError, ValueError)) as raised:
        affine_grid_sample(**{"input": INPUT, "theta": THETA, **changed})
    assert raised.type is kind
    message = str(raised.value)
    assert message.startswith(f"{name} must ")
    expected, got = message.rsplit("got ", 1) if "got " in message else (message, message)
    for part in parts:
        assert part in expected + got
    assert any(part in got for part in parts), "the message does not say what it was given"
    assert not recorder.arguments(FORWARD)


# Arguments as Python numbers, each with equal values in types of NumPy and PyTorch.
SAME = {
    "size": {
        3: [
            np.int64(3),
            np.uint8(3),
            np.array(3),
            torch.tensor(3),
            torch.tensor(3, dtype=torch.uint8),
        ],
        (3, 6): [
            np.array([3, 6]),
            torch.tensor([3, 6]),
            (np.int32(3), torch.tensor(6)),
            range(3, 9, 3),
        ],
    },
    "fill_value": {
        0.25: [np.float32(0.25), np.longdouble(0.25), np.array(0.25), torch.tensor(0.25)],
        2: [np.int64(2), torch.tensor(2)],
        (0.25, 0.5, 2): [
            np.array([0.25, 0.5, 2], np.float16),
            [np.float32(0.25), torch.tensor(0.5), np.int64(2)],
        ],
    },
    "align_corners": {
        True: [np.True_, np.array(True), torch.tensor(True)],
        False: [np.False_, None],
    },
    "antialias": {True: [np.True_, torch.tensor(True)]},
}


@pytest.mark.parametrize(
    ("name", "plain", "given"),
    [
        pytest.param(name, plain, given, id=f"{name}={given!r}")
        for name, cases in SAME.items()
        for plain, others in cases.items()
        for given in others
    ],
)
def test_numbers_of_numpy_and_tensors_are_numbers(name, plain, given):
    input, theta = randn(2, 3, 4, 5), 2 * maps(2)
    options = {"padding_mode": "fill", "fill_value": 0.0}
    expected = affine_grid_sample(input, theta, **{**options, name: plain})
    assert torch.equal(affine_grid_sample(input, theta, **{**options, name: given}), expected)


POINTS = [(-1, -1), (1, -1), (-1, 1), (1, 1)]


@pytest.mark.parametrize(
    "points",
    [
        np.array(POINTS),
        torch.tensor(POINTS, dtype=torch.float16),
        [np.float32(point) for point in POINTS],
        [torch.tensor(point) for point in POINTS],
        (np.int64(2), torch.tensor(2)),
        np.array([2, 2]),
    ],
    ids=repr,
)
def test_points_of_numpy_and_tensors_are_points(points):
    input, offsets = randn(2, 3, 4, 5), 0.1 * randn(2, 4, 2)
    expected = thin_plate_spline_grid_sample(input, offsets, points=(2, 2))
    assert torch.equal(thin_plate_spline_grid_sample(input, offsets, points=points), expected)


def test_options_are_keywords_only():
    with pytest.raises(TypeError, match="positional"):
        affine_grid_sample(INPUT, THETA, 4, "bilinear")


def without_entry(theta, image, row, column):
    theta = theta.clone()
    theta[image, row, column] = 0
    return theta


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, -1e30, 1e300, 1e10])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("column", [0, 1, 2])
@pytest.mark.parametrize("input_dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_a_coordinate_beyond_all_bounds_samples_zero(value, row, column, input_dtype):
    """One entry of the second of three matrices is ``value``; an odd size, so that 0 * value occurs."""
    input, theta = randn(3, 2, 5, 7).to(input_dtype), maps(3)  # fp64: 1e300 is infinite in fp32 only
    bad = theta.clone()
    bad[1, row, column] = value
    kept = torch.ones(3, 1, 5, 7, dtype=torch.bool)
    kept[1] = False
    finite = torch.tensor(value, dtype=torch.promote_types(input_dtype, torch.float32)).isfinite()
    if finite and column == 0:
        kept[1, :, :, 3] = True  # the middle column, where 0 times anything finite is 0
    if finite and column == 1:
        kept[1, :, 2, :] = True
    grad = randn(3, 2, 5, 7, seed=1).to(input_dtype)
    actual = differentiate(affine_grid_sample, input, bad, grad=grad)
    expected = differentiate(
        affine_grid_sample, input, without_entry(theta, 1, row, column), grad=grad.where(kept, 0)
    )
    assert torch.equal(actual.output, expected.output.where(kept, 0))
    assert torch.equal(actual.grad_input, expected.grad_input)
    assert actual.grad_theta.isfinite().all()
    others = [0, 2]
    assert torch.equal(actual.grad_theta[others], expected.grad_theta[others])


def test_a_map_past_the_edge_gives_zeros_and_zero_gradients():
    theta = torch.tensor([[[1, 0, 5.0], [0, 1, 0]]])
    for tensor in differentiate(affine_grid_sample, randn(1, 2, 5, 7).float(), theta):
        assert torch.equal(tensor, torch.zeros_like(tensor))


IMPORT = """
import sys, warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
before = set(sys.modules)
import stn_triton
roots = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
assert roots <= {"stn_triton", "torch"}, roots
for heavy in ("triton", "torch._dynamo", "torch._inductor"):
    assert heavy in before or heavy not in sys.modules, heavy
assert "triton" not in sys.modules
assert not torch.cuda.is_initialized()
"""


def test_import_is_silent_and_light():
    root = pathlib.Path(stn_triton.__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "error", "-c", IMPORT]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_docstring_example_runs():
    result = doctest.testmod(functional)
    assert result.attempted > 0
    assert result.failed == 0
