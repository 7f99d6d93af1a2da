"""The digits example: distortions, files of MNIST, and networks of matched size."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from digits_files import write_idx, write_mnist

from stn_triton.examples.digits import data, distortions, models
from stn_triton.examples.digits.distortions import DISTORTIONS, generator, place
from stn_triton.examples.digits.training import fixed_images
from stn_triton.terminal import UsageError

FRAME = data.FRAME


@pytest.fixture(scope="module")
def source():
    return data.load()


@pytest.fixture(scope="module")
def frames(source):
    return source.everything.frames[:300]


def spots(x, y, n=1):
    """Make frames with one soft spot at (x, y), in pixels from the middle."""
    at = torch.arange(FRAME) - (FRAME - 1) / 2
    spot = torch.exp(-((at[None, :] - x) ** 2 + (at[:, None] - y) ** 2) / 4)
    return spot.expand(n, 1, FRAME, FRAME).contiguous()


def centres(images):
    """Compute centres of mass (n, 2), in pixels from the middle."""
    at = torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    mass = images.sum((1, 2, 3))
    return torch.stack(((images.sum((1, 2)) * at).sum(1) / mass, (images.sum((1, 3)) * at).sum(1) / mass), 1)


class TestPlacing:
    def test_nothing_changes_but_the_canvas(self, frames):
        n = len(frames)
        placed = place(frames, FRAME + 10, torch.zeros(n), torch.ones(n), torch.zeros(n, 2))
        torch.testing.assert_close(placed[..., 5:-5, 5:-5], frames, atol=1e-4, rtol=0)
        assert placed[..., :4, :].abs().max() == 0

    def test_angles_are_counterclockwise_degrees(self):
        angle = torch.tensor([0.0, 30, 90, -90])
        found = centres(place(spots(5, 0, 4), 30, angle, torch.ones(4), torch.zeros(4, 2)))
        # y points down.
        expected = 5 * torch.stack(((angle * math.pi / 180).cos(), -(angle * math.pi / 180).sin()), 1)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)

    def test_scale_and_shift_are_pixels_of_the_canvas(self):
        shift = torch.tensor([[3.0, -2], [-4, 6]])
        found = centres(place(spots(4, 2, 2), 42, torch.zeros(2), torch.tensor([1.0, 0.7]), shift))
        expected = shift + torch.tensor([[4, 2], [2.8, 1.4]])
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


class TestDistortions:
    @pytest.mark.parametrize("name", DISTORTIONS)
    def test_sizes_and_values(self, frames, name):
        images = DISTORTIONS[name](frames, generator(0))
        size = {"RTS": 30, "UL": 30, "TC": 43}.get(name, 20)  # ratios 28 : 42 : 60
        assert images.shape == (len(frames), 1, size, size)
        assert images.min() >= 0
        assert 0.9 < images.max() <= 1
        assert images.flatten(1).amax(1).min() > 0.3  # the digit is in the image

    @pytest.mark.parametrize("name", DISTORTIONS)
    def test_the_seed_decides(self, frames, name):
        one, same, other = (DISTORTIONS[name](frames, generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert torch.equal(one, other) == name.startswith("U")

    def test_r_turns_within_90_degrees(self):
        found = centres(DISTORTIONS["R"](spots(5, 0, 2000), generator(1)))
        angles = torch.atan2(-found[:, 1], found[:, 0]) * (180 / math.pi)
        assert -91 < angles.min() < -85
        assert 85 < angles.max() < 91
        assert abs(angles.mean()) < 4  # standard error: 90 / sqrt(3) / sqrt(2000) = 1.2
        torch.testing.assert_close(found.norm(dim=1), torch.full((2000,), 5.0), atol=0.05, rtol=0)

    def test_rts_turns_scales_and_stays_in_the_canvas(self):
        left, right = (DISTORTIONS["RTS"](spots(x, 0, 2000), generator(1)) for x in (-5, 5))
        arm = (centres(right) - centres(left)) / 10
        angles, scales = torch.atan2(-arm[:, 1], arm[:, 0]) * (180 / math.pi), arm.norm(dim=1)
        assert -46 < angles.min() < -42
        assert 42 < angles.max() < 46
        assert 0.69 < scales.min() < 0.72
        assert 1.17 < scales.max() < 1.21
        middle = (centres(right) + centres(left)) / 2
        room = (30 - 20 * scales[:, None]) / 2
        assert (middle.abs() <= room + 0.05).all()
        assert (middle.abs() / room).max() > 0.98

    def test_p_moves_corners_and_shrinks(self):
        corners = torch.tensor([[[-0.8, -0.9], [1, -1.1], [-1, 0.7], [0.9, 1]]])
        mapped = torch.cat((corners, torch.ones(1, 4, 1)), 2) @ distortions.homography(corners).mT
        expected = torch.tensor([[[-1.0, -1], [1, -1], [-1, 1], [1, 1]]])
        torch.testing.assert_close(mapped[..., :2] / mapped[..., 2:], expected, atol=1e-5, rtol=0)
        found = centres(DISTORTIONS["P"](spots(5, 5, 2000), generator(1)))
        # The mean scale, 0.875, times 5 along both axes; each corner moves by 5/28 of the frame.
        assert found.mean(0) == pytest.approx([0.875 * 5] * 2, abs=0.25)
        assert 1 < found.std(0).mean() < 5 / 28 * FRAME

    def test_e_bends_and_shrinks(self):
        found = centres(DISTORTIONS["E"](spots(4, 0, 2000), generator(1)))
        assert found.mean(0) == pytest.approx([0.875 * 4, 0], abs=0.1)
        assert 0.5 < found.std(0).mean() < 1.5 * 1.5 / 28 * FRAME

    def test_clutter_keeps_the_digit_and_adds_at_most_six_fragments(self):
        blank = torch.zeros(2, 1, FRAME, FRAME)
        blank[0] = 1  # image 1 is empty: all its fragments are of image 0, all white
        images = DISTORTIONS["TC"](blank.repeat(200, 1, 1, 1)[: 2 * 200], generator(0))
        full = images[::2].sum((1, 2, 3))
        assert (full > FRAME**2 - 2).all()
        ink = images[1::2]
        assert 0 < ink.sum() <= 200 * 6 * 4**2
        assert ((ink == 0) | (ink == 1)).all()

    def test_generators_differ_by_key_and_not_by_run(self):
        assert torch.rand(1, generator=generator(0, "R", 16)).item() == pytest.approx(
            torch.rand(1, generator=generator(0, "R", 16)).item(), abs=0
        )
        keys = [(0, "R", 16), (0, "R", 32), (1, "R", 16), (0, "RTS", 16), (0, "R", "16")]
        assert len({torch.rand(1, generator=generator(*key)).item() for key in keys}) == len(keys)


class TestDigits:
    def test_the_bundled_digits_are_in_the_middle_of_the_frame(self, source):
        frames = source.everything.frames
        assert len(source.everything) == 1797
        assert frames.shape[1:] == (1, FRAME, FRAME)
        assert torch.cat((frames[..., :2], frames[..., -2:]), 3).max() < 0.02
        assert abs(centres(frames).mean(0)).max() < 0.5
        assert frames.flatten(1).amax(1).min() > 0.8

    def test_splits_are_by_seed_and_have_nothing_in_common(self, source):
        train, test = source.split(0)
        assert (len(train), len(test)) == (1348, 449)
        both = torch.cat((train.frames, test.frames)).flatten(1)
        assert torch.equal(both.sum(0), source.everything.frames[source_order(source, 0)].flatten(1).sum(0))
        again, other = source.split(0)[1], source.split(1)[1]
        assert torch.equal(test.frames, again.frames)
        assert not torch.equal(test.labels, other.labels)

    def test_test_images_are_fixed_and_the_copies_differ(self, source):
        _, test = source.split(0)
        one, labels = fixed_images("R", 0, test, 2)
        assert torch.equal(one, fixed_images("R", 0, test, 2)[0])
        assert torch.equal(labels, test.labels.repeat(2))
        assert not torch.equal(one[: len(test)], one[len(test) :])


def source_order(source, seed):
    return torch.randperm(len(source.everything), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def mnist(tmp_path):
    return write_mnist(tmp_path / "mnist")


class TestMnist:
    def test_reads_plain_and_packed_files(self, mnist):
        source = data.load(mnist)
        train, test = source.split(3)
        assert (len(train), len(test)) == (40, 20)
        assert train.frames.shape == (40, 1, FRAME, FRAME)
        assert test.labels.tolist() == [*range(10)] * 2
        raw = data.read_idx(mnist / "t10k-images-idx3-ubyte", 3)
        expected = torch.from_numpy(raw.copy())[:, None].float() / 255
        # Resampling averages pixels, so the mean of the images stays.
        assert test.frames.mean().item() == pytest.approx(expected.mean().item(), abs=0.02)
        assert test.frames.std() < expected.std()

    def test_names_the_files_that_are_missing(self, mnist):
        (mnist / "train-images-idx3-ubyte.gz").unlink()
        with pytest.raises(
            UsageError, match=r"not found in .*mnist: train-images-idx3-ubyte; expected.*t10k-lab"
        ):
            data.load(mnist)
        with pytest.raises(UsageError, match="which is no folder: train-images-idx3-ubyte, train-labels"):
            data.load(mnist / "nowhere")

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda content: content[:-5], "is damaged: .* takes 15696 bytes, got 15691"),
            (lambda content: content + b"x", "is damaged"),
            (
                lambda content: b"\0\0\x08\x01" + content[4:],
                "expected it to begin with 00000803, got 00000801",
            ),
            (lambda content: b"", "got nothing"),
            (lambda content: content[:9], "is damaged"),
            (lambda content: content[:4] + b"\xff" * 12 + content[16:], "is damaged"),
        ],
    )
    def test_says_what_is_wrong_with_a_file(self, mnist, damage, message):
        path = mnist / "t10k-images-idx3-ubyte"
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UsageError, match=message):
            data.load(mnist)

    @pytest.mark.parametrize("cut", [5, 40, -4])
    def test_says_that_a_packed_file_is_damaged(self, mnist, cut):
        path = mnist / "train-images-idx3-ubyte.gz"
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(UsageError, match="cannot be read"):
            data.load(mnist)

    def test_images_and_labels_must_fit(self, mnist):
        write_idx(mnist / "train-labels.idx1-ubyte", np.zeros(39))
        with pytest.raises(UsageError, match=r"a label for each image .* got 39 labels for 40 images"):
            data.load(mnist)
        write_idx(mnist / "train-labels.idx1-ubyte", np.full(40, 11))
        with pytest.raises(UsageError, match="labels must be 0 to 9, got 11"):
            data.load(mnist)
        write_idx(mnist / "train-labels.idx1-ubyte", np.zeros(40))
        write_idx(mnist / "t10k-images-idx3-ubyte", np.zeros((20, 27, 28)))
        with pytest.raises(UsageError, match=r"one size, got \(28, 28\) and \(27, 28\)"):
            data.load(mnist)


class TestNetworks:
    @pytest.mark.parametrize("distortion", ["R", "RTS", "TC"])
    def test_all_have_as_many_parameters_and_start_at_the_identity(self, distortion):
        size = DISTORTIONS[distortion].size(FRAME)
        image, side = torch.rand(2, 1, size, size), {20: 20, 30: 20, 43: 29}[size]
        for name in models.MODELS:
            network = models.Network(name, size)
            assert models.count(network) == pytest.approx(models.PARAMETERS, rel=0.01), name
            assert network(image).shape == (2, 10)
            if network.transformer is not None:
                whole = torch.nn.functional.grid_sample(
                    image,
                    torch.nn.functional.affine_grid(
                        torch.eye(2, 3).expand(2, 2, 3), (2, 1, side, side), False
                    ),
                    align_corners=False,
                )
                torch.testing.assert_close(network.transformer(image), whole, atol=1e-4, rtol=0)

    def test_a_number_of_parameters_that_no_network_can_have_comes_near(self):
        assert models.count(models.Network("cnn", 20, 20_000)) == pytest.approx(20_000, rel=0.02)
