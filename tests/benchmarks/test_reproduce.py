"""benchmarks/reproduce.py: what it runs, how it goes on after a cut, and that its page says what the files say."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import yaml

from recbole_diffusion.compat.checkpoint import load_checkpoint, save_checkpoint
from recbole_diffusion.config.settings import result_settings

from ..conftest import ROOT, TINY

sys.path.insert(0, str(ROOT / "benchmarks"))
import jobs  # noqa: E402
import manifest as manifests  # noqa: E402
import reproduce  # noqa: E402
import results_table  # noqa: E402

SHORT = {"epochs": 3, "limit_train_batches": 4, "train_batch_size": 256}
DIFFUREC = {"name": "Diffu Rec", "model": "DiffuRec", "config": {**TINY, **SHORT, "num_steps": 4}}
SASREC = {"name": "SASRec", "model": "SASRec", "config": {**SHORT, "hidden_size": 32, "inner_size": 64}}
# As in the manifest: only so does RecBole's Pop count interactions.
POP = {"name": "Pop", "model": "Pop", "priority": 2, "config": {"train_batch_size": 1, "train_neg_sample_args": None}}
MANIFEST = {"seeds": [1, 2], "baseline": "SASRec", "datasets": {"markov-toy": {}}, "runs": [DIFFUREC, SASREC, POP]}


def write_manifest(folder, **changes):
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump({**MANIFEST, **changes}))
    return path


def arguments(folder, *args):
    """The parsed command line of a call that works under ``folder``."""
    if not (folder / "manifest.yaml").is_file():
        write_manifest(folder)
    common = [f"--data_path={ROOT / 'dataset'}/", f"--results={folder / 'out'}", f"--manifest={folder}/manifest.yaml"]
    return reproduce.parse_args([*common, "--device=cpu", *args])


def call(folder, *args):
    return jobs.reproduce(arguments(folder, *args))


def result(folder, name):
    return json.loads((folder / "out" / "runs" / f"{name}.json").read_text())


def page(folder):
    return (folder / "out" / "README.md").read_text()


def cells(text, name, dataset="markov-toy"):
    """The cells of a row in the dataset's first table, without its name."""
    part = text.split(f"## {dataset}\n")[1]
    return split_cells(re.search(rf"^\| \*\*{name}\*\*[ †]*\|(.*)\|$", part, re.M)[1])


def is_not_run(text, name, dataset="markov-toy"):
    """Whether a row stands in the one line of those that have no run, and in no table."""
    part = text.split(f"## {dataset}\n")[1].split("\n## ")[0]
    listed = re.search(r"^Not run: (everything|.*--runs='?([^'`]*))", part, re.M)
    named = bool(listed) and (listed[1] == "everything" or name in listed[2].split(","))
    return named and f"**{name}**" not in part


def split_cells(line):
    return [cell.strip() for cell in line.split("|")]


def without_time(run):
    """What two runs of one seed must share."""
    kept = copy.deepcopy(
        {key: run[key] for key in ("test_result", "best_valid_result", "epochs", "best_epoch", "config")}
    )
    return kept, [{key: point[key] for key in ("epoch", "valid_score", "train_loss")} for point in run["curve"]]


# ---------------------------------------------------------------------- running


