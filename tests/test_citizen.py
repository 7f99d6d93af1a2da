"""The operator in larger programs: threads, devices, copies, files, tensor subclasses, meta tensors."""

import contextlib
import copy
import io
import pickle
import subprocess
import sys
import threading

import pytest
import torch
import variants
from test_tuning import BUCKET
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from stn_triton import (
    SpatialTransformer,
    affine_grid_sample,
    autotune,
    options,
    perspective_grid_sample,
    thin_plate_spline_grid_sample,
)

THREADS = 8
PATIENCE = 300 if torch.cuda.is_available() else 30  # seconds; on a GPU threads compile and search
FORWARD = torch.ops.stn_triton.affine_grid_sample.default
BACKWARD = torch.ops.stn_triton.affine_grid_sample_backward.default
SAMPLES = [
    variants.Variant(dim, "bilinear", padding_mode, kind, False)
    for dim in (2, 3)
    for padding_mode in ("zeros", "fill")
    for kind in variants.KINDS
]
SAMPLES = [variant for variant in SAMPLES if variant.exists()]


def in_threads(function):
    """Call a function from several threads at once, and return the results."""
    barrier = threading.Barrier(THREADS)
    results = [None] * THREADS

    def run(i):
        barrier.wait()
        results[i] = function(i)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "threads wait for each other"
    return results


def data(seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    input = torch.rand(4, 3, 20, 30, generator=generator)
    theta = torch.eye(2, 3) + 0.3 * torch.rand(4, 2, 3, generator=generator)
    return input.to(device).requires_grad_(), theta.to(device).requires_grad_()


def step(input, theta):
    """Compute the output and the gradients."""
    output = affine_grid_sample(input, theta, 16)
    return output.detach(), *torch.autograd.grad(output.square().sum(), (input, theta))


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class TestThreads:
    @pytest.mark.full
    def test_a_new_process_imports_and_calls_from_eight_threads(self):
        script = f"""
import sys, threading
barrier, results = threading.Barrier({THREADS}), []
def run():
    import torch
    barrier.wait()
    import stn_triton
    leaves = torch.ones(1, 1, 4, 4).requires_grad_(), torch.eye(2, 3)[None].requires_grad_()
    output = stn_triton.affine_grid_sample(*leaves)
    results.append([t.tolist() for t in (output, *torch.autograd.grad(output.sum(), leaves))])
threads = [threading.Thread(target=run) for _ in range({THREADS})]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert len(results) == {THREADS} and all(result == results[0] for result in results)
"""
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert (run.returncode, run.stderr) == (0, "")

    @pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
    @pytest.mark.parametrize("asked", [False, True])
    def test_threads_do_not_disturb_each_other(self, device, asked):
        """On a GPU these are first calls, and with autotuning each of them searches."""
        with autotune() if asked else contextlib.nullcontext():
            actual = in_threads(lambda i: step(*data(i, device)))
        for i, results in enumerate(actual):
            assert_equal(results, step(*data(i, device)))


@pytest.mark.gpu
class TestDevices:
    def test_the_backward_on_another_gpu_than_the_current_one(self):
        if torch.cuda.device_count() < 2:
            pytest.skip("needs two GPUs")
        with torch.cuda.device(0):
            actual = step(*data(device="cuda:1"))
        assert_equal(actual, step(*data(device="cuda:1")))
        assert {t.device.index for t in actual} == {1}

    def test_a_stream_for_each_thread(self):
        """Kernels are launched on the current stream of the thread, behind its earlier work."""
        expected = [step(*data(i, "cuda")) for i in range(THREADS)]

        def run(i):
            tensors = data(i, "cuda")
            torch.cuda.synchronize()
            with torch.cuda.stream(torch.cuda.Stream()):
                leaves = [torch.zeros_like(t) for t in tensors]
                torch.cuda._sleep(10**8)
                for leaf, tensor in zip(leaves, tensors, strict=True):
                    leaf.copy_(tensor.detach())
                results = step(*(leaf.requires_grad_() for leaf in leaves))
                torch.cuda.current_stream().synchronize()
            return results

        for results, wanted in zip(in_threads(run), expected, strict=True):
            assert_equal(results, wanted)


class Warp(torch.nn.Module):
    """A spatial transformer, defined at module level so that pickle finds it."""

    def __init__(self):
        super().__init__()
        self.localise = torch.nn.Linear(3 * 20 * 30, 6)
        self.options = options.Options(padding_mode="border")

    def forward(self, images):
        theta = self.localise(images.flatten(1)).view(-1, 2, 3)
        return affine_grid_sample(images, theta, padding_mode=self.options.padding_mode)


def through_pickle(value):
    return pickle.loads(pickle.dumps(value))


def through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class TestCopies:
    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, through_pickle, through_file])
    def test_a_module_and_its_copy_do_the_same(self, duplicate):
        module, images = Warp(), data()[0]
        module(images).sum().backward()  # copies include gradients and caches
        twin = duplicate(module)
        assert twin is not module
        assert twin.options == module.options
        assert type(twin.options) is options.Options
        assert_equal([twin(images).detach()], [module(images).detach()])

    @pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, through_file])
    @pytest.mark.parametrize(
        "value",
        [affine_grid_sample, perspective_grid_sample, options.DEFAULT, BUCKET],
        ids=lambda value: getattr(value, "__name__", type(value).__name__),
    )
    def test_what_the_library_gives_out_can_be_copied(self, value, duplicate):
        twin = duplicate(value)
        assert twin == value
        assert type(twin) is type(value)

    @pytest.mark.parametrize("variant", SAMPLES, ids=variants.Variant.name)
    def test_a_file_holds_no_more_than_the_output(self, variant):
        """A view of a larger tensor would be saved with all of its storage."""
        case = variants.case(variant)
        output = FORWARD(*case[:2], case.fill, case.image_index, case.size, *variant.options())
        assert output.untyped_storage().nbytes() == output.numel() * output.itemsize
        assert_equal([through_file(output)], [output])


