"""Buckets, tables on disk and the choice among them; no GPU needed, none is used."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from stn_triton import tables, tuning
from stn_triton.options import DEFAULT

CONFIG = {**dict.fromkeys(tuning.CONFIG_KEYS, 1), "BLOCK_C": 4, "BLOCK_H": 8, "BLOCK_W": 8, "num_warps": 2}
FOUR = {**CONFIG, "BLOCK_W": 16, "num_warps": 4}
PLAIN = tuning.variant_of(2, False, False, False, DEFAULT)
BUCKET = tuning.bucket_of("forward", PLAIN, False, torch.float32, 8, 4, 224 * 224)
OTHER = BUCKET._replace(kernel="theta")
GPU = torch.device("cuda", 0)
NAME = "Imaginary GPU (80 GB)"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU of a name that no table has; returns where its table would lie."""
    monkeypatch.setenv("STN_TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("STN_TRITON_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAME)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "tuned")
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: pytest.fail("tuned"))
    monkeypatch.setattr(tables, "_told", set())
    tuning._tables.clear(), tuning._device_name.cache_clear()
    yield tmp_path / "cache" / "imaginary-gpu-80-gb.json"
    tuning._tables.clear(), tuning._device_name.cache_clear()


def head(**changes):
    """A right table, changed."""
    table = {"version": 1, "device": NAME, "kernels": tables.kernels(), "configs": {BUCKET.name(): CONFIG}}
    return {**table, **changes}


def write(path, configs, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head(configs=configs, **changes)))


def messages(caplog):
    """What was told since the last time."""
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    caplog.clear()
    assert {(name, level) for name, level, _ in told} <= {("stn_triton", "WARNING")}
    assert not [message for *_, message in told if "\n" in message]
    return [message for *_, message in told]


def new_process():
    tuning._tables.clear(), tables._told.clear()


VARIANTS = (
    PLAIN,
    tuning.variant_of(3, False, False, False, DEFAULT),
    tuning.variant_of(2, False, True, False, DEFAULT),
    tuning.variant_of(2, True, False, False, DEFAULT._replace(padding_mode="reflection")),
    tuning.variant_of(2, False, False, True, DEFAULT._replace(mode="bicubic", antialias=True)),
    tuning.variant_of(2, False, False, False, DEFAULT._replace(points=(0.0, 0.0))),
)


