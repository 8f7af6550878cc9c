"""Decoding as few frames as possible: of H.264, frames that no other refers to are skipped unless they were asked for.

In files with two or three such frames in a row, as `svitt-ego prepare` writes them, a third of the frames is decoded.
"""

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence

# Packets; a frame is stored at most 16 places from where it is shown (H.264, max_dec_frame_buffering).
LOOK_AHEAD = 20


class NeededFrames:
    """
    The frames of a stream from the container's position on, in order of display, with all that `targets` need.

    Args:
        container (`av.container.InputContainer`): The open file, at a key frame.
        stream (`av.video.stream.VideoStream`): An H.264 stream whose packets have times.
        targets (sequence of `float`): Ticks in increasing order; the frame needed at t is the last with pts <= t.

    Attributes:
        complete (`bool`): Whether the frames ended because no more are needed, and not because the file ended.
    """

    def __init__(self, container, stream, targets: Sequence[float]):
        self.context, self.packets, self.targets = stream.codec_context, container.demux(stream), targets
        self.passed: deque[int] = deque(maxlen=LOOK_AHEAD)
        self.waiting: deque = deque()
        self.complete, self.may_skip = False, True
        self.frames = self._decode()

    def __iter__(self) -> Iterator:
        return self.frames

    def __next__(self):
        return next(self.frames)

    def _decode(self) -> Iterator:
        last_was_fed = False
        while packet := self._next_packet():
            needs = self._needs(packet)
            self.context.skip_frame = "DEFAULT" if needs or not self.may_skip else "NONREF"
            if _is_shown(packet):
                self.passed.append(packet.pts)
                last_was_fed = last_was_fed or (needs and self._next_pts(packet) > self.targets[-1])
            for frame in packet.decode():
                # The two fields of a frame may differ in whether others refer to them.
                self.may_skip = self.may_skip and not frame.interlaced_frame
                yield frame
            if packet.size and last_was_fed and not any(self._needs(other) for other in self.waiting):
                self.complete = True
                yield from self.context.decode(None)
                return

    def _next_packet(self):
        while len(self.waiting) <= LOOK_AHEAD:
            packet = next(self.packets, None)
            if packet is None:
                break
            self.waiting.append(packet)
        return self.waiting.popleft() if self.waiting else None

    def _next_pts(self, packet) -> float:
        """When the next frame is shown."""
        after = [pts for pts in self.passed if pts > packet.pts]
        after += [other.pts for other in self.waiting if _is_shown(other) and other.pts > packet.pts]
        return min(after, default=math.inf)

    def _needs(self, packet) -> bool:
        """Whether a target is between the beginning of this frame and that of the next."""
        if not _is_shown(packet):
            return packet.pts is None  # the end of the stream, which makes the decoder give what it holds
        place = bisect_left(self.targets, packet.pts)
        return place < len(self.targets) and self.targets[place] < self._next_pts(packet)


def _is_shown(packet) -> bool:
    return packet.pts is not None and not packet.is_discard
