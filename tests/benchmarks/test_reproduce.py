"""benchmarks/reproduce.py: what it runs, how it goes on after a cut, and that its page says what the files say."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import ttest_rel

from recbole_diffusion.compat.checkpoint import load_checkpoint, save_checkpoint
from recbole_diffusion.config.settings import result_settings
from recbole_diffusion.quick_start import build_config

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
POP = {"name": "Pop", "model": "Pop", "config": {"train_batch_size": 1, "train_neg_sample_args": None}}
TIER = {"seeds": [1, 2], "baseline": "SASRec", "datasets": {"markov-toy": {}}, "rows": [DIFFUREC, SASREC, POP]}
# One history out of each user, but for rows older than any of another's test.
BY_TIME = {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": None, "mode": "full"}}


def write_manifest(folder, **changes):
    """A manifest of one tier, and of others where ``others`` says so."""
    path = folder / "manifest.yaml"
    others = changes.pop("others", {})
    path.write_text(yaml.safe_dump({"tiers": {"toy": {**TIER, **changes}, **others}}, sort_keys=False))
    return path


def first_job(path, seed=1):
    """The first row of a manifest's first tier on its first dataset."""
    [tier, *_] = manifests.load_manifest(path).tiers
    return manifests.Job(tier, tier.rows[0], next(iter(tier.datasets.values())), seed)


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


def part_of(text, tier="toy", dataset="markov-toy"):
    return text.split(f"\n## {tier}: {dataset}\n")[1].split("\n## ")[0]


def cells(text, name, tier="toy", dataset="markov-toy", table=0):
    """The cells of a row in one of the tables that show it in bold: both protocols, then each with all metrics."""
    found = re.findall(rf"^\| \*\*{name}\*\*[^|]*\|(.*)\|$", part_of(text, tier, dataset), re.M)
    return split_cells(found[table])


def split_cells(line):
    return [cell.strip() for cell in line.split("|")]


def without_time(run):
    """What two runs of one seed must share."""
    kept = copy.deepcopy(
        {key: run[key] for key in ("test_result", "best_valid_result", "epochs", "best_epoch", "config")}
    )
    return kept, [{key: point[key] for key in ("epoch", "valid_score", "train_loss")} for point in run["curve"]]