@pytest.mark.parametrize("kernel", ["forward", "theta", "backward", "backward_input", "scatter", "fill"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("channels_last", "channels"),
    [(False, c) for c in (1, 2, 3, 4, 5, 16, 300)] + [(True, c) for c in (1, 3, 4, 16, 64, 100, 256)],
)
def test_every_configuration_of_the_space_can_be_launched(kernel, variant, channels_last, channels):
    for dtype, images, pixels in itertools.product(
        (torch.float32, torch.bfloat16, torch.float64), (1, 64), (49, 28 * 28, 224 * 224)
    ):
        bucket = tuning.bucket_of(kernel, variant, channels_last, dtype, images, channels, pixels)
        if bucket.is_boxed():  # always launched as if it were NCHW
            bucket = bucket._replace(layout="nchw")
        space = tuning.space(bucket)
        assert space[0] == tuning.default(bucket)
        assert len(space) == len({tuple(config.values()) for config in space}) <= 16
        for config in space:
            assert tuning._is_valid(bucket, config)
            assert config["BLOCK_C"] * config["STEPS_C"] <= bucket.channels
            assert config["BLOCK_C"] % config["RUN_C"] == 0
            assert config["BLOCK_H"] <= config["BLOCK_W"]
            if bucket.layout == "nchw":
                assert config["RUN_C"] == 1
            # A thread has at least a pixel's lane, at most four, so that no thread idles.
            lanes = config["RUN_C"] // bucket.lane() * config["BLOCK_H"] * config["BLOCK_W"]
            assert 1 <= lanes / (32 * config["num_warps"]) <= 4
            # The list of hits unrolls nine loads for each group of channels, and compiling squares them.
            if bucket.is_gather() and config["STEPS_C"] > 1:
                assert config["BLOCK_C"] // config["RUN_C"] * 9 <= 72


def test_few_channels_are_a_block_of_their_own():
    for kernel, channels in itertools.product(
        ("forward", "theta", "backward", "backward_input"), (1, 2, 3, 4)
    ):
        bucket = tuning.bucket_of(kernel, PLAIN, False, torch.float32, 64, channels, 224 * 224)
        assert bucket.channels == tuning.default(bucket)["BLOCK_C"] == channels
    three, four = (BUCKET._replace(channels=c) for c in (3, 4))
    config = tuning._config(3, 1, 1, 8, 16, 4)
    assert tuning.checked(three.name(), config) == (three, config)
    assert not tuning.checked(four.name(), config)
    for run_c in (2, 3):  # whole runs, each an axis of a tensor, whose length is a power of two
        assert not tuning.checked(three._replace(layout="channels_last").name(), {**config, "RUN_C": run_c})


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", ["forward", "theta", "backward", "backward_input"])
def test_a_thread_has_more_to_do_the_more_there_is(kernel, channels_last):
    """And a small launch more programs than with the tiles of a large one."""
    for channels, pixels in itertools.product((1, 3, 16, 64, 256), (28 * 28, 56 * 56, 224 * 224)):
        work = []
        for images in (1, 8, 64, 512):
            bucket = tuning.bucket_of(kernel, PLAIN, channels_last, torch.float32, images, channels, pixels)
            block_c, steps_c, _run_c, *tile, num_warps = tuning.default(bucket).values()
            work.append(block_c * steps_c * math.prod(tile) / num_warps)
        assert work == sorted(work)
        assert work[0] < work[-1] or channels > 3 or pixels > 28 * 28


def test_what_keeps_much_for_each_pixel_has_a_kernel_for_each_gradient():
    assert [tuning.is_fused(variant) for variant in VARIANTS] == [True, False, True, True, False, True]


def test_no_tile_is_larger_than_a_small_image():
    for kernel, channels in itertools.product(
        ("forward", "theta", "backward", "backward_input"), (1, 3, 256)
    ):
        bucket = tuning.bucket_of(kernel, PLAIN, False, torch.float32, 10_000, channels, 7 * 7)
        config = tuning.default(bucket)
        assert config["BLOCK_H"] * config["BLOCK_W"] <= 64


def test_large_images_count_as_much_as_large_batches():
    one = tuning.bucket_of("forward", PLAIN, False, torch.float32, 1, 3, 4096 * 4096)
    many = tuning.bucket_of("forward", PLAIN, False, torch.float32, 64, 3, 224 * 224)
    assert tuning.default(one) == tuning.default(many)


@pytest.mark.parametrize("kernel", ["forward/3d-bilinear-zeros", "backward_input/2d-bicubic-reflection"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_configurations_that_would_stall_or_break_a_call_are_none(kernel, dtype):
    """Powers of two below each limit, and yet nothing to launch."""
    bucket = tuning.Bucket(*kernel.split("/"), "nchw", dtype, 128, 2**15, 4096)
    hostile = {
        "1024 values a thread, 128 times the taps unrolled": (128, 1, 1, 16, 16, 1),
        "512 threads of 64 values: more registers than there are": (1, 1, 1, 128, 256, 16),
        "512 threads for one pixel": (128, 1, 1, 1, 1, 16),
        "512 threads of two pixels": (1, 1, 1, 32, 32, 16),
        "64 values a thread": (64, 1, 1, 8, 8, 2),
    }
    found = {why for why, values in hostile.items() if tuning.checked(bucket.name(), tuning._config(*values))}
    assert not found
    assert all(tuning.checked(bucket.name(), config) for config in tuning.space(bucket))


def test_what_earlier_versions_found_is_still_good():
    """Configurations that no space has any more, and defaults that have changed since."""
    heavy = tuning.Bucket(
        "backward", "2d-bicubic-zeros-antialias-tangent", "nchw", "float32", 128, 2**15, 4096
    )
    listed = BUCKET._replace(kernel="backward", channels=64)
    for bucket, values in (
        (BUCKET, (4, 1, 1, 4, 32, 4)),
        (heavy, (4, 1, 1, 8, 16, 4)),
        (listed, (8, 8, 1, 8, 16, 4)),
    ):
        config = tuning._config(*values)
        assert config not in tuning.space(bucket)
        assert tuning.checked(bucket.name(), config)


def test_sizes_of_one_bucket_share_a_tuning_and_its_name_leads_back():
    same = tuning.bucket_of("forward", PLAIN, False, torch.float32, 9, 4, 200 * 230)
    assert same == BUCKET
    assert tuning.bucket_of("forward", PLAIN, False, torch.float32, 8, 4, 28 * 28) != BUCKET
    assert tuning.bucket_of("forward", PLAIN, True, torch.float32, 8, 4, 224 * 224) != BUCKET
    assert tuning.bucket_of("forward", PLAIN, False, torch.float16, 8, 4, 224 * 224) != BUCKET
    assert tuning.bucket_of("forward", PLAIN, False, torch.float32, 8, 3, 224 * 224) != BUCKET
    assert tuning.Bucket.parse(BUCKET.name()) == BUCKET


def test_channels_last_reads_whole_vectors_only_where_16_divides_the_channels():
    assert tuning.bucket_of("forward", PLAIN, True, torch.float32, 1, 48, 64).lane() == 4
    assert tuning.bucket_of("forward", PLAIN, True, torch.bfloat16, 1, 48, 64).lane() == 8
    assert tuning.bucket_of("forward", PLAIN, True, torch.float32, 1, 40, 64).lane() == 1


def test_a_bucket_is_tuned_once_and_kept_on_disk(gpu, monkeypatch):
    calls = []
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: calls.append(bucket) or (CONFIG, True))
    for _ in range(2):
        assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    tuning._tables.clear()  # as a new process
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert calls == [BUCKET]
    assert json.loads(gpu.read_text())["configs"] == {BUCKET.name(): CONFIG}


def test_a_shipped_table_is_used_untuned_and_comes_before_the_user_s(gpu, caplog):
    write(tuning.SHIPPED / gpu.name, {BUCKET.name(): CONFIG})
    write(gpu, {BUCKET.name(): FOUR})
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert tuning.shipped_configurations() == [(BUCKET, CONFIG)]
    assert messages(caplog) == []


def test_a_shipped_table_for_older_kernels_is_used_but_after_what_the_user_tuned_for_these(gpu, caplog):
    theirs = FOUR
    write(tuning.SHIPPED / gpu.name, {BUCKET.name(): CONFIG, OTHER.name(): CONFIG}, kernels="older")
    write(gpu, {BUCKET.name(): theirs})
    assert tuning.configuration(BUCKET, GPU, None) == theirs
    assert tuning.configuration(OTHER, GPU, None) == CONFIG
    assert messages(caplog) == []


def test_the_default_is_used_inside_a_capture_when_switched_off_and_without_a_gpu(gpu, monkeypatch):
    default = tuning.default(BUCKET)
    assert tuning.configuration(BUCKET, torch.device("cpu"), None) == default
    monkeypatch.setenv("STN_TRITON_AUTOTUNE", "0")
    assert tuning.configuration(BUCKET, GPU, None) == default
    monkeypatch.setenv("STN_TRITON_AUTOTUNE", "1")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuning.configuration(BUCKET, GPU, None) == default
    assert not gpu.exists()


class TestTelling:
    def test_no_table_is_told_once_in_a_line_that_says_how_to_make_one(self, gpu, monkeypatch, caplog):
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
        for bucket in (BUCKET, OTHER):
            tuning.configuration(bucket, GPU, None)
        (message,) = messages(caplog)
        assert NAME in message
        assert "`python -m perf tune`" in message
        new_process()
        tuning.configuration(BUCKET, GPU, None)  # its own table has what was tuned
        assert messages(caplog) == []

    def test_in_a_capture_once_too(self, gpu, monkeypatch, caplog):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        for bucket in (BUCKET, OTHER, BUCKET):
            tuning.configuration(bucket, GPU, None)
        assert len(messages(caplog)) == 1

    def test_by_many_threads_once_too(self, gpu, monkeypatch, caplog):
        monkeypatch.setenv("STN_TRITON_AUTOTUNE", "0")
        read = tables.read
        monkeypatch.setattr(tables, "read", lambda *args: time.sleep(0.02) or read(*args))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: tuning.configuration(BUCKET, GPU, None), range(8)))
        assert len(messages(caplog)) == 1

    def test_for_each_gpu(self, gpu, monkeypatch, caplog):
        monkeypatch.setenv("STN_TRITON_AUTOTUNE", "0")
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        for index in (0, 1, 0):
            tuning.configuration(BUCKET, torch.device("cuda", index), None)
        first, second = messages(caplog)
        assert "GPU 0" in first
        assert "GPU 1" in second

    def test_nothing_on_a_cpu(self, gpu, caplog):
        tuning.configuration(BUCKET, torch.device("cpu"), None)
        assert messages(caplog) == []

    def test_on_stderr_of_a_program_that_configures_no_logging_and_nothing_on_import(self):
        script = """
import sys
import stn_triton.launch
from stn_triton import tables, tuning
print("imported", file=sys.stderr)
tables.tell_once("what is wrong"), tables.tell_once("what is wrong")
import logging
logging.getLogger("stn_triton").setLevel(logging.ERROR)
tables.tell_once("silenced")
"""
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
        assert (run.stdout, run.stderr) == ("", "imported\nstn_triton: what is wrong\n")


