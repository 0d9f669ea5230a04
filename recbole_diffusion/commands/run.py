"""Train and evaluate one model, of this package or of RecBole, on one dataset."""

import argparse
import shlex
import sys

from recbole_diffusion.cli import begin, errors_in_one_line, model_summaries, parse_with_parameters
from recbole_diffusion.config.keys import describe_keys


def parse_args() -> tuple[argparse.Namespace, dict[str, str]]:
    """Read RecBole's flags; every other ``--key=value`` is a parameter."""
    models = "\n".join(f"  {name:<12} {text}" for name, text in model_summaries().items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        epilog=f"models:\n{models}\n  or any model of RecBole, such as SASRec, GRU4Rec or Pop\n\n"
        "Any parameter of a model, of training or of evaluation can be given as --key=value, for example\n"
        "--learning_rate=0.0005 --inference_seeds=[1,2,3]. --help_keys lists the keys with what they may hold,\n"
        "props/<Model>.yaml a model's defaults. --verbose shows the whole log, which otherwise goes to its file.\n"
        "For a smoke run: --epochs=1 --limit_train_batches=10.",
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
    # An installed program has both its words in the first.
    program = sys.argv[0].split() if sys.argv[0].startswith("recbole-diffusion ") else ["python", sys.argv[0]]
    command = [*program, *sys.argv[1:]]
    sys.argv = sys.argv[:1]  # RecBole's Config reads the command line, too, and warns of our flags
    with errors_in_one_line():
        if args.help_keys:
            print(describe_keys())
            return
        begin(None if args.print_config else f"{args.model} on {args.dataset}")
        from recbole_diffusion.console import metric_lines
        from recbole_diffusion.quick_start import build_config, describe_config, run
        from recbole_diffusion.trainer.resume import Interrupted

        files = args.config_files.split()
        if args.print_config:
            config = build_config(args.model, args.dataset, files, parameters)
            print(describe_config(config, files, (*parameters, "model", "dataset")))
            return
        try:
            result = run(
                args.model,
                args.dataset,
                config_file_list=files,
                config_dict=parameters,
                nproc=args.nproc,
                world_size=args.world_size,
                ip=args.ip,
                port=args.port,
                group_offset=args.group_offset,
            )
        except Interrupted as stop:
            words = [word for word in command if not word.startswith("--resume=")]
            words += [f"--resume={stop.resume}"] if stop.resume else []
            raise KeyboardInterrupt(f"{stop}\nGo on with: {shlex.join(words)}") from None
        print(f"\n{metric_lines(result)}\nCheckpoint: {result['model_file']}")
