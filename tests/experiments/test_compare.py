"""A comparison runs what is missing and no more, computes what SciPy does, and writes tables that can be used."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import ttest_1samp

from recbole_diffusion.compare import main
from recbole_diffusion.experiments import compare_tables as module
from recbole_diffusion.experiments.compare import compare
from recbole_diffusion.experiments.compare_tables import holm, paired_interval, paired_test
from recbole_diffusion.experiments.runs import checksums, run_or_resume

from ..conftest import ROOT, TINY

PARAMETERS = {**TINY, "n_layers": 1, "num_steps": 4, "epochs": 2, "limit_train_batches": 2}
PARAMETERS |= {"data_path": str(ROOT / "dataset"), "state": "ERROR", "metrics": ["Hit", "NDCG"], "topk": [5, 10]}


def files(folder) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_model_ranked_under_one_protocol_stands_beside_its_metrics_alone(tmp_path, repeatable):
    (tmp_path / "own.yaml").write_text(f"per_model: {{Pop: {{repeatable: {repeatable}}}}}\n")
    parameters, files = {**PARAMETERS, "epochs": 1}, [str(tmp_path / "own.yaml")]
    result = compare(["SASRecPlus", "Pop"], "markov-toy", 1, None, files, parameters, tmp_path / "out")
    parts = re.split("^## ", result["markdown"].read_text(), flags=re.M)[1:]
    titles = ["Metrics on markov-toy, history as candidates", "Metrics on markov-toy, history masked"]
    titles.insert(1 if repeatable else 2, f"Against Pop, history {'as candidates' if repeatable else 'masked'}")
    assert [part.splitlines()[0] for part in parts] == titles
    with_pop = parts[0 if repeatable else 1]
    assert ["Pop: ranked under this protocol alone" in part for part in parts] == [part is with_pop for part in parts]
    run, pop = (result["runs"][model][1] for model in ("SASRecPlus", "Pop"))
    assert f"{pop['test_result']['hit@5']:.4f}" in with_pop
    own = run["test_results"]["candidates" if repeatable else "masked"]
    assert f"{own['hit@5'] - pop['test_result']['hit@5']:+.4f}" in next(part for part in parts if "Against" in part)


@pytest.mark.slow
def test_runs_on_other_data_are_not_put_into_one_table(tmp_path):
    shutil.copytree(ROOT / "dataset" / "markov-toy", tmp_path / "data" / "markov-toy")
    parameters = {**PARAMETERS, "epochs": 1, "data_path": str(tmp_path / "data")}

    def go(seeds):
        return compare(["SASRecPlus"], "markov-toy", seeds, None, None, parameters, tmp_path / "out")["runs"]

    runs = go([1])
    assert go([1]) == runs
    file = tmp_path / "data" / "markov-toy" / "markov-toy.inter"
    head, *lines = file.read_text().splitlines()
    file.write_text("\n".join([head, *reversed(lines)]) + "\n")
    with pytest.raises(ValueError, match=r"SASRecPlus-markov-toy-1.json\] was run on other files of dataset"):
        go([1, 2])
    shutil.rmtree(tmp_path / "data" / "markov-toy")
    assert go([1]) == runs


def test_data_that_change_while_runs_wait_are_not_trained_on(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "dataset" / "markov-toy", tmp_path / "data" / "markov-toy")

    def changing(config, folder):
        (tmp_path / "data" / "markov-toy" / "markov-toy.inter").open("a").write("u\t1\t1\n")
        raise RuntimeError("it has begun")

    monkeypatch.setattr("recbole_diffusion.experiments.compare.run_or_resume", changing)
    parameters = {**PARAMETERS, "data_path": str(tmp_path / "data")}
    compare(["SASRecPlus"], "markov-toy", [1, 2], None, None, parameters, tmp_path / "out")
    first, second = (line for line in capsys.readouterr().out.splitlines() if "failed: " in line)
    assert "it has begun" in first
    assert "the files of dataset [markov-toy] have changed since the comparison began" in second


@pytest.mark.slow
def test_a_comparison_that_was_cut_goes_on_to_the_same_files(tmp_path, monkeypatch):
    epochs, cut = [], (("DiffuRec", 2, 2),)

    def watched(config, folder):
        def note(point):
            epochs.append((config["model"], config["seed"], point["epoch"]))
            if epochs[-1] in cut:
                raise KeyboardInterrupt

        return run_or_resume(config, folder, note)

    monkeypatch.setattr("recbole_diffusion.experiments.compare.run_or_resume", watched)

    def go(output):
        return compare(["DiffuRec", "SASRec"], "markov-toy", 2, config_dict=PARAMETERS, output=output)

    with pytest.raises(KeyboardInterrupt):
        go("cut")
    cut = ()
    trained = len(epochs)
    result = go("cut")
    # Neither a run that was done, nor an epoch that was done, is trained again.
    assert epochs[trained:] == [("DiffuRec", 2, 2), ("SASRec", 2, 1), ("SASRec", 2, 2)]
    whole = go("whole")
    assert files(tmp_path / "cut") == files(tmp_path / "whole") and result["runs"] == whole["runs"]
    names = {f"runs/{model}-markov-toy-{seed}.json" for model in ("DiffuRec", "SASRec") for seed in (1, 2)}
    assert files(tmp_path / "cut").keys() == {"compare.md", "compare.tex", *names}
    for name, text in files(tmp_path / "cut").items():  # of this machine the command alone knows where the data lie
        text = text.replace(f"--data_path={ROOT / 'dataset'}", "") if name.startswith("compare") else text
        assert str(tmp_path) not in text and str(ROOT) not in text
    # The seed matters, and is RecBole's.
    runs = result["runs"]["DiffuRec"]
    assert runs[1]["test_result"] != runs[2]["test_result"] and runs[2]["config"]["seed"] == 2
    # Of this package's and RecBole's models, RecBole's is the baseline.
    assert "## Against SASRec" in result["markdown"].read_text()


@pytest.mark.slow
def test_the_command_line_reaches_every_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "small.yaml").write_text("hidden_size: 16\nn_heads: 2\nn_layers: 1\ninner_size: 32\nepochs: 5\n")
    words = ["--models=DiffuRec,SASRec,Pop", "--dataset=markov-toy", "--seeds=7,", "--config_files=small.yaml"]
    words += ["--epochs=1", "--limit_train_batches=1", "--num_steps=4", "--state=ERROR", f"--data_path={ROOT}/dataset"]
    monkeypatch.setattr(sys, "argv", ["compare", *words, "--output=out"])
    main()
    runs = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "runs").iterdir())]
    assert [(run["model"], run["seed"], run["epochs"]) for run in runs] == [
        ("DiffuRec", 7, 1),
        ("Pop", 7, 1),
        ("SASRec", 7, 1),
    ]
    for run in runs:
        assert (run["config"]["hidden_size"], run["config"]["epochs"]) == (16, 1)
        # RecBole reads sys.argv by itself: the comparison's own flags must not end among a run's parameters.
        assert not run["config"].keys() & {"models", "seeds", "output"}
    assert "## Against Pop" in capsys.readouterr().out
    # The command that the page names makes it anew, from the runs at hand.
    command = re.search(r"```bash\n(.*)\n```", (tmp_path / "out" / "compare.md").read_text())[1]
    assert "--seeds=7, " in command and "--epochs=1" in command and f"--data_path={ROOT}/dataset" in command

    # The runs of other parameters are not mixed with these.
    monkeypatch.setattr(sys, "argv", ["compare", *words, "--output=out", "--learning_rate=0.5"])
    with pytest.raises(SystemExit, match=r"DiffuRec-markov-toy-7.json\] was run with learning_rate \[0.001\], not"):
        main()


def test_a_run_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    words = ["--models=DiffuRec,Pop", "--dataset=markov-toy", "--seeds=1", "--initializer_range=9e18", "--epochs=1"]
    words += ["--hidden_size=16", "--n_heads=2", "--n_layers=1", "--num_steps=4", "--state=ERROR"]
    monkeypatch.setattr(sys, "argv", ["compare", *words, f"--data_path={ROOT}/dataset"])
    with pytest.raises(SystemExit, match="Failed: DiffuRec-markov-toy-1;"):
        main()
    out = capsys.readouterr().out
    assert "Failed: DiffuRec-markov-toy-1: Training loss is [nan]" in out and "| Pop " in out
    assert "\n| DiffuRec" not in out and "Against" not in out


def test_a_model_of_recbole_that_fails_does_not_stop_the_others(monkeypatch, capsys):
    words = ["--models=FDSA,Pop", "--dataset=markov-toy", "--seeds=1", "--epochs=1", "--state=ERROR"]
    monkeypatch.setattr(sys, "argv", ["compare", *words, f"--data_path={ROOT}/dataset"])
    with pytest.raises(SystemExit, match="Failed: FDSA-markov-toy-1;"):
        main()
    out = capsys.readouterr().out
    assert "failed: selected_features [class] of [FDSA] are no columns" in out and "| Pop " in out


def test_the_statistics_are_those_of_the_textbook_and_of_scipy():
    # Differences 1, 2, 3: t = 2 sqrt(3) with two degrees of freedom, whose p has a closed form.
    mean, p, d = paired_test([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    t = 2 * math.sqrt(3)
    assert mean == 2 and d == 2 and math.isclose(p, 1 - t / math.sqrt(t * t + 2))
    ours, base = [0.31, 0.28, 0.35, 0.30, 0.33], [0.30, 0.29, 0.31, 0.27, 0.33]
    mean, p, d = paired_test(ours, base)
    test = ttest_1samp([a - b for a, b in zip(ours, base, strict=True)], 0)
    assert math.isclose(p, test.pvalue) and math.isclose(d, test.statistic / math.sqrt(5))


def test_holms_p_values_are_those_of_the_steps_by_hand():
    """0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1, which may not fall below the one before it; never above 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_the_interval_of_paired_differences_is_students():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.3027."""
    low, high = paired_interval([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))


@pytest.mark.filterwarnings("error")  # SciPy and NumPy warn where they divide by zero
@pytest.mark.parametrize(
    "values, baseline", [([0.2, 0.2], [0.1, 0.1]), ([0.2, 0.3], [0.2, 0.3]), ([0.2], [0.1]), ([0.3, 0.2], [0.2, 0.1])]
)
def test_without_spread_nothing_is_tested(values, baseline):
    mean, p, d = paired_test(values, baseline)
    assert math.isclose(mean, values[0] - baseline[0]) and p is None and d is None


def made_up(**metrics) -> dict[int, dict]:
    """Runs of a model under the seeds 1, 2, ..., with these values."""
    rows = zip(*metrics.values(), strict=True)
    return {
        seed: {"test_result": dict(zip(metrics, row, strict=True)), "epochs": seed}
        for seed, row in enumerate(rows, start=1)
    }


RUNS = {
    "SASRec": made_up(**{"hit@10": [0.30, 0.32, 0.34], "averagepopularity@10": [5.0, 5.0, 5.0]}),
    "Di_ff": made_up(**{"hit@10": [0.41, 0.39, 0.40], "averagepopularity@10": [7.0, 7.0, 7.0]}),
    "Tied": made_up(**{"hit@10": [0.40001] * 3, "averagepopularity@10": [9.0] * 3}),
}
RUNS["Tied"][4] = RUNS["Tied"].pop(1)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_tables_hold_mean_deviation_and_test(capsys):
    metrics, tests = (table.markdown().splitlines() for table in module.comparison_tables(RUNS, "shop", "SASRec"))
    # Of popularity RecBole says that less is better; what prints the same is equally good.
    assert [cells(line) for line in metrics if line.startswith("| ")] == [
        ["model", "hit@10", "averagepopularity@10", "seeds", "epochs"],
        ["SASRec", "0.3200 ± 0.0200", "**5.0000** ± 0.0000", "3", "2.0"],
        ["Di_ff", "**0.4000** ± 0.0100", "7.0000 ± 0.0000", "3", "2.0"],
        ["Tied", "**0.4000** ± 0.0000", "9.0000 ± 0.0000", "3", "2.0"],
    ]
    _, p, d = paired_test([0.41, 0.39, 0.40], [0.30, 0.32, 0.34])
    rows = [cells(line) for line in tests if line.startswith("| ")]
    assert rows[1] == ["Di_ff", "hit@10", "+0.0800", f"{p:.2g}", f"{d:+.2f}", "3"]
    assert rows[2] == ["Di_ff", "averagepopularity@10", "+2.0000", "n/a", "n/a", "3"]
    assert rows[3][:3] == ["Tied", "hit@10", "+0.0700"] and rows[3][5] == "2"  # the seeds that both have


def test_the_papers_numbers_stand_beside(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "PAPERS", tmp_path / "papers.csv")
    lines = ["paper,table,dataset,model,metric,value,std"]
    lines += [
        "a,Table 1,shop,SASRec,HR@10,0.31,0.01",
        "a,Table 1,shop,SASRec,NDCG@10,0.2,",
        "a,Table 1,shop,GRU,HR@10,1,",
    ]
    lines += ["b,Table 2,shop,DiffuRecSys (V1),Recall@10,0.42,", "a,Table 1,other,SASRec,HR@10,0.99,"]
    (tmp_path / "papers.csv").write_text("\n".join(lines) + "\n")
    table = module.paper_table(["DiffuRecSys", "SASRec"], "shop", ["hit@10", "ndcg@10"])
    assert table.rows == [
        ["DiffuRecSys (V1)", "b", "Table 2", "0.4200", ""],
        ["SASRec", "a", "Table 1", "0.3100 ± 0.0100", "0.2000"],
    ]
    assert module.paper_table(["Pop"], "shop", ["hit@10"]) is None and "no numbers" in capsys.readouterr().out


def test_the_latex_is_well_formed():
    for table in module.comparison_tables(RUNS, "shop_1 & 50%", "SASRec"):
        text = table.latex()
        bare = re.sub(r"\\[{}&%_$#]", "", text)
        assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
        assert "_" not in bare and "%" not in bare and "**" not in text and "±" not in text
        assert "&" not in bare[: bare.index("tabular")]
        begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
        assert begun == ["table", "tabular"] and ended == begun[::-1]
        columns = len(re.search(r"begin{tabular}{(l+)}", text)[1])
        assert {line.count("&") for line in bare.splitlines() if line.endswith("\\\\")} == {columns - 1}
    assert r"\textbf{0.4000} $\pm$ 0.0100" in module.comparison_tables(RUNS, "shop", "SASRec")[0].latex()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"models": []}, r"models \[\]"),
        ({"models": ["Pop", "Pop"]}, r"models \[Pop,Pop\].*each once"),
        ({"models": ["DifuRec"]}, "Did you mean DiffuRec"),
        ({"baseline": "GRU4Rec"}, r"baseline \[GRU4Rec\].*SASRec, Pop"),
        ({"seeds": 0}, r"seeds \[0\]"),
        ({"seeds": []}, r"seeds \[\[\]\]"),
        ({"seeds": [1, 1]}, r"seeds \[\[1, 1\]\]"),
        ({"seeds": [-1]}, "seeds"),
        ({"seeds": 2.5}, r"seeds \[2.5\]"),
        ({"config_dict": {"seed": 3}}, r"seed \[3\]"),
        ({"config_dict": {"resume": "auto"}}, r"resume \[auto\]"),
        ({"config_dict": {"nproc": 2}}, r"nproc \[2\]"),
        ({"models": ["DiffuRec"], "config_dict": {"num_steps": 0}}, "num_steps"),
        ({"config_file_list": ["seeded.yaml"]}, r"seed \[4\]"),
        ({"config_file_list": ["nothing.yaml"]}, "nothing.yaml"),
        ({"output": "seeded.yaml"}, r"output \[seeded.yaml\] must be a folder, new or old, and \[seeded.yaml\] is a"),
        ({"output": "seeded.yaml/below"}, r"\[seeded.yaml\] is a file"),
    ],
)
def test_bad_options_are_named_before_anything_runs(tmp_path, options, message):
    (tmp_path / "seeded.yaml").write_text("seed: 4\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare(**{"models": ["SASRec", "Pop"], "dataset": "no-such-dataset", **options})


@pytest.mark.parametrize(
    "words, message",
    [
        (["--epochs", "3"], "write parameters as --key=value"),
        (["--seeds=many"], r"\[many\] must be a count"),
        (["--seeds=0"], r"ValueError: seeds \[0\]"),
        (["--config_files=nothing.yaml"], r"FileNotFoundError: .*nothing.yaml"),
    ],
)
def test_the_command_line_names_what_is_wrong(monkeypatch, capsys, words, message):
    monkeypatch.setattr(sys, "argv", ["compare", "--models=Pop", *words])
    with pytest.raises(SystemExit) as error:
        main()
    assert re.search(message, f"{error.value} {capsys.readouterr().err}")


def test_the_default_output_is_none_that_the_repository_ships():
    """Runs that are shipped would be taken for one's own, or end in an error where the code has changed."""
    shipped = subprocess.run(["git", "-C", str(ROOT), "ls-files", "compare"], capture_output=True, text=True).stdout
    assert not shipped and "\n/compare/\n" in (ROOT / ".gitignore").read_text()