GOOD = BUCKET._replace(planes=8)
CORRUPT = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe\x00", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"version": ' + b"1" * 5000 + b"}", "not JSON"),
    (b"[]", "a JSON list, expected an object"),
    (b'"version"', "a JSON str, expected an object"),
    (b"{}", "version None, expected 1"),
    (head(version=2), "version 2, expected 1"),
    (head(version=True), "version True, expected 1"),
    (head(version="1" * 1000), "version '111"),
    (head(device=3), "'device' is 3, expected a string"),
    (head(device="Other GPU"), "a table of 'Other GPU', expected 'Imaginary GPU (80 GB)'"),
    (head(device="Other\nGPU" + "x" * 1000), r"a table of 'Other\nGPUxxx"),
    (head(kernels=None), "'kernels' is None, expected a string"),
    (head(configs=3), "'configs' is 3, expected an object"),
    (head(configs=[[]]), "'configs' is a list, expected an object"),
]
BAD_ENTRIES = [
    (BUCKET.name(), {**CONFIG, "BLOCK_C": 2**20}),
    (BUCKET.name(), {**CONFIG, "BLOCK_C": 256, "BLOCK_H": 256}),
    (BUCKET.name(), {**CONFIG, "BLOCK_C": 3}),
    (BUCKET.name(), {**CONFIG, "BLOCK_C": 0}),
    (BUCKET.name(), {**CONFIG, "BLOCK_C": -4}),
    (BUCKET.name(), {**CONFIG, "BLOCK_C": 4.0}),
    (BUCKET.name(), {**CONFIG, "BLOCK_C": True}),
    (BUCKET.name(), {**CONFIG, "BLOCK_C": "4"}),
    (BUCKET.name(), {**CONFIG, "BLOCK_C": [4]}),
    (BUCKET.name(), {**CONFIG, "num_warps": 32}),
    (BUCKET.name(), {**CONFIG, "num_warps": 4}),  # threads without pixels
    (BUCKET.name(), {**CONFIG, "BLOCK_C": 8}),  # channels that there are not
    (BUCKET.name(), {**CONFIG, "STEPS_C": 2}),
    (BUCKET.name(), {**CONFIG, "RUN_C": 4}),  # would address wrong memory
    (BUCKET.name(), {"BLOCK_C": 4}),
    (BUCKET.name(), {**CONFIG, "extra": 1}),
    (BUCKET.name(), None),
    (BUCKET.name(), [CONFIG]),
    ("../../" + BUCKET.name(), CONFIG),
    (BUCKET.name() + "\n", CONFIG),
    (BUCKET.name().replace("c4", "c04"), CONFIG),
    (BUCKET.name().replace("c4", "c" + "4" * 5000), CONFIG),
    (BUCKET.name().replace("nchw", "nhwc"), CONFIG),
    (BUCKET.name().replace("float32", "int"), CONFIG),
    (BUCKET.name().replace("nchw", "channels_last_16").replace("float32", "load"), CONFIG),
    ("", CONFIG),
]


