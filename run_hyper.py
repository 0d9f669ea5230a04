"""Search the hyper-parameters of one model, of this package or of RecBole, on one dataset: `recbole-diffusion tune`."""

from recbole_diffusion.commands.tune import main

if __name__ == "__main__":
    main()
