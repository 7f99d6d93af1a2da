"""Structs that kernels pass to helpers, see `kernels/structs.py`."""

import inspect
from collections import defaultdict
from typing import NamedTuple

import pytest
import test_splines
import torch
import triton
import triton.language as tl
from test_determinism import everything
from variants import Variant, case

from stn_triton import splines
from stn_triton.kernels import structs
from stn_triton.options import Options

CASES = (
    Variant(2, "bilinear", "fill", "plain", False),
    Variant(2, "bilinear", "fill", "many", False),
    Variant(2, "bilinear", "fill", "projective", False),
    Variant(3, "nearest", "zeros", "antialias index", True),
)


@pytest.fixture
def given(monkeypatch):
    """Record the classes of structs passed to each parameter of each helper."""
    if torch.cuda.is_available():
        pytest.skip("watches Triton's interpreter")
    from triton.runtime.interpreter import InterpretedFunction

    seen, call = defaultdict(set), InterpretedFunction.__call__

    def watched(self, *args, **kwargs):
        names = inspect.signature(self.fn).parameters
        for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items():
            if hasattr(value, "_fields"):
                seen[self.fn.__name__, name].add(type(value))
        return call(self, *args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "__call__", watched)
    return seen


def with_two_classes(seen):
    return [place for place, classes in seen.items() if len(classes) > 1]


@pytest.mark.full
def test_each_parameter_of_a_helper_takes_one_class(given):
    """If two classes have members of equal types, Triton compiles a helper for the first class only."""
    for variant in CASES:
        everything(case(variant).to("cpu", torch.float32), variant.options())
    options = Options(points=tuple(splines.regular_points(2, 2)))
    test_splines.run(*test_splines.case(options), options)
    assert not with_two_classes(given)
    assert {name for _, name in given} >= {"K", "map", "tile", "window", "sample", "image", "theta", "motion"}
    known = {value for value in vars(structs).values() if hasattr(value, "_fields")}
    assert set().union(*given.values()) == known


class Pair(NamedTuple):
    first: object
    second: object


class Other(NamedTuple):
    second: object
    first: object


@triton.jit
def first_of(pair):
    return pair.first


@triton.jit
def two_classes_kernel(out_ptr, n):
    tl.store(out_ptr, first_of(Pair(n, 0)) + first_of(Other(0, n)))


def test_a_helper_of_two_classes_is_noticed(given):
    out = torch.zeros(1, dtype=torch.int32)
    two_classes_kernel[(1,)](out, 5)
    assert with_two_classes(given) == [("first_of", "pair")]