@pytest.fixture(params=["user's", "shipped"])
def place(request, gpu):
    """Where a table lies."""
    path = gpu if request.param == "user's" else tuning.SHIPPED / gpu.name
    path.parent.mkdir(parents=True)
    return path


class TestCorruptTables:
    def used(self, monkeypatch):
        """The configurations of a bucket and of another, if tables have none for them."""
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (FOUR, True))
        return [tuning.configuration(bucket, GPU, None)["num_warps"] for bucket in (BUCKET, GOOD, BUCKET)]

    @pytest.mark.parametrize(("content", "reason"), CORRUPT, ids=[reason for _, reason in CORRUPT])
    def test_is_told_once_by_its_path_and_ignored(self, place, monkeypatch, caplog, content, reason):
        place.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        assert self.used(monkeypatch) == [4, 4, 4]
        message, none_left = messages(caplog)
        assert message.startswith(f"stn_triton: {place} is ignored: {reason}")
        assert len(message) < 400
        assert "no table" in none_left

    @pytest.mark.parametrize(("name", "config"), BAD_ENTRIES)
    def test_bad_entries_are_told_of_and_good_ones_used(self, place, monkeypatch, caplog, name, config):
        write(place, {name: config, GOOD.name(): CONFIG})
        assert self.used(monkeypatch) == [4, 2, 4]
        (message,) = messages(caplog)
        assert message.startswith(
            f"stn_triton: {place}: 1 of 2 entries are ignored, such as {name[:20]!r}"[:-1]
        )
        assert len(message) < 400

    def test_a_directory(self, place, monkeypatch, caplog):
        place.mkdir()
        assert self.used(monkeypatch) == [4, 4, 4]
        assert messages(caplog)[0] == f"stn_triton: {place} is ignored: not a file"

    def test_something_that_never_ends(self, place, monkeypatch, caplog):
        place.symlink_to("/dev/zero")
        assert self.used(monkeypatch) == [4, 4, 4]
        assert messages(caplog)[0] == f"stn_triton: {place} is ignored: not a file"

    def test_a_pipe_that_nobody_writes_to(self, place, monkeypatch, caplog):
        os.mkfifo(place)
        assert self.used(monkeypatch) == [4, 4, 4]
        assert messages(caplog)[0] == f"stn_triton: {place} is ignored: not a file"

    def test_an_enormous_file(self, place, monkeypatch, caplog):
        with place.open("wb") as file:
            file.truncate(10 * 2**40)
        assert self.used(monkeypatch) == [4, 4, 4]
        assert "10995116277760 bytes, expected at most 8388608" in messages(caplog)[0]

    def test_one_that_grows_while_it_is_read(self, place, monkeypatch, caplog):
        write(place, {BUCKET.name(): CONFIG})
        real = os.fstat

        def grow(descriptor):
            status = real(descriptor)
            os.truncate(place, 10 * 2**40)
            return status

        monkeypatch.setattr(os, "fstat", grow)
        assert self.used(monkeypatch) == [4, 4, 4]
        assert (
            messages(caplog)[0] == f"stn_triton: {place} is ignored: it grows, expected at most 8388608 bytes"
        )

    def test_a_pipe_that_takes_the_place_of_a_file_that_was_looked_at(self, place, monkeypatch, caplog):
        """What counts is what is open; whoever waits for the pipe would wait for ever."""
        write(place, {BUCKET.name(): CONFIG})
        real = os.open

        def exchange(path, *args, **kwargs):
            if Path(path) == place and place.is_file():
                place.unlink(), os.mkfifo(place)
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", exchange)
        assert self.used(monkeypatch) == [4, 4, 4]
        assert messages(caplog)[0] == f"stn_triton: {place} is ignored: not a file"

    def test_one_that_may_not_be_read(self, place, monkeypatch, caplog):
        write(place, {BUCKET.name(): CONFIG})

        real = os.open

        def refuse(path, *args, **kwargs):
            if Path(path) == place:
                raise PermissionError(13, "Permission denied")
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", refuse)
        assert self.used(monkeypatch) == [4, 4, 4]
        assert messages(caplog)[0] == f"stn_triton: {place} is ignored: cannot be read: Permission denied"

    def test_a_link_to_itself(self, place, monkeypatch, caplog):
        place.symlink_to(place)
        assert self.used(monkeypatch) == [4, 4, 4]
        assert "cannot be read" in messages(caplog)[0]

    def test_the_user_s_is_replaced_by_what_is_tuned(self, gpu, monkeypatch):
        gpu.parent.mkdir()
        gpu.write_text("{")
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
        tuning.configuration(BUCKET, GPU, None)
        assert json.loads(gpu.read_text()) == head()

    def test_bad_entries_are_not_kept(self, gpu, monkeypatch):
        write(gpu, {**dict(BAD_ENTRIES[-3:]), GOOD.name(): CONFIG})
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
        tuning.configuration(BUCKET, GPU, None)
        assert json.loads(gpu.read_text())["configs"] == {BUCKET.name(): CONFIG, GOOD.name(): CONFIG}