class Tagged(torch.Tensor):
    """A subclass that only adds attributes."""


class Strict(torch.Tensor):
    """A subclass whose methods accept only documented arguments, like MONAI's ``MetaTensor``."""

    def new_empty(self, size, *, dtype=None, device=None, requires_grad=False):
        assert isinstance(size, tuple)
        return super().new_empty(size, dtype=dtype, device=device, requires_grad=requires_grad)

    def new_zeros(self, size, *, dtype=None, device=None, requires_grad=False):
        assert isinstance(size, tuple)
        return super().new_zeros(size, dtype=dtype, device=device, requires_grad=requires_grad)

    def expand(self, *sizes):
        assert all(isinstance(extent, int) for extent in sizes)
        return super().expand(*sizes)

    def view(self, *shape):
        assert all(isinstance(extent, int) for extent in shape)
        return super().view(*shape)

    def sum(self, dim=None, keepdim=False, *, dtype=None):
        assert dim is None or isinstance(dim, int)
        return super().sum(dim, keepdim, dtype=dtype)


def of_strict(kind):
    """Return a call and its arguments, plain tensors that the tests wrap in ``Strict``."""
    plain = [t.detach() for t in data()]
    function, options = affine_grid_sample, {}
    if kind == "many":
        plain[1] = plain[1].unflatten(0, (1, 4))
    elif kind == "fill":
        plain.append(torch.rand(3))
    elif kind == "projective":
        function = perspective_grid_sample
        plain[1] = torch.cat((plain[1], torch.tensor([[[0.1, 0.2, 1.0]]]).expand(4, 1, 3)), 1)
    elif kind == "spline":
        function, plain[1] = thin_plate_spline_grid_sample, 0.1 * torch.randn(4, 9, 2)
    elif kind == "volumes":
        plain = [torch.rand(2, 1, 3, 4, 5), torch.eye(3, 4).repeat(2, 1, 1)]
        options = {"antialias": True, "padding_mode": "wrap"}

    def call(input, theta, fill=None):
        more = {} if fill is None else {"padding_mode": "fill", "fill_value": fill}
        return function(input, theta, **options, **more)

    return call, plain


