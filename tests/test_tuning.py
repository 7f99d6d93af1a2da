"""Buckets, shipped tables and the choice of configurations. No test uses a GPU.

Tests of searches are in test_autotune.py and test_compile_ahead.py.
"""

import itertools
import json
import math
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from stn_triton import autotuner, buckets, policy, tables, tuning
from stn_triton.options import DEFAULT

CONFIG = {**dict.fromkeys(policy.CONFIG_KEYS, 1), "BLOCK_C": 4, "BLOCK_H": 8, "BLOCK_W": 8, "num_warps": 2}
FOUR = {**CONFIG, "BLOCK_W": 16, "num_warps": 4}
PLAIN = buckets.variant_of(2, False, False, False, DEFAULT)
BUCKET = buckets.bucket_of("forward", PLAIN, False, torch.float32, 8, 4, 224 * 224)
OTHER = BUCKET._replace(kernel="theta")
GPU = torch.device("cuda", 0)
NAME = "Imaginary GPU (80 GB)"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Pretend that there is a GPU, forbid searches, and return the path of the GPU's table."""

    def forget():
        tuning.shipped.cache_clear(), tuning._device_name.cache_clear(), tuning._found.clear()

    monkeypatch.delenv("STN_TRITON_AUTOTUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: NAME)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "tuned")
    monkeypatch.setattr(autotuner, "fastest_of", lambda configs, run, what: pytest.fail("searched"))
    forget()
    yield tmp_path / "tuned" / "imaginary-gpu-80-gb.json"
    forget()


def head(**changes):
    """Make the content of a valid table, with some fields changed."""
    table = {"version": 1, "device": NAME, "kernels": tables.kernels(), "configs": {BUCKET.name(): CONFIG}}
    return {**table, **changes}


def write(path, configs, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(head(configs=configs, **changes)))


def messages(caplog):
    """Return the warnings logged since the last call."""
    told = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    caplog.clear()
    assert {(name, level) for name, level, _ in told} <= {("stn_triton", "WARNING")}
    assert not [message for *_, message in told if "\n" in message]
    return [message for *_, message in told]


VARIANTS = (
    PLAIN,
    buckets.variant_of(3, False, False, False, DEFAULT),
    buckets.variant_of(2, False, True, False, DEFAULT),
    buckets.variant_of(2, True, False, False, DEFAULT._replace(padding_mode="reflection")),
    buckets.variant_of(2, False, False, True, DEFAULT._replace(mode="bicubic", antialias=True)),
    buckets.variant_of(2, False, False, False, DEFAULT._replace(points=(0.0, 0.0))),
)


@pytest.mark.parametrize("kernel", ["forward", "theta", "backward", "backward_input", "scatter", "fill"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("channels_last", "channels"),
    [(False, c) for c in (1, 2, 3, 4, 5, 16, 300)] + [(True, c) for c in (1, 3, 4, 16, 64, 100, 256)],
)
@pytest.mark.sample(60)
def test_every_configuration_of_the_space_can_be_launched(kernel, variant, channels_last, channels):
    for dtype, images, pixels in itertools.product(
        (torch.float32, torch.bfloat16, torch.float64, torch.uint8), (1, 64), (49, 28 * 28, 224 * 224)
    ):
        if dtype == torch.uint8 and kernel != "forward":  # it has no gradients
            continue
        bucket = buckets.bucket_of(kernel, variant, channels_last, dtype, images, channels, pixels)
        space = policy.space(bucket)
        assert space[0] == policy.default(bucket)
        assert len(space) == len({tuple(config.values()) for config in space}) <= 16
        for config in space:
            assert tuning._is_valid(bucket, config)
            assert config["BLOCK_C"] * config["STEPS_C"] <= bucket.channels
            assert config["BLOCK_C"] % config["RUN_C"] == 0
            assert config["BLOCK_H"] <= config["BLOCK_W"]
            if bucket.layout == "nchw":
                assert config["RUN_C"] == 1
            # Each thread has one to four lanes, so that no thread idles.
            squares = config["BLOCK_H"] * config["BLOCK_W"] // policy.side(bucket) ** 2
            lanes = config["RUN_C"] // bucket.lane() * squares
            assert 1 <= lanes / (32 * config["num_warps"]) <= 4
            # Listing pixels unrolls nine loads per group of channels; compile time grows with their square.
            if bucket.is_gather() and config["STEPS_C"] > 1:
                assert config["BLOCK_C"] // config["RUN_C"] * 9 <= 72


def test_few_channels_are_a_block_of_their_own():
    for kernel, channels in itertools.product(
        ("forward", "theta", "backward", "backward_input"), (1, 2, 3, 4)
    ):
        bucket = buckets.bucket_of(kernel, PLAIN, False, torch.float32, 64, channels, 224 * 224)
        assert bucket.channels == policy.default(bucket)["BLOCK_C"] == channels
    three, four = (BUCKET._replace(channels=c) for c in (3, 4))
    config = policy.blocks(3, 1, 1, 8, 16, 4)
    assert tuning.checked(three.name(), config) == (three, config)
    assert not tuning.checked(four.name(), config)
    for run_c in (2, 3):  # a run is an axis of a tensor, so that its length must be a power of two
        assert not tuning.checked(three._replace(layout="channels_last").name(), {**config, "RUN_C": run_c})


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", ["forward", "theta", "backward", "backward_input"])
def test_a_thread_has_more_to_do_the_more_there_is(kernel, channels_last):
    """Small launches have less work per thread, so that they have more programs."""
    for channels, pixels in itertools.product((1, 3, 16, 64, 256), (28 * 28, 56 * 56, 224 * 224)):
        work = []
        for images in (1, 8, 64, 512):
            bucket = buckets.bucket_of(kernel, PLAIN, channels_last, torch.float32, images, channels, pixels)
            block_c, steps_c, _run_c, *tile, num_warps = policy.default(bucket).values()
            work.append(block_c * steps_c * math.prod(tile) / num_warps)
        assert work == sorted(work)
        is_fixed = channels > 3 or pixels > 28 * 28 or policy.side(bucket) > 1
        assert is_fixed or work[0] < work[-1]


def test_what_keeps_much_for_each_pixel_has_a_kernel_for_each_gradient():
    assert policy.share_a_kernel("bilinear")
    assert not policy.share_a_kernel("bicubic")


def test_no_tile_is_larger_than_a_small_image():
    for kernel, channels in itertools.product(
        ("forward", "theta", "backward", "backward_input"), (1, 3, 256)
    ):
        bucket = buckets.bucket_of(kernel, PLAIN, False, torch.float32, 10_000, channels, 7 * 7)
        config = policy.default(bucket)
        assert config["BLOCK_H"] * config["BLOCK_W"] <= 64


def test_large_images_count_as_much_as_large_batches():
    one = buckets.bucket_of("forward", PLAIN, False, torch.float32, 1, 3, 4096 * 4096)
    many = buckets.bucket_of("forward", PLAIN, False, torch.float32, 64, 3, 224 * 224)
    assert policy.default(one) == policy.default(many)


@pytest.mark.parametrize("kernel", ["forward/3d-bilinear-zeros", "backward_input/2d-bicubic-reflection"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_configurations_that_would_stall_or_break_a_call_are_none(kernel, dtype):
    """All values are powers of two below their limits, but such kernels would be too large or idle."""
    bucket = buckets.Bucket(*kernel.split("/"), "nchw", dtype, 128, 2**15, 4096)
    hostile = {
        "1024 values a thread, 128 times the taps unrolled": (128, 1, 1, 16, 16, 1),
        "512 threads of 64 values: more registers than there are": (1, 1, 1, 128, 256, 16),
        "512 threads for one pixel": (128, 1, 1, 1, 1, 16),
        "512 threads of two pixels": (1, 1, 1, 32, 32, 16),
        "64 values a thread": (64, 1, 1, 8, 8, 2),
    }
    found = {why for why, values in hostile.items() if tuning.checked(bucket.name(), policy.blocks(*values))}
    assert not found
    assert all(tuning.checked(bucket.name(), config) for config in policy.space(bucket))


def test_what_earlier_versions_found_is_still_good():
    """Tables may hold configurations that the space no longer has, and earlier defaults."""
    heavy = buckets.Bucket(
        "backward", "2d-bicubic-zeros-antialias-tangent", "nchw", "float32", 128, 2**15, 4096
    )
    listed = BUCKET._replace(kernel="backward", channels=64)
    for bucket, values in (
        (BUCKET, (4, 1, 1, 4, 32, 4)),
        (heavy, (4, 1, 1, 8, 16, 4)),
        (listed, (8, 8, 1, 8, 16, 4)),
    ):
        config = policy.blocks(*values)
        assert config not in policy.space(bucket)
        assert tuning.checked(bucket.name(), config)


def test_sizes_of_one_bucket_share_a_tuning_and_its_name_leads_back():
    same = buckets.bucket_of("forward", PLAIN, False, torch.float32, 9, 4, 200 * 230)
    assert same == BUCKET
    assert buckets.bucket_of("forward", PLAIN, False, torch.float32, 8, 4, 28 * 28) != BUCKET
    assert buckets.bucket_of("forward", PLAIN, True, torch.float32, 8, 4, 224 * 224) != BUCKET
    assert buckets.bucket_of("forward", PLAIN, False, torch.float16, 8, 4, 224 * 224) != BUCKET
    assert buckets.bucket_of("forward", PLAIN, False, torch.float32, 8, 3, 224 * 224) != BUCKET
    assert buckets.Bucket.parse(BUCKET.name()) == BUCKET


def test_channels_last_reads_whole_vectors_only_where_16_divides_the_channels():
    assert buckets.bucket_of("forward", PLAIN, True, torch.float32, 1, 48, 64).lane() == 4
    assert buckets.bucket_of("forward", PLAIN, True, torch.bfloat16, 1, 48, 64).lane() == 8
    assert buckets.bucket_of("forward", PLAIN, True, torch.float32, 1, 40, 64).lane() == 1


def test_a_shipped_table_is_used_and_a_default_for_what_it_has_not(gpu, caplog):
    write(gpu, {BUCKET.name(): CONFIG})
    assert policy.default(BUCKET) != CONFIG
    for _ in range(2):
        assert tuning.configuration(BUCKET, GPU, None) == CONFIG
        assert tuning.configuration(OTHER, GPU, None) == policy.default(OTHER)
    assert tuning.configuration(BUCKET, torch.device("cpu"), None) == policy.default(BUCKET)
    assert tuning.shipped_configurations() == [(BUCKET, CONFIG)]
    assert messages(caplog) == []


def test_without_a_table_calls_take_defaults_say_nothing_and_write_nothing(gpu, tmp_path, caplog):
    before = tuning.state()
    assert tuning.configuration(BUCKET, GPU, None) == policy.default(BUCKET)
    assert list(tmp_path.iterdir()) == []
    assert (tuning.state(), tuning._found) == (before, {})
    assert messages(caplog) == []


def test_a_table_for_older_kernels_is_used(gpu, caplog):
    write(gpu, {BUCKET.name(): CONFIG}, kernels="older")
    assert tuning.configuration(BUCKET, GPU, None) == CONFIG
    assert messages(caplog) == []


@pytest.mark.full
def test_a_warning_is_on_stderr_of_a_program_that_configures_no_logging_and_nothing_on_import(tmp_path):
    script = f"""
import pathlib, sys
import stn_triton.launch
from stn_triton import tuning
print("imported", file=sys.stderr)
tuning.SHIPPED = pathlib.Path({str(tmp_path)!r})
tuning.shipped("gpu"), tuning.shipped("gpu")
import logging
logging.getLogger("stn_triton").setLevel(logging.ERROR)
tuning.shipped.cache_clear(), tuning.shipped("gpu")
"""
    path = tmp_path / "gpu.json"
    path.write_text("{")
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("", f"imported\nstn_triton: {path} is ignored: not JSON\n")


GOOD = BUCKET._replace(planes=8)
CORRUPT = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"\xff\xfe\x00", "not JSON"),
    (b'{"version": ' + b"1" * 5000 + b"}", "not JSON"),
    (b"[]", "a JSON list, expected an object"),
    (b'"version"', "a JSON str, expected an object"),
    (b"{}", "version None, expected 1"),
    (head(version=2), "version 2, expected 1"),
    (head(version="1"), "version '1', expected 1"),
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
    (BUCKET.name(), {**CONFIG, "BLOCK_C": 8}),  # more channels than the bucket has
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


class TestDamagedTables:
    def used(self):
        return [tuning.configuration(bucket, GPU, None) for bucket in (BUCKET, GOOD, BUCKET)]

    @pytest.mark.parametrize(("content", "reason"), CORRUPT, ids=[reason for _, reason in CORRUPT])
    def test_a_table_that_is_none_is_ignored_with_one_warning(self, gpu, caplog, content, reason):
        gpu.parent.mkdir()
        gpu.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        assert self.used() == [policy.default(bucket) for bucket in (BUCKET, GOOD, BUCKET)]
        (message,) = messages(caplog)
        assert message.startswith(f"stn_triton: {gpu} is ignored: {reason}")
        assert len(message) < 400

    @pytest.mark.parametrize(("name", "config"), BAD_ENTRIES)
    def test_what_no_kernel_could_run_is_ignored_and_good_entries_used(self, gpu, caplog, name, config):
        write(gpu, {name: config, GOOD.name(): CONFIG})
        assert self.used() == [policy.default(BUCKET), CONFIG, policy.default(BUCKET)]
        (message,) = messages(caplog)
        assert message.startswith(
            f"stn_triton: {gpu}: 1 of 2 entries are ignored, such as {name[:20]!r}"[:-1]
        )
        assert len(message) < 400

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "true", "4.0", "null", "{}"])
    def test_numbers_that_are_none(self, gpu, caplog, number):
        text = json.dumps(head()).replace('"BLOCK_C": 4', f'"BLOCK_C": {number}')
        gpu.parent.mkdir()
        gpu.write_text(text)
        assert tuning.configuration(BUCKET, GPU, None) == policy.default(BUCKET)
        assert messages(caplog) == [
            f"stn_triton: {gpu}: 1 of 1 entries are ignored, such as {BUCKET.name()!r}"
        ]

    def test_a_directory(self, gpu, caplog):
        gpu.mkdir(parents=True)
        assert tuning.configuration(BUCKET, GPU, None) == policy.default(BUCKET)
        assert messages(caplog) == [f"stn_triton: {gpu} is ignored: cannot be read: Is a directory"]


def test_a_table_reads_as_it_was_written_an_entry_a_line(tmp_path):
    path = tmp_path / "tuned" / "table.json"
    table = tables.Table(NAME, "kernels", {"a": CONFIG, "b": {}})
    lines = []
    for written in (table, table._replace(configs={})):
        tables.write(path, written)
        assert tables.read(path, NAME) == written
        lines.append(len(path.read_text().splitlines()))
    assert lines[0] == lines[1] + 3


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "..", "", "x" * 5000, "C:\\x", "\n", "\uff38/../\uff59", "$(id)"], ids=repr
)
def test_a_gpu_s_name_is_a_plain_name_of_a_file(name):
    assert set(tables.slug(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 0 < len(tables.slug(name)) <= 100


def test_shipped_tables_are_part_of_the_package(tmp_path):
    """Build a copy of the package that has a table, and look for the table in the result."""
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
    assert len(tables.load(path, tuning.checked)) == len(table.configs) > 0
    assert messages(caplog) == []


def test_whoever_chooses_is_asked_on_every_device_and_thread_until_the_end(gpu, caplog):
    asked = []

    def choose(bucket, launch):
        asked.append((bucket, launch(3)))
        return CONFIG

    assert not tuning.is_choosing()
    with ThreadPoolExecutor(1) as pool, tuning.choosing(choose):
        assert tuning.is_choosing()
        for device in (GPU, torch.device("cpu")):
            run = pool.submit(tuning.configuration, BUCKET, device, lambda config: config + 1)
            assert run.result() == CONFIG
    assert asked == [(BUCKET, 4)] * 2
    assert tuning.configuration(BUCKET, torch.device("cpu"), None) == policy.default(BUCKET)
    with pytest.raises(ZeroDivisionError), tuning.choosing(lambda *_: 1 / 0):
        tuning.configuration(BUCKET, GPU, None)
    assert not tuning.is_choosing()
    assert messages(caplog) == []
