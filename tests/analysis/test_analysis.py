"""The numbers of every section against a direct computation, and the page that shows them."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_diffusion.analysis import curves
from recbole_diffusion.analysis.__main__ import main
from recbole_diffusion.analysis.evaluation import Evaluation
from recbole_diffusion.analysis.plateau import avg_change
from recbole_diffusion.analysis.report import SECTIONS, analyse
from recbole_diffusion.analysis.stages import _inner_products, start_predictions
from recbole_diffusion.compat.checkpoint import load_checkpoint
from recbole_diffusion.quick_start import run

from ..conftest import ROOT, TINY, batch_of, toy

pytestmark = pytest.mark.slow
QUICK = {"data_path": str(ROOT / "dataset"), "state": "ERROR", "show_progress": False}
QUICK |= {"epochs": 2, "limit_train_batches": 6, "MAX_ITEM_LIST_LENGTH": 8, "learning_rate": 0.005, "n_layers": 1}
ALL = 10_000
DATA = {"data_path": QUICK["data_path"]}


def train(folder: Path, model: str, **overrides) -> SimpleNamespace:
    """A tiny trained model in a folder of its own: its test metrics, its checkpoint and TensorBoard's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["pytest"])
        result = run(model, "markov-toy", None, {**TINY, **QUICK, **overrides})
    return SimpleNamespace(
        metrics=result["test_result"], file=folder / result["model_file"], logs=folder / "log_tensorboard"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(tmp_path_factory.mktemp("trained"), "DiffuRecSys", num_steps=4, inference_seeds=[7, 3])


@pytest.fixture(scope="module")
def evaluation(trained, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("evaluation"))
        return Evaluation(trained.file, ALL, 0, trained.logs, DATA)


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        page = analyse(trained.file, folder / "out", log_dir=trained.logs, max_users=ALL, config_dict=DATA)
    tables = {file.stem: pd.read_csv(file) for file in page.parent.glob("*.csv")}
    return SimpleNamespace(page=page.read_text(encoding="utf-8"), **tables)


@pytest.fixture(scope="module")
def direct(evaluation):
    """Scores of all test users, the rank of each target by counting, and the raw interactions."""
    with torch.no_grad():
        scores = evaluation.model.full_sort_predict(evaluation.interaction)
    raw = pd.read_csv(ROOT / "dataset" / "markov-toy" / "markov-toy.inter", sep="\t", dtype={0: str, 1: str})
    raw.columns = ["user", "item", "time"]
    raw = raw.sort_values(["user", "time"], kind="stable")
    users = evaluation.train.id2token("user_id", evaluation.interaction["user_id"].numpy())
    tokens = evaluation.train.id2token("item_id", evaluation.target.numpy())
    return SimpleNamespace(scores=scores, rank=rank_in(scores, evaluation), raw=raw, users=users, tokens=tokens)


def ndcg_of(rank: np.ndarray) -> np.ndarray:
    return np.where(rank <= 10, 1 / np.log2(rank + 1), 0)


def rank_in(scores: torch.Tensor, evaluation) -> np.ndarray:
    """Rank of each target, from 1."""
    return (1 + (scores > scores.gather(1, evaluation.target[:, None])).sum(1)).numpy()


@pytest.fixture(scope="module")
def by_seed(evaluation):
    """What the model says with each seed alone, [20, U, n_items], and with all of them: log of the mean."""
    model, seeds = evaluation.model, evaluation.seeds
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        alone = []
        for seed in seeds:
            patch.setattr(model, "inference_seeds", [seed])
            alone.append(model.full_sort_predict(evaluation.interaction))
        patch.setattr(model, "inference_seeds", seeds)
        mean = model.full_sort_predict(evaluation.interaction)
    return SimpleNamespace(alone=torch.stack(alone), mean=mean)


def test_every_section_wrote_its_numbers_and_its_plot(report):
    for name, title in SECTIONS.items():
        assert len(getattr(report, name)) and f"<h2>{title}</h2>" in report.page and f'id="plot-{name}"' in report.page
    assert "Left out" not in report.page


def test_the_page_needs_no_network(report):
    body = re.sub(r"<script>.*?</script>", "", report.page, flags=re.S)
    assert "http" not in body
    assert not re.search(r"<(script|link|img|iframe)[^>]*\b(src|href)\s*=", report.page.replace(body, ""), re.I)
    assert not re.search(r"<(link|img|iframe|script\s+src)", body, re.I)
    assert report.page.count("* plotly.js v") == 1
    assert set(re.findall(r'href="([^"]*)"', body)) == {f"{name}.csv" for name in SECTIONS}


@pytest.mark.slow
@pytest.mark.parametrize(
    "model, overrides",
    [
        ("SeqDiffRec", {"num_steps": 10, "inference_seeds": 3}),
        ("DreamRec", {"num_steps": 40, "sampling_steps": 3}),
        ("CDDRec", {"num_steps": 4}),
        ("SASRec", {}),
    ],
)
def test_other_models_rank_as_the_trainer_does(tmp_path, model, overrides):
    found = train(tmp_path, model, **overrides)
    page = analyse(found.file, tmp_path / "out", log_dir=found.logs, max_users=ALL, config_dict=DATA)
    page = page.read_text(encoding="utf-8")
    assert f"Hit@10 {found.metrics['hit@10']:.4f}, NDCG@10 {found.metrics['ndcg@10']:.4f}" in page
    left_out = {"SASRec": {"stages", "seeds", "uncertainty", "diversity"}}
    left_out["CDDRec"] = left_out["SASRec"] - {"stages"}  # its one step draws nothing
    shown = {file.stem for file in (tmp_path / "out").glob("*.csv")}
    assert shown == set(SECTIONS) - left_out.get(model, set())
    assert page.count("Left out: ") == len(SECTIONS) - len(shown) and page.count('<div id="plot-') == len(shown)
    if "seeds" in shown:
        table = pd.read_csv(tmp_path / "out" / "seeds.csv").set_index("seeds")
        own = len(Evaluation(found.file, ALL, 0, "", DATA).own_seeds)
        assert table.loc[own, "min"] - 1e-6 <= found.metrics["ndcg@10"] <= table.loc[own, "max"] + 1e-6
    if "stages" in shown:
        steps = {"SeqDiffRec": range(10), "DreamRec": (0, 19, 39), "CDDRec": range(4)}[model]
        assert list(pd.read_csv(tmp_path / "out" / "stages.csv")["step"]) == sorted(steps, reverse=True)


def test_the_report_has_the_metrics_of_the_trainer(trained, report, evaluation, direct):
    assert (
        f"Hit@10 {trained.metrics['hit@10']:.4f}, NDCG@10 {trained.metrics['ndcg@10']:.4f} with the history"
        in report.page
    )
    assert "with the history masked: on all 800" in report.page
    assert ndcg_of(direct.rank).mean() == pytest.approx(trained.metrics["ndcg@10"], abs=1e-6)
    for table in (report.popularity, report.length):
        assert table["users"].sum() == 800
        for metric in ("hit@10", "ndcg@10"):
            mean = np.average(table[metric], weights=table["users"])
            assert mean == pytest.approx(trained.metrics[metric], abs=1e-6)


def test_head_items_are_the_fifth_most_seen_in_training(report, direct):
    rank_in_history = direct.raw.groupby("user").cumcount(ascending=False)
    counts = direct.raw[rank_in_history >= 2]["item"].value_counts()
    n_head = round(0.2 * direct.raw["item"].nunique())
    assert counts.iloc[n_head - 1] > counts.iloc[n_head]  # no tie: the fifth is well defined
    head = np.isin(direct.tokens, counts.index[:n_head])
    table = report.popularity.set_index("group")
    assert table.loc["head", "items"] == n_head and table["items"].sum() == direct.raw["item"].nunique()
    for name, inside in (("head", head), ("long tail", ~head)):
        gain = ndcg_of(direct.rank[inside])
        assert table.loc[name, "users"] == inside.sum()
        assert table.loc[name, "hit@10"] == pytest.approx((direct.rank[inside] <= 10).mean())
        assert table.loc[name, "ndcg@10"] == pytest.approx(gain.mean())
        interval = 1.96 * gain.std(ddof=1) / math.sqrt(inside.sum())
        assert table.loc[name, "ndcg@10_ci95"] == pytest.approx(interval)


def test_lengths_are_those_before_the_history_is_cut(report, direct):
    n = direct.raw.groupby("user").size().loc[direct.users].to_numpy() - 1
    assert n.max() > QUICK["MAX_ITEM_LIST_LENGTH"]
    seen = np.zeros(len(n), bool)
    for row in report.length.itertuples():
        low, *high = map(int, str(row.group).split(" to "))
        inside = (n >= low) & (n <= (high[0] if high else low))
        assert row.users == inside.sum() and not (seen & inside).any()
        assert report.length.loc[row.Index, "ndcg@10"] == pytest.approx(ndcg_of(direct.rank[inside]).mean())
        seen |= inside
    assert seen.all() and len(report.length) > 1


def test_history_items_are_counted_and_left_out(report, evaluation, direct):

    history = evaluation.interaction["item_id_list"]
    scores = direct.scores.index_fill(1, torch.tensor([0]), -torch.inf)
    best = scores.topk(10).indices
    share = (best[:, :, None] == history[:, None]).any(-1).double().mean(0)
    np.testing.assert_allclose(report.seen["in_history"], share)
    assert 0 < share.mean() < 1
    np.testing.assert_allclose(report.seen["target"], [(direct.rank == place).mean() for place in range(1, 11)])

    own = scores.gather(1, evaluation.target[:, None])
    scores[evaluation.history] = -torch.inf
    assert len(evaluation.history[0]) > (history > 0).sum(), "the whole history, not what the model reads of it"
    rank = rank_in(scores.scatter(1, evaluation.target[:, None], own), evaluation)
    expected = [(rank == place).mean() for place in range(1, 11)]
    np.testing.assert_allclose(report.seen["target_history_masked"], expected)
    assert not np.allclose(report.seen["target_history_masked"], report.seen["target"])
    assert f"masked: Hit@10 {(rank <= 10).mean():.4f}, NDCG@10 {ndcg_of(rank).mean():.4f}." in report.page


def test_avg_change_is_equation_9():
    scores = torch.tensor([[1.0, 4.0, -1.0, 2.0], [3.0, 3.0, 3.0, 3.0]])
    by_hand = 100 / 3 * (2 / 4 + 1 / 2 + 2 / 1)
    assert avg_change(scores).tolist() == pytest.approx([by_hand, 0.0])
    assert avg_change(scores, k=2).tolist() == pytest.approx([50.0, 0.0])


def test_the_plateau_is_that_of_inner_products(report, evaluation):
    model = evaluation.model
    with torch.no_grad():
        products = model.generate(evaluation.interaction) @ model.item_embedding.weight[1:].T
    change = []
    for scores in products.numpy():
        rank = sorted(scores, reverse=True)[:40]
        change.append(100 / 39 * sum(abs(b - a) / abs(a) for a, b in zip(rank, rank[1:], strict=False)))
    row = report.plateau.set_index("group").loc["all"]
    assert row["users"] == 800
    assert row["avg_change@40"] == pytest.approx(np.mean(change), rel=1e-3)
    assert row["median_change@40"] == pytest.approx(np.median(change), rel=1e-3)
    assert report.plateau["users"][1:].sum() == 800


def test_a_range_of_steps_is_named_by_its_number_where_others_were_never_drawn(monkeypatch, tmp_path):
    drawn = {f"Loss/Step_range_{number}": {0: 1.0} for number in (3, 5)}
    monkeypatch.setattr(curves, "tensorboard_scalars", lambda folder, losses: drawn)
    monkeypatch.setattr(curves, "load_checkpoint", lambda file: {"train_loss_dict": {0: 2.0}})
    (tmp_path / "it-last.pth").touch()
    model = SimpleNamespace(diffusion=SimpleNamespace(num_steps=1000))
    config = {"valid_metric": "NDCG@10"}
    evaluation = SimpleNamespace(model=model, config=config, log_dir=None, model_file=tmp_path / "it.pth")
    names = [trace.name for trace in curves.curves(evaluation).figure.data if trace.name]
    assert names == ["t = 375 to 499", "t = 625 to 749"]


@pytest.mark.parametrize("model", ["SASRecPlus", "DiffuRec"])
def test_the_plateau_leaves_out_what_seen_items_adds(model):
    it = toy(model, seen_items="excluded")
    evaluation = SimpleNamespace(model=it.model.eval(), is_diffusion=model == "DiffuRec", config=it.config)
    evaluation.batches, evaluation.batch = lambda copies: [slice(0, 9)], lambda rows: batch_of(it.test, 9)
    with torch.no_grad():
        evaluation.generated = it.model.generate(batch_of(it.test, 9))
        [found] = _inner_products(evaluation)
        expected = (evaluation.generated @ it.model.item_embedding.weight[1:].T).topk(40).values
    torch.testing.assert_close(found, expected)


def test_stages_end_at_what_the_model_generates(report, evaluation):
    model, seed = evaluation.model, evaluation.own_seeds[0]
    with torch.no_grad():
        found = start_predictions(model, evaluation.interaction, seed)
        end = model.sample_start(evaluation.interaction, [seed])[0]
    assert list(found) == [3, 2, 1, 0]
    torch.testing.assert_close(found[0], end)
    assert not torch.allclose(found[3], end)
    assert list(report.stages["stage"]) == [1, 2, 3, 4]
    own = report.diversity.set_index("seed").loc[str(seed)]
    assert report.stages["ndcg@10"].iloc[-1] == pytest.approx(own["ndcg@10"])
    change = avg_change((found[3] @ model.item_embedding.weight[1:].T).detach())
    assert report.stages["avg_change@40"].iloc[0] == pytest.approx(change.mean().item(), rel=1e-3)


@pytest.mark.parametrize("name", ["DiffuRec", "DreamRec", "SeqDiffRec"])
@pytest.mark.parametrize("own", [{"reverse_variance": "beta"}, {"enable_amp": True}], ids=str)
def test_stages_walk_the_models_own_chain(name, own):
    it = toy(name, num_steps=4, inference="reverse", sampler="ddpm", sampling_steps=None, inference_seeds=[3])
    model, interaction = it.model.eval(), batch_of(it.test)
    for key, value in own.items():
        setattr(model, key, value)
    with torch.no_grad():
        found = start_predictions(model, interaction, 3)
        torch.testing.assert_close(found[0], model.sample_start(interaction, [3])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seen_items", ["excluded", "learned"])
def test_stages_and_seeds_rank_as_the_model_does_with_its_seen_items(tmp_path, seen_items):
    settings = {"seen_items": seen_items, "num_steps": 4, "inference_seeds": [1], "valid_sampling_steps": 4}
    it = train(tmp_path, "DiffuRec", **settings)
    page = analyse(it.file, tmp_path / "out", ["stages", "diversity"], ALL, config_dict=DATA)
    stages, seeds = (pd.read_csv(page.parent / f"{name}.csv") for name in ("stages", "diversity"))
    assert stages["ndcg@10"].iloc[-1] == pytest.approx(it.metrics["ndcg@10"], abs=1e-6)
    assert seeds.set_index("seed").loc["1", "ndcg@10"] == pytest.approx(it.metrics["ndcg@10"], abs=1e-6)


def test_more_seeds_are_averaged_in_groups(report, evaluation, by_seed, trained):
    seeds = evaluation.seeds
    assert seeds[:2] == [7, 3] and sorted(seeds) == list(range(20))
    table = report.seeds.set_index("seeds")
    assert list(table.index) == [1, 2, 5, 10, 20] and list(table["groups"]) == [20, 10, 4, 2, 1]
    p = by_seed.alone.softmax(-1)
    for n in table.index:
        gains = [ndcg_of(rank_in(p[i : i + n].mean(0), evaluation)).mean() for i in range(0, 20, n)]
        if n == 2:
            assert gains[0] == pytest.approx(trained.metrics["ndcg@10"], abs=1e-6)
        expected = [np.mean(gains), min(gains), max(gains)]
        assert table.loc[n, ["ndcg@10", "min", "max"]].tolist() == pytest.approx(expected, abs=1e-6)


def test_uncertainty_is_the_spread_of_the_models_own_scores(report, evaluation, by_seed):
    best = by_seed.mean.topk(10).indices
    p = by_seed.alone.softmax(-1)
    spread = (p.std(0, correction=0) / p.mean(0)).gather(1, best).mean(1).numpy()
    np.testing.assert_allclose(evaluation.seed_ranking.spread, spread, rtol=1e-3)
    rank = rank_in(by_seed.mean, evaluation)
    order = np.argsort(evaluation.seed_ranking.spread.numpy(), kind="stable")
    for i, inside in enumerate(np.array_split(order, 5)):
        row = report.uncertainty.iloc[i]
        assert row["users"] == 160 and row["mean_uncertainty_%"] == pytest.approx(100 * spread[inside].mean(), rel=1e-3)
        assert row["ndcg@10"] == pytest.approx(ndcg_of(rank[inside]).mean(), abs=1e-6)


def test_diversity_compares_each_seed_with_the_average(report, evaluation, by_seed):
    table = report.diversity.set_index("seed")
    assert list(table.index) == [*map(str, evaluation.seeds), "average"]
    average = by_seed.mean.topk(10).indices.tolist()
    for seed, scores in zip(evaluation.seeds, by_seed.alone, strict=True):
        rank = rank_in(scores, evaluation)
        top = scores.topk(10).indices.tolist()
        shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(top, average, strict=True)])
        coverage = len({item for items in top for item in items}) / (evaluation.n_items - 1)
        expected = [(rank <= 10).mean(), ndcg_of(rank).mean(), 100 * shared, 100 * coverage]
        assert table.loc[str(seed)].tolist() == pytest.approx(expected, abs=1e-4)
    assert table.loc["average", "shared_with_average_%"] == 100