@pytest.mark.slow
def test_it_runs_what_is_missing_and_the_page_says_what_the_files_say(tmp_path, capsys):
    assert call(tmp_path, "--runs=Diffu Rec,Pop", "--seeds=1")
    run = result(tmp_path, "Diffu-Rec.markov-toy.1")
    assert (run["name"], run["model"], run["dataset"], run["seed"]) == ("Diffu Rec", "DiffuRec", "markov-toy", 1)
    assert (
        run["config"]["seed"] == 1 and run["config"]["num_steps"] == 4 and run["config"]["lambda_uncertainty"] == 0.001
    )
    assert run["epochs"] == 3 == len(run["curve"]) and [point["epoch"] for point in run["curve"]] == [1, 2, 3]
    best = max(run["curve"], key=lambda point: point["valid_score"])
    assert run["best_epoch"] == best["epoch"]
    assert run["best_valid_result"]["ndcg@10"] == pytest.approx(best["valid_score"], abs=1e-6)
    assert run["curve"][0]["seconds"] < run["curve"][1]["seconds"] < run["curve"][2]["seconds"] == run["seconds"]
    assert run["peak_memory"]["process_mib"] > 100 and run["peak_memory"]["gpu_mib"] is None
    [made_by] = run["made_by"]
    assert made_by["device_type"] == "cpu" and made_by["versions"]["recbole"] == "1.2.1"
    # Nothing of this machine: no folder it ran in, no data path.
    text = json.dumps(run)
    assert str(tmp_path) not in text and str(ROOT) not in text

    # The same parameters by the ordinary way give the same numbers.
    from recbole_diffusion.quick_start import run as quick_run

    config = {**DIFFUREC["config"], "seed": 1, "data_path": f"{ROOT / 'dataset'}/", "state": "ERROR"}
    ordinary = quick_run("DiffuRec", "markov-toy", None, {**config, "show_progress": False, "gpu_id": ""})
    assert run["test_result"] == dict(ordinary["test_result"])

    row = cells(page(tmp_path), "Diffu Rec")
    for metric, cell in zip(results_table.METRICS, row, strict=False):
        assert cell == f"{run['test_result'][metric.lower().replace('hr', 'hit')]:.4f} (1)"
    assert row[6:8] == [f"3 ({run['best_epoch']})", f"{run['seconds']:,.0f}"]
    assert is_not_run(page(tmp_path), "SASRec")
    assert "2 of 6 runs are done." in page(tmp_path)
    assert f"`{tmp_path}" not in page(tmp_path) and str(ROOT) not in page(tmp_path)

    # A second call leaves what is done, and trains what is not.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    capsys.readouterr()
    assert call(tmp_path, "--runs=Diffu Rec,Pop")
    assert capsys.readouterr().out.count("is done") == 2
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    assert len(after) == 4 and files.items() <= after.items()

    values = [result(tmp_path, f"Diffu-Rec.markov-toy.{seed}")["test_result"]["ndcg@10"] for seed in (1, 2)]
    assert cells(page(tmp_path), "Diffu Rec")[4] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} (2)"
    # Pop draws nothing: the seeds agree. And it counts all interactions of the training data, nothing else.
    assert cells(page(tmp_path), "Pop")[4].endswith("± 0.0000 (2)")
    [file] = (tmp_path / "out" / "saved" / "Pop.markov-toy.1").glob("*.pth")
    users = [
        line.split("\t")[0] for line in (ROOT / "dataset/markov-toy/markov-toy.inter").read_text().splitlines()[1:]
    ]
    counted = load_checkpoint(file)["other_parameter"]["item_cnt"].sum()
    assert counted == len(users) - 2 * len(set(users))


@pytest.mark.slow
@pytest.mark.parametrize("name, slug", [("Diffu Rec", "Diffu-Rec"), ("SASRec", "SASRec")])
def test_a_run_cut_at_any_point_goes_on_to_the_same_end(tmp_path, monkeypatch, name, slug):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    assert call(whole, f"--runs={name}", "--seeds=1")

    shown = []

    def show(text):
        shown.append(text.strip())
        if len(shown) == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "show", show)
    stop_at = 3  # after the point of epoch 2, before its state is saved
    with pytest.raises(KeyboardInterrupt):
        call(cut, f"--runs={name}", "--seeds=1")
    assert [text.split(":")[0] for text in shown[1:]] == ["epoch 1", "epoch 2"] and not (cut / "out" / "runs").exists()
    # What a crash may leave besides: the lock of a process that is gone; and the folder has moved.
    os.rename(cut, tmp_path / "moved")
    cut = tmp_path / "moved"
    folder = cut / "out" / "saved" / f"{slug}.markov-toy.1"
    [last] = folder.glob("*-last.pth")
    state = load_checkpoint(last)
    assert [point["epoch"] for point in state["curve"]] == [1]
    state["curve"][0]["seconds"] = 1000.0
    save_checkpoint(state, last)
    assert (folder / "lock").read_text() == str(os.getpid())

    shown.clear()
    stop_at = None
    assert call(cut, f"--runs={name}", "--seeds=1")
    assert [text.split(":")[0] for text in shown[1:3]] == ["epoch 2", "epoch 3"], "epoch 1 need not be trained again"
    first, second = result(whole, f"{slug}.markov-toy.1"), result(cut, f"{slug}.markov-toy.1")
    assert without_time(first) == without_time(second)
    assert second["curve"][0]["seconds"] == 1000 < second["curve"][1]["seconds"] < second["seconds"]
    assert not list(folder.glob("*-last.pth")) and len(list(folder.glob("*.pth"))) == 1
    assert not (tmp_path / "cut").exists()


