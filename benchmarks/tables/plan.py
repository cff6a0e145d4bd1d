"""What a table is made of, and its commands: read from a JSON file. :mod:`.running` runs them.

A table's file names

* ``title`` and ``about``: what it shows, for the reader;
* ``config_file``: the configuration every command gets, trainings without ``evaluate.json``, and ``settings``, values
  it changes;
* ``runs``: repetitions, such as splits or seeds, each with settings of its own, and maybe ``config_file``, which is
  added to the table's, and ``labelled``, the cases from which trainings and rows with ``labels`` take theirs;
* ``trainings``: what rows need first. Each has a ``command``, and may have ``config_file``, added to the table's or to
  those of ``base``, ``settings``, ``source``, ``pretraining``, ``labels``, the number of training cases, and ``start``,
  the training that it starts from. Networks of the commands ``unet`` and ``unetr`` are trained by the first row that
  needs them;
* ``rows``: each a ``command`` of ``baselines`` or ``adaptation``, and may have ``config_file``, ``options``,
  ``labels``, a ``training`` whose file, configuration, settings and labels it gets, and ``published`` numbers: a value
  for each organ, and their mean, in percent. A row of an option that is gone has ``recorded`` instead, its result as
  the table had it (pairs of mean and deviation, of organs by their names, and the mean of each run), and
  ``repeat_with``, the commit that repeats it;
* ``published``: what those numbers are of;
* ``gap``: the rows between which the share of a gap that others close is given, ``from`` and ``to``.

Trainings lie beside the tables' folders, in ``trainings``, each in a folder named after all that it was told, with the
content of the configuration's files and of the weights in ``models``: what two tables, or two names in one, train alike
is trained once, and once those weights are others, anew. So is the cache of encoded slices, whose files are named so.

A training whose ``source`` is true is one on a source domain: of the settings of the table, of its runs and of the
command line it gets those that begin with ``source_``, without that, and all others get the rest. Of such a training a
row gets the file alone. One whose ``pretraining`` is true knows neither the table's data nor its runs: it gets its own
``base`` and settings, and of the command line those that begin with ``pretraining_``, without that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from scripts.files import BUNDLE, sha256_of

TABLES = Path(__file__).resolve().parent / "definitions"
# the option by which a row gets the file of a training by this command, and the file's name
TRAINING_FILES = {
    "training": ("prior_file", "model.pt"),
    "train_source": ("source_model", "source.pt"),
    "unet": ("network_file", "network.pt"),
    "unetr": ("network_file", "network.pt"),
    "anatomy_unet": ("output", "network.pt"),
}
BY_ROWS = ("unet", "unetr")  # trained by the first row that needs them
# options of a command, which are no settings of the configuration
OF_COMMANDS = {"checkpoint": ("sam",), "model_type": ("sam",)}
DOMAINS = {"source": "source_", "pretraining": "pretraining_"}  # of trainings, and how their settings begin
LABELLED = "labelled"
MODELS = BUNDLE / "models"
CLOCK = "seconds.json"  # beside a training's file
TOLD = "command.sha256"  # in the folder of a result, what its command was told
EVALUATION = "configs/evaluate.json"
TESTED = "test_cases"  # which no training depends on
ADAPTATION = ("train_source", "source_only", "dpl", "dfg", "target_supervised")
KEYS = {"title", "about", "config_file", "settings", "runs", "trainings", "rows", "published", "gap"}


class TableError(ValueError):
    """A table's file that cannot be used; the message says what to change."""


@dataclass(frozen=True)
class Step:
    """One command of one run.

    Attributes:
        name: of the row or training.
        run: which repetition.
        arguments: of Python, from the bundle's folder.
        config_files: among them.
    """

    name: str
    run: str
    arguments: list[str]
    config_files: list[str]