def assert_ranks_and_checksums(folder, run):
    """The stored ranks give the reported metrics, and all rows of a dataset the same checksums and users."""
    sasrec, pop = (result(folder, f"{name}.markov-toy.1") for name in ("SASRec", "Pop"))
    assert run["data"].keys() == {"interactions", "train", "valid", "test"}
    # Pop, no sequential model, trains on a user's first item as well.
    assert sasrec["data"] == run["data"] == {**pop["data"], "train": run["data"]["train"]} != pop["data"]
    file = ROOT / "dataset" / "markov-toy" / "markov-toy.inter"
    assert run["data"]["interactions"] == hashlib.sha256(file.read_bytes()).hexdigest()
    load = lambda name: np.load(folder / "out" / "ranks" / f"{name}.markov-toy.1.npz")  # noqa: E731
    ranks = load("Diffu-Rec")
    for protocol in ("candidates", "masked"):
        rank = ranks[protocol]
        assert len(rank) == 800 and rank.max() <= 20
        hit = (rank > 0) & (rank <= 10)
        ndcg = np.where(hit, 1 / np.log2(np.maximum(rank, 1) + 1.0), 0)
        assert hit.mean() == pytest.approx(run["test_results"][protocol]["hit@10"], abs=1e-6)
        assert ndcg.mean() == pytest.approx(run["test_results"][protocol]["ndcg@10"], abs=1e-6)
        assert results_table.user_ndcg(folder / "out", {"file": "Diffu-Rec.markov-toy.1"}, protocol) == pytest.approx(
            ndcg, abs=1e-12
        )
    assert set(load("Pop")) == {"user", "candidates"}
    for name in ("SASRec", "Pop"):
        assert (load(name)["user"] == ranks["user"]).all()


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

    # Nothing is shown of a tier before every row has a run.
    assert "2 of 6 runs are done" in page(tmp_path) and "**Diffu Rec**:" not in part_of(page(tmp_path))
    assert call(tmp_path, "--row=SASRec, markov-toy", "--seeds=1")
    row = cells(page(tmp_path), "Diffu Rec")
    found = [run["test_results"][protocol] for protocol in ("candidates", "masked")]
    assert row == [f"{values['ndcg@10']:.4f}" for values in found]
    names = [metric.lower().replace("hr", "hit") for metric in results_table.METRICS]
    assert cells(page(tmp_path), "Diffu Rec", table=2) == [f"{found[1][name]:.4f}" for name in names]
    assert cells(page(tmp_path), "Pop")[1:] == ["none"]
    near = next(point["epoch"] for point in run["curve"] if point["valid_score"] >= 0.98 * best["valid_score"])
    effort = f"| Diffu Rec | 3: best {best['epoch']}, near it {near} | {run['cpu_seconds']:,.0f} |"
    assert effort in re.sub(" +", " ", page(tmp_path))
    assert f"`{tmp_path}" not in page(tmp_path) and str(ROOT) not in page(tmp_path)
    assert_ranks_and_checksums(tmp_path, run)

    # A second call leaves what is done, and trains what is not.
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    capsys.readouterr()
    assert call(tmp_path, "--runs=Diffu Rec,Pop")
    assert capsys.readouterr().out.count("is done") == 2
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").iterdir()}
    assert len(after) == 5 and files.items() <= after.items()

    values = [result(tmp_path, f"Diffu-Rec.markov-toy.{seed}")["test_result"]["ndcg@10"] for seed in (1, 2)]
    assert cells(page(tmp_path), "Diffu Rec")[0] == f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
    assert "**Diffu Rec** (2 seeds)" in page(tmp_path)
    # Pop draws nothing: the seeds agree. And it counts all interactions of the training data, nothing else.
    assert cells(page(tmp_path), "Pop")[0].endswith("± 0.0000")
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
    job = first_job(args.manifest)
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
    job = first_job(args.manifest)
    with pytest.raises(jobs.Paused):
        jobs.run(job, args, {})
    changed = {**DIFFUREC, "config": {**DIFFUREC["config"], "learning_rate": 0.002}}
    write_manifest(tmp_path, rows=[changed, SASREC])
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
    write_manifest(tmp_path, rows=[broken, unknown, SASREC, POP])
    assert not call(tmp_path, "--runs=Broken,Unknown,Pop", "--seeds=1")
    out = capsys.readouterr().out
    assert "linaer" in out and "NoSuchModel" in out and "Traceback" not in out
    assert result(tmp_path, "Pop.markov-toy.1")["epochs"] == 1 and "1 of 8 runs are done" in page(tmp_path)


@pytest.mark.slow
def test_a_trial_is_stored_as_one_and_never_counts(tmp_path, monkeypatch, capsys):
    assert call(tmp_path, "--runs=SASRec", "--seeds=1", "--set=epochs=1", "--set=learning_rate=1e-4")
    run = result(tmp_path, "SASRec.markov-toy.1")
    assert run["set"] == {"epochs": 1, "learning_rate": 1e-4} and run["epochs"] == 1
    assert run["config"]["learning_rate"] == 1e-4 and "--set=epochs=1" in run["command"]
    assert "trials, not results" in page(tmp_path) and "†" not in page(tmp_path)
    monkeypatch.setattr(results_table, "RESULTS", tmp_path / "out")
    assert call(tmp_path, "--render-only") and "0 of 6 runs are done" in page(tmp_path)
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
        ({"rows": [SASREC, SASREC]}, "stands twice"),
        ({"others": {"again": TIER}}, "stands twice"),
        ({"rows": [{**SASREC, "confg": {}}]}, r"key \[confg\] is unknown"),
        ({"rows": [{"name": "SASRec"}]}, "model"),
        ({"runs": []}, r"tier \[toy\]: key \[runs\] is unknown"),
        ({"datasets": {"markov-toy": {"gpu": True}}}, r"key \[gpu\] is unknown"),
        ({"baseline": "BPR"}, r"baseline \[BPR\]"),
        ({"seeds": []}, "seeds"),
        ({"rows": [{**SASREC, "per_dataset": {"ml-1m": {}}}]}, r"per_dataset of \[SASRec\] \[ml-1m\]"),
        ({"rows": [{**SASREC, "datasets": ["ml-1m"]}]}, r"datasets of \[SASRec\] \[ml-1m\]"),
        ({"rows": [{**SASREC, "against": ["BPR"]}]}, r"against of \[SASRec\] \[BPR\]"),
        ({"rows": [SASREC, {**POP, "against": ["Pop"]}]}, r"against of \[Pop\] \[Pop\]"),
        ({"rows": [{**SASREC, "paper": {"table": "Table 5"}}]}, "paper, table, model"),
    ],
)
def test_a_manifest_that_is_wrong_is_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        manifests.load_manifest(write_manifest(tmp_path, **changes))


