"""Compilers, exporters and tracers: no recompiles, saved and loaded programs. test_onnx.py tests ONNX."""

import io
import pickle
import shutil
import subprocess
import sys

import pytest
import torch
from torch import fx
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from variants import maps

from stn_triton import (
    SpatialTransformer,
    affine_grid_sample,
    perspective_grid_sample,
    thin_plate_spline_grid_sample,
    transforms,
)
from stn_triton.nn import FullyConnectedLocalization, SpatialTransformerSeries

DYNAMIC = Dim.DYNAMIC  # exporting fails where a size so marked is fixed


def affine(images, theta, size, *, projective=False, **options):
    function = perspective_grid_sample if projective else affine_grid_sample
    return function(images, theta, size, **options)


class Warp(torch.nn.Module):
    """The operator; the default output size is computed from that of the images."""

    def __init__(self, size=None, **options):
        super().__init__()
        self.size, self.options = size, options

    def forward(self, images, theta, fill=None, index=None):
        size = self.size or [2 * extent - 3 for extent in images.shape[2:]]
        return affine(images, theta, size, fill_value=fill, image_index=index, **self.options)


# Options, number of dimensions and number of matrices of each kind of call.
KINDS = {
    "plain": {},
    "one matrix": {"theta": "one"},
    "many": {"theta": "many"},
    "index": {"theta": "index"},
    "projective": {"projective": True},
    "fill": {"padding_mode": "fill"},
    "antialias": {"antialias": True},
    "volumes": {"dim": 3, "padding_mode": "fill", "theta": "index", "align_corners": True},
}


def options(kind):
    return {name: value for name, value in KINDS[kind].items() if name not in ("theta", "dim")}


def arguments(kind, n, c, m, *size_in):
    """Make images of a size with depth last, and matrices: m per image, or m with an index."""
    chosen = KINDS[kind]
    dim = chosen.get("dim", 2)
    count = {"one": 1, "many": n * m, "index": m}.get(chosen.get("theta"), n)
    generator = torch.Generator().manual_seed(n)
    theta = maps(count, dim, 1.6).float()
    if "projective" in chosen:
        theta = torch.cat((theta, torch.tensor([0.3, -0.2, 1.1]).expand(count, 1, 3)), 1)
    return (
        torch.rand(n, c, *size_in[:dim], generator=generator),
        theta.unflatten(0, (n, m)) if chosen.get("theta") == "many" else theta,
        torch.rand(c, generator=generator) if chosen.get("padding_mode") == "fill" else None,
        torch.randint(n, (m,), generator=generator) if chosen.get("theta") == "index" else None,
    )


def dynamic_shapes(args, kind):
    """Mark all axes as dynamic except channels and the rows and columns of matrices."""
    images, theta, fill, index = args
    return (
        {axis: DYNAMIC for axis in range(images.ndim) if axis != 1},
        None if kind == "one matrix" else dict.fromkeys(range(theta.ndim - 2), DYNAMIC),
        None if fill is None else {},
        None if index is None else {0: DYNAMIC},
    )


# Batch, channels, matrices and sizes. Dynamic sizes are at least 5 and differ from each other.
SHAPES = [(5, 4, 6, 7, 9, 8), (7, 4, 5, 12, 8, 9), (9, 4, 8, 5, 7, 6)]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def gradients(function, args):
    leaves = [t.detach().requires_grad_() if t is not None and t.is_floating_point() else t for t in args]
    output = function(*leaves)
    return output, torch.autograd.grad(
        output.square().sum(), [t for t in leaves if t is not None and t.requires_grad]
    )


class TestCompile:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.sample(3)
    def test_batch_and_sizes_vary_without_a_recompile(self, kind):
        counter = CompileCounterWithBackend("aot_eager")
        warp = Warp(**options(kind))
        compiled = torch.compile(warp, backend=counter, fullgraph=True, dynamic=True)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for shape in SHAPES:
                args = arguments(kind, *shape)
                torch.testing.assert_close(gradients(compiled, args), gradients(warp, args))
        assert counter.frame_count == 1

    def test_batch_and_sizes_vary_without_a_recompile_for_bytes(self):
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(Warp(), backend=counter, fullgraph=True, dynamic=True)
        for shape in SHAPES:
            images, theta, *_ = arguments("plain", *shape)
            images = images.mul(255).byte()
            assert torch.equal(compiled(images, theta), Warp()(images, theta))
        assert counter.frame_count == 1