def test_a_table_reads_as_it_was_written_an_entry_a_line(tmp_path):
    table = tables.Table(NAME, "kernels", {"a": CONFIG, "b": {}})
    for written in (table, table._replace(configs={})):
        (tmp_path / "table.json").write_text(tables.dumps(written))
        assert tables.read(tmp_path / "table.json", NAME) == written
    assert (
        len(tables.dumps(table).splitlines())
        == len(tables.dumps(table._replace(configs={})).splitlines()) + 3
    )


def test_shipped_tables_are_part_of_the_package(tmp_path):
    """What setuptools puts into a wheel, built from a copy with a table in it."""
    pytest.importorskip("setuptools", minversion="77")
    root = Path(__file__).parents[1]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path)
    shutil.copytree(
        root / "stn_triton", tmp_path / "stn_triton", ignore=shutil.ignore_patterns("__pycache__")
    )
    (tmp_path / "stn_triton" / "tuned").mkdir(exist_ok=True)
    (tmp_path / "stn_triton" / "tuned" / "imaginary.json").write_text("{}")
    script = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", script, "build_py", "--build-lib", "built"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    built = {path.relative_to(tmp_path / "built") for path in (tmp_path / "built").rglob("*")}
    assert {Path("stn_triton/tuned/imaginary.json"), Path("stn_triton/tables.py")} <= built


