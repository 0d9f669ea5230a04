"""A search with RecBole's HyperTuning (HyperOpt): trials one after another in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from recbole.trainer import HyperTuning

from recbole_diffusion.experiments.runs import error_line
from recbole_diffusion.experiments.trials import Search, Trial, failed_trial, run_trial


def search_with_hyperopt(search: Search) -> list[Trial]:
    """Run the trials that HyperOpt proposes; those that were done before come from the journal."""
    journal, trials = Journal(search.file(".trials.jsonl")), []
    if journal.trials:
        print(f"{len(journal.trials)} trials are done already: {journal.path}")

    def objective(params: dict[str, Any], _) -> Trial:
        trial = journal.find(params)
        if trial is None:
            try:
                trial = run_trial(search.shared, params, search.file(".running"))
            except OSError:
                raise
            except Exception as error:  # RecBole's models raise what they like: the other trials go on
                trial = failed_trial(params, error_line(error))
            journal.add(trial)
            print(f"{HyperTuning.params2str(params)}: {trial['best_valid_score']} {trial.get('error', '')}")
        trials.append(trial)
        return trial

    try:
        SeededTuning(search, objective).run()
    except KeyboardInterrupt:
        done = f"{len(journal.trials)} of {search.options['max_evals']} trials are done"
        raise KeyboardInterrupt(f"Interrupted: {done}; the same command goes on.") from None
    return trials


class Journal:
    """Results of trials on disk, one a line, found again by their parameters."""

    def __init__(self, path: Path):
        self.path, self.trials = path, {}
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
        if lines and not lines[-1].endswith("\n"):  # cut in the middle of a line
            lines.pop()
            path.write_text("".join(lines), encoding="utf-8")
        for line in lines:
            self._keep(json.loads(line))

    def _keep(self, trial: Trial) -> None:
        self.trials[json.dumps(trial["params"], sort_keys=True)] = trial

    def find(self, params: dict[str, Any]) -> Trial | None:
        return self.trials.get(json.dumps(params, sort_keys=True))

    def add(self, trial: Trial) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._keep(trial)


class SeededTuning(HyperTuning):
    """RecBole's HyperTuning with the draws of a seed: run again, it proposes what it proposed before.

    So a search that was cut takes its finished trials from the journal, and goes on as if it had not been.
    """

    def __init__(self, search: Search, objective: Callable):
        nodes = {parameter.name: parameter.hyperopt() for parameter in search.space}
        super().__init__(objective, space=nodes, **search.options)
        self.parameters = {parameter.name: parameter for parameter in search.space}
        self.seed, self.bigger = search.config["seed"], search.config["valid_metric_bigger"]
        # RecBole lets the exhaustive search run through the whole space, whatever it is told.
        self.max_evals = min(int(self.max_evals), search.options["max_evals"])

    def trial(self, params: dict[str, Any]) -> dict[str, Any]:
        """Run one proposal; HyperOpt minimises ``loss``."""
        drawn = {}
        for name, value in params.items():
            parameter = self.parameters[name]
            drawn[name] = parameter.values[value] if parameter.kind == "choice" else parameter.plain(value)
        result = self.objective_function(drawn, None)
        score = result["best_valid_score"]
        if score is None:  # HyperOpt wants a number, and learns to stay away
            return {"status": "ok", "loss": sys.float_info.max}
        return {"status": "ok", "loss": -score if self.bigger else score}

    def run(self) -> None:
        from hyperopt import fmin

        fmin(
            self.trial,
            self.space,
            algo=self.algo,
            max_evals=self.max_evals,
            early_stop_fn=self.early_stop_fn,
            rstate=np.random.default_rng(self.seed),
        )