def test_the_map_has_every_item_and_a_sample_of_users(report, direct):
    items = report.map[report.map["kind"] == "item"].set_index("token")
    rank_in_history = direct.raw.groupby("user").cumcount(ascending=False)
    counts = direct.raw[rank_in_history >= 2]["item"].value_counts()
    assert items["training_interactions"].to_dict() == {int(token): n for token, n in counts.items()}
    generated = report.map[report.map["kind"] == "generated"]
    assert len(generated) == 300 and set(map(str, generated["token"])) <= set(direct.users)
    assert np.isfinite(report.map[["x", "y"]]).all().all()
    assert len(report.map[["x", "y"]].drop_duplicates()) == len(report.map)


def test_curves_are_those_of_the_run(report, trained):
    last = load_checkpoint(trained.file.with_name(f"{trained.file.stem}-last.pth"))
    assert report.curves["Loss/Train"].tolist() == pytest.approx(list(last["train_loss_dict"].values()))
    assert report.curves["Vaild_score"].max() == pytest.approx(last["best_valid_score"])
    assert {"Train/gradient_norm", "Train/learning_rate", "Loss/Step_range_0"} <= set(report.curves)


def test_curves_without_events_and_without_the_last_state(trained, tmp_path):
    # Another run's events are not taken for this one's.
    other = train(tmp_path, "DiffuRecSys", num_steps=4, seed=1)
    options = {"output": tmp_path / "out", "sections": ["curves"], "config_dict": DATA}
    page = analyse(trained.file, **options, log_dir=other.logs).read_text(encoding="utf-8")
    assert "No TensorBoard events" in page
    assert list(pd.read_csv(tmp_path / "out" / "curves.csv")) == ["epoch", "Loss/Train"]
    alone = shutil.copy(trained.file, tmp_path / "alone.pth")
    page = analyse(alone, **options, log_dir=trained.logs).read_text(encoding="utf-8")
    assert "Left out: there is no alone-last.pth" in page and 'id="plot-' not in page
    assert not (tmp_path / "out" / "curves.csv").exists()


