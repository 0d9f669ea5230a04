"""Training samples/s and inference users/s of every model and of RecBole's SASRec, in one interleaved run.

    python benchmarks/throughput.py --dataset amazon-beauty --data_path dataset/ --rounds 5 --output results/throughput

Each round gives every entry one training step and one inference batch in turn, so that noise of the machine falls on
all alike; the table shows medians. `--compare plain` adds every entry with its fast paths turned off.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

from recbole_diffusion.cli import begin, errors_in_one_line, parse_flags

COMMON = {"hidden_size": 128, "n_layers": 4, "n_heads": 4, "inner_size": 512, "MAX_ITEM_LIST_LENGTH": 50}
BATCH = {"train_batch_size": 512, "eval_batch_size": 512}
DREAM = {"hidden_size": 64, "MAX_ITEM_LIST_LENGTH": 10, "num_steps": 500, "train_batch_size": 256}
USERS = {"train_batch_size": 128, "eval_batch_size": 512}  # a row is a window of a user, not a prefix
CDD = {"hidden_size": 128, "MAX_ITEM_LIST_LENGTH": 20, "num_steps": 20, "train_batch_size": 128}
PREFER = {"hidden_size": 512, "inner_size": 512, "MAX_ITEM_LIST_LENGTH": 10, "train_batch_size": 256}

# name -> (model, parameters, does it train, anomaly detection)
ENTRIES = {
    "SASRec as RecBole runs it": ("SASRec", {**COMMON, **BATCH}, True, True),
    "SASRec": ("SASRec", {**COMMON, **BATCH}, True, False),
    "DiffuRec": ("DiffuRec", {**COMMON, **BATCH}, True, False),
    "DiffuRec, 4 steps": ("DiffuRec", {**COMMON, **BATCH, "sampling_steps": 4}, False, False),
    "DiffuRecSys": ("DiffuRecSys", {**COMMON, **BATCH}, True, False),
    "SeqDiffRec": ("SeqDiffRec", {**COMMON, **BATCH}, True, False),
    "DreamRec, 500 steps": ("DreamRec", DREAM, True, False),
    "DreamRec, DDIM 20": ("DreamRec", {**DREAM, "sampler": "ddim", "sampling_steps": 20}, False, False),
    "CDDRec": ("CDDRec", CDD, True, False),
    "SASRecPlus": ("SASRecPlus", {**COMMON, **USERS}, True, False),
    "SASRecPlus of 2 blocks": ("SASRecPlus", {**COMMON, **USERS, "n_layers": 2}, True, False),
    "SASRecPlus, seen_items learned": ("SASRecPlus", {**COMMON, **USERS, "seen_items": "learned"}, True, False),
    "ADRec": ("ADRec", {**COMMON, **USERS, "n_layers": 2}, True, False),  # and two blocks of its denoiser
    "PreferDiff of width 512": ("PreferDiff", PREFER, True, False),
}
PLAIN = {"ragged": False, "fused_denoiser": False}


class Entry:
    """One model with its data, ready for a timed training step and a timed inference batch."""

    def __init__(self, name: str, dataset: str, config_dict: dict, plain: bool):
        import torch
        from recbole.utils import get_model, init_seed

        from recbole_diffusion.quick_start import build_config, prepare_data

        model, parameters, self.trains, self.anomaly = ENTRIES[name]
        self.name = f"{name}, plain" if plain else name
        overrides = {key: value for key, value in PLAIN.items() if plain}
        config = build_config(model, dataset, None, {"state": "ERROR", **parameters, **config_dict, **overrides})
        init_seed(config["seed"], True)
        _, train, _, test = prepare_data(config)
        self.device = config["device"]
        self.model = get_model(model)(config, train._dataset).to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        self.batches = cycle([batch.to(self.device) for batch, _ in zip(train, range(8), strict=False)])
        self.users = cycle([batch[0].to(self.device) for batch, _ in zip(test, range(4), strict=False)])
        self.amp = config["enable_amp"]
        self.rates = {"train": [], "infer": []}
        self.epoch_rows = train.sample_size

    def wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def train_step(self) -> float:
        """Samples per second of one step: loss, backward pass, optimizer."""
        import torch

        batch = next(self.batches)
        self.model.train()
        with torch.autograd.set_detect_anomaly(self.anomaly, check_nan=self.anomaly):
            self.wait()
            start = time.perf_counter()
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
                loss = self.model.calculate_loss(batch)
            loss.backward()
            self.optimizer.step()
            self.wait()
        return len(batch) / (time.perf_counter() - start)

    def infer(self) -> float:
        """Users per second of one full-sort batch."""
        import torch

        batch = next(self.users)
        self.model.eval()
        self.wait()
        start = time.perf_counter()
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            self.model.full_sort_predict(batch)
        self.wait()
        return len(batch) / (time.perf_counter() - start)


def measure(entries: list[Entry], rounds: int) -> None:
    """One warm-up round, then ``rounds`` timed ones, the entries in turn."""
    for number in range(rounds + 1):
        for entry in entries:
            for kind, step in (("train", entry.train_step), ("infer", entry.infer)):
                if kind == "infer" or entry.trains:
                    rate = step()
                    if number:
                        entry.rates[kind].append(rate)
        print(f"round {number}/{rounds}", file=sys.stderr, flush=True)


def peak_memory(name: str, args: argparse.Namespace) -> float:
    """Peak memory in GiB of a process (or GPU) that makes two training steps and one inference batch of an entry."""
    command = [sys.executable, "-W", "ignore", __file__, "--dataset", args.dataset, "--data_path", args.data_path]
    command += ["--memory_of", name, *[f"--set={item}" for item in args.set]]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="amazon-beauty")
    parser.add_argument("--data_path", default="dataset/")
    parser.add_argument("--entries", default=";".join(ENTRIES), help="names of entries, separated by semicolons")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compare", choices=["plain"], help="add every entry of ours with its fast paths off")
    parser.add_argument("--set", action="append", default=[], help="key=value for every entry, such as enable_amp=True")
    parser.add_argument("--memory", action="store_true", help="measure peak memory too, each entry in its own process")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    parser.add_argument("--output", help="write OUTPUT.md and OUTPUT.json")
    args = parse_flags(parser)
    unknown = [name for name in args.entries.split(";") if name not in ENTRIES]
    if unknown:
        parser.error(f"entries {unknown} are unknown: choose from {'; '.join(ENTRIES)}")
    if args.rounds < 1:
        parser.error(f"rounds [{args.rounds}] must be at least 1")
    wrong = [item for item in args.set if "=" not in item]
    if wrong:
        parser.error(f"cannot read --set {wrong}: write key=value")
    file = Path(args.data_path) / args.dataset / f"{args.dataset}.inter"
    if args.dataset != "ml-100k" and not file.is_file():  # which RecBole brings
        parser.error(f"dataset [{args.dataset}] is not there: {file}. Training on a dataset of RecBole's downloads it")
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line too
    return args


def main() -> None:
    args = parse_args()
    with errors_in_one_line():
        begin()
        import yaml

        given = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}
        config_dict = {"data_path": args.data_path, **given}
        if args.memory_of:
            print(own_peak(args, config_dict))
            return
        table, result = benchmark(args, config_dict)
        print(table)
        if args.output:
            Path(args.output).parent.mkdir(parents=True, exist_ok=True)
            Path(f"{args.output}.json").write_text(json.dumps(result, indent=1) + "\n")
            Path(f"{args.output}.md").write_text(table)


def own_peak(args: argparse.Namespace, config_dict: dict) -> float:
    """Peak memory in GiB of this process, or of its GPU, after two training steps and one inference batch."""
    import torch

    entry = Entry(args.memory_of, args.dataset, config_dict, plain=False)
    for _ in range(2):
        entry.train_step()
    entry.infer()
    cuda = entry.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return peak / 2**30


def benchmark(args: argparse.Namespace, config_dict: dict) -> tuple[str, dict]:
    """Measure the entries: the table, and its numbers."""
    import torch

    from recbole_diffusion import MODELS

    names = [name for name in args.entries.split(";") if ENTRIES[name][0] in MODELS or name.startswith("SASRec")]
    entries = [Entry(name, args.dataset, config_dict, plain=False) for name in names]
    if args.compare:
        ours = [name for name in names if ENTRIES[name][0] in MODELS]
        entries += [Entry(name, args.dataset, config_dict, plain=True) for name in ours]
    measure(entries, args.rounds)

    cuda = entries[0].device.type == "cuda"
    device = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    rows = []
    for entry in entries:
        row = {"entry": entry.name, "params": ENTRIES[entry.name.removesuffix(", plain")][1]}
        for kind, rates in entry.rates.items():
            if rates:
                row[kind] = {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
        if "train" in row:
            row["epoch_seconds"] = entry.epoch_rows / row["train"]["median"]
        if args.memory and not entry.name.endswith("plain"):
            row["peak_gib"] = peak_memory(entry.name, args)
        rows.append(row)
    result = {
        "command": command(args), "dataset": args.dataset, "device": device, "rounds": args.rounds, "set": args.set,
        "torch": torch.__version__, "python": platform.python_version(), "rows": rows,
    }  # fmt: skip
    return render(result), result


def command(args: argparse.Namespace) -> str:
    """What makes this table anew, for a shell in the repository's root."""
    words = ["python", "benchmarks/throughput.py", "--dataset", args.dataset, "--data_path", "dataset/"]
    words += ["--rounds", str(args.rounds), *(["--compare", args.compare] if args.compare else [])]
    words += [f"--set={item}" for item in args.set] + (["--memory"] if args.memory else [])
    words += ["--entries", args.entries] if args.entries != ";".join(ENTRIES) else []
    return shlex.join(words + (["--output", args.output] if args.output else []))