@pytest.mark.parametrize(
    "config, message",
    [({"hiden_size": 8}, "hiden_size"), ({"eval_step": 0}, "eval_step"), ({"data_path": "elsewhere/"}, "data_path")],
)
def test_a_key_that_would_do_nothing_or_harm_is_refused(tmp_path, config, message):
    path = write_manifest(tmp_path, rows=[{"name": "SASRec", "model": "SASRec", "config": config}])
    with pytest.raises(ValueError, match=message):
        manifests.job_config(first_job(path))


def test_what_a_search_found_stands_below_the_row_and_above_the_tiers_file(tmp_path):
    (tmp_path / "common.yaml").write_text("learning_rate: 0.5\nhidden_size: 8\nn_layers: 3\n")
    row = {"name": "SASRec", "model": "SASRec", "searched": "found.yaml", "config": {"hidden_size": 64}}
    path = write_manifest(tmp_path, config_file="common.yaml", rows=[row])
    with pytest.raises(ValueError, match=r"SASRec, markov-toy, seed 1: .* searched first, for \[found.yaml\]"):
        manifests.job_config(first_job(path))
    (tmp_path / "found.yaml").write_text("learning_rate: 0.25\nhidden_size: 16\n")
    config = manifests.job_config(first_job(path))
    assert [config[key] for key in ("learning_rate", "hidden_size", "n_layers")] == [0.25, 64, 3]


def test_what_a_search_found_is_the_best_of_the_trials_that_are_published():
    """benchmarks/small/<Model>.yaml is the first line of results/search/<Model>-ml-100k.csv by validation."""
    files = sorted((ROOT / "benchmarks" / "small").glob("[A-Z]*.yaml"))
    assert len(files) == 8
    for file in files:
        trials = pd.read_csv(ROOT / "results" / "search" / f"{file.stem}-ml-100k.csv")
        best = trials.loc[trials["best_valid_score"].idxmax()]
        assert len(trials) >= 8
        for key, value in manifests._read_yaml(file).items():
            assert best[key] == value


def test_what_a_search_found_for_one_model_stands_below_the_row(tmp_path):
    found = "n_layers: 3\nper_model:\n  SASRec: {hidden_size: 16, n_heads: 4}\n  GRU4Rec: {num_layers: 2}\n"
    (tmp_path / "found.yaml").write_text(found)
    row = {"name": "SASRec", "model": "SASRec", "searched": "found.yaml", "config": {"n_heads": 8}}
    path = write_manifest(tmp_path, rows=[row])
    assert first_job(path).row.config == {"n_layers": 3, "hidden_size": 16, "n_heads": 8}


def test_the_tuned_settings_are_those_of_the_row_whose_results_are_published():
    """props/tuned.yaml is what SASRecPlus's row was trained with, but for how often it is validated and bf16."""
    [tier] = [tier for tier in manifests.load_manifest().tiers if tier.name == "seen"]
    [job, *_] = tier.jobs(tier.datasets, ["SASRecPlus with learned seen items"])
    wanted = manifests.job_config(job)
    files = [str(ROOT / "props" / "tuned.yaml")]
    found = build_config(job.row.model, job.data.dataset, files, {"seed": job.seed, "state": "ERROR"})
    wanted, found = result_settings(wanted), result_settings(found)
    assert {key for key in wanted if wanted[key] != found[key]} <= {"enable_amp", "eval_step", "stopping_step"}


