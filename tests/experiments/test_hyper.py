"""Hyper-parameter search: what a params file means, HyperOpt and Ray on markov-toy, and going on after a cut."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from recbole_diffusion import MODELS
from recbole_diffusion.experiments import ray_search, trials
from recbole_diffusion.experiments.hyper import search
from recbole_diffusion.experiments.space import read_space
from recbole_diffusion.quick_start import build_config, run
from recbole_diffusion.registry import PROPS, known_keys

from ..conftest import ROOT, TINY

SHORT = {**TINY, "state": "ERROR", "epochs": 2, "limit_train_batches": 1, "inference": "one_step"}
GRID = "learning_rate choice [0.001, 0.004]\nnum_steps choice [4, 6]\n# a comment of many words\n\n"


def write(text: str, name: str = "toy.hyper") -> str:
    Path(name).write_text(text)
    return name


def toy_search(text: str = GRID, model: str | None = "DiffuRec", config_dict=None, **options):
    # A relative data_path, which a trial in another folder does not know.
    fixed = {**SHORT, "data_path": os.path.relpath(ROOT / "dataset")}
    fixed = {key: value for key, value in fixed.items() if f"{key} " not in text}
    return search(model, "markov-toy", write(text), config_dict={**fixed, **(config_dict or {})}, **options)


class Trainings(list):
    """The parameters of every training, in order; the training of number ``cut`` is interrupted."""

    cut: int | None = None


@pytest.fixture
def trained(monkeypatch) -> Trainings:
    calls, train = Trainings(), trials.run_or_resume

    def counting(config, folder, after_epoch=None):
        calls.append({key: config[key] for key in ("learning_rate", "num_steps")})
        if len(calls) == calls.cut:
            raise KeyboardInterrupt
        return train(config, folder, after_epoch)

    monkeypatch.setattr(trials, "run_or_resume", counting)
    return calls


def without_seconds(*found: dict) -> list[dict]:
    """What trials with the same parameters must share."""
    return [{key: value for key, value in trial.items() if "seconds" not in key} for trial in found]


# ------------------------------------------------------------------ the params file

EVERY_KIND = """learning_rate loguniform -7, -5
emb_dropout_prob uniform 0.1,0.4
num_steps quniform 8,32,8
hidden_dropout_prob quniform 0.1,0.5,0.1
noise_schedule choice ['linear', "cosine"]
inference_seeds choice [[1, 2], (3,), 4, None]
"""


def test_both_tools_draw_from_the_same_space():
    from hyperopt.pyll.stochastic import sample

    space = read_space(write(EVERY_KIND))
    rng = np.random.default_rng(0)
    for parameter in space:
        node = parameter.hyperopt()
        from_hyperopt = [sample(node, rng=rng) for _ in range(60)]
        if parameter.kind == "choice":
            from_hyperopt = [parameter.values[place] for place in from_hyperopt]
        domain = parameter.ray()
        for drawn in (from_hyperopt, [domain.sample() for _ in range(60)]):
            found = [parameter.plain(value) for value in drawn]
            assert json.loads(json.dumps(found)) == found
            check = {
                "learning_rate": lambda v: np.exp(-7) <= v <= np.exp(-5),
                "emb_dropout_prob": lambda v: 0.1 <= v <= 0.4,
                "num_steps": lambda v: type(v) is int and v in (8, 16, 24, 32),
                "hidden_dropout_prob": lambda v: type(v) is float and 0.1 - 1e-9 <= v <= 0.5 + 1e-9,
                "noise_schedule": lambda v: v in ("linear", "cosine"),
                "inference_seeds": lambda v: v in ([1, 2], [3], 4, None),
            }[parameter.name]
            assert all(map(check, found)), (parameter, found)
            assert len(set(map(str, found))) >= 2


@pytest.mark.parametrize(
    "line, message",
    [
        ("num_steps", "none of choice"),
        ("num_steps choice", ""),
        ("num_steps among [1, 2]", "among.*choice, uniform"),
        ("num_steps choice []", "list"),
        ("num_steps choice 8", "list"),
        ("num_steps choice 'ab'", "list"),
        ("num_steps choice [__import__('os').getpid()]", "malformed"),
        ("num_steps uniform 3", "low,high"),
        ("num_steps uniform 3,3", "low below high"),
        ("num_steps uniform '1','2'", "numbers"),
        ("num_steps quniform 1,5", "low,high,q"),
        ("num_steps quniform 1,5,0", "low,high,q"),
        ("num_steps quniform 4,64,16", "4 and 64 must be multiples of 16"),
        ("learning_rate choice [1]", "twice"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(line, message):
    with pytest.raises(ValueError, match=rf"toy.hyper\], line 2 .*{message}"):
        read_space(write(f"learning_rate choice [0.1]\n{line}\n"))


@pytest.mark.parametrize("line", ["valid_metric choice ['NDCG@10','Hit@20']", "mask_history choice [True,False]",
                                  "user_inter_num_interval choice ['[3,inf)']", "gpu_id choice ['0','1']"])  # fmt: skip
def test_what_says_what_is_measured_is_not_searched(line):
    with pytest.raises(ValueError, match=rf"\[{line.split()[0]}\] cannot be searched, as it says what is measured"):
        toy_search(text=line + "\n")


def test_a_search_takes_one_process_a_trial():
    with pytest.raises(ValueError, match=r"nproc \[2\] must be 1 in a search"):
        search("DiffuRec", "markov-toy", write("num_steps choice [4]\n"), config_dict={"nproc": 2})


def test_an_empty_or_missing_params_file_is_named():
    with pytest.raises(ValueError, match="toy.hyper.*no parameter"):
        read_space(write("# nothing\n"))
    with pytest.raises(FileNotFoundError, match="nothing.hyper"):
        search("DiffuRec", "markov-toy", "nothing.hyper")
    with pytest.raises(ValueError, match=r"GRU4Rec.*params_file"):
        search("GRU4Rec", "markov-toy")


@pytest.mark.parametrize("file", sorted((PROPS / "hyper").glob("*.hyper")), ids=lambda file: file.stem)
def test_every_value_of_our_params_files_is_accepted(file):
    assert file.stem in MODELS
    for parameter in read_space(file):
        assert parameter.name in known_keys(build_config(file.stem, "markov-toy"))
        ends = [value if parameter.kind != "loguniform" else float(np.exp(value)) for value in parameter.values]
        for value in ends if parameter.kind == "choice" else ends[:2]:
            build_config(file.stem, "markov-toy", None, {parameter.name: parameter.plain(value)})


# ------------------------------------------------------------------ HyperOpt


@pytest.mark.slow
def test_hyperopt_covers_the_grid_and_its_yaml_trains_to_the_same_metrics(trained):
    found = toy_search(tool="Hyperopt", max_evals=9, display_file="plots/toy.html")
    points = [(trial["params"]["learning_rate"], trial["params"]["num_steps"]) for trial in found["trials"]]
    assert sorted(points) == [(0.001, 4), (0.001, 6), (0.004, 4), (0.004, 6)] and len(trained) == 4
    assert found["best_valid_score"] == max(trial["best_valid_score"] for trial in found["trials"])

    assert found["best_file"] == "hyper_results/DiffuRec-markov-toy-hyperopt.result.yaml"
    assert yaml.safe_load(Path(found["best_file"]).read_text()) == found["best_params"]
    config_dict = {**SHORT, "data_path": str(ROOT / "dataset"), "show_progress": False}
    again = run("DiffuRec", "markov-toy", [found["best_file"]], config_dict)
    assert again["test_result"] == found["test_result"]
    assert again["best_valid_score"] == found["best_valid_score"]

    text = Path("hyper_results/DiffuRec-markov-toy-hyperopt.result").read_text()
    assert text.count("Valid result:") == text.count("Test result:") == 4 and "learning_rate:0.004" in text
    table = pd.read_csv("hyper_results/DiffuRec-markov-toy-hyperopt.result.csv")
    assert len(table) == 4 and table["best_valid_score"].max() == pytest.approx(found["best_valid_score"])
    best = table.loc[table["best_valid_score"].idxmax()]
    for protocol, metrics in again["test_results"].items():
        assert metrics == {name: pytest.approx(best[f"test {name} {protocol}"]) for name in metrics}
    assert (table["seconds"] > 0).all()
    page = Path("plots/toy.html").read_text()
    assert "best so far" in page and "<script src=" not in page and 'src="http' not in page
    assert not list(Path("hyper_results").glob("*running*"))  # no checkpoint stays


RANGES = "learning_rate loguniform -7,-5\nnum_steps quniform 4,8,2\n"


@pytest.mark.slow
@pytest.mark.parametrize("algo, text", [("exhaustive", GRID), ("bayes", RANGES)], ids=["exhaustive", "bayes"])
def test_a_search_that_was_cut_goes_on_as_if_it_had_not_been(trained, algo, text):
    options = {"text": text, "algo": algo, "max_evals": 3, "early_stop": 7}
    trained.cut = 3
    with pytest.raises(KeyboardInterrupt):
        toy_search(output_file="cut.result", **options)
    # The journal may be cut in the middle of a line as well.
    with open("cut.result.trials.jsonl", "a") as file:
        file.write('{"params": {"learni')
    trained.cut = None
    first = list(trained)
    resumed = toy_search(output_file="cut.result", **options)
    assert [trial["params"] for trial in resumed["trials"]][:2] == first[:2]
    assert trained[3:] == first[2:], "finished trials were trained again, or others were proposed"

    del trained[:]
    uncut = toy_search(output_file="uncut.result", **options)
    assert without_seconds(*uncut["trials"]) == without_seconds(*resumed["trials"])
    # A longer search begins with what is there.
    del trained[:]
    longer = toy_search(output_file="cut.result", **{**options, "max_evals": 4})
    assert longer["trials"][:3] == resumed["trials"] and len(trained) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("metric, sign", [("NDCG@10", 1), ("AveragePopularity@10", -1)])
def test_bayes_draws_near_the_best_and_draws_the_same_again(monkeypatch, metric, sign):
    calls = []

    def score_of(config, folder, after_epoch=None):
        calls.append(config["learning_rate"])
        score = -sign * (config["learning_rate"] - 0.3) ** 2
        result = {"best_valid_score": score, "best_valid_result": {"x": score}, "test_result": {"x": 0}}
        return {**result, "test_results": None, "epochs": 1, "seconds": 1.0, "test_seconds": 0.5, "cpu_seconds": 1.0}

    monkeypatch.setattr(trials, "run_or_resume", score_of)
    metrics = {"metrics": ["NDCG", "AveragePopularity"], "valid_metric": metric}
    options = {"text": "learning_rate uniform 0,1\n", "config_dict": metrics, "max_evals": 60, "early_stop": 60}
    found = toy_search(**options)
    assert len(calls) == 60 and abs(found["best_params"]["learning_rate"] - 0.3) < 0.05
    assert np.median(np.abs(np.array(calls[-20:]) - 0.3)) < 0.2  # uniform draws: 0.25
    assert toy_search(**options) == found and len(calls) == 60
    assert len(toy_search(**{**options, "early_stop": 3})["trials"]) < 60


def test_a_trial_that_was_killed_goes_on_from_its_last_epoch(tmp_path):
    shared = {**SHORT, "model": "DiffuRec", "dataset": "markov-toy", "data_path": str(ROOT / "dataset"), "epochs": 3}
    epochs: list[int] = []

    def note(point):
        epochs.append(point["epoch"])
        if epochs == [1, 2]:
            raise KeyboardInterrupt

    params = {"learning_rate": 0.004}
    with pytest.raises(KeyboardInterrupt):
        trials.run_trial(shared, params, tmp_path / "a", note)
    result = trials.run_trial(shared, params, tmp_path / "a", note)
    assert epochs == [1, 2, 2, 3]  # the state of epoch 1 was on disk
    assert without_seconds(result) == without_seconds(trials.run_trial(shared, params, tmp_path / "b"))
    assert not (tmp_path / "a").exists()


def scored(monkeypatch, score_of):
    """Let a function of its Config stand for the training of every trial."""

    def train(config, folder, after_epoch=None):
        result = {"best_valid_score": score_of(config), "best_valid_result": {"x": 0.0}, "test_result": {"x": 0.0}}
        return {**result, "test_results": None, "epochs": 1, "seconds": 1.0, "test_seconds": 0.5, "cpu_seconds": 1.0}

    monkeypatch.setattr(trials, "run_or_resume", train)


def test_a_search_that_another_process_is_at_is_left_alone(monkeypatch):
    calls = []

    def score_of(config):
        calls.append(config["learning_rate"])
        if len(calls) == 1:
            with pytest.raises(ValueError, match=r"output_file \[x\] is being written by another process"):
                toy_search(output_file="x", config_dict={"weight_decay": 0.1})
        return config["learning_rate"]

    scored(monkeypatch, score_of)
    found = toy_search(output_file="x")
    assert len(found["trials"]) == 4 and all("error" not in trial for trial in found["trials"])
    assert toy_search(output_file="x")["trials"] == found["trials"]  # it has not become the other's


def test_what_is_no_fault_of_the_parameters_is_tried_again(monkeypatch):
    def fails(config):
        raise OSError("no space left")

    scored(monkeypatch, fails)
    with pytest.raises(OSError, match="no space left"):
        toy_search(output_file="x")
    scored(monkeypatch, lambda config: config["learning_rate"])
    assert all("error" not in trial for trial in toy_search(output_file="x")["trials"])


def test_trials_follow_the_protocol_that_the_search_was_asked_for(monkeypatch):
    for protocol, metric in ((False, "mrr@10"), (True, "ndcg@10")):
        scored(monkeypatch, lambda config, metric=metric: float(config["valid_metric"].lower() == metric))
        asked = {"paper_protocol": protocol, "data_path": str(ROOT / "dataset"), "train_neg_sample_args": None}
        space = write("learning_rate choice [0.01]\n")
        found = search("SASRec", "markov-toy", space, config_dict=asked, output_file=metric)
        assert found["best_valid_score"] == 1.0


def test_a_failed_trial_is_noted_and_passed_over():
    found = toy_search("hidden_size choice [32, 31]\n", output_file="x")
    assert found["best_params"]["hidden_size"] == 32 and len(found["trials"]) == 2
    [failed] = [trial for trial in found["trials"] if "error" in trial]
    assert failed["params"]["hidden_size"] == 31 and "n_heads" in failed["error"]
    assert "n_heads" in Path("x").read_text()

    with pytest.raises(ValueError, match="every one of 1 trials failed.*n_heads"):
        toy_search("hidden_size choice [31]\n", output_file="y")


def test_the_best_parameters_stand_above_what_a_config_file_says_for_the_model():
    Path("base.yaml").write_text("per_model: {DiffuRec: {learning_rate: 0.5, n_layers: 1}, SASRec: {epochs: 2}}")
    found = toy_search("learning_rate choice [0.01]\n", config_file_list=["base.yaml"])
    files = ["base.yaml", found["best_file"]]
    config = build_config("DiffuRec", "markov-toy", files, {"data_path": str(ROOT / "dataset")})
    assert config["learning_rate"] == 0.01 and config["n_layers"] == 1
    assert build_config("SASRec", "markov-toy", files, {"data_path": str(ROOT / "dataset")})["epochs"] == 2


def test_any_error_of_a_trial_is_noted(monkeypatch):
    def fail(config, folder, after_epoch=None):
        raise KeyError("class")

    monkeypatch.setattr(trials, "run_or_resume", fail)
    with pytest.raises(ValueError, match="every one of 1 trials failed.*KeyError: 'class'"):
        toy_search("num_steps choice [4]\n")


@pytest.mark.parametrize("scores, bigger, best", [([0.0, -1.0, 0.0], True, 0), ([0.0, 2.0, None], False, 0)])
def test_the_best_score_may_be_zero(scores, bigger, best):
    done = [{"best_valid_score": score, "number": n} for n, score in enumerate(scores)]
    assert trials.best_trial(done, bigger)["number"] == best


def test_a_trial_gets_values_alone_and_no_relative_path(monkeypatch):
    Path("base.yaml").write_text("{dataset_save_path: saved/s3.pth, hidden_size: 16, topk: [10]}")
    given: list[dict] = []

    def note(model, dataset, config_file_list, config_dict):
        given.append(config_dict)
        raise ValueError("seen")

    monkeypatch.setattr(trials, "build_config", note)
    with pytest.raises(ValueError, match="seen"):
        toy_search("num_steps choice [4]\n", config_file_list=["base.yaml"], config_dict={"hidden_size": "8"})
    [config_dict] = given
    assert config_dict["hidden_size"] == 8 and config_dict["topk"] == [10] and config_dict["num_steps"] == 4
    paths = [Path(value) for key, value in config_dict.items() if key.endswith(("_path", "_dir"))]
    assert len(paths) == 2 and all(path.is_absolute() for path in paths)
    assert Path(config_dict["data_path"], "markov-toy").is_dir()


# ------------------------------------------------------------------ what a search refuses


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tool": "Optuna"}, "Hyperopt, Ray"),
        ({"num_samples": 3}, "num_samples.*Hyperopt.*max_evals"),
        ({"tool": "Ray", "max_evals": 3}, "max_evals.*Ray.*num_samples"),
        ({"max_evals": 0}, "max_evals"),
        ({"tool": "Ray", "cpus_per_trial": 999}, "cpus_per_trial .999. is more"),
        ({"algo": "grid"}, "exhaustive, random, bayes"),
        ({"algo": "exhaustive", "text": "learning_rate uniform 0.1,0.2"}, "exhaustive.*learning_rate"),
        ({"text": "learning_rte choice [0.1]"}, "learning_rte.*learning_rate"),
        ({"text": "n_layers choice [1, 2]", "config_dict": {"n_layers": 2}}, "n_layers.*fixed"),
        ({"config_dict": {"checkpoint_dir": "here"}}, "checkpoint_dir"),
        ({"config_dict": {"resume": "auto"}}, "resume"),
        ({"tool": "Ray", "config_dict": {"gpu_id": "1"}}, "gpu_id.*Ray"),
        ({"config_dict": {"noise_schedule": "linaer"}}, "noise_schedule"),
        ({"model": "DifuRec"}, "DiffuRec"),
        ({"model": None}, "model need"),
    ],
)
def test_what_cannot_be_searched_is_named_before_anything_runs(monkeypatch, change, message):
    monkeypatch.setattr(trials, "run_or_resume", None)
    with pytest.raises(ValueError, match=message):
        toy_search(**change)
    assert not Path("hyper_results").exists() or not list(Path("hyper_results").glob("*.trials*"))


def test_a_search_on_ray_that_was_stopped_has_no_best_trial():
    """Ray takes Ctrl-C itself, and returns the trials that it had begun as if they had ended."""
    ended, cut, failed = (
        SimpleNamespace(error=error, metrics=metrics)
        for error, metrics in ((None, {"done": True}), (None, {"done": False}), (ValueError("nan"), None))
    )
    ray_search._raise_if_cut([ended, failed], 2)
    for results in ([ended, cut], [ended], []):
        done = len([result for result in results if result is ended])
        with pytest.raises(KeyboardInterrupt, match=f"Interrupted: {done} of 2 trials are done"):
            ray_search._raise_if_cut(results, 2)


def test_a_model_without_a_space_says_how_to_name_one():
    with pytest.raises(ValueError, match=r"model .SASRec. comes without a space.*params_file.*SASRecPlus"):
        search("SASRec", "markov-toy")


def test_the_tool_is_known_in_any_case(trained):
    assert len(toy_search("num_steps choice [4]\n", tool="hyperopt")["trials"]) == 1


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    def init(*args, **kwargs):
        raise ConnectionError("nobody listens")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ValueError, match="address .10.0.0.1:6379. .*nobody listens"):
        toy_search(tool="Ray", address="10.0.0.1:6379")


def test_an_output_of_another_search_is_not_mixed_with_this_one(trained):
    toy_search("num_steps choice [4]\nlearning_rate choice [0.001]\n")
    with pytest.raises(ValueError, match="another search.*params_file.*trials.jsonl"):
        toy_search("num_steps choice [6]\nlearning_rate choice [0.001]\n")
    with pytest.raises(ValueError, match="another search.*parameters.*trials.jsonl"):
        toy_search("num_steps choice [4]\nlearning_rate choice [0.001]\n", config_dict={"epochs": 1})
    assert len(trained) == 1


# ------------------------------------------------------------------ Ray


@pytest.mark.slow
def test_ray_searches_from_another_folder_and_continues(monkeypatch):
    # Above all else RecBole reads the command line: neither ours nor that of Ray's workers may reach a trial.
    monkeypatch.setattr(sys, "argv", ["run_hyper.py", "--hidden_size=31", "--epochs=0"])
    # Ray saves its state now and then: here after whatever happens, so also between a trial's last report and its end.
    monkeypatch.setenv("TUNE_GLOBAL_CHECKPOINT_S", "0")
    options = {"tool": "Ray", "num_samples": 2, "grace_period": 1, "output_file": "out/toy.result"}
    found = toy_search(**options)
    assert len(found["trials"]) == 2 and all("error" not in trial for trial in found["trials"])
    assert found["best_valid_score"] == max(trial["best_valid_score"] for trial in found["trials"])
    finished = [trial for trial in found["trials"] if trial["test_result"]]
    assert finished and all(trial["epochs"] == 2 and len(trial["best_valid_result"]) == 6 for trial in finished)
    best = yaml.safe_load(Path("out/toy.result.yaml").read_text())
    assert best == found["best_params"] and best.keys() == {"learning_rate", "num_steps"}
    assert not list(Path("out").rglob("*.pth"))

    before = sorted(Path("out").rglob("result.json"))
    assert len(before) == 2
    again = toy_search(**options)
    assert again["trials"] == found["trials"] and sorted(Path("out").rglob("result.json")) == before

    config_dict = {**SHORT, "data_path": str(ROOT / "dataset"), "show_progress": False}
    monkeypatch.setattr(sys, "argv", ["run_recbole_diffusion.py"])
    reference = run("DiffuRec", "markov-toy", None, {**config_dict, **finished[0]["params"]})
    assert reference["test_result"] == finished[0]["test_result"]


# ------------------------------------------------------------------ the script


def script(*args):
    command = [sys.executable, "-W", "ignore", str(ROOT / "run_hyper.py"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_script_prints_a_command_that_trains_with_the_best():
    Path("base.yaml").write_text(yaml.safe_dump({**SHORT, "model": "DiffuRecSys", "dataset": "markov-toy"}))
    data = f"--data_path={ROOT / 'dataset'}"
    done = script("--config_files=base.yaml", f"--params_file={write(GRID)}", "--max_evals=1", "--epochs=1", data)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert "Best of 1 trials of DiffuRecSys on markov-toy" in lines
    files = "'--config_files=base.yaml hyper_results/DiffuRecSys-markov-toy-hyperopt.result.yaml'"
    command = f"  recbole-diffusion run --model=DiffuRecSys --dataset=markov-toy {files} --epochs=1 {data}"
    assert lines[-1] == command


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, message",
    [
        (["--params_file=nothing.hyper", "--model=DiffuRec", "--dataset=x"], "nothing.hyper"),
        (["--epochs", "3"], "--key="),
    ],
)
def test_the_script_names_what_is_wrong_without_a_traceback(args, message):
    done = script(*args)
    assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr
