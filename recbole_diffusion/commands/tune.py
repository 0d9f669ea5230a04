"""Search the hyper-parameters of one model, of this package or of RecBole, on one dataset.

Killed and started again with the same arguments, a search continues."""

import argparse
import shlex
import sys

from recbole_diffusion.cli import begin, errors_in_one_line, parse_with_parameters


def parse_args() -> tuple[argparse.Namespace, dict[str, str]]:
    """Read RecBole's flags; every other ``--key=value`` is a parameter that all trials share."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog="Any parameter that is not searched can be given as --key=value, for example --epochs=20.",
    )
    add = parser.add_argument
    add("--model", "-m", help="name of the model; may stand in a config file")
    add("--dataset", "-d", help="name of the dataset; may stand in a config file")
    add("--config_files", default="", help="YAML files with parameters, separated by spaces")
    add("--params_file", help="what to search: a line for each parameter (default: props/hyper/<Model>.hyper)")
    add("--output_file", help="results; beside it the best parameters as <output_file>.yaml, and what a "
        "continued search needs (default: hyper_results/<Model>-<dataset>-<tool>.result)")  # fmt: skip
    add("--display_file", help="plot of the search, an HTML page")
    add("--tool", default="Hyperopt", help="Hyperopt or Ray (default: %(default)s)")
    hyperopt = parser.add_argument_group("Hyperopt")
    add = hyperopt.add_argument
    add("--algo", help="exhaustive (no point twice), random or bayes (default: exhaustive, with ranges bayes)")
    add("--max_evals", type=int, help="number of trials (default: 10)")
    add("--early_stop", type=int, help="trials without a better one before the search ends (default: 10)")
    ray = parser.add_argument_group("Ray")
    add = ray.add_argument
    add("--num_samples", type=int, help="number of trials (default: 10)")
    add("--cpus_per_trial", type=float, help="CPU cores of one trial (default: 1)")
    add("--gpus_per_trial", type=float, help="GPUs of one trial, or a share of one (default: 1 where there is a GPU)")
    add("--address", help="address of a running Ray cluster (default: start Ray on this machine)")
    add("--grace_period", type=int, help="epochs before a trial that falls behind is stopped (default: 5)")
    return parse_with_parameters(parser)


def main() -> None:
    args, parameters = parse_args()
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line, too
    options = vars(args)
    files = options.pop("config_files").split()
    with errors_in_one_line():
        names = f"{args.model or 'the model of the config files'} on {args.dataset or 'their dataset'}"
        begin(f"Search with {args.tool}: {names}")
        from recbole_diffusion.experiments.hyper import search

        found = search(config_file_list=files, config_dict=parameters, **options)
        report(found, files, parameters)


def report(found: dict, files: list[str], parameters: dict[str, str]) -> None:
    """Print the best trial, and the command that trains with its parameters."""
    print(f"\nBest of {len(found['trials'])} trials of {found['model']} on {found['dataset']}")
    for name, value in found["best_params"].items():
        print(f"  {name}: {value}")
    print(f"Validation: {found['best_valid_score']:.4f}")
    for name, value in (found["test_result"] or {}).items():
        print(f"  test {name}  {value:.4f}")
    if found["test_result"] is None:
        print("  no test metrics: the trial was stopped before its end")
    print(f"Best parameters: {found['best_file']}\nTrain with them:")
    config_files = " ".join([*files, found["best_file"]])
    command = [f"--model={found['model']}", f"--dataset={found['dataset']}", f"--config_files={config_files}"]
    command += [f"--{key}={value}" for key, value in parameters.items()]
    print(f"  recbole-diffusion run {shlex.join(command)}")
