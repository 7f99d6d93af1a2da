"""Fast paths of the plain PyTorch implementation, compared with its simple path."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from stn_triton import affine_grid_sample, bags, reference, reference_grid, reference_parts, reference_tangent
from stn_triton.options import Options, Tangents

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def maps(n, dim=2, spread=0.4):
    return torch.eye(dim, dim + 1).expand(n, -1, -1) + spread * randn(n, dim, dim + 1, seed=1)


def results(input, theta, size, padding_mode="zeros", align_corners=False, fill_value=None):
    """Compute the output, and the gradients of all tensors that have them."""
    leaves = [t.detach().requires_grad_() for t in (input, theta)]
    if fill_value is not None:
        leaves.append(fill_value.detach().requires_grad_())
        fill_value = leaves[2]
    options = {"padding_mode": padding_mode, "align_corners": align_corners, "fill_value": fill_value}
    output = affine_grid_sample(leaves[0], leaves[1], size, **options)
    grads = torch.autograd.grad(output, leaves, randn(*output.shape, seed=2).to(output.dtype))
    return output.detach(), *grads


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("size_in", [(7, 9), (1, 6), (4, 3, 5)], ids=str)
def test_bags_sample_as_pytorch_s_sampler_does(size_in, padding_mode, align_corners):
    dim = len(size_in)
    images = randn(3, 5, *size_in).contiguous(memory_format=CHANNELS_LAST[dim + 2])
    # A grid with positions on pixels and on edges, near and far outside.
    steps = torch.tensor([-30.0, -2.0, -1.4, -1.0, -1 / 3, 0.0, 0.21, 1.0, 1.3, 30.0])
    grid = torch.stack(torch.meshgrid(*[steps] * dim, indexing="ij"), -1).expand(3, *[-1] * (dim + 1))
    options = Options("bilinear", padding_mode, align_corners)
    expected = F.grid_sample(images, grid, "bilinear", padding_mode, align_corners)
    torch.testing.assert_close(bags.sampled(images, grid, options), expected)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bags_spread_no_more_of_what_is_not_finite_than_the_sampler(value, padding_mode):
    images = randn(2, 3, 5, 6)
    images[:, :, 0, 0] = images[:, :, 2, 5] = images[:, :, 4, 3] = value
    images = images.contiguous(memory_format=torch.channels_last)
    grid = 4 * torch.rand(2, 40, 40, 2, generator=torch.Generator().manual_seed(0)) - 2
    expected = F.grid_sample(images, grid, "bilinear", padding_mode, align_corners=False)
    assert not expected.isfinite().all()
    actual = bags.sampled(images, grid, Options("bilinear", padding_mode))
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.fixture
def counted_bags(monkeypatch):
    """Let outputs of any size use bags; return a list with an entry for each use."""
    used, sampled = [], bags.sampled

    def counted(*arguments):
        used.append(arguments)
        return sampled(*arguments)

    monkeypatch.setattr(bags, "sampled", counted)
    monkeypatch.setattr(bags, "_ELEMENTS", 1)
    return used


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "fill"])
def test_many_channels_in_channels_last_are_sampled_in_bags(counted_bags, padding_mode, dtype):
    images, theta, size = randn(4, 32, 6, 7, dtype=dtype), maps(4), (5, 8)
    fill = randn(32, seed=3) if padding_mode == "fill" else None
    expected = results(images, theta, size, padding_mode, fill_value=fill)
    assert not counted_bags
    last = images.contiguous(memory_format=torch.channels_last)
    actual = results(last, theta, size, padding_mode, fill_value=fill)
    assert len(counted_bags) == 1
    torch.testing.assert_close(actual, expected)
    assert actual[0].is_contiguous(memory_format=torch.channels_last)


def test_bags_of_several_matrices_a_slice_and_volumes(counted_bags):
    images = randn(2, 40, 9, 7).contiguous(memory_format=torch.channels_last)[:, 3:36, 1:8]
    theta = maps(6).unflatten(0, (2, 3))
    expected = affine_grid_sample(images.contiguous(), theta, (4, 5))
    torch.testing.assert_close(affine_grid_sample(images, theta, (4, 5)), expected)
    volumes, theta = randn(2, 32, 3, 4, 5), maps(2, 3)
    expected = affine_grid_sample(volumes, theta)
    last = volumes.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(affine_grid_sample(last, theta), expected)
    assert len(counted_bags) == 2


def test_bags_know_no_autocast_and_give_a_tensor_of_its_own(counted_bags):
    images, theta = randn(2, 32, 6, 7).contiguous(memory_format=torch.channels_last), maps(2)
    expected = affine_grid_sample(images, theta)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(affine_grid_sample(images, theta), expected)
    leaf = images.requires_grad_()
    affine_grid_sample(leaf, theta).add_(1).sum().backward()  # a view would raise
    assert len(counted_bags) == 3


@pytest.mark.parametrize("mode", ["nearest", "bicubic"])
def test_other_modes_and_few_channels_need_no_bags(counted_bags, mode):
    last = randn(2, 32, 6, 7).contiguous(memory_format=torch.channels_last)
    affine_grid_sample(last, maps(2), mode=mode)
    affine_grid_sample(last, maps(2), padding_mode="reflection")
    affine_grid_sample(last.double(), maps(2))
    affine_grid_sample(last[:, :31], maps(2))
    assert not counted_bags


@pytest.mark.parametrize("kind", ["channels_last", "bfloat16", "several matrices", "fill"])
def test_a_few_images_at_a_time_give_the_same(monkeypatch, kind):
    images, theta, fill = randn(7, 4, 6, 5), maps(7), None
    last = images.contiguous(memory_format=torch.channels_last)
    images = images.bfloat16() if kind == "bfloat16" else last
    if kind == "several matrices":
        theta = maps(14).unflatten(0, (7, 2))
    padding_mode = "zeros"
    if kind == "fill":
        padding_mode, fill = "fill", randn(4, seed=3)
    expected = results(images, theta, (6, 8), padding_mode, fill_value=fill)

    monkeypatch.setattr(reference_parts, "_ELEMENTS_AT_ONCE", 64)
    parts, taken = [], reference.taken
    monkeypatch.setattr(reference, "taken", lambda t, which, d: parts.append(which) or taken(t, which, d))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        actual = results(images, theta, (6, 8), padding_mode, fill_value=fill)
    finally:
        torch.set_num_threads(threads)
    assert {(p.start, p.stop) for p in parts} >= {(0, 2), (2, 4), (4, 6), (6, 8)}
    for mine, whole in zip(actual[:3], expected[:3], strict=True):
        assert torch.equal(mine, whole)
        assert mine.stride() == whole.stride()
    torch.testing.assert_close(actual[3:], expected[3:])  # of the fill values: a sum over all images


class Written(TorchDispatchMode):
    """Counts the elements of all results, except views, and records the largest result."""

    def __init__(self):
        super().__init__()
        self.total = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, torch.Tensor) and not func.is_view:
                self.total += result.numel()
                self.largest = max(self.largest, result.numel())
        return results


def crops(count, size_in, largest, seed=0):
    """Make matrices (count, D, D + 1) of boxes in an image, with sides of 2 to ``largest`` pixels."""
    extents = torch.tensor(size_in[::-1])
    sides, firsts = torch.rand(2, count, len(size_in), generator=torch.Generator().manual_seed(seed))
    sides = 2 + sides * (largest - 2)
    theta = torch.diag_embed(sides / extents)
    centres = (extents - sides) * (2 * firsts - 1) / extents
    return torch.cat((theta, centres[..., None]), 2)


# Shape of the images, number of crops, their largest side, output size, and padding.
SHRUNK = {
    "by index": ((2, 4, 100, 150), 30, 50, (5, 5), "zeros"),
    "several of an image": ((2, 4, 100, 150), 30, 50, (5, 5), "border"),
    "wrapped": ((2, 4, 100, 150), 30, 50, (5, 5), "wrap"),
    "filled": ((2, 4, 100, 150), 30, 50, (5, 5), "fill"),
    "volumes": ((1, 4, 30, 30, 40), 20, 25, (4, 4, 4), "zeros"),
    "a whole image": ((1, 4, 200, 300), 1, 200, (4, 4), "zeros"),
}


@pytest.mark.parametrize("kind", SHRUNK)
@pytest.mark.sample(2)
def test_what_antialiasing_costs_is_in_proportion_to_the_samples(kind):
    """The cost must not grow with the images times the groups of equal crops."""
    shape, count, largest, size, padding_mode = SHRUNK[kind]
    images, theta = randn(*shape), crops(count, shape[2:], largest)
    fill = randn(shape[1], seed=3) if padding_mode == "fill" else None
    index = torch.arange(count) % len(images) if kind == "by index" else None
    options = Options(padding_mode=padding_mode, antialias=True)
    grad = randn(count, shape[1], *size, seed=2)
    counts = reference_parts.samples_per_pixel(theta, shape[2:], size, False)
    samples = counts.prod(1).sum().item() * grad[0].numel()
    assert samples > 4 * grad.numel()
    mask = (True, True, fill is not None)
    moved = Tangents(None, randn(*theta.shape, seed=4), None)
    given = images, theta, fill, index

    def check(most, call):
        with Written() as written:
            call()
        assert written.total < most * (samples + images.numel()), (written.total, samples, images.numel())

    # Limits are at least 1.5 times the counts; for gradients, a third of the cost of groups one by one.
    check(40, lambda: reference.forward(*given, size=size, options=options))
    check(60, lambda: reference.backward(grad, *given, options=options, output_mask=mask))
    check(200, lambda: reference_tangent.forward(*given, moved, size=size, options=options))
    check(300, lambda: reference_tangent.backward(grad, *given, moved, options=options, output_mask=mask))


@pytest.mark.parametrize("kind", ["equal", "several of an image", "by index", "volumes", "wrapped", "filled"])
def test_many_samples_are_taken_in_pieces(monkeypatch, kind):
    """Pieces of few elements give the results of all matrices and pixels at once."""
    shape, size = ((2, 2, 7, 9), (3, 2)) if kind != "volumes" else ((2, 2, 5, 6, 7), (2, 1, 3))
    images, theta = randn(*shape).double(), crops(8, shape[2:], 6).double()
    theta[3] = torch.eye(*theta.shape[1:])  # all of the image: more samples than others
    if kind == "equal":
        theta[:, :, :-1] = theta[3, :, :-1]
    index = torch.arange(8) % 2 if kind == "by index" else None
    padding_mode = {"wrapped": "wrap", "filled": "fill"}.get(kind, "zeros")
    fill = randn(2, seed=3).double() if kind == "filled" else None
    options, grad = Options("bilinear", padding_mode, antialias=True), randn(8, 2, *size, seed=2).double()
    moved, mask = Tangents(None, randn(*theta.shape, seed=4).double(), None), (True, True, fill is not None)
    given = images, theta, fill, index

    def results():
        with Written() as written:
            found = [
                reference.forward(*given, size=size, options=options),
                *reference.backward(grad, *given, options=options, output_mask=mask),
            ]
        found.append(reference_tangent.forward(*given, moved, size=size, options=options))
        found += reference_tangent.backward(grad, *given, moved, options=options, output_mask=mask)
        return found, written.largest

    expected, most = results()
    monkeypatch.setattr(reference_parts, "_ELEMENTS_AT_ONCE", 1)
    actual, few = results()
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert few < most / 2


def test_many_tiny_images_are_not_sampled_two_by_two(monkeypatch):
    monkeypatch.setattr(reference_parts, "_ELEMENTS_AT_ONCE", 2**17)
    images = torch.empty(2**16, 2, 2, 2).contiguous(memory_format=torch.channels_last)
    count = reference_parts.images_at_once(images, (2, 2), len(images), Options(), is_backward=True)
    assert 1000 < count < len(images)


@pytest.mark.parametrize("size", [(5, 8), (3, 2, 4)], ids=str)
def test_tiny_outputs_by_whole_bases_are_as_those_by_axes(monkeypatch, size):
    images, theta = randn(3, 2, *[6] * len(size)), maps(3, len(size), spread=0.1)
    expected = results(images, theta, size)
    monkeypatch.setattr(reference_grid, "_MOST_WHOLE", 0)
    monkeypatch.setattr(reference_grid, "_kept_base", reference_grid._base)
    actual = results(images, theta, size)
    torch.testing.assert_close(actual, expected)
    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(5, 8), (33, 40), (3, 2, 4)], ids=str)
def test_bits_of_an_image_do_not_depend_on_its_batch(monkeypatch, size, antialias):
    """Compare batches on either side of the size limit of the path with fewer operations."""
    images, theta = randn(9, 2, *[6] * len(size)), maps(9, len(size), spread=0.1)
    if antialias:  # equal counts of samples, more than one piece takes
        theta = 4 * theta[:1].expand_as(theta).clone()
        monkeypatch.setattr(reference_parts, "_ELEMENTS_AT_ONCE", 500)
    grad = randn(9, 2, *size, seed=5)

    def step(part):
        leaves = [t[part].requires_grad_() for t in (images, theta)]
        output = affine_grid_sample(*leaves, size, antialias=antialias)
        return output.detach(), *torch.autograd.grad(output, leaves, grad[part])

    together = step(slice(None))
    for i in range(9):
        part = slice(i, i + 1)
        for whole, one in zip(together, step(part), strict=True):
            assert torch.equal(whole[part], one)


def test_bases_are_kept_for_short_axes_and_serve_in_and_out_of_inference_mode():
    reference_grid._kept_base.cache_clear()
    images, theta = randn(1, 1, 4, 5), maps(1)
    with torch.inference_mode():
        expected = affine_grid_sample(images, theta).clone()
    assert reference_grid._kept_base.cache_info().misses == 1
    leaf = theta.clone().requires_grad_()
    output = reference.forward(images, leaf, size=(4, 5))  # autograd records this, unlike an operator
    output.sum().backward()
    assert torch.equal(output, expected)
    assert reference_grid._kept_base.cache_info().misses == 1
    affine_grid_sample(images, theta, (1, reference_grid._LONGEST_KEPT + 1))
    assert reference_grid._kept_base.cache_info().currsize == 1