class Wrapped(torch.Tensor):
    """A tensor without memory around another tensor; records the operators that reach it."""

    called: list = []  # noqa: RUF012, shared by all instances

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Wrapped({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.called.append(function)
        args, kwargs = tree_map_only(Wrapped, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(torch.Tensor, Wrapped, function(*args, **kwargs))


class TestSubclasses:
    def test_a_torch_function_subclass_passes_through(self):
        plain = data()
        leaves = [t.detach().as_subclass(Tagged).requires_grad_() for t in plain]
        actual = step(*leaves)
        assert_equal([t.as_subclass(torch.Tensor) for t in actual], step(*plain))
        assert type(actual[0]) is Tagged
        assert type(affine_grid_sample(plain[0], leaves[1])) is Tagged  # theta alone

    @pytest.mark.parametrize("kind", ["plain", "many", "fill", "projective", "spline", "volumes"])
    @pytest.mark.parametrize("needs", ["all", "the map", "the image"])
    def test_methods_of_a_subclass_are_called_as_documented(self, kind, needs):
        """Checked in the forward, the backward and the gradients of a penalty on gradients."""
        call, plain = of_strict(kind)
        chosen = {"all": slice(None), "the map": slice(1, 2), "the image": slice(1)}[needs]
        results = []
        for subclass in (torch.Tensor, Strict):
            tensors = [t.clone().as_subclass(subclass) for t in plain]
            leaves = [t.requires_grad_() for t in tensors[chosen]]
            output = call(*tensors)
            assert type(output) is subclass
            first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
            penalty = torch.stack([g.as_subclass(torch.Tensor).square().sum() for g in first]).sum()
            second = torch.autograd.grad(penalty, leaves)
            results.append([t.detach().as_subclass(torch.Tensor) for t in (output, *first, *second)])
        assert_equal(*results)

    def test_a_layer_learns_from_the_tensors_of_monai(self):
        images = data()[0].detach()
        batch = pytest.importorskip("monai.data").MetaTensor(images)
        batch.is_batch = True
        results = []
        for x in (images, batch):
            torch.manual_seed(0)
            layer = SpatialTransformer(3, size=8)
            optimizer = torch.optim.SGD(layer.parameters(), lr=1e-3)
            for _ in range(2):
                output = layer(x)
                (slope,) = torch.autograd.grad(output.square().sum(), layer.head.bias, create_graph=True)
                (output.mean() + slope.square().sum() * 1e-6).backward()
                optimizer.step()
            assert type(output) is type(x)
            results.append([output.detach().as_subclass(torch.Tensor), *layer.state_dict().values()])
        assert_equal(*results)

    @pytest.mark.parametrize("kind", ["Image", "Video"])
    def test_the_tensors_of_torchvision(self, kind):
        """The output is a plain tensor, as from PyTorch's functions, unless the user enables wrapping."""
        tv_tensors = pytest.importorskip("torchvision.tv_tensors")
        plain = data()
        images = getattr(tv_tensors, kind)(plain[0].detach()).requires_grad_()
        assert_equal(step(images, plain[1]), step(*plain))
        assert type(affine_grid_sample(images, plain[1])) is torch.Tensor
        with tv_tensors.set_return_type("TVTensor"):
            assert type(affine_grid_sample(images, plain[1])) is type(images)

    def test_a_mode_sees_the_functions(self):
        class Log(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                called.append(function)
                return function(*args, **(kwargs or {}))

        called, plain = [], [t.detach() for t in data()]
        with Log():
            output = affine_grid_sample(*plain, fill_value=0.5, padding_mode="fill")
        assert called == [affine_grid_sample]
        assert_equal([output], [affine_grid_sample(*plain, fill_value=0.5, padding_mode="fill")])

    @pytest.mark.parametrize("number", [None, 0.5], ids=["zeros", "fill"])
    def test_a_torch_dispatch_subclass_gets_both_operators(self, number):
        given = {} if number is None else {"padding_mode": "fill", "fill_value": number}
        plain = data()
        expected = affine_grid_sample(*plain, 16, **given)
        expected = [expected.detach(), *torch.autograd.grad(expected.sum(), plain)]
        leaves = [Wrapped(t.detach()).requires_grad_() for t in plain]
        Wrapped.called.clear()
        output = affine_grid_sample(*leaves, 16, **given)
        actual = [output.detach(), *torch.autograd.grad(output.sum(), leaves)]
        assert {type(t) for t in actual} == {Wrapped}
        assert_equal([t.inner for t in actual], expected)
        assert Wrapped.called.count(FORWARD) == Wrapped.called.count(BACKWARD) == 1


def layouts(tensors):
    return [(tuple(t.shape), t.stride(), t.dtype) for t in tensors]


class TestNoData:
    @pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
    @pytest.mark.parametrize("variant", SAMPLES, ids=variants.Variant.name)
    def test_meta_and_fake_tensors_have_the_layouts_of_real_ones(self, variant, last):
        form = {2: torch.channels_last, 3: torch.channels_last_3d}[variant.dim]
        form = form if last else torch.contiguous_format
        case = variants.case(variant).to("cpu", torch.float16, form)

        def run(to):
            tensors = (case.input, case.theta, case.grad, case.fill, case.image_index)
            input, theta, grad, *others = (None if t is None else to(t) for t in tensors)
            output = FORWARD(input, theta, *others, case.size, *variant.options())
            output_mask = [True, True, case.fill is not None]
            return output, *BACKWARD(grad, input, theta, *others, *variant.options(), output_mask)

        real, meta = run(torch.clone), run(lambda t: t.to("meta"))
        with FakeTensorMode() as mode:
            fake = run(mode.from_tensor)
        assert layouts(meta) == layouts(fake) == layouts(real)
        assert {t.device.type for t in meta} == {"meta"}
        assert {t.device.type for t in fake} == {"cpu"}

    @pytest.mark.parametrize("fill_value", [0.5, [0.1, 0.2, 0.3]])
    def test_numbers_meet_tensors_without_data(self, fill_value):
        def run(to):
            leaves = [to(t).requires_grad_() for t in plain]
            output = affine_grid_sample(*leaves, 5, padding_mode="fill", fill_value=fill_value)
            return output.detach(), *torch.autograd.grad(output.sum(), leaves)

        plain = [t.detach() for t in data()]
        with FakeTensorMode() as mode:
            fake = run(mode.from_tensor)
        assert layouts(fake) == layouts(run(lambda t: t.to("meta"))) == layouts(run(torch.clone))
