"""What all decoders share: the error, the file to read, and what a file says about its video stream."""

import http.client
import os
import re
import urllib.request
from dataclasses import dataclass
from typing import Any

# A frame that begins within this after t counts as begun: times arrive rounded to milliseconds.
TIME_TOLERANCE = 1e-3
_MOST_BYTES = 2**31  # of a download
_SECONDS_WITHOUT_DATA = 60
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # a single letter is a drive of Windows


class ClipReadError(ValueError):
    """A clip that cannot be read: the message names the file and the numbers at fault."""


class Unreadable(Exception):
    """One decoder's reason for not reading a file; the caller adds the file's name."""


@dataclass(frozen=True)
class VideoSource:
    """
    A video file on disk or in memory.

    Args:
        name (`str`): The path, or a name for messages where `data` is given.
        data (`bytes`, *optional*): The content of the file; `None` to read the file called `name`.
    """

    name: str
    data: bytes | None = None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return os.path.getsize(self.name) if self.data is None else len(self.data)


@dataclass(frozen=True)
class VideoInfo:
    """
    What a file says about its video stream; the same for every decoder.

    Args:
        path (`str`): The file.
        backend (`str`): The decoder that opened it.
        duration (`float`): Seconds from the beginning of the first frame to the end of the last.
        fps (`float`): Mean frames per second.
        num_frames (`int`, *optional*): Number of frames, `None` where the container does not say.
        height (`int`): Height of the upright picture, after the file's display matrix; 0 before a frame is decoded.
        width (`int`): Width of the upright picture, like `height`.
        start_time (`float`): Time of the first frame on the file's own clock, in seconds.
        codec (`str`, *optional*): Name of the codec.
    """

    path: str
    backend: str
    duration: float
    fps: float
    num_frames: int | None
    height: int
    width: int
    start_time: float
    codec: str | None

    @property
    def tolerance(self) -> float:
        """Seconds by which a frame may begin after t and still be the frame at t: 1 ms, less above 250 fps."""
        return min(TIME_TOLERANCE, 0.25 / self.fps)


def is_url(value: Any) -> bool:
    """Whether `value` is text of the form `scheme://…`."""
    return isinstance(value, str) and _URL.match(value) is not None


def name_of(video: Any) -> str:
    """What messages call a path, a [`VideoSource`], an open file or bytes."""
    name = getattr(video, "name", video)
    return os.fspath(name) if isinstance(name, (str, os.PathLike)) else "<video in memory>"


def as_source(video: Any, allow_urls: bool = False) -> VideoSource:
    """
    A video source from a path, `bytes`, a binary file object or a [`VideoSource`].

    Args:
        allow_urls (`bool`): Download http and https addresses into memory instead of refusing them.

    Raises:
        ClipReadError: The path is a URL or a directory, is missing or empty, or may not be read.
    """
    if isinstance(video, VideoSource):
        source = video
    elif isinstance(video, (bytes, bytearray, memoryview)):
        source = VideoSource("<video in memory>", bytes(video))
    elif hasattr(video, "read"):
        source = _read_file_object(video)
    else:
        source = VideoSource(os.fspath(video))
    name = source.name
    if source.data is None:
        if is_url(name):
            return _download(name, allow_urls)
        if os.path.isdir(name):
            raise ClipReadError(f"{name}: is a directory, not a video.")
        if not os.path.isfile(name):
            raise ClipReadError(f"{name}: no such file.")
        if not os.access(name, os.R_OK):
            raise ClipReadError(f"{name}: this user may not read it.")
    if source.size == 0:
        raise ClipReadError(f"{name}: is empty (0 bytes).")
    return source


def _download(url: str, allow_urls: bool) -> VideoSource:
    if not url.lower().startswith(("http://", "https://")):
        raise ClipReadError(f"{url}: is a URL of a kind that is not read. Download it first.")
    if not allow_urls:
        raise ClipReadError(
            f"{url}: is a URL, and only local files are read. Download it first, or pass allow_urls=True."
        )
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS_WITHOUT_DATA) as response:
            data = response.read(_MOST_BYTES + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ClipReadError(f"{url}: cannot be downloaded: {one_line(error)}") from error
    if not data or len(data) > _MOST_BYTES:
        raise ClipReadError(f"{url}: gives {'no' if not data else f'more than {_MOST_BYTES}'} bytes.")
    return VideoSource(url, data)


def _read_file_object(file) -> VideoSource:
    name = getattr(file, "name", None)
    if getattr(file, "seekable", lambda: False)():
        file.seek(0)
    data = file.read()
    if not isinstance(data, bytes):
        raise ClipReadError(f"{name or file!r}: a file object must be opened in binary mode.")
    return VideoSource(name if isinstance(name, str) else "<video in memory>", data)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, at most 300 characters."""
    # FFmpeg's error numbers and names of functions tell a user nothing.
    of_ffmpeg = hasattr(error, "log") and getattr(error, "strerror", None)
    text = " ".join(str(of_ffmpeg or error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
