"""Clips in the forms in which other libraries hand them around, all of them giving the frames that the path gives."""

import functools
import http.server
import io
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.video_utils import VideoMetadata

from modeling_svitt_ego.model.clip_reading import ClipReadError, VideoSource
from modeling_svitt_ego.model.processing_svitt_ego import SViTTEgoProcessor
from modeling_svitt_ego.model.video_processing_svitt_ego import SViTTEgoVideoProcessor
from modeling_svitt_ego.weights.tokenizer import train_tokenizer
from tests.helpers.painted_video import is_usable, number_of, picture, regular, write_video

needs_torchcodec = pytest.mark.skipif(not is_usable("torchcodec"), reason="torchcodec is not installed")
WHOLE = [11, 33, 56, 78]  # the middles of four equal parts of 90 frames
PART = [33, 41, 48, 56]  # and of the frames of 1 to 2 s


def raw(**settings) -> SViTTEgoVideoProcessor:
    return SViTTEgoVideoProcessor(do_resize=False, do_rescale=False, do_normalize=False, **settings)


def numbers(pixels) -> list[list[int]]:
    return [[number_of(frame.permute(1, 2, 0).numpy()) for frame in clip] for clip in pixels]


def read(videos, **settings) -> list[list[int]]:
    return numbers(raw()(videos, return_tensors="pt", **settings)["pixel_values_videos"])


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    return write_video(tmp_path_factory.mktemp("inputs") / "video.mp4", regular(90, 30))


@pytest.fixture(scope="module")
def processor():
    return SViTTEgoProcessor(raw(), train_tokenizer(["#C C opens the door"], vocab_size=80))


# ------------------------------------------------------------------------------------------------------------ in files


def test_videos_in_memory(video):
    """Catches a tuple of bytes taken for frames, and rows of parquet files that are refused."""
    data = Path(video).read_bytes()
    assert read(data) == [WHOLE]
    assert read([data, (data, 1.0, 2.0)]) == [WHOLE, PART]
    assert read([{"bytes": data, "path": None}, {"bytes": data, "path": "in/a/shard.mp4"}]) == [WHOLE, WHOLE]
    assert read([{"bytes": None, "path": video}, {"path": video}]) == [WHOLE, WHOLE]
    assert read({"bytes": data, "start": 1.0, "end": 2.0}) == [PART]
    assert read({"bytes": data, "path": "x.mp4", "start": 1.0, "end": 2.0}) == [PART]
    assert read(VideoSource("clip", data)) == [WHOLE]
    with open(video, "rb") as file:
        assert read([file, (file, 1.0, 2.0)]) == [WHOLE, PART]
    with pytest.raises(ClipReadError, match="in/a/shard.mp4.*cannot read"):
        read({"bytes": b"no video", "path": "in/a/shard.mp4"})
    with pytest.raises(ValueError, match="neither a path nor bytes"):
        read({"bytes": None, "path": None})


def test_decoded_frames_with_their_metadata():
    """sentence-transformers hands clips around so; fps of a call needs the clip's own."""
    frames = np.stack([picture(i) for i in range(40)])
    assert read({"array": frames, "video_metadata": None}) == [[4, 14, 24, 34]]
    whole = {"fps": 10.0, "total_num_frames": 40, "frames_indices": list(range(40))}
    assert read({"array": frames, "video_metadata": whole}) == [[5, 15, 25, 35]]  # as from the file
    with_rate = {"array": frames, "video_metadata": {"fps": 20.0, "total_num_frames": 40, "duration": 2.0}}
    out = raw()([with_rate], fps=5, return_metadata=True, return_tensors="pt")
    assert numbers(out["pixel_values_videos"]) == [[1, 5, 9, 13, 17, 21, 25, 29, 33, 37]]
    assert out["video_metadata"][0].fps == 20.0 and out["video_metadata"][0].frames_indices[:3] == [1, 5, 9]
    assert read(frames, fps=5, video_metadata=[{"fps": 20.0}]) == numbers(out["pixel_values_videos"])
    assert read([frames], fps=5, video_metadata=VideoMetadata(total_num_frames=40, fps=20.0)) == numbers(
        out["pixel_values_videos"]
    )
    with pytest.raises(ValueError, match="2 entries of video_metadata were given for 1 clips"):
        read(frames, video_metadata=[{"fps": 20.0}, {"fps": 20.0}])


def test_without_sampling_every_frame_is_taken(video):
    """As transformers 5 means do_sample_frames=False, of files and of decoded frames."""
    assert read((video, 1.0, 2.0), do_sample_frames=False) == [list(range(30, 60))]
    assert read(Path(video).read_bytes(), do_sample_frames=False) == [list(range(90))]
    out = raw()({"path": video, "end": 0.5}, do_sample_frames=False, return_metadata=True)
    assert out["video_metadata"][0].frames_indices == list(range(15))