def test_a_row_that_names_a_line_no_paper_has_is_refused_before_any_run(tmp_path):
    row = {**POP, "paper": {"paper": "diffurecsys", "table": "Table 3", "model": "Pop"}}
    write_manifest(tmp_path, rows=[SASREC, row])
    with pytest.raises(ValueError, match="diffurecsys, Table 3, Pop"):
        call(tmp_path, "--runs=Pop")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_manifest_of_the_project_can_be_run_and_says_only_what_differs():
    manifest, papers = manifests.load_manifest(), manifests.load_papers()
    for tier in manifest.tiers:
        for job in tier.jobs(tier.datasets, [row.name for row in tier.rows]):
            manifests.paper_values(job.row, job.dataset, papers)
            if job.row.missing or job.seed != 1:
                continue
            config, changes = result_settings(manifests.job_config(job)), job.overrides
            bare = replace(job, row=manifests.Row("x", job.row.model), data=replace(job.data, config={}))
            default = result_settings(manifests.job_config(bare))
            said = {key for key, value in changes.items() if default.get(key) != value}
            assert {key for key in config if config[key] != default[key]} == said
            # Each key of a row changes something, but for what all rows of the manifest have and what a search found.
            searched = manifests._read_yaml(ROOT / "benchmarks" / job.row.searched) if job.row.searched else {}
            searched |= (searched.get("per_model") or {}).get(job.row.model, {})
            assert not set(changes) - said - {"enable_amp", "stopping_step"} - searched.keys(), job
    row_of = {(tier.name, row.name): row for tier in manifest.tiers for row in tier.rows}
    value = manifests.paper_values(row_of["papers", "DiffuRec"], "amazon-beauty", papers)
    assert value["HR@10"] == (0.0790, None) and value["NDCG@10"] == (0.0475, None)
    value = manifests.paper_values(row_of["papers", "DiffuRecSys V2"], "amazon-beauty", papers)
    assert value["HR@5"] == (0.0667, 0.0014)
    assert manifests.paper_values(row_of["papers", "CDDRec"], "amazon-beauty", papers)["HR@10"] == (0.0770, None)


def test_tier_by_tier_one_seed_of_everything_comes_before_the_others(tmp_path):
    more = {**TIER, "seeds": [3], "datasets": {"a": {}, "b": {"dataset": "markov-toy"}}, "rows": [SASREC, POP]}
    row = {**POP, "seeds": [1, 5]}
    two = {"markov-toy": {}, "other": {"dataset": "markov-toy"}}
    path = write_manifest(tmp_path, rows=[DIFFUREC, SASREC, row], datasets=two, others={"more": more})
    args = reproduce.parse_args([f"--manifest={path}", "--device=cpu"])
    found = jobs.chosen_jobs(manifests.load_manifest(path), args)
    first, later = [("Diffu Rec", 1), ("SASRec", 1), ("Pop", 1)], [("Diffu Rec", 2), ("SASRec", 2), ("Pop", 5)]
    expected = [(dataset, *job) for part in (first, later) for dataset in two for job in part]
    assert [(job.dataset, job.row.name, job.seed) for job in found[:12]] == expected
    assert all(job.tier.name == "more" for job in found[12:])
    assert [(job.dataset, job.data.dataset) for job in found[12:]] == [("a", "a")] * 2 + [("b", "markov-toy")] * 2
    args = reproduce.parse_args([f"--manifest={path}", "--device=cpu", "--row=Pop, b"])
    assert [str(job) for job in jobs.chosen_jobs(manifests.load_manifest(path), args)] == ["Pop, b, seed 3"]


