"""The prediction, in a child process: what crashes a decoder or never ends costs one image, not the gateway."""

from __future__ import annotations

import io
import multiprocessing
import signal
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

START_LIMIT = 600  # seconds to load PyTorch and the weights


class Crash(Exception):
    """The child failed on an image, died or took too long."""


class Answer(NamedTuple):
    """What became of a frame.

    Attributes:
        frame: its number from 1; 0 of a still.
        refused: why there is no answer; empty where there is one.
        values: ``class``, ``suspicion`` (the probability of the suspicious classes), ``suspicious``, ``unsure``,
            ``check`` and ``reason``; empty of a refused frame.
        objects: DICOM objects, as files hold them.
    """

    frame: int
    refused: str
    values: dict[str, object]
    objects: list[bytes]


class Worker:
    """A child process that predicts, begun again where it ends.

    Args:
        time_limit: seconds for a frame.
        settings: of ``Answerer``.

    Raises:
        ValueError: the child's, where it cannot begin: weights or options are wrong.
    """

    def __init__(self, time_limit: float, **settings: object) -> None:
        self.time_limit, self.settings = time_limit, settings
        self.process: multiprocessing.process.BaseProcess | None = None
        self._begin()

    def answers(self, data: bytes) -> Iterator[Answer]:
        """Predict the wanted frames of an object.

        Raises:
            Crash: see there; the child is begun again.
        """
        frames = self._ask("open", data)
        if isinstance(frames, str):
            yield Answer(0, frames, {}, [])
            return
        for frame in frames:
            yield self._ask("answer", frame)

    def close(self) -> None:
        """End the child."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None

    def _begin(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share locks of threads
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.settings), daemon=True)
        self.process.start()
        other.close()
        try:
            problem = self._receive(START_LIMIT)
        except Crash as crash:
            problem = f"the process that predicts does not start ({crash})"
        if problem:
            self.close()
            raise ValueError(problem)

    def _ask(self, task: str, value: object) -> object:
        if self.process is None:
            self._begin()
        try:
            self.connection.send((task, value))
        except OSError:  # it died
            self.close()
            self._begin()
            self.connection.send((task, value))
        found, failed = self._receive(self.time_limit)
        if failed:
            raise Crash(failed)
        return found

    def _receive(self, limit: float) -> object:
        """What the child sends within a time, in seconds."""
        try:
            if self.connection.poll(limit):
                return self.connection.recv()
            problem = f"no answer within {limit:g} s"
        except (EOFError, OSError):
            self.process.join(5)
            problem = f"its process ended with {self.process.exitcode}"
        self.close()
        raise Crash(problem)


def _serve(connection: Connection, settings: dict) -> None:
    """The child: answers tasks until the gateway is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, meant for the gateway
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        answerer = Answerer(**settings)
    except (OSError, ValueError) as error:
        connection.send(str(error))
        return
    connection.send("")
    while True:
        try:
            task, value = connection.recv()
        except EOFError:
            return
        try:
            reply = getattr(answerer, task)(value), ""
        except Exception as error:  # whatever libraries raise; their texts may quote the header, so they are not told
            where = traceback.extract_tb(error.__traceback__)[-1]
            reply = None, f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"
        connection.send(reply)


class Answerer:
    """Makes the answers, as ``inference_dicom.json`` does.

    Args:
        ckpt_dir: folder of the weights.
        frames: of a cine, as ``dicom.frame_numbers`` takes it.
        objects: which of ``seg``, ``sr`` and ``sc``.
        predict_refused: whether images that the input check refuses are answered.

    Raises:
        ValueError, FileNotFoundError: weights or options are wrong.
    """

    def __init__(self, ckpt_dir: str, frames: str, objects: Sequence[str], predict_refused: bool) -> None:
        from monai.bundle import ConfigParser

        from breast_ultrasound import BUNDLE, Predictor
        from breast_ultrasound.checks import option_problems

        self.predictor = Predictor(ckpt_dir=ckpt_dir, predict_refused=predict_refused)
        config, dicom = self.predictor.config, ConfigParser.load_config_file(BUNDLE / "configs/inference_dicom.json")
        given = {"frames": frames, "objects": list(objects)}
        config.update({"save_objects": dicom["save_objects"], **given})
        if problems := option_problems(config, given):
            raise ValueError(problems[0])
        self.frames, self.make = frames, config.get_parsed_content("save_objects").make
        self.suspicious = config.get_parsed_content("calibration")["suspicious_classes"]
        self.dataset = self.header = None

    def open(self, data: bytes) -> list[int] | str:
        """The wanted frames of an object, which is kept for ``answer``; or why there are none."""
        from pydicom import dcmread

        from breast_ultrasound.dicom import frame_numbers, number_of_frames, read_header

        self.dataset = None
        try:
            self.header = read_header(io.BytesIO(data))
            found = frame_numbers(number_of_frames(self.header), self.frames)
        except (ValueError, TypeError) as error:
            return str(error)
        self.dataset = dcmread(io.BytesIO(data))
        return found

    def answer(self, frame: int) -> Answer:
        """Predict a frame, from 1, and make its objects."""
        from breast_ultrasound.calibration import suspicion
        from breast_ultrasound.dicom import number_of_frames, open_dicom
        from breast_ultrasound.dicom_results import source_of

        number = frame if number_of_frames(self.header) > 1 else 0
        try:
            image = open_dicom(self.dataset, frame)
            source = source_of(self.header, frame)
            found = self.predictor(image)
        except ValueError as error:
            return Answer(number, str(error).removeprefix("refused, ").partition("; predict_refused")[0], {}, [])
        result = {
            "class": found.class_name,
            "classification": [{"label": name, "score": p} for name, p in found.class_probabilities.items()],
            "disagreement": found.disagreement,
        }
        told = {"suspicious": found.suspicious, "unsure": found.unsure}
        result |= {name: value for name, value in told.items() if value is not None}
        made = self.make(source, found.mask, result, lambda: image)
        values = {"class": found.class_name, "suspicion": suspicion(found.class_probabilities, self.suspicious), **told}
        values |= {"check": found.check, "reason": found.reason}
        return Answer(number, "", values, [_file(each) for each in made.values()])


def _file(made: object) -> bytes:
    """An object as a file holds it."""
    memory = io.BytesIO()
    made.save_as(memory, enforce_file_format=True)
    return memory.getvalue()