# --------------------------------------------------------------------------------------------------- videos by others


@needs_torchcodec
def test_open_video_decoders(video):
    """Catches decoders of another order of axes, the last frame, and a decoder that seeks approximately."""
    from torchcodec.decoders import VideoDecoder

    assert read(VideoDecoder(video)) == [WHOLE]
    assert read([VideoDecoder(video, dimension_order="NHWC"), video]) == [WHOLE, WHOLE]
    assert read((VideoDecoder(Path(video).read_bytes()), 1.0, 2.0)) == [PART]
    assert read((VideoDecoder(video), 2.9, None)) == read((video, 2.9, None))
    out = raw()(VideoDecoder(video), return_metadata=True)
    assert out["video_metadata"][0].video_backend == "torchcodec" and out["video_metadata"][0].total_num_frames == 90
    with pytest.raises(ClipReadError, match="approximate"):
        read(VideoDecoder(video, seek_mode="approximate"))
    with pytest.raises(ValueError, match="get_all_frames"):
        read(VideoDecoder(video), do_sample_frames=False)


@needs_torchcodec
@pytest.mark.parametrize("kind", ["paths", "parquet", "streamed"])
def test_columns_of_videos(video, tmp_path, processor, kind):
    """`processor(videos=dataset["video"])`, `map` and `with_transform`, whether the files are local or in parquet."""
    import datasets

    rows = {"video": [video] * 3, "text": ["#C C opens the door"] * 3}
    table = datasets.Dataset.from_dict(rows).cast_column("video", datasets.Video())
    if kind != "paths":
        table = table.map(
            lambda row: {"video": {"bytes": Path(video).read_bytes(), "path": "0.mp4"}},
            cache_file_name=str(tmp_path / "cache.arrow"),
        )
        table = table.cast_column("video", datasets.Video())
        table.to_parquet(tmp_path / "part.parquet")
        table = datasets.load_dataset(
            "parquet",
            data_files=str(tmp_path / "part.parquet"),
            split="train",
            streaming=kind == "streamed",
            cache_dir=str(tmp_path / "datasets"),
            features=table.features,
        )
    if kind == "streamed":
        batch = processor(
            videos=[row["video"] for row in table], text=["#C C opens the door"] * 3, return_tensors="pt"
        )
        assert numbers(batch["pixel_values_videos"]) == [WHOLE] * 3
        for row in table.decode(num_threads=2):
            assert read(row["video"]) == [WHOLE]
        return
    batch = processor(videos=table["video"], text=table["text"], return_tensors="pt")
    assert numbers(batch["pixel_values_videos"]) == [WHOLE] * 3 and len(batch["input_ids"]) == 3
    shown = table.with_transform(lambda rows: processor(videos=rows["video"], return_tensors="pt"))
    assert numbers([shown[1]["pixel_values_videos"]]) == [WHOLE]
    mapped = table.map(
        lambda rows: processor(videos=rows["video"], return_tensors="np"),
        batched=True,
        remove_columns=["video", "text"],
        cache_file_name=str(tmp_path / "mapped.arrow"),
    ).with_format("torch")
    assert numbers([mapped[2]["pixel_values_videos"].to(torch.uint8)]) == [WHOLE]  # Arrow's lists give int64
    undecoded = table.cast_column("video", datasets.Video(decode=False))
    assert numbers(processor(videos=undecoded["video"], return_tensors="pt")["pixel_values_videos"]) == [WHOLE] * 3


