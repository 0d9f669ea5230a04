"""One training of the manifest at a time: what is missing is run, or goes on, and the page is written anew."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from manifest import (
    PAPERS,
    RESULTS,
    ROOT,
    Job,
    Manifest,
    choose,
    job_config,
    load_manifest,
    load_papers,
    paper_values,
)
from recbole.config import Config
from results_table import render

from recbole_diffusion.compat.files import write_whole
from recbole_diffusion.experiments.runs import Paused, record, run_or_resume

IS_DONE = "is done"
CURVE = ("epoch", "valid_score", "train_loss", "seconds", "cpu_seconds")


def show(text: str) -> None:
    print(text, flush=True)


# ---------------------------------------------------------------------- where a run was made


def made_by(config: Config) -> dict[str, Any]:
    """Code, versions and device of this process; nothing that names the machine or a path."""
    code = ["recbole_diffusion", "props", "benchmarks"]
    digest = hashlib.sha256()
    for path in sorted(file for part in code for file in (ROOT / part).rglob("*") if file.suffix in (".py", ".yaml")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    changes = _git("status", "--porcelain", "--", *code)
    packages = ("torch", "numpy", "recbole", "recbole-diffusion")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if changes is None else bool(changes),
        "source": digest.hexdigest()[:16],  # of the code itself, also where it lies outside of git
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}},
        "device": _device_name(config["device"]),
        "device_type": config["device"].type,
        "threads": torch.get_num_threads(),
    }


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    return names[0].split(":", 1)[1].strip() if names else f"{platform.machine()} CPU"


def reset_peak_memory() -> None:
    """Begin to measure anew, so that a run does not answer for the ones before it in this process."""
    with contextlib.suppress(OSError):  # Linux alone can; elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Peak of the process and of its GPU's memory, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    gpu = torch.cuda.max_memory_allocated(device) >> 20 if device.type == "cuda" else None
    return {"process_mib": peak >> 20, "gpu_mib": gpu}


# ---------------------------------------------------------------------- one run


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock: yields 0, or the pid of the process that holds it.

    The system lets go of the lock when its process ends, however it ends: a file left behind locks nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            yield int(file.read() or -1)
            return
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield 0


def train(job: Job, args: argparse.Namespace, folder: Path, papers: dict) -> dict[str, Any]:
    """Train or go on training, and test: what results/runs/ holds of a run.

    Raises
    ------
    Paused, ValueError, FileNotFoundError
        As ``run_or_resume``; or the device is not there.
    """
    device = {"use_gpu": False, "gpu_id": ""} if args.device == "cpu" else {}
    config = job_config(job, args.settings, {"data_path": args.data_path, **device})
    if args.device == "cuda" and config["device"].type != "cuda":
        raise ValueError("device [cuda] is not there: PyTorch sees no GPU.")
    reset_peak_memory()
    source = made_by(config)

    def after_epoch(point: dict[str, Any]) -> None:
        point.update(peak_memory=peak_memory(config["device"]), made_by=source)
        score = f"{config['valid_metric']} {point['valid_score']:.4f}"
        show(f"  epoch {point['epoch']}: {score}, loss {point['train_loss']:.2f}, {point['seconds']:.0f} s")

    ranks = args.results / "ranks" / f"{job.name}.npz"
    run = run_or_resume(config, folder, after_epoch, args.deadline, ranks)
    curve, best = run["curve"], run["best_valid_score"]
    peaks = {key: [point["peak_memory"][key] or 0 for point in curve] for key in curve[-1]["peak_memory"]}
    return {
        "name": job.row.name,
        "set": args.settings,
        **run,
        "dataset": job.dataset,  # under its name in the manifest, which tells splits apart
        "best_epoch": next(point["epoch"] for point in curve if point["valid_score"] == best),
        "seconds": curve[-1]["seconds"],
        "peak_memory": {key: max(values) or None for key, values in peaks.items()},
        "cost_to_quality": cost_to_quality(curve, paper_values(job.row, job.dataset, papers)),
        "command": command(job, args),
        "made_by": makers(curve),
        "curve": [{key: point.get(key) for key in CURVE} for point in curve],
    }


def makers(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who trained which epochs: one entry unless the run was cut and went on elsewhere or with other code."""
    found: list[dict[str, Any]] = []
    for point in curve:
        if not found or {**found[-1], "first_epoch": None} != {"first_epoch": None, **point["made_by"]}:
            found.append({"first_epoch": point["epoch"], **point["made_by"]})
    return found


