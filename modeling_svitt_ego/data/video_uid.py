"""Names of videos, as annotation files give them: untrusted, and about to become part of a path.

A file of its own so that the annotation loaders need neither torch nor a video decoder.
"""


def check_video_uid(video_uid: str) -> str:
    """Return `video_uid` if it is a plain file name; an annotation file must never lead outside the video root."""
    plain = isinstance(video_uid, str) and 0 < len(video_uid) <= 200 and video_uid not in (".", "..")
    if not plain or any(c in "/\\:" or ord(c) < 32 for c in video_uid):
        raise ValueError(
            f"video_uid {video_uid!r:.220} is not a plain file name (1 to 200 characters, none of / \\ : or control "
            "characters, not . or ..), so it could point outside the video root."
        )
    return video_uid
