"""Ids of videos, as annotation files give them: untrusted, and about to become part of a path.

A separate file, so that the annotation loaders import neither torch nor a video decoder.
"""

from ..files.plain_names import check_plain_name


def check_video_uid(video_uid: str) -> str:
    """Return `video_uid` if it is a plain file name; an annotation file must never lead out of the video root.

    Raises:
        ValueError: It is empty, longer than 200 bytes of UTF-8, has a slash, backslash, colon or control character,
            or is `.` or `..`.
    """
    return check_plain_name(video_uid, "video_uid", "the video root")