class TestExport:
    @pytest.mark.parametrize("kind", KINDS)
    def test_static_shapes(self, kind):
        warp = Warp(**options(kind))
        args = arguments(kind, *SHAPES[0])
        program = torch.export.export(warp, args)
        assert torch.ops.stn_triton.affine_grid_sample.default in {n.target for n in program.graph.nodes}
        assert torch.equal(program.module()(*args), warp(*args))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.sample(4)
    def test_dynamic_shapes_saved_and_loaded(self, kind, tmp_path):
        warp = Warp(**options(kind))
        args = arguments(kind, *SHAPES[0])
        program = torch.export.export(warp, args, dynamic_shapes=dynamic_shapes(args, kind))
        torch.export.save(program, tmp_path / "warp.pt2")
        loaded = torch.export.load(tmp_path / "warp.pt2").module()
        for shape in SHAPES:
            args = arguments(kind, *shape)
            assert torch.equal(loaded(*args), warp(*args))

    def test_the_gradients_of_an_exported_program(self):
        args = arguments("fill", *SHAPES[0])
        warp = Warp(**options("fill"))
        program = torch.export.export(warp, args, dynamic_shapes=dynamic_shapes(args, "fill"))
        args = arguments("fill", *SHAPES[1])
        torch.testing.assert_close(gradients(program.module(), args), gradients(warp, args))


class Thetas(torch.nn.Module):
    """Builders and converters with dynamic sizes, or numbers computed from such sizes."""

    def forward(self, images, matrix, volumes):
        T, m = transforms, matrix[:2]
        h, w = images.shape[2:]
        depth, sizes, corners = volumes.shape[2:], ((h, w), (2 * h, w + 1)), {"align_corners": True}
        return [
            T.from_cv2(matrix, *sizes),
            T.from_scipy(m[:, :2], *sizes, offset=(h / 2, 1.0)),
            T.from_kornia(torch.cat((torch.eye(3), matrix[:, 2:]), 1), depth, **corners),
            T.from_torchvision_affine((h, w), angle=9.0, center=(w / 2, h / 2), translate=(w / 10, 0)),
            T.to_torchvision(matrix, *sizes, **corners),
            T.boxes((0.0, 0, w / 2, h), (h, w), angle=m[0, 0], **corners),
            T.boxes((0, 0, 0, *reversed(depth)), depth),
            T.translation((2 / w, 2 / h)),
            T.rotation_3d(m[0], aspect=(w, h, depth[0] - 1)),
            T.affine(angle=m[0, 0], translation=(2 / w, 0), scale=w / 20 * m[0, :1], aspect=w / h),
        ]