@pytest.mark.parametrize("args", [["--row=Pop"], ["--row=, a"], ["--row=Pop, a", "--runs=Pop"]])
def test_a_row_that_cannot_be_read_is_refused(args, capsys):
    with pytest.raises(SystemExit):
        reproduce.parse_args(args)
    assert "--row" in capsys.readouterr().err


def test_a_value_that_is_no_yaml_is_refused(capsys):
    with pytest.raises(SystemExit):
        reproduce.parse_args(["--set=a=[1", "--results=x"])
    assert "cannot read --set [a=[1]: its value is no YAML" in capsys.readouterr().err


@pytest.mark.slow
def test_a_split_by_time_is_a_dataset_of_its_own(tmp_path):
    """Every model reads one split of it: rows for testing are newer than what is trained on, several of a user."""
    datasets = {"toy by time": {"dataset": "markov-toy", "config": BY_TIME}}
    rows = [SASREC, DIFFUREC, {"name": "Plus", "model": "SASRecPlus", "config": {**TINY, **SHORT}}, POP]
    write_manifest(tmp_path, datasets=datasets, rows=rows, seeds=[1])
    assert call(tmp_path)
    found = [result(tmp_path, f"{name}.toy-by-time.1") for name in ("SASRec", "Diffu-Rec", "Plus")]
    assert {run["dataset"] for run in found} == {"toy by time"}
    assert found[0]["data"] == found[1]["data"] == found[2]["data"]
    user = np.load(tmp_path / "out" / "ranks" / "Plus.toy-by-time.1.npz")["user"]
    assert 0.09 < len(user) / 9592 < 0.11 and len(np.unique(user)) < len(user)
    text = part_of(page(tmp_path), dataset="toy by time")
    assert re.search(r"\| Plus +\| [+-]0\.\d{4} \([+-]0\.\d{4} to [+-]0\.\d{4}\), p [\d.e-]+ \|", text)


@pytest.mark.slow
def test_a_dataset_for_gpus_is_left_out_without_one_unless_it_is_named(tmp_path, capsys):
    write_manifest(tmp_path, datasets={"markov-toy": {"gpu_only": True}})
    assert call(tmp_path, "--runs=Pop") and "must be asked for" in capsys.readouterr().out
    assert not (tmp_path / "out" / "runs").exists()
    assert call(tmp_path, "--runs=Pop", "--seeds=1", "--datasets=markov-toy")
    assert result(tmp_path, "Pop.markov-toy.1")


# ---------------------------------------------------------------------- what is made of the numbers


def fake_run(name, seed, value, masked=None):
    """A run's file on amazon-beauty with every metric at ``value``, and what its row says as its parameters."""
    [tier] = [tier for tier in manifests.load_manifest().tiers if tier.name == "papers"]
    [job, *_] = tier.jobs(["amazon-beauty"], [name])
    names = [f"{kind}@{k}" for kind in ("hit", "ndcg") for k in (5, 10, 20)]
    metrics, both = dict.fromkeys(names, value), {"candidates": dict.fromkeys(names, value)}
    both["masked"] = dict.fromkeys(names, value if masked is None else masked)
    part = {"device": "A device", "device_type": "cuda", "threads": 1, "commit": "0123456789"}
    goals = {"within_2_percent": {"epochs": 3, "seconds": 30.0}, "past_paper": {"epochs": None, "seconds": None}}
    return {
        "name": name, "dataset": "amazon-beauty", "seed": seed, "set": {}, "test_result": metrics, "test_results": both,
        "epochs": 8, "best_epoch": 5, "seconds": 1234.5, "cpu_seconds": 4321.0, "cost_to_quality": goals,
        "made_by": [part], "data": {"test": "abc"},
        "config": result_settings(manifests.job_config(replace(job, seed=seed))),
    }  # fmt: skip


def everything(but=()):
    """One run of each of the papers' rows, so that they are shown."""
    [tier] = [tier for tier in manifests.load_manifest().tiers if tier.name == "papers"]
    return [fake_run(row.name, 1, 0.03) for row in tier.rows if row.name not in but]