def test_a_sample_of_users_is_drawn_by_the_seed(trained, evaluation):
    samples = [Evaluation(trained.file, 50, seed, "", DATA) for seed in (1, 1, 2)]
    assert torch.equal(samples[0].rows, samples[1].rows) and not torch.equal(samples[0].rows, samples[2].rows)
    for sample in samples[1:]:
        assert len(sample.rows.unique()) == 50
        assert torch.equal(sample.places, evaluation.places[sample.rows])
        assert (sample.history_length == evaluation.history_length[sample.rows]).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sections": ["length", "lenght"]}, r"sections \[lenght\].*popularity, length"),
        ({"sections": []}, "sections"),
        ({"max_users": 0}, "max_users"),
        ({"seed": -1}, "seed"),
        ({"output": __file__}, "output"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        analyse("no-such.pth", **{"output": "out", **options})
    assert not Path("out").exists()


def test_a_split_by_time_tells_rows_from_users(tmp_path):
    by_time = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": None, "order": "TO", "mode": "full"}
    found = train(tmp_path, "SASRecPlus", eval_args=by_time)
    text = analyse(found.file, tmp_path / "out", ["popularity"], config_dict=DATA).read_text(encoding="utf-8")
    words = r"on all ([\d,]+) test rows of ([\d,]+) users, each a user of the tables below, among"
    rows, users = (int(number.replace(",", "")) for number in re.search(words, text).groups())
    test = Evaluation(found.file, ALL, 0, "", DATA)
    assert rows == len(test.rows) > users == len(set(test.interaction["user_id"].tolist()))


def test_a_model_that_is_not_sequential_is_refused(tmp_path):
    found = train(tmp_path, "Pop")
    with pytest.raises(ValueError, match=r"holds \[Pop\].*sequential"):
        analyse(found.file, "out", config_dict=DATA)


def test_a_model_that_scores_given_items_alone_is_refused(trained, evaluation, monkeypatch):
    def full_sort_predict(self, interaction):  # as RecBole's DIN and DIEN have it
        raise NotImplementedError

    monkeypatch.setattr(type(evaluation.model), "full_sort_predict", full_sort_predict)
    with pytest.raises(ValueError, match=r"holds \[DiffuRecSys\].*scores all items"):
        analyse(trained.file, "out", ["length"], config_dict=DATA)


@pytest.mark.slow
def test_the_command(trained, tmp_path):
    options = [f"--model_file={trained.file}", "--output=out", "--sections=length, plateau", "--max_users=100"]
    options += [f"--data_path={DATA['data_path']}"]
    command = [sys.executable, "-W", "ignore", "-m", "recbole_diffusion.analysis", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and f"Report: {Path('out') / 'index.html'}" in done.stdout, done.stderr[-2000:]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"index.html", "length.csv", "plateau.csv"}


def test_the_command_names_what_is_wrong_without_a_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["analysis", "--model_file=nothing.pth"])
    with pytest.raises(SystemExit, match=r"FileNotFoundError: model_file \[nothing.pth\]"):
        main()