@dataclass
class Table:
    """A table's file, and where its results are.

    Args:
        content: of the file.
        output: folder of the results.
        overrides: settings changed on the command line, for every command; options of :data:`OF_COMMANDS` for those
            alone that have them.
    """

    content: dict[str, Any]
    output: Path
    overrides: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, table: str | Path, output: str | Path | None, overrides: Mapping[str, Any]) -> Table:
        """Reads a table by its path, or by its name among those that come with the benchmarks.

        Raises:
            TableError: there is none, or it names something that is not there.
        """
        path = Path(table)
        if not path.is_file():
            path = TABLES / f"{table}.json"
        if not path.is_file():
            known = ", ".join(sorted(each.stem for each in TABLES.glob("*.json")))
            raise TableError(f"There is no table '{table}'. Give the path of a JSON file, or one of: {known}.")
        content = json.loads(path.read_text(encoding="utf-8"))
        unknown = content.keys() - KEYS
        missing = {"title", "config_file", "runs", "rows"} - content.keys()
        if unknown or missing:
            raise TableError(f"'{path}': unknown keys {sorted(unknown)}, missing keys {sorted(missing)}.")
        trainings = content.setdefault("trainings", {})
        wanted = {row["training"] for row in content["rows"].values() if "training" in row}
        wanted |= {training["start"] for training in trainings.values() if "start" in training}
        if wanted - trainings.keys():
            raise TableError(
                f"'{path}': rows need trainings that it does not name: {sorted(wanted - trainings.keys())}."
            )
        if "overwrite" in overrides:
            raise TableError(
                "A table takes no --overwrite: a row is made again by itself where its result is of other settings. To "
                f"make one again all the same, remove its JSON file in '{output or f'runs/tables/{path.stem}'}'."
            )
        return cls(content, Path(output or f"runs/tables/{path.stem}"), dict(overrides))

    @property
    def runs(self) -> list[str]:
        return list(self.content["runs"])

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return self.content["rows"]

    @property
    def runnable(self) -> list[str]:
        """Names of the rows that today's code can run: all but the recorded ones."""
        return [name for name, row in self.rows.items() if "recorded" not in row]

    def result(self, run: str, row: str) -> Path:
        """JSON file of a row's result."""
        return self._folder(run) / f"{_file_name(row)}.json"

    def log(self, run: str, name: str) -> Path:
        """What a command has printed."""
        return self._folder(run) / "logs" / f"{_file_name(name)}.log"

    @property
    def cache(self) -> Path:
        """Cache of encoded slices."""
        return self._beside("cache")

    def trained(self, run: str, training: str) -> Path:
        """The file that a training ends with."""
        entry = self.content["trainings"][training]
        command, (_, name) = entry["command"], TRAINING_FILES[entry["command"]]
        options = self._options(run, entry, {}, entry.get("settings", {}), trains=True)
        if "start" in entry:
            options.append(self.trained(run, entry["start"]).parent.name)
        told = _digest(options, self._config_files(run, entry, trains=True))
        return self._beside("trainings") / f"{command}_{told[:12]}" / name

    def seconds(self, run: str, training: str) -> float:
        """Seconds that a training has taken so far, over all its attempts.

        One that was killed could not write how long it took: it is taken to have lasted until its last file was
        written.
        """
        folder = self.trained(run, training).parent
        path = folder / CLOCK
        if not path.is_file():
            return 0.0
        clock = json.loads(path.read_text())
        if "started" not in clock:
            return clock["seconds"]
        return clock["seconds"] + max(each.stat().st_mtime for each in folder.iterdir()) - clock["started"]

    def start(self, run: str, training: str) -> dict[str, str]:
        """The option by which a training, or a row that does it, gets the file that it starts from, if it has one."""
        start = self.content["trainings"][training].get("start")
        return {} if start is None else {"start_from": str(self.trained(run, start))}

    def trained_by_rows(self, training: str) -> bool:
        """Whether the first row that needs a training does it, rather than a step of its own."""
        return self.content["trainings"][training]["command"] in BY_ROWS

    def training_step(self, run: str, name: str) -> Step:
        training = self.content["trainings"][name]
        option, _ = TRAINING_FILES[training["command"]]
        file = self.trained(run, name)
        own = {option: str(file), **self.start(run, name)}
        if training["command"] == "training":
            own |= {"output_dir": str(file.parent), "cache_dir": str(self.cache)}
        options = self._options(run, training, own, training.get("settings", {}), trains=True)
        return Step(name, run, [*_script(training["command"]), *options], self._config_files(run, training, True))

    def before(self, run: str) -> Path:
        """Folder of the results of other settings, while those of now are made."""
        return self._folder(run) / "set-aside"  # which no row can be named

    def finished(self, run: str, name: str) -> bool:
        """Whether a row's result is there, made by the command that :meth:`row_step` gives now."""
        path = self.result(run, name)
        told = path.with_suffix("") / TOLD
        return path.is_file() and told.is_file() and told.read_text() == self._told(run, name)

    def mark_finished(self, run: str, name: str) -> None:
        """Notes by which command a result was made; one that only says what it needs is to be tried again."""
        path = self.result(run, name)
        if path.is_file() and "not_run" not in json.loads(path.read_text(encoding="utf-8")):
            path.with_suffix("").mkdir(exist_ok=True)
            (path.with_suffix("") / TOLD).write_text(self._told(run, name))

    def row_step(self, run: str, name: str) -> Step:
        row = self.rows[name]
        own: dict[str, Any] = {"output": str(self.result(run, name)), "cache_dir": str(self.cache)}
        entry, options = row, row.get("options", {})
        if "training" in row:
            training = self.content["trainings"][row["training"]]
            option, _ = TRAINING_FILES[training["command"]]
            own[option] = str(self.trained(run, row["training"]))
            if self.trained_by_rows(row["training"]):
                own |= self.start(run, row["training"])
            if not training.get("source"):  # a network is built as it was trained
                options = {**training.get("settings", {}), **options}
            if "base" not in training:
                entry = {**row, "config_file": [*training.get("config_file", []), *row.get("config_file", [])]}
            if "labels" in training:
                entry = {**entry, "labels": training["labels"]}
        arguments = [*_script(row["command"]), *self._options(run, entry, own, options)]
        return Step(name, run, arguments, self._config_files(run, entry, trains=False))

    def _told(self, run: str, name: str) -> str:
        """Of the command, and of the trained file that it is given, which may have been trained anew since."""
        step, training = self.row_step(run, name), self.rows[name].get("training")
        file = self.trained(run, training) if training else None
        trained = [sha256_of(file)] if file and file.is_file() else []
        return _digest([*step.arguments, *trained], step.config_files)

    def _folder(self, run: str) -> Path:
        return (self.output / _file_name(run)).absolute()

    def _beside(self, name: str) -> Path:
        return (self.output.parent / name).absolute()

    def _config_files(self, run: str, entry: dict, trains: bool) -> list[str]:
        split = self.content["runs"][run].get("config_file", [])
        shared = [] if entry.get("pretraining") else [*self.content["config_file"], *split]
        config_file = [*entry.get("base", shared), *entry.get("config_file", [])]
        if trains:
            config_file = [each for each in config_file if each != EVALUATION]  # whose `initialize` needs a prior
        return config_file

    def _options(self, run: str, entry: dict, own: dict, settings: dict, trains: bool = False) -> list[str]:
        domain = next((each for each in DOMAINS if entry.get(each)), None)
        shared = {} if domain == "pretraining" else {**self.content.get("settings", {}), **self._of_run(run, entry)}
        given = {
            key: value
            for key, value in self.overrides.items()
            if key not in OF_COMMANDS or entry["command"] in OF_COMMANDS[key]
        }
        values = {**_of_domain(shared, domain), **settings, **_of_domain(given, domain), **own}
        if trains:
            values.pop(TESTED, None)
        config_file = self._config_files(run, entry, trains)
        named = ["--config_file", str(config_file)] if config_file else []
        return [*named, *(f"--{key}={value}" for key, value in values.items())]

    def _of_run(self, run: str, entry: dict) -> dict[str, Any]:
        """The settings of a run; of its labelled cases an entry gets as many as it has labels, and else none."""
        values: dict[str, Any] = {}
        for key, value in self.content["runs"][run].items():
            if key != LABELLED:
                values[key] = value
            elif "labels" in entry:
                values["train_cases"] = value[: entry["labels"]]
        values.pop("config_file", None)
        return values


