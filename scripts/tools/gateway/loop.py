"""The gateway's loop: what Orthanc has received waits in a file, is predicted, stored back, and told in a log."""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from breast_ultrasound.dicom import MAKER, ULTRASOUND

from .health import Health
from .orthanc import Away, Fault, Gone, Orthanc
from .state import State, Waiting
from .worker import Crash, Worker

logger = logging.getLogger("gateway")
ATTEMPTS = 3  # of an object on which Orthanc or the prediction fails
LONGEST_WAIT = 60.0  # seconds between two attempts to reach Orthanc


class Described(NamedTuple):
    """What Orthanc tells of an object: its study and series in Orthanc, UIDs, and the tags of its series."""

    study: str
    series: str
    uids: dict[str, str]
    modality: str
    maker: str
    stable: bool


class Gateway:
    """Answers what Orthanc receives.

    Args:
        orthanc: the server.
        worker: predicts.
        state: what is remembered.
        health: the page.
        log: file that gets a line for each image and each study.
        poll: seconds between two looks at an idle Orthanc.
    """

    def __init__(
        self, orthanc: Orthanc, worker: Worker, state: State, health: Health, log: Path, poll: float = 2.0
    ) -> None:
        self.orthanc, self.worker, self.state, self.health = orthanc, worker, state, health
        self.log, self.poll = log, poll

    def run(self) -> None:
        """Work until the process is stopped.

        Raises:
            PermissionError: Orthanc refuses the credentials.
            sqlite3.DatabaseError: what is remembered is damaged.
        """
        wait, away = self.poll, ""
        while True:
            problem = self._try()
            self.health.update(self.state)
            if problem and problem != away:
                logger.warning(f"{problem}; trying again until it works")
            elif away and not problem:
                logger.info("it works again")
            if problem:
                time.sleep(wait)
            away, wait = problem, min(2 * wait, LONGEST_WAIT) if problem else self.poll

    def _try(self) -> str:
        """Do one thing, or wait where there is nothing to do; why that cannot be done, empty where it can."""
        try:
            idle = self.step()
        except (Away, Fault, Gone) as problem:
            self.health.failing("orthanc")
            return str(problem)
        self.health.reached()
        if idle:
            time.sleep(self.poll)
        return ""

    def step(self) -> bool:
        """Read what is new, and do one thing; whether there was nothing to do."""
        since = self.state.since()
        changes, last, complete = self.orthanc.changes(since)
        if last != since:
            self.state.enqueue([change.instance for change in changes], last)
        waiting = self.state.next()
        if waiting is not None:
            self._attempt(waiting)
            return False
        self._finish_studies()
        return complete

    def _attempt(self, waiting: Waiting) -> None:
        """Answer an object, or let it wait, or give it up."""
        try:
            self._look(waiting)
        except Gone:  # deleted meanwhile
            self.state.drop(waiting)
        except Away:
            self.state.postpone(waiting, 0)  # whatever comes behind it goes first
            raise
        except (Crash, Fault) as problem:
            self.health.failing("image")
            failures = waiting.failures + 1
            logger.warning(f"object {waiting.instance}: {problem}; attempt {failures} of {ATTEMPTS}")
            if failures < ATTEMPTS:
                self.state.postpone(waiting, self.poll * 5**failures, failed=True)
            else:
                self._give_up(waiting, str(problem))

    def _look(self, waiting: Waiting) -> None:
        """Answer an object, if it is ultrasound, not our own, and its series complete."""
        found = self._describe(waiting)
        kind = self.orthanc.sop_class(waiting.instance)
        if found.modality != "US" or found.maker == MAKER or kind and kind not in ULTRASOUND:
            self.state.drop(waiting)
        elif not found.stable:
            self.state.await_series(waiting, found.series, found.study, self.poll)
        else:
            self._answer(waiting, found)

    def _describe(self, waiting: Waiting) -> Described:
        instance = self.orthanc.describe("instances", waiting.instance)
        series = self.orthanc.describe("series", instance["ParentSeries"])
        tags, study = series["MainDicomTags"], series["ParentStudy"]
        maker = tags.get("Manufacturer", "")
        uids = {
            "study": self.orthanc.describe("studies", study)["MainDicomTags"]["StudyInstanceUID"],
            "series": tags["SeriesInstanceUID"],
            "image": instance["MainDicomTags"]["SOPInstanceUID"],
        }
        return Described(study, series["ID"], uids, tags.get("Modality", ""), maker, series["IsStable"])

    def _answer(self, waiting: Waiting, found: Described) -> None:
        """Predict an object and store the results; only then it waits no longer."""
        begun, rows = time.time(), []
        for answer in self.worker.answers(self.orthanc.file(waiting.instance)):
            stored = [self.orthanc.store(made) for made in answer.objects]
            outcome = "refused" if answer.refused else "answered"
            row = {**found.uids, "frame": answer.frame, "outcome": outcome, "reason": answer.refused, **answer.values}
            row |= {"stored": stored.count("Success"), "already_stored": stored.count("AlreadyStored")}
            seconds, begun = time.time() - begun, time.time()
            rows.append(row | {"seconds": round(seconds, 3)})
        self._keep(waiting, found.study, rows)

    def _give_up(self, waiting: Waiting, reason: str) -> None:
        """Keep an object as failed, under Orthanc's own identifier where its UIDs cannot be had."""
        study, uids = "", {"study": "", "series": "", "image": waiting.instance}
        try:
            study, _, uids, *_ = self._describe(waiting)
        except (Fault, Gone):
            pass
        self._keep(waiting, study, [{**uids, "frame": 0, "outcome": "failed", "reason": reason, "seconds": 0.0}])

    def _keep(self, waiting: Waiting, study: str, rows: list[dict]) -> None:
        for row in rows:
            self._write(row)
        self.state.finish(waiting, study, rows)
        for row in rows:
            self.health.finished(row["outcome"], row["seconds"])

    def _finish_studies(self) -> None:
        """Write the line of each study to which nothing is added any more."""
        for study in self.state.finished_studies():
            try:
                found = self.orthanc.describe("studies", study)
            except Gone:
                self.state.close_study(study)
                continue
            if found["IsStable"]:
                uid = found["MainDicomTags"]["StudyInstanceUID"]
                self._write({"study": uid, **self.state.study(uid)})
                self.state.close_study(study)

    def _write(self, line: dict) -> None:
        """Add a line to the log.

        Raises:
            Away: no room.
        """
        text = json.dumps({"time": datetime.now(timezone.utc).isoformat(timespec="seconds"), **line}) + "\n"
        try:
            with open(self.log, "a", encoding="utf-8") as file:  # each time, so that it can be rotated
                file.write(text)
        except OSError as error:
            raise Away(f"{self.log}: not written ({error.strerror}); make room") from None


def retry_failed(state: State) -> int:
    """Let the objects that were given up wait again; their number."""
    failed = state.failed()
    state.enqueue(failed, state.since())
    return len(failed)
