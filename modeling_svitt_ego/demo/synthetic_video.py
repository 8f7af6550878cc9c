"""From the plan of a synthetic video to its frames and to H.264 files."""

import bisect
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..files.processes import end_workers, workers_ignore_interrupts
from .synthetic_plan import Action, VideoPlan
from .synthetic_scene import WORLD_HEIGHT, WORLD_WIDTH, SceneRenderer, action_pose, smoothstep

CHUNK_SECONDS = 600  # EgoVLP's layout: <video_uid>/<n>.mp4, n = floor(t / 600)


class VideoRenderer:
    """
    Draws any frame of a planned video; the looks of the scene follow from the plan's seed.

    Args:
        plan ([`VideoPlan`]): what happens.
        height (`int`): frames are (height, height, 3) uint8.
        fps (`int`): frames per second.
    """

    def __init__(self, plan: VideoPlan, height: int, fps: int):
        self.plan, self.fps = plan, fps
        rng = np.random.default_rng((*plan.seed, 1))
        self.scene = SceneRenderer(plan.objects, height, rng)
        # axis, wave, (amplitude, Hz, phase)
        self.sway = rng.uniform([0.008, 0.15, 0.0], [0.02, 0.6, 2 * math.pi], (2, 2, 3))
        self.sway[..., 0] *= plan.head_motion
        self.flicker = rng.uniform([0.01, 0.1, 0.0], [0.04, 0.7, 2 * math.pi])
        self.starts = [action.start for action in plan.actions]

    @property
    def num_frames(self) -> int:
        return round(self.plan.seconds * self.fps)

    def frame(self, number: int) -> np.ndarray:
        """Frame `number`, (height, height, 3) uint8; drawing in the order of time is fastest."""
        time, actions = number / self.fps, self.plan.actions
        current = max(0, bisect.bisect_right(self.starts, time) - 1)
        camera = tuple(
            value + sum(size * math.sin(2 * math.pi * rate * time + phase) for size, rate, phase in waves)
            for value, waves in zip(_camera_at(actions, current, time), self.sway)
        )
        light = 1.0 + self.flicker[0] * math.sin(2 * math.pi * self.flicker[1] * time + self.flicker[2])
        if not actions or time < actions[current].start:
            return self.scene.draw(actions[0].before if actions else (), camera, light)
        action = actions[current]
        if time >= action.end:
            return self.scene.draw(action.after, camera, light)
        progress = (time - action.start) / (action.end - action.start)
        noun = self.plan.objects[action.index].noun
        before, after = action.before[action.index], action.after[action.index]
        pose, reach = action_pose(action.verb, noun, before, after, progress, action.camera[1])
        return self.scene.draw(action.before, camera, light, action.index, pose, reach)


def render_frames(
    plan: VideoPlan, height: int, fps: int, first: int = 0, last: int | None = None
) -> Iterator[np.ndarray]:
    """Yields frames first .. last - 1 of a video, each (height, height, 3) uint8."""
    renderer = VideoRenderer(plan, height, fps)
    for number in range(first, renderer.num_frames if last is None else last):
        yield renderer.frame(number)


def _camera_at(actions: Sequence[Action], current: int, time: float) -> tuple[float, float]:
    """Still during an action; the head turns to the next one in the pause before it."""
    if not actions:
        return (WORLD_WIDTH - 1) / 2, (WORLD_HEIGHT - 1) / 2
    here = actions[current]
    if time < here.end or current + 1 == len(actions):
        return here.camera
    there = actions[current + 1]
    m = smoothstep((time - here.end) / (there.start - here.end))
    return tuple(a + (b - a) * m for a, b in zip(here.camera, there.camera))


def write_video(frames: Iterator[np.ndarray], path: Path, fps: int, gop: int = 15) -> int:
    """Encodes frames to H.264 with one thread, so that the bytes depend on the frames only. Returns their number."""
    import av

    count = 0
    with av.open(str(path), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        options = {"preset": "veryfast", "crf": "21", "g": str(gop), "bf": "0", "threads": "1", "tune": "fastdecode"}
        # x264's lookahead gives different bytes from run to run on frames this small.
        options["x264-params"] = "rc-lookahead=0:mbtree=0:scenecut=0"
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for array in frames:
            if count == 0:
                stream.height, stream.width = array.shape[:2]
            for packet in stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")):
                container.mux(packet)
            count += 1
        for packet in stream.encode():
            container.mux(packet)
    return count


def _render_chunk(plan: VideoPlan, chunk: int, path: Path, height: int, fps: int) -> int:
    total = round(plan.seconds * fps)
    first, last = chunk * CHUNK_SECONDS * fps, min((chunk + 1) * CHUNK_SECONDS * fps, total)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_video(render_frames(plan, height, fps, first, last), path, fps)


def render_videos(
    plans: Sequence[VideoPlan], root: Path, height: int, fps: int, num_workers: int, desc: str = "render"
) -> None:
    """Writes `<root>/<video_uid>/<n>.mp4` of every plan, files in parallel, with a progress bar in frames."""
    jobs = [
        (plan, chunk, root / plan.video_uid / f"{chunk}.mp4", height, fps)
        for plan in plans
        for chunk in range(math.ceil(plan.seconds / CHUNK_SECONDS))
    ]
    total = sum(round(plan.seconds * fps) for plan in plans)
    if num_workers <= 1:
        with tqdm(total=total, desc=desc, unit="frame") as bar:
            for job in jobs:
                bar.update(_render_chunk(*job))
        return
    with tqdm(total=total, desc=desc, unit="frame") as bar:
        for _, count in drawn_in_parallel(_render_chunk, jobs, num_workers):
            bar.update(count)


def drawn_in_parallel(function: Callable, jobs: Sequence[tuple], num_workers: int) -> Iterator[tuple[tuple, Any]]:
    """Yields (job, function(*job)) as they are done, by processes that only draw and encode."""
    # fork starts at once where it is safe
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=context) as pool:
        with workers_ignore_interrupts():
            futures = {pool.submit(function, *job): job for job in jobs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except (KeyboardInterrupt, GeneratorExit):
            end_workers()  # or the end of the pool would wait for the jobs that are running
            raise
