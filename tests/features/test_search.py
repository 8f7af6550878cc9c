"""Search in one's own videos: the right moment first, the cache by what matters, a page that stands alone."""

import base64
import html.parser
import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from modeling_svitt_ego.cli import main
from modeling_svitt_ego.features import search
from modeling_svitt_ego.features.search import VideoIndex, clock, peaks
from modeling_svitt_ego.features.search_page import write_page
from modeling_svitt_ego.features.windows import WindowSettings, cells
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
    monkeypatch.setattr(search, "embed_video", lambda m, p, v, *a: (seen.append(v.uid), embed(m, p, v, *a))[1])

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


def test_a_damaged_cache_file_is_named(tmp_path, videos, encoder):
    VideoIndex.build(*encoder, videos, cache_dir=tmp_path / "cache")
    path = sorted((tmp_path / "cache").iterdir())[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{path.name}.*damaged"):
        VideoIndex.build(*encoder, videos, cache_dir=tmp_path / "cache")


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


def test_pictures_of_the_last_moment_of_a_video(tmp_path, encoder):
    write_video(tmp_path / "v.mp4", 5)
    index = VideoIndex.build(*encoder, tmp_path / "v.mp4", cache_dir=None)
    write_page(tmp_path / "found.html", "cup", index.search("cup"), index)


@pytest.mark.parametrize("seconds, shown", [(0, "0:00.0"), (59.96, "1:00.0"), (62.5, "1:02.5"), (3602.5, "1:00:02.5")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown


def test_command(tmp_path, videos, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = str(save_tiny_encoder(tmp_path / "model"))
    options = ["--model", model, "--device", "cpu", "--cache", str(tmp_path / "cache"), "--top-k", "2"]
    assert main(["search", str(videos / "a.mp4"), str(videos / "b <i>.mp4"), "where is the pan?", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1. ") and lines[1].startswith("2. ") and "found.html" in lines[2]
    assert (tmp_path / "found.html").is_file() and len(os.listdir(tmp_path / "cache")) == 2
    assert main(["search", str(videos / "a.mp4"), str(videos / "b <i>.mp4"), *options]) == 2
    assert "The last argument is the query" in capsys.readouterr().err
