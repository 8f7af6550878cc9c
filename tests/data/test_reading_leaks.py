"""10,000 clips through each decoder: memory and open files stay where they were. Fewer with SVITT_EGO_LEAK_CLIPS."""

import os

import pytest

from modeling_svitt_ego.model.clip_reading import BACKENDS, ClipReadError, read_clip
from tests.helpers.painted_video import is_usable
from tests.helpers.tiny_data import write_video

NUM_CLIPS = int(os.environ.get("SVITT_EGO_LEAK_CLIPS", 10_000))


def resident_mb() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads memory from /proc")
@pytest.mark.parametrize("backend", list(filter(is_usable, BACKENDS)))
def test_memory_files_and_threads_stay_flat(tmp_path, backend):
    """Catches a reader, a frame or an error kept per clip (10 kB each would be 100 MB), and threads that pile up."""
    good = write_video(tmp_path / "v.mp4", 40, size=(64, 96))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(good.read_bytes()[: good.stat().st_size // 2])

    def read(count):
        for i in range(count):
            read_clip(good, [0.1 * (i % 30), 0.1 * (i % 30) + 0.5, 3.9], backend)
            if i % 10 == 0:
                with pytest.raises(ClipReadError):
                    read_clip(broken, [0.0], backend)

    read(300)  # pools and caches fill
    before = resident_mb(), len(os.listdir("/proc/self/fd")), num_threads()
    read(NUM_CLIPS)
    after = resident_mb(), len(os.listdir("/proc/self/fd")), num_threads()
    print(f"{backend}, {NUM_CLIPS} clips: (MB, files, threads) {before} before, {after} after")  # pytest -s shows it
    assert after[0] - before[0] < 20, f"{before[0]:.0f} MB before, {after[0]:.0f} MB after {NUM_CLIPS} clips"
    assert after[1] <= before[1] and after[2] <= before[2], (before, after)
    assert num_threads() < 16
