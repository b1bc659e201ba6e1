"""`siftune run --ray`: the shards of a run made by Ray actors, one a GPU, or one for the CPU threads of a worker.

The files hold the state, Ray only schedules: it carries numbers of shards, and errors. An actor claims a shard and writes it as any worker
does, so the bytes are those of a run without Ray, and what is cut off goes on with Ray or without.

A shard that fails is handed out again, three times in all, to another actor where one is free; then its error is kept while the others
are made. An actor that dies, or fails twice running, is replaced: one on a bad machine must not use up the tries of everybody's shards.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, NamedTuple

from siftune.datastore.plan import Shard
from siftune.datastore.shards import shard_notes
from siftune.pipeline.machine import device_of
from siftune.pipeline.scoring import GRADED
from siftune.pipeline.session import Session
from siftune.pipeline.shard_maker import ShardMaker, Store, unfinished_stores
from siftune.records.errors import SiftuneError

TRIES = 3
"""How often a shard is handed out; how many actors may die for each that is wanted."""
LOOK = 1.0
"""Seconds between looks at whether a person has asked to stop."""


def make_on_ray(session: Session) -> None:
    """Make what is missing of the pool's features and vectors on the Ray cluster that is connected to; its machines must see the run.

    Raises SiftuneError where the cluster has no room and, once all other shards are made, for those that failed.
    """
    stores = unfinished_stores(session)
    if not stores:
        return
    actors = _Actors(session)
    try:
        errors = [error for store in stores for error in _made(session, store, actors)]
    finally:
        actors.stop()
    if session.recipe.method not in GRADED:  # else the stage of features does so
        session.update_index()
    if errors:
        raise SiftuneError(
            f"shards that failed {TRIES} times: {len(errors)}, the others are made; the first is {errors[0]}",
            where=str(session.path / "log.jsonl"),
            todo="Run the same command again once that is put right: it makes these alone",
        )


def _made(session: Session, store: Store, actors: _Actors) -> list[str]:
    """Make the missing shards of a store; the error of each that failed."""
    shards = [shard for shard in session.pool.plan.shards if shard_notes(store.folder, shard) is None]
    rows, n_rows = sum(len(shard) for shard in shards), session.pool.plan.n_rows
    waiting, left, tries, errors = deque(shards), len(shards), Counter[int](), list[str]()
    with (
        session.log.stage(store.stage) as details,
        session.reporter.bar(store.title, n_rows, "rows", n_rows - rows) as advance,
    ):
        actors.load(store, len(shards))
        while left:
            while waiting and actors.free:
                actors.hand_out(store, waiting.popleft())
            for shard, error in actors.ended(store):
                if error is None:
                    advance(len(shard))
                    left -= 1
                    continue
                tries[shard.number] += 1
                about = {"store": store.stage, "shard": shard.name, "tries": tries[shard.number]}
                session.log.event("shard failed", **about, error=error)
                if tries[shard.number] < TRIES:
                    waiting.append(shard)
                else:
                    errors.append(f"{store.folder.name}/{shard.name}: {error}")
                    left -= 1
            advance(0)  # which is where a person's wish to stop is heard
        details |= {"rows": rows, "actors": actors.wanted}
    return errors


class Ended(NamedTuple):
    """A shard that an actor is done with, and its error if there was one."""

    shard: Shard
    error: str | None


class _Actors:
    """The actors of a run: free, or busy with a shard or (None) with loading.

    `ray.util.ActorPool` does the like, but doesn't say which task an error belongs to.
    """

    def __init__(self, session: Session):
        import ray

        on_gpus = device_of(session.recipe).type == "cuda"
        kind, each = ("GPU", 1) if on_gpus else ("CPU", session.recipe.worker_threads or 1)
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self.wanted = sum(int(resources.get(kind, 0) // each) for resources in machines)
        if not self.wanted:
            raise SiftuneError(
                f"no machine of the cluster has {each} {kind} for an actor",
                where="--ray",
                todo="Give another cluster, or leave out --ray",
            )
        cpus, gpus = (0, 1) if on_gpus else (each, 0)
        self.kind: Any = ray.remote(max_restarts=0, num_cpus=cpus, num_gpus=gpus)(ShardMaker)
        self.log = session.log
        self.asked = (str(session.path.resolve()), session.choice())
        self.lives = TRIES * self.wanted
        self.free: list[Any] = []
        self.busy: dict[Any, tuple[Any, Shard | None]] = {}
        self.failed: dict[Any, list[int]] = {}
        """Shards that an actor failed at, one after another."""

    def load(self, store: Store, n_shards: int) -> None:
        """Have as many actors as are of use, new ones among them, make ready for a store; each is free once it is."""
        idle, self.free = self.free, []
        new = (
            min(self.wanted, n_shards) - len(idle) - len(self.busy)
        )  # some may be loading since the store before
        for actor in [*idle, *(self.kind.remote(*self.asked) for _ in range(new))]:
            self._begin(actor, store)

    def _begin(self, actor: Any, store: Store) -> None:
        self.busy[actor.load.remote(store.checkpoint)] = (actor, None)

    def hand_out(self, store: Store, shard: Shard) -> None:
        """Give a shard to a free actor, one that hasn't just failed at it if there is one."""
        actor = min(self.free, key=lambda free: shard.number in self.failed.get(free, []))
        self.free.remove(actor)
        self.busy[actor.make.remote(store.checkpoint, shard.number)] = (actor, shard)

    def ended(self, store: Store) -> list[Ended]:
        """What ended within a moment. A dead actor is replaced while there are lives left."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        if not self.busy:
            raise SiftuneError(
                f"all actors died or failed, {TRIES} times each",
                where=f"{self.asked[0]}/log.jsonl",
                todo="See there and in Ray's logs why; fewer threads and smaller --batch-tokens take less memory",
            )
        found: list[Ended] = []
        done, _ = ray.wait(list(self.busy), timeout=LOOK)
        for task in done:
            actor, shard = self.busy.pop(task)
            error = None
            try:
                ray.get(task)
            except RayTaskError as failed:
                error = str(failed.cause) if isinstance(failed.cause, SiftuneError) else repr(failed.cause)
                if shard is None:
                    raise SiftuneError(f"an actor can't begin: {error}", where="--ray") from failed
                self.failed.setdefault(actor, []).append(shard.number)
                if len(self.failed[actor]) < 2:
                    self.free.append(actor)
                else:
                    ray.kill(actor)
                    self._replace(actor, error, store)
            # The actor's end or its machine's, or Ray killed it for the memory that it took
            except RayError as died:
                error = f"the actor that made it died ({str(died).splitlines()[0]})"
                self._replace(actor, error, store)
            else:
                self.failed.pop(actor, None)
                self.free.append(actor)
            if shard is not None:
                found.append(Ended(shard, error))
        return found

    def _replace(self, actor: Any, why: str, store: Store) -> None:
        """Another actor for one that is gone, while there are lives left."""
        self.log.event("actor gone", why=why)
        self.failed.pop(actor, None)
        self.lives -= 1
        if self.lives > 0:
            self._begin(self.kind.remote(*self.asked), store)

    def stop(self) -> None:
        """End all actors."""
        import ray

        for actor in [*self.free, *(actor for actor, _ in self.busy.values())]:
            ray.kill(actor)