@pytest.mark.slow
def test_when_the_time_is_up_it_stops_after_an_epoch_and_loses_none(tmp_path, capsys):
    args = arguments(tmp_path, "--runs=Diffu Rec", "--seeds=1")
    job = manifests.Job(manifests.load_manifest(args.manifest).runs[0], "markov-toy", 1)
    args.deadline = 0.0  # long ago
    for _ in range(3):
        with pytest.raises(jobs.Paused):
            jobs.run(job, args, {})
    assert "done" in jobs.run(job, args, {})
    assert re.findall(r"epoch (\d)", capsys.readouterr().out) == ["1", "2", "3"]
    paused = result(tmp_path, "Diffu-Rec.markov-toy.1")
    (tmp_path / "out" / "runs" / "Diffu-Rec.markov-toy.1.json").unlink()
    assert call(tmp_path, "--runs=Diffu Rec", "--seeds=1")
    assert without_time(paused) == without_time(result(tmp_path, "Diffu-Rec.markov-toy.1"))
    capsys.readouterr()
    assert call(tmp_path, "--runs=Pop", "--minutes=0")
    assert "The time is up." in capsys.readouterr().out and not list((tmp_path / "out" / "runs").glob("Pop*"))


@pytest.mark.slow
def test_a_cut_run_with_other_parameters_begins_anew(tmp_path, monkeypatch):
    args = arguments(tmp_path, "--runs=Diffu Rec", "--seeds=1")
    args.deadline = 0.0
    job = manifests.Job(manifests.load_manifest(args.manifest).runs[0], "markov-toy", 1)
    with pytest.raises(jobs.Paused):
        jobs.run(job, args, {})
    changed = {**DIFFUREC, "config": {**DIFFUREC["config"], "learning_rate": 0.002}}
    write_manifest(tmp_path, runs=[changed, SASREC])
    shown = []
    monkeypatch.setattr(jobs, "show", shown.append)
    assert call(tmp_path, "--runs=Diffu Rec", "--seeds=1")
    assert "epoch 1" in shown[1] and result(tmp_path, "Diffu-Rec.markov-toy.1")["epochs"] == 3
    assert len(list((tmp_path / "out" / "saved" / "Diffu-Rec.markov-toy.1").glob("*.pth"))) == 1


@pytest.mark.slow
def test_a_run_in_progress_elsewhere_is_left_alone(tmp_path, capsys):
    folder = tmp_path / "out" / "saved" / "Pop.markov-toy.1"
    with jobs.locked(folder) as pid:
        assert pid == 0
        assert call(tmp_path, "--runs=Pop", "--seeds=1")
        assert f"in progress in process {os.getpid()}" in capsys.readouterr().out
        assert not (tmp_path / "out" / "runs").exists()
    (folder / "lock").write_text("1")  # a pid that lives, but holds nothing
    assert call(tmp_path, "--runs=Pop", "--seeds=1") and result(tmp_path, "Pop.markov-toy.1")


