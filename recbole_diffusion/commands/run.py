"""Train and evaluate one model, of this package or of RecBole, on one dataset."""

import argparse
import sys

from recbole_diffusion import MODELS
from recbole_diffusion.cli import errors_in_one_line, parse_with_parameters
from recbole_diffusion.config.keys import describe_keys
from recbole_diffusion.quick_start import build_config, describe_config, run


def parse_args() -> tuple[argparse.Namespace, dict[str, str]]:
    """Read RecBole's flags; every other ``--key=value`` is a parameter."""
    models = "\n".join(f"  {name:<12} {model.__doc__.splitlines()[0]}" for name, model in MODELS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=f"models:\n{models}\n  or any model of RecBole, such as SASRec, GRU4Rec or Pop\n\n"
        "Any parameter of a model, of training or of evaluation can be given as --key=value, for example\n"
        "--learning_rate=0.0005 --inference_seeds=[1,2,3]. --help_keys lists the keys with what they may hold,\n"
        "props/<Model>.yaml a model's defaults. For a smoke run: --epochs=1 --limit_train_batches=10.",
    )
    parser.add_argument("--model", "-m", default="DiffuRecSys", help="name of the model (default: %(default)s)")
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the dataset (default: %(default)s)")
    parser.add_argument("--config_files", default="", help="YAML files with parameters, separated by spaces")
    parser.add_argument("--nproc", type=int, default=1, help="number of processes on this machine, one a GPU")
    parser.add_argument("--ip", default="localhost", help="address of the master node")
    parser.add_argument("--port", default="5678", help="port of the master node")
    parser.add_argument("--world_size", type=int, default=-1, help="total number of processes")
    parser.add_argument("--group_offset", type=int, default=0, help="global rank of this machine's first process")
    parser.add_argument("--help_keys", action="store_true", help="list the keys by group, with what they may hold")
    parser.add_argument("--print_config", action="store_true", help="print every value and the file it comes from")
    return parse_with_parameters(parser)


def main() -> None:
    args, parameters = parse_args()
    if args.help_keys:
        print(describe_keys())
        return
    with errors_in_one_line():
        if args.print_config:
            sys.argv.remove("--print_config")  # RecBole would warn that it does not read it
            files = args.config_files.split()
            print(describe_config(build_config(args.model, args.dataset, files, parameters), files))
            return
        result = run(
            args.model,
            args.dataset,
            config_file_list=args.config_files.split(),
            config_dict=parameters,
            nproc=args.nproc,
            world_size=args.world_size,
            ip=args.ip,
            port=args.port,
            group_offset=args.group_offset,
        )
    metrics = result["test_result"] or {}
    width = max(map(len, metrics), default=0)
    print(f"\nTest metrics of {result['model']} on {result['dataset']} ({result['epochs']} epochs)")
    if not metrics:
        print("  none: the split leaves no test data (a user needs three interactions)")
    protocols = result["test_results"] or {"": metrics}
    if result["test_results"]:
        print(f"  {'history':<{width}}  " + "  ".join(f"{protocol:>10}" for protocol in protocols))
    for name in metrics:
        print(f"  {name:<{width}}  " + "  ".join(f"{values[name]:>10.4f}" for values in protocols.values()))
    print(f"Checkpoint: {result['model_file']}")


if __name__ == "__main__":
    main()
