"""Model families behind one interface."""

from diffstyler.backbones.attention import AttentionBackend, AutoAttention, SDPAttention, XFormersAttention
from diffstyler.backbones.base import Backbone, InjectionSites, Schedule
from diffstyler.backbones.stable_diffusion import StableDiffusion
from diffstyler.backbones.stable_diffusion_xl import StableDiffusionXL

__all__ = [
    "AttentionBackend",
    "AutoAttention",
    "Backbone",
    "InjectionSites",
    "SDPAttention",
    "Schedule",
    "StableDiffusion",
    "StableDiffusionXL",
    "XFormersAttention",
]
