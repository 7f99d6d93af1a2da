"""Where the kernels run: on the GPU if there is one, else in Triton's interpreter on CPU tensors.

The interpreter is chosen before Triton is first imported, so this happens at import.
"""

import contextlib
import gc
import os
import random
import sys
import warnings

import pytest
import tiers
import torch

try:
    import hypothesis
except ModuleNotFoundError:  # the tests that need it import it themselves
    hypothesis = None

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
os.environ.pop("STN_TRITON_AUTOTUNE", None)


def _patch_once_per_launch():
    """Triton's interpreter patches its language again for each call of a helper: half the time of a test."""
    from triton.runtime import interpreter

    original, original_call = interpreter._patch_lang, interpreter.GridExecutor.__call__
    patched = set()

    def patch_lang(fn):
        if id(fn.__globals__) in patched:
            return interpreter._LangPatchScope()
        patched.add(id(fn.__globals__))
        return original(fn)

    def call(self, *args, **kwargs):
        patched.clear()
        return original_call(self, *args, **kwargs)

    interpreter._patch_lang, interpreter.GridExecutor.__call__ = patch_lang, call


def _look_up_types_once():
    """It also makes a table of all types for each value, and a type for each scalar that meets a vector."""
    import triton.language as tl
    from triton.runtime import interpreter

    of_numpy, with_element = interpreter._get_np_dtype, tl.block_type.with_element_ty
    dtypes, types = {}, {}

    def np_dtype(dtype):
        name = dtype.scalar.name
        if name not in dtypes:
            dtypes[name] = of_numpy(dtype)
        return dtypes[name]

    def with_element_ty(self, scalar):
        key = self.shape, scalar.name
        if key not in types:
            types[key] = with_element(self, scalar)
        return types[key]

    interpreter._get_np_dtype, tl.block_type.with_element_ty = np_dtype, with_element_ty


def _make_room_on_the_stack():
    """Python maps another 16 kB of stack for a call that does not fit, and unmaps it when that returns.

    Where a kernel happens to begin at the end of such a piece, each of its operations does this: up to half
    the time of a test. A function of many variables gets a large piece, which those that it calls share.
    """
    from triton.runtime import interpreter

    names: dict = {}
    variables = " = ".join(f"v{i}" for i in range(20_000))
    exec(f"def roomy(call, *args, **kwargs):\n    return call(*args, **kwargs)\n    {variables} = 0", names)
    original = interpreter.GridExecutor.__call__
    interpreter.GridExecutor.__call__ = lambda self, *args, **kwargs: names["roomy"](
        original, self, *args, **kwargs
    )


def _trace_no_kernels():
    """Coverage leaves kernels out, but checks each call in the interpreter: twice the time of a test."""
    from triton.runtime import interpreter

    original = interpreter.GridExecutor.__call__

    def call(self, *args, **kwargs):
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return original(self, *args, **kwargs)
        finally:
            sys.settrace(tracer)

    interpreter.GridExecutor.__call__ = call


if not HAS_GPU:
    from stn_triton import environment

    if environment.interpreter_problem():
        pytest.exit(f"no GPU, and no interpreter: {environment.interpreter_problem()}", returncode=4)
    # Internals of Triton: a version without them is only slower.
    with contextlib.suppress(ImportError, AttributeError):
        _patch_once_per_launch()
        _look_up_types_once()
        _make_room_on_the_stack()


# Examples of all 13 tests of kernels together; each of plain PyTorch has as many as one of theirs.
SHORT, ORDINARY, LONG, FUZZ_TESTS = 130, 520, 100_000, 13


def pytest_addoption(parser):
    group = parser.getgroup("fuzzing")
    what = f"kernels' examples in tests/test_fuzz.py, new ones each time; without it {SHORT}, always the same"
    group.addoption("--examples", type=int, metavar="N", help=what)
    group.addoption("--long", dest="examples", action="store_const", const=LONG, help=f"--examples {LONG}")


