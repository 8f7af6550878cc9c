"""Search in one's own videos: the right moment first, the cache by what matters, a page that stands alone."""

import base64
import html.parser
import io
import os
from pathlib import Path
from urllib.parse import unquote

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.features import search
from modeling_svitt_ego.features.search import IndexedVideo, VideoIndex, clock, peaks
from modeling_svitt_ego.features.search_page import write_page
from modeling_svitt_ego.features.windows import SourceVideo, WindowSettings, cells
from modeling_svitt_ego.model.clip_reading import ClipReadError
from tests.helpers.tiny_data import write_video
from tests.helpers.tiny_encoder import save_tiny_encoder, tiny_encoder

QUERY = 'where did i put the <b>"pan"</b> & lid?'


@pytest.fixture
def videos(tmp_path):
    write_video(tmp_path / "videos" / "a.mp4", 40)
    write_video(tmp_path / "videos" / "b <i>.mp4", 27, first=3)
    return tmp_path / "videos"


@pytest.fixture
def encoder():
    return tiny_encoder()


def test_peaks_reach_to_half_height_and_do_not_overlap():
    #                  0    1    2     3    4    5    6    7    8    9
    scores = np.array([0.0, 0.0, 0.65, 1.0, 0.7, 0.0, 0.0, 0.4, 0.8, 0.1])
    assert peaks(scores, 2) == [(2, 4, 3, 1.0), (8, 8, 8, 0.8)]
    assert len(peaks(scores, 50)) < 10 and len(peaks(np.zeros(4), 3)) == 1
    assert peaks(np.array([0.3]), 5) == [(0, 0, 0, 0.3)]


def test_the_window_that_says_the_query_is_found_first(videos, encoder):
    """A text embedding made equal to one window's: that window's time must come back, with cosine 1."""
    model, processor = encoder
    index = VideoIndex.build(model, processor, videos, cache_dir=None)
    wanted = index.videos[1]
    with torch.no_grad():
        model.text_projection.weight.zero_()
        model.text_projection.bias.copy_(torch.from_numpy(3 * wanted.embeds[2]))
    moment = index.search(QUERY, top_k=3)[0]
    assert moment.video.uid == "b <i>" and moment.score == pytest.approx(1.0, abs=1e-5)
    assert moment.peak == pytest.approx(cells(2.7, WindowSettings())[2].mean())
    assert moment.start < moment.peak < moment.end


def test_moments_come_best_first_and_as_many_as_asked(videos, encoder):
    index = VideoIndex.build(*encoder, [videos, videos / "a.mp4"], cache_dir=None)
    assert len(index.videos) == 2  # named twice, searched once
    moments = index.search(QUERY, top_k=3)
    scores = [moment.score for moment in moments]
    assert len(moments) == 3 and scores == sorted(scores, reverse=True) and max(scores) <= 1
    for bad in (lambda: index.search(" "), lambda: index.search("pan", top_k=0)):
        with pytest.raises(ValueError):
            bad()


def test_cache_is_used_and_knows_what_changed(tmp_path, videos, monkeypatch):
    model, processor = tiny_encoder()
    seen, embed = [], search.embed_video
    monkeypatch.setattr(
        search, "embed_video", lambda m, p, v, *a, **k: (seen.append(v.uid), embed(m, p, v, *a, **k))[1]
    )

    def embedded(settings=None) -> list[str]:
        seen.clear()
        VideoIndex.build(model, processor, videos, settings, cache_dir=tmp_path / "cache")
        return sorted(seen)

    assert embedded() == ["a", "b <i>"] and embedded() == []
    assert embedded(WindowSettings(window_seconds=1.0)) == ["a", "b <i>"] and embedded() == []
    write_video(videos / "a.mp4", 33)
    assert embedded() == ["a"]
    processor.video_processor.antialias = False
    assert embedded() == ["a", "b <i>"]
    with torch.no_grad():
        model.video_projection.bias += 1
    assert embedded() == ["a", "b <i>"] and embedded() == []