@pytest.mark.slow
def test_one_that_fails_is_told_and_the_others_run(tmp_path, capsys):
    broken = {"name": "Broken", "model": "DiffuRec", "config": {"noise_schedule": "linaer"}}
    unknown = {"name": "Unknown", "model": "NoSuchModel"}
    write_manifest(tmp_path, runs=[broken, unknown, SASREC, POP])
    assert not call(tmp_path, "--runs=Broken,Unknown,Pop", "--seeds=1")
    out = capsys.readouterr().out
    assert "linaer" in out and "NoSuchModel" in out and "Traceback" not in out
    assert result(tmp_path, "Pop.markov-toy.1")["epochs"] == 1 and is_not_run(page(tmp_path), "Broken")


@pytest.mark.slow
def test_a_trial_is_stored_as_one_and_never_counts(tmp_path, monkeypatch, capsys):
    assert call(tmp_path, "--runs=SASRec", "--seeds=1", "--set=epochs=1", "--set=learning_rate=1e-4")
    run = result(tmp_path, "SASRec.markov-toy.1")
    assert run["set"] == {"epochs": 1, "learning_rate": 1e-4} and run["epochs"] == 1
    assert run["config"]["learning_rate"] == 1e-4 and "--set=epochs=1" in run["command"]
    assert "trials, not results" in page(tmp_path) and "†" not in page(tmp_path)
    monkeypatch.setattr(results_table, "RESULTS", tmp_path / "out")
    assert call(tmp_path, "--render-only") and is_not_run(page(tmp_path), "SASRec")
    monkeypatch.setattr(jobs, "RESULTS", tmp_path / "out")
    with pytest.raises(ValueError, match="set needs results"):
        call(tmp_path, "--set=epochs=1")


@pytest.mark.parametrize(
    "args, message",
    [
        (["--runs=SASRek"], r"runs \[SASRek\] is unknown: choose from Diffu Rec, SASRec, Pop"),
        (["--runs=,"], r"runs \[,\] names nothing"),
        (["--datasets=amazon-books"], r"datasets \[amazon-books\]"),
        (["--seeds=9"], r"seeds \[9\] is unknown: choose from 1, 2"),
    ],
)
def test_what_is_not_in_the_manifest_is_refused(tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        call(tmp_path, *args)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_script_names_what_is_wrong_without_a_traceback(tmp_path):
    script = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "reproduce.py"), "--runs=Pop", "--set=epochs=1"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "set needs results" in done.stderr and "Traceback" not in done.stderr


# ---------------------------------------------------------------------- the manifest


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"runs": [SASREC, SASREC]}, "stands twice"),
        ({"runs": [{**SASREC, "confg": {}}]}, r"key \[confg\] is unknown"),
        ({"runs": [{"name": "SASRec"}]}, "model"),
        ({"baseline": "BPR"}, r"baseline \[BPR\]"),
        ({"seeds": []}, "seeds"),
        ({"runs": [{**SASREC, "per_dataset": {"ml-1m": {}}}]}, r"per_dataset of \[SASRec\] \[ml-1m\]"),
        ({"runs": [{**SASREC, "paper": {"table": "Table 5"}}]}, "paper, table, model"),
    ],
)
def test_a_manifest_that_is_wrong_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        manifests.load_manifest(write_manifest(tmp_path, **changes))


@pytest.mark.parametrize(
    "config, message",
    [({"hiden_size": 8}, "hiden_size"), ({"eval_step": 0}, "eval_step"), ({"data_path": "elsewhere/"}, "data_path")],
)
def test_a_key_that_would_do_nothing_or_harm_is_refused(config, message):
    row = manifests.Row("SASRec", "SASRec", config)
    with pytest.raises(ValueError, match=message):
        manifests.job_config(manifests.Job(row, "markov-toy", 1))