def rendered(folder, *runs):
    """The papers' part of the page for these runs, without the spaces that align its columns."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for run in runs:
        (folder / "runs" / f"{run['name']}.{run['seed']}.json").write_text(json.dumps(run))
    page = results_table.render(manifests.load_manifest(), folder, manifests.load_papers())
    return re.sub(r" +\|", " |", page)


def keep_ranks(folder, name, seed, candidates, masked=None):
    (folder / "ranks").mkdir(exist_ok=True)
    masked = candidates if masked is None else masked
    users = np.arange(len(candidates), dtype=np.int32)
    np.savez_compressed(folder / "ranks" / f"{name}.{seed}.npz", user=users, candidates=candidates, masked=masked)


def test_the_paper_and_the_verdict_stand_below_our_values(tmp_path):
    own = [fake_run("DiffuRec", seed, 0.05 + seed / 1000) for seed in (1, 2, 3)]
    text = rendered(tmp_path, *own, *everything(but=["DiffuRec", "CDDRec"]), fake_run("CDDRec", 1, 0.03, masked=0.0440))
    part = part_of(text, "papers", "amazon-beauty")
    assert cells(text, "DiffuRec", "papers", "amazon-beauty") == ["0.0520 ± 0.0010"] * 2
    assert "| **DiffuRec** (3 seeds) |" in part
    assert "- **DiffuRec**: above, +9.5% (NDCG@10 0.0520, 3 seeds). Zolghadr, Winther and Jeha 2024, Table 3: " in part
    assert "NDCG@10 0.0475" in part
    assert "- **CDDRec**: level, -1.6% (NDCG@10 0.0440, masked, 1 seed)." in part
    assert re.search(r"- \*\*DiffuRecSys V2\*\*: below, -46\.3% \(NDCG@10 0\.0300, 1 seed\)\. \S", part)
    assert "| DiffuRec | 8: best 5, near it 3, past the paper never (0 of 3) | 4,321 |" in part
    assert "- A device: all\n" in part
    assert "--row=DiffuRec, amazon-beauty'  # seeds run: 1, 2, 3" in part
    assert "test abc" in part and "Commits: 0123456." in part
    words = "0 of 16 runs are done, and shown once every row has one. Not run: `python benchmarks/reproduce.py"
    where = "--data_path=dataset/ --tiers=papers --datasets=amazon-toys-games`"
    assert f"## papers: amazon-toys-games\n\n{words} {where}\n" in text


def test_users_are_paired_over_shared_seeds_and_p_is_holms(tmp_path):
    """Gains 1 and 1 / log2(3) against 0 for some of the users; without ranks a row has no test."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 21, 500).astype(np.uint16)
    better, same = np.where(base > 1, base - 1, base).astype(np.uint16), base.copy()
    same[:3] = [1, 2, 0]
    rows = everything()
    (tmp_path / "runs").mkdir()
    for name, ranks in (("SASRecPlus", base), ("DiffuRec", better), ("CDDRec", same)):
        keep_ranks(tmp_path, name, 1, ranks)
    keep_ranks(tmp_path, "DiffuRec", 2, np.zeros(500, np.uint16))  # no seed 2 of the baseline
    text = part_of(rendered(tmp_path, *rows, fake_run("DiffuRec", 2, 0.05)), "papers", "amazon-beauty")

    def gain(rank):
        return np.where((rank > 0) & (rank <= 10), 1 / np.log2(np.maximum(rank, 1) + 1.0), 0)

    tests = {name: ttest_rel(gain(ranks), gain(base)) for name, ranks in (("DiffuRec", better), ("CDDRec", same))}
    smaller, larger = sorted(test.pvalue for test in tests.values())
    expected = {smaller: 2 * smaller, larger: max(2 * smaller, larger)}
    for name, test in tests.items():
        difference = (gain(better if name == "DiffuRec" else same) - gain(base)).mean()
        low, high = test.confidence_interval(0.95)
        line = f"{difference:+.4f} ({low:+.4f} to {high:+.4f}), p {expected[test.pvalue]:.2g}"
        assert f"| {name} | {line} | {line} |" in text
    assert "Not tested, as ranks of one of the two were not kept: DiffuRecSys V2, SeqDiffRec," in text
    assert "alone" not in text
    # A seed that both have and whose ranks one lacks is left out of the test, and that is said.
    text = rendered(tmp_path, *rows, fake_run("DiffuRec", 2, 0.05), fake_run("SASRecPlus", 2, 0.05))
    assert part_of(text, "papers", "amazon-beauty").count("; seed 1 alone |") == 2