def _digest(options: list[str], config_files: list[str]) -> str:
    """Of options, of what the configuration's files say now, and of the weights there are: what they are for is another
    by the change of any of them.
    """
    files = [Path(each).read_text("utf-8") for each in config_files if Path(each).is_file()]
    weights = [_weights(path, path.stat().st_mtime_ns) for path in sorted(MODELS.glob("*.pt"))]
    return hashlib.sha256(json.dumps([options, files, weights]).encode()).hexdigest()


@lru_cache
def _weights(path: Path, changed: int) -> list[str]:
    return [path.name, sha256_of(path)]


def _of_domain(settings: Mapping[str, Any], domain: str | None) -> dict[str, Any]:
    """The settings that are a domain's, under their own names, or those that are of none."""
    if domain is not None:
        prefix = DOMAINS[domain]
        return {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    return {key: value for key, value in settings.items() if not key.startswith(tuple(DOMAINS.values()))}


def _script(command: str) -> list[str]:
    if command == "training":
        return ["-m", "monai.bundle", "run", "training"]
    if command == "anatomy_unet":
        return ["-m", "benchmarks.baselines.anatomy_unet"]
    folder = "adaptation" if command in ADAPTATION else "baselines"
    return ["-m", f"benchmarks.{folder}.run", command]


def _file_name(name: str) -> str:
    return "".join(each if each.isalnum() else "_" for each in name)
