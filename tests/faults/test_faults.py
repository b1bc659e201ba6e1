"""A part of `make faults` in seconds: nothing is lost, and the run that is carried on has the bytes of an undisturbed one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from disturbing import broken_numbers, damage, disk, kills
from disturbing.forks import Forks
from disturbing.scene import Outcome, Scene

SEED = 1


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("faults")
    with Forks(folder / "logs") as forks:
        yield Scene(folder, forks)


def assert_good(found: Outcome | None) -> None:
    if found is None:
        pytest.skip("this process may not mount a file system")
    assert found.good, found


def test_an_undisturbed_run_is_like_itself(scene: Scene) -> None:
    """The measure can fail: a file that differs is seen, and a row that lacks."""
    whole = scene.finished
    assert whole.same(whole.path)
    assert whole.lost(whole.path) == 0
    assert whole.calls["replace"] > 50
    assert scene.warm.exists()
    assert not whole.same(scene.warm)


@pytest.mark.parametrize("name", ["run", "select"])
def test_killed_at_a_random_moment(scene: Scene, name: str) -> None:
    found = kills.at_a_moment(scene, kills.KILL, name, SEED, "test")
    assert found.happened
    assert_good(found)


def test_killed_beside_a_rename_or_sync(scene: Scene) -> None:
    assert_good(kills.at_a_call(scene, "append", SEED, "test"))


def test_ctrl_c_at_a_random_moment(scene: Scene) -> None:
    assert_good(kills.at_a_moment(scene, kills.CTRL_C, "append", SEED, "test"))


def test_one_of_several_workers_killed(scene: Scene) -> None:
    assert_good(kills.among_workers(scene, SEED, "test"))


def test_a_worker_that_wakes_up_after_others_made_its_shard(scene: Scene) -> None:
    found = kills.frozen(scene, SEED, "test", at=["replace", 4, "after", "SIGSTOP"])
    assert found.happened
    assert_good(found)


def test_a_worker_that_wakes_up_in_the_middle_of_a_write(scene: Scene) -> None:
    found = kills.frozen(scene, SEED, "test", at=["replace", 4, "before", "SIGSTOP"])
    assert found.happened
    assert_good(found)


def test_a_target_is_done_with_its_last_file(scene: Scene) -> None:
    """A kill between a target's vectors and what says that they are whole is made good by the next run."""
    like = scene.finished
    with scene.place(like.path) as out:
        (out / "targets/sums/vectors/rds+.safetensors").unlink()  # its side-car came first
        scene.forks.must(*scene.run(out))
        assert like.same(out)


def test_a_store_that_was_cut_off_before_its_manifest(scene: Scene) -> None:
    """Its folder is there and holds nothing yet."""
    like = scene.finished
    with scene.place(like.path) as out:
        shutil.rmtree(out / "datastore/rds+/0")
        (out / "datastore/rds+/0").mkdir()
        scene.forks.must(*scene.run(out))
        assert like.same(out)


def test_two_runs_in_one_directory(scene: Scene) -> None:
    assert_good(kills.at_once(scene, SEED, "test"))


def test_a_full_disk(scene: Scene) -> None:
    assert_good(disk.full(scene, SEED, "test"))


def test_a_full_disk_at_a_rename_or_sync(scene: Scene) -> None:
    assert_good(disk.failing_call(scene, "append", SEED, "test"))


def test_a_directory_that_is_read_only(scene: Scene) -> None:
    assert_good(disk.read_only(scene, "select"))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("pool/index.parquet", "one bit flipped"),
        ("checkpoints/1/adam_state.safetensors", "one bit flipped"),
        ("datastore/less/1/shard-00002.safetensors", "cut short"),
        ("targets/sums/features/1.json", "removed"),
    ],
)
def test_a_damaged_file_is_named_and_never_used(scene: Scene, name: str, way: str) -> None:
    assert_good(damage.damaged(scene, name, way, SEED))


def test_weights_that_are_no_numbers(scene: Scene) -> None:
    assert_good(broken_numbers.not_a_number(scene, "model, vectors alone"))