def test_a_row_is_tested_against_those_it_names_and_all_tests_are_corrected_together(tmp_path):
    rows = [SASREC, {**DIFFUREC, "against": ["SASRec", "Pop"]}, POP]
    [tier] = manifests.load_manifest(write_manifest(tmp_path, rows=rows, seeds=[1])).tiers
    assert tier.tests == [("Diffu Rec", "SASRec"), ("Diffu Rec", "Pop"), ("Pop", "SASRec")]
    rng = np.random.default_rng(0)
    ranks = {row.name: rng.integers(0, 21, 300).astype(np.uint16) for row in tier.rows}
    runs = {name: [{"seed": 1, "file": f"{name}.1", "data": {"test": "abc"}}] for name in ranks}
    for name, rank in ranks.items():
        keep_ranks(tmp_path, name, 1, rank)
    part = results_table.Part(None, tier, "markov-toy", runs, tmp_path, {})
    text = re.sub(r" +\|", " |", results_table.user_tests(part))
    gain = {
        name: np.where((rank > 0) & (rank <= 10), 1 / np.log2(np.maximum(rank, 1) + 1.0), 0)
        for name, rank in ranks.items()
    }
    tests = {pair: ttest_rel(*(gain[name] for name in pair)) for pair in tier.tests}
    corrected = results_table.holm([test.pvalue for test in tests.values()])
    for (name, other), p in zip(tests, corrected, strict=True):
        low, high = tests[name, other].confidence_interval(0.95)
        label = name if other == "SASRec" else f"{name} less {other}"
        found = f"{(gain[name] - gain[other]).mean():+.4f} ({low:+.4f} to {high:+.4f}), p {p:.2g}"
        assert f"| {label} | {found} | {found} |" in text


def test_of_several_rows_a_user_has_the_mean(tmp_path):
    ranks = {"user": np.array([4, 4, 9], np.int32), "candidates": np.array([1, 0, 2], np.uint16)}
    (tmp_path / "ranks").mkdir()
    np.savez_compressed(tmp_path / "ranks" / "run.npz", **ranks)
    found = results_table.user_ndcg(tmp_path, {"file": "run"}, "candidates")
    assert found == pytest.approx([0.5, 1 / np.log2(3)])
    assert results_table.user_ndcg(tmp_path, {"file": "run"}, "masked") is None


def test_parameters_that_changed_since_are_told(tmp_path):
    runs = everything(but=["DiffuRec"])
    run = fake_run("DiffuRec", 1, 0.05)
    assert "†" not in rendered(tmp_path, *runs, run)
    run["config"]["learning_rate"] = 0.5
    text = rendered(tmp_path, *runs, run)
    assert "**DiffuRec** †" in text and "- DiffuRec: `learning_rate` 0.5 → 0.001\n" in text


def test_notes_survive_and_runs_outside_the_manifest_are_named(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "DiffuRecSys-V2.md").write_text("Reached, as the seed was lucky.\n")
    text = rendered(tmp_path, {**fake_run("DiffuRec", 1, 0.05), "name": "Gone"})
    assert "### DiffuRecSys V2\n\nReached, as the seed was lucky.\n" in text
    assert "left out: Gone on amazon-beauty" in text and "0 of 17 runs are done" in text
    assert text == rendered(tmp_path)
    # A row that is planned elsewhere alone.
    text = rendered(tmp_path, {**fake_run("SASRec", 1, 0.05), "dataset": "amazon-toys-games"})
    assert "left out: Gone on amazon-beauty, SASRec on amazon-toys-games" in text and "0 of 16 runs are done" in text


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
