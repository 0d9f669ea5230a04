"""Cost of a model against history length, number of items, diffusion steps, seeds and batch size, on synthetic data.

    python benchmarks/scaling.py --model DiffuRec --axes length,items,steps,seeds,batch --output results/scaling

Every point runs in a process of its own: seconds of a training step and of a top-20 (medians), and the peak memory of
both. Writes OUTPUT.json, OUTPUT.md and, with matplotlib installed, OUTPUT.png.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from recbole_diffusion.cli import begin, errors_in_one_line, model_summaries, parse_flags

AXES = {
    "length": ("MAX_ITEM_LIST_LENGTH", [10, 25, 50, 100, 200]),
    "items": ("n_items", [1_000, 10_000, 100_000, 1_000_000]),
    "steps": ("num_steps", [8, 32, 128, 512]),
    "seeds": ("inference_seeds", [1, 2, 5, 10, 20]),
    "batch": ("batch", [32, 128, 512, 2048]),
}
# The point that all axes share; inference takes 8 of the steps unless the steps are what varies.
CENTRE = {"MAX_ITEM_LIST_LENGTH": 50, "n_items": 10_000, "num_steps": 32, "inference_seeds": 1, "batch": 256}


class Catalogue:
    """A stand-in for a dataset: the interactions of one batch over a number of items."""

    uid_field, iid_field, config = "user_id", "item_id", {"LIST_SUFFIX": "_list"}

    def __init__(self, n_items: int, interaction):
        self.item_num, self.user_num, self.inter_feat = n_items, len(interaction), interaction

    def __getitem__(self, index):
        return self.inter_feat[index]

    def num(self, field: str) -> int:
        return self.item_num

    def inter_matrix(self, form: str):
        import torch
        from scipy.sparse import coo_matrix

        users, items = self.inter_feat[self.uid_field], self.inter_feat[self.iid_field]
        return coo_matrix((torch.ones(len(users)), (users, items)), shape=(self.user_num, self.item_num))


def run_point(model: str, point: dict, config_dict: dict, rounds: int) -> dict:
    """Measure one point in this process."""
    import torch
    from recbole.data.interaction import Interaction
    from recbole.utils import get_model

    from recbole_diffusion.quick_start import build_config

    point = dict(point)
    n_items, batch = point.pop("n_items"), point.pop("batch")
    config = build_config(model, "synthetic", None, {"state": "ERROR", **point, **config_dict})
    torch.manual_seed(0)
    length = config["MAX_ITEM_LIST_LENGTH"]
    lengths = torch.randint(1, length + 1, (batch,))
    items = torch.randint(1, n_items, (batch, length)) * (torch.arange(length) < lengths[:, None])
    interaction = Interaction(
        {"item_id_list": items, "item_length": lengths, "item_id": torch.randint(1, n_items, (batch,)),
         "user_id": torch.arange(batch)}
    )  # fmt: skip
    network = get_model(model)(config, Catalogue(n_items, interaction)).to(config["device"])
    optimizer = torch.optim.Adam(network.parameters())
    interaction = interaction.to(config["device"])

    def train_step() -> None:
        network.train()
        optimizer.zero_grad()
        network.calculate_loss(interaction).backward()
        optimizer.step()

    def top_20() -> None:
        network.eval()
        network.topk(interaction, 20)

    result = {}
    for name, step in (("train_s", train_step), ("topk_s", top_20)):
        seconds = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            step()
            if config["device"].type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        result[name] = statistics.median(seconds[1:])
    cuda = config["device"].type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {**result, "peak_gib": peak / 2**30}


def plot(rows: list[dict], title: str, path: Path) -> None:
    """One column an axis: seconds above on logarithmic scales, memory below from zero."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, grid = plt.subplots(2, len(axes), figsize=(3.2 * len(axes), 5.6), squeeze=False, layout="constrained")
    for column, axis in enumerate(axes):
        points = [row for row in rows if row["axis"] == axis]
        x = [row["value"] for row in points]
        upper, lower = grid[:, column]
        upper.plot(x, [row["train_s"] for row in points], "o-", label="training step")
        upper.plot(x, [row["topk_s"] for row in points], "s--", label="top-20")
        lower.plot(x, [row["peak_gib"] for row in points], "o-", color="tab:gray")
        upper.set(xscale="log", yscale="log", ylabel="seconds a batch")
        lower.set(xscale="log", ylim=(0, 1.1 * max(row["peak_gib"] for row in points)), ylabel="peak memory (GiB)")
        for panel in (upper, lower):
            panel.grid(alpha=0.3, which="both")
        lower.set_xlabel({"length": "history length", "items": "items", "batch": "batch size (users)"}.get(axis, axis))
    grid[0, 0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="DiffuRec", help="a model of this package (%(default)s)")
    parser.add_argument("--axes", default=",".join(AXES), help="separated by commas (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of a point (%(default)s)")
    parser.add_argument("--set", action="append", default=[], help="key=value for every point, such as hidden_size=64")
    parser.add_argument("--output", default="results/scaling", help="writes OUTPUT.json, .md and .png (%(default)s)")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    args = parse_flags(parser)
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line too
    unknown = [axis for axis in args.axes.split(",") if axis not in AXES]
    if unknown:
        parser.error(f"axes {unknown} are unknown: choose from {', '.join(AXES)}")
    if args.model not in model_summaries():
        parser.error(f"model [{args.model}] is none of this package's: {', '.join(model_summaries())}")
    if args.rounds < 1:
        parser.error(f"rounds [{args.rounds}] must be at least 1")
    wrong = [item for item in args.set if "=" not in item]
    if wrong:
        parser.error(f"cannot read --set {wrong}: write key=value")
    return args


def measure(args: argparse.Namespace) -> list[dict]:
    """Every point of the axes, each in a process of its own."""
    rows = []
    for axis in args.axes.split(","):
        key, values = AXES[axis]
        for value in values:
            point = {**CENTRE, key: value, **({} if axis == "steps" else {"sampling_steps": 8})}
            command = [sys.executable, "-W", "ignore", __file__, "--model", args.model, "--point", json.dumps(point)]
            command += ["--rounds", str(args.rounds), *[f"--set={item}" for item in args.set]]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
                raise ValueError(f"{axis} [{value}] failed: {why}")
            rows.append({"axis": axis, "value": value, **json.loads(done.stdout.splitlines()[-1])})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        import torch
        import yaml

        begin()
        from recbole_diffusion.quick_start import build_config

        config_dict = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
        if args.point:
            print(json.dumps(run_point(args.model, json.loads(args.point), config_dict, args.rounds)))
            return
        build_config(args.model, "synthetic", None, config_dict)  # names a wrong key before the first point
        rows = measure(args)
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
        )
        write(args, rows, config_dict, device)


def write(args: argparse.Namespace, rows: list[dict], config_dict: dict, device: str) -> None:
    """Write the points as JSON, as a table and, where matplotlib is installed, as a picture."""
    output = Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    result = {"model": args.model, "set": config_dict, "centre": CENTRE, "device": device, "rows": rows}
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    lines = [
        f"{args.model} on {device}; centre: {CENTRE}\n",
        "| axis | value | training step s | top-20 s | peak GiB |",
    ]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {r['axis']} | {r['value']:,} | {r['train_s']:.3f} | {r['topk_s']:.3f} | {r['peak_gib']:.2f} |" for r in rows
    ]
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    try:
        plot(rows, f"{args.model} on {device}", output.with_suffix(".png"))
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
    print(f"{len(rows)} points: {output.with_suffix('.md')}")


if __name__ == "__main__":
    main()
