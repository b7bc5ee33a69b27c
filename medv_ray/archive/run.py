"""A run folder while a job writes to it: opened, resumed, committed to, finished."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self
from uuid import uuid4

from medv_ray.archive import manifest as manifests
from medv_ray.archive import pacs_listing, rows
from medv_ray.archive.chunks import Chunk
from medv_ray.archive.compact import compact, small_parts
from medv_ray.archive.folder import (
    EVENTS,
    OWN,
    check_is_run_folder,
    check_outside,
)
from medv_ray.archive.key_set import KeySet
from medv_ray.archive.ledger import FILE as LEDGER
from medv_ray.archive.ledger import FOLDER as LEDGER_FOLDER
from medv_ray.archive.ledger import Ledger
from medv_ray.archive.lock import NAME as LOCK
from medv_ray.archive.lock import Lock
from medv_ray.archive.mapping import merge_mapping
from medv_ray.archive.plan import Plan
from medv_ray.archive.prior import FOLDER as INPUTS
from medv_ray.archive.prior import PlannedFile, images_file
from medv_ray.archive.pseudonyms import FOLDER as PRIVATE
from medv_ray.archive.pseudonyms import Pseudonyms
from medv_ray.archive.rows import Part
from medv_ray.archive.store import Store, writing
from medv_ray.archive.summary import Summary, not_scored, summarize, write_metrics
from medv_ray.errors import DataError, RunError
from medv_ray.files import append

MERGE_AFTER = 2000


class Run:
    """The one writer of a run folder. Use as a context manager: it holds the lock."""

    def __init__(self, store: Store, plan: Plan, lock: Lock) -> None:
        self.store = store
        self.plan = plan
        self.lock = lock
        self.session = uuid4().hex[:12]
        self.ledger = Ledger(store)
        self.manifest: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self.skipped: dict[str, tuple[str, int]] = {}
        self._source_keys = KeySet(plan.chunks.source_keys())
        self.open_chunks = len(plan.chunks)
        """How many are not committed yet, or are to be tried again."""
        self._first_open = 0  # no chunk of the plan before this one is open
        self._parts = 0  # small files of rows/, those that a retry replaced since included
        self._events: list[str] = []
        self.pseudonyms: Pseudonyms | None = None
        self._retry_until = 0  # number of the last commit that may be superseded

    @classmethod
    def open(
        cls,
        out: str,
        plan: Plan,
        identity: dict[str, Any],
        *,
        new_run: bool = False,
        allow_mixed: bool = False,
        allow_added: bool = False,
        take_over: bool = False,
        retry_quarantined: bool = False,
        pseudonyms: Pseudonyms | None = None,
        keep: Callable[[], None] = lambda: None,
        sources: Mapping[str, str] | None = None,
    ) -> Run:
        """Take the folder, and continue the run in it or begin one.

        `identity` is nested plain data: settings, model and code; the plan adds the input's.
        `retry_quarantined` opens chunks with quarantined rows again (their answered rows are
        answered again too), and accepts that images which rows name by path have changed.
        `allow_added` accepts new files and new rows behind the ones that the run has.
        `keep` is called before anything is written: it stores the salt of the `pseudonyms`.
        `sources`: commits of a hub that model and input came from; recorded, and not compared, as
        the digests of what they hold are.
        Raises RunError: E1501 in use, E1502 another run's (the fields are named), E1506 damaged,
        E1507 no run folder or inside the input.
        """
        check_outside(out, plan)
        store = Store(out)
        check_is_run_folder(store)
        store.make()
        run = cls(store, plan, Lock(store))
        run.pseudonyms = pseudonyms
        run._sources = dict(sources or {})
        run.lock.acquire(take_over)
        try:
            if new_run:
                run._wipe()
            keep()
            run._begin({**identity, **plan.identity()}, allow_mixed, allow_added, retry_quarantined)
        except BaseException:
            run.lock.release()
            raise
        return run

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the folder go. What was committed stays."""
        try:
            self._flush_events()
        finally:
            self.lock.release()

    def _begin(
        self, identity: dict[str, Any], allow_mixed: bool, allow_added: bool, retry: bool
    ) -> None:
        found = manifests.read_manifest(self.store)
        mixed: list[Any] = []
        grown: list[Any] = []
        if found is not None:
            self._check_version(found)
            mixed, grown = found["mixed_with"], found["grown"]
            before = found["identity"]
            if not allow_mixed:
                self._refuse_changes(before, identity, allow_added, retry)
                self._check_basis(found["files"])
            elif self.plan.changes(before, identity):
                mixed = [*mixed, before]
            if self.plan.growth.rows:
                grown = [*grown, {"time": time.time(), "rows": self.plan.growth.rows}]
        inputs = self._write_inputs(found)
        started = time.time() if found is None else found["started"]
        self.manifest = {
            "version": manifests.VERSION,
            "identity": identity,
            "kind": self.plan.archive.kind,
            # as json reads it back, to compare
            "files": json.loads(json.dumps(self.plan.files)),
            "inputs": inputs,
            "split": self.plan.split,
            "mixed_with": mixed,
            "grown": grown,
            "processors": [] if found is None else found["processors"],
            "started": started,
            **({"sources": self._sources} if self._sources else {}),
        }
        if found != {**self.manifest, "sha256": (found or {}).get("sha256")}:
            manifests.write_manifest(self.store, self.manifest)
        self.ledger = Ledger.load(self.store, repair=True)
        stale = sorted(self._source_keys.missing(self.ledger.commits))
        if stale:  # the input changed under --allow-mixed: those rows are cut otherwise now
            self.ledger.append({"op": "drop", "source_keys": stale})
        self._check_files()  # first: of a ledger that lost lines, the sweep would take sound rows
        self._sweep()
        if retry:
            self._retry_until = self.ledger.number
        done = len(self.ledger.commits)
        self.open_chunks = len(self.plan.chunks) - sum(map(self._is_closed, self.ledger.commits))
        self._parts = len(small_parts(self.ledger))
        self.event("open", session=self.session, chunks=len(self.plan.chunks), done=done)

    @staticmethod
    def _check_version(found: dict[str, Any]) -> None:
        if found["version"] != manifests.VERSION:
            versions = f"{found['version']}, this one writes {manifests.VERSION}"
            raise RunError("E1502", f"the run folder has the form of version {versions}.")

    def _refuse_changes(
        self, before: dict[str, Any], now: dict[str, Any], allow_added: bool, retry: bool
    ) -> None:
        if retry and not self.plan.archive.by_image:
            before = {**before, "images": now["images"]}
            growth = self.plan.growth._replace(lost=(), new_images=())
            self.plan = replace(self.plan, growth=growth)
        changes = self.plan.changes(before, now, allow_added)
        can_grow = changes and not self.plan.changes(before, now, allow_added=True)
        growth = self.plan.growth
        hint = " --allow-added scores what was added and keeps the rest." if can_grow else ""
        if can_grow and growth.new_images and not (growth.rows or growth.longer):
            hint = " --allow-added --retry-quarantined scores the rows whose images have come."
        manifests.refuse(changes, hint)

    def _check_basis(self, files: list[Any]) -> None:
        """Raises RunError E1502 when the plan was made before another job let the run grow."""
        planned = {file.name: file.pieces for file in self.plan.files}
        for found in map(PlannedFile.from_json, files):
            if planned[found.name][: len(found.pieces)] != found.pieces:
                raise RunError("E1502", "the run grew since this job planned it: start it again.")

    def _write_inputs(self, found: dict[str, Any] | None) -> dict[str, str] | None:
        """Have the list of images in place before run.json names it."""
        if not self.plan.inputs:
            return None
        name, data, sha256 = images_file(self.plan.inputs)
        entry = {"file": name, "sha256": sha256}
        if found is None or found["inputs"] != entry:
            if self.plan.archive.kind == "dicomweb":
                pacs_listing.keep(self.store, self.plan.archive.salt, self.plan.archive.instances)
            self.store.write(name, data)
        return entry

    def _wipe(self) -> None:
        """A kill at any point leaves a run without rows, or none: the ledger goes first, run.json
        last but for the list of images, which it names."""
        order = {LEDGER: 0, LEDGER_FOLDER: 0, manifests.FILE: 2, INPUTS: 3, PRIVATE: 3}
        top_of = {file.name: file.name.partition("/")[0] for file in self.store.listing()}
        for name, top in sorted(top_of.items(), key=lambda one: order.get(one[1], 1)):
            if top != LOCK and top.removesuffix(".tmp") in OWN:
                self.store.delete(name)

    def _sweep(self) -> None:
        """Remove what dead writers left: hidden files, and files that no ledger record names."""
        left = []
        for file in self.store.listing():
            hidden = file.name.endswith(".tmp")
            orphan = file.name.startswith(f"{rows.FOLDER}/") and file.name not in self.ledger.files
            inputs = (self.manifest["inputs"] or {}).get("file")
            orphan |= file.name.startswith(f"{INPUTS}/") and file.name != inputs
            if hidden or orphan:
                left.append(file.name)
        self.store.each(self.store.delete, left)

    def _check_files(self) -> None:
        there = {file.name: file.size for file in self.store.listing(rows.FOLDER)}
        for name, part in self.ledger.files.items():
            # a listing may be late
            if there.get(name) != part.size and self.store.size(name) != part.size:
                raise RunError("E1506", f"{name} is missing or has another size than committed.")

    def todo(self, most: int | None = None) -> list[Chunk]:
        """The first so many chunks that are not committed yet, in the plan's order; chunks that
        could not be read in this session are among them."""
        found: list[Chunk] = []
        for index in range(self._first_open, len(self.plan.chunks)):
            if self._is_closed(self._source_keys.at(index)):
                continue
            if not found:
                self._first_open = index
            found.append(self._again(self.plan.chunks[index]))
            if len(found) == most:
                break
        return found

    def settled(self) -> dict[str, int]:
        """Rows by status, of the chunks that are not open."""
        return self.ledger.counts(filter(self._is_closed, self.ledger.commits))

    def _is_closed(self, source_key: str) -> bool:
        commit = self.ledger.commits.get(source_key)
        return commit is not None and not (
            commit.quarantined > 0 and commit.number <= self._retry_until
        )

    def _again(self, chunk: Chunk) -> Chunk:
        """A chunk that is committed already and tried again gets a key of its own."""
        commit = self.ledger.commits.get(chunk.source_key)
        if commit is None:
            return chunk
        key = hashlib.sha256(f"{commit.key} again".encode()).hexdigest()[:32]
        return replace(chunk, key=key)

    def commit(self, part: Part) -> bool:
        """Make a written part count. False when its chunk was committed already."""
        return self.commit_all([part])[0]

    def commit_all(self, parts: Sequence[Part]) -> list[bool]:
        """Make written parts count, together: a wait for the disk costs the same for one and for
        many. False for one whose chunk was committed already."""
        if not parts:
            return []
        self.lock.check()
        taken: dict[str, Part] = {}
        said = []
        for part in parts:
            said.append(part.source_key not in taken and self._is_wanted(part))
            if said[-1]:
                taken[part.source_key] = part
        for part in parts:
            if taken.get(part.source_key) != part and part.hidden not in self.ledger.files:
                self.store.delete(part.hidden)
        if not taken:
            return said
        if self.store.local:
            if not all(self.store.exists(part.hidden) for part in taken.values()):
                raise RunError(
                    "E1511", "a part is not there: all machines of a job must share the output."
                )
            self.store.reveal_all((part.hidden, part.name) for part in taken.values())
        self.ledger.append(*map(commit_record, taken.values()))
        self.open_chunks -= len(taken)
        for source_key in taken:
            self.skipped.pop(source_key, None)
        self._parts += len(taken)
        if self._parts >= MERGE_AFTER:
            self._compact()
        return said

    def _is_wanted(self, part: Part) -> bool:
        committed = self.ledger.commits.get(part.source_key)
        repeated = committed is not None and committed.key == part.key
        is_planned = part.source_key in self._source_keys
        return is_planned and not repeated and not self._is_closed(part.source_key)

    def note_processor(self, name: str) -> None:
        """Record a kind of CPU or GPU that answers rows of this run, in run.json."""
        if name not in self.manifest["processors"]:
            self.lock.check()
            self.manifest["processors"].append(name)
            manifests.write_manifest(self.store, self.manifest)

    def skip(self, chunk: Chunk, error: DataError) -> None:
        """Note that a chunk could not be read: it stays open, and the job ends with exit code 1."""
        name = self.plan.files[chunk.file].name
        self.skipped[chunk.source_key] = (name, len(chunk.rows))
        self.event("skip", code=error.code, file=self._named(name), rows=len(chunk.rows))

    def finish(self, kinds: Mapping[str, str] | None = None) -> Summary:
        """Account for every row, compact, write quarantine and metrics. `kinds` maps ids to kinds
        of question, whose accuracy is then given, too.

        Raises RunError E1510 unless answered + abstained + quarantined + not scored = rows.
        """
        self.lock.check()
        rest = not_scored(self.plan, self.ledger, self.skipped)
        self._compact()
        self._sweep()
        summary = summarize(self.store, self.plan, self.ledger, rest, kinds)
        files = sorted({name for name, _ in self.skipped.values()})
        write_metrics(self.store, self.plan, summary, files, self._named)
        self.event("finish", rows=summary.rows, quarantined=summary.quarantined)
        return summary

    def _named(self, file: str) -> str:
        """What stands for the name of an input file in metrics.json and events.jsonl."""
        return file if self.pseudonyms is None else self.pseudonyms.of_file(file)

    def _compact(self) -> None:
        compact(self.store, self.ledger, self.lock.check)
        self._parts = len(small_parts(self.ledger))
        if self.pseudonyms is not None and self.pseudonyms.mapping:
            merge_mapping(self.store, self.ledger.commits.keys())

    def event(self, event: str, **fields: Any) -> None:
        """Note something in events.jsonl: counts, codes and file names, never row content."""
        line = json.dumps({"time": time.time(), "event": event, **fields}) + "\n"
        if self.store.local:
            path = self.store.path(EVENTS)
            with writing(path, len(line)), open(path, "ab", buffering=0) as file:
                append(file.fileno(), line.encode())
        else:
            self._events.append(line)

    def _flush_events(self) -> None:
        if self._events:
            data = "".join(self._events).encode()
            self.store.write(f"events/{self.session}.jsonl", data)


def commit_record(part: Part) -> dict[str, Any]:
    """A part as the ledger names it."""
    record = part.to_json()
    del record["hidden"]
    record["part"] = record.pop("name")
    return {"op": "commit", **record}
