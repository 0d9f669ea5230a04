"""Train and evaluate one model, of this package or of RecBole, on one dataset: `recbole-diffusion run`."""

from recbole_diffusion.commands.run import main

if __name__ == "__main__":
    main()
