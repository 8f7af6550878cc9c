"""Features of whole videos: the windows, the single pass over the file, the folder that `extract` keeps."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.data.frame_order import ordered_frames
from modeling_svitt_ego.features import extraction
from modeling_svitt_ego.features.extraction import FeatureFolder, extract
from modeling_svitt_ego.features.files import load_features, save_features
from modeling_svitt_ego.features.source_videos import SourceVideo, find_videos
from modeling_svitt_ego.features.windows import (
    WindowSettings,
    cells,
    embed_texts,
    embed_video,
    read_windows,
    windows,
)
from modeling_svitt_ego.files.folder_lock import locked
from modeling_svitt_ego.files.sharding import Shard
from modeling_svitt_ego.model.clip_reading import ClipReadError, clip_times, probe_video, read_clip, stream_frames
from modeling_svitt_ego.weights.fingerprint import model_fingerprint, text_fingerprint, video_fingerprint
from tests.helpers.tiny_data import frame_numbers, write_json, write_video
from tests.helpers.tiny_encoder import nlq_content, save_tiny_encoder, tiny_encoder


@pytest.fixture(scope="module")
def encoder():
    return tiny_encoder()


@pytest.fixture
def videos(tmp_path):
    """Two videos of 4.0 and 2.7 s at 10 frames a second, 27 frames of which are not a round number of windows."""
    write_video(tmp_path / "videos" / "a.mp4", 40)
    write_video(tmp_path / "videos" / "b.mp4", 27, first=3)
    return tmp_path / "videos"


# ---- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duration", [0.2, 1.0, 8 / 15, 2.7, 59.9999, 60.0, 480.021])
def test_cells_tile_the_video_to_its_very_end(duration):
    tiles = cells(duration, WindowSettings())
    assert tiles[0, 0] == 0 and tiles[-1, 1] == duration
    np.testing.assert_array_equal(tiles[1:, 0], tiles[:-1, 1])
    lengths = tiles[:, 1] - tiles[:, 0]
    np.testing.assert_allclose(lengths[:-1], 1 / 1.875)
    assert 0 < lengths[-1] < 1.2 / 1.875


def test_longer_windows_stay_centred_and_inside():
    settings = WindowSettings(window_seconds=1.4)
    spans, tiles = windows(5.3, settings), cells(5.3, settings)
    np.testing.assert_allclose(spans[:, 1] - spans[:, 0], 1.4)
    assert spans.min() >= 0 and spans.max() <= 5.3 + 1e-9
    np.testing.assert_allclose(spans[2:-2].mean(1), tiles[2:-2].mean(1))
    np.testing.assert_allclose(windows(0.9, settings), [[0, 0.9]] * 2)  # a video shorter than the window


@pytest.mark.parametrize(
    "fields", [{"windows_per_second": 0}, {"window_seconds": -1}, {"num_frames": 0}, {"kind": "x"}]
)
def test_settings_refuse_nonsense(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        WindowSettings(**fields)


# ---- one pass -------------------------------------------------------------------------------------------------------


def test_stream_gives_the_pixels_that_read_clip_gives(tmp_path):
    path = write_video(tmp_path / "v.mp4", 60, fps=30, gop=12)
    times = np.sort(np.random.default_rng(0).uniform(0, probe_video(path).duration, 37))
    streamed = np.stack(list(stream_frames(path, lambda info: times)))
    np.testing.assert_array_equal(streamed, read_clip(path, times, backend="pyav"))


def test_stream_seeks_once(tmp_path, monkeypatch):
    """Catches a seek per window, which costs a group of pictures each time."""
    from modeling_svitt_ego.model.decode_pyav import Cursor

    path = write_video(tmp_path / "v.mp4", 60, fps=30, gop=5)
    seeks, seek = [], Cursor.seek
    monkeypatch.setattr(Cursor, "seek", lambda self, t: (seeks.append(t), seek(self, t))[1])
    list(stream_frames(path, lambda info: np.arange(0, 1.9, 0.3)))
    assert len(seeks) == 1


def test_stream_refuses_times_that_step_back_or_leave_the_video(tmp_path):
    path = write_video(tmp_path / "v.mp4", 10)
    for times in ([0.5, 0.2], [0.5, 9.0]):
        with pytest.raises(ClipReadError, match=r"v\.mp4: time "):
            list(stream_frames(path, lambda info, times=times: times))


@pytest.mark.parametrize("order", ["natural", "reversed", "repeated", "shuffled"])
def test_frames_of_a_window_in_another_order(tmp_path, order, encoder):
    """Catches an order that the manifest names and the features do not have, and one across windows."""
    write_video(tmp_path / "v.mp4", 27)
    model, processor = encoder
    seen = []

    def show(clips, **options):
        seen.extend(frame_numbers(clip) for clip in clips)
        return type(processor.video_processor).__call__(processor.video_processor, clips, **options)

    (video,) = find_videos(tmp_path / "v.mp4")
    settings = WindowSettings(frame_order=order)
    natural = [frame_numbers(c) for c in read_windows(video, windows(video.duration(), settings), 4)]
    embed_video(model, show, video, settings)
    assert len(seen) == len(natural) == 5
    for number, (found, frames) in enumerate(zip(seen, natural)):
        assert found == [frames[place] for place in ordered_frames(4, order, number)]
    assert ("frame_order" in settings.recorded()) == (order != "natural")


@pytest.mark.parametrize("window_seconds", [None, 1.3])
def test_every_window_has_its_own_frames(tmp_path, window_seconds):
    """Catches frames given to a neighbour where windows overlap, and a last window that is left out."""
    write_video(tmp_path / "v.mp4", 27)
    (video,) = find_videos(tmp_path / "v.mp4")
    spans = windows(video.duration(), WindowSettings(window_seconds=window_seconds))
    found = [frame_numbers(clip) for clip in read_windows(video, spans, 4)]
    assert found == [[int(t * 10 + 1e-6) for t in clip_times(start, end, 4)] for start, end in spans]
    assert found[-1][-1] == 26 - (window_seconds is not None)


def test_a_video_in_chunks_is_the_same_as_whole(tmp_path, encoder):
    write_video(tmp_path / "whole" / "v.mp4", 40)
    for start in (0, 2):
        write_video(tmp_path / "chunks" / "v.mp4" / f"{start}.mp4", 20, first=10 * start)
    (whole,), (chunks,) = find_videos(tmp_path / "whole"), find_videos(tmp_path / "chunks")
    assert [start for start, _ in chunks.files] == [0.0, 2.0] and chunks.uid == "v"
    spans = windows(4.0, WindowSettings())
    for one, other in zip(read_windows(whole, spans, 4), read_windows(chunks, spans, 4), strict=True):
        assert frame_numbers(one) == frame_numbers(other)


def test_a_missing_chunk_is_an_error(tmp_path, encoder):
    for start in (0, 4):
        write_video(tmp_path / "v.mp4" / f"{start}.mp4", 20)
    (video,) = find_videos(tmp_path)
    with pytest.raises(ClipReadError, match=r"0\.mp4: time"):
        embed_video(*encoder, video)


def test_find_videos(tmp_path, videos):
    assert [video.uid for video in find_videos(videos)] == ["a", "b"]
    assert [video.uid for video in find_videos(videos, {"b"})] == ["b"]
    with pytest.raises(FileNotFoundError, match="1 of 2 videos are not in .*: c"):
        find_videos(videos, {"a", "c"})
    (videos / "a.mkv").write_bytes((videos / "a.mp4").read_bytes())
    with pytest.raises(ValueError, match=r"a\.mkv.*a\.mp4.*same name 'a'"):
        find_videos(videos)
    (videos / "a.mkv").unlink()
    write_video(videos / "c" / "0.mp4", 10)
    assert [video.uid for video in find_videos(videos)] == ["a", "b", "c"]


def test_a_home_folder_is_searched_in_all_its_folders(tmp_path):
    """Catches dated folders and DCIM trees that are not entered, and videos of their own taken for chunks of one."""
    names = ["2024-05-01/VID_1.mp4", "DCIM/100GOPRO/GX010001.MP4", "4/1.mp4", "4/2.mp4", "4/3.mp4", "old/x.MTS"]
    for name in [*names, "cut/0.mp4", "cut/1.mp4", "a/video.mp4", "b/video.mp4", ".trash/deleted.mp4"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    write_video(tmp_path / "cut" / "0.mp4", 20)
    (tmp_path / "a" / "._video.mp4").write_bytes(b"")
    (tmp_path / "a" / "index.ts").write_text("export const x = 1;")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    found = find_videos(tmp_path, unique=False)
    assert [Path(video.shown).relative_to(tmp_path).as_posix() for video in found] == sorted(
        [*names, "a/video.mp4", "b/video.mp4", "cut"]
    )
    assert [start for start, _ in next(video for video in found if video.uid == "cut").files] == [0.0, 2.0]
    with pytest.raises(ValueError, match=r"a/video\.mp4' and .*b/video\.mp4' would get the same name 'video'"):
        find_videos(tmp_path)


def test_names_that_cannot_be_used_are_listed_and_stop_nothing(tmp_path):
    """Catches one odd name that ends the search of a whole folder."""
    write_video(tmp_path / "good.mp4", 3)
    names = ["12:30.mp4", "line\nbreak.mp4", "\u202egpj.mp4", "é" * 110 + ".mp4"]
    for name in [os.fsencode(tmp_path / name) for name in names] + [os.fsencode(tmp_path) + b"/latin-\xe9.mp4"]:
        with open(name, "wb") as file:
            file.write(b"?")
    skipped = {}
    assert [video.uid for video in find_videos(tmp_path, skipped=skipped)] == ["good"]
    assert len(skipped) == 5 and all("name cannot be used" in reason for reason in skipped.values())
    for path in skipped:
        assert path.isprintable() and path.encode("utf-8")
    with pytest.raises(ValueError, match="name cannot be used"):
        find_videos(tmp_path)


# ---- vectors --------------------------------------------------------------------------------------------------------


def test_features_are_those_of_the_processor_and_the_model(videos, encoder):
    """The shortcut (one pass, batches of windows) against the plain way: each window as a clip of the processor."""
    model, processor = encoder
    settings = WindowSettings(window_seconds=1.0)
    result = embed_video(model, processor, find_videos(videos)[1], settings, batch_size=2)
    clips = [(str(videos / "b.mp4"), start, end) for start, end in windows(result.cells[-1, 1], settings)]
    pixels = processor(videos=clips, return_tensors="pt", video_backend="pyav")["pixel_values_videos"]
    with torch.no_grad():
        expected = model.get_video_features(pixels).pooler_output
    torch.testing.assert_close(torch.from_numpy(result.features), expected)
    assert np.abs(result.features[-1]).max() > 0


def test_kinds_belong_together(videos, encoder):
    model, processor = encoder
    (video, _) = find_videos(videos)
    found = {
        k: embed_video(model, processor, video, WindowSettings(kind=k)) for k in ("projected", "pooled", "tokens")
    }
    pooled = torch.from_numpy(found["pooled"].features)
    with torch.no_grad():
        expected = model.video_projection(pooled)
    torch.testing.assert_close(torch.from_numpy(found["projected"].features), expected)
    tokens = found["tokens"].features
    # 64 patches, of which one layer keeps 0.7, and [CLS].
    assert tokens.shape == (len(pooled), 46, 32)


def test_training_mode_is_put_back_and_does_not_matter(videos, encoder):
    model, processor = encoder
    (video, _) = find_videos(videos)
    first = embed_video(model, processor, video).features
    model.train()
    second = embed_video(model, processor, video).features
    assert model.training
    model.eval()
    np.testing.assert_array_equal(first, second)


def test_features_that_are_not_finite_are_refused(videos):
    model, processor = tiny_encoder()
    with torch.no_grad():
        model.video_projection.bias[0] = float("inf")
    with pytest.raises(ValueError, match="a: 8 of 8 features are not finite.*0.000 s"):
        embed_video(model, processor, find_videos(videos)[0])


def test_text_features_do_not_depend_on_the_batch(encoder):
    texts = ["where did i put the pan?", "cup"]
    together, alone = embed_texts(*encoder, texts), embed_texts(*encoder, texts[1:])
    assert len(together[0].token_features) > len(together[1].token_features) == len(alone[0].token_features)
    np.testing.assert_allclose(together[1].token_features, alone[0].token_features, atol=1e-5)
    np.testing.assert_allclose(together[1].features, alone[0].features, atol=1e-5)


def test_fingerprints_survive_saving_and_see_changes(tmp_path):
    from modeling_svitt_ego.weights.loading import load_dual_encoder

    model, processor = tiny_encoder()
    loaded, loaded_processor = load_dual_encoder(str(save_tiny_encoder(tmp_path / "model")), "cpu")
    assert model_fingerprint(model) == model_fingerprint(loaded)
    assert video_fingerprint(processor) == video_fingerprint(loaded_processor)
    assert text_fingerprint(processor) == text_fingerprint(loaded_processor)
    before = model_fingerprint(model)
    with torch.no_grad():
        model.video_projection.bias[0] += 1e-3
    assert model_fingerprint(model) != before
    loaded.config.vision_config.pattern_seed += 1  # the weights stay, the features do not
    assert model_fingerprint(loaded) != before
    loaded_processor.video_processor.antialias = False
    assert video_fingerprint(loaded_processor) != video_fingerprint(processor)


def test_a_checkpoint_without_a_tower_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    from modeling_svitt_ego.weights.loading import load_dual_encoder

    folder = save_tiny_encoder(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in weights.items() if not n.startswith("text_")}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="no trained text_model, text_projection"):
        load_dual_encoder(str(folder), "cpu")


# ---- the folder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["pt", "npz", "hdf5"])
@pytest.mark.parametrize("arrays", [("features",), ("features", "token_features")])
def test_layouts_give_back_what_they_got(tmp_path, layout, arrays):
    if layout == "hdf5":
        pytest.importorskip("h5py")
    content = {name: np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32) for name in arrays}
    save_features(tmp_path, "key", layout, **content)
    back = load_features(tmp_path, "key", layout)
    assert set(back) == set(arrays)
    for name in arrays:
        np.testing.assert_array_equal(back[name], content[name])
    assert len(list(tmp_path.iterdir())) == 1  # nothing else is left


def test_files_are_what_the_other_code_bases_load(tmp_path, videos, encoder):
    """VSLNet: torch.load(…)[a : b]; GroundNLQ: np.load(…)["features"]; both by the names they expect."""
    nlq = write_json(tmp_path / "nlq.json", nlq_content({"a": [(1.0, 3.5, [("where did i put the pan?", 0.5, 1.0)])]}))
    for layout in ("pt", "npz"):
        extract(*encoder, videos, tmp_path / layout, layout=layout, nlq=[nlq])
    whole = torch.load(tmp_path / "pt" / "a.pt", weights_only=True)
    assert whole.dtype == torch.float32 and whole.shape == (8, 16)
    clip = torch.load(tmp_path / "pt" / "clips" / "a-clip0.pt", weights_only=True)
    torch.testing.assert_close(clip, whole[int(1.0 * 1.875) : int(3.5 * 1.875) + 1])
    assert json.loads((tmp_path / "pt" / "clips" / "feature_shapes.json").read_text()) == {"a-clip0": len(clip)}
    with np.load(tmp_path / "npz" / "a.npz") as file:
        np.testing.assert_array_equal(file["features"], whole.numpy())
    with np.load(tmp_path / "npz" / "text" / "a-a0_0.npz") as file:
        assert file["token_features"].ndim == 2 and file["features"].shape == (16,)
    assert not (tmp_path / "pt" / "b.pt").exists()  # not in the annotation file


def test_hdf5_has_all_keys_in_one_file(tmp_path, videos, encoder):
    h5py = pytest.importorskip("h5py")
    extract(*encoder, videos, tmp_path / "out", layout="hdf5")
    with h5py.File(tmp_path / "out" / "features.h5") as file:
        assert sorted(file) == ["a", "b"]
        np.testing.assert_array_equal(file["b"][:], FeatureFolder(tmp_path / "out").video("b"))


def test_resumes_and_redoes_nothing(tmp_path, videos, encoder, monkeypatch):
    out = tmp_path / "out"
    extract(*encoder, videos / "a.mp4", out)
    before = (out / "a.pt").stat().st_mtime_ns
    with open(out / "videos.jsonl", "a") as file:
        file.write('{"video_uid": "b", "num_w')  # a run that was stopped while it wrote
    seen, embed = [], extraction.embed_video
    monkeypatch.setattr(extraction, "embed_video", lambda m, p, v, *a: (seen.append(v.uid), embed(m, p, v, *a))[1])
    result = extract(*encoder, videos, out)
    assert seen == ["b"] and result.num_reused == 1 and sorted(result.finished) == ["a", "b"]
    assert (out / "a.pt").stat().st_mtime_ns == before
    folder = FeatureFolder(out)
    assert len(folder.cells("b")) == len(folder.video("b")) == 5 and folder.cells("b")[-1, 1] == pytest.approx(2.7)


def test_refuses_to_mix(tmp_path, videos, encoder):
    out = tmp_path / "out"
    extract(*encoder, videos / "a.mp4", out)
    with pytest.raises(ValueError, match="num_frames': 4.* there, .*num_frames': 8.* now"):
        extract(*encoder, videos, out, WindowSettings(num_frames=8))
    other, processor = tiny_encoder()
    with torch.no_grad():
        other.video_projection.bias += 1
    with pytest.raises(ValueError, match="holds other features .checkpoint: "):
        extract(other, processor, videos, out)
    write_video(videos / "a.mp4", 33)
    with pytest.raises(ValueError, match="another video by that name"):
        extract(*encoder, videos, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        extract(*encoder, videos, tmp_path / "mine")


def test_damaged_features_are_made_again(tmp_path, videos, encoder):
    """Catches features that are taken for finished because their file exists."""
    extract(*encoder, videos, tmp_path / "out")
    path = tmp_path / "out" / "a.pt"
    content = path.read_bytes()
    path.write_bytes(content[:-200] + bytes(200))
    result = extract(*encoder, videos, tmp_path / "out")
    assert result.num_reused == 1 and path.read_bytes() == content
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"a\.pt' are damaged"):
        FeatureFolder(tmp_path / "out").video("a")


def test_shards_together_are_the_whole(tmp_path, videos, encoder):
    """Catches videos or queries that no shard or two shards take, and a merge that passes over a hole."""
    write_video(videos / "c.mp4", 12)
    queries = {name: [(0.0, 1.0, [(f"where is {name}?", 0.2, 0.5)])] for name in "abc"}
    nlq = write_json(tmp_path / "nlq.json", nlq_content(queries))
    extract(*encoder, videos, tmp_path / "whole", layout="npz", nlq=[nlq])

    def run(**options):
        return extract(*encoder, videos, tmp_path / "out", layout="npz", nlq=[nlq], **options)

    first = run(shard=Shard(0, 2))
    with pytest.raises(ValueError, match="is not complete"):
        run(merge=True)
    with pytest.raises(FileNotFoundError, match="--merge"):
        FeatureFolder(tmp_path / "out")
    second = run(shard=Shard(1, 2))
    assert sorted([*first.finished, *second.finished]) == ["a", "b", "c"] and first.num_texts + second.num_texts == 3
    assert sorted(run(merge=True).finished) == ["a", "b", "c"]
    names = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.npz")]
    assert len(names) == 9
    for name in names:
        one, other = (np.load(tmp_path / folder / name)["features"] for folder in ("out", "whole"))
        np.testing.assert_allclose(one, other, atol=1e-5)  # texts are padded to the longest of their batch
    assert not list((tmp_path / "out").glob("*shard*.json*")) and len(FeatureFolder(tmp_path / "out").videos) == 3


def test_a_second_run_on_the_folder_is_refused(tmp_path, videos, encoder):
    with locked(tmp_path), pytest.raises(FileExistsError, match=f"is being written by process {os.getpid()} on"):
        (tmp_path / "manifest.json").write_text("{}")
        extract(*encoder, videos, tmp_path)


def test_an_unreadable_video_is_listed_and_retried(tmp_path, videos, encoder):
    good = (videos / "b.mp4").read_bytes()
    (videos / "b.mp4").write_bytes(good[: len(good) // 2])
    result = extract(*encoder, videos, tmp_path / "out")
    assert list(result.failures) == ["b"] and "b.mp4" in result.failures["b"]
    assert json.loads((tmp_path / "out" / "failures.json").read_text()) == result.failures
    assert not (tmp_path / "out" / "b.pt").exists() and (tmp_path / "out" / "a.pt").exists()
    (videos / "b.mp4").write_bytes(good)
    assert extract(*encoder, videos, tmp_path / "out").failures == {}


def test_command(tmp_path, videos, capsys):
    model = save_tiny_encoder(tmp_path / "model")
    queries = [("where did i put the pan?", 0.5, 1.0), (None, 0.5, 1.0)]
    nlq = write_json(tmp_path / "nlq.json", nlq_content({"a": [(0.0, 4.0, queries)]}))
    command = [
        "extract",
        str(videos),
        str(tmp_path / "out"),
        "--model",
        str(model),
        "--device",
        "cpu",
        "--nlq",
        str(nlq),
    ]
    assert main([*command, "--format", "npz", "--dtype", "float16"]) == 0
    assert "1 videos with 8 windows in" in capsys.readouterr().out
    assert FeatureFolder(tmp_path / "out").video("a").dtype == np.float16
    assert main([*command, "--layout", "pt"]) == 2
    assert "layout: npz there, pt now" in capsys.readouterr().err
    (videos / "b.mp4").write_bytes(b"no video")
    assert main(["extract", str(videos), str(tmp_path / "all"), "--model", str(model), "--device", "cpu"]) == 1
    assert "\n  b: " in capsys.readouterr().out


def test_source_video_stamp_changes_with_the_file(videos):
    (video, _) = find_videos(videos)
    stamp = video.stamp()
    write_video(videos / "a.mp4", 12)
    assert SourceVideo(video.uid, video.files).stamp() != stamp