def test_a_row_that_names_a_line_no_paper_has_is_refused_before_any_run(tmp_path):
    row = {**POP, "paper": {"paper": "diffurecsys", "table": "Table 3", "model": "Pop"}}
    write_manifest(tmp_path, runs=[SASREC, row])
    with pytest.raises(ValueError, match="diffurecsys, Table 3, Pop"):
        call(tmp_path, "--runs=Pop")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_manifest_of_the_project_can_be_run_and_says_only_what_differs():
    manifest, papers = manifests.load_manifest(), manifests.load_papers()
    for job in manifest.jobs(manifest.datasets, [row.name for row in manifest.runs], [1]):
        config = result_settings(manifests.job_config(job))
        changes = job.row.overrides(job.dataset)
        default = result_settings(
            manifests.job_config(manifests.Job(manifests.Row("x", job.row.model), job.dataset, 1))
        )
        assert {key for key in config if config[key] != default[key]} == {
            key for key, value in changes.items() if default.get(key) != value or key not in manifest.config
        }
        manifests.paper_values(job.row, job.dataset, papers)
    by_name = {row.name: row for row in manifest.runs}
    value = manifests.paper_values(by_name["DiffuRec"], "amazon-beauty", papers)
    assert value["HR@10"] == (0.0790, None) and value["NDCG@10"] == (0.0475, None)
    assert manifests.paper_values(by_name["DiffuRecSys V2"], "amazon-beauty", papers)["HR@5"] == (0.0667, 0.0014)
    assert manifests.paper_values(by_name["CDDRec"], "amazon-beauty", papers)["HR@10"] == (0.0770, None)


def test_one_seed_of_everything_comes_before_five_of_one():
    manifest = manifests.load_manifest()
    names = [row.name for row in manifest.runs]
    jobs = manifest.jobs(manifest.datasets, names, manifest.seeds)
    count = len(names)
    assert len(jobs) == count * 3 * 5 == len(set(map(str, jobs)))
    assert [job.seed for job in jobs[: 3 * count]] == [1] * 3 * count
    assert [job.dataset for job in jobs[: 3 * count : count]] == list(manifest.datasets)
    priorities = [job.row.priority for job in jobs[:count]]
    assert priorities == sorted(priorities) and {1, 2, 3} == set(priorities)
    assert all(job.dataset == "amazon-beauty" and job.seed > 1 for job in jobs[3 * count : 7 * count])


@pytest.mark.slow
def test_a_dataset_for_gpus_is_left_out_without_one_unless_it_is_named(tmp_path, capsys):
    write_manifest(tmp_path, datasets={"markov-toy": {"gpu_only": True}})
    assert call(tmp_path, "--runs=Pop") and "must be asked for" in capsys.readouterr().out
    assert not (tmp_path / "out" / "runs").exists()
    assert call(tmp_path, "--runs=Pop", "--seeds=1", "--datasets=markov-toy")
    assert result(tmp_path, "Pop.markov-toy.1")


# ---------------------------------------------------------------------- what is made of the numbers


def fake_run(name, dataset, seed, value):
    """A run's file with every metric at ``value``, and what its row says as its parameters."""
    row = next(row for row in manifests.load_manifest().runs if row.name == name)
    metrics = {f"{kind}@{k}": value for kind in ("hit", "ndcg") for k in (5, 10, 20)}
    part = {"device": "A device", "device_type": "cuda", "threads": 1}
    goals = {"within_2_percent": {"epochs": 3, "seconds": 30.0}, "past_paper": {"epochs": None, "seconds": None}}
    return {
        "name": name, "dataset": dataset, "seed": seed, "set": {}, "test_result": metrics, "epochs": 8, "best_epoch": 5,
        "seconds": 1234.5, "cost_to_quality": goals, "made_by": [part],
        "config": result_settings(manifests.job_config(manifests.Job(row, dataset, seed))),
    }  # fmt: skip