def write_dataset(kind: str, video: str, root: Path) -> dict:
    """A data set of two clips as people publish them, and how `datasets.load_dataset` is told to read it."""
    if kind == "videofolder":
        for name in ("a", "b"):
            shutil.copy(video, root / f"{name}.mp4")
        rows = [["file_name", "text"], ["a.mp4", "#C C opens the door"], ["b.mp4", "#C C opens the door"]]
        (root / "metadata.csv").write_text("\n".join(map(",".join, rows)))
        return {"path": "videofolder", "data_dir": str(root)}
    with tarfile.open(root / "clips.tar", "w") as tar:
        for name in ("a", "b"):
            tar.add(video, f"{name}.mp4")
            text = b"#C C opens the door"
            member = tarfile.TarInfo(f"{name}.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    return {"path": "webdataset", "data_files": str(root / "clips.tar")}


@needs_torchcodec
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["videofolder", "webdataset"])
def test_published_kinds_of_data_sets(video, tmp_path, processor, kind, streaming):
    """Catches a column whose videos are files of a folder, members of a tar file, or decoded by other threads."""
    import datasets

    (tmp_path / "data").mkdir()
    source = write_dataset(kind, video, tmp_path / "data")
    table = datasets.load_dataset(**source, split="train", streaming=streaming, cache_dir=str(tmp_path / "cache"))
    videos, texts = ("video", "text") if kind == "videofolder" else ("mp4", "txt")

    def encode(rows):
        return processor(videos=rows[videos], text=list(rows[texts]), return_tensors="np")

    if streaming:
        assert [read(row[videos]) for row in table.decode(num_threads=2)] == [[WHOLE]] * 2
        assert [read(row[videos]) for row in table.decode(False)] == [[WHOLE]] * 2
        mapped = table.map(encode, batched=True, remove_columns=table.column_names)
        shown = [row["pixel_values_videos"] for row in mapped]
    else:
        assert isinstance(table.features[videos], datasets.Video)
        batch = processor(videos=table[videos], text=table[texts], return_tensors="pt")
        assert numbers(batch["pixel_values_videos"]) == [WHOLE] * 2 and len(batch["input_ids"]) == 2
        shown = table.with_transform(encode)[:]["pixel_values_videos"]
    assert numbers(torch.as_tensor(np.asarray(shown)).to(torch.uint8)) == [WHOLE] * 2


@pytest.fixture
def address(video):
    """The video's folder, served by http on this machine."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(Path(video).parent))
    handler.log_message = lambda *arguments: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_addresses_are_refused_unless_asked_for(address, processor):
    """Catches "no such file" for a URL, and a download that nobody asked for."""
    url = address + "video.mp4"
    for clip in (url, (url, 1.0, 2.0), {"path": url}, [url, url]):
        with pytest.raises(ClipReadError, match="http://.*video.mp4: is a URL.*allow_urls=True"):
            read(clip)
    assert read(url, allow_urls=True) == [WHOLE]
    assert read({"path": url, "start": 1.0, "end": 2.0}, allow_urls=True) == [PART]
    assert numbers(processor(videos=url, allow_urls=True, return_tensors="pt")["pixel_values_videos"]) == [WHOLE]
    with pytest.raises(ClipReadError, match="gone.mp4: cannot be downloaded: .*404"):
        read(address + "gone.mp4", allow_urls=True)
    for other in ("ftp://127.0.0.1/v.mp4", "hf://datasets/a/b/v.mp4", "file:///etc/hostname", "concat://a|b"):
        with pytest.raises(ClipReadError, match="of a kind that is not read"):
            read(other, allow_urls=True)
    with pytest.raises(ValueError, match="allow_urls is given when calling"):
        SViTTEgoVideoProcessor(allow_urls=True)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_what_the_processor_does_not_take_is_an_error(processor):
    """Catches arguments that are dropped without a word."""
    frames = np.zeros((4, 64, 64, 3), np.uint8)
    with pytest.raises(TypeError, match="takes videos and text, not images.*pass it as videos"):
        processor(images=frames[0], text="#C C opens the door")
    with pytest.raises(TypeError, match="not audio"):
        processor(videos=frames, audio=np.zeros(16000))
    with pytest.raises(ValueError, match="text is an empty list"):
        processor(videos=frames, text=[])
    with pytest.raises(ValueError, match="Neither videos nor text"):
        processor()


@pytest.mark.parametrize(
    "frames, message",
    [
        (np.full((4, 8, 8, 3), 256.0), "Clip 0: values from 256 to 256 are outside 0 to 255"),
        (np.full((4, 8, 8, 3), -0.5), "values from -0.5 to -0.5 are outside 0 to 255"),
        (np.full((4, 8, 8, 3), 0.7), "would be divided by 255 a second time"),
        (torch.full((4, 3, 8, 8), 300.0), "outside 0 to 255"),
    ],
)
def test_values_outside_their_range(frames, message):
    with pytest.raises(ValueError, match=message):
        SViTTEgoVideoProcessor()(frames)


def test_values_that_were_divided_before():
    frames = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    same = {"do_resize": False, "return_tensors": "pt"}
    expected = SViTTEgoVideoProcessor()(frames, **same)["pixel_values_videos"]
    divided = SViTTEgoVideoProcessor()(frames / 255, do_rescale=False, **same)["pixel_values_videos"]
    torch.testing.assert_close(divided, expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="outside 0 to 1 .do_rescale=False is for frames"):
        SViTTEgoVideoProcessor()(frames, do_rescale=False)
    done = torch.randn(4, 3, 8, 8)
    kept = SViTTEgoVideoProcessor()(done, do_rescale=False, do_normalize=False, **same)["pixel_values_videos"]
    assert torch.equal(kept[0], done)
