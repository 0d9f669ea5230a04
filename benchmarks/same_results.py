"""Compare two commits: does the same seed give the same losses, scores and checkpoints, to the last bit?

    python benchmarks/same_results.py 786b150 HEAD

Each commit is checked out into a folder of its own and trains every model for two epochs of markov-toy on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from inspect import signature
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "hidden_size": 32,
    "inner_size": 64,
    "n_layers": 2,
    "n_heads": 2,
    "MAX_ITEM_LIST_LENGTH": 20,
    "train_batch_size": 256,
    "eval_batch_size": 256,
    "num_steps": 8,
    "epochs": 2,
    "seed": 3,
}
# name -> model and what differs: every model, and the switches that lead through other code.
CASES: dict[str, tuple[str, dict]] = {
    "DiffuRec": ("DiffuRec", {}),
    "DiffuRec, sampled loss, loss-aware steps, ddim": (
        "DiffuRec",
        {"item_loss": "sampled", "n_sampled_items": 16, "step_sampler": "loss_aware", "sampler": "ddim"},
    ),
    "DiffuRec, three seeds, padded": ("DiffuRec", {"inference_seeds": [1, 2, 3], "ragged": False}),
    "DiffuRecSys": ("DiffuRecSys", {"use_position_embedding": True, "noise_x_start": True}),
    "DiffuRecSys, V1, one step": ("DiffuRecSys", {"offset_noise": 0, "inference": "one_step"}),
    "SeqDiffRec": ("SeqDiffRec", {}),
    "SeqDiffRec, reverse, three noised": ("SeqDiffRec", {"inference": "reverse", "noised_items": 3}),
    "DreamRec": ("DreamRec", {}),
    "DreamRec, mlp2, plain, four steps": (
        "DreamRec",
        {"denoiser": "mlp2", "fused_denoiser": False, "sampling_steps": 4},
    ),
    "CDDRec": ("CDDRec", {"train_batch_size": 32}),
    "CDDRec, crop": ("CDDRec", {"train_batch_size": 32, "augmentation": "crop", "divergence": "kl"}),
    "CDDRec, mask": ("CDDRec", {"train_batch_size": 32, "augmentation": "mask"}),
    "SASRec": ("SASRec", {"loss_type": "CE"}),
}
# Defaults that were changed on purpose: both commits compute with the old one, where they have the key.
OLD_DEFAULTS = {"SeqDiffRec": {"positions_from": "start"}, "CDDRec": {"mask_ratio": 0.6}}


def digest(tensor) -> str:
    """A fingerprint of a tensor's type, shape and bits."""
    tensor = tensor.detach().cpu().contiguous()
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + tensor.numpy().tobytes()).hexdigest()[:16]


def fingerprint(data: str) -> dict[str, dict[str, str]]:
    """What the imported code computes for each case: a loss, metrics, scores and the tensors of the checkpoint."""
    import torch
    import yaml

    from recbole_diffusion.quick_start import build_config, load_data_and_model, train_and_test

    torch.set_num_threads(1)
    quiet = {"data_path": data, "state": "ERROR", "show_progress": False}
    # Older versions read from the checkpoint where the data is.
    where = [quiet] if "config_dict" in signature(load_data_and_model).parameters else []
    found = {}
    for name, (model, differs) in CASES.items():
        old = OLD_DEFAULTS.get(model, {})
        if old:
            props = yaml.safe_load((Path(data).parent / "props" / f"{model}.yaml").read_text())
            old = {key: value for key, value in old.items() if key in props}
        result = train_and_test(build_config(model, "markov-toy", None, {**quiet, **TINY, **old, **differs}))
        config, network, _, train, _, test = load_data_and_model(result["model_file"], *where)
        batch = next(iter(test))[0]
        with torch.no_grad():
            scores = network.eval().full_sort_predict(batch)
        torch.manual_seed(0)
        rows = next(iter(train))
        loss = network.train().calculate_loss(rows)
        state = torch.load(result["model_file"], weights_only=True)["state_dict"]
        found[name] = {
            "loss": float(loss).hex(),
            "rows": digest(rows[network.ITEM_SEQ]),
            "test metrics": json.dumps({key: float(value) for key, value in result["test_result"].items()}),
            "scores": digest(scores),
            **{f"checkpoint {key}": digest(value) for key, value in sorted(state.items())},
        }
    return found


def of_commit(commit: str) -> dict[str, dict[str, str]]:
    """The fingerprint of a commit, computed by its code in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "--detach", str(tree), commit], check=True)
        try:
            path = {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(Path(__file__)), "--data", str(tree / "dataset")]
            done = subprocess.run(
                command, cwd=folder, env={**os.environ, **path}, check=True, stdout=subprocess.PIPE, text=True
            )
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="two of them")
    parser.add_argument("--data", help=argparse.SUPPRESS)  # print the fingerprint of the code that is imported
    args = parser.parse_args()
    if args.data:
        sys.argv = sys.argv[:1]  # RecBole's Config reads the command line
        print(json.dumps(fingerprint(args.data)))
        return
    if len(args.commits) != 2:
        parser.error("name two commits")
    before, after = map(of_commit, args.commits)
    different = 0
    for name, values in before.items():
        changed = [key for key, value in values.items() if after[name].get(key) != value]
        changed += [key for key in after[name] if key not in values]
        different += bool(changed)
        print(f"{name}: {'the same' if not changed else 'DIFFERENT: ' + ', '.join(changed)} ({len(values)} values)")
    print(f"{len(before) - different} of {len(before)} cases are the same to the last bit.")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