def rendered(folder, *runs):
    """The page for these runs, without the spaces that align its columns."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for number, run in enumerate(runs):
        (folder / "runs" / f"{number}.json").write_text(json.dumps(run))
    page = results_table.render(manifests.load_manifest(), folder, manifests.load_papers())
    return re.sub(r" +\|", " |", page)


def test_the_papers_value_and_the_difference_stand_below_ours(tmp_path):
    text = rendered(tmp_path, *(fake_run("DiffuRec", "amazon-beauty", seed, 0.05 + seed / 1000) for seed in (1, 2, 3)))
    part = text.split("## amazon-toys-games\n")[0]
    assert cells(text, "DiffuRec", "amazon-beauty") == ["0.0520 ± 0.0010 (3)"] * 6 + ["8 (5)", "1,234", "A device"]
    paper, difference = map(split_cells, re.search(r"\*\*DiffuRec\*\*.*\n\|(.*)\n\|(.*)\n", part).groups())
    assert paper[1:7] == ["0.0557", "0.0790", "0.1110", "0.0400", "0.0475", "0.0556"]
    assert difference[4:6] == ["+0.0120 (+30.0%)", "+0.0045 (+9.5%)"]
    assert "| DiffuRec | 3 | 30 | never (0 of 3) | never (0 of 3) |" in part
    assert "--datasets=amazon-beauty --runs=DiffuRec  # seeds run: 1, 2, 3" in part
    assert is_not_run(text, "SASRec", "amazon-beauty") and not is_not_run(text, "DiffuRec", "amazon-beauty")
    everything = "python benchmarks/reproduce.py --data_path=dataset/ --datasets=amazon-toys-games"
    assert f"## amazon-toys-games\n\nNot run: everything, `{everything}`\n" in text


@pytest.mark.slow
def test_the_t_test_pairs_seeds_and_needs_two(tmp_path):
    """Differences 0.01, 0.02, 0.03 over the shared seeds: t = 2 sqrt(3), p = 0.0742 with two degrees of freedom."""
    base = [fake_run("SASRec", "amazon-beauty", seed, value) for seed, value in ((1, 0.04), (2, 0.02), (3, 0.03))]
    own = [fake_run("DiffuRec", "amazon-beauty", s, v) for s, v in ((1, 0.05), (2, 0.04), (3, 0.06), (4, 0.9))]
    alone = fake_run("CDDRec", "amazon-beauty", 1, 0.05)
    part = rendered(tmp_path, *base, *own, alone).split("### Cost")[0].split("### Against SASRec")[1]
    assert "| DiffuRec | 3 | +0.0200 | 0.074 | +0.0200 | 0.074 |" in part and "CDDRec" not in part


def test_parameters_that_changed_since_are_told(tmp_path):
    run = fake_run("DiffuRec", "amazon-beauty", 1, 0.05)
    assert "†" not in rendered(tmp_path, run)
    run["config"]["learning_rate"] = 0.5
    text = rendered(tmp_path, run)
    assert "**DiffuRec** †" in text and "- DiffuRec: `learning_rate` 0.5 → 0.001\n" in text


def test_notes_survive_and_runs_outside_the_manifest_are_named(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "DiffuRecSys-V2.md").write_text("Reached, as the seed was lucky.\n")
    text = rendered(tmp_path, {**fake_run("DiffuRec", "amazon-beauty", 1, 0.05), "name": "Gone"})
    assert "### DiffuRecSys V2\n\nReached, as the seed was lucky.\n" in text
    assert "left out: Gone on amazon-beauty" in text and "0 of " in text
    assert text == rendered(tmp_path)


def test_cost_to_quality_is_where_the_curve_first_came_there():
    scores = [0.010, 0.030, 0.0393, 0.035, 0.040, 0.039]
    curve = [{"epoch": i + 1, "valid_score": score, "seconds": 10.0 * (i + 1)} for i, score in enumerate(scores)]
    cost = jobs.cost_to_quality(curve, {"NDCG@10": (0.03, None)})
    assert cost["within_2_percent"] == {"value": pytest.approx(0.0392), "epochs": 3, "seconds": 30.0}
    assert cost["past_paper"] == {"value": 0.03, "epochs": 2, "seconds": 20.0}
    assert jobs.cost_to_quality(curve, {"NDCG@10": (0.041, None)})["past_paper"]["epochs"] is None
    assert jobs.cost_to_quality(curve, {})["past_paper"] is None


def test_epochs_trained_elsewhere_are_told_apart():
    here, there = {"commit": "a", "device": "x"}, {"commit": "b", "device": "x"}
    curve = [{"epoch": epoch, "made_by": part} for epoch, part in ((1, here), (2, here), (3, there))]
    assert jobs.makers(curve) == [{"first_epoch": 1, **here}, {"first_epoch": 3, **there}]