class TestSizesInThetas:
    """Dynamic sizes of an exported or compiled program stay dynamic in builders and converters."""

    MATRIX = torch.tensor([[1.1, 0.1, 2.0], [0.05, 0.9, -1.0], [0.001, 0.002, 1.0]])

    def check(self, program):
        for n, _, _, height, width, depth in SHAPES[:2]:
            images, volumes = torch.rand(n, 1, height, width), torch.rand(n, 1, depth, height, width)
            expected = Thetas()(images, self.MATRIX, volumes)
            torch.testing.assert_close(program(images, self.MATRIX, volumes), expected)

    @pytest.mark.parametrize("kind", ["named", "DYNAMIC", "AUTO"])
    @pytest.mark.sample(1)
    def test_exported(self, kind):
        if kind == "named":
            depth, height, width = (Dim(name, min=4, max=99) for name in ("depth", "height", "width"))
        else:
            depth = height = width = getattr(Dim, kind)
        batch = Dim.AUTO
        shapes = ({0: batch, 2: height, 3: width}, {}, {0: batch, 2: depth, 3: height, 4: width})
        args = (torch.rand(5, 1, 7, 9), self.MATRIX, torch.rand(5, 1, 8, 7, 9))
        self.check(torch.export.export(Thetas(), args, dynamic_shapes=shapes).module())

    def test_exported_on_a_device_without_numbers(self):
        class OnMeta(torch.nn.Module):
            def forward(self, images, matrix):
                return transforms.from_cv2(matrix, images.shape[2:])

        args = (torch.rand(5, 1, 7, 9, device="meta"), self.MATRIX.to("meta"))
        program = torch.export.export(OnMeta(), args, dynamic_shapes=({2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {}))
        assert program.module()(torch.rand(5, 1, 12, 8, device="meta"), args[1]).shape == (3, 3)

    @pytest.mark.full
    def test_compiled(self):
        self.check(torch.compile(Thetas(), backend="eager", fullgraph=True, dynamic=True))

    @pytest.mark.filterwarnings("ignore:.torch.jit")
    def test_traced(self):
        args = (torch.rand(5, 1, 7, 9), self.MATRIX, torch.rand(5, 1, 8, 7, 9))
        self.check(torch.jit.trace(Thetas(), args, strict=False))

    def test_symbolically_traced(self):
        class Boxed(torch.nn.Module):
            def forward(self, images, matrix, volumes):
                size = images.shape[2:]
                theta = transforms.from_cv2(transforms.invert(matrix), size, size_out=(size[0], 9))
                angle = transforms.rotation(matrix[0, 1], aspect=size[1] / size[0])
                return transforms.compose(
                    theta, angle, transforms.boxes(matrix[:1, :1].expand(1, 4), size)[0]
                )

        program = torch.fx.symbolic_trace(Boxed())
        for height, width in ((7, 9), (12, 8)):
            args = (torch.rand(1, 1, height, width), self.MATRIX, None)
            assert torch.equal(program(*args), Boxed()(*args))

    @pytest.mark.skipif(torch.__version__ < (2, 12), reason="PyTorch 2.11 adds guards that the Dim violates")
    def test_a_layer_of_volumes_with_a_named_depth(self):
        layer = SpatialTransformer(1, dim=3, size=(5, 6, 4))
        torch.nn.init.normal_(layer.head.weight, std=0.01)
        shapes = ({2: Dim("depth", min=8, max=64)},)
        program = torch.export.export(layer, (torch.rand(2, 1, 12, 9, 10),), dynamic_shapes=shapes).module()
        for depth in (8, 9, 31):
            volumes = torch.rand(2, 1, depth, 9, 10)
            torch.testing.assert_close(program(volumes), layer(volumes))


def traced(function, args):
    """Trace a function, save the trace and load it. PyTorch itself checks it against a second trace."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(function, tuple(a for a in args if a is not None)), file)
    file.seek(0)
    return torch.jit.load(file)


def layer(*args, **options):
    """Make a spatial transformer with weights other than the initial ones."""
    module = SpatialTransformer(*args, **options)
    torch.nn.init.normal_(module.head.weight, std=0.05)
    return module


def series():
    transforms = ("rotation", "attention", "projective")
    stages = [layer(2, transform=transform, align_corners=True) for transform in transforms]
    return SpatialTransformerSeries(*stages, return_theta=True)


LAYERS = {
    "affine": lambda: layer(2, transformers=2),
    "similarity": lambda: layer(2, transform="similarity", padding_mode="fill", fill_value=[0.1, 0.2]),
    "bounded": lambda: layer(2, bounded=True, size=5, localization=FullyConnectedLocalization(2)),
    "tps": lambda: layer(2, transform="tps", return_theta=True, gradient_scale=0.5),
    "volumes": lambda: layer(2, transform="rotation", dim=3, antialias=True),
    "series": series,
}
IMAGES = {
    2: [(3, 2, 8, 9), (2, 2, 11, 6), (1, 2, 1, 7)],
    3: [(3, 2, 8, 9, 7), (2, 2, 5, 6, 8)],
}


def inputs_of(module):
    dim = module.stages[0].dim if isinstance(module, SpatialTransformerSeries) else module.dim
    return [torch.rand(shape, generator=torch.Generator().manual_seed(0)) for shape in IMAGES[dim]]


CALLS = {
    "size left out": affine_grid_sample,
    "an int": lambda images, theta: affine_grid_sample(images, theta, 5),
    "a size of the images": lambda images, theta: affine_grid_sample(images, theta, images.shape[3]),
    "numbers to fill with": lambda images, theta: affine_grid_sample(
        images, theta, (images.shape[2] // 2, 4), padding_mode="fill", fill_value=0.5
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
class TestTrace:
    """``torch.jit.trace``, used by TensorBoard and by counters of operations."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_other_batches_and_sizes(self, kind):
        def warp(images, theta, other=None):
            fill, index = (other, None) if "padding_mode" in options(kind) else (None, other)
            return module(images, theta, fill, index)

        module = Warp(**options(kind))  # a function, because a trace cannot leave out an argument of a module
        args = arguments(kind, *SHAPES[0])
        function = module if None not in args else warp
        program = traced(function, args)
        for shape in SHAPES:
            given = [a for a in arguments(kind, *shape) if a is not None]
            assert torch.equal(program(*given), function(*given))

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    @pytest.mark.parametrize("images", [1, 5])
    def test_sizes_of_every_kind(self, call, images):
        """A trace made with one image serves several images, and the other way round."""
        first = arguments("plain", images, *SHAPES[0][1:])[:2]
        program = traced(call, first)
        for others in (first, arguments("plain", *SHAPES[1])[:2], arguments("one matrix", *SHAPES[2])[:2]):
            assert torch.equal(program(*others), call(*others))
        if images == 1:
            crops = first[0], arguments("plain", *SHAPES[1])[1]
            assert torch.equal(program(*crops), call(*crops))

    def test_a_spline(self):
        def call(images, offsets):
            return thin_plate_spline_grid_sample(images, offsets, points=(2, 3), padding_mode="border")

        cases = [(arguments("plain", *s)[0], 0.1 * torch.randn(s[0], 6, 2)) for s in SHAPES]
        program = traced(call, cases[0])
        for case in cases:
            assert torch.equal(program(*case), call(*case))

    @pytest.mark.parametrize("matrices", [3, 8])
    @pytest.mark.parametrize("images", [1, 5])
    def test_matrices_that_do_not_fit_raise(self, images, matrices):
        program = traced(affine_grid_sample, arguments("plain", images, *SHAPES[0][1:])[:2])
        with pytest.raises(RuntimeError, match=r"expanded size of the tensor \(4\) must match"):
            program(torch.rand(4, 3, 5, 6), torch.zeros(matrices, 2, 3))

    @pytest.mark.parametrize("grad", [True, False], ids=["gradients", "no_grad"])
    def test_leaves(self, grad):
        args = [t.requires_grad_() for t in arguments("plain", *SHAPES[0])[:2]]
        with torch.set_grad_enabled(grad):
            program = traced(affine_grid_sample, args)
        others = arguments("plain", *SHAPES[1])[:2]
        for create_graph in (False, True):
            results = []
            for function in (program, affine_grid_sample):
                leaves = [t.clone().requires_grad_() for t in others]
                total = function(*leaves).square().sum()
                grads = torch.autograd.grad(total, leaves, create_graph=create_graph)
                if create_graph:
                    grads = torch.autograd.grad(grads[1].square().sum(), leaves)
                results.append(grads)
            torch.testing.assert_close(*results)

    def test_bytes(self):
        images, theta, *_ = arguments("plain", *SHAPES[0])
        images = images.mul(255).byte()
        assert torch.equal(
            traced(affine_grid_sample, (images, theta))(images, theta), affine_grid_sample(images, theta)
        )

    def test_errors_are_those_of_a_call(self):
        with pytest.raises(ValueError, match=r"theta must have shape \(N, 2, 3\)"):
            torch.jit.trace(affine_grid_sample, (torch.rand(1, 1, 4, 4), torch.zeros(1, 3, 3)))
        with pytest.raises(TypeError, match="size must be None, an int, or two ints"):
            torch.jit.trace(
                lambda images, theta: affine_grid_sample(images, theta, (images.shape[2] / 2, 4)),
                (torch.rand(1, 1, 4, 4), torch.zeros(1, 2, 3)),
            )

    @pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
    @pytest.mark.sample(2)
    def test_layers(self, make):
        module = make()
        inputs = inputs_of(module)
        program = traced(module, inputs[:1])
        for images in inputs:
            torch.testing.assert_close(program(images), module(images), rtol=1e-5, atol=1e-5)

    def test_what_counters_and_tensorboard_read(self):
        images = torch.rand(IMAGES[2][0])
        graph, _ = torch.jit._get_trace_graph(layer(2), (images,))
        torch._C._jit_pass_inline(graph)
        assert [n.kind() for n in graph.nodes()].count("stn_triton::affine_grid_sample") == 1

    @pytest.mark.full
    def test_a_loaded_trace_needs_the_library(self, tmp_path):
        args = arguments("many", *SHAPES[0])[:2]
        torch.jit.save(torch.jit.trace(affine_grid_sample, args), str(tmp_path / "warp.pt"))
        expected = affine_grid_sample(*args)
        printed = load_in_another_process(tmp_path / "warp.pt", "torch.jit.load", args, expected)
        assert "Unknown builtin op: stn_triton::affine_grid_sample" in printed


class TestSymbolicTrace:
    """``torch.fx``, used by FX quantisation and torchvision's feature extractors."""

    def check(self, function, *cases):
        program = fx.symbolic_trace(function)
        for module in (program, fx.symbolic_trace(program), pickle.loads(pickle.dumps(program))):
            for case in cases:
                torch.testing.assert_close(module(*case), function(*case), rtol=0, atol=0)
        return program

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_functions(self, call):
        program = self.check(lambda i, t: call(i, t) + 1, *(arguments("plain", *s)[:2] for s in SHAPES))
        targets = [node.target for node in program.graph.nodes]
        assert targets.count(affine_grid_sample) == 1
        assert "affine_grid_sample(" in program.code

    def test_the_other_functions(self):
        images = torch.rand(IMAGES[2][0])
        self.check(lambda i, t: perspective_grid_sample(i, theta=t), (images, torch.eye(3).expand(3, 3, 3)))
        self.check(
            lambda i, t: thin_plate_spline_grid_sample(i, t, points=(2, 2)), (images, torch.rand(3, 4, 2))
        )

    @pytest.mark.parametrize("name", ["bounded", "tps", "series"])
    @pytest.mark.sample(1)
    def test_layers(self, name):
        """Traces a layer alone, and in a model, where the localisation network can be replaced."""
        module = LAYERS[name]()
        cases = [(images,) for images in inputs_of(module)]
        self.check(module, *cases)
        program = self.check(torch.nn.Sequential(torch.nn.Identity(), module), *cases)
        kinds = {type(program.get_submodule(n.target)) for n in program.graph.nodes if n.op == "call_module"}
        assert torch.nn.Linear in kinds

    @pytest.mark.full
    def test_features_may_be_given(self):
        module = layer(3, size=4)
        self.check(module, (torch.rand(2, 1, 5, 6), torch.rand(2, 3, 4, 4)), (torch.rand(2, 3, 5, 6),))


IN_ANOTHER_PROCESS = """
import sys, torch
path, load = sys.argv[1], eval(sys.argv[2])
try:
    load(path)
except RuntimeError as error:
    print(str(error))
import stn_triton
assert "onnxscript" not in sys.modules
args, expected = torch.load(path + ".data")
torch.testing.assert_close(load(path)(*args), expected)
"""


def load_in_another_process(path, load, args, expected):
    """Load a program in another process, without and then with the library; return the first output."""
    torch.save((args, expected), f"{path}.data")
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(path), load]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.full
def test_a_saved_program_needs_the_library(tmp_path):
    args = arguments("many", *SHAPES[0])[:2]
    program = torch.export.export(Warp(), args)
    torch.export.save(program, tmp_path / "warp.pt2")
    load = "lambda path: torch.export.load(path).module()"
    printed = load_in_another_process(tmp_path / "warp.pt2", load, args, Warp()(*args))
    assert "error when deserializing" in printed


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.full
def test_a_package_of_aotinductor_with_dynamic_shapes(tmp_path):
    args = arguments("plain", *SHAPES[0])
    shapes = dynamic_shapes(args, "plain")[:2]
    args, warp = args[:2], Warp()
    program = torch.export.export(warp, args, dynamic_shapes=shapes)
    # Without these options the test takes twice as long.
    quick = {"aot_inductor.precompile_headers": False, "cpp.simdlen": 0}
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "warp.pt2"), inductor_configs=quick
    )
    package = torch._inductor.aoti_load_package(path)
    for shape in SHAPES:
        args = arguments("plain", *shape)[:2]
        torch.testing.assert_close(package(*args), warp(*args))
    printed = load_in_another_process(path, "torch._inductor.aoti_load_package", args, warp(*args))
    assert "Could not find schema for stn_triton::affine_grid_sample" in printed
