"""The video processor: every kind of input, sampling, augmentation, values, errors, saving."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoVideoProcessor

import modeling_svitt_ego  # noqa: F401  registers the Auto classes
from modeling_svitt_ego.model.clip_reading import BACKENDS, ClipReadError
from modeling_svitt_ego.model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from tests.helpers.painted_video import expected_numbers, is_usable, number_of, regular, write_video

PTS = regular(90, 30)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    return write_video(tmp_path_factory.mktemp("videos") / "video.mp4", PTS)


def raw(**kwargs) -> SViTTEgoVideoProcessor:
    """Leaves the pixels of the 64 x 64 test pictures alone, so that their numbers can be read."""
    return SViTTEgoVideoProcessor(do_resize=False, do_rescale=False, do_normalize=False, **kwargs)


def numbers(pixels) -> list[int]:
    return [number_of(frame.permute(1, 2, 0).numpy()) for frame in pixels]


def frames_of(count, height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------------------------- files and windows


def test_windows_of_files(video):
    """The middle frames of equal segments, for every way to write a window; ends are clamped."""
    clips = [
        (video, 1.0, 2.0),
        {"path": Path(video), "start": 1.0, "end": 2.0},
        [video, -5.0, 1.0],
        (video, 2.0, None),
        {"path": video, "end": 99.0},
        video,
    ]
    windows = [(1, 2), (1, 2), (0, 1), (2, 3), (0, 3), (0, 3)]
    pixels = raw()(clips, return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (6, 4, 3, 64, 64) and pixels.dtype == torch.uint8
    for clip, (start, end) in zip(pixels, windows):
        times = [start + (i + 0.5) * (end - start) / 4 for i in range(4)]
        assert numbers(clip) == expected_numbers(times, PTS)


def test_one_clip_equals_its_row_in_a_batch(video):
    processor = SViTTEgoVideoProcessor()
    clips = [(video, 0.0, 1.0), (video, 1.5, 2.5), video]
    batch = processor(clips, return_tensors="pt")["pixel_values_videos"]
    for clip, row in zip(clips, batch):
        assert torch.equal(processor(clip, return_tensors="pt")["pixel_values_videos"][0], row)


def test_window_shorter_than_the_frames_asked_for_repeats_frames(video):
    """Upstream code trains on black frames here."""
    pixels = raw()((video, 1.0, 1.06), num_frames=16, return_tensors="pt")["pixel_values_videos"]
    assert set(numbers(pixels[0])) == {30, 31} and pixels.shape[1] == 16


def test_fps_samples_by_rate(video):
    pixels = raw()((video, 0.0, 2.0), fps=5, return_tensors="pt")["pixel_values_videos"]
    assert numbers(pixels[0]) == [3 + 6 * i for i in range(10)]
    with pytest.raises(ValueError, match="fps .5. and num_frames .4."):
        raw()(video, fps=5, num_frames=4)


@pytest.mark.parametrize("backend", list(filter(is_usable, BACKENDS)))
def test_metadata_says_what_was_read(video, backend):
    out = raw()((video, 1.0, 2.0), video_backend=backend, return_metadata=True, return_tensors="pt")
    [metadata] = out["video_metadata"]
    assert (metadata.video_backend, metadata.height, metadata.width) == (backend, 64, 64)
    assert metadata.frames_indices == numbers(out["pixel_values_videos"][0]) and metadata.total_num_frames == 90


@pytest.mark.parametrize(
    "start, end", [(3.0, 4.0), (5.0, 9.0), (-2.0, -1.0), (2.0, 1.0), (1.0, 1.0), (float("nan"), 1.0)]
)
def test_bad_windows_name_path_and_numbers(video, start, end):
    with pytest.raises(ClipReadError, match=rf"video.mp4: window \[{start}, {end}\)"):
        raw()((video, start, end))


def test_bad_files_are_errors(tmp_path, video):
    (tmp_path / "empty.mp4").touch()
    for path in (tmp_path / "absent.mp4", tmp_path / "empty.mp4"):
        with pytest.raises(ClipReadError, match=path.name):
            SViTTEgoVideoProcessor()([video, path])


# ------------------------------------------------------------------------------------------------------ decoded frames


def test_every_form_of_decoded_frames_gives_the_same_pixels():
    array = frames_of(4) // 2 + 64
    first = torch.from_numpy(array).permute(0, 3, 1, 2)
    forms = {
        "numpy": array,
        "tensor, channels last": torch.from_numpy(array),
        "tensor, channels first": first,
        "contiguous channels first": first.contiguous(),
        "numpy, channels first": first.numpy(),
        "float": array.astype(np.float32),
        "int64": torch.from_numpy(array).long(),
        "PIL": [Image.fromarray(frame) for frame in array],
        "list of arrays": list(array),
        "list of tensors": list(first),
        "mirrored view": array[:, :, ::-1].copy()[:, :, ::-1],
        "batch of one": array[None],
        "list of one": [array],
    }
    read_only = array.copy()
    read_only.flags.writeable = False
    forms["read only"] = read_only
    processor = SViTTEgoVideoProcessor(size={"height": 32, "width": 32})
    expected = processor(array, return_tensors="pt")["pixel_values_videos"]
    assert expected.shape == (1, 4, 3, 32, 32) and expected.dtype == torch.float32 and expected.is_contiguous()
    for name, form in forms.items():
        pixels = processor(form, return_tensors="pt")["pixel_values_videos"]
        # float frames are resized in float, without rounding to whole grey levels
        torch.testing.assert_close(pixels, expected, atol=0.012 if name == "float" else 0, rtol=0, msg=name)
    as_numpy = processor(array, return_tensors="np")["pixel_values_videos"]
    np.testing.assert_array_equal(as_numpy, expected.numpy())
    as_list = processor([array, array], return_tensors=None)["pixel_values_videos"]
    assert isinstance(as_list, list) and torch.equal(as_list[1], expected[0])


def test_frames_are_sampled_by_the_integer_rule():
    array = np.stack([np.full((8, 8, 3), i, dtype=np.uint8) for i in range(10)])
    pixels = raw()(array, return_tensors="pt")["pixel_values_videos"]
    assert pixels[0, :, 0, 0, 0].tolist() == [0, 3, 5, 8]
    assert raw()(array[:3], return_tensors="pt")["pixel_values_videos"][0, :, 0, 0, 0].tolist() == [0, 1, 2, 2]
    assert raw()(array, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"].shape[1] == 10
    assert raw(num_frames=2)(array, return_tensors="pt")["pixel_values_videos"].shape[1] == 2


def test_an_image_is_a_clip_of_one_frame():
    array = frames_of(1)[0]
    processor = SViTTEgoVideoProcessor(size={"height": 16, "width": 16})
    pixels = processor(array, return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (1, 1, 3, 16, 16)
    for image in (Image.fromarray(array), torch.from_numpy(array).permute(2, 0, 1)):
        assert torch.equal(processor(image, return_tensors="pt")["pixel_values_videos"], pixels)
    grey = processor(Image.fromarray(array[..., 0]), return_tensors="pt")["pixel_values_videos"]
    assert torch.equal(grey[:, :, 0], grey[:, :, 2])


def bad(frame=2, value=np.nan):
    array = frames_of(4).astype(np.float32)
    array[frame, 3, 4, 1] = value
    return array


@pytest.mark.parametrize(
    "clip, message",
    [
        (bad(), r"Clip 0: 1 values are NaN or infinite, in frames \[2\]"),
        (torch.from_numpy(bad(1, np.inf)), r"in frames \[1\]"),
        (frames_of(0), r"Clip 0: has no frames.*\(0, 40, 60, 3\)"),
        ([[]], "Clip 0: has no frames"),
        ([], "No video"),
        (np.zeros((4, 40, 60, 2), dtype=np.uint8), r"1, 3 or 4 channels.*2"),
        (np.zeros((4, 5, 40, 60), dtype=np.uint8), "1, 3 or 4 channels"),
        (np.full((4, 8, 8, 3), 300), "values from 300 to 300"),
        (np.zeros((2, 2, 2, 2, 2, 2)), r"\(2, 2, 2, 2, 2, 2\)"),
        (np.array([["a"]] * 3), "type <U1"),
        ([frames_of(1)[0], frames_of(1, 20)[0]], "different shapes"),
        (42, "int"),
        ({"file": "a.mp4"}, "keys path or bytes, start and end"),
        ([{}], "keys path or bytes"),
    ],
)
def test_bad_frames_are_errors_with_numbers(clip, message):
    with pytest.raises(ValueError, match=message):
        SViTTEgoVideoProcessor()(clip, return_tensors="pt")


def test_nan_only_in_frames_that_are_taken_matters():
    """Sampling comes first: a long clip is not scanned for the sake of four frames."""
    SViTTEgoVideoProcessor(num_frames=1)(bad(frame=3))


def test_clips_of_different_sizes_make_one_batch():
    clips = [frames_of(4), frames_of(6, 90, 30), frames_of(4, 50, 50)]
    pixels = SViTTEgoVideoProcessor()(clips, return_tensors="pt")["pixel_values_videos"]
    assert pixels.shape == (3, 4, 3, 224, 224)
    with pytest.raises(ValueError, match="different shapes"):
        SViTTEgoVideoProcessor(do_resize=False)(clips, return_tensors="pt")


def test_misspelt_setting_is_an_error():
    with pytest.raises(TypeError, match="'num_frame'.*'num_frames'"):
        SViTTEgoVideoProcessor()(frames_of(4), num_frame=2)
    with pytest.raises(ValueError, match="'centre'"):
        SViTTEgoVideoProcessor()(frames_of(4), sampling="centre")


# -------------------------------------------------------------------------------------------------------------- values


def test_values_are_those_of_the_published_recipe():
    """Resize without keeping the aspect ratio, bicubic, then (x / 255 - 0.5) / 0.5."""
    array = frames_of(2, 300, 400) // 2 + 64  # the uint8 kernel clips between its two passes; keep clear of that
    for antialias in (True, False):
        processor = SViTTEgoVideoProcessor(num_frames=2, antialias=antialias)
        pixels = processor(array, return_tensors="pt")["pixel_values_videos"][0]
        reference = torch.nn.functional.interpolate(
            torch.from_numpy(array).permute(0, 3, 1, 2).double(), (224, 224), mode="bicubic", antialias=antialias
        )
        reference = (reference / 255 - 0.5) / 0.5
        assert (pixels - reference).abs().max() <= 1.5 / 127.5 and (pixels - reference).abs().mean() < 0.4 / 127.5


def test_normalisation_is_exact_in_float32():
    array = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    pixels = SViTTEgoVideoProcessor(do_resize=False, num_frames=1)(array, return_tensors="pt")["pixel_values_videos"]
    expected = (torch.arange(256, dtype=torch.float64) / 255 - 0.5) / 0.5
    torch.testing.assert_close(pixels[0, 0, 0].flatten().double(), expected, atol=1e-7, rtol=0)


# -------------------------------------------------------------------------------------------------------------- random


def test_random_sampling_is_reproducible_and_covers_each_segment(video):
    processor = raw(sampling="random")

    def draw(seed, clips=(video, 0.0, 3.0)):
        generator = torch.Generator().manual_seed(seed)
        return processor(clips, generator=generator, return_tensors="pt")["pixel_values_videos"]

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    drawn = np.array([numbers(draw(seed)[0]) for seed in range(40)])
    edges = np.array([0, 22.5, 45, 67.5, 90])
    assert (drawn >= np.floor(edges[:4])).all() and (drawn <= np.ceil(edges[1:])).all()
    assert (drawn.std(0) > 4).all()
    middle = raw()((video, 0.0, 3.0), return_tensors="pt")["pixel_values_videos"]
    assert numbers(middle[0]) == [11, 33, 56, 78]


def test_a_generator_per_clip_makes_clips_independent_of_their_batch(video):
    """A resumed run draws the same frames and crops only if they depend on (seed, epoch, index) alone."""
    processor = SViTTEgoVideoProcessor(sampling="random", do_random_resized_crop=True, do_random_flip=True)
    clips = [(video, 0.0, 1.0), (video, 1.0, 2.5), frames_of(20)]

    def run(indices):
        generators = [torch.Generator().manual_seed(100 + i) for i in indices]
        return processor([clips[i] for i in indices], generator=generators, return_tensors="pt")["pixel_values_videos"]

    together = run([0, 1, 2])
    for i in range(3):
        assert torch.equal(run([i])[0], together[i])
    with pytest.raises(ValueError, match="2 entries of generator were given for 3 clips"):
        processor(clips, generator=[torch.Generator(), torch.Generator()])


def test_crop_is_the_same_in_every_frame_of_a_clip_and_differs_between_clips():
    one = frames_of(1, 60, 80)
    clip = np.repeat(one, 4, axis=0)
    processor = SViTTEgoVideoProcessor(do_random_resized_crop=True, do_random_flip=True)
    pixels = processor([clip] * 8, generator=torch.Generator().manual_seed(0), return_tensors="pt")
    pixels = pixels["pixel_values_videos"]
    assert pixels.shape == (8, 4, 3, 224, 224)
    assert torch.equal(pixels[:, :1].expand_as(pixels), pixels)
    assert len({row[0].sum().item() for row in pixels}) == 8


@pytest.mark.parametrize("height, width", [(60, 80), (80, 60), (20, 400), (400, 20)])
def test_crop_has_the_asked_share_and_shape_and_reaches_all_borders(height, width):
    from modeling_svitt_ego.model.random_part import random_part

    generator = torch.Generator().manual_seed(0)
    parts = np.array([random_part(height, width, (0.5, 1.0), (3 / 4, 4 / 3), generator) for _ in range(400)])
    top, left, h, w = parts.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= height).all() and (left + w <= width).all()
    assert (h > 0).all() and (w > 0).all() and (abs(np.log(w / h)) <= np.log(4 / 3) + 0.06).all()
    if height * width == 4800:
        share = h * w / (height * width)
        assert 0.48 < share.min() < 0.55 and share.max() > 0.8
        assert top.min() == 0 and left.min() == 0 and (top + h).max() == height and (left + w).max() == width


def test_no_flip_unless_asked_and_then_half_of_the_clips():
    clip = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    clip[:, :, 0] = 255
    clips = [clip] * 200
    generator = torch.Generator().manual_seed(0)
    pixels = raw()(clips, generator=generator, return_tensors="pt")["pixel_values_videos"]
    assert (pixels[..., 0] == 255).all()
    pixels = raw(do_random_flip=True)(clips, generator=generator, return_tensors="pt")["pixel_values_videos"]
    flipped = (pixels[..., -1] == 255).flatten(1)
    assert (flipped.all(1) == flipped.any(1)).all() and 70 < flipped.all(1).sum() < 130


# -------------------------------------------------------------------------------------------------------------- saving


def test_round_trip_keeps_every_setting(tmp_path):
    processor = SViTTEgoVideoProcessor(
        num_frames=16, sampling="random", antialias=False, crop_scale=[0.3, 0.9], video_backend="pyav", size=112
    )
    processor.save_pretrained(tmp_path)
    for loaded in (SViTTEgoVideoProcessor.from_pretrained(tmp_path), AutoVideoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is SViTTEgoVideoProcessor and loaded.to_dict() == processor.to_dict()
        assert (loaded.num_frames, loaded.antialias, loaded.crop_scale) == (16, False, (0.3, 0.9))
    assert '"generator"' not in "".join(path.read_text() for path in tmp_path.glob("*.json"))
    with pytest.raises(ValueError, match="generator"):
        SViTTEgoVideoProcessor(generator=torch.Generator())


# What the video processor imports, directly and through others.
VIDEO_FILES = {
    "clip_reading.py",
    "clip_times.py",
    "decode_decord.py",
    "decode_pyav.py",
    "decode_torchcodec.py",
    "decoded_frames.py",
    "display_matrix.py",
    "edit_lists.py",
    "frame_table.py",
    "needed_frames.py",
    "random_part.py",
    "video_inputs.py",
    "video_processing_svitt_ego.py",
    "video_source.py",
}

# An editable install is found by an import hook, not by sys.path: refuse the name before any finder is asked.
WITHOUT_PACKAGE = """
import importlib.abc
import sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "modeling_svitt_ego":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
try:
    import modeling_svitt_ego
except ImportError:
    pass
else:
    raise SystemExit("the package can still be imported")
"""


def run_without_package(code: str, tmp_path: Path) -> str:
    """Runs `code` in a fresh process that cannot import the package, as a user of the Hub would."""
    script = WITHOUT_PACKAGE + code
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_saved_processor_works_without_the_package(tmp_path, video):
    """What reaches the Hub must be complete: a missing file shows only on another machine."""
    folder = tmp_path / "saved"
    SViTTEgoVideoProcessor(num_frames=2).save_pretrained(folder)
    copied = {path.name for path in folder.glob("*.py")}
    assert copied == VIDEO_FILES
    code = f"""
from transformers import AutoVideoProcessor
processor = AutoVideoProcessor.from_pretrained({str(folder)!r}, trust_remote_code=True)
pixels = processor(({video!r}, 1.0, 2.0), return_tensors="pt")["pixel_values_videos"]
print(tuple(pixels.shape), pixels.double().sum().item())
"""
    here = SViTTEgoVideoProcessor(num_frames=2)((video, 1.0, 2.0), return_tensors="pt")["pixel_values_videos"]
    assert run_without_package(code, tmp_path).strip() == f"{tuple(here.shape)} {here.double().sum().item()}"