def pytest_configure(config):
    if not HAS_GPU and config.getoption("cov_source", None):
        with contextlib.suppress(ImportError, AttributeError):
            _trace_no_kernels()
    if hypothesis is not None:
        _register_fuzz_profiles(config.getoption("examples"))


def _register_fuzz_profiles(examples):
    """A failure of the ordinary run is the fault of a change, not of chance; the long ones look for more."""
    if examples is None:
        # It also tries numbers that it reads in whatever modules are loaded: other ones after any change.
        with contextlib.suppress(ImportError, AttributeError):
            from hypothesis.internal.conjecture import providers

            constants = providers.Constants()
            providers._get_local_constants = lambda: constants
    for profile, count in (("short", SHORT), ("fuzz", ORDINARY)):
        hypothesis.settings.register_profile(
            profile,
            max_examples=max((examples or count) // FUZZ_TESTS, 1),
            derandomize=examples is None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )


@pytest.hookimpl(tryfirst=True)  # before pytest leaves tests out by their markers
def pytest_collection_modifyitems(items):
    tiers.mark_full(items)
    if HAS_GPU:
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a GPU, and torch.cuda finds none"))


def _excluded():
    """The keys that the dispatcher passes by in this thread, as bits."""
    return torch._C._dispatch_tls_local_exclude_set().raw_repr()


_AUTOGRAD = [
    getattr(torch._C.DispatchKey, name)
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor")
]
_AUTOGRAD_BITS = sum(torch._C.DispatchKeySet(key).raw_repr() for key in _AUTOGRAD)


@pytest.fixture(autouse=True)
def _gradients_stay_on(request):
    """A test that leaves them off makes others fail, far away.

    In one of about ten long runs with PyTorch 2.14 or 2.15 the dispatcher is without autograd after a test,
    also after one that calls no operator of this package and compiles nothing. Since PyTorch 2.13 at
    the latest, a guard that ends writes back all keys that it found when it was made; one that ends late
    brings back a state of the past: `test_dispatch.py::test_an_exception_dropped_late_leaves_autograd_on`
    shows that in PyTorch alone. Which guard it is in those runs is not known. They go on with autograd, and
    say whether a garbage collection took it away.
    """
    before, taken_by = 0, "no garbage collection"

    def compare(phase, info):
        nonlocal before, taken_by
        if phase == "start":
            before = _excluded()
        elif _excluded() & _AUTOGRAD_BITS & ~before:
            taken_by = f"a garbage collection of generation {info['generation']}"

    gc.callbacks.append(compare)
    yield
    gc.callbacks.remove(compare)
    was_on = torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert was_on
    excluded = _excluded()
    if excluded & _AUTOGRAD_BITS:
        for key in _AUTOGRAD:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        message = f"{request.node.nodeid} left autograd out of the dispatcher; it was taken by {taken_by}"
        warnings.warn(f"{message}; keys {excluded:#x} were excluded", stacklevel=1)
        assert torch.__version__ >= (2, 14)


@pytest.fixture(autouse=True)
def _plans_of_this_test():
    """Tests put other kernels in place; a launch plan would go on with those of an earlier test."""
    yield
    if "stn_triton.plans" in sys.modules:
        sys.modules["stn_triton.plans"].forget()


@pytest.fixture
def device():
    """Where tests that go through the kernels put their tensors."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture
def poisoned():
    """Fill fresh memory with NaN, so that an element that a kernel does not write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def shuffled(monkeypatch):
    """Programs of a launch run in a random order, as on a GPU, where the interpreter goes from 0 up."""
    from triton.runtime import interpreter

    builder, chance, orders = interpreter.interpreter_builder, random.Random(0), [[]]
    set_dim, set_idx = builder.set_grid_dim, builder.set_grid_idx

    def set_grid_dim(x, y, z):
        assert y == z == 1
        orders[-1] = chance.sample(range(x), x)
        orders.append([])
        set_dim(x, y, z)

    monkeypatch.setattr(builder, "set_grid_dim", set_grid_dim)
    monkeypatch.setattr(builder, "set_grid_idx", lambda x, y, z: set_idx(orders[-2][x], y, z))
    return orders
