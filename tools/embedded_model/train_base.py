"""Train the latent diffusion model that the package embeds: a rendered world comes in, a pipeline directory goes out.

python tools/embedded_model/train_base.py render --pictures runs/pictures
python tools/embedded_model/train_base.py vae --pictures runs/pictures --out runs/vae
python tools/embedded_model/train_base.py unet --pictures runs/pictures --vae runs/vae --out runs/unet
python tools/embedded_model/train_base.py export --vae runs/vae --unet runs/unet --out runs/embedded
python tools/embedded_model/train_base.py evaluate runs/embedded --sheet runs/samples.png

`vae` and `unet` also run on several GPUs of one host: torchrun --nproc-per-node 4 tools/embedded_model/train_base.py …
"""

import argparse
import os
from pathlib import Path

import torch
import train_unet
import train_vae
from base_model import export_pipeline
from evaluate_base import evaluate
from rendered import render


def main() -> None:
    options = parse_arguments()
    if options.command == "render":
        render(options.pictures, options.scenes, options.leaves, options.first, options.workers, options.minutes)
    elif options.command == "vae":
        train_vae.train_vae(options)
    elif options.command == "unet":
        train_unet.train_unet(options)
    elif options.command == "export":
        export_pipeline(options.vae, options.unet, options.out)
    else:
        evaluate(options.model, options.sheet, options.renders, options.device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--pictures", type=Path, required=True, help="directory that `render` wrote")
    common.add_argument("--minutes", type=float, default=8.7, help="wall clock for everything")
    training = argparse.ArgumentParser(add_help=False, parents=[common])
    training.add_argument("--out", type=Path, required=True, help="directory for the weights")
    training.add_argument("--seed", type=int, default=0, help="of the networks and of what is drawn")
    training.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    training.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False)
    rendering = commands.add_parser("render", parents=[common], help="render the pictures on all cores")
    rendering.add_argument("--scenes", type=int, default=9000, help="scenes to render, each as three pictures")
    rendering.add_argument("--leaves", type=int, default=6000, help="dead-leaves pictures to render")
    rendering.add_argument("--first", type=int, default=0, help="seed of the first scene")
    rendering.add_argument("--workers", type=int, default=os.cpu_count())
    train_vae.add_arguments(commands.add_parser("vae", parents=[training], help="train the autoencoder"))
    train_unet.add_arguments(commands.add_parser("unet", parents=[training], help="train UNet and text encoder"))
    export = commands.add_parser("export", help="make the pipeline directory")
    export.add_argument("--vae", type=Path, required=True)
    export.add_argument("--unet", type=Path, required=True)
    export.add_argument("--out", type=Path, required=True)
    evaluation = commands.add_parser("evaluate", help="measure a pipeline directory and draw samples")
    evaluation.add_argument("model", type=Path)
    evaluation.add_argument("--sheet", type=Path, help="where a sheet of samples goes, which takes long")
    evaluation.add_argument("--renders", type=int, default=16, help="held-out scenes to measure on")
    evaluation.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