def test_cached_features_are_the_ones_computed(tmp_path, videos, encoder):
    first, second = (VideoIndex.build(*encoder, videos, cache_dir=tmp_path) for _ in range(2))
    for one, other in zip(first.videos, second.videos, strict=True):
        np.testing.assert_array_equal(one.embeds, other.embeds)
        np.testing.assert_array_equal(one.cells, other.cells)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: data[:-40], lambda data: b""])
def test_a_damaged_cache_file_is_made_again(damage, tmp_path, videos, encoder, caplog):
    """Catches a search that a truncated file stops for good, and one that trusts what is left of it."""
    whole = VideoIndex.build(*encoder, videos, cache_dir=tmp_path / "cache")
    path = sorted((tmp_path / "cache").iterdir())[0]
    path.write_bytes(damage(path.read_bytes()))
    again = VideoIndex.build(*encoder, videos, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(again.vectors, whole.vectors)
    assert "is damaged" in caplog.text and path.name in caplog.text
    caplog.clear()
    VideoIndex.build(*encoder, videos, cache_dir=tmp_path / "cache")
    assert not caplog.records


def test_vectors_leave_as_parquet_and_in_faiss(tmp_path, videos, encoder):
    """Catches rows that are not those of the windows, and vectors that are not of unit length."""
    index = VideoIndex.build(*encoder, videos, cache_dir=None)
    table = datasets.load_dataset(
        "parquet", data_files=str(index.to_parquet(tmp_path / "index.parquet")), split="train"
    )
    np.testing.assert_allclose(np.array(table["embedding"]), index.vectors)
    np.testing.assert_allclose(np.linalg.norm(index.vectors, axis=1), 1, atol=1e-6)
    assert table["video"][0] == "a" and table["start"][0] == 0.0 and len(table) == len(index)
    scores = np.concatenate(index.scores(QUERY))
    faiss = pytest.importorskip("faiss")
    assert faiss is not None
    cosines, rows = index.to_faiss().search(index.embed_query(QUERY)[None], 3)
    np.testing.assert_allclose(cosines[0], np.sort(scores)[::-1][:3], atol=1e-6)
    np.testing.assert_allclose(scores[rows[0]], cosines[0], atol=1e-6)


def test_only_the_best_videos_are_looked_at_and_nothing_is_missed(encoder):
    """Catches a moment that is lost because its video is not among the best ones: compared with all moments."""
    model, processor = encoder
    rng = np.random.default_rng(0)
    starts = np.arange(30) / 2
    cells_of = np.stack([starts, starts + 0.5], axis=1)
    sources = [SourceVideo(f"v{i}", ((0.0, Path(f"v{i}.mp4")),)) for i in range(20)]
    index = VideoIndex(model, processor, [IndexedVideo(s, cells_of, _unit(rng, 30)) for s in sources], {})
    found = index.search(QUERY, top_k=7)
    every = sorted((p[3] for scores in index.scores(QUERY) for p in peaks(scores, 30)), reverse=True)
    assert [moment.score for moment in found] == every[:7]
    assert repr(index) == "VideoIndex(20 videos, 5:00.0, 600 windows, 0 unreadable)"


def _unit(rng, rows: int) -> np.ndarray:
    x = rng.standard_normal((rows, 16)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_unreadable_videos_are_reported_not_hidden(videos, encoder):
    (videos / "a.mp4").write_bytes(b"no video")
    index = VideoIndex.build(*encoder, videos, cache_dir=None)
    assert [video.source.uid for video in index.videos] == ["b <i>"] and "a.mp4" in next(iter(index.failures))
    (videos / "b <i>.mp4").unlink()
    with pytest.raises(ClipReadError, match="None of 1 videos could be read"):
        VideoIndex.build(*encoder, videos, cache_dir=None)


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_page_stands_alone_and_shows_the_query_as_text(tmp_path, videos, encoder):
    """Catches a query or a file name that becomes markup, and a picture that needs a server."""
    index = VideoIndex.build(*encoder, videos, cache_dir=None)
    path = write_page(tmp_path / "found.html", QUERY, index.search(QUERY, top_k=3), index)
    page = Page(path.read_text(encoding="utf-8"))
    names = {tag for tag, _ in page.tags}
    assert not names & {"b", "i", "script", "link", "iframe"} and QUERY in page.text and "b <i>" in page.text
    images = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert len(images) == 9
    for source in images:
        kind, data = source.split(",", 1)
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (48, 32)
    assert "http" not in path.read_text().replace("http-equiv", "")


def test_page_plays_each_moment_where_it_is(tmp_path, videos, encoder):
    """Catches a player without the time, and a path that breaks on a space or a bracket."""
    (videos / "c.mp4").write_bytes(b"no video")
    index = VideoIndex.build(*encoder, videos, cache_dir=None)
    moments = index.search(QUERY, top_k=3)
    text = write_page(tmp_path / "found.html", QUERY, moments, index).read_text(encoding="utf-8")
    page = Page(text)
    players = [attrs for tag, attrs in page.tags if tag == "video"]
    for moment, player in zip(moments, players, strict=True):
        file, fragment = player["src"].split("#t=")
        assert (tmp_path / unquote(file)).resolve() == moment.video.files[0][1].resolve()
        assert [float(x) for x in fragment.split(",")] == pytest.approx([moment.start, moment.end], abs=0.01)
        assert "controls" in player and player["aria-label"].startswith("Moment ")
    assert "Not searched" in page.text and "c.mp4" in page.text
    assert any(attrs.get("name") == "viewport" for tag, attrs in page.tags if tag == "meta")
    assert all(attrs["alt"] for tag, attrs in page.tags if tag == "img") and "prefers-color-scheme" in text


@pytest.mark.parametrize("name, message", [("", "is a directory"), ("no/found.html", "does not exist")])
def test_a_page_that_cannot_be_written_is_said_before_the_work(name, message, tmp_path, videos, capsys):
    """Catches an hour of indexing that ends in an OSError."""
    command = ["search", str(videos), QUERY, "--model", str(tmp_path / "no-model"), "--html", str(tmp_path / name)]
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_said_before_the_work(tmp_path, videos, capsys):
    """Catches a model loaded and a video embedded before the first write fails; the remedy is in the line."""
    (tmp_path / "file").write_text("")
    command = ["search", str(videos), QUERY, "--model", str(tmp_path / "no-model"), "--html", str(tmp_path / "x.html")]
    assert main([*command, "--cache", str(tmp_path / "file" / "cache")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "cannot be written" in error and "--no-cache" in error


def test_pictures_of_the_last_moment_of_a_video(tmp_path, encoder):
    write_video(tmp_path / "v.mp4", 5)
    index = VideoIndex.build(*encoder, tmp_path / "v.mp4", cache_dir=None)
    write_page(tmp_path / "found.html", "cup", index.search("cup"), index)


@pytest.mark.parametrize("seconds, shown", [(0, "0:00.0"), (59.96, "1:00.0"), (62.5, "1:02.5"), (3602.5, "1:00:02.5")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown


@pytest.mark.parametrize(
    "source, message",
    [("https://example.com/a.mp4", "https://example.com/a.mp4 is a URL"), ("nowhere", "no video or folder 'nowhere'")],
)
def test_a_source_that_cannot_be_read_is_refused_before_the_model_is_loaded(capsys, source, message):
    assert main(["search", source, "a cup", "--model", "no model either"]) == 2
    assert message in capsys.readouterr().err
    assert main(["extract", source, "out", "--model", "no model either"]) == 2
    assert message in capsys.readouterr().err


def test_command(tmp_path, videos, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(save_tiny_encoder(tmp_path / "model"))
    options = ["--model", model, "--device", "cpu", "--cache", str(tmp_path / "cache"), "--top-k", "2"]
    assert main(["search", str(videos / "a.mp4"), str(videos / "b <i>.mp4"), "where is the pan?", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1. ") and lines[1].startswith("2. ") and "found.html" in lines[2]
    assert (tmp_path / "found.html").is_file() and len(os.listdir(tmp_path / "cache")) == 2
    assert main(["search", str(videos / "a.mp4"), str(videos / "b <i>.mp4"), *options]) == 2
    assert "The last argument must be the query" in capsys.readouterr().err
