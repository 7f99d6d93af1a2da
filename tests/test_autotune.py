"""When calls search for block sizes, which candidates they try, and how long results are used.

Tests of the search itself are in test_compile_ahead.py.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_tuning import BUCKET, CONFIG, GPU, OTHER, PLAIN, gpu, write  # noqa: F401, a fixture

import stn_triton
from stn_triton import autotuner, buckets, policy, tuning

THREADS = 8
LARGE = buckets.bucket_of("forward", PLAIN, False, torch.float32, 32, 64, 56 * 56)


def ask(bucket=BUCKET):
    return tuning.configuration(bucket, GPU, None)


@pytest.fixture
def searched(gpu, monkeypatch):  # noqa: F811
    """Make searches return a configuration other than the default; return the names of the searches."""
    names = []

    def fastest_of(configs, run, what):
        names.append(what)
        return configs[-1]

    monkeypatch.setattr(autotuner, "fastest_of", fastest_of)
    assert found(BUCKET) != policy.default(BUCKET)
    return names


def found(bucket):
    return tuning.candidates(bucket, tuning.MOST_CANDIDATES)[-1]


class TestAsking:
    def test_in_a_context_and_what_is_found_stays(self, searched, tmp_path):
        assert ask() == policy.default(BUCKET)
        with stn_triton.autotune():
            assert ask() == ask() == found(BUCKET)
        assert ask() == found(BUCKET)
        assert ask(OTHER) == policy.default(OTHER)
        assert searched == [BUCKET.name()]
        assert list(tmp_path.iterdir()) == []

    def test_by_a_decorator(self, searched):
        tuned = stn_triton.autotune()(ask)
        assert [tuned(), tuned(OTHER)] == [found(BUCKET), found(OTHER)]
        assert ask(LARGE) == policy.default(LARGE)

    @pytest.mark.parametrize("value", ["0", "", "yes"])
    def test_by_the_environment(self, searched, monkeypatch, value):
        monkeypatch.setenv("STN_TRITON_AUTOTUNE", value)
        assert ask() == policy.default(BUCKET)
        monkeypatch.setenv("STN_TRITON_AUTOTUNE", "1")
        assert ask() == found(BUCKET)

    def test_contexts_of_threads_may_overlap(self, searched):
        """The context entered first is left first."""
        first, second = stn_triton.autotune(), stn_triton.autotune()
        first.__enter__(), second.__enter__()
        first.__exit__(None, None, None)
        assert ask() == found(BUCKET)
        second.__exit__(None, None, None)
        assert ask(OTHER) == policy.default(OTHER)

    def test_an_error_in_a_context_ends_it(self, searched):
        with pytest.raises(ZeroDivisionError), stn_triton.autotune():
            raise ZeroDivisionError
        assert ask() == policy.default(BUCKET)

    def test_what_the_shipped_table_has_is_not_searched(self, gpu, searched):  # noqa: F811
        write(gpu, {BUCKET.name(): CONFIG})
        with stn_triton.autotune():
            assert ask() == CONFIG
        assert searched == []

    def test_each_kind_of_gpu_for_itself(self, searched, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        with stn_triton.autotune():
            ask(), tuning.configuration(BUCKET, torch.device("cuda", 1), None)
        assert searched == [BUCKET.name()] * 2

    def test_on_a_cpu_nothing_is_searched(self, searched):
        with stn_triton.autotune():
            assert tuning.configuration(BUCKET, torch.device("cpu"), None) == policy.default(BUCKET)
        assert searched == []

    def test_a_capture_searches_nothing_and_a_later_call_does(self, searched, monkeypatch):
        with stn_triton.autotune():
            with monkeypatch.context() as patch:
                patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
                assert ask() == policy.default(BUCKET)
            assert ask() == found(BUCKET)
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            assert ask() == found(BUCKET)


def test_a_context_may_be_entered_again():
    before = tuning.state()
    context = stn_triton.autotune()
    for _ in range(2):
        with context, context:
            assert tuning.state() != before
    assert tuning.state() == before


class TestState:
    def test_whoever_keeps_what_was_chosen_is_never_wrong(self, searched):
        """Keep configurations by bucket and state, as the launcher keeps plans."""
        kept = {}

        def keep(bucket=BUCKET):
            key = bucket, tuning.state()
            if key not in kept:
                kept[key] = ask(bucket)
            return kept[key]

        assert keep() == keep() == ask()
        assert len(kept) == 1
        with stn_triton.autotune():
            assert keep() == keep() == ask() == found(BUCKET)
        assert keep() == ask() == found(BUCKET)
        kept_so_far = len(kept)
        for _ in range(3):
            with stn_triton.autotune():  # as a decorator of a training step
                assert keep() == found(BUCKET)
            keep()
        assert len(kept) <= kept_so_far + 1
        assert keep(OTHER) == ask(OTHER) == policy.default(OTHER)
        with stn_triton.autotune():
            assert keep(OTHER) == ask(OTHER) == found(OTHER)

    def test_it_stands_still_where_nothing_changes(self, searched):
        with stn_triton.autotune():
            ask(), ask(OTHER)
            before = tuning.state()
            ask(), ask(OTHER)
            assert tuning.state() == before
        before = tuning.state()
        ask(LARGE)
        with tuning.choosing(lambda bucket, run: CONFIG):
            ask()
        assert tuning.state() == before


class TestThreads:
    def in_threads(self, function):
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(function, range(THREADS)))

    def test_one_searches_and_the_others_wait(self, searched, monkeypatch):
        quick = autotuner.fastest_of
        barrier = threading.Barrier(THREADS)
        monkeypatch.setattr(autotuner, "fastest_of", lambda *args: time.sleep(0.05) or quick(*args))
        buckets = [BUCKET, OTHER] * (THREADS // 2)
        with stn_triton.autotune():
            results = self.in_threads(lambda i: [barrier.wait(10), ask(buckets[i])][1])
        assert results == [found(bucket) for bucket in buckets]
        assert sorted(searched) == sorted([BUCKET.name(), OTHER.name()])

    def test_an_error_in_a_search_leaves_no_lock(self, searched, monkeypatch):
        with stn_triton.autotune():
            with monkeypatch.context() as patch:
                patch.setattr(autotuner, "fastest_of", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    ask()
            assert self.in_threads(lambda i: ask()) == [found(BUCKET)] * THREADS


class TestCandidates:
    @pytest.mark.parametrize("bucket", [BUCKET, OTHER, LARGE], ids=buckets.Bucket.name)
    def test_the_default_and_what_is_near_it(self, bucket):
        space = policy.space(bucket)
        tried = tuning.candidates(bucket, tuning.MOST_CANDIDATES)
        assert tried[0] == policy.default(bucket)
        assert len(tried) == min(len(space), 6)
        assert len({tuple(config.values()) for config in tried}) == len(tried)
        assert all(config in space for config in tried)
        assert tuning.candidates(bucket, 16)[: len(tried)] == tried

    def test_a_factor_of_two_counts_whatever_the_size(self):
        first = {"BLOCK_C": 16, "BLOCK_W": 8}
        near, far = {"BLOCK_C": 32, "BLOCK_W": 8}, {"BLOCK_C": 16, "BLOCK_W": 1}
        assert autotuner.nearest([first, far, near], 3) == [first, near, far]
        assert autotuner.nearest([first, far, near], 2) == [first, near]
        assert autotuner.nearest([first], 6) == [first]