def render(result: dict) -> str:
    """The result as a Markdown table, with ratios against the first row and against the plain form."""
    rows = {row["entry"]: row for row in result["rows"]}
    base = next(iter(rows.values()))  # of what it was not measured in, there are no ratios
    settings = "".join(f", {item}" for item in result["set"])
    lines = [
        f"{result['dataset']}, {result['device']}, PyTorch {result['torch']}{settings}; medians of {result['rounds']} "
        "rounds (smallest to largest).\n",
        f"```bash\n{result['command']}\n```\n",
        "| entry | train samples/s | x first row | x plain | seconds an epoch | inference users/s | x first row "
        "| x plain | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [name]
        for kind in ("train", "infer"):
            if kind not in row:
                cells += [""] * (4 if kind == "train" else 3)
                continue
            rate = row[kind]
            plain = rows.get(f"{name}, plain", {}).get(kind)
            cells.append(f"{rate['median']:.0f} ({rate['min']:.0f} to {rate['max']:.0f})")
            cells.append(f"{rate['median'] / base[kind]['median']:.2f}" if kind in base else "")
            cells.append(f"{rate['median'] / plain['median']:.2f}" if plain else "")
            cells += [f"{row['epoch_seconds']:.0f}"] if kind == "train" else []
        cells.append(f"{row['peak_gib']:.2f}" if "peak_gib" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