def cost_to_quality(curve: list[dict[str, Any]], paper: dict[str, tuple]) -> dict[str, Any]:
    """Epochs and seconds until validation first came within 2 % of its best, and until it passed the paper's value."""

    def first(threshold: float) -> dict[str, Any]:
        for point in curve:
            if point["valid_score"] >= threshold:
                return {"value": threshold, "epochs": point["epoch"], "seconds": point["seconds"]}
        return {"value": threshold, "epochs": None, "seconds": None}

    goal = paper.get("NDCG@10")
    return {
        "within_2_percent": first(0.98 * max(point["valid_score"] for point in curve)),
        "past_paper": first(goal[0]) if goal else None,
    }


def command(job: Job, args: argparse.Namespace) -> str:
    """What makes this run anew, for a shell in the repository's root."""
    words = ["python", "benchmarks/reproduce.py", "--data_path=dataset/", f"--row={job.row.name}, {job.dataset}"]
    words += [f"--seeds={job.seed}"]
    words += [f"--device={args.device}"] if args.device != "auto" else []
    words += [f"--set={key}={json.dumps(value)}" for key, value in args.settings.items()]
    words += ["--results=trial/"] if args.settings else []
    return shlex.join(words)


def run(job: Job, args: argparse.Namespace, papers: dict) -> str:
    """Do one job unless it is done or another process is at it; says what became of it."""
    file, folder = args.results / "runs" / f"{job.name}.json", args.results / "saved" / job.name
    if file.is_file():
        return IS_DONE
    with locked(folder) as pid:
        if pid:
            return f"is in progress in process {pid}"
        if file.is_file():  # finished by another process since
            return IS_DONE
        result = train(job, args, folder, papers)
        record(file, result)
        for path in folder.glob("*-last.pth"):
            path.unlink()
    metrics = result["test_result"]
    return f"done: HR@10 {metrics['hit@10']:.4f}, NDCG@10 {metrics['ndcg@10']:.4f} after {result['epochs']} epochs"


# ---------------------------------------------------------------------- all of them


def chosen_jobs(manifest: Manifest, args: argparse.Namespace) -> list[Job]:
    """What the command line asks for, each training once, tier by tier.

    Raises
    ------
    ValueError
        A name or seed that is nowhere in the tiers.
    """
    names = choose("tiers", args.tiers, [tier.name for tier in manifest.tiers])
    manifest = replace(manifest, tiers=[tier for tier in manifest.tiers if tier.name in names])
    datasets = choose("datasets", args.datasets, manifest.datasets)
    rows = choose("runs", args.runs, manifest.row_names)
    jobs = [job for tier in manifest.tiers for job in tier.jobs(datasets, rows)]
    seeds = choose("seeds", args.seeds, dict.fromkeys(str(job.seed) for job in jobs))
    jobs = [job for job in jobs if str(job.seed) in seeds]
    if args.device == "cpu" or not torch.cuda.is_available():
        left_out = [] if args.datasets else [name for name, data in manifest.datasets.items() if data.gpu_only]
        if left_out and not args.render_only:
            show(f"Without a GPU, {', '.join(left_out)} must be asked for with --datasets.")
        jobs = [job for job in jobs if job.dataset not in left_out]
    return list({job.name: job for job in jobs}.values())


def reproduce(args: argparse.Namespace) -> bool:
    """Run what is missing and render; False if a run failed."""
    manifest, papers = load_manifest(args.manifest), load_papers(PAPERS)
    for row in (row for tier in manifest.tiers for row in tier.rows):
        paper_values(row, "", papers)  # raises, before hours of work, where a row names a line that is not there
    if args.settings and args.results.resolve() == RESULTS:
        raise ValueError("set needs results [another folder]: a run with other parameters is no result.")
    jobs = chosen_jobs(manifest, args)

    def write_page() -> None:
        write_whole(args.results / "README.md", render(manifest, args.results, papers))

    failed, done_before = [], 0
    for number, job in enumerate([] if args.render_only else jobs, start=1):
        if time.monotonic() > args.deadline:
            show("The time is up.")
            break
        show(f"[{number}/{len(jobs)}] {job}")
        try:
            found = run(job, args, papers)
            show(f"  {found}")
            done_before += found == IS_DONE
            if found != IS_DONE:
                write_page()
        except Paused:
            show("  paused: the time is up")
            break
        except (ValueError, FileNotFoundError) as error:
            show(f"  {type(error).__name__}: {error}")
            failed.append(job)
        except Exception:  # one run that breaks must not take the night's others with it
            show(traceback.format_exc())
            failed.append(job)
    write_page()
    if jobs and done_before == len(jobs):
        show(
            f"Nothing was trained: {args.results / 'runs'} has all of it. --results=FOLDER trains it again, elsewhere."
        )
    if failed:
        show(f"Failed: {'; '.join(map(str, failed))}")
    return not failed


if __name__ == "__main__":
    raise SystemExit("This is a part of benchmarks/reproduce.py, which has its command line: see its --help.")