@pytest.mark.parametrize("path", sorted(tuning.SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_every_entry_of_a_shipped_table_is_used(path, caplog):
    table = tables.read(path)
    assert path.stem == tables.slug(table.device)
    assert len(tables.load(path, tuning.checked)[0]) == len(table.configs) > 0
    assert messages(caplog) == []


def test_gpus_that_share_a_file_never_share_configurations(gpu, monkeypatch, caplog):
    """The one that wrote last has it; each is told that what is there is not its own."""
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: (FOUR, True))
    for name, config in (("A 100", CONFIG), ("a-100", FOUR), ("A 100", FOUR)):
        if config is CONFIG:
            tuning.write_table(tables.cache_path(name), name, {BUCKET: CONFIG})
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        new_process(), tuning._device_name.cache_clear()
        assert tuning.configuration(BUCKET, GPU, None) == config
        assert tables.read(tables.cache_path(name)).device == name
    assert "is ignored: a table of 'a-100', expected 'A 100'" in messages(caplog)[-2]


def test_a_cache_that_cannot_be_written_costs_only_the_cache_and_is_told_once(gpu, monkeypatch, caplog):
    gpu.parent.write_text("a file where the directory should be")
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
    for bucket in (BUCKET, OTHER):
        assert tuning.configuration(bucket, GPU, None) == CONFIG
    assert len([m for m in messages(caplog) if f"{gpu} cannot be written" in m]) == 1


def test_a_failed_write_leaves_the_old_table_and_no_litter(gpu, monkeypatch):
    write(gpu, {OTHER.name(): CONFIG})

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert json.loads(gpu.read_text())["configs"] == {OTHER.name(): CONFIG}
    assert list(gpu.parent.iterdir()) == [gpu]


def test_tables_of_two_processes_are_merged(gpu, monkeypatch):
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
    tuning._table(NAME)  # this process reads the table before the other writes
    write(gpu, {OTHER.name(): CONFIG})
    tuning.configuration(BUCKET, GPU, None)
    assert json.loads(gpu.read_text())["configs"] == {BUCKET.name(): CONFIG, OTHER.name(): CONFIG}


def test_a_tuning_of_other_kernels_is_told_of_and_forgotten(gpu, monkeypatch, caplog):
    write(gpu, {BUCKET.name(): FOUR, OTHER.name(): CONFIG})
    monkeypatch.setattr(tables, "kernels", lambda: "newer")
    monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert json.loads(gpu.read_text()) == head(kernels="newer")
    assert messages(caplog)[0] == (
        f"stn_triton: {gpu} is ignored: tuned for other kernels than this version's"
    )


def test_a_configuration_that_does_not_compile_loses(monkeypatch):
    import triton.testing

    best = tuning.space(BUCKET)[2]

    def run(config):
        if config == best:
            return 1.0
        raise RuntimeError("ptxas died")

    monkeypatch.setattr(triton.testing, "do_bench", lambda function, **options: (function(),) * 3)
    assert len(tuning.space(BUCKET)) > 3
    assert tuning.tune(BUCKET, run) == (best, False)
    monkeypatch.setattr(triton.testing, "do_bench", lambda function, **options: 1 / 0)
    assert tuning.tune(BUCKET, run) == (tuning.default(BUCKET), False)


def test_whoever_chooses_is_asked_on_every_device_and_thread_until_the_end(gpu, caplog):
    asked = []

    def choose(bucket, launch):
        asked.append((bucket, launch(3)))
        return CONFIG

    with ThreadPoolExecutor(1) as pool, tuning.choosing(choose):
        for device in (GPU, torch.device("cpu")):
            run = pool.submit(tuning.configuration, BUCKET, device, lambda config: config + 1)
            assert run.result() == CONFIG
    assert asked == [(BUCKET, 4)] * 2
    assert tuning.configuration(BUCKET, torch.device("cpu"), None) == tuning.default(BUCKET)
    with pytest.raises(ZeroDivisionError), tuning.choosing(lambda *_: 1 / 0):
        tuning.configuration(BUCKET, GPU, None)
    assert tuning._chooser is None
    assert messages(caplog) == []