def test_a_file_that_is_no_run_is_named(tmp_path):
    file = tmp_path / "out" / "runs" / "Pop-markov-toy-1.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(ValueError, match="Pop-markov-toy-1.json.*not a run"):
        compare(["Pop"], "markov-toy", 1, output="out")


def test_checksums_are_of_the_pairs_whatever_their_order(tmp_path):
    (tmp_path / "toy.inter").write_text("some bytes")

    def sums(*pairs):
        users, items = torch.tensor(pairs).T
        dataset = SimpleNamespace(uid_field="u", iid_field="i", inter_feat={"u": users, "i": items})
        dataset.id2token = lambda field, ids: [f"{field}{number}" for number in ids]
        loader = SimpleNamespace(_dataset=dataset)
        return checksums({"data_path": str(tmp_path), "dataset": "toy"}, loader, loader, loader)

    found = sums((1, 2), (3, 4), (1, 5))
    assert found == sums((3, 4), (1, 5), (1, 2)) and found["train"] == found["test"]
    assert found["interactions"] == hashlib.sha256(b"some bytes").hexdigest()
    assert found["train"] == hashlib.sha256(b"u1\ti2\nu1\ti5\nu3\ti4").hexdigest()
    assert sums((1, 2), (3, 4), (1, 6))["train"] != found["train"]
